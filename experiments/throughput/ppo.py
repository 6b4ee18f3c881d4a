"""PPO ready to learn, ours and stable-baselines3's own, for speed measurements."""

import time
from dataclasses import replace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecMonitor

from agents.algorithms import load_hyperparameters
from agents.ppo.algorithm import GlimpsePPO
from agents.ppo.hyperparameters import Hyperparameters
from agents.ppo.model import make_model, make_training_env, ppo_arguments
from agents.ppo.policy import ViewpointPolicy
from agents.ppo.rollout import TensorRolloutBuffer
from canvit_gym.backbone.load import Backbone, resolve_device
from canvit_gym.command_line import env_config
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.networks import action_options
from canvit_gym.sb3 import GlimpseVecEnv, make_sb3_env
from experiments.throughput.clock import Clock, synchronize


def _throughput_hyperparameters(
    env_id: str, *, num_envs: int, env_kwargs: dict[str, Any], overrides: dict[str, Any] | None = None
) -> Hyperparameters:
    """The file's hyperparameters with overrides, `num_envs` scenes and the environment's keyword arguments."""
    overrides = overrides or {}
    alone = {"prior": None, **overrides.get("policy_kwargs", {})}  # none has a detector, whose passes would come on top
    hyper = load_hyperparameters(env_id, {**overrides, "policy_kwargs": alone, "detection": None})
    return replace(
        hyper,
        n_envs=num_envs,
        batch_size=min(hyper.batch_size, num_envs * hyper.n_steps),
        env_kwargs={**hyper.env_kwargs, **env_kwargs},
    )


def ppo_for_throughput(
    env_id: str, *, num_envs: int, env_kwargs: dict[str, Any], overrides: dict[str, Any] | None = None
) -> GlimpsePPO:
    """The model that `train` makes, with `num_envs` scenes, ready to learn and without logging."""
    hyper = _throughput_hyperparameters(env_id, num_envs=num_envs, env_kwargs=env_kwargs, overrides=overrides)
    config = env_config(env_id, hyper.env_kwargs)
    hyper.check_fit(config)
    model = make_model(make_training_env(env_id, config, hyper, hyper.env_kwargs), config, hyper, seed=0)
    model.set_logger(Logger(None, []))
    return model


def stock_ppo_for_throughput(
    env_id: str, *, num_envs: int, env_kwargs: dict[str, Any], policy: Literal["MultiInputPolicy", "ViewpointPolicy"]
) -> PPO:
    """The reference for ppo_for_throughput: stable-baselines3's PPO and DictRolloutBuffer, on the same environment with
    the same hyperparameters, with its own policy or ours.
    """
    hyper = _throughput_hyperparameters(env_id, num_envs=num_envs, env_kwargs=env_kwargs)
    envs = make_sb3_env(env_id, num_envs, **hyper.env_kwargs)
    ours = {**action_options(envs.glimpse_envs.actions), **hyper.policy_kwargs}
    model = PPO(
        policy if policy == "MultiInputPolicy" else ViewpointPolicy,
        VecMonitor(envs),
        **ppo_arguments(hyper),
        policy_kwargs={} if policy == "MultiInputPolicy" else ours,
        rollout_buffer_class=DictRolloutBuffer,
        seed=0,
        device=resolve_device(envs.glimpse_envs.config.device),
    )
    model.set_logger(Logger(None, []))
    return model


def buffer_mib(model: OnPolicyAlgorithm) -> float:
    buffer: Any = model.rollout_buffer
    if isinstance(buffer, TensorRolloutBuffer):
        return buffer.num_bytes / 2**20
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    return sum(value.nbytes for value in [*arrays, *buffer.observations.values()]) / 2**20


def learn_rollouts(model: OnPolicyAlgorithm, count: int) -> int:
    """Learn for `count` rollouts with their updates. Returns their number of decisions."""
    decisions = count * model.n_steps * model.n_envs
    model.learn(decisions, reset_num_timesteps=False)
    return decisions


def learn_timed(model: OnPolicyAlgorithm, *, rollouts: int) -> dict[str, float]:
    """Measure rollouts and updates of a model that has warmed up: glimpses per second of all scenes, including their
    first glimpses, and the size of the rollout buffer. One more rollout, which waits for the device at every stage,
    gives the shares of the time in Backbone.step, in the whole environment steps and in the update.
    """
    assert model.env is not None
    env = model.env.unwrapped
    assert isinstance(env, GlimpseVecEnv)
    device, episode = env.glimpse_envs.backbone.device, env.glimpse_envs.config
    seconds, decisions = _timed(model, device, rollouts)
    backbone, steps, update = Clock(device), Clock(device), Clock(device)
    with (
        patch.object(Backbone, "step", backbone.timing(Backbone.step)),
        patch.object(EpisodeBatch, "step_rows", steps.timing(EpisodeBatch.step_rows)),
        patch.object(model, "train", update.timing(model.train)),
    ):
        clocked, _ = _timed(model, device, 1)
    acting = episode.budget - (episode.first_glimpse is not None)
    return {
        "glimpses_per_second": decisions * episode.budget / acting / seconds,
        "share_in_backbone": backbone.seconds / clocked,
        "share_in_steps": steps.seconds / clocked,
        "share_in_update": update.seconds / clocked,
        "rollout_buffer_mib": buffer_mib(model),
    }


def _timed(model: OnPolicyAlgorithm, device: torch.device, rollouts: int) -> tuple[float, int]:
    """(seconds, decisions) of rollouts with their updates."""
    synchronize(device)
    began = time.perf_counter()
    decisions = learn_rollouts(model, rollouts)
    synchronize(device)
    return time.perf_counter() - began, decisions
