"""Learned policies that have learned nothing: enough to save, load, evaluate and refuse."""

from pathlib import Path
from typing import Any

import torch

from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig
from canvit_gym.observations import ObservationLayout
from canvit_gym.policies.learned import save_policy
from canvit_gym.policies.networks import ViewpointNetwork, action_options
from canvit_gym.policies.policy_record import PolicyRecord, describe_inputs

NETWORK: dict[str, Any] = {"channels": 8, "context_dim": 16, "blocks": 1}


def save_untrained(
    directory: Path,
    config: EnvConfig,
    *,
    env_id: str = "CanViT/FashionSegmentation-v0",
    seed: int = 0,
    options: dict[str, Any] = NETWORK,
) -> Path:
    """A policy of `config`'s observations and actions, as training saves it."""
    actions, inputs = build_actions(config), describe_inputs(config)
    layout = ObservationLayout.from_json(inputs.layout)
    torch.manual_seed(seed)
    network = ViewpointNetwork(layout.space, actions.space, **options, **action_options(actions))
    record = PolicyRecord(
        env_id=env_id, env=config, inputs=inputs, network=options, hyperparameters={}, provenance={}, training={}
    )
    save_policy(directory, network, record)
    return directory
