"""The headroom check of an environment: what it measures, and that an interrupted study goes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from canvit_gym.command_line import env_config
from canvit_gym.evaluation import Evaluation
from canvit_gym.stopping import stopped_return, stops_when_right
from experiments.studies import kept, suite_headroom
from experiments.studies.suite_headroom import (
    CONFIDENCE,
    Compared,
    SuiteHeadroomConfig,
    look_of,
    main,
    stops_at_confidence,
    study,
)

CROWD = "CanViT/FashionDistractors-v0"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SuiteHeadroomConfig:
    compared = Compared(("coarse_to_fine", "center"), ("box_locator(factor=1.25)",))
    monkeypatch.setitem(suite_headroom.STUDIES, CROWD, compared)
    return SuiteHeadroomConfig(
        envs=(CROWD,), num_scenes=12, tuning_scenes=8, run_dir=tmp_path / "run", results_dir=tmp_path / "results"
    )


def test_headroom_is_the_difference_on_validation_scenes(few: SuiteHeadroomConfig) -> None:
    result = study(CROWD, few)
    one, other = (result["policies"][result[role]]["value"] for role in ("ceiling", "opponent"))
    assert result["headroom"]["value"] == pytest.approx(one - other)
    assert result["headroom"]["low"] <= result["headroom"]["value"] <= result["headroom"]["high"]
    assert set(result["on_training_scenes"]["opponents"]) == {"coarse_to_fine", "center"}


def test_a_study_goes_on_from_what_is_kept(few: SuiteHeadroomConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    main(few)
    page = few.results_dir / "FashionDistractors-v0.md"
    first, table = page.read_text(), (few.results_dir / "README.md").read_text()
    assert "Headroom: " in first and "FashionDistractors-v0" in table

    def fails(*args: object, **kwargs: object) -> Evaluation:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(kept, "evaluate", fails)
    main(few)
    assert page.read_text() == first


def test_an_unknown_environment_is_refused(few: SuiteHeadroomConfig) -> None:
    with pytest.raises(ValueError, match="no study of CanViT/Nothing-v0; there are: CanViT/FashionSegmentation-v0"):
        main(replace(few, envs=("CanViT/Nothing-v0",)))


def test_evaluations_of_other_environments_are_not_read(tmp_path: Path) -> None:
    env = env_config("CanViT/FashionSegmentation-v0", {"device": "cpu", "split": "test", "num_scenes": 4})
    for one in (env, replace(env, budget=env.budget + 1), replace(env, dataset="fashion-crowd")):
        found = look_of("coarse_to_fine", one, tmp_path, confidence=False).evaluation
        assert found.loss.shape[1] == one.budget and found.record["config"]["dataset"] == one.dataset


def test_stopping(tmp_path: Path) -> None:
    env = env_config("CanViT/FashionClassification-v0", {"device": "cpu", "split": "test", "num_scenes": 8})
    found = look_of("coarse_to_fine", env, tmp_path, confidence=True)
    again = look_of("coarse_to_fine", env, tmp_path, confidence=True)
    confidence = found.signals[CONFIDENCE]
    assert np.array_equal(confidence, again.signals[CONFIDENCE]) and confidence.shape == (8, env.budget)
    assert (stops_at_confidence(found, 0.0) == 1).all() and (stops_at_confidence(found, 1.1) == env.budget).all()
    right = found.evaluation.scene_score()
    stops = stops_when_right(right)
    for scene, stop in enumerate(stops):
        before = right[scene, : stop - 1]
        assert not before.any() and (right[scene, stop - 1] or (stop == 1 and not right[scene].any()))
    paid = stopped_return(right, stops, 0.1)
    assert paid == pytest.approx(right.max(axis=1) - 0.1 * (stops - 1))
