"""Heads: a trunk's feature map -> scores of viewpoints, parameters of continuous actions, or a value.

Viewpoints are rows (row, col, scale) in scene coordinates.

- ViewpointHead: one score map per scale; the logit of a viewpoint is its scale's map sampled at its center.
- WindowHead: one density map per scale; the logit of a viewpoint is its scale's map summed over its window.
- PointerHead: one query per scale points at cells, as in pointer networks.
- ListHead: a logit per viewpoint from the pooled map.
- GazeHead: attention over the map, for continuous actions.
- ValueHead: the pooled map.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch.viewpoint import grid_coords
from numpy.typing import NDArray
from torch import Tensor, nn

from canvit_gym.policies.prior import INITIAL_WEIGHT, WindowPrior
from canvit_gym.policies.trunks import Features
from canvit_gym.policies.windows import Windows

TOLERANCE = 1e-3
"""Tolerance between a viewpoint of the table and the same one as observed: observations may be float16."""

NEVER = -1e8
"""The logit of a masked action: finite, but its probability is 0."""

STOP_WEIGHT = 4.0
"""Of a learned worth of stopping, at first: one standard deviation above 0, a stop has a probability of 0.98."""


def interpolation_matrix(centers: NDArray[np.float32], *, size: int) -> Tensor:
    """[A, size * size]: row a samples a flat map bilinearly at center a = (row, col) in [-1, 1]."""
    basis = torch.eye(size * size).view(1, size * size, size, size)
    where = torch.from_numpy(centers[:, ::-1].copy()).float()[None, None]  # grid_sample wants (x, y)
    sampled = F.grid_sample(basis, where, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T.contiguous()


def window_matrix(viewpoints: NDArray[np.float32], *, size: int) -> Tensor:
    """[A, size * size]: row a sums a flat map over window a; cells covered in part count in part.

    Divided by size / 2, the side in cells of a window of scale 1/2, so that sums over independent cells are about as
    large as single cells.
    """
    windows = Windows(viewpoints, size=size, device=torch.device("cpu"))
    return (windows.rows[:, :, None] * windows.cols[:, None, :]).flatten(1) / (size / 2)


def covered_cells(viewpoints: NDArray[np.float32], *, size: int) -> Tensor:
    """[A, size * size]: 1 where a viewpoint's window covers the cell's center, as `acuity` counts it."""
    cells = grid_coords(size=size, device=torch.device("cpu")).flatten(0, 1)  # [size * size, 2]
    table = torch.from_numpy(viewpoints)
    offset = (cells - table[:, None, :2]).abs().amax(dim=-1)
    return (offset <= table[:, 2:]).float()


class TableHead(nn.Module):
    """Features -> logits [B, A (+ 1 for stop)] of a table of viewpoints [A, 3]: the base class of heads.

    `mask_seen`: a viewpoint gets probability 0 if `acuity` shows that its whole window has been seen at its scale or
    finer. A viewpoint taken before always counts as seen.

    `inhibition` (of return): a viewpoint gets probability 0 if `gaze` holds an earlier one of the same scale whose
    center is within this distance, in scene coordinates and along both axes. 0: exact repetitions only, which show
    the backbone nothing new. None: off.

    Masks that would leave no viewpoint at all are ignored.

    `prior_size`: the side of the maps of a prior (canvit_gym.policies.prior) that is added to the scores, at first with
    `prior_weight`. None: no prior.

    `learned_stop`: the logit of a stop is such that its score, plus what was learned of the worth of stopping
    (canvit_gym.policies.when_to_stop), are the log odds of stopping against going on, however many viewpoints there
    are and whatever their scores. Otherwise it is scored like a viewpoint.
    """

    order: Tensor | None

    def __init__(
        self,
        viewpoints: NDArray[np.float32],
        *,
        map_side: int,
        allow_stop: bool,
        mask_seen: bool = False,
        acuity_size: int = 0,
        inhibition: float | None = None,
        prior_size: int | None = None,
        prior_weight: float = INITIAL_WEIGHT,
        learned_stop: bool = False,
    ) -> None:
        super().__init__()
        self.stop_weight = nn.Parameter(torch.tensor(STOP_WEIGHT)) if learned_stop else None
        self.prior = None if prior_size is None else WindowPrior(viewpoints, size=prior_size, weight=prior_weight)
        scales, first, group = np.unique(viewpoints[:, 2], return_index=True, return_inverse=True)
        # Scales in order of appearance: the tables of canvit_gym.actions then need no reordering.
        rank = np.argsort(np.argsort(first))
        group = rank[group]
        self.num_scales = len(scales)
        self.allow_stop = allow_stop
        self.mask_seen = mask_seen
        self.inhibition = inhibition
        if inhibition is not None:
            self.register_buffer("viewpoints", torch.from_numpy(viewpoints), persistent=False)
        for index in range(len(scales)):
            matrix = self._sampling(viewpoints[group == index], size=map_side)
            self.register_buffer(f"sampling_{index}", matrix, persistent=False)
        # Position of each row of the table once rows are grouped by scale; None if they already are.
        order = np.argsort(np.argsort(group, kind="stable"), kind="stable")
        self.register_buffer(
            "order", None if (np.diff(order) == 1).all() else torch.from_numpy(order), persistent=False
        )
        if mask_seen:
            self.scales = viewpoints[np.sort(first), 2].tolist()
            for index in range(len(scales)):
                windows = covered_cells(viewpoints[group == index], size=acuity_size)
                self.register_buffer(f"windows_{index}", windows, persistent=False)

    def _sampling(self, viewpoints: NDArray[np.float32], *, size: int) -> Tensor:
        """[A, size * size]: how a viewpoint's score is read from its scale's map."""
        return interpolation_matrix(viewpoints[:, :2], size=size)

    def scores(self, features: Tensor) -> Tensor:
        """[B, C, g, g] -> [B, A (+ 1)]"""
        raise NotImplementedError

    @property
    def last_layers(self) -> list[nn.Module]:
        """Initialized with small weights, so that every viewpoint starts out almost equally likely."""
        raise NotImplementedError

    def forward(self, features: Features) -> Tensor:
        """[B, A (+ 1)] logits, NEVER where masked."""
        logits, masked = self.unmasked(features), self.masked(features)
        if masked is not None:
            logits = logits.masked_fill(masked, NEVER)
        return logits if self.stop_weight is None else self._with_odds_of_stopping(logits, features)

    def _with_odds_of_stopping(self, logits: Tensor, features: Features) -> Tensor:
        """Logits whose last one has become that of a stop with the odds of its score and of what was learned."""
        assert self.stop_weight is not None and features.stopping is not None
        odds = logits[:, -1] + self.stop_weight * features.stopping
        stop = logits[:, :-1].logsumexp(dim=1) + odds
        return torch.cat([logits[:, :-1], stop[:, None]], dim=1)

    def unmasked(self, features: Features) -> Tensor:
        """[B, A (+ 1)]: the scores, with the prior if there is one."""
        scores = self.scores(features.map)
        if self.prior is None:
            return scores
        assert features.amounts is not None and features.acuity is not None, "a prior needs its maps"
        return scores + F.pad(self.prior(features.amounts, features.acuity), (0, int(self.allow_stop)))

    def masked(self, features: Features) -> Tensor | None:
        """[B, A (+ 1)]: True for actions that must not be taken; None if no mask is on."""
        masks = []
        if self.mask_seen:
            assert features.acuity is not None, "masking what was seen needs `acuity`"
            masks.append(self.seen(features.acuity))
        if self.inhibition is not None:
            assert features.gaze is not None, "inhibition of return needs `gaze`"
            masks.append(self.near_taken(features.gaze))
        if not masks:
            return None
        masked = torch.stack(masks).any(dim=0)
        masked = masked & ~masked.all(dim=1, keepdim=True)
        return F.pad(masked, (0, int(self.allow_stop)))

    def near_taken(self, gaze: Tensor) -> Tensor:
        """[B, 3 * n] -> [B, A] booleans."""
        assert self.inhibition is not None
        table, taken = self.get_buffer("viewpoints"), gaze.unflatten(1, (-1, 3))
        row, col, scale = (
            (table[:, axis] - taken[..., axis, None]).abs() <= reach + TOLERANCE  # [B, n, A]
            for axis, reach in enumerate((self.inhibition, self.inhibition, 0.0))
        )
        return (row & col & scale).any(dim=1)

    def seen(self, acuity: Tensor) -> Tensor:
        """[B, 1, m, m] -> [B, A] booleans."""
        cells, groups = acuity.flatten(1), []
        for index, scale in enumerate(self.scales):
            windows = self.get_buffer(f"windows_{index}")
            fresh = ((cells == 0) | (cells > scale * (1 + TOLERANCE))).to(windows.dtype)  # [B, m * m]
            # A window that is too small to hold a cell's center never counts as seen.
            groups.append((fresh @ windows.T == 0) & windows.any(dim=1))
        return self._in_order(torch.cat(groups, dim=1))

    def _in_order(self, columns: Tensor) -> Tensor:
        """[B, A] grouped by scale -> in the order of the table."""
        return columns if self.order is None else columns[:, self.order]

    def sampled(self, maps: Tensor, bias: Tensor) -> Tensor:
        """Maps [B, S, side * side] sampled at every viewpoint, plus its scale's bias [B, S (+ 1)]."""
        logits = torch.cat(
            [
                maps[:, index] @ self.get_buffer(f"sampling_{index}").T + bias[:, index, None]
                for index in range(self.num_scales)
            ],
            dim=1,
        )
        return torch.cat([self._in_order(logits), bias[:, self.num_scales :]], dim=1)


