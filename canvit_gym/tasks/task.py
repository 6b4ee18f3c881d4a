"""What a task is: how a probe decodes a state, and how good the decoding is.

A reading is the probe's logits. The loss is a cross-entropy, dense and smooth; the score is what people
report (mIoU, accuracy). Both are per scene.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from canvit_pytorch import RecurrentState
from torch import Tensor

from canvit_gym.backbone.load import Backbone


class Task(Protocol):
    """Decodes the states of one frozen backbone with one frozen probe."""

    name: str
    classes: tuple[str, ...]
    is_dense: bool
    """Whether readings are maps over the canvas."""

    @property
    def probe_sha256(self) -> str: ...

    @property
    def record(self) -> dict[str, Any]:
        """JSON values that say which probe reads: see canvit_gym.backbone.hub.Source."""
        ...

    def truth(self, labels: Tensor, *, with_score: bool = False) -> dict[str, Tensor]:
        """A SceneBatch's labels -> named tensors [n, ...] on the device, whatever loss and score need.

        with_score: the score will be asked for after every glimpse, and may be prepared for.
        """
        ...

    def read(self, state: RecurrentState, canvas_norm: Tensor | None) -> Tensor:
        """The probe's float32 logits: [B, K, G, G] where dense, else [B, K].

        canvas_norm: the canvas patches [B, G*G, D] after a LayerNorm without affine, if the caller has them.
        """
        ...

    def loss(self, logits: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        """[B] cross-entropy in nats."""
        ...

    def score(self, logits: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        """[B] in [0, 1]: mIoU of each scene, or whether it is classified correctly."""
        ...

    def soft_score(self, logits: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        """[B] in [0, 1]: the score of probabilities instead of decisions, smooth in the logits."""
        ...

    def predict(self, logits: Tensor) -> Any:
        """Dense: [B, H, W] labels at scene size; else [B, K] probabilities."""
        ...


TRAINING_RECORD = "training.json"
"""Beside a probe's weights: how it was fitted (canvit_gym.probes.fit writes it)."""


_REFIT = "Put the intact file in its place, remove it, or fit the probe again (canvit-gym fit-probe)."


def check_probe(what: str, directory: Path, *, backbone: Backbone, num_classes: int, classes: tuple[str, ...]) -> None:
    """Raise ValueError where a probe is not for these classes, or for this checkpoint or canvas, as far as it tells."""
    if num_classes != len(classes):
        raise ValueError(
            f"{what} tells {num_classes} classes apart, but the scenes have {len(classes)}. "
            "Use a probe fitted on these classes (canvit-gym fit-probe)."
        )
    path = directory / TRAINING_RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. {_REFIT}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold a JSON object, as canvit_gym.probes.fit writes it. {_REFIT}")
    if (fitted := record.get("classes")) is not None and tuple(fitted) != classes:
        at = next(i for i, (one, other) in enumerate(zip(fitted, classes, strict=True)) if one != other)
        raise ValueError(
            f"{what} was fitted on other classes: its class {at} is {fitted[at]!r}, the scenes' is {classes[at]!r}. "
            "Use a probe fitted on these classes, in this order (canvit-gym fit-probe)."
        )
    if record.get("checkpoint_sha256") not in (None, backbone.sha256):
        raise ValueError(
            f"{what} was fitted on another checkpoint (sha256 {record['checkpoint_sha256'][:12]}…) than "
            f"{backbone.name!r} (sha256 {backbone.sha256[:12]}…). Use that checkpoint, or fit a probe on this one "
            "(canvit-gym fit-probe)."
        )
    if (fitted := record.get("canvas_grid")) not in (None, backbone.canvas_grid):
        raise ValueError(
            f"{what} was fitted on a canvas grid of {fitted}, but this one is of {backbone.canvas_grid}. "
            f"Use canvas_grid={fitted}, or fit a probe on this one (canvit-gym fit-probe)."
        )
