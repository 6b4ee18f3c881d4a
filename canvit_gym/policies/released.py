"""The learned policies that CanViT's authors released: load_policy("canvit/qpolicy-ade20k-c64-t5-qband-2026-07-04-s0").

A released policy is a directory with `config.json` (the network's arguments) and `model.safetensors`. It scores
viewpoints on a grid of centers inside the scene, at a few scales, from features that it computes from the canvas
itself; it uses none of an environment's observations. The first glimpse is the full scene.

Features are maps of 32 x 32 cells, pooled from the canvas's own, in the order of `groups`:

- ent, ent_delta: the reading's predictive entropy in nats, and how it changed;
- cos_prev, cos_init: one minus the cosine of each cell with itself before, and with the empty canvas;
- ln_feat, feat_delta: the layer-normalized canvas, and how it changed.

"Before" is the state at the last decision; at the first one, the empty canvas.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch.project import HUB_ORGANIZATION
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from canvit_gym.actions import Actions, DiscreteActions, grid_viewpoints
from canvit_gym.backbone.canvas import normalized_canvas
from canvit_gym.backbone.load import Backbone
from canvit_gym.policies.flops import probe_flops
from canvit_gym.policies.protocol import PolicyInfo, check_supported
from canvit_gym.policies.seen import Seen
from canvit_gym.viewpoints import first_viewpoints

CONFIG, WEIGHTS = "config.json", "model.safetensors"
RELEASED_NAME = re.compile(rf"(?:{HUB_ORGANIZATION}/)?qpolicy-[\w.-]+")
"""Names of the policies that CanViT's authors released."""
GROUPS = ("ent", "ent_delta", "cos_prev", "cos_init", "ln_feat", "feat_delta")
SCALARS = ("ent", "ent_delta", "cos_prev", "cos_init")
GRID = 32
"""Side of the feature maps."""
LEVELS = 6
"""Levels of the encoder: maps of 32, 16, 8, 4, 2 and 1 cells."""
_REQUIRED = ("canvas_dim", "width", "n_scale", "scales", "centers_per_axis", "block_layers")
_FIXED = {"action_space": "safebox", "readout": "unet"}
"""Fields that older files leave out, and the only supported value of each."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ResponseNorm(nn.Module):
    """Global response normalization of maps [B, H, W, C] (Woo et al. 2023)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        relative = energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)
        return x + self.weight * (x * relative) + self.bias


