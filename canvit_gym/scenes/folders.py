"""Data sets on disk: where the files of each split are, and errors for unexpected layouts.

Image folders are in torchvision's order (classes sorted by name, files by path), ADE20K in canvit-pytorch's. Other
files are left out, with a warning that says how many and why: see canvit_gym.scenes.listing. Nothing is decoded here.
"""

import bisect
import hashlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
from canvit_pytorch.benchmarks import ade20k, imagenet
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL

from canvit_gym.scenes.datasets import (
    ADE20K_LAYOUT,
    IMAGE_FOLDER_LAYOUT,
    IMAGENET_LAYOUT,
    SEGMENTATION_LAYOUT,
    UNLABELLED_LAYOUT,
)
from canvit_gym.scenes.decoding import FORMATS, IMAGE_SUFFIXES, listed
from canvit_gym.scenes.files import FilePaths, SceneFiles
from canvit_gym.scenes.listing import Listing, composed, encoded, is_hidden, list_images, printable

SPLIT_FOLDERS = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
"""Names that a split's folder may have."""

LIKE_SPLITS = {name for names in SPLIT_FOLDERS.values() for name in names} | {"dev", "eval", "testing"}
"""Lower-case names of folders that are probably splits, even if they are not one of those above."""

HASH_SHARES = {"training": 0.8, "validation": 0.1, "test": 0.1}
"""Shares of the splits of a folder without split folders; see hash_split."""


def hash_split(relative_path: str) -> str:
    """The split of a file, by the SHA-256 of its relative path (with forward slashes), the same on every machine.

    Adding or removing files moves no other file to another split.

    >>> [hash_split(f"cat/{k}.jpg") for k in (0, 7, 9)]
    ['training', 'validation', 'test']
    """
    share = int.from_bytes(hashlib.sha256(encoded(relative_path)).digest()[:8]) / 2**64
    below = np.cumsum(list(HASH_SHARES.values())).tolist()
    return list(HASH_SHARES)[min(bisect.bisect_right(below, share), len(below) - 1)]


def _require_folder(folder: Path, root: Path, layout: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a directory. Expected below {root}: {layout}")
    return folder


MASK_SUFFIXES = tuple(suffix for name in ("PNG", "TIFF", "BMP", "GIF", "PPM") for suffix in FORMATS[name])
"""Suffixes of formats that preserve every value."""


def ade20k_files(root: Path, split: str) -> SceneFiles:
    """A split of ADEChallengeData2016, in canvit-pytorch's order."""
    folder = _require_folder(root / "images" / split, root, ADE20K_LAYOUT)
    listing = list_images(folder, recursive=False)
    listing.warn()
    if not len(listing):
        raise FileNotFoundError(f"no images in {folder}. Expected below {root}: {ADE20K_LAYOUT}")
    images = listing.paths()
    annotations = os.path.join(root, "annotations", split, "")
    masks = [f"{annotations}{os.path.splitext(os.path.basename(image))[0]}.png" for image in images]
    if missing := [mask for mask in masks if not os.path.exists(mask)]:
        raise FileNotFoundError(
            f"{len(missing)} label maps missing, e.g. {missing[0]}. Expected below {root}: {ADE20K_LAYOUT}"
        )
    return SceneFiles(
        name=f"ADE20K, {split}",
        root=root,
        classes=ade20k.CLASS_NAMES,
        images=FilePaths(images),
        truth=FilePaths(masks),
    )


def imagenet_files(root: Path, split: str) -> SceneFiles:
    """A split of ImageNet-1k; classes in the order of the sorted WordNet ids, as in canvit-pytorch and torchvision."""
    folder = _require_folder(root / {"training": "train", "validation": "val"}[split], root, IMAGENET_LAYOUT)
    wnids = _class_folders(folder)
    if len(wnids) != imagenet.NUM_CLASSES:
        raise ValueError(
            f"{folder} has {len(wnids)} class folders, but ImageNet-1k has {imagenet.NUM_CLASSES}. Expected below "
            f"{root}: {IMAGENET_LAYOUT}. For other classes use CanViT/ImageFolder-v0."
        )
    return _classified(f"ImageNet-1k, {split}", root, folder, wnids, names=imagenet.CLASS_NAMES)


def image_folder_files(root: Path, split: str) -> SceneFiles:
    """A split of a folder with a subfolder per class, by split folders if there are any, else by hash_split."""
    name = f"image folder {root.resolve().name}, {split}"
    splits = _split_folders(root)
    if not splits:
        _require_no_split(root, [folder for folder in _folders(root) if not _holds_images_itself(folder)])
        whole = _classified(name, root, root, _class_folders(root))
        chosen = _hashed(whole, split, IMAGE_FOLDER_LAYOUT)
        _warn_of_untrained(whole)
        return chosen
    folder, train = _chosen_split(root, splits, split), splits.get("training", root)
    classes, folders = _class_folders(train), _class_folders(folder, at_least=1)
    if foreign := sorted(set(folders) - set(classes)):
        raise ValueError(
            f"{folder} has the class {', '.join(foreign[:5])}, which {train} does not have: "
            "the classes are those of the training folder"
        )
    return _classified(name, root, folder, classes | folders, may_lack=folder != train)


def _folders(folder: Path) -> list[Path]:
    """Folders that may contain data, sorted."""
    return sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name) and entry.is_dir())


