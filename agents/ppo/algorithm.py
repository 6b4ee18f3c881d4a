"""PPO that stops at the first number that is not finite, before it reaches a parameter."""

from typing import ClassVar

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from agents.finite import GradientWatch, require_finite
from agents.ppo.policy import ViewpointPolicy
from agents.ppo.recorded_gradients import RecordedGradients
from agents.ppo.update import update
from canvit_gym.policies.networks import action_options
from canvit_gym.sb3 import GlimpseVecEnv


class WholeSchedule(OnPolicyAlgorithm):
    """An on-policy algorithm whose schedules stay above 0 in every update, including the last one."""

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """Set the progress remaining to what it was when the rollout began, which is above 0 in the last update too.

        SB3 already counts the rollout that is about to be learned from, so with a linear schedule the last update (the
        only one in a run of one rollout) has a learning rate of 0 or less.
        """
        super()._update_current_progress_remaining(num_timesteps - self.n_envs * self.n_steps, total_timesteps)


def require_finite_rollout(buffer: RolloutBuffer) -> None:
    names = ("rewards", "values", "log_probs", "advantages", "returns")
    require_finite({f"rollout buffer {name}": getattr(buffer, name) for name in names})


class GlimpsePPO(WholeSchedule, PPO):
    """Stable-Baselines3's PPO with checks, and with schedules that stay above 0 in every update.

    `GlimpsePPO("ViewpointPolicy", make_sb3_env(...))` takes the table of viewpoints from the environment.

    Raises:
        ValueError: a policy whose viewpoints are not the environment's.
        FloatingPointError: rewards, advantages, logits, values, losses or gradients contain a NaN or an infinity. The
            error names the tensor. The parameters are those from before the offending optimizer step (on a GPU, where
            an update is checked at its end, those from before the update).
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**PPO.policy_aliases, "ViewpointPolicy": ViewpointPolicy}

    def _setup_model(self) -> None:
        self._take_viewpoints(self.env)
        super()._setup_model()
        self.gradient_watch = GradientWatch(self.policy, self.policy.optimizer)
        self.recorded_gradients = RecordedGradients(self.gradient_watch) if self.device.type == "cuda" else None
        """On a GPU, minibatches as a CUDA graph."""

    def _take_viewpoints(self, env: VecEnv | None) -> None:
        """Take the environment's viewpoints if none were passed; otherwise they must equal the environment's."""
        glimpse_env = None if env is None else env.unwrapped
        if not (isinstance(glimpse_env, GlimpseVecEnv) and issubclass(self.policy_class, ViewpointPolicy)):
            return
        own = action_options(glimpse_env.glimpse_envs.actions)
        self.policy_kwargs = {**own, **self.policy_kwargs}
        for name in ("viewpoints", "allow_stop"):
            if not np.array_equal(self.policy_kwargs.get(name, False), own.get(name, False)):
                raise ValueError(
                    f"the policy's {name} are not those of the environment: leave viewpoints and allow_stop out of "
                    "policy_kwargs, or make the environment with the actions that the policy was trained on"
                )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        super().set_env(env, force_reset)
        self._take_viewpoints(self.env)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "gradient_watch", "recorded_gradients"]

    def train(self) -> None:
        assert isinstance(self.rollout_buffer, DictRolloutBuffer)
        require_finite_rollout(self.rollout_buffer)
        if self.target_kl is None:
            update(self, gradients=self.recorded_gradients)
        else:
            super().train()
