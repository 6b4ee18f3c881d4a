"""The whole path, small: gym.make, a short PPO training, a benchmark table; on released checkpoints and on folders."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from datasets import tiny

from agents.settings import TrainConfig
from agents.train import train
from canvit_gym.benchmark.runner import BenchmarkConfig, benchmark
from canvit_gym.probes import fit
from canvit_gym.probes.fit import ProbeConfig

HYPER = {
    "n_envs": 2, "n_steps": 1, "batch_size": 2, "n_epochs": 1,
    "policy_kwargs": {"channels": 8, "context_dim": 8, "blocks": 1},
}  # fmt: skip


def fitted_probe(env_id: str, root: Path, directory: Path) -> Path:
    config = ProbeConfig(
        output_dir=directory, env=env_id, root=root, steps=4, batch_size=4, num_glimpses=2, validate_every=2,
        env_kwargs='{"workers": 0}', device="cpu",
    )  # fmt: skip
    fit.main(config)
    return directory


def keywords(env_id: str, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a user would pass: the root, and the probe of a folder or the canvas of a released checkpoint."""
    if env_id == "CanViT/ADE20K-v0":
        request.getfixturevalue("hub_root")
        return {"root": str(tiny("ade20k")), "canvas_grid": 8}
    if env_id == "CanViT/ImageNet1k-v0":
        request.getfixturevalue("hub_root")
        return {"root": str(tiny("imagenet1k")), "canvas_grid": 8, "checkpoint": "finetuned-in1k", "num_scenes": 6}
    root = tiny("image-folder" if "Image" in env_id else "segmentation-folder")
    return {"root": str(root), "probe": str(fitted_probe(env_id, root, tmp_path / "probe"))}


@pytest.mark.parametrize(
    "env_id",
    ["CanViT/ADE20K-v0", "CanViT/ImageNet1k-v0", "CanViT/ImageFolder-v0", "CanViT/SegmentationFolder-v0"],
)
def test_from_gym_make_to_a_benchmark(env_id: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given = {**keywords(env_id, tmp_path, request), "device": "cpu", "workers": 0}
    env = gym.make(env_id, **given)
    _, info = env.reset(seed=0)
    assert np.isfinite(info["loss"])
    env.close()

    short = json.dumps({**given, "budget": 2, "grid_centers": 4})
    run = train(
        TrainConfig(
            tmp_path / "run",
            env=env_id,
            env_kwargs=short,
            hyper=json.dumps(HYPER),
            total_timesteps=4,
            eval_every=4,
            eval_scenes=1,
            progress=False,
        )
    )
    assert run.num_timesteps == 4 and len(run.evaluations) == 1

    benchmark(
        BenchmarkConfig(
            output=tmp_path / "benchmark",
            env=env_id,
            env_kwargs=json.dumps(given),
            policies=("coarse_to_fine", str(run.best_policy_dir)),
            budget=2,
            seeds=1,
            split="validation",
            num_scenes=2,
            device="cpu",
            progress=False,
        )
    )
    table = (tmp_path / "benchmark" / "results.md").read_text()
    assert "C2F" in table and "best" in table
    manifest = json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())
    assert any(entry["kind"] == "checkpoint" for entry in manifest["provenance"]["loaded"])
