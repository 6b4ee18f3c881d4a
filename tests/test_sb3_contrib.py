"""sb3-contrib on the ids: masks are found on single, stock-vectorized and native environments."""

import json
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SMALL

pytest.importorskip("sb3_contrib")

from sb3_contrib import CrossQ, MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.env_util import make_vec_env

from agents.extractors import FlatSpatialExtractor, FlattenObservations
from canvit_gym.sb3 import make_sb3_env
from examples import train_sb3_contrib

ENV_ID = "CanViT/FashionSegmentation-v0"
ONCE: dict[str, Any] = {**SMALL, "action": "quadtree", "quadtree_levels": 1, "revisit": False}
"""Five tiles, each at most once, and a budget of five: the first glimpse takes one, four actions the others."""


def environments(kind: str) -> Any:
    if kind == "single":
        return gym.make(ENV_ID, **ONCE)
    if kind == "stock":
        return make_vec_env(ENV_ID, 2, env_kwargs=ONCE)
    return make_sb3_env(ENV_ID, 2, **ONCE)


@pytest.mark.parametrize("kind", ["single", "stock", "native"])
def test_masks_are_found_and_kept_to(kind: str) -> None:
    """A masked action is an error of the environment, so that learning at all shows that none is chosen."""
    env = environments(kind)
    env.reset()
    assert is_masking_supported(env)
    masks = np.asarray(get_action_masks(env))
    assert masks.shape == ((5,) if kind == "single" else (2, 5)) and not masks[..., 0].any() and masks[..., 1:].all()
    model = MaskablePPO("MultiInputPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    model.learn(16)


def test_crossq_learns_with_our_extractor() -> None:
    """CrossQ takes no dict observations: they are flattened for it, and unflattened by the extractor."""
    env = FlattenObservations(make_sb3_env(ENV_ID, 2, **SMALL, action="continuous", observation_preset="compact"))
    policy_kwargs = {
        "features_extractor_class": FlatSpatialExtractor,
        "features_extractor_kwargs": {"layout": env.layout, "features_dim": 32},
        "net_arch": [32],
    }
    options: dict[str, Any] = {"buffer_size": 64, "learning_starts": 4, "batch_size": 4, "device": "cpu"}
    model = CrossQ("MlpPolicy", env, policy_kwargs=policy_kwargs, **options)
    before = {name: value.clone() for name, value in model.actor.features_extractor.state_dict().items()}
    model.learn(12)
    after = model.actor.features_extractor.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("algo", ["maskable_ppo", "crossq"])
def test_the_example(algo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"--algo": algo, "--decisions": "128", "--num-envs": "4", "--env-kwargs": json.dumps(SMALL)}
    monkeypatch.setattr("sys.argv", ["train_sb3_contrib", *(word for pair in options.items() for word in pair)])
    train_sb3_contrib.main()
    found = re.search(rf"{algo}: mean return of the last (\d+) episodes [+-]\d\.\d{{4}}", capsys.readouterr().out)
    assert found is not None and int(found[1]) >= 24
