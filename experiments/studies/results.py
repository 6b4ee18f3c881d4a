"""Results of studies that have a JSON file per environment and a page for all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from canvit_gym.atomic import write_json, write_text
from canvit_gym.provenance import plain


def write_result(
    directory: Path, env_id: str, result: dict[str, Any], *, page: Callable[[list[dict[str, Any]]], str]
) -> None:
    """Write ENVIRONMENT.json, and README.md from all such files, by their names."""
    write_json(directory / f"{env_id.rpartition('/')[2]}.json", plain(result))
    paths = sorted(directory.glob("*.json"))
    write_text(directory / "README.md", page([json.loads(path.read_text(encoding="utf-8")) for path in paths]))
