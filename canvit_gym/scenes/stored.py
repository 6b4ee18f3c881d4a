"""Scenes in a memory-mapped file, each compared with its checksum when it is first used.

A full or failing disk, a power cut or an interrupted copy can leave pages of zeros that nothing else would notice. The
check takes well under a tenth of a millisecond for 64 KiB, once per scene and process.
"""

import os
import zlib
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

CHECKSUM = np.dtype(np.uint32)


class DamagedCacheError(OSError):
    """A file of prepared scenes whose contents differ from what was saved."""


def checksum(record: bytes | memoryview) -> int:
    """The checksum of a record's bytes."""
    return zlib.crc32(record)


@cache
def _checked(file: tuple[int, ...], count: int) -> NDArray[np.bool_]:
    """[count]: whether each record of this file was compared with its checksum; shared by all who read the file."""
    return np.zeros(count, dtype=np.bool_)


class Records:
    """The first `count` records of an open file, read only. The file may be closed, and deleted, meanwhile."""

    def __init__(
        self, file: BinaryIO, path: Path, *, record: np.dtype, count: int, checksums: NDArray[np.uint32]
    ) -> None:
        self._path = path
        # Copy on write: nothing is written, but PyTorch warns of memory that cannot be.
        self._values = np.memmap(file, dtype=record, mode="c", shape=(count,))
        self._bytes = self._values.view(np.uint8).reshape(count, record.itemsize)
        self._checksums = checksums
        stat = os.fstat(file.fileno())
        self._checked = _checked((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns), count)

    def __getitem__(self, field: str) -> NDArray[np.uint8]:
        """[count, ...] of every record. Only for indices that `check` has been called with."""
        return self._values[field]

    def copies(self, field: str, indices: NDArray[np.int64], *, pin: bool = False) -> torch.Tensor:
        """[n, ...] uint8, as `self[field][indices]`; in page-locked memory if it will be copied to a GPU.

        PyTorch copies records three times as fast as NumPy, and lets other threads run.
        """
        values = torch.from_numpy(self._values[field])
        out = torch.empty(len(indices), *values.shape[1:], dtype=torch.uint8, pin_memory=pin)
        return torch.index_select(values, 0, torch.from_numpy(indices), out=out)

    def check(self, indices: NDArray[np.int64]) -> None:
        """Raise DamagedCacheError, and remove the file, if one of the records is not what was saved."""
        for index in indices[~self._checked[indices]].tolist():
            if checksum(self._bytes[index].data) != self._checksums[index]:
                raise self._damaged(index)
            self._checked[index] = True

    def _damaged(self, index: int) -> DamagedCacheError:
        try:
            self._path.unlink(missing_ok=True)
            cure = "The file has been removed; run again to make a new one."
        except OSError:
            cure = "Remove the file and run again to make a new one."
        return DamagedCacheError(
            f"scene {index} in {self._path} is damaged: the disk was full or is failing, or a copy was interrupted. "
            f"{cure}"
        )
