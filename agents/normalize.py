"""Rewards standardized per time step.

The gain of a glimpse mostly depends on the number of glimpses before it. Statistics per decision remove this effect, so
that all decisions of an episode are learned from on the same scale.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from agents.finite import require_finite
from canvit_gym.config import EnvConfig
from canvit_gym.running_moments import RunningMoments


def clipped(rewards: NDArray[np.float64], most: float | None) -> NDArray[np.float64]:
    """Rewards clipped to [-most, most], if `most` is given."""
    return rewards if most is None else np.clip(rewards, -most, most)


class PerStepNormalize(VecEnvWrapper):
    """(reward - mean) / standard deviation, with running statistics for each decision of an episode (0, 1, ...).

    With center=False only the scale changes. Agents that may stop need this, because for them the sign of a reward says
    whether a glimpse is worth its cost. Decisions from `num_decisions` on share the last statistics. With the same
    statistics for all decisions and without clipping, the rewards of an episode still add up to the difference in
    potential.

    clip: the largest magnitude of a reward, in standard deviations. None: no limit.
    """

    def __init__(
        self,
        venv: VecEnv,
        *,
        num_decisions: int,
        center: bool = True,
        clip: float | None = 5.0,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(venv)
        self.center, self.clip, self.epsilon = center, clip, epsilon
        self.moments = RunningMoments(num_decisions)
        self._decision = np.zeros(self.num_envs, dtype=np.int64)

    def reset(self) -> VecEnvObs:
        self._decision[:] = 0
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, dones, infos = self.venv.step_wait()
        require_finite({"the environment's reward": rewards})
        decision = np.minimum(self._decision, len(self.moments.count) - 1)
        self.moments.update(decision, rewards)
        normalized = self.normalize(rewards, decision)
        self._decision = np.where(dones, 0, self._decision + 1)
        return observation, normalized, dones, infos

    def normalize(self, rewards: NDArray[np.float32], decision: NDArray[np.int64]) -> NDArray[np.float32]:
        """Standardize [N] rewards of decisions [N] by the statistics so far."""
        deviation = np.sqrt(self.moments.var + self.epsilon)[decision]
        centered = rewards - self.moments.mean[decision] if self.center else rewards
        return clipped(centered / deviation, self.clip).astype(np.float32)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.moments.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.moments.load_state_dict(state)


def normalized_rewards(
    env: VecEnv, config: EnvConfig, *, how: Literal["per_step", "pooled"] | None, clip: float | None
) -> VecEnv:
    """`env` with rewards scaled by one statistic ("pooled"), standardized per decision ("per_step"), or unchanged.

    If the agent may stop, means are not subtracted.
    """
    if how is None:
        return env
    if how == "pooled":
        return PerStepNormalize(env, num_decisions=1, center=False, clip=clip)
    return PerStepNormalize(env, num_decisions=config.num_decisions, center=not config.allow_stop, clip=clip)
