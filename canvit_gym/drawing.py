"""The parts of pictures, with NumPy and Pillow alone: colours, boxes, label maps, bars, legends.

Pictures are `PIL.Image`s; viewpoints are (row, col, scale) in [-1, 1]², as in canvit_pytorch, and pixel boxes (left,
top, right, bottom), as in Pillow.
"""

import colorsys
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
LegendEntry = tuple[str, Colour]

WHITE: Colour = (255, 255, 255)
INK: Colour = (32, 34, 38)
FAINT: Colour = (120, 124, 130)
RULE: Colour = (205, 208, 212)
EMPTY: Colour = (240, 241, 243)
RIGHT: Colour = (30, 140, 75)
BACKGROUND: Colour = (226, 228, 231)
UNLABELLED: Colour = (70, 72, 76)
SHARE_LOW: Colour = (30, 40, 90)
SHARE_HIGH: Colour = (250, 240, 170)

_HUES: tuple[Colour, ...] = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (240, 120, 200), (188, 189, 34), (23, 190, 207), (40, 50, 110),
)  # fmt: skip
_GOLDEN = (math.sqrt(5) - 1) / 2


@cache
def font(height_px: int) -> Any:
    """Pillow's own typeface."""
    return ImageFont.load_default(size=max(height_px, 8))


def blank(width_px: int, height_px: int, colour: Colour = WHITE) -> Image.Image:
    return Image.new("RGB", (width_px, height_px), colour)


def palette(classes: Sequence[str]) -> NDArray[np.uint8]:
    """[256 or more, 3]: a colour for every class, pale for "background", dark for labels of no class."""
    table = np.empty((max(256, len(classes)), 3), dtype=np.uint8)
    table[:] = UNLABELLED
    hue = 0
    for index, name in enumerate(classes):
        if name == "background":
            table[index] = BACKGROUND
            continue
        table[index] = _HUES[hue] if hue < len(_HUES) else _generated_hue(hue)
        hue += 1
    return table


def _generated_hue(index: int) -> Colour:
    """Hues in golden-ratio steps around the colour circle, in three shades."""
    saturation, value = ((0.75, 0.85), (0.45, 0.95), (0.85, 0.55))[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def viewpoint_box(viewpoint: NDArray[np.float32], size: int) -> tuple[int, int, int, int]:
    """The pixels, edges included, that a (row, col, scale) covers in a picture `size` px wide."""
    row, col, scale = (float(v) for v in viewpoint)
    left, top, right, bottom = (round((1 + v) / 2 * size) for v in (col - scale, row - scale, col + scale, row + scale))
    return max(left, 0), max(top, 0), min(right, size) - 1, min(bottom, size) - 1


def draw_box(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour, width: int) -> None:
    """A coloured rectangle between dark hairlines, inside `box`, which is widened to at least three pixels."""
    left, top, right, bottom = box
    right, bottom = max(right, left + 2), max(bottom, top + 2)
    draw.rectangle((left, top, right, bottom), outline=INK, width=width + 2)
    draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=width)


def label_picture(labels: NDArray[np.integer], classes: Sequence[str], size: int) -> Image.Image:
    """A label map [H, W] in the colours of `palette`."""
    return Image.fromarray(palette(classes)[labels]).resize((size, size), Image.Resampling.NEAREST)


def share_picture(shares: NDArray[np.floating], size: int) -> Image.Image:
    """A map [H, W] of numbers: dark blue at 0 and below, pale yellow at 1 and above."""
    share = np.clip(shares, 0, 1)[..., None]
    colours = (1 - share) * np.array(SHARE_LOW) + share * np.array(SHARE_HIGH)
    return Image.fromarray(np.round(colours).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)


def fitted(draw: ImageDraw.ImageDraw, text: str, typeface: Any, width: float) -> str:
    """`text`, cut if it is wider than `width` px."""
    if draw.textlength(text, typeface) <= width:
        return text
    while text and draw.textlength(text + "…", typeface) > width:
        text = text[:-1]
    return text + "…"


def class_legend(indices: Sequence[int], classes: Sequence[str]) -> list[LegendEntry]:
    """Names of classes and their colours in `palette`."""
    colours = palette(classes)
    return [(classes[index], tuple(colours[index].tolist())) for index in indices]


def legend_picture(entries: Sequence[LegendEntry], *, width: int, text_px: int, lines: int) -> Image.Image:
    """Colour chips and names, in at most `lines` lines; the rest is counted."""
    pitch = round(1.6 * text_px)
    picture = blank(width, lines * pitch)
    draw = ImageDraw.Draw(picture)
    x, line = 0.0, 0
    for place, (name, colour) in enumerate(entries):
        left_over = f"+{len(entries) - place}"
        need = 1.5 * text_px + draw.textlength(name, font(text_px))
        room = width - (1.5 * draw.textlength(left_over, font(text_px)) if line == lines - 1 else 0)
        if x + need > room:
            if line == lines - 1:
                draw.text((x, (line + 0.5) * pitch), left_over, fill=FAINT, font=font(text_px), anchor="lm")
                break
            x, line = 0.0, line + 1
        middle = (line + 0.5) * pitch
        chip = (x, middle - 0.45 * text_px, x + 0.9 * text_px, middle + 0.45 * text_px)
        draw.rectangle(chip, fill=colour, outline=FAINT)
        draw.text((x + 1.3 * text_px, middle), name, fill=INK, font=font(text_px), anchor="lm")
        x += need + 0.9 * text_px
    return picture


def bars_picture(
    probabilities: NDArray[np.floating],
    truth: int,
    classes: Sequence[str],
    *,
    width: int,
    height: int,
    most: int | None = None,
) -> Image.Image:
    """The likeliest classes as bars; the true one is green, and takes the last bar if it is not among them."""
    picture = blank(width, height)
    draw = ImageDraw.Draw(picture)
    text = max(min(height // 16, width // 14), 9)
    bars = min(len(classes), max(height // round(1.7 * text), 1), most or len(classes))
    shown = [int(c) for c in np.argsort(-probabilities, kind="stable")[:bars]]
    if truth not in shown:
        shown[-1] = truth
    names = min(max(draw.textlength(name, font(text)) for name in classes) + text // 2, 0.45 * width)
    numbers = draw.textlength("100%", font(text)) + text // 2
    pitch = height / bars
    for place, index in enumerate(shown):
        top, probability = place * pitch, float(probabilities[index])
        middle, is_true = top + pitch / 2, index == truth
        ink, fill = (RIGHT, RIGHT) if is_true else (INK, FAINT)
        name = fitted(draw, classes[index], font(text), names - text // 2)
        draw.text((0, middle), name, fill=ink, font=font(text), anchor="lm")
        room = (names, top + 0.22 * pitch, width - numbers, top + 0.78 * pitch)
        draw.rectangle(room, fill=EMPTY)
        if (right := names + (room[2] - names) * probability) >= names + 1:
            draw.rectangle((*room[:2], right, room[3]), fill=fill)
        if is_true:
            draw.rectangle(room, outline=RIGHT, width=max(text // 8, 1))
        draw.text((width, middle), f"{probability:.0%}", fill=ink, font=font(text), anchor="rm")
    return picture
