"""Curves of score against glimpses: one look at every scene, all thresholds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents import matrix
from canvit_gym.command_line import env_config
from canvit_gym.policies.learned import load_policy
from canvit_gym.policies.policy_record import as_trained
from canvit_gym.stopping import stops
from experiments.studies import stop_curves
from experiments.studies.stop_curves import LEARNED, OWN, SURE, Looked, StopCurvesConfig, curve, score_at

STOP = "CanViT/FashionStop-v0"
HYPER = {
    "n_envs": 4, "n_steps": 8, "batch_size": 16, "n_epochs": 1, "total_timesteps": 32,
    "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1},
}  # fmt: skip
FEW_STATES = {"detection": {"states": 64, "epochs": 1}, "stopping": {"states": 64, "epochs": 1}}


def test_thresholds_decide_when_episodes_stop() -> None:
    score = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    readings = np.full((2, 3, 4), 0.25)
    looked = Looked(score, readings, {SURE: np.array([[0.2, 0.6, 0.9], [0.5, 0.4, 0.3]])})
    assert looked.stops(SURE, 0.5).tolist() == [2, 1]
    assert looked.stops(SURE, np.inf).tolist() == [3, 3]
    points = curve(looked, np.array([0.0, 0.5, np.inf]), SURE)
    assert points.tolist() == [[1.0, 0.0], [1.5, 0.5], [3.0, 1.0]]
    assert score_at(points.tolist(), 2.25) == pytest.approx(0.75)


def test_the_study_of_trained_policies(tmp_path: Path) -> None:
    hyper = {key: value for key, value in HYPER.items() if key != "total_timesteps"}
    for algo in ("ppo", "dime"):
        matrix.main(
            matrix.MatrixConfig(
                tmp_path, algos=(algo,), envs=(STOP,), seeds=(0,), total_timesteps=32, eval_scenes=4, test_scenes=4,
                hyper=json.dumps(hyper | (FEW_STATES if algo == "ppo" else {})),
                env_kwargs='{"num_scenes": 12, "device": "cpu"}', progress=False,
            )
        )  # fmt: skip
    config = StopCurvesConfig(
        tmp_path, training_scenes=12, validation_scenes=6, test_scenes=6, results_dir=tmp_path / "results"
    )
    stop_curves.main(config)
    result = json.loads((tmp_path / "results" / "FashionStop-v0.json").read_text())
    opponent = result["rules"][-1]["policy"]
    assert [(row["policy"], row["rule"]) for row in result["rules"]] == [
        *((algo, rule) for algo in ("ppo", "dime") for rule in (OWN, SURE, LEARNED)),
        *((opponent, rule) for rule in (SURE, LEARNED)),
    ]  # fmt: skip
    assert result["rules"][-2]["minus_hand_coded"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (tmp_path / "results" / "FashionStop-v0.png").stat().st_size > 5000
    assert "| dime | stop action |" in (tmp_path / "results" / "FashionStop-v0.md").read_text()
    # At a threshold of 0 the policy stops where it does by itself.
    for algo in ("ppo", "dime"):
        policy = load_policy(tmp_path / algo / "FashionStop-v0" / "seed-0")
        env = as_trained(replace(env_config(STOP, {}), split="test", num_scenes=6), policy.record)
        (looked,) = stop_curves.looks(config, "test")[algo]
        np.testing.assert_array_equal(looked.stops(OWN, 0.0), stops(policy, env).glimpses)
