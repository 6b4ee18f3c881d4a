"""Results that are kept as a JSON file each, with one page of all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from canvit_gym.atomic import write_json, write_text
from canvit_gym.provenance import plain


def write_result(
    directory: Path, name: str, result: dict[str, Any], *, page: Callable[[list[dict[str, Any]]], str]
) -> None:
    """Write NAME.json, and README.md from all such files, in the order of their names."""
    write_json(directory / f"{name}.json", plain(result))
    paths = sorted(directory.glob("*.json"))
    write_text(directory / "README.md", page([json.loads(path.read_text(encoding="utf-8")) for path in paths]))
