"""The Python blocks of the documentation run, page by page, as a reader would paste them."""

import multiprocessing
import os
import re
import runpy
import sys
from pathlib import Path

import pytest

from canvit_gym.policies import Seen, SeenWithTruth

ROOT = Path(__file__).parents[1]
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if "```python\n" in path.read_text(encoding="utf-8")]
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
READERS = multiprocessing.get_context("forkserver")
"""Each process is a fresh one, but for the imports."""
READERS.set_forkserver_preload(["canvit_gym.policies", "canvit_gym.sb3", "sb3_contrib"])


def read(program: Path, errors: Path) -> None:
    """Run a program in its directory, with what it says of errors in a file."""
    os.chdir(program.parent)
    with errors.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
        runpy.run_path(str(program), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    program, errors = tmp_path / "page.py", tmp_path / "errors.txt"
    program.write_text("\n".join(BLOCK.findall(page.read_text(encoding="utf-8"))), encoding="utf-8")
    reader = READERS.Process(target=read, args=(program, errors))
    reader.start()
    reader.join()
    assert reader.exitcode == 0, errors.read_text(encoding="utf-8")


def test_the_page_of_policies_names_all_that_they_see() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for member in (name for name in vars(SeenWithTruth) | vars(Seen) if not name.startswith("_")):
        assert re.search(rf"`{member}\b", page), member


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.stem
)
def test_no_number_is_left_to_be_filled_in(page: Path) -> None:
    """Placeholders are words in capitals, alone on their line or in a cell of a table."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.findall(r"(?m)^\s*[A-Z]{5,}\s*$|\| [A-Z]{5,} \|", prose)