class ViewpointHead(TableHead):
    """One score map per scale, finer than the features by a factor of `upsample`."""

    def __init__(
        self, viewpoints: NDArray[np.float32], *, channels: int, grid: int, upsample: int, allow_stop: bool, **mask: Any
    ) -> None:
        super().__init__(viewpoints, map_side=grid * upsample, allow_stop=allow_stop, **mask)
        self.upsample = upsample
        self.score_maps = nn.Conv2d(channels, self.num_scales * upsample**2, 1)
        self.scale_bias = nn.Linear(channels, self.num_scales + allow_stop)

    @property
    def last_layers(self) -> list[nn.Module]:
        return [self.score_maps, self.scale_bias]

    def scores(self, features: Tensor) -> Tensor:
        maps = F.pixel_shuffle(self.score_maps(features), self.upsample).flatten(2)  # [B, S, (g * upsample)^2]
        return self.sampled(maps, self.scale_bias(features.mean(dim=(2, 3))))


class WindowHead(ViewpointHead):
    """One map per scale of the value of each cell, summed over the window that a glimpse covers.

    A glimpse gains mostly inside its window: the maps have to say where, and the network need not learn how large
    windows are.
    """

    def _sampling(self, viewpoints: NDArray[np.float32], *, size: int) -> Tensor:
        return window_matrix(viewpoints, size=size)


