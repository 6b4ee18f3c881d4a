"""Draw a contact sheet of FashionScenes: scenes, their labels, and what a full-scene glimpse shows of them.

    python -m experiments.nano.contact_sheet

Each scene is shown with its label map and, under both, with what remains of it in a glimpse of the full scene
(32 px, resampled as in the environment). Scenes of classification have one item; its map is shown too.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from canvit_pytorch import Viewpoint, sample_at_viewpoint
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from canvit_gym.command_line import run_command
from canvit_gym.drawing import FAINT, INK, blank, class_legend, font, label_picture, legend_picture
from canvit_gym.scenes.fashion import (
    GENERATOR_VERSION,
    SCENE_SIZE_PX,
    SEGMENTATION_CLASSES,
    FashionScene,
    Flavour,
    Split,
    generate_scene,
)

GAP_PX = 10
CAPTION_PX = 18
COARSENESS = 5
"""The picture's levels are multiples of this; it divides 255, so white stays white."""


@dataclass(frozen=True)
class ContactSheetConfig:
    output: Path = Path("experiments/results/fashion_scenes.png")
    split: Split = "training"
    lines: int = 4
    columns: int = 6
    """Scenes of each flavour."""
    glimpse_px: int = 32


def full_glimpse(image: NDArray[np.uint8], *, size_px: int) -> NDArray[np.uint8]:
    """[H, W, 3] -> [size_px, size_px, 3]: the scene at viewpoint (0, 0, 1)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    full = Viewpoint(centers=torch.zeros(1, 2), scales=torch.ones(1))
    glimpse = sample_at_viewpoint(spatial=pixels, viewpoint=full, glimpse_size_px=size_px)[0]
    return glimpse.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def scene_cell(scene: FashionScene, *, glimpse_px: int) -> Image.Image:
    """Scene, label map and glimpse side by side at the size of the scene; the glimpse has large pixels."""
    size = SCENE_SIZE_PX
    cell = blank(3 * size, size + CAPTION_PX)
    glimpse = Image.fromarray(full_glimpse(scene.image, size_px=glimpse_px))
    pictures = (
        Image.fromarray(scene.image),
        label_picture(scene.labels, SEGMENTATION_CLASSES, size),
        glimpse.resize((size, size), Image.Resampling.NEAREST),
    )
    for place, picture in enumerate(pictures):
        cell.paste(picture, (place * size, 0))
    names = ", ".join(SEGMENTATION_CLASSES[item[0]] for item in scene.items)
    draw = ImageDraw.Draw(cell)
    draw.text((0, size + CAPTION_PX / 2), names, fill=FAINT, font=font(12), anchor="lm")
    return cell


def flavour_sheet(flavour: Flavour, config: ContactSheetConfig) -> Image.Image:
    """The first lines * columns scenes of a flavour, row by row, under a title."""
    width, height = 3 * SCENE_SIZE_PX, SCENE_SIZE_PX + CAPTION_PX
    title = 34
    sheet = blank(
        config.columns * (width + GAP_PX) + GAP_PX,
        title + config.lines * (height + GAP_PX // 2),
    )
    text = (
        f"{flavour}, {config.split} scenes 0 to {config.lines * config.columns - 1}: "
        f"scene ({SCENE_SIZE_PX} px), labels, and the full scene in a glimpse of {config.glimpse_px} px"
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX, title / 2), text, fill=INK, font=font(18), anchor="lm")
    for index in range(config.lines * config.columns):
        line, column = divmod(index, config.columns)
        cell = scene_cell(generate_scene(flavour, config.split, index), glimpse_px=config.glimpse_px)
        sheet.paste(cell, (GAP_PX + column * (width + GAP_PX), title + line * (height + GAP_PX // 2)))
    return sheet


def main(config: ContactSheetConfig) -> None:
    flavours: tuple[Flavour, ...] = ("segmentation", "classification")
    sheets = [flavour_sheet(flavour, config) for flavour in flavours]
    width = sheets[0].width
    classes = range(len(SEGMENTATION_CLASSES))
    legend = legend_picture(class_legend(classes, SEGMENTATION_CLASSES), width=width - 2 * GAP_PX, text_px=14, lines=1)
    top = 40
    page = blank(width, top + sum(sheet.height for sheet in sheets) + legend.height + 2 * GAP_PX)
    title = f"FashionScenes, generator version {GENERATOR_VERSION}"
    ImageDraw.Draw(page).text((GAP_PX, top / 2), title, fill=INK, font=font(24), anchor="lm")
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height
    page.paste(legend, (GAP_PX, top + GAP_PX))
    config.output.parent.mkdir(parents=True, exist_ok=True)
    # Noise hardly compresses: 52 levels a channel look the same and take two thirds of the room.
    coarse = page.point([round(value / COARSENESS) * COARSENESS for value in range(256)] * 3)
    coarse.save(config.output, optimize=True)
    print(f"{config.output}: {page.width} x {page.height} px, {config.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_command(main, ContactSheetConfig, description=__doc__)
