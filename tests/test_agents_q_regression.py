"""Viewpoint-Q: what it predicts, that it finds what pays, and that its runs resume to the bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import assert_same_policies
from gymnasium import spaces

from agents.learner import Monitoring
from agents.q_regression.learner import LEAST_PRIOR_WEIGHT, QRegression
from agents.q_regression.replay import Replay
from agents.settings import TrainConfig, prepare
from agents.train import train
from agents.training_state import load_state
from agents.tried import TriedViewpoints
from canvit_gym.actions import DiscreteActions, grid_viewpoints
from canvit_gym.evaluation import evaluate
from canvit_gym.policies.heads import TableHead
from canvit_gym.policies.learned import load_policy
from canvit_gym.policies.networks import ViewpointQNetwork, action_options
from canvit_gym.sb3 import GlimpseVecEnv

ROLLOUT = 16


def tiny(run_dir: Path, *, updates: int = 5, env_kwargs: dict[str, Any] | None = None, **hyper: Any) -> TrainConfig:
    small = {"num_scenes": 14, "device": "cpu", "budget": 3, "grid_centers": 4}
    options = {
        "n_envs": 4, "n_steps": 4, "batch_size": 8, "n_epochs": 2,
        "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None},
    }  # fmt: skip
    return TrainConfig(
        run_dir, algo="q_regression", env_kwargs=json.dumps(small | (env_kwargs or {})),
        hyper=json.dumps(options | hyper), total_timesteps=updates * ROLLOUT, eval_every=2 * ROLLOUT, eval_scenes=4,
        checkpoint_every=2 * ROLLOUT, gaze_scenes=0, progress=False,
    )  # fmt: skip


def q_network(**options: Any) -> tuple[ViewpointQNetwork, dict[str, torch.Tensor]]:
    space = spaces.Dict({"uncertainty": spaces.Box(0, 1, (1, 16, 16)), "gaze": spaces.Box(-1, 1, (24,))})
    actions = DiscreteActions(grid_viewpoints(scales=(0.5, 0.25), centers=4), allow_stop=True)
    torch.manual_seed(0)
    network = ViewpointQNetwork(space, actions.space, **action_options(actions), channels=8, **options)
    return network, {key: torch.rand(3, *(box.shape or ())) for key, box in space.items()}


def test_values_are_a_mean_and_advantages_of_mean_zero() -> None:
    network, observation = q_network()
    values = network.values(observation)
    assert values.shape == (3, 33)  # stop is the last
    state_value = network.dueling.value_net(network.dueling.features(observation))
    torch.testing.assert_close(values.mean(dim=1, keepdim=True), state_value)


def test_masked_viewpoints_have_no_value_and_are_predicted_still() -> None:
    network, observation = q_network(inhibition=0.0)
    table = grid_viewpoints(scales=(0.5, 0.25), centers=4)
    observation["gaze"] = torch.zeros(3, 24)
    observation["gaze"][:, :3] = torch.from_numpy(table[5])
    values = network.values(observation)
    assert (values[:, 5] == -torch.inf).all() and values[:, torch.arange(33) != 5].isfinite().all()
    assert network.q_values(observation).isfinite().all()


def test_continuous_actions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the actions are continuous: use action='grid' or 'quadtree'"):
        prepare(tiny(tmp_path / "run", env_kwargs={"action": "continuous"}))
    with pytest.raises(ValueError, match=r"greedy must be a finite number in \[0, 1\], got 2"):
        prepare(tiny(tmp_path / "run", greedy=2))


def test_the_replay_keeps_the_last_rollouts() -> None:
    replay = Replay(num_rollouts=2, rows=4)
    for step in range(5):  # two environments: two and a half rollouts
        numbers = torch.tensor([2 * step, 2 * step + 1])
        replay.add({"time": numbers[:, None].float()}, numbers, numbers % 2, numbers.float())
    assert len(replay) == 8
    taken = replay.take(torch.arange(8), device=torch.device("cpu"))
    assert sorted(taken.actions.tolist()) == list(range(2, 10))
    assert torch.equal(taken.observation["time"][:, 0], taken.rewards)
    other = Replay(num_rollouts=2, rows=4)
    other.load_state_dict(replay.state_dict(), device=torch.device("cpu"))
    assert torch.equal(other.take(torch.arange(8), device=torch.device("cpu")).actions, taken.actions)


def test_what_is_kept_returns_to_its_device() -> None:
    """Saved states are read on the host."""
    state = {"at": 1, "full": False, "observation": {"time": torch.zeros(4, 1)}}
    state |= {name: torch.zeros(4) for name in ("actions", "depth", "rewards")}
    replay, meta = Replay(num_rollouts=1, rows=4), torch.device("meta")
    replay.load_state_dict(state, device=meta)
    kept = replay.state_dict()
    assert kept["observation"]["time"].device == meta and kept["rewards"].device == torch.device("cpu")
    numbers = torch.zeros(4, 2)
    tried = TriedViewpoints({"time": torch.zeros(4, 1)}, chosen=numbers.long(), gains=numbers, rewards=numbers)
    restored = TriedViewpoints.from_state_dict(tried.state_dict(), device=meta)
    assert restored.observations["time"].device == meta and restored.gains is numbers


class Silent(Monitoring):
    def stepped(self, num_decisions: int) -> None: ...

    def between_updates(self) -> None: ...


def test_it_finds_the_viewpoint_that_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One viewpoint of sixteen pays more than the others, whatever the scene; all later rewards are smaller."""
    step_wait = GlimpseVecEnv.step_wait

    def paying(self: GlimpseVecEnv) -> Any:
        before = self.glimpse_envs.episodes.glimpses.copy()
        observation, _, dones, infos = step_wait(self)
        return observation, ((self.actions == 6) / before).astype(np.float32), dones, infos

    monkeypatch.setattr(GlimpseVecEnv, "step_wait", paying)
    kwargs = {"grid_scales": [0.5], "observations": ["acuity", "time"]}
    options = {"network": "conv", "channels": 8, "context_dim": 16, "blocks": 1, "inhibition": None, "prior": None}
    config = tiny(
        tmp_path / "run", env_kwargs=kwargs, n_envs=8, n_steps=8, batch_size=64, n_epochs=4,
        learning_rate=1e-2, policy_kwargs=options,
    )  # fmt: skip
    learner = QRegression(prepare(config))
    learner.begin(progress=False)
    assert learner.learn(1024, Silent())
    best = learner.network.values({"acuity": torch.ones(1, 1, 16, 16), "time": torch.ones(1, 1)}).argmax().item()
    assert best == 6
    learner.close()


