"""PPO ready to learn, ours and stable-baselines3's own, for measurements of its speed."""

from dataclasses import replace
from typing import Any, Literal

from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecMonitor

from agents.hyperparameters import Hyperparameters, check_fit, load_hyperparameters
from agents.policy import ViewpointPolicy, policy_kwargs_for
from agents.ppo import GlimpsePPO
from canvit_gym.backbone.load import resolve_device
from canvit_gym.sb3 import make_sb3_env
from experiments.command_line import env_config
from experiments.training.model import make_model, make_training_env, ppo_arguments


def _throughput_hyperparameters(
    env_id: str, *, num_envs: int, env_kwargs: dict[str, Any], overrides: dict[str, Any] | None = None
) -> Hyperparameters:
    """Those of the file with overrides and `num_envs` scenes, and the environment's keyword arguments merged in."""
    hyper = load_hyperparameters(env_id, overrides)
    return replace(
        hyper,
        n_envs=num_envs,
        batch_size=min(hyper.batch_size, num_envs * hyper.n_steps),
        env_kwargs={**hyper.env_kwargs, **env_kwargs},
    )


def ppo_for_throughput(
    env_id: str, *, num_envs: int, env_kwargs: dict[str, Any], overrides: dict[str, Any] | None = None
) -> GlimpsePPO:
    """The model that `train` makes, with `num_envs` scenes, ready to learn, logging nowhere."""
    hyper = _throughput_hyperparameters(env_id, num_envs=num_envs, env_kwargs=env_kwargs, overrides=overrides)
    config = env_config(env_id, hyper.env_kwargs)
    check_fit(hyper, config)
    model = make_model(make_training_env(env_id, config, hyper, hyper.env_kwargs), config, hyper, seed=0)
    model.set_logger(Logger(None, []))
    return model


def stock_ppo_for_throughput(
    env_id: str, *, num_envs: int, env_kwargs: dict[str, Any], policy: Literal["MultiInputPolicy", "ViewpointPolicy"]
) -> PPO:
    """What ppo_for_throughput is measured against: stable-baselines3's PPO and DictRolloutBuffer, on the same
    environment with the same hyperparameters, with its own policy or with ours.
    """
    hyper = _throughput_hyperparameters(env_id, num_envs=num_envs, env_kwargs=env_kwargs)
    envs = make_sb3_env(env_id, num_envs, **hyper.env_kwargs)
    ours = {**policy_kwargs_for(envs.glimpse_envs.actions), **hyper.policy_kwargs}
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
