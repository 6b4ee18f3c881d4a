"""Policies that ignore the scene: repeated central crops, and row-major tiles. Viewpoints are (row, col, scale)."""

import math

import numpy as np
from numpy.typing import NDArray

from canvit_gym.actions import grid_viewpoints
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.spec import Context
from canvit_gym.viewpoints import FULL_SCENE, MIN_SCALE

Scales = float | tuple[float, ...]


class CycledViewpoints:
    """The full scene, then the rows of a table [n, 3] in order, repeatedly; the same for every scene."""

    def __init__(self, table: NDArray[np.float32], *, info: PolicyInfo) -> None:
        self.table = table
        self.info = info

    def reset(self, seen: Seen, *, seed: int) -> None:
        """Nothing to reset."""

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        row = FULL_SCENE if t == 0 else self.table[(t - 1) % len(self.table)]
        return np.tile(row, (seen.num, 1))

    def flops_per_decision(self, seen: Seen) -> int:
        return 0


def center(scale: Scales = 0.55) -> CycledViewpoints:
    """Central crops that cycle through the scales."""
    scales = checked_scales(scale)
    return CycledViewpoints(
        np.array([(0, 0, s) for s in scales], dtype=np.float32),
        info=PolicyInfo(
            name="center",
            paper_name=f"center {_listed(scales)}",
            description=f"The full scene, then repeated central crops of scale {_listed(scales)}.",
            deterministic=True,
        ),
    )


def raster(scale: Scales = 0.25) -> CycledViewpoints:
    """Row-major tiles of each scale in turn: as few as cover the scene, evenly spread."""
    scales = checked_scales(scale)
    return CycledViewpoints(
        # Rounded first: 1 / 0.05 must give 20 tiles, not 21.
        np.concatenate([grid_viewpoints(scales=(s,), centers=math.ceil(round(1 / s, 6))) for s in scales]),
        info=PolicyInfo(
            name="raster",
            paper_name=f"raster {_listed(scales)}",
            description=f"The full scene, then tiles of scale {_listed(scales)} in reading order, repeatedly.",
            deterministic=True,
        ),
    )


def build_center(context: Context, *, scale: Scales = 0.55) -> CycledViewpoints:
    return center(scale)


def build_raster(context: Context, *, scale: Scales = 0.25) -> CycledViewpoints:
    return raster(scale)


def checked_scales(scale: Scales) -> tuple[float, ...]:
    """One or more scales in [MIN_SCALE, 1], as a tuple."""
    scales = scale if isinstance(scale, tuple) else (scale,)
    valid = all(isinstance(s, int | float) and not isinstance(s, bool) and MIN_SCALE <= s <= 1 for s in scales)
    if not scales or not valid or len(set(scales)) < len(scales):
        raise ValueError(f"scale must be a number in [{MIN_SCALE}, 1], or a tuple of distinct ones, got {scale!r}")
    return tuple(float(s) for s in scales)


def _listed(scales: tuple[float, ...]) -> str:
    return ", ".join(f"{s:g}" for s in scales)
