"""Tables of windows, compared by a detector on validation scenes."""

import json
from pathlib import Path

import pytest

from agents.detection import Detection
from canvit_gym.scenes.prepared import DEFAULT_NUM_SCENES
from experiments.studies import windows
from experiments.studies.windows import SCALES, WindowsConfig

ODD = "CanViT/FashionOdd-v0"


def test_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULT_NUM_SCENES, "training", 1024)
    config = WindowsConfig(
        envs=(ODD,), seeds=(0, 1), detection=Detection(states=256, epochs=1), num_scenes=24, results_dir=tmp_path,
        progress=False,
    )  # fmt: skip
    windows.main(config)
    result = json.loads((tmp_path / "FashionOdd-v0.json").read_text(encoding="utf-8"))
    assert [tuple(row["scales"]) for row in result["tables"]] == list(SCALES[ODD])
    assert result["num_scenes"] == 24 and result["chosen"] in [row["scales"] for row in result["tables"]]
    first = result["tables"][0]["score"]["value"]
    for row in result["tables"]:
        assert row["score"]["value"] == pytest.approx(sum(row["seeds"]) / 2)
        assert row["minus_first"]["value"] == pytest.approx(row["score"]["value"] - first)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.count("**") == 2 and "| FashionOdd-v0 | 24 | top-1 |" in page


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"envs": ("CanViT/FashionStop-v0",)}, "no tables to compare"),
        ({"seeds": ()}, "at least one seed"),
        ({"num_scenes": 0}, "--num-scenes must be an integer >= 1"),
    ],
)
def test_bad_options(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        WindowsConfig(**options)  # type: ignore[arg-type]
