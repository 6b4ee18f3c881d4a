"""Scenes that are image files on disk: decoded when they are needed, or in advance by worker processes."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from canvit_gym.scenes.decoding import Decoder, UnreadableSceneError
from canvit_gym.scenes.listing import PROGRESS_AFTER_S, encoded
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.scenes.workers import DecodingPool, Pixels

READABLE = np.uint64(1)
"""A stamp's lowest bit: whether the scene could be decoded. No scene has stamp 0."""


def digest(*parts: str) -> bytes:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).digest()


def _state(path: str, *, with_time: bool = True) -> str:
    """Size and modification time of a file, or that it does not exist."""
    try:
        stat = os.stat(path)
    except OSError:
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}" if with_time else f"{stat.st_size}"


_THREADS = 8
"""Number of files queried concurrently: on a network file system each takes a round trip."""
_CHUNK = 1000


def _states(paths: list[str], *, with_time: bool, doing: str) -> Iterator[str]:
    """`_state` of each, in order, with a progress bar if it takes long."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    progress = tqdm(desc=doing, total=len(paths), unit=" files", delay=PROGRESS_AFTER_S, leave=False)
    with ThreadPoolExecutor(_THREADS) as pool, progress:
        for states in pool.map(lambda chunk: [_state(path, with_time=with_time) for path in chunk], chunks):
            yield from states
            progress.update(len(states))


class FilePaths(Sequence[Path]):
    """Paths stored as strings, because making a hundred thousand Path objects takes seconds."""

    def __init__(self, strings: list[str]) -> None:
        self.strings = strings

    def __len__(self) -> int:
        return len(self.strings)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "FilePaths": ...
    def __getitem__(self, index: int | slice) -> "Path | FilePaths":
        found = self.strings[index]
        return Path(found) if isinstance(found, str) else FilePaths(found)


@dataclass(frozen=True)
class SceneFiles:
    """A split of a data set: the files of its scenes, in order."""

    name: str
    """Data set and split."""
    root: Path
    classes: tuple[str, ...]
    images: FilePaths
    truth: NDArray[np.int64] | FilePaths
    """Classification: each image's class, [n]; zeros where there are no classes. Segmentation: each image's mask."""

    def __len__(self) -> int:
        return len(self.images)

    def mask(self, index: int) -> Path | None:
        return None if isinstance(self.truth, np.ndarray) else self.truth[index]

    def stamps(self) -> NDArray[np.uint64]:
        """[n] hashes of the current state of the scenes' files, with the lowest bit set."""
        stamps = np.empty(len(self), dtype=np.uint64)
        doing = f"Looking at the files of {self.name}"
        images = _states(self.images.strings, with_time=True, doing=doing)
        if isinstance(self.truth, np.ndarray):
            masks: Iterable[str] = repeat("", len(self))
        else:
            masks = _states(self.truth.strings, with_time=True, doing=doing)
        for i, parts in enumerate(zip(self.relative(self.images), images, masks, strict=True)):
            stamps[i] = int.from_bytes(digest(*parts)[:8]) | int(READABLE)
        return stamps

    def relative(self, paths: FilePaths) -> Iterator[str]:
        """os.path.relpath for paths below the root, in a twentieth of the time."""
        root = os.path.join(self.root, "")
        for path in paths.strings:
            yield path[len(root) :] if path.startswith(root) else os.path.relpath(path, self.root)

    @property
    def content_sha256(self) -> str:
        """Hash of names, classes and sizes of all files, in order: the same for copies of a data set on any machine."""
        sha256 = hashlib.sha256(json.dumps(self.classes).encode())
        for paths in (self.images,) if isinstance(self.truth, np.ndarray) else (self.images, self.truth):
            sizes = _states(paths.strings, with_time=False, doing=f"Looking at the files of {self.name}")
            for relative, size in zip(self.relative(paths), sizes, strict=True):
                sha256.update(b"\n" + encoded(relative.replace(os.sep, "/")) + b" " + size.encode())
        return sha256.hexdigest()

    def subset(self, indices: NDArray[np.int64], name: str) -> "SceneFiles":
        """The scenes at `indices`, under another name."""
        images, truth = _chosen(self.images, indices), self.truth
        truth = truth[indices] if isinstance(truth, np.ndarray) else _chosen(truth, indices)
        return replace(self, name=name, images=images, truth=truth)


def _chosen(paths: FilePaths, indices: NDArray[np.int64]) -> FilePaths:
    return FilePaths([paths.strings[i] for i in indices.tolist()])


def spread(count: int, total: int) -> NDArray[np.int64]:
    """At most `count` of `total` indices, evenly spread: files are often sorted by class, so the first ones would be
    alike.

    >>> spread(3, 9).tolist()
    [1, 4, 7]
    """
    count = min(count, total)
    return (2 * np.arange(count) + 1) * total // (2 * count)


def how_to_go_on(error: UnreadableSceneError) -> UnreadableSceneError:
    """The error with its cure."""
    return UnreadableSceneError(f'{error}. {error.cure}, or pass unreadable="skip" to leave such scenes out.')


