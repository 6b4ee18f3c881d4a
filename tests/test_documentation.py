"""The Python blocks of the documentation run, page by page, as a reader would paste them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from canvit_gym.policies import Seen, SeenWithTruth

ROOT = Path(__file__).parents[1]
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if "```python\n" in path.read_text(encoding="utf-8")]
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    program = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
