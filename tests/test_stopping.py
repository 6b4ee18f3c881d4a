"""Where agents with a stop action stop, and what the reading is worth there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Categorical
from untrained import save_untrained

from agents.settings import TrainConfig
from agents.train import train
from agents.train_once import complete
from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies.learned import LearnedPolicy, load_policy
from canvit_gym.stopping import StopRecorder, own_stop, stops
from experiments.studies.stopping import StoppingConfig, interpolated, row, run_one, study

HYPER: dict[str, Any] = {
    "n_envs": 4, "n_steps": 4, "batch_size": 8, "n_epochs": 1,
    "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None}, "warm_start": {"states": 0},
}  # fmt: skip


def tiny(tmp_path: Path) -> StoppingConfig:
    return StoppingConfig(
        costs=(0.0, 0.01), seeds=1, decisions=16, eval_scenes=6, hyper=json.dumps(HYPER),
        env_kwargs=json.dumps({"num_scenes": 14, "device": "cpu", "budget": 3, "grid_centers": 4}),
        runs_dir=tmp_path / "runs", results_dir=tmp_path / "results", progress=False,
    )  # fmt: skip


def test_stops_are_where_the_agent_wants_to(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    assert run_one(config, 0.01, 0) is not None
    policy = load_policy(next(tmp_path.rglob("last")))
    assert policy.record.env.allow_stop
    validation = replace(policy.record.env, split="validation", num_scenes=6)
    bias = policy.network.get_parameter("action_net.scale_bias.bias")
    for change, expected in ((100.0, 1), (-200.0, 3)):
        with torch.no_grad():
            bias[-1] += change
        found = stops(policy, validation)
        assert (found.glimpses == expected).all() and found.mean_glimpses == expected
        np.testing.assert_allclose(found.score(), found.evaluation.score()[expected - 1])
        np.testing.assert_allclose(found.loss(), found.evaluation.mean_loss()[expected - 1], rtol=1e-6)
    mixed = replace(found, glimpses=np.array([1, 3, 2, 3, 1, 1]))
    losses = found.evaluation.loss
    expected_loss = np.mean([losses[0, 0], losses[1, 2], losses[2, 1], losses[3, 2], losses[4, 0], losses[5, 0]])
    np.testing.assert_allclose(mixed.loss(), expected_loss, rtol=1e-6)


def test_continuous_agents_stop_too(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    env_kwargs = json.loads(config.env_kwargs) | {"action": "continuous", "allow_stop": True}
    run = TrainConfig(
        tmp_path / "run", env_kwargs=json.dumps(env_kwargs), hyper=config.hyper, total_timesteps=16, eval_every=0,
        progress=False,
    )  # fmt: skip
    train(run)
    policy = load_policy(tmp_path / "run" / "last")
    validation = replace(policy.record.env, split="validation", num_scenes=6)
    bias = policy.network.get_parameter("action_net.output.bias")
    for change, expected in ((100.0, 1), (-200.0, 3)):  # the fourth number above 0 stops
        with torch.no_grad():
            bias[3] += change
        assert (stops(policy, validation).glimpses == expected).all()


class FixedPreferences(nn.Module):
    """Logits [A] that do not depend on what is seen."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def distribution(self, observation: dict[str, torch.Tensor]) -> Categorical:
        return Categorical(logits=self.logits.expand(len(observation["time"]), -1))


def policy_that_prefers(directory: Path, config: EnvConfig, logits: list[float]) -> LearnedPolicy:
    record = load_policy(save_untrained(directory, config)).record
    return LearnedPolicy(FixedPreferences(logits), record)


TABLE = EnvConfig(
    split="validation", num_scenes=40, device="cpu", budget=4, grid_scales=(0.5,), grid_centers=2, allow_stop=True,
    revisit=False,
)  # fmt: skip


def test_forbidden_viewpoints_do_not_compete_with_a_stop(tmp_path: Path) -> None:
    """It looks at the viewpoint that it prefers to a stop, which is then forbidden, and so it stops."""
    policy = policy_that_prefers(tmp_path, TABLE, [5.0, 0.0, 0.0, 0.0, 1.5])
    assert (stops(policy, TABLE).glimpses == 2).all()
    assert (stops(policy, replace(TABLE, revisit=True)).glimpses == 4).all()


def test_stops_where_that_is_more_likely_than_going_on(tmp_path: Path) -> None:
    """A stop has e times the weight of a viewpoint, of which there are 4, then 3, then 2."""
    policy = policy_that_prefers(tmp_path, TABLE, [0.0, 0.1, 0.0, 0.0, 1.0])
    found = stops(policy, TABLE)
    assert (found.glimpses == 3).all()
    assert (found.evaluation.viewpoints[:, 1] == build_actions(TABLE).viewpoints[1]).all()
    observation = {key: torch.zeros(1, *(box.shape or ())) for key, box in policy.observation_space.items()}
    assert policy.act(observation).tolist() == [1]
    assert policy.predict(observation, action_masks=np.array([[False, False, True, True, True]]))[0].tolist() == [4]


