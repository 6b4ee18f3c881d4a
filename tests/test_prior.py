"""A network with a prior begins as the hand-coded policy, and says what it needs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from untrained import save_untrained

from agents.algorithms import load_hyperparameters
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.policies.learned import load_policy, save_policy
from canvit_gym.policies.networks import ViewpointNetwork, ViewpointQNetwork

SEARCH = "CanViT/FashionSearch-v0"
MAPS = spaces.Dict(
    {
        "reading": spaces.Box(0, 1, (3, 8, 8)),
        "uncertainty": spaces.Box(0, 1, (1, 8, 8)),
        "acuity": spaces.Box(0, 1, (1, 8, 8)),
        "goal": spaces.Box(0, 1, (3,)),
    }
)
TABLE = np.array([[-0.5, -0.5, 0.5], [-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, 0.5]], dtype=np.float32)


def observed(**maps: torch.Tensor) -> dict[str, torch.Tensor]:
    zeros = {key: torch.zeros(1, *(box.shape or ())) for key, box in MAPS.items()}
    return zeros | maps


def network(kind: type = ViewpointNetwork, *, stop: bool = False, **options: Any) -> Any:
    actions = spaces.Discrete(len(TABLE) + stop)
    return kind(MAPS, actions, viewpoints=TABLE, allow_stop=stop, network="window", channels=4, blocks=1, **options)


def search() -> tuple[EnvConfig, dict[str, Any]]:
    """The environment as learners see it, and the options of their network."""
    hyper = load_hyperparameters(SEARCH, {})
    config = replace(env_config(SEARCH, hyper.env_kwargs), num_scenes=48, device="cpu")
    return config, {**hyper.policy_kwargs, "prior": "goal"}


def test_before_training_it_looks_where_the_hand_coded_policy_does(tmp_path: Path) -> None:
    config, options = search()
    untrained = load_policy(save_untrained(tmp_path / "policy", config, env_id=SEARCH, options=options))
    hand_coded = make_policy(
        f"goal_probability(scale={config.grid_scales}, centers={config.grid_centers})", config=config, num_glimpses=4
    )
    found, expected = (evaluate(policy, config=config).viewpoints for policy in (untrained, hand_coded))
    difference = np.abs(found - expected).max(axis=2)  # [scenes, glimpses]
    assert (difference[:, 1] < 1e-6).mean() > 0.9, "the layers that correct it begin small, not at zero"


@pytest.mark.parametrize("kind", [ViewpointNetwork, ViewpointQNetwork])
@pytest.mark.parametrize(("prior", "key"), [("uncertainty", "uncertainty"), ("items", "reading"), ("goal", "reading")])
def test_the_window_with_most_of_it_comes_first(kind: type, prior: str, key: str) -> None:
    there = torch.zeros(1, *(MAPS[key].shape or ()))
    there[:, 0] = 1 if prior == "items" else 0
    channel = {"uncertainty": 0, "items": 0, "goal": 2}[prior]
    there[0, channel, 4:, :4] = 0 if prior == "items" else 1  # the lower left quarter
    observation = observed(**{key: there}, goal=torch.eye(3)[2:])
    net = network(kind, stop=True, prior=prior)
    scores = net.values(observation) if kind is ViewpointQNetwork else net.distribution(observation).logits
    assert scores.shape == (1, 5) and scores[0, :4].argmax() == 2


def test_what_was_seen_at_a_scale_adds_nothing() -> None:
    uncertain = torch.zeros(1, 1, 8, 8)
    uncertain[..., 4:, :4] = 1
    uncertain[..., :4, 4:] = 0.5
    acuity = torch.ones(1, 1, 8, 8)
    acuity[..., 4:, :4] = 0.5  # the most uncertain quarter has been looked at
    net = network(prior="uncertainty")
    assert net.distribution(observed(uncertainty=uncertain, acuity=acuity)).logits.argmax() == 1


def test_a_prior_without_anything_to_look_at_is_flat() -> None:
    net = network(prior="uncertainty")
    probabilities = net.distribution(observed()).probs
    assert torch.isfinite(probabilities).all() and probabilities.max() < 0.3


def test_its_weight_is_saved(tmp_path: Path) -> None:
    config, options = search()
    policy = load_policy(save_untrained(tmp_path / "policy", config, env_id=SEARCH, options=options))
    with torch.no_grad():
        policy.network.action_net.prior.weight.fill_(1.5)  # type: ignore[union-attr]
    save_policy(tmp_path / "other", policy.network, policy.record)
    assert load_policy(tmp_path / "other").network.action_net.prior.weight.item() == 1.5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (MAPS, {"prior": "gaols"}, "unknown prior 'gaols'; choose one of uncertainty, items, goal, detected, or null"),
        (
            spaces.Dict({k: v for k, v in MAPS.items() if k != "acuity"}),
            {"prior": "items"},
            "prior 'items' needs reading, acuity among the observations",
        ),
        (
            spaces.Dict({**MAPS, "reading": spaces.Box(0, 1, (3,))}),
            {"prior": "items"},
            "maps of one size",
        ),
    ],
)
def test_what_it_needs(space: spaces.Dict, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewpointNetwork(space, spaces.Discrete(4), viewpoints=TABLE, network="window", **options)


def test_it_needs_a_table() -> None:
    with pytest.raises(ValueError, match="a prior needs a table of viewpoints"):
        ViewpointNetwork(MAPS, spaces.Box(-1, 1, (3,)), viewpoints=None, network="window", prior="items")
