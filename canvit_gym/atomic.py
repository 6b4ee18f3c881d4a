"""Atomic file writes: an interruption leaves the old file or the new one, never a partial one."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary path next to `path`. It becomes `path` when the block ends, and is removed if the block raises.

    Concurrent writers do not affect each other; the last one to finish wins. Missing directories are made.

    Args:
        path: the file to make or replace.
        durable: whether the file survives a power cut, which takes some milliseconds.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if durable:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_files(directory: Path) -> Iterator[Path]:
    """A temporary directory. When the block ends, its files replace those of the same names in `directory`.

    A replaced file lives on for those who have it mapped into memory: one that is overwritten in place changes tensors
    that were loaded from it before (safetensors 0.7).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory, prefix=".partial-") as partial:
        yield Path(partial)
        for path in sorted(Path(partial).iterdir()):
            os.replace(path, directory / path.name)


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Make or replace `path`."""
    with replacing(path, durable=durable) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Make or replace `path`, in UTF-8 and without converting newlines."""
    write_bytes(path, text.encode(), durable=durable)


def write_json(path: Path, value: Any) -> None:
    """Make or replace `path`: indented JSON, with lists of numbers on one line.

    Raises:
        ValueError: `value` contains a NaN or an infinity, which JSON does not support.
    """
    text = json.dumps(value, indent=1, allow_nan=False)
    text = re.sub(r"\[[-+\d.e,\s]*\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)
    write_text(path, text + "\n")
