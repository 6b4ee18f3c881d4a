"""Make PPO and its environments from a run's hyperparameters."""

from functools import partial
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.checks import schedule
from agents.normalize import normalized_rewards
from agents.ppo.algorithm import GlimpsePPO
from agents.ppo.hyperparameters import Hyperparameters
from agents.ppo.policy import ViewpointPolicy
from agents.ppo.rollout import TensorRolloutBuffer
from agents.ppo.warm_start import WarmStart, discounted_returns, warm_start
from agents.training_state import preserved_random_state
from canvit_gym.backbone.load import resolve_device
from canvit_gym.config import EnvConfig
from canvit_gym.sb3 import make_sb3_env


def make_training_env(env_id: str, config: EnvConfig, hyper: Hyperparameters, env_kwargs: dict[str, Any]) -> VecEnv:
    """GlimpseVecEnv with VecMonitor (for unnormalized returns) and PerStepNormalize."""
    envs = VecMonitor(make_sb3_env(env_id, hyper.n_envs, tensors=hyper.rollout_tensors, **env_kwargs))
    return normalized_rewards(envs, config, how=hyper.normalize_reward, clip=hyper.clip_reward)


def ppo_arguments(hyper: Hyperparameters) -> dict[str, Any]:
    """Stable-Baselines3's own arguments, except for networks, rollouts and devices."""
    return dict(
        learning_rate=schedule("learning_rate", hyper.learning_rate),
        n_steps=hyper.n_steps,
        batch_size=hyper.batch_size,
        n_epochs=hyper.n_epochs,
        gamma=hyper.gamma,
        gae_lambda=hyper.gae_lambda,
        clip_range=schedule("clip_range", hyper.clip_range),
        normalize_advantage=hyper.normalize_advantage,
        ent_coef=hyper.ent_coef,
        vf_coef=hyper.vf_coef,
        max_grad_norm=hyper.max_grad_norm,
        target_kl=hyper.target_kl,
    )


def make_model(env: VecEnv, config: EnvConfig, hyper: Hyperparameters, *, seed: int) -> GlimpsePPO:
    model = GlimpsePPO(
        ViewpointPolicy,
        env,
        **ppo_arguments(hyper),
        policy_kwargs=hyper.policy_kwargs,
        rollout_buffer_class=None if hyper.rollout_tensors is None else TensorRolloutBuffer,
        seed=seed,
        device=resolve_device(config.device),
    )
    on_gpu = model.device.type == "cuda"
    if on_gpu if hyper.compile_policy is None else hyper.compile_policy:
        assert isinstance(model.policy, ViewpointPolicy)
        model.policy.compile_networks()
    return model


def warmed_up(
    model: GlimpsePPO, config: EnvConfig, hyper: Hyperparameters, *, seed: int, progress: bool
) -> list[dict[str, float]]:
    """Run the hyperparameters' warm start, if any. Returns its statistics, round by round."""
    options = WarmStart(**hyper.warm_start)
    if not options.states:
        return []
    assert isinstance(model.policy, ViewpointPolicy)
    with preserved_random_state():
        return warm_start(
            model.policy.plain,
            config=config,
            options=options,
            returns_of=partial(
                discounted_returns,
                gamma=hyper.gamma,
                normalize=hyper.normalize_reward,
                center=not config.allow_stop,
                clip=hyper.clip_reward,
            ),
            num_envs=hyper.n_envs,
            seed=seed,
            progress=progress,
        )
