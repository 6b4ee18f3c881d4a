"""Fashion-MNIST items as sprites: separate instances for every split, resized in integer arithmetic."""

from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["training", "validation", "test"]

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SEGMENTATION_CLASSES = ("background", *CLASSES)
BACKGROUND = SEGMENTATION_CLASSES.index("background")
SPRITE_PX = 28

Sprite = NDArray[np.uint8]  # [28, 28] grey, 0 outside the item


@cache
def load_sprites(split: Split) -> NDArray[np.uint8]:
    """[10, n, 28, 28] grey sprites of a split's instances; 0 is outside the item."""
    path = resources.files("canvit_gym") / "assets" / "fashion_sprites.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return arrays[split]


@cache
def _taps(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """Bilinear taps that resize a sprite's axis to `size`: (lower index, upper index, upper weight of 256)."""
    position = ((2 * np.arange(size) + 1) * SPRITE_PX * 128) // size - 128
    position = np.clip(position, 0, (SPRITE_PX - 1) * 256)
    lower = position >> 8
    return lower, np.minimum(lower + 1, SPRITE_PX - 1), (position & 255).astype(np.int32)


def resample(
    sprite: Sprite, *, size: int, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(grey, alpha) in [0, 255], [height, width] each: a window of the sprite resized to size x size (default: all)."""
    lower, upper, weight = _taps(size)
    rows = slice(top, top + (size if height is None else height))
    cols = slice(left, left + (size if width is None else width))
    planes = np.stack([sprite, (sprite > 0) * np.uint8(255)]).astype(np.int32)
    w = weight[rows, None]
    planes = planes[:, lower[rows]] * (256 - w) + planes[:, upper[rows]] * w
    w = weight[cols]
    planes = (planes[:, :, lower[cols]] * (256 - w) + planes[:, :, upper[cols]] * w) >> 16
    return planes[0], planes[1]
