"""Data sets on disk: where the files of each split are, and the errors of a layout that is not as expected.

Image folders are listed as torchvision lists them (classes sorted by name, files by path). Nothing is decoded
here.
"""

import bisect
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from canvit_pytorch.benchmarks import ade20k, imagenet
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL, ADE20kDataset, evaluation_transform
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from canvit_gym.scenes.datasets import ADE20K_LAYOUT, IMAGE_FOLDER_LAYOUT, IMAGENET_LAYOUT, SEGMENTATION_LAYOUT
from canvit_gym.scenes.files import SceneFiles

SPLIT_FOLDERS = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
"""Names a split's folder may have."""

LIKE_SPLITS = {name for names in SPLIT_FOLDERS.values() for name in names} | {"dev", "eval", "testing"}
"""Names, in lower case, that say that a folder is a split, also where it is none of those above."""

HASH_SHARES = {"training": 0.8, "validation": 0.1, "test": 0.1}
"""How a folder without splits is split; see hash_split."""


def hash_split(relative_path: str) -> str:
    """The split of a file by the SHA-256 of its relative path (with forward slashes): the same everywhere and always.

    Adding or removing files moves no other file to another split.

    >>> [hash_split(f"cat/{k}.jpg") for k in (0, 7, 9)]
    ['training', 'validation', 'test']
    """
    share = int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:8]) / 2**64
    below = np.cumsum(list(HASH_SHARES.values())).tolist()
    return list(HASH_SHARES)[min(bisect.bisect_right(below, share), len(below) - 1)]


