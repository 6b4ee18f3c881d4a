"""Flavour "plain": two or three items on nothing but the textured background."""

from canvit_gym.scenes.fashion.drawing import Drawing, FashionScene

ITEM_SIZES_PX = tuple(range(26, 37, 2))


def draw(drawing: Drawing) -> FashionScene:
    """2 or 3 items (where they find room), without fragments."""
    for _ in range(drawing.draws.between(2, 3)):
        drawing.add_item(*drawing.draw_sprite(), ITEM_SIZES_PX)
    return drawing.scene()