def left_out(error: Exception | str) -> UnreadableSceneError:
    """The error for a scene that was requested by its index although such scenes are left out."""
    return UnreadableSceneError(f"{error}. Such scenes are left out, as unreadable='skip' asks: choose another index.")


def stacked(tensors: Sequence[torch.Tensor], *, pin: bool) -> torch.Tensor:
    """[n, ...], in page-locked memory if it will be copied to a GPU asynchronously."""
    out = torch.empty(len(tensors), *tensors[0].shape, dtype=tensors[0].dtype, pin_memory=pin)
    return torch.stack(list(tensors), out=out)


class ScenesOnDisk:
    """What all sources of scenes on disk share, however they get the pixels."""

    def __init__(self, files: SceneFiles, decoder: Decoder, *, skip_unreadable: bool, pin_memory: bool) -> None:
        self.files = files
        self.decoder = decoder
        self.skips_unreadable = skip_unreadable
        self._pin = pin_memory

    @property
    def name(self) -> str:
        return f"{self.files.name}, {len(self)} scenes"

    @property
    def fingerprint(self) -> str:
        return digest(str(self.files.root.resolve()), self.files.stamps().tobytes().hex()).hex()

    @property
    def content_sha256(self) -> str:
        """See SceneFiles."""
        return self.files.content_sha256

    @property
    def classes(self) -> tuple[str, ...]:
        return self.files.classes

    @property
    def scene_size_px(self) -> int:
        return self.decoder.size_px

    def __len__(self) -> int:
        return len(self.files)


class FileScenes(ScenesOnDisk):
    """The scenes of a split, decoded from their files. `workers` processes decode ahead; 0 decodes in `load`.

    `load` raises UnreadableSceneError for a scene that cannot be read. With skip_unreadable, `readable` reports such
    scenes beforehand; there is one warning for each, and they are collected in `unreadable`.
    """

    def __init__(
        self,
        files: SceneFiles,
        decoder: Decoder,
        *,
        workers: int = 0,
        skip_unreadable: bool = False,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(files, decoder, skip_unreadable=skip_unreadable, pin_memory=pin_memory)
        self.workers = workers
        self.unreadable: dict[int, str] = {}
        """Scenes left out so far, and why."""
        self._pool: DecodingPool | None = None
        self._ahead: dict[int, Future[Pixels]] = {}
        self._ready: dict[int, Pixels] = {}

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        """The scenes at `indices`; see SceneSource."""
        for error in self._make_ready(indices).values():
            raise (left_out(error) if self.skips_unreadable else how_to_go_on(error)) from error
        scenes = [self._ready[int(i)] for i in indices]
        self._ready.clear()
        images = stacked([pixels for pixels, _ in scenes], pin=self._pin)
        if isinstance(self.files.truth, np.ndarray):
            return SceneBatch(images=images, labels=torch.from_numpy(self.files.truth[indices]))
        maps = [labels for _, labels in scenes if labels is not None]
        return SceneBatch(images=images, labels=stacked(maps, pin=self._pin))

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """See StreamedSource."""
        if not self.workers:
            return
        if self._pool is None:
            self._pool = DecodingPool(self.decoder, self.workers)
        wanted = dict.fromkeys(indices.tolist())
        for index in [index for index in self._ahead if index not in wanted]:
            self._ahead.pop(index).cancel()
        for index in wanted:
            if index not in self._ahead and index not in self._ready and index not in self.unreadable:
                self._ahead[index] = self._pool.submit(self.files.images[index], self.files.mask(index))

    def readable(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See StreamedSource."""
        unknown = np.array([index for index in indices.tolist() if index not in self.unreadable], dtype=np.int64)
        for index, error in self._make_ready(unknown).items():
            self.unreadable[index] = str(error)
            warnings.warn(
                f"scene {index} is left out: {error} ({len(self.unreadable)} left out so far)",
                RuntimeWarning,
                stacklevel=2,
            )
        return np.array([index not in self.unreadable for index in indices.tolist()])

    def close(self) -> None:
        """See StreamedSource."""
        self._ahead.clear()
        self._ready.clear()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _make_ready(self, indices: NDArray[np.int64]) -> dict[int, UnreadableSceneError]:
        """Fill `_ready`: here starting with the last one, while the workers start with the first. Returns failures by
        index."""
        failed: dict[int, UnreadableSceneError] = {}
        waiting: list[tuple[int, Future[Pixels]]] = []
        for index in reversed(dict.fromkeys(indices.tolist())):
            if index in self._ready:
                continue
            future = self._ahead.pop(index, None)
            if future is not None and not future.cancel():
                waiting.append((index, future))
                continue
            try:
                self._ready[index] = self.decoder.decode(self.files.images[index], self.files.mask(index))
            except UnreadableSceneError as error:
                failed[index] = error
        for index, future in waiting:
            try:
                self._ready[index] = future.result()
            except UnreadableSceneError as error:
                failed[index] = error
        return failed
