"""Files are written whole or not at all, in UTF-8, on every system."""

import ast
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from canvit_gym.atomic import replacing, replacing_files, write_bytes, write_json, write_text

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("canvit_gym", "agents", "experiments") for path in (ROOT / package).rglob("*.py"))


def test_a_file_is_made_or_replaced_with_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "−1 é\n")
    assert path.read_bytes() == "−1 é\n".encode()
    write_bytes(path, b"other", durable=True)
    assert path.read_bytes() == b"other" and list(path.parent.iterdir()) == [path]


def test_an_interruption_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_files_of_a_directory_are_replaced_together(tmp_path: Path) -> None:
    """What was opened before, or mapped as safetensors 0.7 does, keeps its content."""
    directory = tmp_path / "new"
    with replacing_files(directory) as partial:
        save_file({"weight": torch.tensor(1.0)}, partial / "weights")
    (directory / "other").touch()
    before = load_file(directory / "weights")["weight"]
    with replacing_files(directory) as partial:
        (partial / "config.json").touch()
        save_file({"weight": torch.tensor(2.0)}, partial / "weights")
        assert load_file(directory / "weights")["weight"] == 1
    assert before == 1 and load_file(directory / "weights")["weight"] == 2
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "other", "weights"]
    with pytest.raises(KeyboardInterrupt), replacing_files(directory) as partial:
        (partial / "other").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert (directory / "other").read_text(encoding="utf-8") == "" and len(list(directory.iterdir())) == 3


def test_writers_at_once_leave_the_text_of_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [letter * 100_000 for letter in "abcdefgh"]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text(encoding="utf-8") in texts and list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_any_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fchmod", raising=False)  # as on Windows
    write_text(tmp_path / "ours", "")
    (tmp_path / "usual").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_holds_numbers_in_lines_and_no_nan(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, -3e-07], "b": {"c": ["x"]}}
    write_json(tmp_path / "file.json", value)
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == value and "[ 1, 2.5, -3e-07 ]" in text and text.endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", [float("nan")])
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_have_an_explicit_encoding(path: Path) -> None:
    """ruff's PLW1514 sees only some of these calls."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
            given = call.args[call.func.attr == "write_text" :] or [k for k in call.keywords if k.arg == "encoding"]
            assert given, f"{path}:{call.lineno} reads or writes text in the system's encoding"
