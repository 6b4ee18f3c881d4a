"""Image classification: a linear classifier reads the recurrent CLS token."""

import torch
import torch.nn.functional as F
from canvit_pytorch import CanViTForImageClassification, RecurrentState
from torch import Tensor

from canvit_gym.backbone.load import (
    LOADING_ERRORS,
    Backbone,
    checkpoint_location,
    quiet_loading,
    require_checkpoint_files,
    sha256_of,
)


def load_classifier(name: str, location: str, backbone: Backbone, *, num_classes: int) -> CanViTForImageClassification:
    """The backbone with a linear probe on its recurrent CLS token, fused as canvit-pytorch fuses it.

    Raises:
        FileNotFoundError: the directory lacks its model.safetensors.
        ValueError: the probe does not fit the backbone or the classes.
    """
    require_checkpoint_files(name, location, ("model.safetensors",))
    try:
        with quiet_loading():
            model = CanViTForImageClassification.from_pretrained_with_probe(
                pretrained_repo=checkpoint_location(backbone.name), probe_repo=location
            )
    except LOADING_ERRORS as error:
        raise ValueError(
            f"probe {name!r} ({location}) does not fit checkpoint {backbone.name!r}: {error}. A classification probe "
            f"holds weight [classes, {backbone.pretrained.teacher_dim}] and bias [classes]."
        ) from error
    if model.n_classes != num_classes:
        raise ValueError(f"probe {name!r} tells {model.n_classes} classes apart, but the scenes have {num_classes}")
    model = model.to(backbone.device).eval().requires_grad_(False)
    model.canvit = backbone.canvit  # the same weights, once in memory
    return model


class ClassificationTask:
    """Score: 1 where the most likely class is the scene's, else 0. Loss: cross-entropy."""

    name = "classification"
    is_dense = False

    def __init__(
        self, *, backbone: Backbone, model: CanViTForImageClassification, classes: tuple[str, ...], location: str
    ) -> None:
        self.classes = classes
        self.probe_sha256 = sha256_of(location)
        self.model = model
        self._backbone = backbone

    def truth(self, labels: Tensor) -> dict[str, Tensor]:
        """[n] int64 classes."""
        return {"labels": labels.to(self._backbone.device)}

    def read(self, state: RecurrentState, canvas_norm: Tensor | None = None) -> Tensor:
        """[B, K] logits."""
        return self.model.classify(state.recurrent_cls)

    def loss(self, logits: Tensor, truth: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(logits, truth["labels"], reduction="none")

    def score(self, logits: Tensor, truth: dict[str, Tensor]) -> Tensor:
        return (logits.argmax(dim=1) == truth["labels"]).float()

    def predict(self, logits: Tensor) -> Tensor:
        """[B, K] probabilities."""
        return torch.softmax(logits, dim=1)
