"""Policies that take the window that adds most resolution where there is most of something."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.actions import grid_viewpoints
from canvit_gym.checks import integer
from canvit_gym.observations import update_acuity
from canvit_gym.policies.flops import probe_flops
from canvit_gym.policies.protocol import PolicyInfo, check_supported
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.sequences import Scales, checked_scales
from canvit_gym.policies.spec import Context
from canvit_gym.policies.table import best_allowed, fixed_table
from canvit_gym.policies.windows import Windows, sums_flops
from canvit_gym.viewpoints import FULL_SCENE, to_viewpoint


class GreedyWindows(ABC):
    """The full scene, then the window with the largest worth, given an amount of something in every cell.

    The worth of a window is the amount in it, where each cell is weighted by the octaves of resolution that the window
    adds there (see `canvit_gym.policies.windows`). When no window adds resolution any more, the window of the finest
    scale with the largest mean amount is taken.

    Subclasses define the amount. Windows are `centers` x `centers` of each scale, or a table [A, 3].
    """

    info: PolicyInfo

    def __init__(
        self, *, scale: Scales = (0.5, 0.25), centers: int = 16, table: NDArray[np.float32] | None = None
    ) -> None:
        integer(1)("centers", centers)
        scales = checked_scales(scale)
        self.candidates = grid_viewpoints(scales=scales, centers=centers) if table is None else table

    @abstractmethod
    def amounts(self, seen: Seen) -> Tensor:
        """[N, G, G], non-negative."""

    def reset(self, seen: Seen, *, seed: int) -> None:
        check_supported(self.info, seen.task.name, seen.canvas_grid)
        self._windows = Windows(self.candidates, size=seen.canvas_grid, device=seen.device)
        self._finest = torch.from_numpy(self.candidates[:, 2] == self.candidates[:, 2].min()).to(seen.device)
        self._seen_at = torch.zeros(seen.num, seen.canvas_grid, seen.canvas_grid, device=seen.device)

    @torch.no_grad()
    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if t == 0:
            return np.tile(FULL_SCENE, (seen.num, 1))
        self._seen_at = update_acuity(self._seen_at, to_viewpoint(seen.viewpoints[:, t - 1], seen.device))
        amounts = self.amounts(seen)
        added = self._windows.added(amounts, self._seen_at)
        mean = (self._windows.sums(amounts) / self._windows.area).masked_fill(~self._finest, -torch.inf)
        allowed = torch.from_numpy(seen.allowed(self.candidates)).to(added.device)
        adds = (added > 0) & allowed
        worth = torch.where(adds.any(dim=1, keepdim=True), added, mean)
        return self.candidates[best_allowed(worth, self.candidates, seen)]

    def flops_per_decision(self, seen: Seen) -> int:
        return probe_flops(seen) + 2 * sums_flops(num_windows=len(self.candidates), size=seen.canvas_grid)


def windows_of(context: Context, *, scale: Scales | None, centers: int | None) -> dict[str, Any]:
    """Arguments of GreedyWindows: by default the scales and centers of the environment's grid actions.

    With revisit=False they are the environment's table.

    Raises:
        ValueError: scale or centers are passed although revisit=False.
    """
    config = context.config
    table = fixed_table(config)
    if table is not None and (scale is not None or centers is not None):
        raise ValueError("with revisit=False the windows are the environment's viewpoints: leave scale and centers out")
    return {
        "scale": config.grid_scales if scale is None else scale,
        "centers": config.grid_centers if centers is None else centers,
        "table": table,
    }