class WideLayer(nn.Module):
    """The perceptron of a block, with response normalization inside. Names follow the released files."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.grn = ResponseNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.grn(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """A ConvNeXt V2 block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = WideLayer(channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mlp(self.norm(self.conv_dw(x).movedim(1, -1))).movedim(-1, 1)
        return x + mixed * self.gamma[:, None, None]


def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
    project = [] if channels_in == channels else [nn.Conv2d(channels_in, channels, 1)]
    return nn.Sequential(*project, *(Block(channels) for _ in range(blocks)))


class CellLayer(nn.Module):
    """A residual perceptron on every cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.net = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(self.norm(x))


class Frontend(nn.Module):
    """Feature groups -> one map [B, width, 32, 32]: each projected, normalized and weighted by a gate, then added."""

    def __init__(self, sizes: list[int], width: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.bn = nn.BatchNorm2d(sum(sizes))
        self.proj = nn.ModuleList(nn.Conv2d(size, width, 1) for size in sizes)
        self.norm = nn.ModuleList(ChannelNorm(width) for _ in sizes)
        self.gate = nn.Parameter(torch.ones(len(sizes)))
        self.mlp = CellLayer(width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        groups = self.bn(features).split(self.sizes, dim=1)
        layers = zip(groups, self.proj, self.norm, self.gate, strict=True)
        return self.out(self.mlp(torch.stack([norm(proj(group)) * gate for group, proj, norm, gate in layers]).sum(0)))


class ViewpointScorer(nn.Module):
    """Features [B, C, 32, 32] -> scores [B, A] of the viewpoints, scale by scale, rows of centers from the top."""

    sb_grids: Tensor

    def __init__(
        self,
        *,
        canvas_dim: int,
        width: int,
        n_scale: int,
        scales: tuple[float, ...],
        centers_per_axis: int,
        block_layers: int,
        groups: tuple[str, ...] = GROUPS,
        dueling: bool = False,
    ) -> None:
        super().__init__()
        self.scales, self.groups, self.centers = tuple(scales), tuple(groups), centers_per_axis
        sizes = [1 if group in SCALARS else canvas_dim for group in groups]
        self.frontend = Frontend(sizes, width)
        self.enc = nn.ModuleList(_stage(width, width, block_layers) for _ in range(LEVELS))
        self.dec = nn.ModuleList(_stage(2 * width, width, block_layers) for _ in range(LEVELS - 1))
        self.register_buffer("sb_grids", torch.zeros(n_scale, centers_per_axis, centers_per_axis, 2))
        self.scale_emb = nn.Parameter(torch.zeros(n_scale, width, 1, 1))
        self.head = nn.Sequential(_stage(width, width, block_layers), nn.Conv2d(width, 1, 1))
        self.vhead = nn.Sequential(nn.Linear(sum(sizes), 64), nn.GELU(), nn.Linear(64, 1)) if dueling else None

    def forward(self, features: Tensor) -> Tensor:
        levels = [self.enc[0](self.frontend(features))]
        for encode in list(self.enc)[1:]:
            levels.append(encode(F.avg_pool2d(levels[-1], 2)))
        x = levels.pop()
        for decode in self.dec:
            x = decode(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), levels.pop()], dim=1))
        scores = []
        for places, embedding in zip(self.sb_grids, self.scale_emb, strict=True):
            at_centers = F.grid_sample(x, places.expand(len(x), -1, -1, -1), align_corners=False)
            scores.append(self.head(at_centers + embedding).flatten(1))
        values = torch.cat(scores, dim=1)
        if self.vhead is None:
            return values
        return values - values.mean(dim=1, keepdim=True) + self.vhead(features.mean(dim=(2, 3)))


class ReleasedPolicy:
    """A GlimpsePolicy that takes the viewpoint to which a ViewpointScorer gives the highest score."""

    def __init__(self, network: ViewpointScorer, *, name: str) -> None:
        self.network = network
        self.table = grid_viewpoints(scales=network.scales, centers=network.centers)
        self.info = PolicyInfo(
            name="released",
            paper_name="Viewpoint-Q",
            description=f"released by CanViT's authors as {name}, viewpoint of highest value",
            deterministic=True,
            needs_segmentation_probe=True,
            tasks=("segmentation",),
        )
        self._flops: int | None = None

    @property
    def env_keywords(self) -> dict[str, Any]:
        """Those of an environment whose actions are the viewpoints that the network scores."""
        return {
            "action": "grid",
            "grid_scales": self.network.scales,
            "grid_centers": self.network.centers,
            "allow_stop": False,
            "first_glimpse": "full",
        }

    def require_supported(self, task: str, backbone: Backbone) -> None:
        """Raise ValueError if the network cannot read this task's canvases."""
        check_supported(self.info, task, backbone.canvas_grid)
        wanted, found = self.network.frontend.sizes[-1], backbone.canvit.canvas_dim
        if wanted != found:
            raise ValueError(
                f"this policy reads canvases of {wanted} channels, but the checkpoint's has {found}: use "
                "checkpoint='flagship', on which it was trained"
            )

    def reset(self, seen: Seen, *, seed: int) -> None:
        self.require_supported(seen.task.name, seen.backbone)
        self.network.to(seen.device)
        empty = seen.backbone.init_state(1)
        self._empty = self._cells(seen, normalized_canvas(seen.backbone, empty))
        doubt = _entropy(seen.task.read(empty, None)) if "ent" in self.network.groups else None
        self._before = (self._empty, doubt)

    @torch.no_grad()
    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if t == 0:
            return first_viewpoints("full", seen.num)
        return self.table[self.network(self._features(seen)).argmax(dim=1).cpu().numpy()]

    def _features(self, seen: Seen) -> Tensor:
        """[N, C, 32, 32]; keeps the current state as the one "before" the next decision."""
        cells = self._cells(seen, normalized_canvas(seen.backbone, seen.state))
        before, doubt_before = self._before
        maps = {
            "cos_prev": 1 - F.cosine_similarity(cells, before, dim=1)[:, None],
            "cos_init": 1 - F.cosine_similarity(cells, self._empty, dim=1)[:, None],
            "ln_feat": cells,
            "feat_delta": cells - before,
        }
        doubt = None
        if doubt_before is not None:
            doubt = _entropy(seen.logits)
            maps |= {"ent": doubt, "ent_delta": doubt - doubt_before}
        self._before = (cells, doubt)
        features = torch.cat([maps[group] for group in self.network.groups], dim=1)
        return features if features.shape[-1] == GRID else F.adaptive_avg_pool2d(features, GRID)

    def _cells(self, seen: Seen, canvas: Tensor) -> Tensor:
        """[B, G*G, D] -> [B, D, G, G]"""
        return canvas.transpose(1, 2).unflatten(2, (seen.canvas_grid, seen.canvas_grid))

    def flops_per_decision(self, seen: Seen) -> int:
        if self._flops is None:
            channels = sum(self.network.frontend.sizes)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self.network(torch.zeros(1, channels, GRID, GRID, device=seen.device))
            self._flops = counter.get_total_flops()
        return self._flops + probe_flops(seen)


def _entropy(logits: Tensor) -> Tensor:
    """[B, K, G, G] -> [B, 1, G, G] in nats."""
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1, keepdim=True)


