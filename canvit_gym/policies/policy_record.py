"""What a policy was trained on, recorded beside its weights so that it refuses anything else."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from canvit_gym.actions import Actions, ContinuousActions, DiscreteActions
from canvit_gym.assembly import build_actions, build_backbone, build_layout, build_task, classes_of
from canvit_gym.config import EnvConfig, config_from_kwargs
from canvit_gym.observations import ObservationLayout


@dataclass(frozen=True)
class Inputs:
    """What must be the same for a policy's weights to mean anything; plain JSON values."""

    backbone_sha256: str
    probe_sha256: str
    layout: dict[str, Any]
    actions: dict[str, Any]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Inputs":
        """Of a record of this version or of an earlier one."""
        layout = ObservationLayout.from_json(values["layout"])
        return cls(**{**values, "layout": describe_layout(layout)})


@dataclass(frozen=True)
class PolicyRecord:
    """Plain JSON values, but for the environment's configuration."""

    env_id: str
    env: EnvConfig
    inputs: Inputs
    network: dict[str, Any]
    """Keyword arguments of the network beyond what the environment decides."""
    hyperparameters: dict[str, Any]
    provenance: dict[str, Any]
    training: dict[str, Any]
    """Decisions trained for, the seed, and what evaluation found."""
    weights_sha256: str | None = None
    """Of the file beside the record, once saved."""
    algorithm: str = "PPO"
    """Of the learner, as tables call it."""
    network_class: str = "ViewpointNetwork"
    """A name in canvit_gym.policies.networks.NETWORK_CLASSES."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"env": self.env.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PolicyRecord":
        return cls(**values | {"env": config_from_kwargs(values["env"]), "inputs": Inputs.from_json(values["inputs"])})


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def describe_layout(layout: ObservationLayout) -> dict[str, Any]:
    return _plain(layout.to_json())


def has_another_table(record: PolicyRecord, config: EnvConfig) -> bool:
    """Whether an environment's viewpoints are fixed (revisit=False) and the policy was trained with others."""
    return not config.revisit and describe_actions(build_actions(config)) != record.inputs.actions


def describe_actions(actions: Actions) -> dict[str, Any]:
    if isinstance(actions, DiscreteActions):
        table = hashlib.sha256(np.ascontiguousarray(actions.viewpoints, dtype="<f4").tobytes()).hexdigest()
        return {
            "kind": "discrete",
            "n": int(actions.space.n),
            "stop": actions.allow_stop,
            "table_sha256": table,
        }
    assert isinstance(actions, ContinuousActions), actions
    return {"kind": "continuous", "min_scale": actions.min_scale, "stop": actions.allow_stop}


def describe_inputs(config: EnvConfig) -> Inputs:
    """The inputs that an environment of this configuration has, with the checkpoints as they are now."""
    backbone = build_backbone(config)
    task = build_task(config, backbone, classes_of(config))
    return Inputs(
        backbone_sha256=backbone.sha256,
        probe_sha256=task.probe_sha256,
        layout=describe_layout(build_layout(config, backbone, task)),
        actions=describe_actions(build_actions(config)),
    )


_SHAPES = {"uncertainty_shape": ("uncertainty", "reading"), "goal_shape": ("goal",), "num_classes": ("reading",)}
"""Of a layout -> the keys that have them."""


def used_layout(layout: dict[str, Any]) -> dict[str, Any]:
    """Without the shapes of keys that are not among its own: one may go where a goal is asked for and not see it."""
    keys = layout["keys"]
    return {name: v for name, v in layout.items() if any(key in keys for key in _SHAPES.get(name, keys))}


_OF_THE_PROBE = ("uncertainty", "reading")
"""Keys of observations that depend on the probe."""


def reads_probe(layout: dict[str, Any]) -> bool:
    """Whether what a policy sees depends on the probe."""
    return any(key in layout["keys"] for key in _OF_THE_PROBE)


def require_same(trained: Inputs, found: Inputs, *, who: str, learning: bool = False) -> None:
    """Raise ValueError where a policy trained on `trained` would be given something else.

    The probe counts only where the policy sees what it says, or where it goes on `learning` from the
    rewards that the probe decides.
    """
    differences: list[str] = []
    if trained.backbone_sha256 != found.backbone_sha256:
        differences.append(
            f"the backbone: trained on sha256 {trained.backbone_sha256}, found {found.backbone_sha256} "
            "(use that checkpoint, or train a policy on this one)"
        )
    if (learning or reads_probe(trained.layout)) and trained.probe_sha256 != found.probe_sha256:
        read = " and ".join(f"`{key}`" for key in _OF_THE_PROBE if key in trained.layout["keys"])
        behind = "the rewards" if learning else read
        differences.append(
            f"the probe behind {behind}: trained on sha256 {trained.probe_sha256}, found "
            f"{found.probe_sha256} (use that probe, or train a policy on this one)"
        )
    for what, ours, theirs in (
        ("observation layout", used_layout(trained.layout), used_layout(found.layout)),
        ("action space", trained.actions, found.actions),
    ):
        for name in sorted(set(ours) | set(theirs)):
            if ours.get(name) != theirs.get(name):
                differences.append(
                    f"the {what}: trained on {name}={ours.get(name)!r}, found {theirs.get(name)!r} "
                    "(make the environment with the keyword arguments in the policy's policy.json)"
                )
    if differences:
        raise ValueError(f"{who} does not fit this environment. It differs in " + "; in ".join(differences))


TRAINED_WITH = (
    "observations", "canvas_size", "map_size", "observation_dtype", "action", "min_scale", "grid_scales",
    "grid_centers", "quadtree_levels", "allow_stop", "revisit", "first_glimpse",
)  # fmt: skip
"""Fields that a learned policy takes from its own record: what it sees and does."""


def as_trained(env: EnvConfig, record: PolicyRecord) -> EnvConfig:
    """The environment with the observations and actions that a policy was trained with.

    If the environment allows each viewpoint only once, it still does.
    """
    fields = {name: getattr(record.env, name) for name in TRAINED_WITH}
    fields["revisit"] &= env.revisit
    return replace(env, **fields, observation_preset=None)  # all of whose fields are given
