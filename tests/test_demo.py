"""The main job end to end, at a tiny size."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from canvit_gym.evaluation import Evaluation
from canvit_gym.policies.learned import load_policy, load_record
from experiments import demo


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    demo.main(
        demo.DemoConfig(
            run_dir=run_dir,
            total_timesteps=256,
            num_training_scenes=64,
            num_test_scenes=16,
            num_pictures=2,
        )
    )
    return run_dir


def test_results_hold_every_policy_and_glimpse_with_provenance(run_dir: Path) -> None:
    record = json.loads((run_dir / "results.json").read_text())
    assert set(record["score"]) == set(record["cross_entropy"]) and len(record["score"]) == len(demo.OPPONENTS) + 2
    assert all(len(curve) == 5 for name in ("score", "cross_entropy") for curve in record[name].values())
    full_first = {record["score"][name][0] for name in ("F-IID", "C2F", demo.AGENT)}
    assert len(full_first) == 1, "all of them begin with the full scene"
    assert record["peak_gib"] < 4 and record["provenance"]["versions"]["canvit-pytorch"]
    for kind, difference in record["agent_minus_best"].items():
        curves = record["score" if kind == "score" else "cross_entropy"]
        last = curves[demo.AGENT][-1] - curves[record["best_opponent"]][-1]
        assert np.isclose(difference["value"], last, atol=1e-5), "both of the same scenes after the same glimpse"
        assert difference["low"] <= difference["value"] <= difference["high"]


def test_the_gaze_is_drawn_before_and_after_training(run_dir: Path) -> None:
    before, after = (np.asarray(Image.open(run_dir / name).convert("RGB")) for name in ("gaze_before.png", "gaze.png"))
    for pixels in (before, after):
        assert pixels.shape[0] > 200 and pixels.shape[1] > 400 and pixels.std() > 10
    assert before.shape == after.shape and (before != after).any()


def test_policy_is_kept(run_dir: Path) -> None:
    config = replace(load_record(run_dir / "best").env, split="test", num_scenes=16)
    record = load_policy(run_dir / "best", config=config).record
    assert record.env_id == demo.ENV_ID and record.training["num_timesteps"] == 1024  # one update


def test_options_are_checked_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    trained: list[demo.DemoConfig] = []

    def stop(config: demo.DemoConfig) -> Path:
        trained.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "trained_policy", stop)
    with pytest.raises(ValueError, match="num_test_scenes must be an integer >= 1, got 0"):
        demo.main(demo.DemoConfig(num_test_scenes=0))
    with pytest.raises(ValueError, match="num_pictures must be an integer >= 1, got 0"):
        demo.main(demo.DemoConfig(num_pictures=0))
    assert not trained
    with pytest.raises(KeyboardInterrupt):
        demo.main(demo.DemoConfig(run_dir=Path("~/demo")))
    assert trained[0].run_dir == tmp_path / "demo"


def test_comparison_is_paired() -> None:
    """The agent loses exactly 0.1 nats less on every scene: the interval has no width, however scenes vary."""
    rng = np.random.default_rng(0)
    loss = rng.uniform(0, 5, (50, 1)).astype(np.float32)
    rank = rng.integers(0, 9, (50, 1))

    def result(values: np.ndarray) -> Evaluation:
        return Evaluation(
            scene=np.arange(50),
            viewpoints=np.zeros((50, 1, 3), np.float32),
            loss=values,
            counts={"rank": rank},
            gflops=np.ones(1),
            metric="top-1",
            seed=0,
            record={"scenes": "fifty scenes"},
        )

    results = {demo.AGENT: result(loss - 0.1), "C2F": result(loss)}
    both = demo.compare(results, reference="C2F")
    loss, score = (both[name].at(-1).values() for name in ("loss", "score"))
    assert np.allclose(list(loss), -0.1, atol=1e-5)
    assert list(score) == [0, 0, 0]
    shown = demo.format_difference(both, results["C2F"].measure)
    assert shown == "top-1 +0.0 [+0.0, +0.0] points, cross-entropy -0.100 [-0.100, -0.100] nats"
