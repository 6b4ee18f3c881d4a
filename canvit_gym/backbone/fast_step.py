"""One step of a frozen CanViT: canvit_pytorch.CanViT.forward, written for inference.

The layers and weights are canvit-pytorch's, and so are the results: the same bits on a CPU in float32, computed
eagerly. Three things differ. Constants are computed once: the rotary tables of the canvas, the coordinates of a
glimpse's pixels and patches, biases, weights in bfloat16. Rotations take fewer passes over memory. And torch.compile
sees one plain function, in which a few operations are written in a form that it compiles to fast kernels.

Rotations (SR-RoPE) are tables of sines and cosines for all N tokens of a sequence, with the identity for those without
a position; the sine carries the sign with which the swapped halves of a vector are added.

If the installed version of canvit-pytorch is not covered by the tests, its own forward runs: see
canvit_gym.backbone.step.
"""

import copy
import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from canvit_pytorch import CanViT, Viewpoint
from canvit_pytorch.model.attention.base import CanvasAttention, from_multihead, to_multihead
from canvit_pytorch.model.backbone.vit import SelfAttention, ViTBlock
from canvit_pytorch.model.rope import make_rope_periods
from canvit_pytorch.viewpoint import grid_coords
from torch import Tensor, nn


class Rotation(NamedTuple):
    sin: Tensor  # [B or 1, 1, N, head_dim]
    cos: Tensor  # [B or 1, 1, N, head_dim]


def rotation_at(positions: Tensor, periods: Tensor, num_prefix: int) -> Rotation:
    """[B, N, 2] scene positions -> rotations of N tokens after `num_prefix` tokens without a position."""
    angles = (2 * math.pi * positions.unsqueeze(-1) / periods).flatten(-2, -1)  # [B, N, head_dim / 2]
    sin, cos = torch.sin(angles), torch.cos(angles)
    prefix = (0, 0, num_prefix, 0)
    signed, doubled = torch.cat([-sin, sin], dim=-1), torch.cat([cos, cos], dim=-1)
    return Rotation(sin=F.pad(signed, prefix).unsqueeze(1), cos=F.pad(doubled, prefix, value=1.0).unsqueeze(1))


# The compiler treats this as one opaque operation. Otherwise it would compute sines within the loops of every
# attention, once per use.
@torch.library.custom_op("canvit_gym::glimpse_rotation", mutates_args=())
def glimpse_rotation(positions: Tensor, periods: Tensor, num_prefix: int) -> tuple[Tensor, Tensor]:
    return rotation_at(positions, periods, num_prefix)


