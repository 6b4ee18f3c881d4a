"""Semantic segmentation: a linear probe reads class logits from every canvas cell."""

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch import CanViTForSemanticSegmentation, RecurrentState, SegmentationProbe
from canvit_pytorch.benchmarks.ade20k import per_image_confusion
from torch import Tensor

from canvit_gym.backbone.load import LOADING_ERRORS, Backbone, quiet_loading, require_checkpoint_files, sha256_of

IGNORE_LABEL = 255
"""Pixels with this label count neither in the loss nor in the score (canvit-pytorch's convention)."""

UPSAMPLING_CHUNK = 16
"""Scenes upsampled at once: small enough that a chunk's logits stay in a CPU's cache."""


def load_probe(name: str, location: str, backbone: Backbone, *, num_classes: int) -> SegmentationProbe:
    """A frozen probe in evaluation mode (in train mode its BatchNorm and dropout would change every reading).

    Raises:
        FileNotFoundError: the directory lacks a file.
        ValueError: the probe does not fit the canvas or the classes.
    """
    require_checkpoint_files(name, location, ("config.json", "model.safetensors"))
    try:
        with quiet_loading():
            probe = SegmentationProbe.from_pretrained(location)
    except LOADING_ERRORS as error:
        raise ValueError(
            f"probe {name!r} ({location}) is not a SegmentationProbe of canvit-pytorch: {error}"
        ) from error
    if probe.embed_dim != backbone.canvit.canvas_dim:
        raise ValueError(
            f"probe {name!r} reads {probe.embed_dim} channels, but the canvas of checkpoint {backbone.name!r} has "
            f"{backbone.canvit.canvas_dim}. Use a probe fitted on this checkpoint (python -m experiments.fit_probe)."
        )
    if probe.num_classes != num_classes:
        raise ValueError(
            f"probe {name!r} tells {probe.num_classes} classes apart, but the scenes have {num_classes}. "
            "Use a probe fitted on these classes."
        )
    return probe.to(backbone.device).eval().requires_grad_(False)


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


class SegmentationTask:
    """Score: the scene's mIoU at scene size. Loss: cross-entropy between each cell's class shares and the reading."""

    name = "segmentation"
    is_dense = True

    def __init__(
        self, *, backbone: Backbone, probe: SegmentationProbe, classes: tuple[str, ...], location: str
    ) -> None:
        self.classes = classes
        self.probe_sha256 = sha256_of(location)
        self.model = CanViTForSemanticSegmentation(canvit=backbone.canvit, probe=probe).eval()
        self._backbone = backbone
        self._weight, self._bias = fused_probe(probe)
        self._normalizes = probe.use_ln

    def truth(self, labels: Tensor) -> dict[str, Tensor]:
        """[n, H, W] uint8 maps -> labels [n, H, W] and shares [n, K, G, G], each cell's share of every class."""
        n, size, _ = labels.shape
        grid = self._backbone.canvas_grid
        cell = size // grid
        if cell * grid != size:
            raise ValueError(f"label maps of {size} px do not divide into {grid} canvas cells")
        # On the host, where the labels are: byte comparisons cost a third of a bincount, and nothing of the device.
        cells = labels.numpy().reshape(n, grid, cell, grid, cell).transpose(0, 1, 3, 2, 4).reshape(-1, cell**2)
        counts = np.empty((len(self.classes), len(cells)), dtype=np.int32)
        for label in range(len(self.classes)):
            np.add.reduce(cells == label, axis=1, dtype=np.int32, out=counts[label])
        shares = torch.from_numpy(counts).view(-1, n, grid, grid).transpose(0, 1).float() / cell**2
        device = self._backbone.device
        return {"labels": labels.to(device), "shares": shares.to(device)}

    def read(self, state: RecurrentState, canvas_norm: Tensor | None = None) -> Tensor:
        """[B, K, G, G] logits, equal to `self.model.logits` up to rounding."""
        grid = self._backbone.canvas_grid
        if not self._normalizes:
            features = self._backbone.canvit.canvas_patches(state.canvas).float()
        elif canvas_norm is None:
            features = normalized_canvas(self._backbone, state)
        else:
            features = canvas_norm
        # One matrix product that leaves the classes outermost, where loss and observation want them.
        weight = self._weight.expand(len(features), -1, -1)
        logits = torch.baddbmm(self._bias.unsqueeze(1), weight, features.transpose(1, 2))
        return logits.unflatten(2, (grid, grid))

    def loss(self, logits: Tensor, truth: dict[str, Tensor]) -> Tensor:
        shares = truth["shares"]
        cross_entropy = -(shares * F.log_softmax(logits, dim=1)).sum(dim=(1, 2, 3))
        return cross_entropy / shares.sum(dim=(1, 2, 3)).clamp(min=1e-6)

    def score(self, logits: Tensor, truth: dict[str, Tensor]) -> Tensor:
        labels = truth["labels"].long()
        intersection, union, _ = per_image_confusion(self.predict(logits, labels.shape[-1]), labels, len(self.classes))
        present = union > 0
        return (intersection / union.clamp(min=1)).sum(dim=1) / present.sum(dim=1).clamp(min=1)

    def predict(self, logits: Tensor, size_px: int | None = None) -> Tensor:
        """[B, size_px, size_px] int64 labels: bilinear upsampling, then argmax. Default size: the scene's."""
        size = size_px or self._backbone.scene_size_px
        # Classes innermost: on a CPU the argmax over them is then several times faster, with the same result.
        logits = logits.contiguous(memory_format=torch.channels_last)
        return torch.cat(
            [
                F.interpolate(chunk, size=(size, size), mode="bilinear", align_corners=False).argmax(dim=1)
                for chunk in logits.split(UPSAMPLING_CHUNK)
            ]
        )


def normalized_canvas(backbone: Backbone, state: RecurrentState) -> Tensor:
    """[B, G*G, D] float32: the canvas patches, each token layer-normalized without affine."""
    # Registers included, then dropped: normalizing the contiguous whole is faster than a slice of it.
    return backbone.canvit.canvas_patches(F.layer_norm(state.canvas.float(), state.canvas.shape[-1:]))
