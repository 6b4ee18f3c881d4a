"""Check some masks of a segmentation folder before anything is computed with them.

Masks often do not mean what one expects: 0 and 255 for two classes, classes numbered from 1, colours, a list without
the background. Training does not notice any of these mistakes. Errors describe what was found and what to type.
"""

import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL

from canvit_gym.scenes.decoding import (
    INTEGER_MODES,
    InvalidMaskError,
    MaskValues,
    UnreadableSceneError,
    distinct,
    listed,
    mask_pixels,
    open_mask,
    require_same_pixels,
)
from canvit_gym.scenes.files import SceneFiles

SAMPLE = 32
"""Number of masks that are always checked."""
PATIENCE_S = 1.5
"""After this time only the first few masks are still checked."""
_MOST_SHOWN = 12

_passed: set[tuple[object, ...]] = set()
"""What this process has checked, since many environments may use the same folder."""


@dataclass
class Found:
    """The contents of the masks that were checked."""

    num_masks: int = 0
    values: Counter[int] = field(default_factory=Counter)
    """Value or 0xRRGGBB -> number of masks that contain it."""
    colour_modes: Counter[str] = field(default_factory=Counter)
    """Modes of masks without integers."""
    all_grey: bool = True
    """Whether the colours have three equal channels."""


def check_masks(files: SceneFiles, values: MaskValues | None, *, is_training: bool) -> None:
    """Check masks spread over the split, and all of them while a class is still missing and time allows.

    Raises:
        InvalidMaskError: masks that do not agree with the list of classes or do not fit their images, or training masks
            without a pixel of some class.
    """
    order = np.random.default_rng(0).permutation(len(files))
    first = order[:SAMPLE]
    key = (files.name, files.root, files.classes, values, is_training, files.subset(first, "").stamps().tobytes())
    if key in _passed:
        return
    found = _look(files, order, values, is_training=is_training)
    _check(found, files, values, is_training=is_training)
    _passed.add(key)


def _look(files: SceneFiles, order: np.ndarray, values: MaskValues | None, *, is_training: bool) -> Found:
    found, start = Found(), time.monotonic()
    wanted = {v for v, label in values.classes if label != IGNORE_LABEL} if values else set(range(len(files.classes)))
    for number, index in enumerate(order.tolist()):
        if number >= SAMPLE and not (is_training and wanted - found.values.keys()):
            break
        if number >= 2 and time.monotonic() - start > PATIENCE_S:
            break
        path = files.mask(index)
        assert path is not None, files.name
        try:
            if is_training:  # elsewhere it is soon this scene's turn
                require_same_pixels(files.images[index], path)
            _add(found, path, as_colours=values is not None and values.are_colours)
        except UnreadableSceneError:
            continue  # unreadable files are handled when their scene is loaded
    return found


def _add(found: Found, path: Path, *, as_colours: bool) -> None:
    mask = open_mask(path)
    found.num_masks += 1
    if not as_colours and mask.mode not in INTEGER_MODES:
        found.colour_modes[mask.mode] += 1
        as_colours = True
        found.all_grey &= bool((np.ptp(np.asarray(mask.convert("RGB")), axis=2) == 0).all())
    found.values.update(distinct(mask_pixels(mask, path=path, as_colours=as_colours)).tolist())


