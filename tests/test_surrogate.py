"""What training raises after a warm start, by four measures of the same runs."""

import json
from pathlib import Path

import pytest

from agents import matrix
from canvit_gym.evaluation import Evaluation
from canvit_gym.policies.learned import load_policy
from experiments.studies import surrogate
from experiments.studies.surrogate import BEGUN, ENDED, MEASURES, SurrogateConfig

SEGMENTATION = "CanViT/FashionSegmentation-v0"
HYPER = {
    "n_envs": 4, "n_steps": 4, "batch_size": 16, "n_epochs": 1,
    "warm_start": {"states": 16, "candidates": 2, "epochs": 1},
    "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None},
}  # fmt: skip


def test_four_measures_of_a_run(tmp_path: Path) -> None:
    matrix.main(
        matrix.MatrixConfig(
            tmp_path, algos=("ppo",), envs=(SEGMENTATION,), seeds=(0,), total_timesteps=16, eval_scenes=4,
            test_scenes=4, hyper=json.dumps(HYPER), env_kwargs='{"num_scenes": 12, "device": "cpu"}', progress=False,
        )
    )  # fmt: skip
    config = SurrogateConfig(tmp_path, num_scenes=5, results_dir=tmp_path / "results")
    surrogate.main(config)
    result = json.loads((tmp_path / "results" / "FashionSegmentation-v0.json").read_text())
    assert tuple(result["measures"]) == MEASURES and result["num_scenes"] == 5 and result["decisions"] == [16]
    assert result["reward"] == "soft_score_gain"
    run = tmp_path / "ppo" / "FashionSegmentation-v0" / "seed-0"
    for when in (BEGUN, ENDED):
        policy = load_policy(run / when)
        kept = (tmp_path / "surrogate" / "FashionSegmentation-v0").glob(f"*-{when}-*.npz")
        (found,) = (Evaluation.load(path) for path in kept if not path.name.endswith(".signals.npz"))
        assert result["measures"]["loss"][when]["value"] == pytest.approx(found.loss[:, -1].mean(), rel=1e-5)
        assert result["measures"]["data set's score"][when]["value"] == pytest.approx(found.score()[-1])
        assert policy.record.training["seed"] == 0
    row = result["measures"]["soft score"]
    assert row["difference"]["value"] == pytest.approx(row[ENDED]["value"] - row[BEGUN]["value"])
    with pytest.raises(FileNotFoundError, match="no finished run with a warm start"):
        surrogate.main(SurrogateConfig(tmp_path, envs=("CanViT/FashionCrowd-v0",)))
