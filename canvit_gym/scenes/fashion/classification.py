"""Flavour "classification": one whole item among many fragments of others."""

from canvit_gym.scenes.fashion.drawing import Drawing, FashionScene


def draw(drawing: Drawing) -> FashionScene:
    for _ in range(drawing.draws.between(8, 12)):
        drawing.add_fragment()
    for _ in range(drawing.draws.between(1, 1)):
        drawing.add_item(*drawing.draw_sprite())
    return drawing.scene()