class PointerHead(TableHead):
    """A query per scale, from the pooled map, points at cells: v . tanh(W cell + query) (Vinyals et al. 2015).

    Scores are interpolated between cells; `upsample` is ignored.
    """

    def __init__(
        self, viewpoints: NDArray[np.float32], *, channels: int, grid: int, upsample: int, allow_stop: bool, **mask: Any
    ) -> None:
        super().__init__(viewpoints, map_side=grid, allow_stop=allow_stop, **mask)
        self.keys = nn.Conv2d(channels, channels, 1)
        self.queries = nn.Linear(channels, self.num_scales * channels)
        self.pointer = nn.Linear(channels, 1, bias=False)
        self.scale_bias = nn.Linear(channels, self.num_scales + allow_stop)

    @property
    def last_layers(self) -> list[nn.Module]:
        return [self.pointer, self.scale_bias]

    def scores(self, features: Tensor) -> Tensor:
        keys = self.keys(features).flatten(2).transpose(1, 2)  # [B, cells, C]
        pooled = features.mean(dim=(2, 3))
        queries = self.queries(pooled).unflatten(1, (self.num_scales, -1))  # [B, S, C]
        maps = self.pointer(torch.tanh(keys[:, None] + queries[:, :, None])).squeeze(-1)  # [B, S, cells]
        return self.sampled(maps, self.scale_bias(pooled))


class ListHead(TableHead):
    """A logit per viewpoint from the pooled map, without any notion of where viewpoints are."""

    def __init__(
        self, viewpoints: NDArray[np.float32], *, channels: int, grid: int, upsample: int, allow_stop: bool, **mask: Any
    ) -> None:
        super().__init__(viewpoints, map_side=1, allow_stop=allow_stop, **mask)
        self.hidden = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU())
        self.logits = nn.Linear(2 * channels, len(viewpoints) + allow_stop)

    @property
    def last_layers(self) -> list[nn.Module]:
        return [self.logits]

    def scores(self, features: Tensor) -> Tensor:
        return self.logits(self.hidden(features.mean(dim=(2, 3))))


class GazeHead(nn.Module):
    """Features with a map [B, C, g, g] -> parameters [B, P] of a continuous action, from where attention lies and
    the features there.
    """

    def __init__(self, *, channels: int, grid: int, num_parameters: int, num_attentions: int = 4) -> None:
        super().__init__()
        self.attention = nn.Conv2d(channels, num_attentions, 1, bias=False)
        self.output = nn.Linear(num_attentions * (channels + 2), num_parameters)
        coordinates = grid_coords(size=grid, device=torch.device("cpu")).flatten(0, 1)
        self.register_buffer("coordinates", coordinates, persistent=False)  # [g * g, 2]

    @property
    def last_layers(self) -> list[nn.Module]:
        return [self.output]

    def forward(self, features: Features) -> Tensor:
        attention = self.attention(features.map).flatten(2).softmax(dim=2)  # [B, K, g * g]
        cells = features.map.flatten(2).transpose(1, 2)  # [B, g * g, C]
        attended = torch.cat([attention @ cells, attention @ self.get_buffer("coordinates")], dim=2)
        return self.output(attended.flatten(1))


class ValueHead(nn.Module):
    """Features with a map [B, C, g, g] -> [B, 1]."""

    def __init__(self, *, channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Features) -> Tensor:
        return self.net(features.map.mean(dim=(2, 3)))