def _require_folder(folder: Path, root: Path, layout: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a directory. Expected below {root}: {layout}")
    return folder


def ade20k_files(root: Path, split: str) -> SceneFiles:
    """A split of ADEChallengeData2016, listed by canvit-pytorch."""
    _require_folder(root / "images" / split, root, ADE20K_LAYOUT)
    try:
        dataset = ADE20kDataset(root=root, split=split, transform=evaluation_transform(1))  # pyright: ignore[reportArgumentType]
    except AssertionError as error:
        raise FileNotFoundError(f"{error}. Expected below {root}: {ADE20K_LAYOUT}") from error
    return SceneFiles(
        name=f"ADE20K, {split}",
        root=root,
        classes=ade20k.CLASS_NAMES,
        images=dataset.images,
        truth=dataset.label_maps,
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
    """A split of a folder with a folder per class; split by folders where there are any, else by hash_split."""
    name = f"image folder {root.resolve().name}, {split}"
    splits = _split_folders(root)
    if not splits:
        _require_no_split(root, [folder for folder in _folders(root) if not _holds_images_itself(folder)])
        whole = _classified(name, root, root, _class_folders(root))
        return _hashed(whole, split, IMAGE_FOLDER_LAYOUT)
    folder, train = _chosen_split(root, splits, split), splits.get("training", root)
    classes = _class_folders(train)
    if foreign := sorted(set(_class_folders(folder)) - set(classes)):
        raise ValueError(
            f"{folder} has the class {', '.join(foreign[:5])}, which {train} does not have: "
            "classes are those of the training folder"
        )
    return _classified(name, root, folder, classes, may_lack=folder != train)


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


def _class_folders(folder: Path) -> tuple[str, ...]:
    classes = tuple(entry.name for entry in _folders(folder))
    if len(classes) < 2:
        found = f"only the folder {classes[0]!r}" if classes else "no folder"
        raise ValueError(f"{folder} holds {found}, but at least two classes are needed: {IMAGE_FOLDER_LAYOUT}")
    return classes


def _classified(
    name: str,
    root: Path,
    folder: Path,
    folders: tuple[str, ...],
    *,
    names: tuple[str, ...] | None = None,
    may_lack: bool = False,
) -> SceneFiles:
    """Images below `folder` in a folder per class; a split other than training may lack some."""
    try:
        images = make_dataset(folder, {name: k for k, name in enumerate(folders)}, IMG_EXTENSIONS, allow_empty=may_lack)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}: {error}. Put images there, or remove the folder of a class that has none."
        ) from error
    if not images:
        raise FileNotFoundError(f"{folder} holds no image. Expected: {IMAGE_FOLDER_LAYOUT}")
    return SceneFiles(
        name=name,
        root=root,
        classes=names or folders,
        images=[Path(path) for path, _ in images],
        truth=np.array([label for _, label in images], dtype=np.int64),
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder; none where the folder is not divided: a class may be called "train"."""
    present = {
        split: [root / name for name in names if (root / name).is_dir()] for split, names in SPLIT_FOLDERS.items()
    }
    found = {split: folders[0] for split, folders in present.items() if folders}
    if "training" not in found or len(found) < 2:
        return {}
    for split, folders in present.items():
        if len(folders) > 1:
            told = " and ".join(f"{folder.name}/" for folder in folders)
            raise ValueError(f"{root} has both {told} for split={split!r}: keep one of them")
    return found


def _holds_images_itself(folder: Path) -> bool:
    """As a class does, whatever it is called; a split holds folders."""
    entries = list(folder.iterdir())
    return any(entry.suffix.lower() in IMG_EXTENSIONS for entry in entries) or not any(map(Path.is_dir, entries))


def _require_no_split(root: Path, folders: list[Path]) -> None:
    """Raise ValueError where one of the folders, none of which was taken for a split, is called like one."""
    if like := [folder.name for folder in folders if folder.name.casefold() in LIKE_SPLITS]:
        raise ValueError(
            f"{', '.join(name + '/' for name in like)} in {root} {'looks' if len(like) == 1 else 'look'} like a split, "
            "but splits are called train/, val/ and test/: at least train/ and one of the others, in lower case. "
            "Rename the folders so, or do without any: a hash of the file names then chooses the splits."
        )


def _chosen_split(root: Path, splits: dict[str, Path], split: str) -> Path:
    if split not in splits:
        told = ", ".join(f"{name!r} ({folder.name}/)" for name, folder in splits.items())
        raise ValueError(
            f"{root} has no {' or '.join(name + '/' for name in SPLIT_FOLDERS[split])} for split={split!r}; there are: "
            f"{told}. To hold out a part of the training scenes pass tuning_scenes=N and split='tuning'."
        )
    return splits[split]


def _hashed(whole: SceneFiles, split: str, layout: str) -> SceneFiles:
    chosen = [i for i, path in enumerate(whole.images) if hash_split(path.relative_to(whole.root).as_posix()) == split]
    if not chosen:
        raise ValueError(
            f"of the {len(whole)} images below {whole.root} none falls into the {split} split, which is chosen by a "
            f"hash of the file names. Add images, or choose the splits yourself: {layout}"
        )
    return whole.subset(np.array(chosen), whole.name)


def segmentation_folder_files(root: Path, split: str) -> SceneFiles:
    """A split of a folder with images/, masks/ and a list of classes."""
    _require_folder(root, root, SEGMENTATION_LAYOUT)
    classes = read_classes(root)
    images = _require_folder(root / "images", root, SEGMENTATION_LAYOUT)
    masks = _require_folder(root / "masks", root, SEGMENTATION_LAYOUT)
    splits = _split_folders(images)
    if not splits:
        _require_no_split(images, _folders(images))
    folder = _chosen_split(images, splits, split) if splits else images
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    if not found:
        raise FileNotFoundError(f"{folder} holds no image. Expected below {root}: {SEGMENTATION_LAYOUT}")
    pairs = [masks / path.relative_to(images).with_suffix(".png") for path in found]
    if missing := [mask for mask in pairs if not mask.is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(pairs)} images have no mask, the first one {missing[0]}. Add the masks or remove "
            f"the images. Expected below {root}: {SEGMENTATION_LAYOUT}"
        )
    if twice := _first_repeated(pairs):
        raise ValueError(f"two images in {folder} share the mask {twice}: give each image a name of its own")
    files = SceneFiles(
        name=f"segmentation folder {root.resolve().name}, {split}",
        root=root,
        classes=classes,
        images=found,
        truth=pairs,
    )
    return files if splits else _hashed(files, split, SEGMENTATION_LAYOUT)


def _first_repeated(paths: Iterable[Path]) -> Path | None:
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            return path
        seen.add(path)
    return None


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
            raise ValueError(f'{data} must hold a list of class names, such as ["sky", "road"]')
    else:
        raise FileNotFoundError(f"neither {text} nor {data} exists. Expected below {root}: {SEGMENTATION_LAYOUT}")
    if not 2 <= len(names) <= IGNORE_LABEL:
        raise ValueError(f"{path} names {len(names)} classes; there must be 2 to {IGNORE_LABEL}")
    if len(set(names)) < len(names):
        raise ValueError(f"{path} names a class twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    return tuple(names)
