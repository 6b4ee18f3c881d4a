"""The scenes of data sets on disk: resized to the checkpoint's size, and decoded by worker processes or read from a
cache.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from canvit_gym.checks import expanded
from canvit_gym.scenes.cache import CachedFileScenes
from canvit_gym.scenes.datasets import DATASETS, SceneRequest
from canvit_gym.scenes.decoding import CroppedImage, Decoder, MaskValues, SqueezedADE20K, SqueezedMask, read_mask_values
from canvit_gym.scenes.files import FileScenes, SceneFiles, spread
from canvit_gym.scenes.folders import (
    ade20k_files,
    image_folder_files,
    imagenet_files,
    segmentation_folder_files,
    unlabelled_folder_files,
)
from canvit_gym.scenes.mask_check import check_masks
from canvit_gym.scenes.prepared import cache_dir
from canvit_gym.scenes.source import SceneSource
from canvit_gym.scenes.workers import automatic_workers

ListFiles = Callable[[Path, str], SceneFiles]
"""(root, split) -> the files of the split."""


def ade20k_scenes(request: SceneRequest) -> SceneSource:
    return file_scenes("ade20k", request, ade20k_files, lambda size_px, files: SqueezedADE20K(size_px))


def imagenet_scenes(request: SceneRequest) -> SceneSource:
    return file_scenes("imagenet1k", request, imagenet_files, lambda size_px, files: CroppedImage(size_px))


def image_folder_scenes(request: SceneRequest) -> SceneSource:
    return file_scenes("image-folder", request, image_folder_files, lambda size_px, files: CroppedImage(size_px))


def unlabelled_folder_scenes(request: SceneRequest) -> SceneSource:
    return file_scenes(
        "unlabelled-folder", request, unlabelled_folder_files, lambda size_px, files: CroppedImage(size_px)
    )


def segmentation_folder_scenes(request: SceneRequest) -> SceneSource:
    def coding(files: SceneFiles) -> MaskValues | None:
        return None if request.mask_values is None else read_mask_values(request.mask_values, files.classes)

    def checked(root: Path, split: str) -> SceneFiles:
        files = segmentation_folder_files(root, split)
        check_masks(files, coding(files), is_training=split == "training")
        return files

    return file_scenes(
        "segmentation-folder",
        request,
        checked,
        lambda size_px, files: SqueezedMask(size_px, len(files.classes), coding(files)),
    )


def file_scenes(
    dataset: str, request: SceneRequest, list_files: ListFiles, make_decoder: Callable[[int, SceneFiles], Decoder]
) -> SceneSource:
    """The scenes of a split: files listed below the data set's root, decoded to (size in px, files)'s decoder."""
    files = choose_files(list_files, request, root=dataset_root(dataset, request.root))
    decoder = make_decoder(request.scene_size_px(), files)
    common: dict[str, Any] = {
        "workers": automatic_workers() if request.workers is None else request.workers,
        "skip_unreadable": request.unreadable == "skip",
        "pin_memory": request.pin_memory,
    }
    if request.cache:
        directory = cache_dir() if request.cache is True else expanded("cache", request.cache)
        return CachedFileScenes(files, decoder, directory=directory, **common)
    return FileScenes(files, decoder, **common)


def dataset_root(dataset: str, root: str | None) -> Path:
    """The directory of a data set on disk: `root`, or the value of its environment variable.

    It is made absolute, so that the working directory may change afterwards. Links are not resolved.
    """
    where = DATASETS[dataset].on_disk
    assert where is not None, f"{dataset} is not on disk"
    given = root if root is not None else os.environ.get(where.variable or "")
    if not given:
        variable = f" or set ${where.variable}" if where.variable else ""
        raise ValueError(f"{dataset} needs its directory: pass root=directory{variable}. Expected: {where.layout}")
    source = "root" if root is not None else f"${where.variable}"
    path = expanded(source, given)
    if not path.is_dir():
        here = "" if path.is_absolute() else f" (relative to {Path.cwd()})"
        raise FileNotFoundError(f"{source}={given!r} is not a directory{here}. Expected: {where.layout}")
    return path.absolute()


def choose_files(list_files: ListFiles, request: SceneRequest, *, root: Path) -> SceneFiles:
    """The files of a split, with tuning scenes taken from the training ones, and at most `num_scenes`, evenly
    spread."""
    split, num_scenes, tuning_scenes = request.split, request.num_scenes, request.tuning_scenes
    files = list_files(root, "training" if split == "tuning" else split)
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
