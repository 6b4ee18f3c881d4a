"""What a detector knows of the places that are asked for, and windows by it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.algorithms import load_hyperparameters
from agents.detection import Detection
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.scenes.prepared import DEFAULT_NUM_SCENES
from experiments.studies import knowable
from experiments.studies.knowable import KnowableConfig, ReadWindows

SEARCH, CROWD, ODD = (f"CanViT/Fashion{name}-v0" for name in ("Search", "Crowd", "Odd"))


def small(env_id: str) -> EnvConfig:
    config = env_config(env_id, load_hyperparameters(env_id, {}).env_kwargs)
    return replace(config, num_scenes=64, device="cpu")


def test_windows_by_the_reading_are_the_hand_coded_policy() -> None:
    config = small(SEARCH)
    policy = make_policy(
        f"goal_probability(scale={config.grid_scales}, centers={config.grid_centers})", config=config, num_glimpses=4
    )
    expected = evaluate(policy, config=config)
    table = policy.candidates  # type: ignore[attr-defined]
    found = evaluate(ReadWindows(table, ("reading", "goal")), config=config)
    np.testing.assert_allclose(found.viewpoints, expected.viewpoints, atol=1e-6)


@pytest.mark.parametrize("env_id", [SEARCH, ODD])
def test_the_study(tmp_path: Path, env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULT_NUM_SCENES, "training", 1024)
    config = KnowableConfig(
        envs=(env_id,), detection=Detection(states=768, epochs=4, batch_size=32), num_scenes=24, results_dir=tmp_path,
        progress=False,
    )  # fmt: skip
    knowable.main(config)
    result = json.loads((tmp_path / f"{env_id[7:]}.json").read_text(encoding="utf-8"))
    entropies = result["cross_entropy"]
    assert entropies["least"] < entropies["detector"] < 0.5 and entropies["least"] < entropies["reading"]
    scores = {name: row["value"] for name, row in result["scores"].items()}
    assert scores["ceiling"] > scores["detector"] > 0.1
    difference = result["differences"]["ceiling minus detector"]
    assert difference["value"] == pytest.approx(scores["ceiling"] - scores["detector"])
    assert result["num_scenes"] == 24 and result["states"] == 768
    assert f"| {env_id[7:]} | 24 |" in (tmp_path / "README.md").read_text(encoding="utf-8")
