"""FashionScenes, generated once into a memory-mapped file and then read at memory speed.

The files are in `cache_dir()`. Their names contain the generator's version, so that a changed generator never uses an
old file. A file is written under a temporary name and renamed when it is complete, so that interrupted or concurrent
preparations never leave a partial file. After the records there is a checksum for each, which is verified when the
record is first used (canvit_gym.scenes.stored).
"""

import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from canvit_gym.atomic import replacing
from canvit_gym.checks import integer
from canvit_gym.scenes.datasets import SceneRequest
from canvit_gym.scenes.fashion import (
    FLAVOURS,
    GENERATOR_VERSION,
    SCENE_SIZE_PX,
    Flavour,
    Split,
    generate_scene,
)
from canvit_gym.scenes.source import Item, SceneBatch
from canvit_gym.scenes.stored import CHECKSUM, Records, checksum

DEFAULT_NUM_SCENES: dict[Split, int] = {"training": 8192, "validation": 512, "test": 1000}

_RECORD = np.dtype(
    [
        ("image", np.uint8, (3, SCENE_SIZE_PX, SCENE_SIZE_PX)),
        ("labels", np.uint8, (SCENE_SIZE_PX, SCENE_SIZE_PX)),
        ("class", np.uint8),
    ]
)


STALE_AFTER_S = 600
"""A partial file that has not been written to for this long was left by a killed preparation."""


