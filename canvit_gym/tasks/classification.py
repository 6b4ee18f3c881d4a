"""Image classification: a linear classifier reads the recurrent CLS token."""

from collections.abc import Collection
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from canvit_pytorch import CanViTForImageClassification, CanViTForPretraining, RecurrentState
from canvit_pytorch.flops import linear_flops
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from canvit_gym.backbone.hub import WEIGHTS, Source, locate, mark_used
from canvit_gym.backbone.load import Backbone
from canvit_gym.backbone.weights import LOADING_ERRORS, quiet_loading, require_finite
from canvit_gym.config import EnvConfig
from canvit_gym.observations import predictive_uncertainty
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.tasks.default_probe import default_probe
from canvit_gym.tasks.metric import AccuracyMetric
from canvit_gym.tasks.pictures import ClassPicture
from canvit_gym.tasks.task import Task, Truth, check_probe, potential

RECURRENT_CLS = "recurrent_cls."
"""Prefix of the names of weight [classes, backbone_dim] and bias [classes] in the file of a probe that reads the
recurrent CLS token itself, layer-normalized, instead of the teacher's CLS token as pretraining predicts it."""


def load_classifier(
    name: str | None, backbone: Backbone, *, classes: tuple[str, ...]
) -> tuple[CanViTForImageClassification, Source]:
    """A classifier on the backbone, and where it comes from.

    name: a linear probe on the teacher's CLS token, fused with a pretrained backbone as canvit-pytorch fuses it;
    None for a fine-tuned backbone, which holds its own classifier.

    Raises:
        FileNotFoundError: no such probe.
        ValueError: the probe does not fit the backbone or the classes.
    """
    if isinstance(backbone.model, CanViTForImageClassification):
        if name is not None:
            raise ValueError(
                f"checkpoint {backbone.name!r} is fine-tuned and holds its own classifier: leave probe out, or use "
                f"the probe {name!r} with a pretrained checkpoint, such as 'flagship'"
            )
        model, source, what = backbone.model, backbone.source, f"checkpoint {backbone.name!r}"
        check_probe(what, source.directory, backbone=backbone, num_classes=model.n_classes, classes=classes)
        return model, source
    assert name is not None, "a pretrained backbone has no classifier of its own"
    source = locate("probe", name, files=(WEIGHTS,))
    weight, reads_recurrent_cls = _weight_shape(source, backbone.pretrained, backbone.name)
    what = f"probe {name!r}"
    check_probe(what, source.directory, backbone=backbone, num_classes=weight[0], classes=classes)
    if reads_recurrent_cls:
        return _with_readout(source, backbone.pretrained), source
    return _fused(source, backbone.source, backbone.pretrained), source


def _weight_shape(source: Source, model: CanViTForPretraining, checkpoint: str) -> tuple[list[int], bool]:
    """(shape of the probe's weight, whether it reads the recurrent CLS token itself), from the file's header."""
    try:
        with safe_open(source.directory / WEIGHTS, framework="pt") as file:
            found = {key: list(file.get_slice(key).get_shape()) for key in list(file.keys())}
    except SafetensorError as error:
        raise _misfit(source, checkpoint, model.teacher_dim, str(error)) from error
    for prefix, width in (("", model.teacher_dim), (RECURRENT_CLS, model.canvit.backbone_dim)):
        weight, bias = (found.get(prefix + key, []) for key in ("weight", "bias"))
        if len(weight) == 2 and weight[1] == width and bias == weight[:1]:
            return weight, prefix == RECURRENT_CLS
    shown = ", ".join(f"{key} {shape}" for key, shape in sorted(found.items())[:3])
    raise _misfit(source, checkpoint, model.teacher_dim, f"it holds {shown}")


def _misfit(source: Source, checkpoint: str, teacher_dim: int, why: str) -> ValueError:
    return ValueError(
        f"probe {source.name!r} ({source.directory}) does not fit checkpoint {checkpoint!r}: {why}. A classification "
        f"probe of this checkpoint holds weight [classes, {teacher_dim}] and bias [classes]: fit one with "
        "canvit-gym fit-probe."
    )