@pytest.mark.parametrize("initial", [2.0, 0.0])
def test_a_prior_gets_the_weight_that_predicts_the_first_rewards(initial: float, tmp_path: Path) -> None:
    options = {"network": "conv", "channels": 8, "context_dim": 16, "blocks": 1, "prior": "uncertainty"}
    options["prior_weight"] = initial
    learner = QRegression(prepare(tiny(tmp_path / "run", policy_kwargs=options)))
    learner.begin(progress=False)
    learner._collect(Silent())
    network = cast(ViewpointQNetwork, learner.network).dueling
    prior = cast(TableHead, network.action_net).prior
    batch = learner.replay.take(torch.arange(ROLLOUT), device=learner.device)
    assert prior is not None
    with torch.no_grad():
        features = network.features(batch.observation)
        assert features.amounts is not None and features.acuity is not None
        worth = prior.worths(features.amounts, features.acuity).gather(1, batch.actions[:, None])[:, 0]
    learner.moments.mean[:], learner.moments.squares[:] = 0, learner.moments.count  # targets are the rewards
    for slope, weight in ((0.3, 0.3), (-0.3, LEAST_PRIOR_WEIGHT)):
        learner.replay._rewards[:ROLLOUT] = 0.1 + slope * worth
        learner._fit_prior()
        assert prior.weight.item() == pytest.approx(weight, rel=1e-3)
    learner.close()


