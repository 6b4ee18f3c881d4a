"""Flavour "odd": one class is there twice, the others once; which?"""

from canvit_gym.scenes.fashion.drawing import Drawing, FashionScene

ITEM_SIZES_PX = tuple(range(26, 35, 2))


def draw(drawing: Drawing) -> FashionScene:
    """Two items of one class, then one of each of two others (where they find room), over 6 to 10 fragments.

    The scene's class is the one that is there twice.
    """
    draws = drawing.draws
    for _ in range(draws.between(6, 10)):
        drawing.add_fragment()
    twice, *once = draws.distinct(3, 10)
    for label in (twice, twice, *once):
        drawing.add_item(label, drawing.draw_sprite_of(label), ITEM_SIZES_PX)
    return drawing.scene(class_index=twice)
