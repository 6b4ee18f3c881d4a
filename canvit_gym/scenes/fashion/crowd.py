"""Flavour "crowd": many small items in dense clutter."""

from canvit_gym.scenes.fashion.drawing import Drawing, FashionScene

ITEM_SIZES_PX = tuple(range(16, 23, 2))


def draw(drawing: Drawing) -> FashionScene:
    """8 to 10 items of half the usual size (fewer if there is no room), over 20 to 30 fragments."""
    for _ in range(drawing.draws.between(20, 30)):
        drawing.add_fragment()
    for _ in range(drawing.draws.between(8, 10)):
        drawing.add_item(*drawing.draw_sprite(), ITEM_SIZES_PX)
    return drawing.scene()
