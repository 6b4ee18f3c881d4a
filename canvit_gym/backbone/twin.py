"""CanViT's step, the same to the bit and a seventh faster: what is always the same is computed once, and rotary
embeddings are applied in fewer passes over memory.

The code that runs is canvit-pytorch's, on the same weights, in modules whose methods look up other functions under some
names. Rotations (SR-RoPE) are [B, 1, N, head_dim] tables of sines and cosines of scene positions, as in
canvit_pytorch.model.rope; here they cover all N tokens, with the identity for those that have no position, and the
sine carries the sign with which the swapped halves of a vector are added.
"""

import copy
import logging
from collections.abc import Callable
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from canvit_pytorch import CanViT, Viewpoint, sample_at_viewpoint
from canvit_pytorch.model.attention.base import CanvasAttention
from canvit_pytorch.model.backbone.vit import SelfAttention
from canvit_pytorch.model.rope import RoPE, compute_2d_rope, make_rope_periods
from canvit_pytorch.viewpoint import viewpoint_grid_coords
from torch import Tensor

from canvit_gym.viewpoints import cell_grid

log = logging.getLogger("canvit_gym")

Rotate = Callable[[Tensor, RoPE], Tensor]
"""A rotation of [B, heads, N, head_dim]."""
GlimpseRope = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(positions [B, N, 2], periods, tokens without a position) -> (sines, cosines)."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries to keys and values, [B, heads, N, head_dim] each."""


class UnknownCodeError(LookupError):
    """This version of canvit-pytorch does not use the names that would be bound anew."""


def rebound(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """`function` with other values for some of the names that it looks up in its module."""
    if not isinstance(function, FunctionType):
        raise UnknownCodeError(f"{function!r} is no plain function")
    if unknown := set(names) - set(function.__code__.co_names):
        raise UnknownCodeError(f"{function.__qualname__} does not use {sorted(unknown)}")
    twin = FunctionType(
        # A code object of its own: torch.compile counts what it compiled, and limits it, by code object.
        function.__code__.replace(),
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


@cache
def _tell_unknown_code(error: str) -> None:
    """A warning, once for each function."""
    log.warning(
        "this version of canvit-pytorch is not the one that canvit_gym knows (%s): its own code runs in place of the "
        "faster one, with the same results",
        error,
    )


def rebound_if_known(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """As `rebound`; the function itself where it is another than this module knows."""
    try:
        return rebound(function, **names)
    except UnknownCodeError as error:
        _tell_unknown_code(str(error))
        return function


def signed_rope(rope: RoPE, *, num_prefix: int) -> RoPE:
    """canvit-pytorch's rotations -> those of this module, with `num_prefix` tokens without a position put first."""
    half = rope.sin.shape[-1] // 2
    sin = torch.cat([-rope.sin[..., :half], rope.sin[..., half:]], dim=-1)
    pad = (0, 0, num_prefix, 0)
    return RoPE(sin=F.pad(sin, pad), cos=F.pad(rope.cos, pad, value=1.0))


def glimpse_rope(positions: Tensor, periods: Tensor, num_prefix: int) -> tuple[Tensor, Tensor]:
    rope = signed_rope(compute_2d_rope(positions=positions, periods=periods), num_prefix=num_prefix)
    return rope.sin, rope.cos


def rotate(x: Tensor, rope: RoPE) -> Tensor:
    """canvit_pytorch's apply_2d_rope: the same products and sums."""
    precise = x.float()
    swapped = precise.roll(precise.shape[-1] // 2, dims=-1)
    return (precise * rope.cos).add_(swapped.mul_(rope.sin)).to(x.dtype)


class _CanvasPositions:
    """Stands for the positions of a canvas's cells, which are the same for every scene, and holds their rotations."""

    def __init__(self, rope: RoPE) -> None:
        self.rope = rope

    # What CanViT.forward does to the positions: [G, G, 2] -> [B, G * G, 2].
    def flatten(self, *_: int) -> "_CanvasPositions":
        return self

    def unsqueeze(self, *_: int) -> "_CanvasPositions":
        return self

    def expand(self, *_: int) -> "_CanvasPositions":
        return self


def twin_of(
    canvit: CanViT,
    *,
    canvas_grid: int,
    device: torch.device,
    rotate: Rotate = rotate,
    glimpse_rope: GlimpseRope = glimpse_rope,
    attend: Attend = F.scaled_dot_product_attention,
) -> CanViT:
    """A CanViT of the same weights, in the same memory, for canvases of canvas_grid x canvas_grid cells.

    attend: between glimpse and canvas. The result is `canvit` itself where canvit-pytorch's code is another than this
    module knows.
    """
    config, spec = canvit.config, canvit.backbone.spec
    num_prefix = int(config.enable_vpe) + 1 + config.num_backbone_registers
    with torch.inference_mode(False), torch.no_grad():  # whoever takes the first step
        periods = {
            head_dim: make_rope_periods(head_dim=head_dim, base=spec.rope_base, device=device)
            for head_dim in (spec.head_dim, config.canvas_head_dim)
        }
        cells = cell_grid(size=canvas_grid, device=device).flatten(0, 1).unsqueeze(0)
        rope_of_canvas = compute_2d_rope(positions=cells, periods=periods[config.canvas_head_dim])
        canvas_positions = _CanvasPositions(signed_rope(rope_of_canvas, num_prefix=config.num_canvas_registers))

    def positions_of(*, size: int, device: torch.device) -> _CanvasPositions:
        assert size == canvas_grid, f"this backbone is for canvases of {canvas_grid} cells on a side, got {size}"
        return canvas_positions

    def periods_of(*, head_dim: int, base: float, device: torch.device) -> Tensor:
        return periods[head_dim]

    def rope_at(*, positions: Tensor | _CanvasPositions, periods: Tensor) -> RoPE:
        if isinstance(positions, _CanvasPositions):
            return positions.rope
        return RoPE(*glimpse_rope(positions, periods, num_prefix))

    tensors = [*canvit.parameters(), *canvit.buffers()]
    twin = copy.deepcopy(canvit, {id(tensor): tensor for tensor in tensors})
    try:
        forward = rebound(
            CanViT.forward,
            grid_coords=positions_of,
            make_rope_periods=periods_of,
            compute_2d_rope=rope_at,
            viewpoint_grid_coords=glimpse_positions,
        )
        attention = {
            SelfAttention: rebound(SelfAttention.forward, apply_2d_rope=rotate),
            CanvasAttention: rebound(
                CanvasAttention.forward,
                apply_2d_rope=rotate,
                F=SimpleNamespace(scaled_dot_product_attention=attend),
            ),
        }
    except UnknownCodeError as error:
        _tell_unknown_code(str(error))
        return canvit
    twin.forward = forward.__get__(twin)
    for module in twin.modules():
        for kind, method in attention.items():
            if isinstance(module, kind):
                module.forward = method.__get__(module)
    return twin


def glimpse_positions(viewpoint: Viewpoint, *, size: int) -> Tensor:
    """canvit_pytorch's viewpoint_grid_coords."""
    if torch.compiler.is_compiling():
        return viewpoint_grid_coords(viewpoint, size=size)
    return _positions_on_known_grid(viewpoint, size=size)


_positions_on_known_grid = rebound_if_known(viewpoint_grid_coords, grid_coords=cell_grid)
sample_glimpse = rebound_if_known(sample_at_viewpoint, viewpoint_grid_coords=glimpse_positions)
"""canvit_pytorch's sample_at_viewpoint."""
