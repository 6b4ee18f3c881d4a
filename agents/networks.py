"""Networks that score viewpoints from the spatial map.

Maps are [B, C, g, g], row 0 at the top of the scene; viewpoints are rows (row, col, scale) in scene
coordinates.

A trunk fuses everything observed into one feature map: `canvas` through a pointwise projection, the finer
maps (`uncertainty`, `acuity`) folded to the canvas's size (space to depth, so nothing is averaged away), cell
coordinates, and the vectors (`viewpoint`, `time`, `cls`) by feature-wise modulation. The heads read that map:

- ViewpointHead: one score map per scale; the logit of a viewpoint is its scale's map sampled at its center.
- GazeHead: attention over the map, for continuous actions.
- ValueHead: the pooled map.
"""

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch.viewpoint import grid_coords
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

DEFAULT_GRID = 8
"""Side of the feature map where no `canvas` sets it."""


def _spatial_keys(space: spaces.Dict) -> list[str]:
    return [key for key, box in space.items() if key != "glimpse" and len(box.shape or ()) == 3]


class ModulatedBlock(nn.Module):
    """x + relu(conv(x) * (1 + gain) + shift), gain and shift [B, C] from the context."""

    def __init__(self, channels: int, context_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(context_dim, 2 * channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        gain, shift = self.modulation(context)[:, :, None, None].chunk(2, dim=1)
        return x + F.relu(torch.addcmul(shift, self.conv(x), 1 + gain))


class MapTrunk(BaseFeaturesExtractor):
    """Observation Dict, any subset of keys -> feature map [B, channels, g, g]; g is the canvas's side."""

    def __init__(
        self, observation_space: spaces.Dict, *, channels: int = 32, context_dim: int = 64, blocks: int = 3
    ) -> None:
        if "glimpse" in observation_space.spaces:
            raise ValueError(
                "the policy reads what the canvas holds, not pixels: leave 'glimpse' out of the "
                "environment's observations"
            )
        shapes: dict[str, tuple[int, ...]] = {key: box.shape or () for key, box in observation_space.items()}
        self.grid = shapes["canvas"][-1] if "canvas" in shapes else DEFAULT_GRID
        super().__init__(observation_space, channels * self.grid**2)
        self.channels = channels
        self.map_keys = [key for key in _spatial_keys(observation_space) if key != "canvas"]
        self.vector_keys = [key for key, shape in shapes.items() if len(shape) == 1]
        folded = 0
        for key in self.map_keys:
            size = shapes[key][-1]
            folded += shapes[key][0] * ((size // self.grid) ** 2 if size % self.grid == 0 else 1)
        self.from_canvas = nn.Conv2d(shapes["canvas"][0], channels, 1) if "canvas" in shapes else None
        self.from_maps = nn.Conv2d(folded + 2, channels, 3, padding=1)
        vector_dim = sum(shapes[key][0] for key in self.vector_keys)
        self.context = nn.Sequential(nn.Linear(vector_dim + channels, context_dim), nn.ReLU())
        self.blocks = nn.ModuleList(ModulatedBlock(channels, context_dim) for _ in range(blocks))
        coordinates = grid_coords(size=self.grid, device=torch.device("cpu")).permute(2, 0, 1)[None]
        self.register_buffer("coordinates", coordinates, persistent=False)  # [1, 2, g, g]

    def _folded(self, value: Tensor) -> Tensor:
        """[B, c, m, m] -> [B, c', g, g]."""
        if value.shape[-1] % self.grid == 0:
            return F.pixel_unshuffle(value, value.shape[-1] // self.grid)
        return F.interpolate(value, size=(self.grid, self.grid), mode="bilinear", align_corners=False)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        batch = next(iter(observations.values())).shape[0]
        coordinates = self.get_buffer("coordinates").expand(batch, -1, -1, -1)
        x = self.from_maps(torch.cat([self._folded(observations[key]) for key in self.map_keys] + [coordinates], dim=1))
        if self.from_canvas is not None:
            x = x + self.from_canvas(observations["canvas"])
        x = F.relu(x)
        # The pooled map among the vectors lets every cell be weighed against the rest of the scene.
        context = self.context(torch.cat([observations[key] for key in self.vector_keys] + [x.mean(dim=(2, 3))], dim=1))
        for block in self.blocks:
            x = block(x, context)
        return x


def interpolation_matrix(centers: NDArray[np.float32], *, size: int) -> Tensor:
    """[A, size * size]: row a samples a flat map bilinearly at center a = (row, col) in [-1, 1]."""
    basis = torch.eye(size * size).view(1, size * size, size, size)
    where = torch.from_numpy(centers[:, ::-1].copy()).float()[None, None]  # grid_sample wants (x, y)
    sampled = F.grid_sample(basis, where, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T.contiguous()


class ViewpointHead(nn.Module):
    """Feature map [B, C, g, g] -> logits [B, A (+ 1 for stop)] of a table of viewpoints [A, 3]."""

    order: Tensor | None

    def __init__(
        self, viewpoints: NDArray[np.float32], *, channels: int, grid: int, upsample: int, allow_stop: bool
    ) -> None:
        super().__init__()
        scales, first, group = np.unique(viewpoints[:, 2], return_index=True, return_inverse=True)
        # Scales in order of appearance: the tables of canvit_gym.actions then need no reordering.
        rank = np.argsort(np.argsort(first))
        group = rank[group]
        self.upsample = upsample
        self.num_scales = len(scales)
        self.score_maps = nn.Conv2d(channels, len(scales) * upsample**2, 1)
        self.scale_bias = nn.Linear(channels, len(scales) + allow_stop)
        for index in range(len(scales)):
            matrix = interpolation_matrix(viewpoints[group == index, :2], size=grid * upsample)
            self.register_buffer(f"sampling_{index}", matrix, persistent=False)
        # Position of each row of the table where rows stand group after group; None where they do already.
        order = np.argsort(np.argsort(group, kind="stable"), kind="stable")
        self.register_buffer(
            "order", None if (np.diff(order) == 1).all() else torch.from_numpy(order), persistent=False
        )

    def forward(self, features: Tensor) -> Tensor:
        maps = F.pixel_shuffle(self.score_maps(features), self.upsample).flatten(2)  # [B, S, (g * upsample)^2]
        bias = self.scale_bias(features.mean(dim=(2, 3)))  # [B, S (+ 1)]
        logits = torch.cat(
            [
                maps[:, index] @ self.get_buffer(f"sampling_{index}").T + bias[:, index, None]
                for index in range(self.num_scales)
            ],
            dim=1,
        )
        if self.order is not None:
            logits = logits[:, self.order]
        return torch.cat([logits, bias[:, self.num_scales :]], dim=1)


class GazeHead(nn.Module):
    """Feature map [B, C, g, g] -> mean of a continuous action [B, d]: where attention lies, what is there."""

    def __init__(self, *, channels: int, grid: int, action_dim: int, num_attentions: int = 4) -> None:
        super().__init__()
        self.attention = nn.Conv2d(channels, num_attentions, 1, bias=False)
        self.mean = nn.Linear(num_attentions * (channels + 2), action_dim)
        coordinates = grid_coords(size=grid, device=torch.device("cpu")).flatten(0, 1)
        self.register_buffer("coordinates", coordinates, persistent=False)  # [g * g, 2]

    def forward(self, features: Tensor) -> Tensor:
        attention = self.attention(features).flatten(2).softmax(dim=2)  # [B, K, g * g]
        cells = features.flatten(2).transpose(1, 2)  # [B, g * g, C]
        attended = torch.cat([attention @ cells, attention @ self.get_buffer("coordinates")], dim=2)
        return self.mean(attended.flatten(1))


class ValueHead(nn.Module):
    """Feature map [B, C, g, g] -> [B, 1]."""

    def __init__(self, *, channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features.mean(dim=(2, 3)))
