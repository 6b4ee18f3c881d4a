"""Reconstruction: predict the frozen teacher's features of the whole scene from what the glimpses have shown.

No labels are needed: the truth is the teacher's output for the scene at full resolution, computed once, when the scene
is loaded. Features are compared as in pretraining, each cell's standardized by the checkpoint's own statistics
(canvit_pytorch's PositionAwareStandardizer).
"""

from collections.abc import Collection
from typing import Any, ClassVar

import torch.nn.functional as F
from canvit_pytorch import RecurrentState
from canvit_pytorch.flops import linear_flops
from canvit_pytorch.preprocess import imagenet_normalize
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.backbone.canvas import normalized_canvas
from canvit_gym.backbone.load import Backbone
from canvit_gym.backbone.teachers import Teacher, default_teacher, load_teacher
from canvit_gym.config import EnvConfig
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.tasks.metric import LossName, MeanMetric, Metric
from canvit_gym.tasks.pictures import FeaturePicture, TaskPicture
from canvit_gym.tasks.task import Task, Truth, potential


class ReconstructionTask(Task):
    """The teacher's features of every cell, predicted by the checkpoint's own pretraining readout of the canvas."""

    name = "reconstruction"
    metric: ClassVar[Metric] = MeanMetric(
        "cosine",
        doc="The mean over scenes and cells of the cosine between predicted and true features of the teacher, "
        "standardized as in pretraining: scene_cos_norm of canvit_pytorch.evaluate's reconstruction.",
        loss=LossName("mean squared error", unit=""),
    )
    picture: ClassVar[TaskPicture] = FeaturePicture()
    in_every_info = ("loss", "score")
    reading_shape = "[B, D, G, G]"
    has_probe = False

    def __init__(self, *, backbone: Backbone, teacher: Teacher, classes: tuple[str, ...]) -> None:
        super().__init__(backbone=backbone, classes=classes, source=teacher.source)
        self.teacher = teacher
        standardizer = backbone.pretrained.teacher_patch_standardizer
        self._mean, self._std = standardizer.mean, standardizer.std  # [G * G, D]
        readout = backbone.pretrained.teacher_patch_readout
        self._weight = readout.proj.weight * readout.norm.weight  # [D, canvas_dim], after a LayerNorm without affine
        self._bias = readout.proj.bias + readout.proj.weight @ readout.norm.bias

    @property
    def flops_per_reading(self) -> int:
        return linear_flops(
            num_tokens=self.backbone.canvas_grid**2,
            in_dim=self.backbone.canvit.canvas_dim,
            out_dim=self.teacher.width,
        )

    def truth(
        self,
        scenes: SceneBatch,
        *,
        goal: NDArray[Any] | None = None,
        potentials: Collection[str] = (),
        counted: bool = False,
    ) -> dict[str, Tensor]:
        """features [n, D, G, G] float32, standardized."""
        images = imagenet_normalize(scenes.images.to(self.backbone.device, non_blocking=True).float() / 255)
        # As PositionAwareStandardizer does, without its check that it was fitted: that would sync at every reset.
        return {"features": self._maps((self.teacher(images) - self._mean) / self._std)}

    def shown(self, truth: Truth) -> Tensor:
        return truth["features"]

    def read(self, state: RecurrentState, canvas_norm: Tensor | None = None) -> Tensor:
        """[B, D, G, G] predicted features, standardized: canvit-pytorch's `predict_teacher_patches` up to rounding."""
        if canvas_norm is None:
            canvas_norm = normalized_canvas(self.backbone, state)
        return self._maps(F.linear(canvas_norm, self._weight, self._bias))

    def _maps(self, features: Tensor) -> Tensor:
        """[B, G*G, D] -> [B, D, G, G]"""
        grid = self.backbone.canvas_grid
        return features.transpose(1, 2).unflatten(2, (grid, grid)).contiguous()

    @potential(
        "L",
        "the mean squared error of the teacher's standardized features, the loss of pretraining",
        compiles=True,
        less_is_better=True,
    )
    def loss(self, logits: Tensor, truth: Truth) -> Tensor:
        return (logits - truth["features"]).square().mean(dim=(1, 2, 3))

    @potential("S", "the mean over cells of the cosine between predicted and true features", compiles=True)
    def score(self, logits: Tensor, truth: Truth) -> Tensor:
        return cell_cosines(logits, truth).mean(dim=(1, 2))

    @potential(
        "P", "the cosine of all features of the scene at once: cells of strong features count more", compiles=True
    )
    def soft_score(self, logits: Tensor, truth: Truth) -> Tensor:
        return F.cosine_similarity(logits.flatten(1), truth["features"].flatten(1), dim=1)

    def count(self, logits: Tensor, truth: Truth) -> dict[str, Tensor]:
        """value [B]: the score."""
        return {"value": self.score(logits, truth)}

    def predict(self, logits: Tensor) -> Tensor:
        """[B, D, G, G]: the features themselves."""
        return logits

    @classmethod
    def uncertainty_shape(cls, map_size: int) -> None:
        """None: a prediction of features has no uncertainty."""
        return None

    def uncertainty(self, logits: Tensor, *, map_size: int) -> Tensor:
        raise NotImplementedError(f"the readings of {self.name} are no probabilities")


def cell_cosines(logits: Tensor, truth: Truth) -> Tensor:
    """[B, G, G]: the cosine between predicted and true features of every cell."""
    return F.cosine_similarity(logits, truth["features"], dim=1)


def build_reconstruction(config: EnvConfig, backbone: Backbone, classes: tuple[str, ...]) -> ReconstructionTask:
    """The task of an environment. `probe` names the teacher; None means the teacher of the checkpoint's pretraining."""
    teacher = load_teacher(config.probe or default_teacher(backbone), backbone)
    return ReconstructionTask(backbone=backbone, teacher=teacher, classes=classes)