def _class_folders(folder: Path, *, at_least: int = 2) -> dict[str, str]:
    """Class -> name of its folder, which may have another Unicode form; sorted by class."""
    classes: dict[str, str] = {}
    for entry in _folders(folder):
        if (name := composed(entry.name)) in classes:
            raise ValueError(
                f"{folder} has two folders named {name!r} in different Unicode forms: move the images into one of them"
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the name of the folder {printable(entry)} is not UTF-8 and cannot be a class name: rename it"
            ) from error
        classes[name] = entry.name
    if len(classes) < at_least:
        found = f"only the folder {next(iter(classes))!r}" if classes else "no folder"
        needed = "two classes are" if at_least == 2 else "one class is"
        raise ValueError(f"{folder} has {found}, but at least {needed} needed: {IMAGE_FOLDER_LAYOUT}")
    return dict(sorted(classes.items()))


def _classified(
    name: str,
    root: Path,
    folder: Path,
    classes: dict[str, str],
    *,
    names: tuple[str, ...] | None = None,
    may_lack: bool = False,
) -> SceneFiles:
    """Images below `folder` in a folder per class; splits other than training may lack some."""
    listing = list_images(folder, top_level=False)
    listing.warn()
    label_of = {os.path.join(folder, entry): label for label, entry in enumerate(classes.values())}
    held: list[list[str]] = [[] for _ in classes]
    depth = len(os.path.join(folder, ""))
    for path in listing.names:
        top = os.path.join(folder, path[depth:].partition(os.sep)[0])
        if top in label_of:
            held[label_of[top]].append(path)
    if not may_lack and (lacking := [c for c, found in zip(classes, held, strict=True) if not found]):
        raise FileNotFoundError(
            f"{folder}: no image was found for the classes {listed(lacking)}. Add images, or remove the folders "
            f"of classes without images.{_left_out(listing)}"
        )
    images: list[str] = []
    labels: list[int] = []
    for label, paths in enumerate(held):
        found = listing.paths(sorted(paths))
        images += found
        labels += [label] * len(found)
    if not images:
        raise FileNotFoundError(f"{folder} has no image. Expected: {IMAGE_FOLDER_LAYOUT}.{_left_out(listing)}")
    return SceneFiles(
        name=name,
        root=root,
        classes=names or tuple(classes),
        images=FilePaths(images),
        truth=np.array(labels, dtype=np.int64),
    )


def _left_out(listing: Listing) -> str:
    """The end of an error message: what was left out."""
    left_out = f" Left out: {listing.left_out}." if listing.left_out else ""
    return f"{left_out} Images are {' '.join(IMAGE_SUFFIXES)}."


def _warn_of_untrained(whole: SceneFiles) -> None:
    """Raise or warn if the hash puts no image of some class into the training split."""
    trained = {
        label for label, path in zip(whole.truth, whole.relative(whole.images), strict=True) if _is_training(path)
    }
    if lacking := [f"{name!r}" for label, name in enumerate(whole.classes) if label not in trained]:
        warnings.warn(
            f"{whole.root}: the training split, which is chosen by a hash of the file names, has no image of the class "
            f"{listed(lacking)}: a probe cannot learn it. Add images of it, or choose the splits yourself: "
            f"{IMAGE_FOLDER_LAYOUT}",
            RuntimeWarning,
            stacklevel=3,
        )


