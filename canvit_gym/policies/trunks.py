"""Trunks: networks that fuse all observations into one feature map of the scene.

Maps are [B, C, g, g], row 0 at the top of the scene. `canvas` passes through a pointwise projection, the finer maps
(`uncertainty`, `acuity`, ...) are folded to the canvas's size (space to depth, so nothing is averaged away), cell
coordinates are added, and the vectors (`viewpoint`, `time`, `cls`, ...) modulate the features. If the `goal` is a class
and the probe's `reading` is a map per class, the map of the goal's class is a further input. So is the map of a
Detector, if the network has one. What was learned before the rest of a network, a Detector or WorthOfStopping, gets no
gradient here.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from canvit_pytorch.viewpoint import grid_coords
from gymnasium import spaces
from torch import Tensor, nn

from canvit_gym.policies.prior import DETECTED, amounts_of, reads_maps
from canvit_gym.policies.when_to_stop import WorthOfStopping

DEFAULT_GRID = 8
"""Side of the feature map if no `canvas` is observed."""


def _spatial_keys(space: spaces.Dict) -> list[str]:
    return [key for key, box in space.items() if key != "glimpse" and len(box.shape or ()) == 3]


class Features(NamedTuple):
    """The input of the heads."""

    map: Tensor  # [B, C, g, g]
    acuity: Tensor | None = None  # [B, 1, m, m]; None if it is not observed
    gaze: Tensor | None = None  # [B, 3 * n]; None if it is not observed
    amounts: Tensor | None = None  # [B, m, m], which a prior sums over windows; None without one
    stopping: Tensor | None = None  # [B], what WorthOfStopping predicts; None without it


class ModulatedBlock(nn.Module):
    """x + relu(conv(x) * (1 + gain) + shift), gain and shift [B, C] from the context.

    `separable`: a depthwise and a pointwise convolution replace the full one, at a seventh of the arithmetic.
    """

    def __init__(self, channels: int, context_dim: int, *, separable: bool = False) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(channels, channels, 3, padding=1)
        if separable:
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            self.conv = nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1))
        self.modulation = nn.Linear(context_dim, 2 * channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        gain, shift = self.modulation(context)[:, :, None, None].chunk(2, dim=1)
        return x + F.relu(torch.addcmul(shift, self.conv(x), 1 + gain))


class AttentionBlock(nn.Module):
    """A transformer block over the cells of a map; the context is added to every cell first."""

    def __init__(self, channels: int, context_dim: int, *, num_heads: int = 2) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels must be a multiple of {num_heads} attention heads, got {channels}")
        self.num_heads = num_heads
        self.modulation = nn.Linear(context_dim, channels)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        side = x.shape[-1]
        cells = x.flatten(2).transpose(1, 2) + self.modulation(context)[:, None]  # [B, g * g, C]
        query, key, value = self.qkv(self.norm_attention(cells)).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        cells = cells + self.out(mixed.transpose(1, 2).flatten(2))
        cells = cells + self.mlp(self.norm_mlp(cells))
        return cells.transpose(1, 2).unflatten(2, (side, side))


class MapTrunk(nn.Module):
    """Observation Dict, any subset of keys -> Features with a map [B, channels, g, g]; g is the canvas's side.

    `prior`: which of canvit_gym.policies.prior.PRIORS gives the features' amounts, or "detected": a Detector gives
    them, and its map is a further input. `learned_stop`: whether WorthOfStopping gives the features' `stopping`.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        *,
        channels: int = 32,
        context_dim: int = 64,
        blocks: int = 3,
        separable: bool = False,
        prior: str | None = None,
        learned_stop: bool = False,
    ) -> None:
        if "glimpse" in observation_space.spaces:
            raise ValueError(
                "the policy reads what the canvas holds, not pixels: leave 'glimpse' out of the "
                "environment's observations"
            )
        shapes: dict[str, tuple[int, ...]] = {key: box.shape or () for key, box in observation_space.items()}
        self.grid = self._side(shapes)
        super().__init__()
        self.channels, self.prior = channels, prior
        self.features_dim = channels * self.grid**2
        self.map_keys = [key for key in _spatial_keys(observation_space) if key != "canvas"]
        self.vector_keys = [key for key, shape in shapes.items() if len(shape) == 1]
        self.reads_goal = "goal" in shapes and shapes["goal"] == shapes.get("reading", ())[:-2]
        self.detector = Detector(observation_space) if prior == DETECTED else None
        self.when_to_stop = WorthOfStopping(shapes["reading"][0]) if learned_stop else None
        maps = [shapes[key] for key in self.map_keys] + ([(1, *shapes["reading"][1:])] if self.reads_goal else [])
        maps += [shapes["acuity"]] if self.detector is not None else []
        folded = sum(count * ((side // self.grid) ** 2 if self._folds(side) else 1) for count, side, _ in maps)
        self.from_canvas = nn.Conv2d(shapes["canvas"][0], channels, 1) if "canvas" in shapes else None
        self.from_maps = nn.Conv2d(folded + 2, channels, 3, padding=1)
        vector_dim = sum(shapes[key][0] for key in self.vector_keys)
        self.context = nn.Sequential(nn.Linear(vector_dim + channels, context_dim), nn.ReLU())
        self.blocks = nn.ModuleList(self._block(channels, context_dim, separable=separable) for _ in range(blocks))
        coordinates = grid_coords(size=self.grid, device=torch.device("cpu")).permute(2, 0, 1)[None]
        self.register_buffer("coordinates", coordinates, persistent=False)  # [1, 2, g, g]

    def _side(self, shapes: dict[str, tuple[int, ...]]) -> int:
        return shapes["canvas"][-1] if "canvas" in shapes else DEFAULT_GRID

    def _block(self, channels: int, context_dim: int, *, separable: bool) -> nn.Module:
        return ModulatedBlock(channels, context_dim, separable=separable)

    def _folds(self, size: int) -> bool:
        return size % self.grid == 0

    def _folded(self, value: Tensor) -> Tensor:
        """[B, c, m, m] -> [B, c', g, g]."""
        if self._folds(value.shape[-1]):
            return F.pixel_unshuffle(value, value.shape[-1] // self.grid)
        return F.interpolate(value, size=(self.grid, self.grid), mode="bilinear", align_corners=False)

    def _fitted_canvas(self, canvas: Tensor) -> Tensor:
        return canvas

    def forward(self, observations: dict[str, Tensor]) -> Features:  # type: ignore[override]
        batch = next(iter(observations.values())).shape[0]
        coordinates = self.get_buffer("coordinates").expand(batch, -1, -1, -1)
        maps = [self._folded(observations[key]) for key in self.map_keys]
        if self.reads_goal:
            maps.append(self._folded(amounts_of("goal", observations)[:, None]))
        amounts = self._amounts(observations)
        if self.detector is not None:
            assert amounts is not None
            maps.append(self._folded(amounts[:, None]))
        x = self.from_maps(torch.cat([*maps, coordinates], dim=1))
        if self.from_canvas is not None:
            x = x + self.from_canvas(self._fitted_canvas(observations["canvas"]))
        x = F.relu(x)
        # With the pooled map in the context, every cell can be compared with the rest of the scene.
        context = self.context(torch.cat([observations[key] for key in self.vector_keys] + [x.mean(dim=(2, 3))], dim=1))
        for block in self.blocks:
            x = block(x, context)
        return Features(
            map=x,
            acuity=observations.get("acuity"),
            gaze=observations.get("gaze"),
            amounts=amounts,
            stopping=self._stopping(observations),
        )

    def _amounts(self, observations: dict[str, Tensor]) -> Tensor | None:
        if self.detector is None:
            return None if self.prior is None else amounts_of(self.prior, observations)
        with torch.no_grad():
            return torch.sigmoid(self.detector(observations))

    def _stopping(self, observations: dict[str, Tensor]) -> Tensor | None:
        if self.when_to_stop is None:
            return None
        with torch.no_grad():
            return self.when_to_stop(observations)

    @property
    def learned_before(self) -> list[nn.Module]:
        """The parts that are trained by themselves, before the rest of a network."""
        return [part for part in (self.detector, self.when_to_stop) if part is not None]


class TokenTrunk(MapTrunk):
    """MapTrunk with self-attention over the cells as its blocks: every cell attends to all others."""

    def _block(self, channels: int, context_dim: int, *, separable: bool) -> nn.Module:
        if separable:
            raise ValueError("policy_kwargs separable is an option of the network 'conv', which convolves")
        return AttentionBlock(channels, context_dim)


class MeanTrunk(MapTrunk):
    """MapTrunk on a map of one cell: every key averaged over the scene."""

    def _side(self, shapes: dict[str, tuple[int, ...]]) -> int:
        return 1

    def _folds(self, size: int) -> bool:
        return False

    def _folded(self, value: Tensor) -> Tensor:
        return value.mean(dim=(2, 3), keepdim=True)

    def _fitted_canvas(self, canvas: Tensor) -> Tensor:
        return canvas.mean(dim=(2, 3), keepdim=True)


class Detector(nn.Module):
    """Observation Dict with `acuity` [B, 1, m, m] -> logits [B, m, m] of the share of each cell that is of interest.

    It is trained before the rest of a network (agents.detection). A probe reads every cell of the canvas by itself; a
    detector also compares cells, and knows where the agent has looked.
    """

    def __init__(self, observation_space: spaces.Dict, *, channels: int = 32) -> None:
        super().__init__()
        self.trunk = MapTrunk(observation_space, channels=channels)
        self.reads_maps = reads_maps(observation_space)
        size = observation_space["acuity"].shape[-1]  # type: ignore[index]
        if size % self.trunk.grid:
            raise ValueError(
                f"a detector's maps have {size} cells a side (map_size), not a multiple of the canvas's "
                f"{self.trunk.grid} (canvas_size): choose sizes that fit, or set policy_kwargs prior to null"
            )
        factor = size // self.trunk.grid
        self.fine = nn.Sequential(nn.Conv2d(channels, 16 * factor**2, 1), nn.PixelShuffle(factor))
        self.read = nn.Sequential(nn.Conv2d(16 + self.reads_maps, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        given = {key: value.float() for key, value in observations.items()}
        maps = [self.fine(self.trunk(given).map)]
        if self.reads_maps:
            maps.append(amounts_of("goal" if self.trunk.reads_goal else "items", given)[:, None])
        return self.read(torch.cat(maps, dim=1))[:, 0]


class MapEncoder(nn.Module):
    """Observation Dict -> [B, features_dim]: a MapTrunk whose cells are reduced in channels, concatenated and mixed.

    For learners whose networks take one vector. Nothing is averaged over the scene, so the vector keeps positions.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        *,
        features_dim: int = 256,
        channels: int = 32,
        context_dim: int = 64,
        blocks: int = 2,
        cell_channels: int = 8,
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = MapTrunk(
            observation_space, channels=channels, context_dim=context_dim, blocks=blocks, separable=separable
        )
        self.cells = nn.Conv2d(channels, cell_channels, 1)
        self.mixed = nn.Linear(cell_channels * self.trunk.grid**2, features_dim)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        features = self.trunk({key: value.float() for key, value in observations.items()})
        return F.relu(self.mixed(F.relu(self.cells(features.map)).flatten(1)))
