"""SB3 callbacks: statistics of the distribution over viewpoints, and a floor for its entropy."""

from typing import cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from canvit_gym.actions import Actions


def decision_index(episode_starts: NDArray[np.float32]) -> NDArray[np.int64]:
    """[n_steps, n_envs] -> the index of each step's decision in its episode. Row 0 must begin episodes."""
    if not (episode_starts[0] > 0).all():
        raise ValueError(
            "this rollout begins in the middle of episodes, so that decisions cannot be counted: choose n_steps as a "
            "multiple of an episode's decisions"
        )
    index = np.zeros(episode_starts.shape, dtype=np.int64)
    for step in range(1, len(index)):
        index[step] = np.where(episode_starts[step] > 0, 0, index[step - 1] + 1)
    return index


def normalized_entropy(log_probs: NDArray[np.float32], space: spaces.Space) -> float:
    """The normalized entropy of a distribution, from the log probabilities of its samples; 1 is uniform.

    Their negated mean is an unbiased estimate of the entropy H. Discrete(n): H / log n. Box of volume V and
    dimension d: exp((H - log V) / d), the effective share of the box's side.
    """
    entropy = -float(log_probs.mean(dtype=np.float64))
    if isinstance(space, spaces.Discrete):
        return entropy / max(np.log(float(space.n)), 1e-9)
    assert isinstance(space, spaces.Box), space
    sides = np.log(space.high - space.low)
    return float(np.exp(entropy / sides.size - sides.mean()))


class _RolloutCallback(BaseCallback):
    """Base of callbacks that use the finished rollout."""

    @property
    def buffer(self) -> RolloutBuffer:
        return cast(OnPolicyAlgorithm, self.model).rollout_buffer

    def _on_step(self) -> bool:
        return True


class ViewpointStatistics(_RolloutCallback):
    """Logs `viewpoint/entropy_t*` and `viewpoint/mean_scale_t*`, where t counts an episode's decisions. If the agent
    may stop, also logs `viewpoint/stop_share_t*`, the share of the episodes reaching t that stop there. Rollouts must
    begin with new episodes.
    """

    def __init__(self, actions: Actions) -> None:
        super().__init__()
        self.actions = actions
        self.entropy: float | None = None
        """Normalized entropy in the last rollout."""

    def _on_rollout_end(self) -> None:
        buffer = self.buffer
        index = decision_index(buffer.episode_starts)
        space = self.model.action_space
        chosen = buffer.actions.astype(np.int64)[..., 0] if isinstance(space, spaces.Discrete) else buffer.actions
        flat = chosen.reshape(-1, *(space.shape or ()))
        viewpoints, stop = self.actions.decode(np.clip(flat, -1, 1) if isinstance(space, spaces.Box) else flat)
        scale = np.where(stop, np.nan, viewpoints[:, 2]).reshape(index.shape)
        for t in range(int(index.max()) + 1):
            at = index == t
            self.logger.record(f"viewpoint/entropy_t{t + 1}", normalized_entropy(buffer.log_probs[at], space))
            if self.actions.allow_stop:
                self.logger.record(f"viewpoint/stop_share_t{t + 1}", float(np.isnan(scale[at]).mean()))
            if not np.isnan(scale[at]).all():
                self.logger.record(f"viewpoint/mean_scale_t{t + 1}", float(np.nanmean(scale[at])))
        self.entropy = normalized_entropy(buffer.log_probs, space)
        self.logger.record("rollout/entropy", self.entropy)


class EntropyFloor(_RolloutCallback):
    """Adjusts `model.ent_coef` after every rollout so that the normalized entropy stays above a floor.

    The floor falls linearly over training from `start` to `end`. Below the floor the coefficient grows by `rate`, above
    it the coefficient shrinks by `rate`, within [low, high]. A fixed bonus is too strong early or too weak late.
    """

    def __init__(self, *, start: float, end: float, low: float, high: float, rate: float) -> None:
        super().__init__()
        if not (0 <= end <= start <= 1 and 0 < low <= high and rate > 1):
            raise ValueError(
                "the entropy floor needs 0 <= end <= start <= 1, 0 < low <= high and rate > 1; got "
                f"start={start}, end={end}, low={low}, high={high}, rate={rate}"
            )
        self.start, self.end, self.low, self.high, self.rate = start, end, low, high, rate

    def _on_rollout_end(self) -> None:
        model = cast(OnPolicyAlgorithm, self.model)
        progress = min(model.num_timesteps / model._total_timesteps, 1.0)
        floor = self.start + progress * (self.end - self.start)
        below = normalized_entropy(self.buffer.log_probs, model.action_space) < floor
        adjusted = model.ent_coef * (self.rate if below else 1 / self.rate)
        model.ent_coef = float(np.clip(adjusted, self.low, self.high))
        self.logger.record("train/entropy_floor", floor)
        self.logger.record("train/ent_coef", model.ent_coef)
