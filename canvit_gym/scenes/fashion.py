"""FashionScenes: procedural scenes of Fashion-MNIST items over textured clutter, with exact label maps.

Scene k of a split is a pure function of (flavour, split, k, GENERATOR_VERSION): the same pixels on every
machine, in any order, in parallel. For that reason every step is integer arithmetic on the raw output of a
counter-based generator (Philox 4x64, Salmon et al. 2011); there is no floating point to round differently.

Pixels are uint8 RGB, [SCENE_SIZE_PX, SCENE_SIZE_PX, 3]; labels are uint8 maps, 0 = background, 1..10 = the
ten Fashion-MNIST classes.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Flavour = Literal["segmentation", "classification"]
Split = Literal["training", "validation", "test"]

GENERATOR_VERSION = 1
"""Part of every scene's key; raise it whenever a change moves a single pixel."""

SCENE_SIZE_PX = 128
ITEM_SIZES_PX = tuple(range(26, 45, 2))
"""Sides an item's 28 px sprite is resized to. A 32 px glimpse of the full scene shows 6 to 11 px of it."""

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SEGMENTATION_CLASSES = ("background", *CLASSES)

_SPRITE_PX = 28
_MARGIN_PX = 2  # between two items, and between an item and the border
_PLACEMENT_TRIES = 24
_FRAGMENT_PX = (8, 15)  # sides, inclusive
_NUM_ITEMS = {"segmentation": (3, 5), "classification": (1, 1)}  # inclusive
_NUM_FRAGMENTS = {"segmentation": (3, 7), "classification": (8, 12)}


@dataclass(frozen=True)
class FashionScene:
    image: NDArray[np.uint8]  # [128, 128, 3]
    labels: NDArray[np.uint8]  # [128, 128], 0 = background, 1..10 = classes
    items: tuple[tuple[int, int, int, int], ...]  # (class 1..10, top, left, side), px

    @property
    def class_index(self) -> int:
        """The first item's class, 0..9: the label of a classification scene."""
        return self.items[0][0] - 1


@cache
def load_sprites(split: Split) -> NDArray[np.uint8]:
    """[10, n, 28, 28] grey sprites of a split's own instances; 0 is outside the item."""
    path = resources.files("canvit_gym") / "assets" / "fashion_sprites.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return arrays[split]


