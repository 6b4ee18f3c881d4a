"""Policies that look where the reading of the canvas is uncertain, in addition to the paper's EG-C2F."""

import numpy as np
import torch
from canvit_pytorch.policies.entropy import tile_masks
from canvit_pytorch.policies.quadtree import levels_covering, quadtree_level
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.checks import integer
from canvit_gym.policies.flops import probe_flops
from canvit_gym.policies.greedy_windows import GreedyWindows, windows_of
from canvit_gym.policies.protocol import PolicyInfo, check_supported
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.sequences import Scales
from canvit_gym.policies.spec import Context
from canvit_gym.viewpoints import FULL_SCENE


class EntropyGreedy(GreedyWindows):
    """The full scene, then the window that adds most resolution where the reading is uncertain.

    The amount is the predictive entropy in nats: see GreedyWindows.
    """

    info = PolicyInfo(
        name="entropy_greedy",
        paper_name="entropy-greedy windows",
        description="The full scene, then the window of any place and scale that adds most resolution where the "
        "decoded segmentation is uncertain (entropy in the window times octaves of resolution added).",
        deterministic=True,
        needs_segmentation_probe=True,
    )

    def amounts(self, seen: Seen) -> Tensor:
        return seen.uncertainty


def build_entropy_greedy(context: Context, *, scale: Scales | None = None, centers: int | None = None) -> EntropyGreedy:
    return EntropyGreedy(**windows_of(context, scale=scale, centers=centers))


class QuadtreeBeam:
    """EG-C2F that descends only into the most uncertain tiles, as QuadTree Attention does (Tang et al. 2022).

    At each level the policy looks at the `width` most uncertain tiles, one by one, and computes the entropy again after
    each. Only their children are candidates at the next level. After the finest level it starts over at the first with
    the tiles that are left. Tiles are those of canvit-pytorch's quadtree: level l has 2^l x 2^l of scale 2^-l.
    """

    info = PolicyInfo(
        name="quadtree_beam",
        paper_name="quadtree beam (Tang et al. 2022)",
        description="The full scene, then down the quadtree, at each level only into the few tiles where the decoded "
        "segmentation is least certain.",
        deterministic=True,
        needs_segmentation_probe=True,
        canvas_grids="power of two",
    )

    def __init__(self, *, num_glimpses: int, width: int = 2, levels: int = 2) -> None:
        """levels: below the full scene; more are added if num_glimpses exceeds their tiles."""
        for name, value in (("num_glimpses", num_glimpses), ("width", width), ("levels", levels)):
            integer(1)(name, value)
        self._num_glimpses = num_glimpses
        self._num_levels = max(levels, levels_covering(num_glimpses) - 1)
        self._schedule = _beam_schedule(num_levels=self._num_levels, width=width)[: num_glimpses - 1]

    def reset(self, seen: Seen, *, seed: int) -> None:
        grid, device = seen.canvas_grid, seen.device
        check_supported(self.info, seen.task.name, grid)
        if seen.budget > self._num_glimpses:
            raise ValueError(
                f"{self.info.name} was made for {self._num_glimpses} glimpses and cannot take {seen.budget}; "
                f"make it with num_glimpses={seen.budget}"
            )
        levels = [quadtree_level(level) for level in range(self._num_levels + 1)]
        self._tiles = [np.array(tiles, dtype=np.float32) for tiles in levels]
        masks = [tile_masks(tiles, canvas_grid_size=grid, device=device).flatten(1).float() for tiles in levels]
        self._means = [mask / mask.sum(dim=1, keepdim=True).clamp(min=1) for mask in masks]  # [n_tiles, G*G]
        self._visited = [torch.zeros(seen.num, len(tiles), dtype=torch.bool, device=device) for tiles in levels]
        self._open = self._visited[0]  # [B, n_tiles] candidates of the current level
        self._taken = self._visited[0]  # [B, n_tiles] tiles taken since the level was entered

    @torch.no_grad()
    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if t == 0:
            return np.tile(FULL_SCENE, (seen.num, 1))
        level, entered, descends = self._schedule[t - 1]
        visited = self._visited[level]
        if entered:
            self._open = _children(self._taken) if descends else torch.ones_like(visited)
            self._taken = torch.zeros_like(visited)
        entropy = seen.uncertainty.flatten(1) @ self._means[level].T
        chosen = entropy.masked_fill(~self._open | visited, -torch.inf).argmax(dim=1, keepdim=True)
        visited.scatter_(1, chosen, True)
        self._taken.scatter_(1, chosen, True)
        return self._tiles[level][chosen[:, 0].cpu().numpy()]

    def flops_per_decision(self, seen: Seen) -> int:
        return probe_flops(seen)


def build_quadtree_beam(context: Context, *, width: int = 2, levels: int = 2) -> QuadtreeBeam:
    return QuadtreeBeam(num_glimpses=context.num_glimpses, width=width, levels=levels)


def _beam_schedule(*, num_levels: int, width: int) -> list[tuple[int, bool, bool]]:
    """For each glimpse after the first: (level, whether it is entered, whether it is entered from the level above).

    It is the same for every scene, since only the numbers of candidates matter.
    """
    left = [0] + [4**level for level in range(1, num_levels + 1)]  # tiles not taken yet
    schedule: list[tuple[int, bool, bool]] = []
    while any(left):
        above = 0  # tiles taken one level up in this descent
        for level in range(1, num_levels + 1):
            take = min(width, 4 * above if above else left[level])
            schedule += [(level, i == 0, above > 0) for i in range(take)]
            left[level] -= take
            above = take
    return schedule


def _children(tiles: Tensor) -> Tensor:
    """[B, n * n] marks of a level -> [B, 2n * 2n] of the next: the tiles inside a marked one."""
    side = int(tiles.shape[1] ** 0.5)
    return tiles.view(-1, side, side).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1)
