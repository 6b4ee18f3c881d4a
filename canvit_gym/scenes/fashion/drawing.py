"""A scene being drawn: the background, then everything on it, with random numbers of the scene's own stream."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canvit_gym.scenes.fashion.draws import Draws
from canvit_gym.scenes.fashion.sprites import Sprite, resample
from canvit_gym.scenes.fashion.texture import SCENE_SIZE_PX, background

ITEM_SIZES_PX = tuple(range(26, 45, 2))
"""Sizes of items, resized from 28 px sprites. In a 32 px glimpse of the full scene they are 6 to 11 px wide."""

_MARGIN_PX = 2  # between two things, and between a thing and the border
_PLACEMENT_TRIES = 24
_FRAGMENT_PX = (8, 15)  # sides, inclusive


@dataclass(frozen=True)
class FashionScene:
    image: NDArray[np.uint8]  # [128, 128, 3]
    labels: NDArray[np.uint8]  # [128, 128], 0 = background, 1..10 = classes
    items: tuple[tuple[int, int, int, int], ...]  # (class 1..10, top, left, side), px
    class_index: int
    """0..9: the label of the scene in classification."""


class Drawing:
    """Image, label map and items so far. Items never overlap items placed before."""

    def __init__(self, draws: Draws, sprites: NDArray[np.uint8]) -> None:
        self.draws = draws
        self._sprites = sprites  # [10, n, 28, 28]
        self._canvas = background(draws)
        self._labels = np.zeros((SCENE_SIZE_PX, SCENE_SIZE_PX), dtype=np.uint8)
        self._boxes: list[tuple[int, int, int]] = []  # (top, left, side)
        self.items: list[tuple[int, int, int, int]] = []

    def draw_sprite(self) -> tuple[int, Sprite]:
        """(class 0..9, sprite): classes equally likely, mirrored half of the time."""
        label = self.draws.below(len(self._sprites))
        return label, self.draw_sprite_of(label)

    def draw_sprite_of(self, label: int) -> Sprite:
        """An instance of class 0..9, mirrored half of the time."""
        sprite = self._sprites[label, self.draws.below(self._sprites.shape[1])]
        return sprite[:, ::-1] if self.draws.below(2) else sprite

    def add_fragment(self, sizes: tuple[int, ...] = ITEM_SIZES_PX) -> None:
        """A small crop of an item of one of the sizes, anywhere. It is background."""
        draws = self.draws
        _, sprite = self.draw_sprite()
        size = draws.choice(sizes)
        height, width = draws.between(*_FRAGMENT_PX), draws.between(*_FRAGMENT_PX)
        # Crop the middle of the item, so that the crop is rarely empty.
        row = size // 4 + draws.below(size // 2) - height // 2
        col = size // 4 + draws.below(size // 2) - width // 2
        grey, alpha = resample(
            sprite,
            size=size,
            height=height,
            width=width,
            top=min(max(row, 0), size - height),
            left=min(max(col, 0), size - width),
        )
        self._paint(grey, alpha, top=draws.below(SCENE_SIZE_PX - height), left=draws.below(SCENE_SIZE_PX - width))

    def add_item(self, label: int, sprite: Sprite, sizes: tuple[int, ...] = ITEM_SIZES_PX) -> bool:
        """Place a whole item of class 0..9 with one of the sizes. Returns False if there is no room."""
        size = self.draws.choice(sizes)
        if (place := self._place(size)) is None:
            return False
        top, left = place
        grey, alpha = resample(sprite, size=size)
        self._paint(grey, alpha, top=top, left=left)
        self._labels[top : top + size, left : left + size][alpha >= 128] = label + 1
        self.items.append((label + 1, top, left, size))
        return True

    def add_background_object(self, sprite: Sprite, sizes: tuple[int, ...] = ITEM_SIZES_PX) -> bool:
        """Place something that looks like an item but is background. Returns False if there is no room."""
        size = self.draws.choice(sizes)
        if (place := self._place(size)) is None:
            return False
        self._paint(*resample(sprite, size=size), top=place[0], left=place[1])
        return True

    def scene(self, class_index: int | None = None) -> FashionScene:
        """The finished scene. class_index: that of the first item by default."""
        return FashionScene(
            image=np.ascontiguousarray(self._canvas.astype(np.uint8).transpose(1, 2, 0)),
            labels=self._labels,
            items=tuple(self.items),
            class_index=self.items[0][0] - 1 if class_index is None else class_index,
        )

    def _place(self, side: int) -> tuple[int, int] | None:
        """Reserve a free (top, left) for a square by rejection sampling; None if the scene is too full."""
        for _ in range(_PLACEMENT_TRIES):
            top = self.draws.between(_MARGIN_PX, SCENE_SIZE_PX - _MARGIN_PX - side)
            left = self.draws.between(_MARGIN_PX, SCENE_SIZE_PX - _MARGIN_PX - side)
            if all(
                top + side + _MARGIN_PX <= t
                or t + s + _MARGIN_PX <= top
                or left + side + _MARGIN_PX <= x
                or x + s + _MARGIN_PX <= left
                for t, x, s in self._boxes
            ):
                self._boxes.append((top, left, side))
                return top, left
        return None

    def _paint(self, grey: NDArray[np.int32], alpha: NDArray[np.int32], *, top: int, left: int) -> None:
        """Blend a randomly tinted patch into the scene."""
        height, width = grey.shape
        tint = np.array([self.draws.between(90, 255) for _ in range(3)], dtype=np.int32)[:, None, None]
        lift = self.draws.between(8, 40)
        region = self._canvas[:, top : top + height, left : left + width]
        # grey is premultiplied by alpha (0 outside the item), so the tinted colour is only lifted by alpha.
        region[:] = (region * (255 - alpha) + np.minimum(grey * tint + lift * alpha, 255 * alpha)) // 255
