"""A detector learns where items are, stays as it is, and gives a network its prior."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents import detection
from agents.algorithms import load_hyperparameters
from agents.detection import Detection, covered, interest, labelled_interest, learn_to_detect, look_around
from agents.matrix import EMBEDDED
from agents.ppo.hyperparameters import REWARDS_ALONE
from agents.settings import TrainConfig
from agents.train import train
from canvit_gym.actions import DiscreteActions
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.policies.learned import load_policy
from canvit_gym.policies.networks import ViewpointNetwork, action_options
from canvit_gym.policies.seen import SeenWithTruth
from canvit_gym.scenes.source import Item
from canvit_gym.vector_env import GlimpseVectorEnv

SEARCH, CROWD, CLASSIFICATION = (f"CanViT/Fashion{name}-v0" for name in ("Search", "Crowd", "Classification"))
SMALL: dict[str, Any] = {"channels": 8, "context_dim": 16, "blocks": 1}


def small(env_id: str) -> EnvConfig:
    config = env_config(env_id, load_hyperparameters(env_id, {}).env_kwargs)
    return replace(config, num_scenes=64, device="cpu")


def with_detector(config: EnvConfig, *, seed: int = 0) -> tuple[ViewpointNetwork, GlimpseVectorEnv]:
    envs = GlimpseVectorEnv(8, **vars(config))
    assert isinstance(envs.actions, DiscreteActions)
    torch.manual_seed(seed)
    options = {**SMALL, "network": "window", "prior": "detected", **action_options(envs.actions)}
    network = ViewpointNetwork(envs.single_observation_space, envs.single_action_space, **options)  # type: ignore[arg-type]
    return network, envs


def test_interest_is_the_goal_or_any_item() -> None:
    shares = torch.rand(2, 3, 4, 4).softmax(dim=1)
    assert torch.equal(labelled_interest({"shares": shares}), 1 - shares[:, 0])
    goals = torch.tensor([2, 1])
    assert torch.equal(labelled_interest({"shares": shares, "goal": goals}), torch.stack([shares[0, 2], shares[1, 1]]))


def test_squares_around_items() -> None:
    quarter = Item(label=0, row=-0.5, col=0.5, scale=0.5)  # the upper right quarter of the scene
    expected = torch.zeros(4, 4)
    expected[:2, 2:] = 1
    assert torch.equal(covered([quarter], 4), expected)
    in_cells = covered([Item(label=0, row=0.0, col=0.0, scale=0.25), quarter], 4)  # a quarter of each middle cell
    assert in_cells[2, 1] == 0.25 and in_cells[1, 2] == 1


def test_states_are_of_episodes_with_their_labels() -> None:
    states = look_around(small(CROWD), states=64, seed=0, progress=False)
    observations, maps = states.observations, states.interest
    assert len(states) == 64 * 12 == len(observations["canvas"])  # whole episodes
    assert ((maps >= 0) & (maps <= 1)).all() and 0.01 < maps.float().mean() < 0.5
    assert (observations["time"].unflatten(0, (64, 12)).diff(dim=1) < 0).all()


def test_states_belong_to_what_is_watched() -> None:
    """The maps of interest are in the order of the observations: both follow the episodes."""
    config, watched = small(CROWD), list[torch.Tensor]()

    def watch(seen: SeenWithTruth) -> None:
        watched.append(torch.cat([interest(seen)[:, None], seen.observe()["acuity"].float()], dim=1))

    states = look_around(config, states=64, seed=0, progress=False, watch=watch)
    of_episodes = torch.stack(watched, dim=1).flatten(0, 1)  # a single batch
    torch.testing.assert_close(states.interest.float(), of_episodes[:, 0], atol=1e-3, rtol=0)
    torch.testing.assert_close(states.observations["acuity"].float(), of_episodes[:, 1:], atol=1e-3, rtol=0)


def test_episodes_go_on_by_chance_where_all_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "interest", lambda seen: torch.zeros(64, 16, 16))
    states = look_around(replace(small(CLASSIFICATION), num_scenes=64), states=64, seed=0, progress=False)
    viewpoints = states.observations["viewpoint"].unflatten(0, (64, 4))[:, 1:].flatten(0, 1)
    assert len(viewpoints.unique(dim=0)) > 100, "not the first row of the table again and again"


def test_it_learns_where_the_item_is_and_the_network_looks_there() -> None:
    network, envs = with_detector(small(CLASSIFICATION))
    detector = network.features_extractor.detector
    assert detector is not None
    envs.reset(seed=0)
    true = interest(SeenWithTruth(envs.episodes, actions=envs.actions))
    observation = envs.observation_tensors()

    def hits() -> float:
        """Mean share of the item in the windows that the network would take first."""
        chosen = network.distribution(observation).probs.argmax(dim=1)  # type: ignore[attr-defined]
        windows = network.action_net.prior.windows.coverage(chosen)  # type: ignore[union-attr]
        return float(((windows * true).sum(dim=(1, 2)) / true.sum(dim=(1, 2))).mean())

    before = hits()
    trained = ("detector",)
    others = {name: v.clone() for name, v in network.state_dict().items() if not any(t in name for t in trained)}
    (found,) = learn_to_detect(
        network, replace(envs.config, num_scenes=512), Detection(states=1024, epochs=8), seed=0, progress=False
    )
    share = float(true.mean())
    constant = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert found["least"] < found["cross_entropy"] < 0.9 * constant
    assert hits() > max(before, 0.5)
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in others.items())
    envs.close()


def test_no_gradient_of_the_policy_reaches_it() -> None:
    network, envs = with_detector(small(SEARCH))
    observation, _ = envs.reset(seed=0)
    given = {key: torch.from_numpy(value) for key, value in observation.items()}
    network.distribution(given).logits.square().sum().backward()  # type: ignore[attr-defined]
    reached = {name for name, value in network.named_parameters() if value.grad is not None}
    assert reached and not any("detector" in name for name in reached)
    envs.close()


HYPER: dict[str, Any] = {
    "n_envs": 4, "n_steps": 4, "batch_size": 8, "n_epochs": 1,
    "policy_kwargs": {**SMALL, "prior": "detected"}, "detection": {"states": 16, "epochs": 1},
}  # fmt: skip


@pytest.mark.parametrize("sizes", [{}, {"map_size": 8, "canvas_size": 4}])
def test_training_goes_on_from_it_and_resumes_to_the_bit(tmp_path: Path, sizes: dict[str, int]) -> None:
    env_kwargs = {"num_scenes": 70, "device": "cpu", "budget": 3, "grid_centers": 3, **sizes}
    whole = TrainConfig(
        tmp_path / "whole", env_kwargs=json.dumps(env_kwargs), hyper=json.dumps(HYPER), total_timesteps=32,
        warm_start_states=0, eval_every=32, eval_scenes=4, gaze_scenes=0, progress=False,
    )  # fmt: skip
    train(whole)
    half = replace(whole, run_dir=tmp_path / "half")
    train(replace(half, total_timesteps=16))
    train(replace(half, resume=True))
    begun, last, resumed = (
        load_file(tmp_path / run / name / "policy.safetensors")
        for run, name in (("whole", "warm_start"), ("whole", "last"), ("half", "last"))
    )
    assert all(torch.equal(value, resumed[name]) for name, value in last.items())
    same = {name for name, value in last.items() if torch.equal(value, begun[name])}
    assert {name for name in last if "detector" in name} <= same < set(last)
    (record,) = json.loads((tmp_path / "whole" / "result.json").read_text(encoding="utf-8"))["warm_start"]
    assert record["states"] == 64 * 2 and record["least"] < record["cross_entropy"]
    network = load_policy(tmp_path / "whole" / "best").network
    assert network.features_extractor.detector is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("algo", ["q_regression", "dime"])
def test_learners_of_values_begin_with_it(tmp_path: Path, algo: str) -> None:
    hyper = {key: value for key, value in HYPER.items() if key != "n_steps"} | {"n_steps": 2}
    config = TrainConfig(
        tmp_path / "run", algo=algo, hyper=json.dumps(hyper), total_timesteps=16, eval_every=0, gaze_scenes=0,
        env_kwargs='{"num_scenes": 70, "device": "cpu", "budget": 3, "grid_centers": 3}', progress=False,
    )  # fmt: skip
    train(config)
    begun, last = (load_file(tmp_path / "run" / name / "policy.safetensors") for name in ("warm_start", "last"))
    same = {name for name, value in last.items() if torch.equal(value, begun[name])}
    assert {name for name in last if "detector" in name} <= same < set(last)


def test_a_compiled_network_leaves_it_as_it_is() -> None:
    network, envs = with_detector(small(CLASSIFICATION))
    observation, _ = envs.reset(seed=0)
    given = {key: torch.from_numpy(value) for key, value in observation.items()}

    def scores(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return network.action_net(network.features_extractor(inputs))

    compiled = torch.compile(scores, backend="aot_eager", fullgraph=True)
    found = compiled(given)
    torch.testing.assert_close(found, scores(given))
    found.square().sum().backward()
    assert not any("detector" in name for name, value in network.named_parameters() if value.grad is not None)
    envs.close()


def test_its_glimpses_are_counted() -> None:
    hyper = load_hyperparameters(SEARCH, {**HYPER, "warm_start": {"states": 8, "candidates": 3}})
    assert hyper.glimpses(100) == 100 + 16 + 8 * 4


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"policy_kwargs": {"prior": None}, "detection": {"states": 8}}, "without a detector: set policy_kwargs prior"),
        ({"policy_kwargs": {"prior": "detected"}, "detection": {"states": 0}}, "detection states must be an integer"),
        ({"policy_kwargs": {"prior": "detected"}, "detection": {"scenes": 8}}, "unknown detection options scenes"),
    ],
)
def test_bad_options(hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_hyperparameters(SEARCH, hyper)


def test_an_entry_without_its_detector() -> None:
    """The options of the entry have to be taken back as well."""
    with pytest.raises(ValueError, match=r"detection \{'states': 9216\} without a detector: .*, or detection to null"):
        load_hyperparameters("CanViT/FashionCrowd-v0", {"policy_kwargs": {"prior": "items"}})
    hyper = load_hyperparameters("CanViT/FashionCrowd-v0", {"policy_kwargs": {"prior": "items"}, "detection": None})
    assert hyper.glimpses(100) == 100
    for env_id in EMBEDDED:
        assert load_hyperparameters(env_id, REWARDS_ALONE).glimpses(100) == 100


def test_learners_that_train_none_refuse_it() -> None:
    with pytest.raises(ValueError, match="prior 'detected': this learner trains no detector"):
        load_hyperparameters(SEARCH, {"policy_kwargs": {"prior": "detected"}}, algo="oracle_cloning")


def test_sizes_of_maps_that_do_not_fit() -> None:
    config = replace(small(CLASSIFICATION), canvas_size=8, map_size=12, num_scenes=8)
    with pytest.raises(ValueError, match=r"12 cells a side \(map_size\), not a multiple of the canvas's 8"):
        with_detector(config)


def test_a_data_set_on_disk_records_no_items() -> None:
    hyper = load_hyperparameters(CLASSIFICATION, HYPER)
    config = replace(small(CLASSIFICATION), dataset="ade20k")
    with pytest.raises(ValueError, match="a detector learns where items are, which 'ade20k' does not record"):
        hyper.check_fit(replace(config, budget=5))
