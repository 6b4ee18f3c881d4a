"""Behaviour cloning: it comes to look where the oracle does, and its runs resume to the bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_same_policies

from agents.oracle_cloning import learner as oracle_cloning
from agents.oracle_cloning.learner import OracleCloning
from agents.settings import TrainConfig, prepare
from agents.train import train
from canvit_gym.policies.learned import load_policy


def tiny(run_dir: Path, *, states: int = 48, env_kwargs: dict[str, Any] | None = None, **hyper: Any) -> TrainConfig:
    small = {"num_scenes": 14, "device": "cpu", "budget": 3, "grid_centers": 4, "grid_scales": [0.5]}
    options = {
        "n_envs": 8, "candidates": 4, "round_states": 16, "epochs": 2, "batch_size": 8,
        "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "inhibition": None},
    }  # fmt: skip
    return TrainConfig(
        run_dir, algo="oracle_cloning", env_kwargs=json.dumps(small | (env_kwargs or {})),
        hyper=json.dumps(options | hyper), total_timesteps=states, eval_every=16, eval_scenes=4, checkpoint_every=16,
        gaze_scenes=0, progress=False,
    )  # fmt: skip


class Silent:
    def stepped(self, num_decisions: int) -> None: ...

    def between_updates(self) -> None: ...


def test_it_learns_what_the_oracle_prefers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle that likes the top left of every scene."""
    monkeypatch.setattr(
        "agents.tried.gains_of",
        lambda reward, episodes, candidates: np.tile(-candidates[:, :2].sum(axis=1)[:, None], (1, episodes.num)),
    )
    config = tiny(tmp_path / "run", states=256, round_states=64, epochs=8, learning_rate=1e-2)
    learner = OracleCloning(prepare(config))
    learner.begin(progress=False)
    assert learner.learn(256, Silent()) and learner.num_timesteps == 256
    observation = learner.envs.observation_tensors()
    with torch.no_grad():
        chosen = learner.network.eval().distribution(observation).probs.argmax(dim=1)  # type: ignore[operator]
    viewpoints = learner.envs.actions.viewpoints[chosen.numpy()]
    assert viewpoints[:, :2].sum(axis=1).mean() < -0.7  # the best is -1, the mean is 0
    learner.close()


def test_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny(tmp_path / "whole")
    result = train(whole)
    assert not result.interrupted and result.num_timesteps == 48
    broken = replace(whole, run_dir=tmp_path / "broken")
    learn, rounds = oracle_cloning.learn, []

    def interrupt(*args: Any, **options: Any) -> Any:
        rounds.append(1)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        return learn(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(oracle_cloning, "learn", interrupt)
        assert train(broken).interrupted
    assert not train(TrainConfig(broken.run_dir, resume=True, progress=False)).interrupted
    assert_same_policies(whole.run_dir, broken.run_dir)
    assert load_policy(result.last_policy_dir).record.algorithm == "Oracle cloning"


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 viewpoints of a table are tried in every state"):
        prepare(tiny(tmp_path / "run", env_kwargs={"action": "continuous"}))
    with pytest.raises(ValueError, match="99 viewpoints of a table are tried"):
        prepare(tiny(tmp_path / "run", candidates=99))