class _Draws:
    """Bounded integers and bytes from one Philox stream, in the order they are asked for."""

    def __init__(self, flavour: int, split: int, index: int) -> None:
        self._philox = np.random.Philox(key=[(GENERATOR_VERSION << 32) | (flavour << 8) | split, index])
        self._words: list[int] = self._philox.random_raw(192).tolist()
        self._next = 0

    def below(self, n: int) -> int:
        """An integer in [0, n); the bias of a 32-bit multiply-shift is below n / 2^32."""
        if self._next == len(self._words):
            self._words, self._next = self._philox.random_raw(192).tolist(), 0
        word = self._words[self._next]
        self._next += 1
        return ((word >> 32) * n) >> 32

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def noise(self, channels: int, size: int) -> NDArray[np.int16]:
        """[channels, size, size] integers in [-128, 127]."""
        count = channels * size * size
        raw = self._philox.random_raw(-(-count // 8)).astype("<u8", copy=False).view(np.int8)
        return raw[:count].reshape(channels, size, size).astype(np.int16)


def _doubled(field: NDArray[np.int16], axis: int) -> NDArray[np.int16]:
    """Linear upsampling by two along an axis, cell centers aligned, borders clamped."""
    x = np.moveaxis(field, axis, 0)
    out = np.empty((2 * x.shape[0], *x.shape[1:]), dtype=np.int16)
    x3 = x * np.int16(3)
    even, odd = out[0::2], out[1::2]
    np.add(x3[1:], x[:-1], out=even[1:])
    even[0] = x[0] * np.int16(4)
    np.add(x3[:-1], x[1:], out=odd[:-1])
    odd[-1] = x[-1] * np.int16(4)
    out >>= 2
    return np.moveaxis(out, 0, axis)


def _octaves(draws: _Draws, *, channels: int, finest: int, roughness: int) -> NDArray[np.int16]:
    """[channels, 128, 128] multi-scale noise, about [-256, 256]; roughness / 16 is an octave's gain over the last."""
    size, gain = 4, 32
    field = draws.noise(channels, size)
    while size < SCENE_SIZE_PX:
        field = _doubled(_doubled(field, 1), 2)
        size *= 2
        gain = gain * roughness >> 4
        if size <= finest:
            field += draws.noise(channels, size) * np.int16(gain) >> 5
    return field


def _background(draws: _Draws) -> NDArray[np.int16]:
    """[3, 128, 128] coloured noise in [0, 255]."""
    lum = _octaves(draws, channels=1, finest=64, roughness=draws.between(7, 13))
    chroma = _octaves(draws, channels=3, finest=16, roughness=draws.between(6, 12))
    lum *= np.int16(draws.between(6, 14))
    lum >>= 5
    chroma *= np.int16(draws.between(6, 14))
    chroma >>= 5
    chroma += lum
    for channel in chroma:
        channel += np.int16(draws.between(50, 140))
    return np.clip(chroma, 0, 255, out=chroma)


@cache
def _taps(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """Bilinear taps that resize a sprite's axis to `size`: (lower index, upper index, upper weight of 256)."""
    position = ((2 * np.arange(size) + 1) * _SPRITE_PX * 128) // size - 128
    position = np.clip(position, 0, (_SPRITE_PX - 1) * 256)
    lower = position >> 8
    return lower, np.minimum(lower + 1, _SPRITE_PX - 1), (position & 255).astype(np.int32)


def _resample(
    sprite: NDArray[np.uint8], *, size: int, top: int, left: int, height: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(grey, alpha) in [0, 255], [height, width] each: a window of the sprite resized to size x size."""
    lower, upper, weight = _taps(size)
    rows, cols = slice(top, top + height), slice(left, left + width)
    planes = np.stack([sprite, (sprite > 0) * np.uint8(255)]).astype(np.int32)
    w = weight[rows, None]
    planes = planes[:, lower[rows]] * (256 - w) + planes[:, upper[rows]] * w
    w = weight[cols]
    planes = (planes[:, :, lower[cols]] * (256 - w) + planes[:, :, upper[cols]] * w) >> 16
    return planes[0], planes[1]


def _paint(
    canvas: NDArray[np.int16], draws: _Draws, *, grey: NDArray[np.int32], alpha: NDArray[np.int32], top: int, left: int
) -> None:
    """Blend a randomly tinted patch into the [3, 128, 128] scene."""
    height, width = grey.shape
    tint = np.array([draws.between(90, 255) for _ in range(3)], dtype=np.int32)[:, None, None]
    lift = draws.between(8, 40)
    region = canvas[:, top : top + height, left : left + width]
    # grey is premultiplied by alpha (0 outside the item), so the tinted colour is only lifted by alpha.
    region[:] = (region * (255 - alpha) + np.minimum(grey * tint + lift * alpha, 255 * alpha)) // 255


def _place(draws: _Draws, side: int, boxes: list[tuple[int, int, int]]) -> tuple[int, int] | None:
    """A free (top, left) for a square, by rejection; None where the scene is too full."""
    for _ in range(_PLACEMENT_TRIES):
        top = draws.between(_MARGIN_PX, SCENE_SIZE_PX - _MARGIN_PX - side)
        left = draws.between(_MARGIN_PX, SCENE_SIZE_PX - _MARGIN_PX - side)
        if all(
            top + side + _MARGIN_PX <= t
            or t + s + _MARGIN_PX <= top
            or left + side + _MARGIN_PX <= x
            or x + s + _MARGIN_PX <= left
            for t, x, s in boxes
        ):
            return top, left
    return None


def _draw_sprite(draws: _Draws, sprites: NDArray[np.uint8]) -> tuple[int, NDArray[np.uint8]]:
    """(class 0..9, sprite): classes equally likely, mirrored half of the time."""
    label = draws.below(sprites.shape[0])
    sprite = sprites[label, draws.below(sprites.shape[1])]
    return label, sprite[:, ::-1] if draws.below(2) else sprite


def generate_scene(flavour: Flavour, split: Split, index: int) -> FashionScene:
    """Scene `index` (any integer in [0, 2^63)) of a split.

    Flavour "segmentation" holds 3 to 5 whole items that do not overlap (2 where a third finds no room, one
    scene in a hundred), "classification" exactly one among more fragments. Fragments are small crops of other
    items, painted below the items; they are background.

    >>> scene = generate_scene("classification", "test", 0)
    >>> scene.image.shape, len(scene.items), 0 <= scene.class_index < 10
    ((128, 128, 3), 1, True)
    """
    if not 0 <= index < 2**63:
        raise ValueError(f"scene index must be in [0, 2^63), got {index}")
    sprites = load_sprites(split)
    draws = _Draws(get_args(Flavour).index(flavour), get_args(Split).index(split), index)
    canvas = _background(draws)
    labels = np.zeros((SCENE_SIZE_PX, SCENE_SIZE_PX), dtype=np.uint8)

    for _ in range(draws.between(*_NUM_FRAGMENTS[flavour])):
        _, sprite = _draw_sprite(draws, sprites)
        size = ITEM_SIZES_PX[draws.below(len(ITEM_SIZES_PX))]
        height, width = draws.between(*_FRAGMENT_PX), draws.between(*_FRAGMENT_PX)
        # The window is cut from the middle of the item, so that it is rarely empty.
        row = size // 4 + draws.below(size // 2) - height // 2
        col = size // 4 + draws.below(size // 2) - width // 2
        grey, alpha = _resample(
            sprite,
            size=size,
            height=height,
            width=width,
            top=min(max(row, 0), size - height),
            left=min(max(col, 0), size - width),
        )
        _paint(
            canvas,
            draws,
            grey=grey,
            alpha=alpha,
            top=draws.below(SCENE_SIZE_PX - height),
            left=draws.below(SCENE_SIZE_PX - width),
        )

    items: list[tuple[int, int, int, int]] = []
    boxes: list[tuple[int, int, int]] = []
    for _ in range(draws.between(*_NUM_ITEMS[flavour])):
        label, sprite = _draw_sprite(draws, sprites)
        size = ITEM_SIZES_PX[draws.below(len(ITEM_SIZES_PX))]
        place = _place(draws, size, boxes)
        if place is None:
            continue
        top, left = place
        grey, alpha = _resample(sprite, size=size, top=0, left=0, height=size, width=size)
        _paint(canvas, draws, grey=grey, alpha=alpha, top=top, left=left)
        labels[top : top + size, left : left + size][alpha >= 128] = label + 1
        boxes.append((top, left, size))
        items.append((label + 1, top, left, size))

    image = np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))
    return FashionScene(image=image, labels=labels, items=tuple(items))
