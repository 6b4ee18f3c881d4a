"""Viewpoints as rows: [N, 3] float32 (row, col, scale) on the host, canvit-pytorch's Viewpoint on the device."""

from functools import cache
from typing import Literal

import numpy as np
import torch
from canvit_pytorch import Viewpoint
from canvit_pytorch.policies.random import random_viewpoints
from canvit_pytorch.viewpoint import grid_coords
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.dtypes import float32_by_default

FirstGlimpse = Literal["full", "random"] | tuple[float, float, float]

FULL_SCENE = np.array([0, 0, 1], dtype=np.float32)
"""The viewpoint (row, col, scale) that covers the scene."""


MIN_SCALE = 1e-3
"""The smallest scale of an action or a first glimpse: less than a pixel of any scene, and safe in float32."""


def cell_grid(*, size: int, device: torch.device) -> Tensor:
    """canvit_pytorch's grid_coords [size, size, 2], cached."""
    if torch.compiler.is_compiling():  # the compiler cannot see the cache
        return grid_coords(size=size, device=device)
    return _kept_grid(size, device)


@cache
@float32_by_default()
def _kept_grid(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it may be used outside of inference mode
        return grid_coords(size=size, device=device)


def to_rows(viewpoint: Viewpoint) -> NDArray[np.float32]:
    """[N, 3], on the host."""
    return torch.cat([viewpoint.centers, viewpoint.scales.unsqueeze(1)], dim=1).cpu().numpy()


def to_viewpoint(rows: NDArray[np.float32], device: torch.device) -> Viewpoint:
    """The inverse of to_rows."""
    table = torch.from_numpy(rows).to(device, non_blocking=True)
    return Viewpoint(centers=table[:, :2].contiguous(), scales=table[:, 2].contiguous())


def clip_to_scene(centers: NDArray[np.floating], scales: NDArray[np.floating]) -> NDArray[np.float32]:
    """Centers [N, 2] and scales [N, 1] -> rows [N, 3], centers moved to where the crop stays inside the scene."""
    return np.hstack([centers.clip(scales - 1, 1 - scales), scales]).astype(np.float32)


@float32_by_default()
def first_viewpoints(first: FirstGlimpse, count: int) -> NDArray[np.float32]:
    """[count, 3]: where a first glimpse is taken. "random" draws from PyTorch's global CPU generator."""
    if first == "random":
        return to_rows(random_viewpoints(batch_size=count, device=torch.device("cpu")))
    return np.tile(FULL_SCENE if first == "full" else np.array(first, dtype=np.float32), (count, 1))