def _check(found: Found, files: SceneFiles, values: MaskValues | None, *, is_training: bool) -> None:
    if not found.num_masks:
        return
    classes, looked = files.classes, f"{found.num_masks} of {len(files)} masks of {files.name} were checked"
    if found.colour_modes and values is None:
        raise InvalidMaskError(_about_colours(found, classes, looked))
    named = MaskValues((), are_colours=values is not None and values.are_colours)
    if values is None:
        known = {*range(len(classes)), IGNORE_LABEL}
        meaning = dict(enumerate(classes))
    else:
        known = {value for value, _ in values.classes}
        meaning = {value: classes[label] for value, label in values.classes if label != IGNORE_LABEL}
    in_words = f"{looked}. They contain {_counted(found, named)}"
    if unknown := sorted(found.values.keys() - known):
        if values is not None:
            raise InvalidMaskError(
                f"{in_words}; {listed(map(named.key, unknown))} is not in mask_values. Add it, with null (None) for "
                "pixels to ignore."
            )
        raise InvalidMaskError(
            f"{in_words}, but there are {len(classes)} classes: {_listed_classes(classes)}. "
            f"{_about_values(found, classes)}"
        )
    missing = [name for name in classes if not any(meaning.get(value) == name for value in found.values)]
    if not missing or not is_training:
        return
    cure = f"remove the class from the list, or add images of it. The classes are {_listed_classes(classes)}."
    if values is None and set(found.values) <= {0, IGNORE_LABEL}:
        cure = (
            f"{IGNORE_LABEL} marks ignored pixels. If it means {missing[0]!r}, pass "
            f"mask_values={_mapping({0: classes[0], IGNORE_LABEL: missing[0]}, named)}; otherwise {cure}"
        )
    if found.num_masks == len(files) or set(found.values) <= {0, IGNORE_LABEL}:
        raise InvalidMaskError(
            f"no pixel of the class {listed(map(repr, missing))} was found: {in_words}. {cure[0].upper()}{cure[1:]}"
        )
    warnings.warn(
        f"the class {listed(map(repr, missing))} was found in none of the checked masks ({looked}). If it is in no "
        f"mask at all, {cure}",
        RuntimeWarning,
        stacklevel=3,
    )


def _about_colours(found: Found, classes: tuple[str, ...], looked: str) -> str:
    colours, named = sorted(found.values), MaskValues((), are_colours=True)
    modes = listed(f"{count} of mode {mode}" for mode, count in found.colour_modes.items())
    text = f"masks contain colours, not class indices: {looked}, {modes}. "
    if found.all_grey:
        text += "Red, green and blue are equal everywhere, so they can be saved as grey PNGs (mode L). "
    if len(colours) > len(classes) + _MOST_SHOWN:
        return text + (
            f"They have {len(colours)} colours for {len(classes)} classes, like masks that were scaled with "
            "interpolation or saved as JPEG: export them again as PNG from their source."
        )
    return text + f"They contain {_counted(found, named)}. Define them: mask_values={_example(colours, classes, named)}"


def _about_values(found: Found, classes: tuple[str, ...]) -> str:
    """What values that are not classes may mean, and what to type."""
    held, named = sorted(found.values.keys() - {IGNORE_LABEL}), MaskValues(())
    count = len(classes)
    if len(held) > count + _MOST_SHOWN:
        return (
            f"masks with {len(held)} values for {count} classes were probably scaled with interpolation, or number "
            "objects instead of classes: export them again from their source."
        )
    if held[0] >= 1 and held[-1] == count:
        mapping = _mapping(dict(enumerate(classes, start=1)), named)
        return f"They seem to number the classes from 1. If so, pass mask_values={mapping}"
    if held[-1] == count:
        mapping = _mapping({0: None, **dict(enumerate(classes, start=1))}, named)
        return (
            "If 0 is the background and the classes are numbered from 1, add the background to the list as its first "
            f"name, or ignore it: mask_values={mapping}"
        )
    return f"Correct the masks, list every class, or define their values: mask_values={_example(held, classes, named)}"


def _example(held: list[int], classes: tuple[str, ...], named: MaskValues) -> str:
    """A mapping to type: complete if there are as many values as classes, else to be filled in."""
    if len(held) == len(classes):
        return _mapping(dict(zip(held, classes, strict=True)), named) + ", if that is their order"
    return _mapping(dict.fromkeys(held, "CLASS"), named) + ", with the name of a class for each, or null (None)"


def _mapping(meaning: dict[int, str | None], named: MaskValues) -> str:
    entries = [
        f'"{named.key(value)}": {"null" if name is None else chr(34) + name + chr(34)}'
        for value, name in meaning.items()
    ]
    return "{" + ", ".join(entries[:_MOST_SHOWN]) + (", ...}" if len(entries) > _MOST_SHOWN else "}")


def _counted(found: Found, named: MaskValues) -> str:
    described = [f"{named.key(value)} (in {count})" for value, count in sorted(found.values.items())]
    return listed(described, _MOST_SHOWN)


def _listed_classes(classes: tuple[str, ...]) -> str:
    return listed((f"{label} {name!r}" for label, name in enumerate(classes)), _MOST_SHOWN)