def test_only_the_first_rollout_sets_the_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []
    monkeypatch.setattr(QRegression, "_fit_prior", lambda self: fitted.append(self.num_timesteps))
    config = replace(tiny(tmp_path / "run"), eval_every=0)
    train(config)
    train(replace(config, total_timesteps=7 * ROLLOUT, resume=True))
    assert fitted == [ROLLOUT]


def assert_same_runs(a: Path, b: Path) -> None:
    assert_same_policies(a, b)
    results = [json.loads((run / "result.json").read_text())["evaluations"] for run in (a, b)]
    assert results[0] == results[1]


def test_what_the_environment_forbids_is_not_chosen(tmp_path: Path) -> None:
    """With revisit=False it would raise."""
    config = tiny(
        tmp_path / "run", env_kwargs={"revisit": False, "grid_centers": 2, "grid_scales": [0.5], "budget": 4}, n_steps=3
    )
    assert not train(replace(config, eval_every=0)).interrupted


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_values_that_are_not_finite_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Those of masked viewpoints, -inf, do not."""
    learner = QRegression(prepare(tiny(tmp_path / "run")))
    learner.begin(progress=False)
    given = torch.zeros(4, 32)
    given[:, 3] = -torch.inf
    monkeypatch.setattr(ViewpointQNetwork, "values", lambda self, observation: given.clone())
    observation = learner._observation
    assert (learner._choose(observation) != 3).all()
    given[0, 5] = value
    with pytest.raises(FloatingPointError, match="the network's values"):
        learner._choose(observation)
    learner.close()


KINDS: dict[str, dict[str, Any]] = {
    "whole episodes": {"replay_rollouts": 1},
    "replay": {"replay_rollouts": 3},
    "stop": {"env_kwargs": {"allow_stop": True, "glimpse_cost": 0.01}, "replay_rollouts": 2},
    "search": {"replay_rollouts": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    env = "CanViT/FashionSearch-v0" if kind == "search" else None
    whole = replace(tiny(tmp_path / "whole", **KINDS[kind]), env=env)
    result = train(whole)
    assert not result.interrupted and result.num_timesteps == 5 * ROLLOUT
    broken = replace(whole, run_dir=tmp_path / "broken")
    update = QRegression._update

    def interrupt(self: QRegression, rate: float) -> None:
        if self.num_timesteps == 4 * ROLLOUT:
            raise KeyboardInterrupt
        update(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(QRegression, "_update", interrupt)
        assert train(broken).interrupted
    at = load_state(broken.run_dir / "training_state.pt")["num_timesteps"]
    assert (
        at == (3 if KINDS[kind]["replay_rollouts"] == 1 else 2) * ROLLOUT
    )  # large states are written where asked for alone
    assert not train(TrainConfig(broken.run_dir, resume=True, progress=False)).interrupted
    assert_same_runs(whole.run_dir, broken.run_dir)


def test_its_policies_are_evaluated_without_it(tmp_path: Path) -> None:
    result = train(tiny(tmp_path / "run", updates=2))
    policy = load_policy(result.last_policy_dir)
    assert policy.record.algorithm == "Q-regression" and policy.record.network_class == "ViewpointQNetwork"
    assert policy.info.description.endswith("viewpoint of highest value")
    validation = replace(policy.record.env, split="validation", num_scenes=4)
    np.testing.assert_array_equal(evaluate(policy, config=validation).mean_loss(), result.evaluations[-1]["loss"])
    with pytest.raises(ValueError, match="was begun with algo='q_regression', not 'ppo'"):
        train(TrainConfig(tmp_path / "run", algo="ppo", resume=True, total_timesteps=96))
