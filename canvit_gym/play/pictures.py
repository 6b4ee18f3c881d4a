"""Data for the page in the browser: pictures as data URIs, maps as bytes, numbers without NaN.

Maps (readings, uncertainties) are sent as plain bytes in base64, one per cell, row by row, and the page colours them.
It can therefore name the class under the pointer, and one palette serves all maps.
"""

import base64
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from canvit_gym.drawing import viewpoint_box
from canvit_gym.rendering import Frame

UNSEEN = (201, 205, 211)
"""Where no glimpse was taken, with stripes of `UNSEEN_STRIPE`, so that it does not look like a scene."""
UNSEEN_STRIPE = (188, 193, 200)
STRIPE_PX = 8

CLASS_COLOURS = (
    "#3676fd", "#ffd629", "#880b9e", "#33ef9a", "#a54407", "#f289f5", "#88c04a", "#512f14", "#ed419f", "#997f59",
)  # fmt: skip
"""Chosen by a search so that any two, and the two below, differ with normal sight, protanopia, deuteranopia and
tritanopia: by at least 20 in CIELAB. tests/test_play.py computes it."""
BACKGROUND, UNLABELLED = "#e2e4e7", "#46484c"


def class_colours(classes: Sequence[str]) -> list[str]:
    """A colour for every class: pale for "background", then CLASS_COLOURS in turn.

    Beyond ten classes colours repeat: the page names the class under the pointer and in the legend.
    """
    colours, used = [], 0
    for name in classes:
        if name == "background":
            colours.append(BACKGROUND)
            continue
        colours.append(CLASS_COLOURS[used % len(CLASS_COLOURS)])
        used += 1
    return colours


def picture_uri(pixels: Frame, *, format: str = "PNG", **options: object) -> str:
    """uint8 RGB [H, W, 3] as a data URI."""
    buffer = io.BytesIO()
    if format == "PNG":
        options.setdefault("compress_level", 1)  # it travels no further than this machine
    Image.fromarray(pixels).save(buffer, format=format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def map_bytes(values: NDArray[np.uint8]) -> dict[str, object]:
    """uint8 [H, W] -> JSON values."""
    height, width = values.shape
    return {"width": width, "height": height, "bytes": base64.b64encode(values.tobytes()).decode()}


def label_bytes(labels: NDArray[np.integer], *, size: int) -> NDArray[np.uint8]:
    """Labels [H, W] -> uint8 [size, size] by nearest neighbours, 255 where there is no class."""
    height, width = labels.shape
    rows, cols = ((2 * np.arange(size) + 1) * side // (2 * size) for side in (height, width))
    return np.clip(labels[np.ix_(rows, cols)], 0, 255).astype(np.uint8)


def share_bytes(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in [0, 1] -> uint8."""
    return (np.clip(shares, 0, 1) * 255).round().astype(np.uint8)


def numbers(values: Iterable[float]) -> list[float | None]:
    """JSON has no NaN: values that were not measured become null."""
    return [round(float(v), 6) if math.isfinite(v) else None for v in values]


def unseen(size: int) -> Frame:
    """[size, size, 3]: diagonal stripes."""
    row, col = np.indices((size, size))
    stripes = (row + col) // STRIPE_PX % 2 == 0
    return np.where(stripes[..., None], UNSEEN, UNSEEN_STRIPE).astype(np.uint8)


def seen_picture(viewpoints: Sequence[NDArray[np.float32]], glimpses: Sequence[Frame], *, size: int) -> Frame:
    """The glimpses, each where it was taken: [size, size, 3]. Finer glimpses lie above coarser ones.

    viewpoints: (row, col, scale) each. glimpses: uint8 [px, px, 3] each, as the backbone saw them.
    """
    picture = Image.fromarray(unseen(size))
    order = sorted(range(len(glimpses)), key=lambda i: -float(viewpoints[i][2]))  # stable: later above earlier
    for index in order:
        left, top, right, bottom = viewpoint_box(viewpoints[index], size)
        shape = (max(right - left + 1, 1), max(bottom - top + 1, 1))
        picture.paste(Image.fromarray(glimpses[index]).resize(shape, Image.Resampling.BICUBIC), (left, top))
    return np.asarray(picture)
