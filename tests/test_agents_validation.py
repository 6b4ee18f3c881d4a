"""The scenes that policies are chosen by, and the headroom that trainings are held against."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import classification_probe, tiny

from agents import monitor
from agents.settings import TrainConfig
from agents.train import train
from agents.validation import headroom
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy


def test_headroom_is_measured_on_scenes_of_the_evaluation(tmp_path: Path) -> None:
    validation = EnvConfig(
        dataset="image-folder", root=str(tiny("image-folder")), probe=str(classification_probe(3)), workers=0,
        split="validation", device="cpu", budget=2, grid_scales=(0.5,), grid_centers=2,
    )  # fmt: skip
    found = headroom(validation, 3, path=tmp_path / "headroom.json")
    assert found.indices == [2, 6, 10], "of all 12, of which the first four are of one class"
    assert headroom(validation, 3, path=tmp_path / "headroom.json") == found
    floor = evaluate(make_policy("coarse_to_fine", config=validation, num_glimpses=2), config=validation)
    assert floor.on(np.array(found.indices)).score().tolist() == found.floor
    share = found.share(floor)
    leads = np.array(found.ceiling) > np.array(found.floor)
    assert (share[leads] == 0).all() and np.isnan(share[~leads]).all()


def test_pictures_are_of_scenes_that_can_be_read(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(tiny("image-folder"), root)
    min((root / "val").rglob("*.*")).write_bytes(b"rubbish")
    env_kwargs = {
        "root": str(root), "probe": str(classification_probe(3)), "workers": 0, "device": "cpu", "budget": 2,
        "unreadable": "skip",
    }  # fmt: skip
    hyper = {"n_envs": 2, "n_steps": 1, "batch_size": 2, "warm_start": {"states": 0}}
    with pytest.warns(RuntimeWarning, match="left out"):
        result = train(
            TrainConfig(
                tmp_path / "run", env="CanViT/ImageFolder-v0", env_kwargs=json.dumps(env_kwargs),
                hyper=json.dumps(hyper), total_timesteps=2, gaze_scenes=2, progress=False,
            )
        )  # fmt: skip
    assert len(result.evaluations) == 1


@pytest.mark.parametrize(("tuning_scenes", "split"), [(0, "validation"), (3, "tuning")])
def test_policies_are_chosen_by_scenes_that_are_held_out_for_it(
    tuning_scenes: int, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data sets without labelled test scenes report validation scenes, which must not have chosen the policy then."""
    evaluated: list[EnvConfig] = []
    monkeypatch.setattr(
        monitor, "evaluate", lambda policy, config: [evaluated.append(config), evaluate(policy, config=config)][1]
    )
    env_kwargs = {
        "root": str(tiny("image-folder")), "probe": str(classification_probe(3)), "workers": 0, "device": "cpu",
        "budget": 2, "tuning_scenes": tuning_scenes,
    }  # fmt: skip
    hyper = {"n_envs": 2, "n_steps": 1, "batch_size": 2, "warm_start": {"states": 0}}
    train(
        TrainConfig(
            tmp_path / "run", env="CanViT/ImageFolder-v0", env_kwargs=json.dumps(env_kwargs), hyper=json.dumps(hyper),
            total_timesteps=2, gaze_scenes=0, progress=False,
        )
    )  # fmt: skip
    assert [config.split for config in evaluated] == [split]
    assert (tmp_path / "run" / "best").is_dir()
