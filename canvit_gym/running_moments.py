"""Running count, mean and variance of numbers in groups, for example rewards by the step of the episode."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RunningMoments:
    """Count, mean and variance of all values so far in groups 0, 1, ...; new groups are added when they occur.

    Attributes:
        count, mean, squares: [groups] each; `squares` is the sum of squared deviations from the mean.
    """

    def __init__(self, num_groups: int = 0) -> None:
        self.count = np.zeros(num_groups, dtype=np.int64)
        self.mean = np.zeros(num_groups)
        self.squares = np.zeros(num_groups)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in ("count", "mean", "squares")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self, name, value.numpy().astype(getattr(self, name).dtype))

    @property
    def var(self) -> NDArray[np.float64]:
        """[groups] population variances; 0 for a group without values."""
        return self.squares / np.maximum(self.count, 1)

    def update(self, groups: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Add values [N] of groups [N] (Chan et al. 1979)."""
        if (missing := int(groups.max(initial=-1)) + 1 - len(self.count)) > 0:
            self.count = np.concatenate([self.count, np.zeros(missing, dtype=np.int64)])
            self.mean = np.concatenate([self.mean, np.zeros(missing)])
            self.squares = np.concatenate([self.squares, np.zeros(missing)])
        for group in np.unique(groups):
            new = values[groups == group].astype(np.float64)
            old, total = self.count[group], self.count[group] + len(new)
            delta = new.mean() - self.mean[group]
            self.mean[group] += delta * len(new) / total
            self.squares[group] += ((new - new.mean()) ** 2).sum() + delta**2 * old * len(new) / total
            self.count[group] = total
