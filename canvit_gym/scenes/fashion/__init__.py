"""FashionScenes: procedural scenes of Fashion-MNIST items over textured clutter, with exact label maps.

Scene k of a split is a pure function of (flavour, split, k, GENERATOR_VERSION): it has the same pixels on every
machine, in any order and in parallel. To ensure this, every step is integer arithmetic on the raw output of a
counter-based generator (Philox 4x64, Salmon et al. 2011), without floating point, which may round differently.

Pixels are uint8 RGB, [SCENE_SIZE_PX, SCENE_SIZE_PX, 3]; labels are uint8 maps, 0 = background, 1..10 = the
ten Fashion-MNIST classes.

A flavour is a module with `draw(drawing) -> FashionScene` and an entry of FLAVOURS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from canvit_gym.scenes.fashion import classification, crowd, distractors, search, segmentation, twice
from canvit_gym.scenes.fashion.drawing import ITEM_SIZES_PX, Drawing, FashionScene
from canvit_gym.scenes.fashion.draws import GENERATOR_VERSION, Draws
from canvit_gym.scenes.fashion.sprites import BACKGROUND, CLASSES, SEGMENTATION_CLASSES, Split, load_sprites
from canvit_gym.scenes.fashion.texture import SCENE_SIZE_PX

Flavour = str
"""A key of FLAVOURS."""


@dataclass(frozen=True)
class FlavourSpec:
    """A kind of scene."""

    draw: Callable[[Drawing], FashionScene]
    labels: str = "maps"
    """The kind of label: "maps" of classes including background, or the "class" of the scene."""

    @property
    def classes(self) -> tuple[str, ...]:
        return SEGMENTATION_CLASSES if self.labels == "maps" else CLASSES


FLAVOURS: dict[Flavour, FlavourSpec] = {
    "segmentation": FlavourSpec(segmentation.draw),
    "classification": FlavourSpec(classification.draw, labels="class"),
    "crowd": FlavourSpec(crowd.draw),
    "distractors": FlavourSpec(distractors.draw),
    "twice": FlavourSpec(twice.draw, labels="class"),
    "search": FlavourSpec(search.draw),
}
"""Name -> flavour. Its position in this table is part of its scenes' key: add new ones at the end."""


def generate_scene(flavour: Flavour, split: Split, index: int) -> FashionScene:
    """Scene `index` (any integer in [0, 2^63)) of a split.

    >>> scene = generate_scene("classification", "test", 0)
    >>> scene.image.shape, len(scene.items), 0 <= scene.class_index < 10
    ((128, 128, 3), 1, True)
    """
    if not 0 <= index < 2**63:
        raise ValueError(f"scene index must be in [0, 2^63), got {index}")
    draws = Draws(list(FLAVOURS).index(flavour), get_args(Split).index(split), index)
    return FLAVOURS[flavour].draw(Drawing(draws, load_sprites(split)))


__all__ = [
    "BACKGROUND",
    "CLASSES",
    "FLAVOURS",
    "GENERATOR_VERSION",
    "ITEM_SIZES_PX",
    "SCENE_SIZE_PX",
    "SEGMENTATION_CLASSES",
    "FashionScene",
    "Flavour",
    "FlavourSpec",
    "Split",
    "generate_scene",
    "load_sprites",
]
