"""DIME: gains bounded by the entropy, stops by price and by confidence, runs that resume to the bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_same_policies
from gymnasium import spaces

from agents.dime.learner import Dime
from agents.settings import TrainConfig, prepare
from agents.train import train
from canvit_gym.actions import DiscreteActions, grid_viewpoints
from canvit_gym.policies.learned import load_policy
from canvit_gym.policies.networks import GainNetwork, action_options
from canvit_gym.stopping import stops

ROLLOUT = 16


def tiny(run_dir: Path, *, updates: int = 4, env_kwargs: dict[str, Any] | None = None, **hyper: Any) -> TrainConfig:
    small = {
        "num_scenes": 14,
        "device": "cpu",
        "budget": 3,
        "grid_centers": 4,
        "allow_stop": True,
        "glimpse_cost": 0.01,
    }
    options = {
        "n_envs": 4, "n_steps": 4, "batch_size": 8, "n_epochs": 2, "replay_rollouts": 1,
        "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None},
    }  # fmt: skip
    return TrainConfig(
        run_dir, algo="dime", env_kwargs=json.dumps(small | (env_kwargs or {})), hyper=json.dumps(options | hyper),
        total_timesteps=updates * ROLLOUT, eval_every=2 * ROLLOUT, eval_scenes=4, checkpoint_every=2 * ROLLOUT,
        gaze_scenes=0, progress=False,
    )  # fmt: skip


def gain_network(**options: Any) -> tuple[GainNetwork, dict[str, torch.Tensor]]:
    space = spaces.Dict({"uncertainty": spaces.Box(0, 1, (1, 16, 16)), "time": spaces.Box(0, 1, (1,))})
    actions = DiscreteActions(grid_viewpoints(scales=(0.5,), centers=4), allow_stop=True)
    torch.manual_seed(0)
    network = GainNetwork(space, actions.space, num_classes=11, channels=8, **action_options(actions), **options)
    with torch.no_grad():
        network.actor.get_parameter("action_net.score_maps.weight").mul_(300)
    return network, {"uncertainty": torch.rand(3, 1, 16, 16), "time": torch.ones(3, 1)}


def test_gains_are_bounded_by_the_entropy() -> None:
    network, observation = gain_network()
    gains = network.gains(observation)
    entropy = observation["uncertainty"].mean(dim=(1, 2, 3)) * np.log(11)
    assert gains.shape == (3, 16) and (gains > 0).all() and (gains < entropy[:, None]).all()
    certain = observation | {"uncertainty": torch.zeros(3, 1, 16, 16)}
    assert (network.gains(certain) == 0).all()


def test_it_stops_where_no_gain_is_worth_the_price_or_all_is_certain() -> None:
    network, observation = gain_network(price=0.0)
    best = network.gains(observation).max(dim=1).values.detach()
    assert (network.values(observation).argmax(dim=1) < 16).all()
    network.price = float(best.sort().values[1]) + 1e-6
    assert (network.values(observation).argmax(dim=1) == 16).sum() == 2
    by_confidence, _ = gain_network(confidence=0.3, price=100.0)
    observation["uncertainty"][0] = 0.1
    assert ((by_confidence.values(observation).argmax(dim=1) == 16) == torch.tensor([True, False, False])).all()


def test_what_it_regresses_is_the_drop_in_loss(tmp_path: Path) -> None:
    learner = Dime(prepare(tiny(tmp_path / "run")))
    learner.begin(progress=False)

    class Silent:
        def stepped(self, num_decisions: int) -> None: ...

        def between_updates(self) -> None: ...

    learner._collect(Silent())
    batch = learner.replay.take(torch.arange(ROLLOUT), device=torch.device("cpu"))
    found, wanted = learner.predictions_and_targets(
        batch.observation, batch.actions[:, None], batch.rewards[:, None], batch.depth
    )
    looked = batch.actions < 16
    assert looked.sum() > 0 and len(found) == len(wanted) == looked.sum()
    np.testing.assert_allclose(wanted, batch.rewards[looked] + 0.01, atol=1e-6)
    learner.close()


def test_resumed_equals_uninterrupted_and_a_price_gives_a_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny(tmp_path / "whole")
    result = train(whole)
    broken = replace(whole, run_dir=tmp_path / "broken")
    update = Dime._update

    def interrupt(self: Dime, rate: float) -> None:
        if self.num_timesteps == 3 * ROLLOUT:
            raise KeyboardInterrupt
        update(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Dime, "_update", interrupt)
        assert train(broken).interrupted
    assert not train(TrainConfig(broken.run_dir, resume=True, progress=False)).interrupted
    assert_same_policies(whole.run_dir, broken.run_dir, names=("last",))

    policy = load_policy(result.last_policy_dir)
    assert isinstance(policy.network, GainNetwork) and policy.network.price == 0.01
    validation = replace(policy.record.env, split="validation", num_scenes=6)
    glimpses = []
    for price in (0.0, 0.02, 100.0):
        policy.network.price = price
        glimpses.append(stops(policy, validation).mean_glimpses)
    assert glimpses[0] == 3 and glimpses[-1] == 1 and glimpses == sorted(glimpses, reverse=True)


def test_it_learns_with_stops_by_confidence(tmp_path: Path) -> None:
    assert not train(tiny(tmp_path / "run", updates=2, confidence=0.9)).interrupted


def test_minibatches_of_stops_alone_are_passed_over(tmp_path: Path) -> None:
    """With a price that no gain reaches, all states; with minibatches of one, some."""
    assert not train(tiny(tmp_path / "all", updates=2, greedy=1.0, price=100.0)).interrupted
    assert not train(tiny(tmp_path / "some", updates=2, greedy=0.5, price=100.0, batch_size=1)).interrupted


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"reward": "score_gain"}, "use reward='loss_reduction', not 'score_gain'"),
        ({"observations": ["canvas", "gaze", "time"]}, "add 'uncertainty' to the observations"),
        ({"action": "continuous"}, "the actions are continuous"),
    ]
    for env_kwargs, message in refused:
        with pytest.raises(ValueError, match=message):
            prepare(tiny(tmp_path / "run", env_kwargs=env_kwargs))
