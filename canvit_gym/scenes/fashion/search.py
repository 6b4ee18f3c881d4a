"""Flavour "search": many classes, each at most once, so that one of them can be the goal."""

from canvit_gym.scenes.fashion.drawing import Drawing, FashionScene

ITEM_SIZES_PX = tuple(range(20, 29, 2))


def draw(drawing: Drawing) -> FashionScene:
    """7 to 9 items of different classes (fewer if there is no room), over 3 to 7 fragments."""
    draws = drawing.draws
    for _ in range(draws.between(3, 7)):
        drawing.add_fragment()
    for label in draws.distinct(draws.between(7, 9), 10):
        drawing.add_item(label, drawing.draw_sprite_of(label), ITEM_SIZES_PX)
    return drawing.scene()
