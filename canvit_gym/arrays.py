"""Arrays and a JSON header in one compressed npz file."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from canvit_gym.atomic import replacing

_HEADER = "header"
_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged or foreign file may raise."""


def write_arrays(path: Path, header: dict[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write the arrays, none of which is called "header". An interruption leaves no partial file.

    header: JSON values, with the file's "format".
    """
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **{_HEADER: np.array(json.dumps(header)), **arrays})


def read_arrays(path: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(format, the rest of the header, arrays by name) that `write_arrays` wrote. Nothing in the file is executed.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file.
        ValueError: a damaged file, or one without such a header; the message says what is wrong, but not the path.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop(_HEADER)))
        written = header.pop("format")
    except (FileNotFoundError, IsADirectoryError):
        raise
    except _DAMAGE as error:
        raise ValueError(str(error)) from error
    return written, header, arrays
