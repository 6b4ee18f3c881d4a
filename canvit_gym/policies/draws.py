"""The viewpoints of canvit-pytorch's random policies, each scene's from a generator of its own.

Making one of these policies for every scene takes about 0.4 ms each: for 64 scenes as long as four steps of CanViT-B on
a GPU. Here the same numbers are drawn in the same order, and tiles are looked up for all scenes together. The
viewpoints are equal to the bit to those of `canvit_pytorch.policies.make_policy(batch_size=1)`.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from canvit_pytorch.policies import MIN_SCALE, PolicyName
from canvit_pytorch.policies.quadtree import Tile, levels_covering, quadtree_level, quadtree_level_z_order
from numpy.typing import NDArray
from torch import Generator, Tensor


def draw(name: PolicyName, seeds: Sequence[int], *, num_glimpses: int) -> NDArray[np.float32]:
    """[len(seeds), num_glimpses, 3]: the sequence of one scene per seed. `name`: a key of DRAWS."""
    generators = [Generator().manual_seed(seed) for seed in seeds]
    return DRAWS[name](generators, num_glimpses).numpy()


def _random(generators: Sequence[Generator], count: int) -> Tensor:
    """canvit-pytorch's `random_viewpoints`, [len(generators), count, 3]."""
    drawn = torch.stack([torch.rand(count, 3, generator=generator, dtype=torch.float32) for generator in generators])
    half_side = torch.sqrt(drawn[..., :1] * (1 - MIN_SCALE) ** 2)  # of the box of centers
    return torch.cat([(drawn[..., 1:] * 2 - 1) * half_side, 1 - half_side], dim=-1)


def _full_then_random(generators: Sequence[Generator], count: int) -> Tensor:
    full = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float32).expand(len(generators), 1, 3)
    return torch.cat([full, _random(generators, count - 1)], dim=1)


def _coarse_to_fine(generators: Sequence[Generator], count: int) -> Tensor:
    return _levels(map(quadtree_level_z_order, range(levels_covering(count))), generators, count)


def _fine_to_coarse(generators: Sequence[Generator], count: int) -> Tensor:
    return _levels(map(quadtree_level, reversed(range(levels_covering(count)))), generators, count)


def _levels(levels: Iterable[list[Tile]], generators: Sequence[Generator], count: int) -> Tensor:
    """canvit-pytorch's `shuffled_levels`, [len(generators), count, 3]: the tiles of a level in an order per scene."""
    parts: list[Tensor] = []
    missing = count
    for level in levels:
        tiles = torch.tensor(level, dtype=torch.float32)
        if len(tiles) == 1:  # nothing is drawn
            orders = torch.zeros(len(generators), 1, dtype=torch.int64)
        else:
            orders = torch.stack([torch.randperm(len(tiles), generator=generator) for generator in generators])
        parts.append(tiles[orders[:, :missing]])
        missing -= parts[-1].shape[1]
        if not missing:
            break
    return torch.cat(parts, dim=1)


DRAWS: dict[PolicyName, Callable[[Sequence[Generator], int], Tensor]] = {
    "random": _random,
    "full_then_random": _full_then_random,
    "coarse_to_fine": _coarse_to_fine,
    "fine_to_coarse": _fine_to_coarse,
}
