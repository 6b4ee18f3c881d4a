"""Scenes of a data set on disk, decoded and resized once into a memory-mapped file, then read at memory speed.

The file holds a record per scene (uint8 pixels and, where the task is dense, the label map), and after the
records a stamp per scene: a hash of its files' paths, sizes and modification times. A record counts only
where its stamp fits the files as they are now, so that

- an interrupted build goes on where it stopped (records are on disk before their stamps are written);
- a scene whose files have changed is decoded again, the others are not;
- an added or removed file, another size or geometry makes another file, and the old one is deleted.

The file bears its final name only when every record is complete.
"""

import logging
import os
import re
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from canvit_gym.scenes.decoding import Decoder, UnreadableSceneError
from canvit_gym.scenes.files import READABLE, SceneFiles, ScenesOnDisk, digest, how_to_go_on, left_out
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.scenes.workers import DecodingPool, Pixels

log = logging.getLogger(__name__)

_SYNC_EVERY = 64


class CachedFileScenes(ScenesOnDisk):
    """The scenes of a split, from a cache in `directory` that is built or brought up to date first.

    Unreadable scenes stop the build, unless they are to be left out: then each is warned of when the cache is
    opened.
    """

    def __init__(
        self,
        files: SceneFiles,
        decoder: Decoder,
        *,
        directory: Path,
        workers: int = 0,
        skip_unreadable: bool = False,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(files, decoder, skip_unreadable=skip_unreadable, pin_memory=pin_memory)
        size = decoder.size_px
        fields = [("image", np.uint8, (3, size, size))] + [("labels", np.uint8, (size, size))] * decoder.is_dense
        self._record = np.dtype(fields)
        self.path = self._up_to_date(directory, workers)
        self._scenes = np.memmap(self.path, dtype=self._record, mode="r", shape=(len(files),))
        self._file: BufferedReader | None = None
        stamps = np.memmap(self.path, dtype=np.uint64, mode="r", offset=self._stamps_at(), shape=(len(files),))
        lacking = np.flatnonzero((stamps & READABLE) == 0)
        self.unreadable: dict[int, str] = {int(i): f"cannot read {files.images[i]}" for i in lacking}
        """Scenes left out, and why."""
        for count, (index, reason) in enumerate(self.unreadable.items(), start=1):
            warnings.warn(f"scene {index} is left out: {reason} ({count} left out)", RuntimeWarning, stacklevel=2)

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        """The scenes at `indices`; see SceneSource."""
        for index in indices.tolist():
            if index in self.unreadable:
                raise left_out(f"scene {index}: {self.unreadable[index]}")

        def picked(name: str) -> torch.Tensor:
            field = self._scenes[name]
            out = torch.empty(len(indices), *field.shape[1:], dtype=torch.uint8, pin_memory=self._pin)
            out.numpy()[:] = field[indices]  # np.take would copy the whole file first where records hold two fields
            return out

        truth = self.files.truth
        labels = torch.from_numpy(truth[indices]) if isinstance(truth, np.ndarray) else picked("labels")
        return SceneBatch(images=picked("image"), labels=labels)

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Ask the operating system to read these records from the disk, where it can be asked."""
        if hasattr(os, "posix_fadvise"):
            if self._file is None:
                self._file = self.path.open("rb")
            size = self._record.itemsize
            for index in indices.tolist():
                os.posix_fadvise(self._file.fileno(), index * size, size, os.POSIX_FADV_WILLNEED)

    def readable(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See StreamedSource."""
        return np.array([index not in self.unreadable for index in indices.tolist()])

    def close(self) -> None:
        """There is no process to end, the build's have ended: it closes the file. Scenes can be loaded on."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _stamps_at(self) -> int:
        """Offset of the stamps, bytes."""
        return -(-len(self.files) * self._record.itemsize // 8) * 8

    def _up_to_date(self, directory: Path, workers: int) -> Path:
        """The complete file, built where it has to be."""
        files, size = self.files, self.decoder.size_px
        slug = re.sub(r"\W+", "-", files.name.lower())
        which = digest(str(files.root.resolve()), files.name, str(size)).hex()[:8]
        content = digest(repr(self.decoder), self.decoder.geometry, *files.relative(files.images)).hex()[:12]
        path = directory / f"{slug}-{size}px-{which}-{content}.bin"
        wanted = files.stamps()
        if self._complete(path, wanted):
            return path
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")):
                if not self._complete(path, wanted):  # another process may have built it meanwhile
                    self._build(path, wanted, workers)
                    for other in directory.glob(f"{slug}-{size}px-{which}-*"):
                        if other.stem != path.stem:
                            other.unlink()
        except UnreadableSceneError:
            raise
        except OSError as error:
            needed = (self._stamps_at() + wanted.nbytes) / 2**20
            raise OSError(
                f"cannot cache {self.name} in {directory}: {error.strerror or error}. It needs {needed:.0f} MiB: pass "
                "cache=directory (or set $CANVIT_GYM_CACHE) to a writable place with enough room, or cache=False."
            ) from error
        return path

    def _complete(self, path: Path, wanted: NDArray[np.uint64]) -> bool:
        if not path.is_file() or path.stat().st_size != self._stamps_at() + wanted.nbytes:
            return False
        with path.open("rb") as file:
            file.seek(self._stamps_at())
            return not len(self._to_do(np.frombuffer(file.read(), dtype=np.uint64), wanted))

    def _to_do(self, held: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Scenes without a record of their files as they are now; unreadable ones count unless they are left out."""
        fits = held == wanted
        return np.flatnonzero(~(fits | (held == (wanted ^ READABLE))) if self.skips_unreadable else ~fits)

    def _build(self, path: Path, wanted: NDArray[np.uint64], workers: int) -> None:
        partial = path.with_suffix(".partial")
        if path.exists():
            log.warning("%s has changed since it was cached: what changed is cached again", self.files.name)
            os.replace(path, partial)
        elif any(path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.bin")):
            log.warning("the list of files of %s has changed since it was cached: caching it again", self.files.name)
        start = self._stamps_at()
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            held = np.zeros_like(wanted)
            if os.fstat(descriptor).st_size == start + wanted.nbytes:
                held = np.frombuffer(os.pread(descriptor, wanted.nbytes, start), dtype=np.uint64).copy()
            to_do = self._to_do(held, wanted)
            if (missing := len(to_do) * self._record.itemsize) > (room := shutil.disk_usage(path.parent).free):
                raise OSError(f"{missing / 2**20:.0f} MiB are to be written, but there is room for {room / 2**20:.0f}")
            os.ftruncate(descriptor, start + wanted.nbytes)
            with _SceneWriter(descriptor, held, stamps_at=start, record=self._record) as writer:
                for index, decoded in tqdm(
                    self._decoded(to_do, workers),
                    total=len(to_do),
                    desc=f"Caching {self.files.name} (once)",
                    unit="scene",
                    disable=None if len(to_do) >= 100 else True,
                ):
                    try:
                        writer.write(index, decoded(), stamp=wanted[index])
                    except UnreadableSceneError as error:
                        if not self.skips_unreadable:
                            raise how_to_go_on(error) from error
                        writer.write(index, None, stamp=wanted[index] ^ READABLE)
        finally:
            os.close(descriptor)
        os.replace(partial, path)

    def _decoded(self, indices: NDArray[np.int64], workers: int) -> Iterator[tuple[int, Callable[[], Pixels]]]:
        """Each index with what waits for its scene; workers stay busy a few scenes ahead."""
        images, mask = self.files.images, self.files.mask
        if not workers:
            for index in indices.tolist():
                yield index, lambda index=index: self.decoder.decode(images[index], mask(index))
            return
        pool = DecodingPool(self.decoder, workers)
        try:
            ahead: deque[tuple[int, Future[Pixels]]] = deque()
            for index in indices.tolist():
                ahead.append((index, pool.submit(images[index], mask(index))))
                if len(ahead) > 4 * workers:
                    first, future = ahead.popleft()
                    yield first, future.result
            for index, future in ahead:
                yield index, future.result
        finally:
            pool.close()


class _SceneWriter:
    """Writes records, and their stamps once the records are on the disk; whatever ends the build, none are lost."""

    def __init__(self, descriptor: int, held: NDArray[np.uint64], *, stamps_at: int, record: np.dtype) -> None:
        self._descriptor = descriptor
        self._held = held
        self._stamps_at = stamps_at
        self._record = record
        self._written: dict[int, np.uint64] = {}

    def __enter__(self) -> "_SceneWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._sync()

    def write(self, index: int, scene: Pixels | None, *, stamp: np.uint64) -> None:
        if scene is not None:
            pixels, labels = scene
            data = pixels.numpy().tobytes() + (b"" if labels is None else labels.numpy().tobytes())
            written = os.pwrite(self._descriptor, data, index * self._record.itemsize)
            if written != len(data):
                raise OSError("the disk is full")
        self._written[index] = stamp
        if len(self._written) >= _SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        for index, stamp in self._written.items():
            os.pwrite(self._descriptor, stamp.tobytes(), self._stamps_at + 8 * index)
        self._written.clear()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it, however it ends."""
    import fcntl  # POSIX only; nothing else here is

    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
