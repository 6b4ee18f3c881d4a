"""What a detector knows of the places that are asked for, and windows by it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.algorithms import load_hyperparameters
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.scenes.source import Item
from experiments.studies import knowable
from experiments.studies.knowable import (
    KnowableConfig,
    ReadWindows,
    covered,
    labelled_interest,
    look_around,
    read_interest,
)

SEARCH, CROWD, ODD = (f"CanViT/Fashion{name}-v0" for name in ("Search", "Crowd", "Odd"))


def small(env_id: str) -> EnvConfig:
    config = env_config(env_id, load_hyperparameters(env_id, {}).env_kwargs)
    return replace(config, num_scenes=64, device="cpu")


def test_interest_is_the_goal_or_any_item() -> None:
    shares = torch.rand(2, 3, 4, 4).softmax(dim=1)
    assert torch.equal(labelled_interest({"shares": shares}), 1 - shares[:, 0])
    goals = torch.tensor([2, 1])
    assert torch.equal(labelled_interest({"shares": shares, "goal": goals}), torch.stack([shares[0, 2], shares[1, 1]]))
    assert torch.equal(read_interest({"reading": shares}), 1 - shares[:, 0])
    one_hot = torch.eye(3)[goals]
    torch.testing.assert_close(read_interest({"reading": shares, "goal": one_hot})[0], shares[0, 2])


def test_squares_around_items() -> None:
    quarter = Item(label=0, row=-0.5, col=0.5, scale=0.5)  # the upper right quarter of the scene
    expected = torch.zeros(4, 4)
    expected[:2, 2:] = 1
    assert torch.equal(covered([quarter], 4), expected)
    in_cells = covered([Item(label=0, row=0.0, col=0.0, scale=0.25), quarter], 4)  # a quarter of each middle cell
    assert in_cells[2, 1] == 0.25 and in_cells[1, 2] == 1


def test_windows_by_the_reading_are_the_hand_coded_policy() -> None:
    config = small(SEARCH)
    policy = make_policy(
        f"goal_probability(scale={config.grid_scales}, centers={config.grid_centers})", config=config, num_glimpses=4
    )
    expected = evaluate(policy, config=config)
    table = policy.candidates  # type: ignore[attr-defined]
    found = evaluate(ReadWindows(table, ("reading", "goal")), config=config)
    np.testing.assert_allclose(found.viewpoints, expected.viewpoints, atol=1e-6)


def test_states_are_of_episodes_with_their_labels() -> None:
    states = look_around(small(CROWD), states=64, seed=0, progress=False)
    observations, maps = states.observations, states.interest
    assert len(states) == 64 * 12 == len(observations["canvas"])  # whole episodes
    torch.testing.assert_close(states.read, read_interest(observations), atol=2e-3, rtol=0)
    assert ((maps >= 0) & (maps <= 1)).all() and 0.01 < maps.float().mean() < 0.5
    of_episodes = maps.unflatten(0, (64, 12))
    assert (of_episodes == of_episodes[:, :1]).all()  # the scene stays
    assert (observations["time"].unflatten(0, (64, 12)).diff(dim=1) < 0).all()


@pytest.mark.parametrize("env_id", [SEARCH, ODD])
def test_the_study(tmp_path: Path, env_id: str) -> None:
    config = KnowableConfig(
        envs=(env_id,), states=768, epochs=4, batch_size=32, num_scenes=24, results_dir=tmp_path, progress=False
    )
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