@cache
def _fused(probe: Source, checkpoint: Source, model: CanViTForPretraining) -> CanViTForImageClassification:
    try:
        with quiet_loading():
            fused = CanViTForImageClassification.from_pretrained_with_probe(
                pretrained_repo=str(checkpoint.directory), probe_repo=str(probe.directory)
            )
        require_finite(fused)
    except LOADING_ERRORS as error:
        raise _misfit(probe, checkpoint.name, model.teacher_dim, str(error)) from error
    mark_used(probe)
    fused = fused.to(next(model.parameters()).device).eval().requires_grad_(False)
    fused.canvit = model.canvit  # the same weights, once in memory
    return fused


@cache
def _with_readout(probe: Source, model: CanViTForPretraining) -> CanViTForImageClassification:
    """canvit-pytorch's classifier with the probe's linear map after a LayerNorm without affine parameters."""
    tensors = load_file(probe.directory / WEIGHTS)
    weight, bias = (tensors[RECURRENT_CLS + key] for key in ("weight", "bias"))
    with quiet_loading():
        fused = CanViTForImageClassification(canvit_config=model.canvit.config, n_classes=len(bias))
    with torch.no_grad():
        fused.readout.norm.weight.fill_(1)
        fused.readout.norm.bias.zero_()
        fused.readout.proj.weight.copy_(weight)
        fused.readout.proj.bias.copy_(bias)
    mark_used(probe)
    fused = fused.to(next(model.parameters()).device).eval().requires_grad_(False)
    fused.canvit = model.canvit  # the same weights, once in memory
    return fused


class ClassificationTask(Task):
    """The one class of a scene, read from the recurrent CLS token."""

    name = "classification"
    metric = AccuracyMetric()
    picture = ClassPicture()
    in_every_info = ("loss", "score")
    reads_canvas = False
    reading_shape = "[B, K]"

    def __init__(
        self, *, backbone: Backbone, model: CanViTForImageClassification, classes: tuple[str, ...], source: Source
    ) -> None:
        super().__init__(backbone=backbone, classes=classes, source=source)
        self.model = model

    @property
    def flops_per_reading(self) -> int:
        return linear_flops(num_tokens=1, in_dim=self.backbone.canvit.backbone_dim, out_dim=len(self.classes))

    def truth(
        self,
        scenes: SceneBatch,
        *,
        goal: NDArray[Any] | None = None,
        potentials: Collection[str] = (),
        counted: bool = False,
    ) -> dict[str, Tensor]:
        """labels [n] int64."""
        return {"labels": scenes.labels.to(self.backbone.device, non_blocking=True)}

    def read(self, state: RecurrentState, canvas_norm: Tensor | None = None) -> Tensor:
        """[B, K] logits."""
        return self.model.classify(state.recurrent_cls)

    @potential("L", "cross-entropy of the class, nats", compiles=True, less_is_better=True)
    def loss(self, logits: Tensor, truth: Truth) -> Tensor:
        return F.cross_entropy(logits, truth["labels"], reduction="none")

    @potential("S", "1 where the most likely class is the scene's, else 0", compiles=True)
    def score(self, logits: Tensor, truth: Truth) -> Tensor:
        return (logits.argmax(dim=1) == truth["labels"]).float()

    @potential("P", "the probability of the scene's class", compiles=True)
    def soft_score(self, logits: Tensor, truth: Truth) -> Tensor:
        return logits.softmax(dim=1).gather(1, truth["labels"].unsqueeze(1)).squeeze(1)

    def count(self, logits: Tensor, truth: Truth) -> dict[str, Tensor]:
        """rank [B]: how many classes rank before the true one; of equal logits the first ranks first, as in argmax."""
        labels = truth["labels"].unsqueeze(1)
        true = logits.gather(1, labels)
        before = torch.arange(logits.shape[1], device=logits.device) < labels
        return {"rank": ((logits > true) | ((logits == true) & before)).sum(dim=1)}

    def predict(self, logits: Tensor) -> Tensor:
        """[B, K] probabilities."""
        return torch.softmax(logits, dim=1)

    @classmethod
    def uncertainty_shape(cls, map_size: int) -> tuple[int, ...]:
        return (1,)

    def uncertainty(self, logits: Tensor, *, map_size: int) -> Tensor:
        return predictive_uncertainty(logits, size=map_size)


def build_classification(config: EnvConfig, backbone: Backbone, classes: tuple[str, ...]) -> ClassificationTask:
    """The task of an environment; the probe is the config's, or the default of its data set."""
    name = config.probe or default_probe(DATASETS[config.dataset], backbone)
    model, source = load_classifier(name, backbone, classes=classes)
    return ClassificationTask(backbone=backbone, model=model, classes=classes, source=source)
