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
            total_timesteps=1024,
            warm_start_states=256,
            num_training_scenes=64,
            num_test_scenes=16,
            num_pictures=2,
        )
    )
    return run_dir


def test_results_hold_every_policy_and_glimpse_with_provenance(run_dir: Path) -> None:
    record = json.loads((run_dir / "results.json").read_text())
    assert set(record["miou"]) == {"R-IID", "F-IID", "C2F", "EG-C2F", demo.AGENT, demo.SAMPLED}
    assert all(len(curve) == 5 for metric in ("miou", "cross_entropy") for curve in record[metric].values())
    full_first = {record["miou"][name][0] for name in ("F-IID", "C2F", "EG-C2F", demo.AGENT)}
    assert len(full_first) == 1, "all of them begin with the full scene"
    assert record["peak_gib"] < 4 and record["provenance"]["versions"]["canvit-pytorch"]
    for reference, differences in record["agent_minus"].items():
        for metric, difference in differences.items():
            last = record[metric][demo.AGENT][-1] - record[metric][reference][-1]
            assert np.isclose(difference["value"], last, atol=1e-5), "both of the same scenes after the same glimpse"
            assert difference["low"] <= difference["value"] <= difference["high"]


def test_picture_is_drawn(run_dir: Path) -> None:
    pixels = np.asarray(Image.open(run_dir / "gaze.png").convert("RGB"))
    assert pixels.shape[0] > 200 and pixels.shape[1] > 400 and pixels.std() > 10


def test_policy_is_kept(run_dir: Path) -> None:
    config = replace(load_record(run_dir / "best").env, split="test", num_scenes=16)
    assert load_policy(run_dir / "best", config=config) is not None


def test_comparison_is_paired() -> None:
    """The agent loses exactly 0.1 nats less on every scene: the interval has no width, however scenes vary."""
    rng = np.random.default_rng(0)
    loss = rng.uniform(0, 5, (50, 1)).astype(np.float32)
    counts = rng.integers(1, 9, (50, 1, 2))

    def result(values: np.ndarray) -> Evaluation:
        return Evaluation(
            scene=np.arange(50),
            viewpoints=np.zeros((50, 1, 3), np.float32),
            loss=values,
            counts={"intersection": counts, "union": counts + 2},
            gflops=np.ones(1),
            metric="mIoU",
            seed=0,
            record={"scenes": "fifty scenes"},
        )

    both = demo.compare({demo.AGENT: result(loss - 0.1), "C2F": result(loss)}, reference="C2F")
    loss, miou = (both[metric].at(-1).values() for metric in ("cross_entropy", "miou"))
    assert np.allclose(list(loss), -0.1, atol=1e-5)
    assert list(miou) == [0, 0, 0]
    assert demo.format_difference(both) == "mIoU +0.0 [+0.0, +0.0] points, cross-entropy -0.1000 [-0.1000, -0.1000]"
