"""Semantic segmentation: a linear probe reads class logits from every canvas cell."""

import json
from collections.abc import Collection
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch import CanViTForSemanticSegmentation, RecurrentState, SegmentationProbe
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL, per_image_confusion
from canvit_pytorch.flops import segmentation_probe_flops
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from canvit_gym.backbone.canvas import normalized_canvas
from canvit_gym.backbone.hub import CONFIG, PROBES, WEIGHTS, Source, asset_dir, locate, mark_used
from canvit_gym.backbone.load import Backbone
from canvit_gym.backbone.weights import LOADING_ERRORS, load_weights
from canvit_gym.checks import expanded
from canvit_gym.config import EnvConfig
from canvit_gym.confusion import QuadLabels, count_confusion, count_on_device
from canvit_gym.observations import predictive_uncertainty
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.tasks.default_probe import default_probe
from canvit_gym.tasks.metric import IoUMetric, Metric
from canvit_gym.tasks.pictures import LabelMapPicture, TaskPicture
from canvit_gym.tasks.task import Task, Truth, check_probe, potential

QUADS = "quads."
"""Prefix of the names of QuadLabels' tensors in a scene's truth."""

UPSAMPLING_BYTES = {"cpu": 12 << 20, "cuda": 1 << 30}
"""The most bytes of logits upsampled at once: they stay in a CPU's cache, or leave room on a GPU."""


def load_probe(name: str, backbone: Backbone, *, classes: tuple[str, ...]) -> tuple[SegmentationProbe, Source]:
    """A frozen probe in evaluation mode, and where it comes from.

    (In train mode its BatchNorm and dropout would change every reading.)

    Raises:
        FileNotFoundError: no such probe, or a directory that lacks a file.
        ValueError: the probe does not fit the canvas or the classes.
    """
    if name in PROBES or _holds_classifier(name):
        raise ValueError(
            f"probe {name!r} is a classification probe, but the task is segmentation: leave probe out for the default, "
            "or fit one of this task (canvit-gym fit-probe)"
        )
    source = locate("probe", name, files=(CONFIG, WEIGHTS))
    probe = _load_probe(source, backbone.device)
    if probe.embed_dim != backbone.canvit.canvas_dim:
        raise ValueError(
            f"probe {name!r} reads {probe.embed_dim} channels, but the canvas of checkpoint {backbone.name!r} has "
            f"{backbone.canvit.canvas_dim}. Use a probe fitted on this checkpoint (canvit-gym fit-probe)."
        )
    what, num_classes = f"probe {name!r}", probe.num_classes
    check_probe(what, source.directory, backbone=backbone, num_classes=num_classes, classes=classes)
    return probe, source


def _holds_classifier(name: str) -> bool:
    """Whether the weights under this name on this machine are those of a linear classifier."""
    directory = shipped if (shipped := asset_dir(name)).is_dir() else expanded("probe", name)
    try:
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            return set(file.keys()) == {"weight", "bias"}
    except (OSError, SafetensorError):
        return False


@cache
def _load_probe(source: Source, device: torch.device) -> SegmentationProbe:
    try:
        config = json.loads((source.directory / CONFIG).read_text(encoding="utf-8"))
        probe = load_weights(SegmentationProbe, source, config)
    except LOADING_ERRORS as error:
        raise ValueError(
            f"probe {source.name!r} ({source.directory}) is not a SegmentationProbe of canvit-pytorch: {error}"
        ) from error
    mark_used(source)
    return probe.to(device).eval().requires_grad_(False)


def fused_probe(probe: SegmentationProbe) -> tuple[Tensor, Tensor]:
    """(W [K, D], b [K]): in evaluation mode LayerNorm's affine part, BatchNorm and convolution are one affine map."""
    bn = probe.bn
    assert bn.running_mean is not None and bn.running_var is not None
    weight = probe.conv.weight.double().flatten(1)  # [K, D]
    assert probe.conv.bias is not None
    bias = probe.conv.bias.double()
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    shift = bn.bias.double() - bn.running_mean.double() * scale
    if isinstance(probe.ln, torch.nn.LayerNorm):
        shift = shift + scale * probe.ln.bias.double()
        scale = scale * probe.ln.weight.double()
    return (weight * scale).float(), (bias + weight @ shift).float()


