"""Policies on disk: `policy.safetensors` (weights) and `policy.json` (PolicyRecord); nothing is unpickled."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from agents.ppo.policy import ViewpointPolicy, policy_kwargs_for
from canvit_gym.assembly import build_actions, build_backbone, build_layout
from canvit_gym.backbone.load import resolve_device
from canvit_gym.config import EnvConfig
from canvit_gym.policies.record import PolicyRecord, describe_inputs, require_same

WEIGHTS, RECORD = "policy.safetensors", "policy.json"


def replace_file(path: Path, content: bytes) -> None:
    """Write `path` such that an interruption leaves the old file or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _weights(policy: ViewpointPolicy) -> dict[str, torch.Tensor]:
    """The state dict without SB3's aliases of the one shared features extractor."""
    aliases = ("pi_features_extractor.", "vf_features_extractor.")
    return {k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items() if not k.startswith(aliases)}


def save_policy(directory: Path, policy: ViewpointPolicy, record: PolicyRecord) -> None:
    """Weights and record into `directory`, made where missing, replaced where present."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = save(_weights(policy))
    record = replace(record, weights_sha256=hashlib.sha256(weights).hexdigest())
    replace_file(directory / WEIGHTS, weights)
    replace_file(directory / RECORD, (json.dumps(record.to_json(), indent=2) + "\n").encode())


def load_record(directory: Path) -> PolicyRecord:
    """
    Raises:
        FileNotFoundError: no policy there.
        ValueError: its record is damaged.
    """
    for name in (WEIGHTS, RECORD):
        if not (Path(directory) / name).is_file():
            raise FileNotFoundError(
                f"{directory} has no {name}. A policy is a directory with {WEIGHTS} and {RECORD}, such as "
                "the best/ and last/ that python -m agents.train leaves in its run directory."
            )
    path = Path(directory) / RECORD
    try:
        return PolicyRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, or of another version ({error}): put the intact file in its place, or train the "
            "policy again"
        ) from error


def load_policy(directory: Path, *, device: str = "auto", config: EnvConfig | None = None) -> ViewpointPolicy:
    """The policy of a directory, ready to act, its record at `policy.record`.

    It is checked against `config`, the environment it is wanted for (default: the one it was trained on, with
    the checkpoints that are here now).

    Raises:
        FileNotFoundError: no policy there.
        ValueError: the environment's backbone, probe, observation layout or action space are others than those it
            was trained on, or the weights do not fit the record.
    """
    directory = Path(directory)
    record = load_record(directory)
    wanted = record.env if config is None else config
    require_same(record.inputs, describe_inputs(wanted), who=f"the policy in {directory}")
    actions = build_actions(wanted)
    layout = build_layout(wanted, build_backbone(wanted), is_dense=record.inputs.layout["is_dense"])
    network = {**policy_kwargs_for(actions), **record.network}
    policy = ViewpointPolicy(layout.space, actions.space, lambda _: 0.0, **network)
    try:
        content = (directory / WEIGHTS).read_bytes()
        weights = load(content)
        missing, unexpected = policy.load_state_dict(weights, strict=False)
        aliased = {key.split("features_extractor.", 1)[-1] for key in weights}
        lost = [key for key in missing if key.split("features_extractor.", 1)[-1] not in aliased]
        if lost or unexpected:
            raise ValueError(f"missing {lost}, unexpected {list(unexpected)}")
        if record.weights_sha256 not in (None, found := hashlib.sha256(content).hexdigest()):
            raise ValueError(f"their sha256 is {found}, not {record.weights_sha256}")
    except (RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"{directory / WEIGHTS} does not hold the weights that {RECORD} beside it describes: {error}. "
            "Copy the two files together, or train the policy again."
        ) from error
    policy.record = record
    policy.set_training_mode(False)
    return policy.to(resolve_device(device))