@glimpse_rotation.register_fake
def _(positions: Tensor, periods: Tensor, num_prefix: int) -> tuple[Tensor, Tensor]:
    num, tokens, _ = positions.shape
    sin = positions.new_empty(num, 1, num_prefix + tokens, 4 * periods.shape[0])
    return sin, torch.empty_like(sin)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """[B, heads, N, head_dim], with the products and sums of canvit_pytorch's apply_2d_rope."""
    precise = x.float()
    if torch.compiler.is_compiling():  # a flip is fused into the loop; a roll would be a copy
        halves, sin, cos = (t.unflatten(-1, (2, -1)) for t in (precise, by.sin, by.cos))
        return (halves * cos + halves.flip(-2) * sin).flatten(-2).to(x.dtype)
    swapped = precise.roll(precise.shape[-1] // 2, dims=-1)
    return (precise * by.cos).add_(swapped.mul_(by.sin)).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention between glimpse and canvas, [B, heads, N, head_dim] each."""
    if query.device.type == "cpu" and torch.compiler.is_compiling() and key.shape[2] < query.shape[2]:
        # The canvas's many tokens query a glimpse's few: with the scores' long side innermost, loops are long.
        scores = torch.matmul(key * query.shape[-1] ** -0.5, query.transpose(2, 3))  # [B, heads, N_key, N_query]
        return torch.matmul(scores.softmax(dim=2).transpose(2, 3), value)
    return F.scaled_dot_product_attention(query, key, value)


def _in_bfloat16(canvit: CanViT) -> CanViT:
    """A copy in which the weights that autocast would cast at every step are cast once; the others are shared."""
    shared = {id(tensor): tensor for tensor in (*canvit.parameters(), *canvit.buffers())}
    canvit = copy.deepcopy(canvit, shared)
    for module in canvit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.detach().bfloat16(), requires_grad=False))
    return canvit


class FastStep:
    """(glimpse, canvas, recurrent CLS, centers, scales) -> (canvas, recurrent CLS) of B scenes.

    For one canvas grid and one glimpse size. bfloat16: whether it runs under autocast to that type.
    """

    def __init__(self, canvit: CanViT, *, canvas_grid: int, glimpse_size_px: int, bfloat16: bool) -> None:
        config, spec = canvit.config, canvit.backbone.spec
        device = canvit.init_recurrent_cls.device
        assert glimpse_size_px % spec.patch_size == 0, f"{glimpse_size_px} px are no whole patches of {spec.patch_size}"
        self.num_prefix = int(config.enable_vpe) + 1 + config.num_backbone_registers
        # Outside of inference mode, in which the first step may be taken, since these tensors are kept.
        with torch.inference_mode(False), torch.no_grad():
            self.canvit = _in_bfloat16(canvit) if bfloat16 else canvit
            self.pixels = grid_coords(size=glimpse_size_px, device=device)  # [px, px, 2] in the crop's frame
            self.patches = grid_coords(size=glimpse_size_px // spec.patch_size, device=device)
            self.periods, self.canvas_periods = (
                make_rope_periods(head_dim=head_dim, base=spec.rope_base, device=device)
                for head_dim in (spec.head_dim, config.canvas_head_dim)
            )
            cells = grid_coords(size=canvas_grid, device=device).flatten(0, 1).unsqueeze(0)
            self.canvas_rotation = rotation_at(cells, self.canvas_periods, config.num_canvas_registers)
            self.blocks = cast(list[ViTBlock], list(self.canvit.backbone.blocks))
            self.qkv_biases = [_qkv_bias(block.attn) for block in self.blocks]
        reads, writes = (
            cast(list[CanvasAttention], list(m)) for m in (self.canvit.canvas_reads, self.canvit.canvas_writes)
        )
        self.read_after = dict(zip(canvit.read_after_blocks, reads, strict=True))
        self.write_after = dict(zip(canvit.write_after_blocks, writes, strict=True))

    def sample(self, images: Tensor, centers: Tensor, scales: Tensor) -> Tensor:
        """canvit_pytorch's sample_at_viewpoint: [B, 3, H, W] -> [B, 3, px, px]."""
        xy = _positions(centers, scales, self.pixels).flip(-1)  # grid_sample takes (x, y)
        return F.grid_sample(images.float(), xy, mode="bilinear", align_corners=False).to(images.dtype)

    def __call__(
        self, glimpse: Tensor, canvas: Tensor, recurrent_cls: Tensor, centers: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        canvit, num = self.canvit, len(glimpse)
        patches = canvit.backbone.patch_embed(glimpse)
        prefix = [recurrent_cls, canvit.backbone_registers.expand(num, -1, -1)]
        if canvit.vpe is not None:
            vpe = canvit.vpe(Viewpoint(centers=centers, scales=scales))
            prefix.insert(0, vpe.unsqueeze(1).to(patches.dtype))
        tokens = torch.cat([*prefix, patches], dim=1)

        positions = _positions(centers, scales, self.patches).flatten(1, 2)
        rotations = glimpse_rotation if torch.compiler.is_compiling() else rotation_at
        rotation = Rotation(*rotations(positions, self.periods, self.num_prefix))
        rotation_in_canvas = Rotation(*rotations(positions, self.canvas_periods, self.num_prefix))
        for i, block in enumerate(self.blocks):
            tokens = tokens + block.ls1(_self_attention(block.attn, block.norm1(tokens), rotation, self.qkv_biases[i]))
            tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
            if (read := self.read_after.get(i)) is not None:
                tokens = tokens + _cross_attention(read, tokens, canvas, rotation_in_canvas, self.canvas_rotation)
            if (write := self.write_after.get(i)) is not None:
                canvas = canvas + _cross_attention(write, canvas, tokens, self.canvas_rotation, rotation_in_canvas)
        cls_index = int(canvit.vpe is not None)
        return canvas, tokens[:, cls_index : cls_index + 1].contiguous()


def _positions(centers: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    """Scene coordinates [B, size, size, 2] of the points of a crop at `offsets` [size, size, 2]."""
    return centers.view(-1, 1, 1, 2) + scales.view(-1, 1, 1, 1) * offsets


def _qkv_bias(attention: SelfAttention) -> Tensor:
    """Without that of the keys, as SelfAttention.forward has it."""
    assert attention.qkv.bias is not None
    return (attention.qkv.bias * attention._bias_mask).to(attention.qkv.bias.dtype)


def _self_attention(attention: SelfAttention, x: Tensor, rotation: Rotation, qkv_bias: Tensor) -> Tensor:
    num, tokens, dim = x.shape
    qkv = F.linear(x, attention.qkv.weight, qkv_bias)
    qkv = qkv.reshape(num, tokens, 3, attention.num_heads, attention.head_dim)
    query, key, value = [qkv[:, :, i].transpose(1, 2) for i in range(3)]  # [B, heads, N, head_dim]
    query, key = rotate(query, rotation), rotate(key, rotation)
    out = F.scaled_dot_product_attention(query, key, value, scale=attention.head_dim**-0.5)
    return attention.proj(out.transpose(1, 2).reshape(num, tokens, dim))


def _cross_attention(
    layer: CanvasAttention, query: Tensor, kv: Tensor, query_rotation: Rotation, kv_rotation: Rotation
) -> Tensor:
    q = rotate(to_multihead(layer.q_map(layer.ln_q(query)), layer.num_heads), query_rotation)
    kv = layer.ln_kv(kv)
    k = rotate(to_multihead(layer.k_map(kv), layer.num_heads), kv_rotation)
    v = to_multihead(layer.v_map(kv), layer.num_heads)
    return layer.o_map(from_multihead(attend(q, k.to(q.dtype), v.to(q.dtype))))
