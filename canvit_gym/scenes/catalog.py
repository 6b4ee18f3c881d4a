"""Every data set by name: its task, its splits, and how its scenes are made from a few JSON-able values.

Fashion... are generated (canvit_gym.scenes.prepared) and have a size of their own. The others lie on disk below
a root, are brought to the size that the checkpoint wants, and are streamed by worker processes or read from a
cache.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from canvit_gym.scenes.cache import CachedFileScenes
from canvit_gym.scenes.decoding import CroppedImage, Decoder, SqueezedADE20K, SqueezedMask
from canvit_gym.scenes.files import FileScenes, SceneFiles, spread
from canvit_gym.scenes.folders import (
    ADE20K_LAYOUT,
    IMAGE_FOLDER_LAYOUT,
    IMAGENET_LAYOUT,
    SEGMENTATION_LAYOUT,
    ade20k_files,
    image_folder_files,
    imagenet_files,
    segmentation_folder_files,
)
from canvit_gym.scenes.prepared import DEFAULT_NUM_SCENES, FashionScenes, cache_dir
from canvit_gym.scenes.source import SceneSource
from canvit_gym.scenes.workers import automatic_workers

Dataset = Literal[
    "fashion-segmentation",
    "fashion-classification",
    "ade20k",
    "imagenet1k",
    "image-folder",
    "segmentation-folder",
]
SplitName = Literal["training", "validation", "test", "tuning"]
Unreadable = Literal["raise", "skip"]


@dataclass(frozen=True)
class FileDataset:
    """A data set on disk."""

    splits: tuple[SplitName, ...]
    """"tuning" is made of training scenes, wherever those are."""
    files: Callable[[Path, str], SceneFiles]
    decoder: Callable[[int, SceneFiles], Decoder]
    layout: str
    variable: str | None = None
    """Environment variable that holds the root where none is given."""


FILE_DATASETS: dict[str, FileDataset] = {
    "ade20k": FileDataset(
        splits=("training", "validation", "tuning"),
        files=ade20k_files,
        decoder=lambda size_px, files: SqueezedADE20K(size_px),
        layout=ADE20K_LAYOUT,
        variable="ADE20K_ROOT",
    ),
    "imagenet1k": FileDataset(
        splits=("training", "validation", "tuning"),
        files=imagenet_files,
        decoder=lambda size_px, files: CroppedImage(size_px),
        layout=IMAGENET_LAYOUT,
        variable="IMAGENET_ROOT",
    ),
    "image-folder": FileDataset(
        splits=("training", "validation", "test", "tuning"),
        files=image_folder_files,
        decoder=lambda size_px, files: CroppedImage(size_px),
        layout=IMAGE_FOLDER_LAYOUT,
    ),
    "segmentation-folder": FileDataset(
        splits=("training", "validation", "test", "tuning"),
        files=segmentation_folder_files,
        decoder=lambda size_px, files: SqueezedMask(size_px, len(files.classes)),
        layout=SEGMENTATION_LAYOUT,
    ),
}
FASHION_SPLITS = tuple(DEFAULT_NUM_SCENES)


def check_scene_arguments(*, dataset: str, split: str, root: str | None, tuning_scenes: int, cache: bool | str) -> None:
    """Raise ValueError where the arguments contradict each other."""
    on_disk = FILE_DATASETS.get(dataset)
    splits = FASHION_SPLITS if on_disk is None else on_disk.splits
    if split not in splits:
        raise ValueError(f"unknown split {split!r} of {dataset}; choose one of {', '.join(splits)}")
    if on_disk is None:
        for name, given in (("root", root is not None), ("tuning_scenes", tuning_scenes > 0), ("cache", bool(cache))):
            if given:
                raise ValueError(
                    f"{name} is for data sets on disk ({', '.join(FILE_DATASETS)}), not for {dataset}: leave it out"
                )
    if split == "tuning" and tuning_scenes < 1:
        raise ValueError("split 'tuning' is held out of the training scenes: say how many with tuning_scenes=N")


def dataset_root(dataset: str, root: str | None) -> Path:
    """The directory of a data set on disk: `root`, or what its environment variable says."""
    spec = FILE_DATASETS[dataset]
    given = root if root is not None else os.environ.get(spec.variable or "")
    if not given:
        variable = f" or set ${spec.variable}" if spec.variable else ""
        raise ValueError(f"{dataset} needs to know where it is: pass root=directory{variable}. Expected: {spec.layout}")
    path = Path(given).expanduser()
    if not path.is_dir():
        source = "root" if root is not None else f"${spec.variable}"
        raise FileNotFoundError(f"{source}={given!r} is not a directory. Expected: {spec.layout}")
    return path


def scene_files(
    dataset: str, *, root: Path, split: SplitName, num_scenes: int | None, tuning_scenes: int
) -> SceneFiles:
    """The files of a split, the tuning scenes taken out of training ones, and at most `num_scenes`, evenly spread."""
    files = FILE_DATASETS[dataset].files(root, "training" if split == "tuning" else split)
    if tuning_scenes and split in ("training", "tuning"):
        if tuning_scenes >= len(files):
            raise ValueError(
                f"tuning_scenes={tuning_scenes} would leave no training scene: there are {len(files)} below {root}"
            )
        held_out = spread(tuning_scenes, len(files))
        chosen = held_out if split == "tuning" else np.setdiff1d(np.arange(len(files)), held_out)
        files = files.subset(chosen, f"{files.name} ({tuning_scenes} {'held out' if split == 'tuning' else 'less'})")
    if num_scenes is not None and num_scenes < len(files):
        files = files.subset(spread(num_scenes, len(files)), f"{files.name}, {num_scenes} of {len(files)}")
    return files


def make_scenes(
    *,
    dataset: Dataset,
    split: SplitName,
    num_scenes: int | None,
    scene_size_px: Callable[[], int],
    root: str | None,
    tuning_scenes: int,
    workers: int | None,
    unreadable: Unreadable,
    cache: bool | str,
    pin_memory: bool,
) -> SceneSource:
    """The scenes of a split; `scene_size_px` is asked for where the data set has no size of its own."""
    if dataset not in FILE_DATASETS:
        fashion = cast(Any, split)
        count = DEFAULT_NUM_SCENES[fashion] if num_scenes is None else num_scenes
        return FashionScenes(cast(Any, dataset.removeprefix("fashion-")), fashion, count)
    files = scene_files(
        dataset,
        root=dataset_root(dataset, root),
        split=split,
        num_scenes=num_scenes,
        tuning_scenes=tuning_scenes,
    )
    decoder = FILE_DATASETS[dataset].decoder(scene_size_px(), files)
    common: dict[str, Any] = {
        "workers": automatic_workers() if workers is None else workers,
        "skip_unreadable": unreadable == "skip",
        "pin_memory": pin_memory,
    }
    if cache:
        directory = cache_dir() if cache is True else Path(cache).expanduser()
        return CachedFileScenes(files, decoder, directory=directory, **common)
    return FileScenes(files, decoder, **common)
