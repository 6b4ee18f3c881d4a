"""The callback through which Stable-Baselines3 calls the monitor of a run."""

from collections.abc import Callable

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.learner import Monitoring


class MonitorCallback(BaseCallback):
    """Calls the monitor after every step, and before every rollout."""

    def __init__(self, monitor: Monitoring, *, total: int, before_rollout: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._monitor, self._total, self._before_rollout = monitor, total, before_rollout
        self._collecting = False
        self.reached = False
        """Whether the last update was made. False if a callback ended training within the last rollout."""

    def _on_step(self) -> bool:
        self._monitor.stepped(self.training_env.num_envs)
        return True

    def _on_rollout_start(self) -> None:
        self._monitor.between_updates()
        if self._before_rollout is not None:
            self._before_rollout()
        self._collecting = True

    def _on_rollout_end(self) -> None:
        self._collecting = False

    def _on_training_end(self) -> None:
        self.reached = not self._collecting and self.model.num_timesteps >= self._total


def mean_return(model: BaseAlgorithm) -> float | None:
    """Mean return of the latest episodes; None before the first one ended."""
    returns = [info["r"] for info in model.ep_info_buffer or ()]
    return float(np.mean(returns)) if returns else None