def _is_training(relative: str) -> bool:
    return hash_split(relative.replace(os.sep, "/")) == "training"


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder; empty if the folder is not divided, because a class may be named "train"."""
    present = {
        split: [root / name for name in names if (root / name).is_dir()] for split, names in SPLIT_FOLDERS.items()
    }
    found = {split: folders[0] for split, folders in present.items() if folders}
    if "training" not in found or len(found) < 2:
        return {}
    for split, folders in present.items():
        if len(folders) > 1:
            both = " and ".join(f"{folder.name}/" for folder in folders)
            raise ValueError(f"{root} has both {both} for split={split!r}: keep one of them")
    return found


def _holds_images_itself(folder: Path) -> bool:
    """Whether a folder directly contains images, like a class; a split contains folders."""
    entries = list(folder.iterdir())
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries) or not any(map(Path.is_dir, entries))


def _require_no_split(root: Path, folders: list[Path]) -> None:
    """Raise ValueError if a folder that was not recognized as a split has a name like one."""
    if like := [folder.name for folder in folders if folder.name.casefold() in LIKE_SPLITS]:
        raise ValueError(
            f"{', '.join(name + '/' for name in like)} in {root} {'looks' if len(like) == 1 else 'look'} like a split, "
            "but splits are named train/, val/ and test/, in lower case, with at least train/ and one of the others. "
            "Rename the folders, or use none of them: a hash of the file names then chooses the splits."
        )


def _require_splits_below_images(root: Path) -> None:
    """Raise FileNotFoundError if images/ is below the splits' folders instead of the other way round."""
    if (root / "images").is_dir():
        return
    for names in SPLIT_FOLDERS.values():
        for name in names:
            if (root / name / "images").is_dir():
                raise FileNotFoundError(
                    f"{root} has {name}/images/, but splits are folders of images/ and masks/: move {name}/images/ to "
                    f"images/{name}/, {name}/masks/ to masks/{name}/, and so on"
                )


def _chosen_split(root: Path, splits: dict[str, Path], split: str) -> Path:
    if split not in splits:
        described = ", ".join(f"{name!r} ({folder.name}/)" for name, folder in splits.items())
        raise ValueError(
            f"{root} has no {' or '.join(name + '/' for name in SPLIT_FOLDERS[split])} for split={split!r}; there are: "
            f"{described}. To hold out a part of the training scenes pass tuning_scenes=N and split='tuning'."
        )
    return splits[split]


def _hashed(whole: SceneFiles, split: str, layout: str) -> SceneFiles:
    names = (name.replace(os.sep, "/") for name in whole.relative(whole.images))
    chosen = [i for i, name in enumerate(names) if hash_split(name) == split]
    if not chosen:
        raise ValueError(
            f"none of the {len(whole)} images below {whole.root} is in the {split} split, which is chosen by a hash of "
            f"the file names. Add images, or choose the splits yourself: {layout}"
        )
    return whole.subset(np.array(chosen), whole.name)


def segmentation_folder_files(root: Path, split: str) -> SceneFiles:
    """A split of a folder with images/, masks/ and a list of classes."""
    _require_folder(root, root, SEGMENTATION_LAYOUT)
    classes = read_classes(root)
    _require_splits_below_images(root)
    images = _require_folder(root / "images", root, SEGMENTATION_LAYOUT)
    masks = _require_folder(root / "masks", root, SEGMENTATION_LAYOUT)
    splits = _split_folders(images)
    if not splits:
        _require_no_split(images, _folders(images))
    folder = _chosen_split(images, splits, split) if splits else images
    listing = list_images(folder)
    listing.warn()
    if not len(listing):
        raise FileNotFoundError(
            f"{folder} has no image. Expected below {root}: {SEGMENTATION_LAYOUT}.{_left_out(listing)}"
        )
    found = sorted(listing.paths(), key=lambda path: path.split(os.sep))
    pairs = _masks_of(found, images=images, masks=masks, below=folder.relative_to(images), root=root)
    files = SceneFiles(
        name=f"segmentation folder {root.resolve().name}, {split}",
        root=root,
        classes=classes,
        images=FilePaths(found),
        truth=FilePaths(pairs),
    )
    return files if splits else _hashed(files, split, SEGMENTATION_LAYOUT)