def cache_dir() -> Path:
    """`$CANVIT_GYM_CACHE`, else `$XDG_CACHE_HOME/canvit_gym`, else `~/.cache/canvit_gym`.

    Raises:
        FileNotFoundError: the user has no home directory, as in some containers, and no variable is set.
    """
    try:
        if own := os.environ.get("CANVIT_GYM_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "canvit_gym"
    except RuntimeError as error:
        raise FileNotFoundError(
            "there is no home directory for prepared scenes: set $CANVIT_GYM_CACHE to a writable directory"
        ) from error


def _cannot_prepare(path: Path, error: OSError) -> OSError:
    return OSError(
        f"cannot prepare FashionScenes in {path.parent}: {error.strerror or error}. "
        "Set $CANVIT_GYM_CACHE to a writable directory with enough room (64 KiB a scene)."
    )


def _num_bytes(num_scenes: int) -> int:
    """Of a whole file."""
    return num_scenes * (_RECORD.itemsize + CHECKSUM.itemsize)


def _remove_leftovers(directory: Path) -> None:
    """Remove partial files of killed preparations, and files of layouts without checksums."""
    for path in [*directory.glob("fashion-*.partial"), *directory.glob("fashion-*.bin")]:
        try:
            if path.suffix == ".bin" or time.time() - path.stat().st_mtime > STALE_AFTER_S:
                path.unlink()
        except OSError:  # another process was faster, or another user owns it
            continue


def _require_room(directory: Path, num_scenes: int) -> None:
    if (needed := _num_bytes(num_scenes)) > (room := shutil.disk_usage(directory).free):
        raise OSError(f"{num_scenes} scenes take {needed >> 20} MiB, but only {room >> 20} MiB are free")


def fashion_scenes(request: SceneRequest, *, flavour: Flavour, first_of_training: int) -> "FashionScenes":
    split = cast(Split, request.split)
    first = first_of_training if split == "training" else 0
    return FashionScenes(flavour, split, request.num_scenes or DEFAULT_NUM_SCENES[split], first=first)


@dataclass(frozen=True)
class FashionScenes:
    """`num_scenes` scenes of a split, prepared on disk at first use (about 800 scenes/s).

    `first`: the generator's index of the one that has index 0 here.

    >>> scenes = FashionScenes("segmentation", "test", 16)
    >>> batch = scenes.load(np.array([3, 0]))
    >>> tuple(batch.images.shape), tuple(batch.labels.shape), len(scenes.classes)
    ((2, 3, 128, 128), (2, 128, 128), 11)
    """

    flavour: Flavour
    split: Split
    num_scenes: int
    first: int = field(default=0, kw_only=True)
    scene_size_px: int = field(default=SCENE_SIZE_PX, init=False)
    loads_in_threads: ClassVar[bool] = True
    _records: Records = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        integer(1)("num_scenes", self.num_scenes)
        integer(0)("first", self.first)
        for name, value, choices in (
            ("flavour", self.flavour, tuple(FLAVOURS)),
            ("split", self.split, get_args(Split)),
        ):
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
        path = self._prepared_file()
        if path is None:
            path = self._file(self.num_scenes)
            self._prepare(path)
        with path.open("rb") as file:
            count = os.fstat(file.fileno()).st_size // _num_bytes(1)
            file.seek(count * _RECORD.itemsize)
            checksums = np.frombuffer(file.read(), dtype=CHECKSUM)
            records = Records(file, path, record=_RECORD, count=self.num_scenes, checksums=checksums)
        object.__setattr__(self, "_records", records)

    def _file(self, num_scenes: int | str) -> Path:
        begins = f"{self.split}+{self.first}" if self.first else self.split
        return cache_dir() / f"fashion-v{GENERATOR_VERSION}-{self.flavour}-{begins}-{num_scenes}.scenes"

    def _prepared_file(self) -> Path | None:
        """A complete file that begins with these scenes: scene k does not depend on the number of scenes."""
        pattern = self._file("*")
        for path in pattern.parent.glob(pattern.name):
            count = path.stem.rsplit("-", 1)[-1]
            complete = count.isdecimal() and path.stat().st_size == _num_bytes(int(count))
            if complete and int(count) >= self.num_scenes:
                return path
        return None

    def _prepare(self, path: Path) -> None:
        """Write the file."""
        try:
            _remove_leftovers(path.parent)
            with replacing(path) as partial, partial.open("wb") as file:
                _require_room(path.parent, self.num_scenes)
                checksums = np.zeros(self.num_scenes, dtype=CHECKSUM)
                bar = tqdm(
                    range(self.num_scenes),
                    desc=f"Preparing {self.split} scenes (once)",
                    unit="scene",
                    disable=None if self.num_scenes >= 1000 else True,
                    file=sys.stderr,
                )
                for index in bar:
                    data = self._record(index).tobytes()
                    checksums[index] = checksum(data)
                    file.write(data)
                file.write(checksums.tobytes())
        except OSError as error:
            raise _cannot_prepare(path, error) from error

    def _record(self, index: int) -> NDArray[np.void]:
        scene = generate_scene(self.flavour, self.split, self.first + index)
        record = np.zeros((), dtype=_RECORD)
        record["image"] = scene.image.transpose(2, 0, 1)
        record["labels"] = scene.labels
        record["class"] = scene.class_index
        return record

    @property
    def name(self) -> str:
        begins = f" from {self.first}" if self.first else ""
        return f"FashionScenes v{GENERATOR_VERSION}, {self.flavour}, {self.split}{begins}, {self.num_scenes} scenes"

    @property
    def fingerprint(self) -> str:
        return self.name  # scenes are a function of what is in the name

    @property
    def classes(self) -> tuple[str, ...]:
        return FLAVOURS[self.flavour].classes

    def __len__(self) -> int:
        return self.num_scenes

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        """The scenes at `indices`; see SceneSource."""
        records = self._records
        records.check(indices)
        if FLAVOURS[self.flavour].labels == "maps":
            labels = records.copies("labels", indices)
        else:
            labels = torch.from_numpy(records["class"][indices].astype(np.int64))
        return SceneBatch(images=records.copies("image", indices), labels=labels)

    def items(self, index: int) -> tuple[Item, ...]:
        """The garments of scene `index`; see LocatedSource."""
        offset = 0 if FLAVOURS[self.flavour].labels == "maps" else 1  # `classes` may begin with the background
        return tuple(
            Item(
                label=label - offset,
                row=(2 * top + side) / SCENE_SIZE_PX - 1,
                col=(2 * left + side) / SCENE_SIZE_PX - 1,
                scale=side / SCENE_SIZE_PX,
            )
            for label, top, left, side in generate_scene(self.flavour, self.split, self.first + index).items
        )

    def load_with_maps(self, indices: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """(images [n, 3, H, W], label maps [n, H, W]), uint8, of any flavour, for pretraining."""
        self._records.check(indices)
        images, labels = (self._records[name][indices] for name in ("image", "labels"))
        return torch.from_numpy(images), torch.from_numpy(labels)