def test_sampled_stops_are_a_function_of_seed_and_scene(tmp_path: Path) -> None:
    policy = policy_that_prefers(tmp_path, TABLE, [0.0, 0.0, 0.0, 0.0, 0.5]).sampling()

    def found(*, batch_size: int, seed: int = 0) -> tuple[list[int], list[list[float]]]:
        recorder = StopRecorder(own_stop(policy, TABLE))
        seen = evaluate(policy, config=TABLE, batch_size=batch_size, seed=seed, on_glimpse=recorder)
        return recorder.glimpses().tolist(), seen.viewpoints[:, 1].tolist()

    taken, first = found(batch_size=40)
    assert found(batch_size=7) == (taken, first) and found(batch_size=40, seed=1)[0] != taken
    # A stop has 1.65 of the weight of a viewpoint, of which 4, then 3, then 2 are left.
    assert 0.1 < np.mean(np.array(taken) == 1) < 0.5 and set(taken) == {1, 2, 3, 4}
    # Apart from where it looks if it goes on: those that do not stop look everywhere.
    assert len({tuple(viewpoint) for viewpoint, t in zip(first, taken, strict=True) if t > 1}) == 4


def test_sampled_stops_of_continuous_actions(tmp_path: Path) -> None:
    config = EnvConfig(split="validation", num_scenes=12, device="cpu", budget=3, action="continuous", allow_stop=True)
    policy = load_policy(save_untrained(tmp_path, config), deterministic=False)
    taken = stops(policy, config).glimpses
    assert set(taken.tolist()) >= {1, 2}  # a Gaussian around nought
    np.testing.assert_array_equal(stops(policy, config).glimpses, taken)
    assert not np.array_equal(stops(policy, config, seed=1).glimpses, taken)


def test_a_study_does_not_take_runs_of_another_length_or_seed(tmp_path: Path) -> None:
    run = TrainConfig(
        tmp_path / "run", env_kwargs=tiny(tmp_path).env_kwargs, hyper=json.dumps(HYPER), total_timesteps=16,
        eval_every=0, progress=False,
    )  # fmt: skip
    assert complete(run) and complete(run)
    for change, name in (({"total_timesteps": 32}, "total_timesteps"), ({"seed": 7}, "seed")):
        with pytest.raises(ValueError, match=rf"other settings \({name}\)"):
            complete(replace(run, **change))


def test_the_study_is_resumable_and_reported(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    assert study(config)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("policy.safetensors")}
    assert study(config)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("policy.safetensors")}
    result = json.loads((tmp_path / "results" / "FashionSegmentation-v0.json").read_text())
    assert [(run["cost"], run["mean_glimpses"] <= 3) for run in result["runs"]] == [(0.0, True), (0.01, True)]
    assert result["curve"][0]["mean_glimpses"] == 3  # without a stop action
    assert "| 0.01 |" in (tmp_path / "results" / "FashionSegmentation-v0.md").read_text()
    with Image.open(tmp_path / "results" / "FashionSegmentation-v0.png") as picture:
        assert picture.width > picture.height > 300


def test_stops_are_held_against_the_same_agents_fixed_budgets(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    one = run_one(config, 0.01, 0)
    assert one is not None
    taken = np.array([1, 3, 2, 3, 1, 2])  # two on average
    found = [replace(one, glimpses=taken), replace(one, glimpses=taken[::-1])]
    told = row(0.01, found, found[:1])
    assert told["mean_glimpses"] == 2
    at_stop, fixed = np.mean([each.score() for each in found]), one.evaluation.score()[1]
    np.testing.assert_allclose(told["score"]["value"], at_stop, rtol=1e-6)
    np.testing.assert_allclose([told["fixed_budget_score"]["value"], told["reference_score"]], fixed, rtol=1e-6)
    np.testing.assert_allclose(told["difference"]["value"], at_stop - fixed, atol=1e-7)
    assert told["difference"]["low"] <= told["difference"]["value"] <= told["difference"]["high"]

    # Who stops at the same glimpse everywhere is the fixed budget, in every resample.
    always = row(0.01, [replace(one, glimpses=np.full(6, 2))], [])
    assert all(abs(value) < 1e-7 for value in always["difference"].values()) and "reference_score" not in always


def test_curves_are_interpolated() -> None:
    curves = np.array([[0.1, 0.3], [0.2, 0.2]])
    np.testing.assert_allclose(interpolated(curves, np.array([1.5, 2.0])), [0.2, 0.2])