def unlabelled_folder_files(root: Path, split: str) -> SceneFiles:
    """A split of a folder of images in any folders below it; what they are called says nothing."""
    splits = _split_folders(root)
    folder = _chosen_split(root, splits, split) if splits else root
    if not splits:
        _require_no_split(root, _folders(root))
    listing = list_images(folder)
    listing.warn()
    if not len(listing):
        raise FileNotFoundError(f"{folder} holds no image. Expected: {UNLABELLED_LAYOUT}.{_left_out(listing)}")
    images = sorted(listing.paths(), key=lambda path: path.split(os.sep))
    files = SceneFiles(
        name=f"unlabelled folder {root.resolve().name}, {split}",
        root=root,
        classes=(),
        images=FilePaths(images),
        truth=np.zeros(len(images), dtype=np.int64),
    )
    return files if splits else _hashed(files, split, UNLABELLED_LAYOUT)


def _masks_of(found: list[str], *, images: Path, masks: Path, below: Path, root: Path) -> list[str]:
    """The mask of each image: the same path except for the suffix, in any Unicode form."""
    listing = list_images(masks / below, suffixes=MASK_SUFFIXES) if (masks / below).is_dir() else Listing(masks / below)
    by_name: dict[str, list[str]] = {}
    for path in listing.paths():
        by_name.setdefault(_name_of(path, masks), []).append(path)
    image_of: dict[str, str] = {}
    missing: list[Path] = []
    pairs: list[str] = []
    for image in found:
        name = _name_of(image, images)
        of_name = by_name.get(name, [])
        if not of_name:
            missing.append(masks / Path(image).relative_to(images).with_suffix(".png"))
            continue
        if name in image_of:
            raise ValueError(
                f"{image_of[name]} and {image} share the mask {of_name[0]}: give each image a different name"
            )
        if len(of_name) > 1:
            raise ValueError(f"{image} has the masks {listed(of_name)}: keep one of them")
        image_of[name] = image
        pairs.append(of_name[0])
    if missing:
        jpeg = [path for path in missing if any(path.with_suffix(suffix).exists() for suffix in FORMATS["JPEG"])]
        why = ""
        if jpeg:
            why = (
                f" {len(jpeg)} masks are JPEG, which blurs values where classes meet: export them as PNG from their "
                "source."
            )
        raise FileNotFoundError(
            f"{len(missing)} of {len(found)} images have no mask, the first one {printable(missing[0])}. Add the masks "
            f"or remove the images.{why} Expected below {root}: {SEGMENTATION_LAYOUT}"
        )
    if orphans := sum(len(paths) for name, paths in by_name.items() if name not in image_of):
        warnings.warn(
            f"left out: {orphans} masks below {printable(masks / below)} without an image",
            RuntimeWarning,
            stacklevel=3,
        )
    return pairs


def _name_of(path: str, folder: Path) -> str:
    """The path below the folder without suffix, in composed Unicode."""
    return composed(os.path.splitext(path[len(os.path.join(folder, "")) :])[0])


def _utf8(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


def read_classes(root: Path) -> tuple[str, ...]:
    """Class names in the order of the masks' values: lines of classes.txt, or the list in classes.json."""
    text, data = root / "classes.txt", root / "classes.json"
    if text.is_file():
        path, names = text, [line.strip() for line in _utf8(text).splitlines() if line.strip()]
    elif data.is_file():
        path = data
        try:
            names = json.loads(_utf8(data))
        except json.JSONDecodeError as error:
            raise ValueError(f"{data} is not JSON: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f'{data} must contain a list of class names, such as ["sky", "road"]')
    else:
        raise FileNotFoundError(f"neither {text} nor {data} exists. Expected below {root}: {SEGMENTATION_LAYOUT}")
    if not 2 <= len(names) <= IGNORE_LABEL:
        raise ValueError(f"{path} names {len(names)} classes; there must be 2 to {IGNORE_LABEL}")
    if len(set(names)) < len(names):
        raise ValueError(f"{path} names a class twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    return tuple(names)
