"""The canvas as it is read and shown: its patches, layer-normalized."""

import torch
import torch.nn.functional as F
from canvit_pytorch import RecurrentState
from torch import Tensor

from canvit_gym.backbone.load import Backbone

LAYER_NORM_EPS = 1e-5
"""PyTorch's default."""


def normalized_canvas(backbone: Backbone, state: RecurrentState) -> Tensor:
    """[B, G*G, D] float32: the canvas patches, each token layer-normalized without affine."""
    # Registers are included, then dropped: normalizing the contiguous whole is faster than normalizing a slice.
    canvas = state.canvas.float()
    if canvas.device.type != "cpu":
        return backbone.canvit.canvas_patches(F.layer_norm(canvas, canvas.shape[-1:]))
    # For tokens as narrow as a canvas's, PyTorch's kernel takes twice as long.
    centered = canvas - canvas.mean(dim=-1, keepdim=True)
    variance = torch.linalg.vector_norm(centered, dim=-1, keepdim=True).square_().div_(canvas.shape[-1])
    return backbone.canvit.canvas_patches(centered.mul_(variance.add_(LAYER_NORM_EPS).rsqrt_()))
