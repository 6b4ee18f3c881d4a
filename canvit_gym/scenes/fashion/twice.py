"""Flavour "twice": one class is there twice, two others once, among look-alikes; which is there twice?"""

from canvit_gym.scenes.fashion.distractors import look_alike
from canvit_gym.scenes.fashion.drawing import Drawing, FashionScene

ITEM_SIZES_PX = tuple(range(26, 33, 2))


def draw(drawing: Drawing) -> FashionScene:
    """Two items of one class, one of each of two others (where they find room), then 3 or 4 look-alikes of the same
    sizes, over 3 to 5 fragments.

    The scene's class is the one that is there twice.
    """
    draws = drawing.draws
    for _ in range(draws.between(3, 5)):
        drawing.add_fragment()
    twice, *once = draws.distinct(3, 10)
    for label in (twice, twice, *once):
        drawing.add_item(label, drawing.draw_sprite_of(label), ITEM_SIZES_PX)
    for _ in range(draws.between(3, 4)):
        drawing.add_background_object(look_alike(drawing), ITEM_SIZES_PX)
    return drawing.scene(class_index=twice)
