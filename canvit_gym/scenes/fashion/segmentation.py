"""Flavour "segmentation": several whole items among fragments of others."""

from canvit_gym.scenes.fashion.drawing import Drawing, FashionScene


def draw(drawing: Drawing) -> FashionScene:
    """3 to 5 items that do not overlap (2 if there is no room for a third, in one of a hundred scenes), 3 to 7
    fragments."""
    for _ in range(drawing.draws.between(3, 7)):
        drawing.add_fragment()
    for _ in range(drawing.draws.between(3, 5)):
        drawing.add_item(*drawing.draw_sprite())
    return drawing.scene()
