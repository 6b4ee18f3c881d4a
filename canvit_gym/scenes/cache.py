"""Scenes of a data set on disk, decoded and resized once into a memory-mapped file, then read at memory speed.

The file has a record per scene (uint8 pixels and, for segmentation, the label map), then a stamp per scene, which is a
hash of its files' paths, sizes and modification times, and then a checksum per scene.

- A complete file never changes, and its name depends on the stamps. When images change, a new file is made from the old
  one, for which only the changed scenes are decoded again. A process that has the old file open continues to use it.
- An interrupted build can be continued: records are on disk before their stamps are written.
- A record is compared with its checksum when it is first used (canvit_gym.scenes.stored).
- An added or removed file, another size, another geometry or other values of masks make a new file. Files for older
  lists, stamps or geometries are deleted; those of other sizes and other values of masks are kept beside it.
"""

import logging
import os
import re
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from canvit_gym.scenes.decoding import Decoder, UnreadableSceneError
from canvit_gym.scenes.files import READABLE, SceneFiles, ScenesOnDisk, digest, how_to_go_on, left_out
from canvit_gym.scenes.listing import printable
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.scenes.stored import CHECKSUM, Records, checksum
from canvit_gym.scenes.workers import DecodingPool, Pixels

log = logging.getLogger(__name__)

_SYNC_EVERY = 64
_FORMAT = "records, stamps, checksums"
"""Part of the file name, so that files of another layout are never opened."""


