"""Imitate a greedy oracle, which tries viewpoints with the labels and takes the best.

In every state the oracle tries `candidates` viewpoints of the table, each with a forward pass of the backbone, and the
network learns to give the best of them the highest score (cross-entropy over the candidates). States are collected in
rounds, the first with random viewpoints, the others with viewpoints sampled from the network. After every round the
network learns from all states so far (Ross et al. 2011, DAgger). This is a cheap upper baseline for learners that do
not use labels. Here a decision is a state in which the oracle is used; it costs candidates + 1 forward passes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed

from agents.algorithms import Algorithm
from agents.behaviours import look_anywhere, sample_network
from agents.checks import check_fields, mapping, network_options
from agents.learner import Monitoring, State, closed_on_error
from agents.ppo.warm_start import WarmStart, explained_share, learn
from agents.settings import Plan
from agents.torch_learner import TorchLearner
from agents.training_state import (
    capture_native,
    check_revisits,
    generator_state,
    random_state,
    restore_native,
    set_generator_state,
    set_random_state,
)
from agents.tried import TriedViewpoints, collect, require_table
from canvit_gym.actions import DiscreteActions
from canvit_gym.backbone.load import resolve_device
from canvit_gym.checks import finite, integer
from canvit_gym.config import EnvConfig
from canvit_gym.policies.networks import ViewpointNetwork, action_options
from canvit_gym.vector_env import GlimpseVectorEnv


@dataclass(frozen=True)
class CloningHyperparameters:
    """An entry of agents/hyperparameters/oracle_cloning.yml, which explains the fields."""

    total_timesteps: int
    env_kwargs: dict[str, Any]
    n_envs: int
    candidates: int
    round_states: int
    epochs: int
    batch_size: int
    learning_rate: float
    policy_kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        check_fields(self, mapping, "env_kwargs")
        check_fields(self, integer(1), "total_timesteps", "n_envs", "round_states", "epochs")
        check_fields(self, integer(2), "candidates", "batch_size")
        check_fields(self, finite(above=0), "learning_rate")
        check_fields(
            self,
            network_options(leave_out=("distribution", "log_std_init", "learned_stop"), detector=False),
            "policy_kwargs",
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def glimpses(self, decisions: int) -> int:
        return decisions * (self.candidates + 1)

    def check_fit(self, config: EnvConfig) -> None:
        check_revisits(config, inhibition=None)
        require_table(config, self.candidates)


class OracleCloning(TorchLearner[ViewpointNetwork]):
    """Trains a ViewpointNetwork to imitate the oracle."""

    network_class = "ViewpointNetwork"
    captures_every_update = False  # states contain all states of the oracle so far

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.hyper: CloningHyperparameters = plan.hyper
        hyper = self.hyper
        set_random_seed(plan.settings.seed)
        self.envs = GlimpseVectorEnv(hyper.n_envs, autoreset_mode="disabled", **vars(plan.env))
        actions = self.envs.actions
        assert isinstance(actions, DiscreteActions)  # check_fit
        with closed_on_error(self.envs):
            self._network = ViewpointNetwork(
                self.envs.single_observation_space,  # type: ignore[arg-type]
                self.envs.single_action_space,
                **action_options(actions),
                **hyper.policy_kwargs,
            ).to(resolve_device(plan.env.device))
        self.optimizer = torch.optim.Adam(self._network.parameters(), lr=hyper.learning_rate)
        self._options = WarmStart(
            states=hyper.total_timesteps,
            candidates=hyper.candidates,
            round_states=hyper.round_states,
            epochs=hyper.epochs,
            batch_size=hyper.batch_size,
            objective="cloning",
            vf_coef=0.0,
        )
        self._rng = np.random.default_rng(plan.settings.seed)
        self._tried: TriedViewpoints | None = None
        self._found: dict[str, float] = {}

    @property
    def status(self) -> dict[str, float | None]:
        return {**self._found}

    def begin(self, *, progress: bool) -> list[dict[str, float]]:
        self.envs.reset(seed=self.plan.settings.seed)
        return []

    def learn(self, total: int, monitor: Monitoring, *, callbacks: Sequence[BaseCallback] = ()) -> bool:
        self._refuse_callbacks(callbacks)
        while self.num_timesteps < total:
            monitor.between_updates()
            size = min(self.hyper.round_states, total - self.num_timesteps)
            first = self._tried is None
            found = collect(
                self.envs, candidates=self.hyper.candidates, states=size, rng=self._rng, advance=monitor.stepped,
                behaviour=look_anywhere(self.envs, self._rng) if first else sample_network(self._network, self.envs),
            )  # fmt: skip
            explained = explained_share(self._network, found, self._options)
            self._tried = found if self._tried is None else self._tried.and_then(found)
            rate = self.hyper.learning_rate * (1 - self.num_timesteps / total)
            self._found = learn(
                self._network, self.optimizer, self._tried, torch.zeros(len(self._tried)), self._options,
                rate=lambda _, rate=rate: rate,
            )  # fmt: skip
            self.num_timesteps += len(found.gains)
            for name, value in (self._found | {"explained": explained}).items():
                self._logger.record(f"train/{name}", value)
            self._logger.dump(self.num_timesteps)
        return True

    def capture(self) -> State:
        tried = self._tried
        return super().capture() | {
            "tried": {} if tried is None else tried.state_dict(),
            "candidates": generator_state(self._rng),
            "random": random_state(),
            **capture_native(self.envs),
        }

    def restore(self, state: State) -> None:
        super().restore(state)
        if state["tried"]:
            self._tried = TriedViewpoints.from_state_dict(state["tried"], device=self.envs.backbone.device)
        set_generator_state(self._rng, state["candidates"])
        self.envs.reset(seed=0)
        restore_native(self.envs, state)
        set_random_state(state["random"])

    def close(self) -> None:
        self.envs.close()


ALGORITHM = Algorithm(title="Oracle cloning", hyperparameters=CloningHyperparameters, make=OracleCloning)