def is_released(directory: Path) -> bool:
    """Whether a directory holds a policy in the authors' layout."""
    if not ((directory / CONFIG).is_file() and (directory / WEIGHTS).is_file()):
        return False
    try:
        return "centers_per_axis" in json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        return False


def load_released(directory: Path, *, name: str, device: torch.device) -> ReleasedPolicy:
    """
    Raises:
        ValueError: arguments or weights do not have the supported layout; the message names the first that differs.
    """
    path = directory / CONFIG
    arguments: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if missing := [key for key in _REQUIRED if key not in arguments]:
        raise ValueError(f"{path} lacks {missing[0]!r}: a released policy's arguments are {', '.join(_REQUIRED)}")
    for key, value in _FIXED.items():
        if arguments.pop(key, value) != value:
            raise ValueError(f"{path} has another {key} than {value!r}, the only one that is known here")
    known = (*_REQUIRED, "groups", "dueling")
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(f"{path} has {unknown[0]!r}, which is not known here; known are: {', '.join(known)}")
    if len(arguments["scales"]) != arguments["n_scale"]:
        raise ValueError(f"{path} has n_scale={arguments['n_scale']}, but scales={arguments['scales']}")
    if strange := [group for group in arguments.get("groups", GROUPS) if group not in GROUPS]:
        raise ValueError(f"{path} has the feature group {strange[0]!r}; known are: {', '.join(GROUPS)}")
    network = ViewpointScorer(**arguments)
    try:
        weights = load_file(directory / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{directory / WEIGHTS} is damaged: {error}") from error
    _require_same_keys(network.state_dict(), weights, directory / WEIGHTS)
    network.load_state_dict(weights)
    _require_same_table(network, path)
    return ReleasedPolicy(network.eval().to(device), name=name)


def require_same_table(policy: ReleasedPolicy, actions: Actions) -> None:
    """Raise ValueError if an environment's actions are not the viewpoints that a policy scores."""
    table = actions.viewpoints if isinstance(actions, DiscreteActions) else np.zeros((0, 3))
    if table.shape != policy.table.shape or not np.allclose(table, policy.table, atol=1e-5):
        raise ValueError(
            f"this policy scores another table of viewpoints than the environment's {actions.space}: make it with "
            f"action='grid', grid_scales={list(policy.network.scales)}, grid_centers={policy.network.centers}"
        )


def _require_same_keys(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    for key in (*expected, *found):
        ours, theirs = expected.get(key), found.get(key)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            shapes = [f"shape {tuple(value.shape)}" if value is not None else "none" for value in (ours, theirs)]
            raise ValueError(f"{path} differs in {key!r}: {shapes[0]} is expected, {shapes[1]} was found")


def _require_same_table(network: ViewpointScorer, path: Path) -> None:
    """Check that the centers in the file, (col, row) each, are those of the grid that the arguments describe."""
    table = grid_viewpoints(scales=network.scales, centers=network.centers)
    ours = torch.from_numpy(table[:, 1::-1].copy()).view_as(network.sb_grids)
    if not torch.allclose(ours, network.sb_grids, atol=1e-5):
        raise ValueError(f"{path}: the centers in 'sb_grids' are not those of a grid inside the scene")
