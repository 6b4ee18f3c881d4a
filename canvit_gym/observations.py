"""Observations: what an agent is shown of what the backbone knows.

An observation is a Dict of the keys asked for; nothing is computed for the others. It never carries the
label, the score, or pixels that no glimpse has seen.

| key | shape | range | meaning |
| --- | --- | --- | --- |
| `canvas` | [D, g, g] | [-sqrt(D), sqrt(D)] | canvas tokens, layer-normalized, mean-pooled to g x g |
| `uncertainty` | [1, m, m], or [1] where the task is not dense | [0, 1] | the probe's predictive entropy / log K |
| `acuity` | [1, m, m] | [0, 1] | the finest scale at which each cell has been seen, 0 where never |
| `cls` | [D_b] | [-sqrt(D_b), sqrt(D_b)] | recurrent CLS token, layer-normalized |
| `viewpoint` | [3] | [-1, 1] | the last (row, col, scale); zeros before the first |
| `gaze` | [3 * 8] | [-1, 1] | the last eight viewpoints, one after the other, newest first; zeros where none was |
| `time` | [1] | [0, 1] | share of the budget left |
| `glimpse` | [3, px, px] uint8 | [0, 255] | what the backbone saw last; zeros before the first |

D and D_b are the widths of the canvas and of the backbone, g is `canvas_size`, m is `map_size`.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch.policies.entropy import predictive_entropy
from canvit_pytorch.viewpoint import Viewpoint
from gymnasium import spaces
from torch import Tensor

from canvit_gym.viewpoints import cell_grid

ObservationKey = Literal["canvas", "uncertainty", "acuity", "cls", "viewpoint", "gaze", "time", "glimpse"]
FloatDtype = Literal["float32", "float16"]

GAZE_LENGTH = 8
"""Viewpoints that `gaze` holds: all but the first of a nine-glimpse episode, the recent ones of a longer one."""

DEFAULT_KEYS: tuple[ObservationKey, ...] = ("canvas", "uncertainty", "acuity", "viewpoint", "time")


def bound(dim: int) -> int:
    """Of a layer-normalized token's entries: they stay within sqrt(dim - 1), and the rest is room for rounding."""
    return math.ceil(math.sqrt(dim))


def check_keys(keys: tuple[object, ...]) -> None:
    """Raise ValueError unless there are keys, all known and none twice."""
    known = get_args(ObservationKey)
    if not keys or any(key not in known for key in keys) or len(set(keys)) != len(keys):
        raise ValueError(
            f"observations must be distinct keys out of {', '.join(known)}, at least one; got {list(keys)}"
        )


@dataclass(frozen=True)
class ObservationLayout:
    """Which keys, at which sizes: what a policy is built for, and what it records to refuse another."""

    keys: tuple[ObservationKey, ...]
    canvas_size: int
    map_size: int
    dtype: FloatDtype
    canvas_dim: int
    backbone_dim: int
    canvas_grid: int
    glimpse_size_px: int
    is_dense: bool

    def __post_init__(self) -> None:
        check_keys(self.keys)
        if self.dtype not in get_args(FloatDtype):
            raise ValueError(f"observation_dtype must be one of {', '.join(get_args(FloatDtype))}, got {self.dtype!r}")
        for name, size in (("canvas_size", self.canvas_size), ("map_size", self.map_size)):
            if not 1 <= size <= self.canvas_grid:
                raise ValueError(f"{name} must lie in [1, {self.canvas_grid}], the side of the canvas; got {size}")

    @property
    def space(self) -> spaces.Dict:
        dtype = np.dtype(self.dtype).type

        def box(low: float, high: float, *shape: int) -> spaces.Box:
            return spaces.Box(low, high, shape, dtype)

        canvas_bound, cls_bound = bound(self.canvas_dim), bound(self.backbone_dim)
        size = self.map_size
        pixels = (3, self.glimpse_size_px, self.glimpse_size_px)
        every: dict[str, spaces.Space] = {
            "canvas": box(-canvas_bound, canvas_bound, self.canvas_dim, self.canvas_size, self.canvas_size),
            "uncertainty": box(0, 1, 1, size, size) if self.is_dense else box(0, 1, 1),
            "acuity": box(0, 1, 1, size, size),
            "cls": box(-cls_bound, cls_bound, self.backbone_dim),
            "viewpoint": box(-1, 1, 3),
            "gaze": box(-1, 1, 3 * GAZE_LENGTH),
            "time": box(0, 1, 1),
            "glimpse": spaces.Box(0, 255, pixels, np.uint8),
        }
        return spaces.Dict({key: every[key] for key in self.keys})


def _pooled(maps: Tensor, *, size: int) -> Tensor:
    """[B, C, G, G] -> [B, C, size, size] by averaging; where size does not divide G, windows overlap by a cell."""
    grid = maps.shape[-1]
    return F.avg_pool2d(maps, grid // size) if grid % size == 0 else F.adaptive_avg_pool2d(maps, size)


def pooled_canvas(canvas_norm: Tensor, *, size: int) -> Tensor:
    """Layer-normalized patches [B, G*G, D] -> [B, D, size, size], mean-pooled."""
    grid = math.isqrt(canvas_norm.shape[1])
    if size == grid or grid % size:
        cells = canvas_norm.transpose(1, 2).unflatten(2, (grid, grid))
        return cells.contiguous() if size == grid else _pooled(cells, size=size)
    # Sums of whole slices, rows first: on a CPU a third of what avg_pool2d takes for channels-last maps.
    cell = grid // size
    rows = canvas_norm.unflatten(1, (size, cell, grid)).unbind(2)  # cell x [B, size, grid, D]
    columns = sum(rows[1:], rows[0]).unflatten(2, (size, cell)).unbind(3)  # cell x [B, size, size, D]
    return (sum(columns[1:], columns[0]) / cell**2).permute(0, 3, 1, 2)


def uncertainty(logits: Tensor, *, size: int) -> Tensor:
    """[B, K, G, G] -> [B, 1, size, size], or [B, K] -> [B, 1]: predictive entropy as a share of log K."""
    entropy = (predictive_entropy(logits) / math.log(logits.shape[1])).clamp(0, 1).unsqueeze(1)
    if entropy.ndim == 2 or size == entropy.shape[-1]:
        return entropy
    return _pooled(entropy, size=size)


def update_acuity(acuity: Tensor, viewpoint: Viewpoint) -> Tensor:
    """The acuity map [B, m, m] after a glimpse: a cell whose center the crop covers has been seen at its scale."""
    cells = cell_grid(size=acuity.shape[-1], device=acuity.device)[:, 0, 0]  # the same for rows and columns
    scale = viewpoint.scales.view(-1, 1, 1)
    within = (cells - viewpoint.centers.unsqueeze(2)).abs() <= scale  # [B, 2, m]
    before = torch.where(acuity == 0, torch.ones_like(acuity), acuity)
    return torch.where(within[:, 0].unsqueeze(2) & within[:, 1].unsqueeze(1), torch.minimum(before, scale), acuity)
