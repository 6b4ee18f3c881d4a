"""PPO as a learner of agents.algorithms."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import nn

from agents.algorithms import Algorithm
from agents.detection import detection_of, learn_to_detect
from agents.learner import Monitoring, State, closed_on_error
from agents.normalize import PerStepNormalize
from agents.ppo.callbacks import EntropyFloor, ViewpointStatistics
from agents.ppo.hyperparameters import Hyperparameters
from agents.ppo.model import make_model, make_training_env, warmed_up
from agents.ppo.policy import ViewpointPolicy
from agents.sb3_callback import MonitorCallback, mean_return
from agents.settings import Plan
from agents.training_state import (
    begin_episodes,
    capture_environments,
    cut_episodes,
    glimpse_env,
    random_state,
    restore_environments,
    set_random_state,
)
from agents.when_to_stop import learn_when_to_stop, stopping_of
from canvit_gym.assembly import build_actions


class PPOLearner:
    """Trains GlimpsePPO by a run's plan."""

    captures_every_update = True
    network_class = "ViewpointNetwork"

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.hyper: Hyperparameters = plan.hyper
        self.env = make_training_env(plan.settings.env, plan.env, self.hyper, plan.env_kwargs)
        with closed_on_error(self.env):
            self.model = make_model(self.env, plan.env, self.hyper, seed=plan.settings.seed)
            self._statistics = ViewpointStatistics(build_actions(plan.env))

    @property
    def policy(self) -> ViewpointPolicy:
        policy = self.model.policy
        assert isinstance(policy, ViewpointPolicy), policy
        return policy

    @property
    def network(self) -> nn.Module:
        return self.policy.plain

    @property
    def network_options(self) -> dict[str, Any]:
        return self.hyper.policy_kwargs

    @property
    def num_timesteps(self) -> int:
        return self.model.num_timesteps

    @property
    def status(self) -> dict[str, float | None]:
        return {
            "reward": mean_return(self.model),
            "entropy": self._statistics.entropy,
            "loss": self.model.logger.name_to_value.get("train/loss"),
        }

    @property
    def ran(self) -> dict[str, str]:
        model, policy = self.model, self.model.policy
        ran = {"device": model.device.type, "policy network": "eager"}
        if isinstance(policy, ViewpointPolicy):  # that of sb3-contrib's learners, which are subclasses, is another
            ran |= {"policy network": policy.ran, "policy network in rollouts": policy.ran_in_rollouts}
            if model.recorded_gradients is not None:
                ran["minibatches"] = model.recorded_gradients.ran
        return ran

    def set_logger(self, logger: Logger) -> None:
        self.model.set_logger(logger)

    def begin(self, *, progress: bool) -> list[dict[str, float]]:
        env, seed = self.plan.env, self.plan.settings.seed
        found = learn_to_detect(self.network, env, detection_of(self.hyper), seed=seed, progress=progress)
        found += learn_when_to_stop(self.network, env, stopping_of(self.hyper), seed=seed, progress=progress)
        found += warmed_up(self.model, env, self.hyper, seed=seed, progress=progress)
        begin_episodes(self.model, self.env)
        return found

    def learn(self, total: int, monitor: Monitoring, *, callbacks: Sequence[BaseCallback] = ()) -> bool:
        cut = partial(cut_episodes, self.model, self.env, self.plan.env)
        ours = MonitorCallback(monitor, total=total, before_rollout=cut)
        learning: list[BaseCallback] = [ours, self._statistics]
        if self.hyper.entropy_floor is not None:
            learning.append(EntropyFloor(**self.hyper.entropy_floor))
        # SB3 counts from num_timesteps, so total_timesteps is the remaining number.
        remaining = total - self.model.num_timesteps
        self.model.learn(remaining, callback=[*learning, *callbacks], reset_num_timesteps=False)
        return ours.reached

    def capture(self) -> State:
        model = self.model
        normalizer = self.env if isinstance(self.env, PerStepNormalize) else None
        return {
            "num_timesteps": model.num_timesteps,
            "n_updates": model._n_updates,
            "policy": {k: v.detach().clone() for k, v in model.policy.state_dict().items()},
            "optimizer": copy.deepcopy(model.policy.optimizer.state_dict()),
            "ent_coef": model.ent_coef,
            "normalizer": normalizer.state_dict() if normalizer is not None else {},
            "random": random_state(),
            **capture_environments(glimpse_env(self.env)),
        }

    def restore(self, state: State) -> None:
        model = self.model
        model.num_timesteps = state["num_timesteps"]
        model._n_updates = state["n_updates"]
        self.restore_network(state)
        model.policy.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        model.ent_coef = state["ent_coef"]
        if isinstance(self.env, PerStepNormalize):
            self.env.load_state_dict(state["normalizer"])
        begin_episodes(self.model, self.env, restore_environments(self.env, state))
        set_random_state(state["random"])

    def restore_network(self, state: State) -> None:
        self.model.policy.load_state_dict(state["policy"])

    def close(self) -> None:
        self.env.close()


ALGORITHM = Algorithm(title="PPO", hyperparameters=Hyperparameters, make=PPOLearner)
