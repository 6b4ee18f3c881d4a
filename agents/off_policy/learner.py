"""DQN and SAC of Stable-Baselines3, and the base of related learners in sb3-contrib."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr
from stable_baselines3.common.vec_env import VecMonitor
from torch import nn

from agents.algorithms import Algorithm
from agents.checks import schedule
from agents.extractors import FlatSpatialExtractor, FlattenObservations, SpatialExtractor
from agents.finite import GradientWatch
from agents.learner import Monitoring, State, closed_on_error
from agents.normalize import PerStepNormalize, normalized_rewards
from agents.off_policy.hyperparameters import OfContinuous, OffPolicyHyperparameters, OfTables
from agents.sb3_callback import MonitorCallback, mean_return
from agents.settings import Plan
from agents.training_state import (
    begin_episodes,
    capture_environments,
    cut_episodes,
    generator_state,
    glimpse_env,
    random_state,
    restore_environments,
    set_generator_state,
    set_random_state,
)
from canvit_gym.backbone.load import resolve_device
from canvit_gym.policies.networks import NETWORK_CLASSES, EncodedActor, EncodedValues
from canvit_gym.sb3 import make_sb3_env

_NUMBERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate")
"""Attributes of a model that its next step depends on, if it has them."""
_CHOSEN_ELSEWHERE = (
    "policy", "env", "learning_rate", "buffer_size", "learning_starts", "batch_size", "gamma", "train_freq",
    "gradient_steps", "policy_kwargs", "seed", "device", "tensorboard_log", "_init_setup_model",
)  # fmt: skip
"""Arguments of a model that are hyperparameters of their own, or not to be chosen."""
_UNSUPPORTED = (
    "action_noise", "replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage", "use_sde",
    "sde_sample_freq", "use_sde_at_warmup",
)  # fmt: skip
"""Arguments that training states or policies, which act without Stable-Baselines3, do not cover."""
_OF_VECTORS = ("n_steps",)
"""Arguments that SB3 does not take with Dict observations."""
_ARRAYS = ("actions", "rewards", "dones", "timeouts")
"""Arrays of a replay buffer other than observations."""


class OffPolicyLearner:
    """An off-policy model with the spatial extractor.

    Its states contain the whole replay buffer, so they are only captured when they are written. Ctrl-C therefore goes
    back to the last written state.
    """

    captures_every_update = False

    def __init__(
        self,
        plan: Plan,
        *,
        model_class: Callable[..., OffPolicyAlgorithm],
        network_class: str,
        share_layers: Callable[[Any, Any], None],
        network_options: dict[str, Any] | None = None,
        flat: bool = False,
    ) -> None:
        self.plan, self.network_class = plan, network_class
        hyper = self.hyper = cast(OffPolicyHyperparameters, plan.hyper)
        self.network_options: dict[str, Any] = {
            "encoder": hyper.encoder, "net_arch": hyper.net_arch, **(network_options or {}),
        }  # fmt: skip
        _check_options(hyper.options, model_class, flat=flat)
        envs = VecMonitor(make_sb3_env(plan.settings.env, hyper.n_envs, **plan.env_kwargs))
        layout = cast(spaces.Dict, envs.observation_space)
        normalized = normalized_rewards(envs, plan.env, how=hyper.normalize_reward, clip=hyper.clip_reward)
        self._normalizer = normalized if isinstance(normalized, PerStepNormalize) else None
        self.env = FlattenObservations(normalized) if flat else normalized
        with closed_on_error(self.env):
            extractor = {"features_extractor_class": FlatSpatialExtractor if flat else SpatialExtractor}
            self.model = model_class(
                "MlpPolicy" if flat else "MultiInputPolicy",
                self.env,
                learning_rate=schedule("learning_rate", hyper.learning_rate),
                buffer_size=hyper.buffer_size,
                learning_starts=hyper.learning_starts,
                batch_size=hyper.batch_size,
                gamma=hyper.gamma,
                train_freq=(hyper.train_freq, "step"),
                gradient_steps=hyper.gradient_steps,
                policy_kwargs={
                    **extractor,
                    "features_extractor_kwargs": hyper.encoder | ({"layout": layout} if flat else {}),
                    "net_arch": hyper.net_arch,
                },
                seed=plan.settings.seed,
                device=resolve_device(plan.env.device),
                **hyper.options,
            )
            parts, _ = self.model._get_torch_save_params()
            optimizers = [recursive_getattr(self.model, name) for name in parts if name.endswith("optimizer")]
            self._watch = GradientWatch(self.model.policy, *optimizers)
            self._network = NETWORK_CLASSES[network_class](layout, self.model.action_space, **self.network_options)
            share_layers(self._network, self.model.policy)

    @property
    def network(self) -> nn.Module:
        return self._network

    @property
    def num_timesteps(self) -> int:
        return self.model.num_timesteps

    @property
    def status(self) -> dict[str, float | None]:
        losses = {"loss": "train/loss", "critic": "train/critic_loss"}
        values = {name: self.model.logger.name_to_value.get(tag) for name, tag in losses.items()}
        return {"reward": mean_return(self.model)} | values

    def set_logger(self, logger: Logger) -> None:
        self.model.set_logger(logger)

    def begin(self, *, progress: bool) -> list[dict[str, float]]:
        begin_episodes(self.model, self.env)
        return []

    def learn(self, total: int, monitor: Monitoring, *, callbacks: Sequence[BaseCallback] = ()) -> bool:
        cut = partial(cut_episodes, self.model, self.env, self.plan.env)
        ours = MonitorCallback(monitor, total=total, before_rollout=cut)
        remaining = total - self.model.num_timesteps
        self.model.learn(remaining, callback=[ours, *callbacks], reset_num_timesteps=False)
        return ours.reached

    def capture(self) -> State:
        model = self.model
        modules, variables = model._get_torch_save_params()
        return {
            **{name: getattr(model, name) for name in _NUMBERS if hasattr(model, name)},
            "modules": {name: copy.deepcopy(recursive_getattr(model, name).state_dict()) for name in modules},
            "variables": {name: recursive_getattr(model, name).detach().clone() for name in variables},
            "replay": self._replay_state(),
            "normalizer": {} if self._normalizer is None else self._normalizer.state_dict(),
            "action_space": generator_state(model.action_space.np_random),
            "random": random_state(),
            **capture_environments(glimpse_env(self.env)),
        }

    def _replay_state(self) -> State:
        buffer = cast(Any, self.model.replay_buffer)
        held = buffer.buffer_size if buffer.full else buffer.pos
        arrays = {name: torch.from_numpy(value[:held].copy()) for name, value in self._replay_arrays().items()}
        return {"pos": buffer.pos, "full": buffer.full, "arrays": arrays}

    def _replay_arrays(self) -> dict[str, NDArray[Any]]:
        """The contents of the replay buffer, by name."""
        buffer = cast(Any, self.model.replay_buffer)
        arrays = {name: getattr(buffer, name) for name in _ARRAYS}
        for kind in ("observations", "next_observations"):
            held = getattr(buffer, kind)
            arrays |= (
                {f"{kind}/{key}": value for key, value in held.items()} if isinstance(held, dict) else {kind: held}
            )
        return arrays

    def restore(self, state: State) -> None:
        model = self.model
        for name in _NUMBERS:
            if name in state:
                setattr(model, name, state[name])
        for name, value in state["modules"].items():
            recursive_getattr(model, name).load_state_dict(copy.deepcopy(value))
        for name, value in state["variables"].items():
            recursive_setattr(model, f"{name}.data", value.clone().to(model.device))
        self._restore_replay(state["replay"])
        if self._normalizer is not None:
            self._normalizer.load_state_dict(state["normalizer"])
        begin_episodes(self.model, self.env, restore_environments(self.env, state))
        set_generator_state(model.action_space.np_random, state["action_space"])
        set_random_state(state["random"])

    def _restore_replay(self, state: State) -> None:
        buffer = cast(Any, self.model.replay_buffer)
        buffer.pos, buffer.full = state["pos"], state["full"]
        for name, array in self._replay_arrays().items():
            array[: len(state["arrays"][name])] = state["arrays"][name].numpy()

    def restore_network(self, state: State) -> None:
        self.model.policy.load_state_dict(state["modules"]["policy"])

    def close(self) -> None:
        self.env.close()


def _check_options(options: dict[str, Any], model_class: Callable[..., OffPolicyAlgorithm], *, flat: bool) -> None:
    """Raise ValueError for options that the algorithm does not have, or that are not chosen there."""
    left_out = {*_CHOSEN_ELSEWHERE, *_UNSUPPORTED, *(() if flat else _OF_VECTORS)}
    known = [name for name in signature(model_class).parameters if name not in left_out]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown hyperparameter options {', '.join(unknown)}; there are: {', '.join(known)}")


def share_values(network: EncodedValues, policy: Any) -> None:
    """Make `network` share DQN's layers."""
    network.encoder, network.head = policy.q_net.features_extractor.encoder, policy.q_net.q_net


def share_actor(network: EncodedActor, policy: Any) -> None:
    """Make `network` share the layers of an actor of SAC, TQC or CrossQ."""
    actor = policy.actor
    network.encoder, network.latent = actor.features_extractor.encoder, actor.latent_pi
    network.mean, network.log_std = actor.mu, actor.log_std


DQN_ALGORITHM = Algorithm(
    title="DQN",
    hyperparameters=OfTables,
    make=lambda plan: OffPolicyLearner(plan, model_class=DQN, network_class="EncodedValues", share_layers=share_values),
)
SAC_ALGORITHM = Algorithm(
    title="SAC",
    hyperparameters=OfContinuous,
    make=lambda plan: OffPolicyLearner(plan, model_class=SAC, network_class="EncodedActor", share_layers=share_actor),
)
