"""When to stop, learned from episodes before reinforcement learning begins."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents.algorithms import load_hyperparameters
from agents.settings import TrainConfig
from agents.train import train
from agents.when_to_stop import (
    Episodes,
    Stopping,
    gained_by_stopping,
    learn_when_to_stop,
    train_when_to_stop,
    whole_episodes,
    worth_of_stopping,
)
from canvit_gym.actions import DiscreteActions
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.policies.learned import load_policy
from canvit_gym.policies.networks import GainNetwork, ViewpointNetwork, ViewpointQNetwork, action_options
from canvit_gym.policies.when_to_stop import WorthOfStopping
from canvit_gym.stopping import stops
from canvit_gym.vector_env import GlimpseVectorEnv

STOP = "CanViT/FashionStop-v0"
PRICE = 0.1
SMALL: dict[str, Any] = {"channels": 8, "context_dim": 16, "blocks": 1}
HYPER = {
    "n_envs": 4, "n_steps": 8, "batch_size": 16, "n_epochs": 1, "policy_kwargs": SMALL,
    "detection": {"states": 64, "epochs": 1}, "stopping": {"states": 64, "epochs": 2},
}  # fmt: skip


def config() -> EnvConfig:
    return replace(env_config(STOP, load_hyperparameters(STOP, {}).env_kwargs), num_scenes=64, device="cpu")


def with_stop() -> tuple[ViewpointNetwork, GlimpseVectorEnv]:
    envs = GlimpseVectorEnv(8, **vars(config()))
    assert isinstance(envs.actions, DiscreteActions)
    torch.manual_seed(0)
    given = {**SMALL, "network": "window", "inhibition": 0.06, "learned_stop": True}
    network = ViewpointNetwork(
        envs.single_observation_space, envs.single_action_space, **given, **action_options(envs.actions)  # type: ignore[arg-type]
    )  # fmt: skip
    return network, envs


def paid(worth: NDArray[np.float64], score: NDArray[np.float64]) -> NDArray[np.float64]:
    stops = (worth >= 0).argmax(axis=1)
    return score[np.arange(len(stops)), stops] - PRICE * stops


def episodes(num: int, *, seed: int) -> Episodes:
    """Three glimpses. Half of the scenes show by an even reading that the second glimpse will be right and all others
    wrong; the others are read rightly from the first one on."""
    hard = np.random.default_rng(seed).random(num) < 0.5
    sure, even = np.array([0.9, 0.05, 0.05]), np.array([0.34, 0.33, 0.33])
    readings = np.where(hard[:, None, None], np.stack([even, sure, even]), np.stack([sure, sure, sure]))
    score = np.where(hard[:, None], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0])
    return Episodes(torch.from_numpy(readings).float(), score)


def learned(given: Episodes, *, seed: int = 0) -> WorthOfStopping:
    torch.manual_seed(seed)
    network = WorthOfStopping(given.reading.shape[2])
    train_when_to_stop(network, given, Stopping(batch_size=64), price=PRICE)
    return network


def test_what_stopping_gains_depends_on_the_decisions_that_follow() -> None:
    score = np.array([[0.0, 1.0, 0.0, 0.0]])
    never = gained_by_stopping(score, np.zeros((1, 3), dtype=bool), price=PRICE)
    np.testing.assert_allclose(never, [[0 + 3 * PRICE, 1 + 2 * PRICE, PRICE]])
    at_second = gained_by_stopping(score, np.array([[False, True, False]]), price=PRICE)
    np.testing.assert_allclose(at_second, [[0 - (1 - PRICE), 1 + 2 * PRICE, PRICE]])


def test_stops_where_it_pays_most() -> None:
    network = learned(episodes(2000, seed=0))
    new = episodes(500, seed=1)
    worth = worth_of_stopping(network, new)
    best = (new.score - PRICE * np.arange(3)).max(axis=1)
    np.testing.assert_allclose(paid(worth, new.score), best)
    hard = new.score[:, 0] == 0
    np.testing.assert_allclose(worth[hard, 0], -1 + PRICE, atol=0.1)  # going on to the second glimpse, which is right
    np.testing.assert_allclose(worth[~hard, 0], PRICE, atol=0.1)
    assert (worth[:, -1] == np.inf).all()
    assert float(network.spread) == pytest.approx(float(network.worth(new.states()).detach().std()), rel=0.1)


def test_nothing_to_learn_from_what_does_not_tell() -> None:
    """The same reading everywhere, right in half of the scenes from the start: going on costs its price."""
    score = np.repeat(np.random.default_rng(0).random(2000) < 0.5, 4).reshape(2000, 4).astype(float)
    same = Episodes(torch.full((2000, 4, 3), 1 / 3), score)
    np.testing.assert_allclose(worth_of_stopping(learned(same), same)[:, :-1], PRICE, atol=0.05)


def test_repeatable() -> None:
    given = episodes(200, seed=0)
    one, other = (worth_of_stopping(learned(given, seed=3), given) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_states_are_those_that_the_environment_observes() -> None:
    network, envs = with_stop()
    envs.close()
    found = whole_episodes(config(), network, states=64, seed=0)
    assert found.reading.shape == (64, 9, 10) and found.score.shape == (64, 9)
    torch.testing.assert_close(found.reading.sum(dim=2), torch.ones(64, 9))
    assert set(np.unique(found.score)) == {0.0, 1.0}
    envs = GlimpseVectorEnv(64, **vars(config()))
    envs.reset(seed=0)
    for _ in range(3):
        envs.step(np.zeros(64, dtype=np.int64))
    assert found.states()["time"].reshape(64, 8)[:, 3].numpy() == pytest.approx(
        envs.observation_tensors()["time"][:, 0].numpy()
    )
    envs.close()


def test_the_odds_of_stopping_do_not_depend_on_viewpoints() -> None:
    network, envs = with_stop()
    observation, _ = envs.reset(seed=0)
    given = {key: torch.from_numpy(value) for key, value in observation.items()}
    features = network.features(given)
    head = network.action_net
    assert features.stopping is not None and head.stop_weight is not None  # type: ignore[union-attr]
    expected = torch.sigmoid(head.unmasked(features)[:, -1] + head.stop_weight * features.stopping)  # type: ignore[union-attr, operator]
    before = network.distribution(given).probs  # type: ignore[attr-defined]
    torch.testing.assert_close(before[:, -1], expected)
    with torch.no_grad():
        head.score_maps.weight.mul_(1000)  # type: ignore[union-attr]
    after = network.distribution(given).probs  # type: ignore[attr-defined]
    torch.testing.assert_close(after[:, -1], expected)
    assert (after[:, :-1].amax(dim=1) > 2 * before[:, :-1].amax(dim=1)).all()
    envs.close()


def test_only_the_stage_changes_it() -> None:
    network, envs = with_stop()
    envs.close()
    others = {name: value.clone() for name, value in network.state_dict().items() if "when_to_stop" not in name}
    state = torch.get_rng_state()
    options = Stopping(states=512, epochs=4)
    (found,) = learn_when_to_stop(network, config(), options, seed=0, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert found["states"] == 512 and found["stopping_pays"] > found["going_on_pays"] and 1 <= found["glimpses"] < 9
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in others.items())
    observation = {key: torch.rand(4, *space.shape) for key, space in envs.single_observation_space.items()}  # type: ignore[union-attr]
    network.distribution(observation).log_prob(torch.tensor([0, 1, 2, 576])).sum().backward()  # type: ignore[union-attr]
    stage = network.features_extractor.when_to_stop
    assert stage is not None and all(parameter.grad is None for parameter in stage.parameters())
    assert network.action_net.stop_weight.grad is not None  # type: ignore[union-attr]


def test_ppo_begins_with_it(tmp_path: Path) -> None:
    env_kwargs = {"num_scenes": 64, "device": "cpu"}
    whole = train(
        TrainConfig(
            tmp_path / "whole", env=STOP, total_timesteps=64, eval_every=32, eval_scenes=8, hyper=json.dumps(HYPER),
            env_kwargs=json.dumps(env_kwargs), progress=False,
        )
    )  # fmt: skip
    result = json.loads((whole.run_dir / "result.json").read_text())
    assert [set(stage) >= {"states"} for stage in result["warm_start"]] == [True, True]
    assert result["warm_start"][1]["states"] == 512  # a batch of 64 episodes
    policy = load_policy(whole.last_policy_dir)
    assert isinstance(policy.network, ViewpointNetwork) and policy.network.features_extractor.when_to_stop is not None
    found = stops(policy, replace(config(), split="validation", num_scenes=8))
    assert found.glimpses.shape == (8,) and found.glimpses.min() >= 1


@pytest.mark.parametrize(
    ("hyper", "env_kwargs", "message"),
    [
        ({"policy_kwargs": {"learned_stop": False}}, {}, None),
        ({"policy_kwargs": {"learned_stop": False}, "stopping": {"states": 64}}, {}, "stop that is not learned"),
        ({"stopping": {"states": 0}}, {}, "stopping states"),
        ({"stopping": {"state": 1}}, {}, "unknown stopping options state"),
        ({"stopping": {"learning_rate": 0}}, {}, "learning_rate"),
        ({"warm_start": {"states": 64}}, {}, "a warm start scores a stop like a viewpoint"),
        ({"policy_kwargs": {"learned_stop": "yes"}}, {}, "learned_stop"),
        ({}, {"allow_stop": False}, "learned_stop is about a stop action"),
        ({}, {"first_glimpse": None}, "before its first glimpse"),
    ],
)
def test_options_that_do_not_fit(hyper: dict[str, Any], env_kwargs: dict[str, Any], message: str | None) -> None:
    def check() -> None:
        found = load_hyperparameters(STOP, hyper)
        found.check_fit(env_config(STOP, found.env_kwargs | env_kwargs))

    if message is None:
        check()
        return
    with pytest.raises(ValueError, match=message):
        check()


def test_networks_that_it_does_not_fit() -> None:
    _, envs = with_stop()
    space, actions, own = envs.single_observation_space, envs.single_action_space, action_options(envs.actions)
    for kind in (ViewpointQNetwork, lambda *spaces, **options: GainNetwork(*spaces, num_classes=10, **options)):
        with pytest.raises(ValueError, match="gives it a value"):
            kind(space, actions, learned_stop=True, **own)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is none of"):
        ViewpointNetwork(
            space, type(actions)(actions.n - 1), learned_stop=True, **own | {"allow_stop": False}  # type: ignore[arg-type, union-attr]
        )  # fmt: skip
    without = type(space)({key: box for key, box in space.items() if key != "reading"})  # type: ignore[union-attr, arg-type]
    with pytest.raises(ValueError, match="needs `time` and a `reading`"):
        ViewpointNetwork(without, actions, learned_stop=True, **own)  # type: ignore[arg-type]
    envs.close()


def test_glimpses_of_all_stages_are_counted() -> None:
    hyper = load_hyperparameters(STOP, {"detection": {"states": 100}, "stopping": {"states": 1000}})
    assert hyper.glimpses(10_000) == 11_100
    own = load_hyperparameters(STOP)
    assert own.glimpses(own.total_timesteps) == 104_448