class CachedFileScenes(ScenesOnDisk):
    """The scenes of a split, from a cache in `directory` that is built or updated first.

    Unreadable scenes stop the build, unless they are to be left out. In that case there is a warning for each when the
    cache is opened.
    """

    loads_in_threads: ClassVar[bool] = True

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
        self.path, self._file = self._up_to_date(directory, workers)
        stamps = self._after_records(self._file, np.dtype(np.uint64), self._stamps_at)
        checksums = self._after_records(self._file, CHECKSUM, self._checksums_at)
        self._scenes = Records(self._file, self.path, record=self._record, count=len(files), checksums=checksums)
        self._hints = ThreadPoolExecutor(1, "scene-hints") if hasattr(os, "posix_fadvise") else None
        self._hinted: dict[int, None] = {}
        lacking = np.flatnonzero((stamps & READABLE) == 0)
        self.unreadable: dict[int, str] = {int(i): f"cannot read {printable(files.images[i])}" for i in lacking}
        """Scenes left out, and why."""
        for count, (index, reason) in enumerate(self.unreadable.items(), start=1):
            warnings.warn(f"scene {index} is left out: {reason} ({count} left out)", RuntimeWarning, stacklevel=2)

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        """The scenes at `indices`; see SceneSource."""
        for index in indices.tolist():
            if index in self.unreadable:
                raise left_out(f"scene {index}: {self.unreadable[index]}")
        self._scenes.check(indices)

        images = self._scenes.copies("image", indices, pin=self._pin)
        if isinstance(self.files.truth, np.ndarray):
            return SceneBatch(images=images, labels=torch.from_numpy(self.files.truth[indices]))
        return SceneBatch(images=images, labels=self._scenes.copies("labels", indices, pin=self._pin))

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Ask the operating system to read these records from disk, where it supports this."""
        # In a thread: for records that are in memory, a hint takes the system as long as for others.
        if self._hints is not None:
            self._hints.submit(self._hint, dict.fromkeys(indices.tolist()))

    def _hint(self, wanted: dict[int, None]) -> None:
        size = self._record.itemsize
        for index in wanted:
            if index not in self._hinted:  # hints overlap, and each one is a call into the system
                os.posix_fadvise(self._file.fileno(), index * size, size, os.POSIX_FADV_WILLNEED)
        self._hinted = wanted

    def readable(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See StreamedSource."""
        return np.array([index not in self.unreadable for index in indices.tolist()])

    def close(self) -> None:
        """Close the file. Scenes can still be loaded, from the memory map."""
        if self._hints is not None:
            self._hints.shutdown(cancel_futures=True)
            self._hints = None
        self._file.close()  # the memory map stays

    @property
    def _stamps_at(self) -> int:
        """Offset of the stamps, bytes."""
        return -(-len(self.files) * self._record.itemsize // 8) * 8

    @property
    def _checksums_at(self) -> int:
        """Offset of the checksums, bytes."""
        return self._stamps_at + 8 * len(self.files)

    @property
    def _num_bytes(self) -> int:
        """Of the whole file."""
        return self._checksums_at + CHECKSUM.itemsize * len(self.files)

    def _after_records(self, file: BinaryIO, dtype: np.dtype, offset: int) -> NDArray[Any]:
        """[n] a copy of stamps or checksums; zeros where the file is truncated."""
        file.seek(offset)
        held = file.read(dtype.itemsize * len(self.files))
        if len(held) < dtype.itemsize * len(self.files):
            return np.zeros(len(self.files), dtype=dtype)
        return np.frombuffer(held, dtype=dtype).copy()

    def _up_to_date(self, directory: Path, workers: int) -> tuple[Path, BinaryIO]:
        """The complete file, open for reading; it is built if necessary."""
        files, size = self.files, self.decoder.size_px
        slug = re.sub(r"\W+", "-", files.name.lower())
        which = digest(str(files.root.resolve()), files.name, repr(self.decoder)).hex()[:8]
        content = digest(_FORMAT, self.decoder.geometry, *files.relative(files.images)).hex()[:12]
        family = f"{slug}-{size}px-{which}"
        wanted = files.stamps()
        path = directory / f"{family}-{content}-{digest(wanted.tobytes().hex()).hex()[:8]}.bin"
        if file := self._complete(path, wanted):
            return path, file
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(directory / f"{family}.lock"):
                file = self._complete(path, wanted)  # another process may have built it meanwhile
                if file is None:
                    self._build(path, wanted, workers, older=f"{family}-{content}-*.bin", others=f"{family}-*.bin")
                    file = path.open("rb")
                for other in directory.glob(f"{family}-*"):
                    if other != path:
                        with suppress(OSError):  # Windows keeps what another process has open
                            other.unlink()
        except UnreadableSceneError:
            raise
        except OSError as error:
            raise OSError(
                f"cannot cache {self.name} in {directory}: {error.strerror or error}. It needs "
                f"{self._num_bytes / 2**20:.0f} MiB: pass cache=directory (or set $CANVIT_GYM_CACHE) to a writable "
                "place with enough room, or cache=False."
            ) from error
        return path, file

    def _complete(self, path: Path, wanted: NDArray[np.uint64]) -> BinaryIO | None:
        """The open file, if it has every scene of the files as they are now; else None."""
        try:
            file = path.open("rb")
        except OSError:
            return None
        if os.fstat(file.fileno()).st_size == self._num_bytes:
            held = self._after_records(file, np.dtype(np.uint64), self._stamps_at)
            if not len(self._to_do(held, wanted)):
                return file
        file.close()
        return None

    def _to_do(self, held: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Scenes without a record of their current files, including unreadable ones unless those are left out."""
        fits = held == wanted
        return np.flatnonzero(~(fits | (held == (wanted ^ READABLE))) if self.skips_unreadable else ~fits)

    def _build(self, path: Path, wanted: NDArray[np.uint64], workers: int, *, older: str, others: str) -> None:
        """Make `path`, reusing an interrupted build or the newest file with older stamps."""
        partial = path.with_suffix(".partial")
        before = max(path.parent.glob(older), key=lambda file: file.stat().st_mtime_ns, default=None)
        if before is not None and before != path:
            log.warning("%s has changed since it was cached: caching the changed scenes again", self.files.name)
        elif any(path.parent.glob(others)):
            log.warning("the list of files of %s has changed since it was cached: caching it again", self.files.name)
        for interrupted in path.parent.glob(older.replace(".bin", ".partial")):  # of older stamps: none has two
            os.replace(interrupted, partial)
        if before is not None and not (partial.exists() and partial.stat().st_size == self._num_bytes):
            self._require_room(path.parent, self._num_bytes)
            shutil.copyfile(before, partial)
        partial.touch()
        with partial.open("r+b", buffering=0) as file:
            held = self._after_records(file, np.dtype(np.uint64), self._stamps_at)
            to_do = self._to_do(held, wanted)
            self._require_room(path.parent, len(to_do) * self._record.itemsize)
            file.truncate(self._num_bytes)
            offsets = {"stamps_at": self._stamps_at, "checksums_at": self._checksums_at}
            with _SceneWriter(file, record_bytes=self._record.itemsize, **offsets) as writer:
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
        os.replace(partial, path)

    @staticmethod
    def _require_room(directory: Path, num_bytes: int) -> None:
        if num_bytes > (room := shutil.disk_usage(directory).free):
            raise OSError(f"only {room / 2**20:.0f} MiB are free")

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
    """Writes records, and then their stamps once the records are on disk, so that no finished scene is lost."""

    def __init__(self, file: RawIOBase, *, record_bytes: int, stamps_at: int, checksums_at: int) -> None:
        self._file = file
        self._record_bytes = record_bytes
        self._stamps_at = stamps_at
        self._checksums_at = checksums_at
        self._written: dict[int, tuple[np.uint64, int]] = {}

    def __enter__(self) -> "_SceneWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._sync()

    def write(self, index: int, scene: Pixels | None, *, stamp: np.uint64) -> None:
        data = b""
        if scene is not None:
            pixels, labels = scene
            data = pixels.numpy().tobytes() + (b"" if labels is None else labels.numpy().tobytes())
            self._put(index * self._record_bytes, data)
        self._written[index] = stamp, checksum(data)
        if len(self._written) >= _SYNC_EVERY:
            self._sync()

    def _put(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        if self._file.write(data) != len(data):
            raise OSError("the disk is full")

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        for index, (stamp, of_record) in self._written.items():
            self._put(self._checksums_at + CHECKSUM.itemsize * index, CHECKSUM.type(of_record).tobytes())
            self._put(self._stamps_at + 8 * index, stamp.tobytes())
        self._written.clear()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Allow one process at a time. The lock is released when its process ends, however it ends."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with suppress(OSError):  # it waits for ten seconds only
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
