"""Flavour "odd": every class in sight is there twice, but for one; which?"""

from canvit_gym.scenes.fashion.drawing import Drawing, FashionScene

ITEM_SIZES_PX = tuple(range(26, 35, 2))
NUM_PAIRS = 1


def draw(drawing: Drawing) -> FashionScene:
    """Two items of every paired class and one of the odd class, over 3 to 7 fragments. The scene's class is the odd."""
    for _ in range(drawing.draws.between(3, 7)):
        drawing.add_fragment()
    odd, *paired = drawing.draws.distinct(1 + NUM_PAIRS, 10)
    for label in (odd, *paired, *paired):
        drawing.add_item(label, drawing.draw_sprite_of(label), ITEM_SIZES_PX)
    return drawing.scene(class_index=odd)