class SegmentationTask(Task):
    """The class of every pixel, read from every canvas cell."""

    name = "segmentation"
    metric: ClassVar[Metric] = IoUMetric()
    picture: ClassVar[TaskPicture] = LabelMapPicture()

    def __init__(
        self, *, backbone: Backbone, probe: SegmentationProbe, classes: tuple[str, ...], source: Source
    ) -> None:
        super().__init__(backbone=backbone, classes=classes, source=source)
        self.model = CanViTForSemanticSegmentation(canvit=backbone.canvit, probe=probe).eval()
        self._weight, self._bias = fused_probe(probe)
        self._normalizes = probe.use_ln
        self._in_bfloat16 = backbone.device.type == "cuda" and backbone.precision == "bfloat16"

    @property
    def flops_per_reading(self) -> int:
        return segmentation_probe_flops(
            grid_size=self.backbone.canvas_grid,
            embed_dim=self.backbone.canvit.canvas_dim,
            num_classes=len(self.classes),
        )

    def truth(
        self,
        scenes: SceneBatch,
        *,
        goal: NDArray[Any] | None = None,
        potentials: Collection[str] = (),
        counted: bool = False,
    ) -> dict[str, Tensor]:
        """labels [n, H, W] uint8, and shares [n, K, G, G], each cell's share of every class.

        If pixels will be counted, also the tensors of QuadLabels, cut once for all glimpses.
        """
        labels = scenes.labels.to(self.backbone.device, non_blocking=True)
        shares = class_shares(labels, num_classes=len(self.classes), grid=self.backbone.canvas_grid)
        truth = {"labels": labels, "shares": shares}
        return truth | self.quads(labels) if counted or "score" in potentials else truth

    def labelled(self, truth: Truth) -> Tensor:
        return (truth["labels"] != IGNORE_LABEL).flatten(1).any(dim=1)

    def read(self, state: RecurrentState, canvas_norm: Tensor | None = None) -> Tensor:
        """[B, K, G, G] logits, equal to `self.model.logits` up to rounding."""
        grid = self.backbone.canvas_grid
        if not self._normalizes:
            features = self.backbone.canvit.canvas_patches(state.canvas).float()
        elif canvas_norm is None:
            features = normalized_canvas(self.backbone, state)
        else:
            features = canvas_norm
        # One matrix product that leaves the classes outermost, as loss and observation need them. In float32 it takes a
        # GPU a tenth of a whole step in bfloat16; on a CPU it hardly counts.
        weight = self._weight.expand(len(features), -1, -1)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._in_bfloat16):
            logits = torch.baddbmm(self._bias.unsqueeze(1), weight, features.transpose(1, 2))
        return logits.float().unflatten(2, (grid, grid))

    def canvas_logits(self, canvas: Tensor) -> Tensor:
        """Decoded by canvit-pytorch itself: the same bits."""
        return self.model.logits(canvas)

    @potential(
        "L",
        "cross-entropy between the reading of each cell and its class shares, nats",
        compiles=True,
        less_is_better=True,
    )
    def loss(self, logits: Tensor, truth: Truth) -> Tensor:
        shares = truth["shares"]
        cross_entropy = -(shares * F.log_softmax(logits, dim=1)).sum(dim=(1, 2, 3))
        return cross_entropy / shares.sum(dim=(1, 2, 3)).clamp(min=1e-6)

    @potential("S", "mIoU of the scene, at scene size")
    def score(self, logits: Tensor, truth: Truth) -> Tensor:
        intersection, union = self.confusion(logits, truth)
        present = union > 0
        return (intersection / union.clamp(min=1)).sum(dim=1) / present.sum(dim=1).clamp(min=1)

    def quads(self, labels: Tensor) -> dict[str, Tensor]:
        """Label maps [n, S, S] -> tensors that make `confusion` fast; {} if the maps do not divide into whole quads."""
        grid = self.backbone.canvas_grid
        if labels.shape[-1] % (2 * grid):
            return {}
        cut = QuadLabels.cut(labels, grid=grid, num_classes=len(self.classes))
        return {QUADS + name: value for name, value in vars(cut).items()}

    def count(self, logits: Tensor, truth: Truth) -> dict[str, Tensor]:
        """intersection and union [B, K], pixels."""
        intersection, union = self.confusion(logits, truth)
        return {"intersection": intersection, "union": union}

    def confusion(self, logits: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        """(intersection, union) [B, K] in pixels; by quads where the truth holds them."""
        if cut := {name.removeprefix(QUADS): truth[name] for name in truth if name.startswith(QUADS)}:
            return count_confusion(logits, QuadLabels(**cut), labels=truth["labels"])
        maps = truth["labels"].long()
        return per_image_confusion(self.predict(logits, maps.shape[-1]), maps, len(self.classes))[:2]

    @potential("P", "the mean IoU of probabilities with class shares, over the scene's classes", compiles=True)
    def soft_score(self, logits: Tensor, truth: Truth) -> Tensor:
        """[B]: soft IoU over cells, sum(s p) / sum(s + p - s p) of class shares s and probabilities p, averaged over
        the scene's own classes (Rahman & Wang 2016). Unlabelled parts count in neither sum."""
        shares = truth["shares"].flatten(2)  # [B, K, G * G]
        probabilities = logits.softmax(dim=1).flatten(2) * shares.sum(dim=1, keepdim=True)
        mass, intersection = shares.sum(dim=2), (shares * probabilities).sum(dim=2)
        union = mass + probabilities.sum(dim=2) - intersection
        present = mass > 0
        return (intersection / union.clamp(min=1e-6) * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)

    def predict(self, logits: Tensor, size_px: int | None = None) -> Tensor:
        """[B, size_px, size_px] int64 labels: bilinear upsampling, then argmax. Default size: the scene's."""
        size = size_px or self.backbone.scene_size_px
        budget = UPSAMPLING_BYTES.get(logits.device.type, UPSAMPLING_BYTES["cpu"])
        chunk_size = max(1, budget // (logits.shape[1] * size**2 * logits.element_size()))
        # Classes innermost: on a CPU the argmax over them is then several times faster, with the same result.
        logits = logits.contiguous(memory_format=torch.channels_last)
        return torch.cat(
            [
                F.interpolate(chunk, size=(size, size), mode="bilinear", align_corners=False).argmax(dim=1)
                for chunk in logits.split(chunk_size)
            ]
        )

    @classmethod
    def uncertainty_shape(cls, map_size: int) -> tuple[int, ...]:
        return (1, map_size, map_size)

    def uncertainty(self, logits: Tensor, *, map_size: int) -> Tensor:
        return predictive_uncertainty(logits, size=map_size)


def build_segmentation(config: EnvConfig, backbone: Backbone, classes: tuple[str, ...]) -> SegmentationTask:
    """The task of an environment; the probe is the config's, or the default of its data set."""
    return SegmentationTask(backbone=backbone, classes=classes, **segmentation_parts(config, backbone, classes))


def segmentation_parts(config: EnvConfig, backbone: Backbone, classes: tuple[str, ...]) -> dict[str, Any]:
    """`probe` and `source` of a SegmentationTask, or of a task with the same readings."""
    name = config.probe or default_probe(DATASETS[config.dataset], backbone)
    assert name is not None, config.dataset
    probe, source = load_probe(name, backbone, classes=classes)
    return {"probe": probe, "source": source}


def cells_of_pixels(size_px: int, grid: int) -> Tensor:
    """[size_px]: the canvas cell, along one axis, that holds each pixel's center."""
    return (2 * torch.arange(size_px) + 1) * grid // (2 * size_px)


@cache
def pixels_of_cells(size_px: int, grid: int, device: torch.device) -> Tensor:
    """[G, G]: the number of pixels in each cell, at least 1. Not to be changed, as all calls share it."""
    with torch.inference_mode(False):
        along = torch.bincount(cells_of_pixels(size_px, grid), minlength=grid)
        return (along[:, None] * along).clamp(min=1).to(device)


@cache
def cell_of_pixel(size_px: int, grid: int, device: torch.device) -> Tensor:
    """[size_px, size_px] int64: the cell of each pixel, counted by rows. Not to be changed, as all calls share it."""
    with torch.inference_mode(False):
        along = cells_of_pixels(size_px, grid)
        return (along[:, None] * grid + along).to(device)


def class_shares(labels: Tensor, *, num_classes: int, grid: int) -> Tensor:
    """[n, H, W] uint8 maps -> [n, K, G, G]: the share of each cell that each class covers, on the labels' device."""
    count = class_counts_on_host if labels.device.type == "cpu" else class_counts_on_device
    counts = count(labels, num_classes=num_classes, grid=grid)
    return counts / pixels_of_cells(labels.shape[-1], grid, labels.device)


def class_counts_on_host(labels: Tensor, *, num_classes: int, grid: int) -> Tensor:
    """[n, H, W] uint8 maps -> [n, K, G, G] float32: pixels of each class in each cell. Other labels are left out."""
    index = cell_of_pixel(labels.shape[-1], grid, labels.device).numpy() * 256
    counts = np.empty((len(labels), num_classes, grid, grid), dtype=np.float32)
    for scene, labelled in enumerate(labels.numpy()):
        found = np.bincount((index + labelled).ravel(), minlength=256 * grid**2)
        counts[scene] = found.reshape(grid, grid, 256)[:, :, :num_classes].transpose(2, 0, 1)
    return torch.from_numpy(counts)


def class_counts_on_device(labels: Tensor, *, num_classes: int, grid: int) -> Tensor:
    """Like class_counts_on_host, but on the labels' device and without a synchronization."""
    num, size, _ = labels.shape
    # Labels of no class share one map, dropped below. Cells innermost, so that neighbours add to different counters.
    index = torch.add(cell_of_pixel(size, grid, labels.device), labels.clamp(max=num_classes), alpha=grid**2)
    counts = count_on_device(index.flatten(1), (num_classes + 1) * grid**2)
    return counts.view(num, num_classes + 1, grid, grid)[:, :num_classes].float()
