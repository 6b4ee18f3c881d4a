"""Flavour "distractors": few items among look-alikes, which are background and stay ambiguous in every glimpse."""

import numpy as np

from canvit_gym.scenes.fashion.drawing import Drawing, FashionScene
from canvit_gym.scenes.fashion.sprites import SPRITE_PX, Sprite

ITEM_SIZES_PX = tuple(range(22, 33, 2))
_HALF_PX = SPRITE_PX // 2


def draw(drawing: Drawing) -> FashionScene:
    """1 or 2 items, then 6 to 9 look-alikes of the same sizes, over 3 to 5 fragments."""
    for _ in range(drawing.draws.between(3, 5)):
        drawing.add_fragment()
    for _ in range(drawing.draws.between(1, 2)):
        drawing.add_item(*drawing.draw_sprite(), ITEM_SIZES_PX)
    for _ in range(drawing.draws.between(6, 9)):
        drawing.add_background_object(look_alike(drawing), ITEM_SIZES_PX)
    return drawing.scene()


def look_alike(drawing: Drawing) -> Sprite:
    """Quarters of four items of different classes, which suggest different classes however closely one looks."""
    quarters = [drawing.draw_sprite_of(label) for label in drawing.draws.distinct(4, 10)]
    sprite = np.empty((SPRITE_PX, SPRITE_PX), dtype=np.uint8)
    for quarter, one in enumerate(quarters):
        rows = slice(0, _HALF_PX) if quarter < 2 else slice(_HALF_PX, SPRITE_PX)
        cols = slice(0, _HALF_PX) if quarter % 2 == 0 else slice(_HALF_PX, SPRITE_PX)
        sprite[rows, cols] = one[rows, cols]
    return sprite
