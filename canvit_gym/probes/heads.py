"""The heads that canvit_gym.probes.fit trains: features of a state, a loss, and how to save a probe."""

from copy import deepcopy
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from canvit_pytorch import RecurrentState, SegmentationProbe
from safetensors.torch import save_file
from torch import Tensor, nn

from canvit_gym.atomic import replacing, replacing_files
from canvit_gym.backbone.hub import WEIGHTS
from canvit_gym.backbone.load import Backbone
from canvit_gym.tasks.classification import RECURRENT_CLS
from canvit_gym.tasks.segmentation import class_shares


class Head(Protocol):
    """A linear head in training."""

    @property
    def module(self) -> nn.Module: ...

    def features(self, state: RecurrentState) -> Tensor:
        """[B, ...] float32 features of the frozen model."""
        ...

    def target(self, labels: Tensor) -> Tensor:
        """A SceneBatch's labels [B, ...] -> targets for `loss`, on the device."""
        ...

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss of the states [T * B, ...] of a rollout on the scenes of `target` [B, ...]."""
        ...

    def save(self, directory: Path) -> None: ...


class SegmentationHead:
    """Cross-entropy between each cell's class shares and the probe's prediction, weighted by class.

    `bonus`: nats by which the logits of all classes except the first are raised when saving.
    """

    def __init__(self, backbone: Backbone, weights: Tensor, *, bonus: float = 0.0) -> None:
        self._bonus = bonus
        self._canvit, self._grid, self._device = backbone.canvit, backbone.canvas_grid, backbone.device
        self._weights = weights.to(backbone.device).view(-1, 1, 1)
        self.module = SegmentationProbe(
            embed_dim=backbone.canvit.canvas_dim, num_classes=len(weights), dropout=0.0, use_ln=True
        ).to(backbone.device)

    def features(self, state: RecurrentState) -> Tensor:
        return self._canvit.canvas_patches(state.canvas).float().unflatten(1, (self._grid, self._grid))

    def target(self, labels: Tensor) -> Tensor:
        return class_shares(labels.to(self._device), num_classes=len(self._weights), grid=self._grid)

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        # Unlabeled pixels are in no class's share: cells are weighted by their labeled part.
        weight = (target * self._weights).sum(dim=1)  # [B, G, G]
        cross_entropy = target / target.sum(dim=1, keepdim=True).clamp(min=1e-6) * weight.unsqueeze(1)
        times = len(features) // len(target)
        reading = F.log_softmax(self.module(features), dim=1).unflatten(0, (times, len(target)))
        return -(cross_entropy * reading).sum() / (times * weight.sum()).clamp(min=1e-6)

    def save(self, directory: Path) -> None:
        assert isinstance(self.module, SegmentationProbe)
        adjusted = deepcopy(self.module)
        assert adjusted.conv.bias is not None
        with torch.no_grad():
            adjusted.conv.bias[0] -= self._bonus
        with replacing_files(directory) as partial:
            adjusted.save_pretrained(partial)


class ClassificationHead:
    """Cross-entropy of a linear map of the teacher's CLS token as predicted in pretraining, standardized."""

    def __init__(self, backbone: Backbone, weights: Tensor, *, reads_log_odds: bool) -> None:
        self._model, self._device = backbone.pretrained, backbone.device
        self._weights = weights.to(backbone.device)
        standardizer = self._model.teacher_cls_standardizer
        self._mean, self._std = standardizer.mean[0], standardizer.std[0]
        self.module = nn.Linear(self._model.teacher_dim, len(weights)).to(backbone.device)
        with torch.no_grad():
            self.module.weight.zero_()
            self.module.bias.zero_()
            if reads_log_odds:
                # Feature k is the log-odds of class k (feature 0 is not used): start with these.
                self.module.weight[:, 1:] = torch.diag(self._std[1:])
                self.module.bias.copy_(self._mean[1:])

    def features(self, state: RecurrentState) -> Tensor:
        return self._model.predict_teacher_cls(state.recurrent_cls.float())

    def target(self, labels: Tensor) -> Tensor:
        return labels.to(self._device).long()

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        labels = target.repeat(len(features) // len(target))
        return F.cross_entropy(self.module(features), labels, weight=self._weights)

    def save(self, directory: Path) -> None:
        """Save it for unstandardized features: canvit-pytorch undoes the standardization before the probe."""
        weight = self.module.weight.double() / self._std.double()
        bias = self.module.bias.double() - weight @ self._mean.double()
        tensors = {"weight": weight.float().cpu().contiguous(), "bias": bias.float().cpu()}
        with replacing(directory / WEIGHTS) as partial:
            save_file({key: value.detach() for key, value in tensors.items()}, partial)


class RecurrentClsHead:
    """Cross-entropy of a linear map of the recurrent CLS token itself, after a LayerNorm without affine part.

    For classes that the teacher's CLS token does not predict: see canvit_gym.tasks.classification.
    """

    def __init__(self, backbone: Backbone, weights: Tensor) -> None:
        self._device = backbone.device
        self._weights = weights.to(backbone.device)
        self.module = nn.Linear(backbone.canvit.backbone_dim, len(weights)).to(backbone.device)
        with torch.no_grad():
            self.module.weight.zero_()
            self.module.bias.zero_()

    def features(self, state: RecurrentState) -> Tensor:
        token = state.recurrent_cls[:, 0].float()
        return F.layer_norm(token, token.shape[-1:])

    def target(self, labels: Tensor) -> Tensor:
        return labels.to(self._device).long()

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        labels = target.repeat(len(features) // len(target))
        return F.cross_entropy(self.module(features), labels, weight=self._weights)

    def save(self, directory: Path) -> None:
        tensors = {RECURRENT_CLS + key: value.detach().cpu() for key, value in self.module.state_dict().items()}
        with replacing(directory / WEIGHTS) as partial:
            save_file(tensors, partial)
