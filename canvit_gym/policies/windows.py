"""Sums of a map over many candidate windows, and how to compare windows of different scales.

Windows are viewpoints (row, col, scale); maps are [B, n, n] over the scene. Cells that a window covers partly count
partly, so windows need not align with cells.

The worth of a window is the amount of something (predictive entropy, saliency) in it, where each cell is weighted by
the octaves of resolution that the window adds there: log2(finest scale seen / scale), or 0 where a cell has been seen
at the window's scale or finer. From the full scene, scale 1/4 adds two octaves on 1/16 of the scene, scale 1/2 one
octave on 1/4 of it, so that a window half as wide must contain half as much to be worth the same.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Windows(nn.Module):
    """A table of candidate viewpoints [A, 3] over maps of n x n cells. As a part of a network, it moves with it."""

    rows: Tensor  # [A, n]
    cols: Tensor  # [A, n]
    area: Tensor  # [A], in cells

    def __init__(self, table: NDArray[np.float32], *, size: int, device: torch.device) -> None:
        super().__init__()
        self.table = table
        viewpoints = torch.from_numpy(table).to(device)
        for name, centers in (("rows", viewpoints[:, 0]), ("cols", viewpoints[:, 1])):
            self.register_buffer(name, _covered(centers, viewpoints[:, 2], size=size), persistent=False)
        self.register_buffer("area", self.rows.sum(dim=1) * self.cols.sum(dim=1), persistent=False)
        self._scales: list[float] = np.unique(table[:, 2]).tolist()
        for index, scale in enumerate(self._scales):
            chosen = torch.from_numpy(np.flatnonzero(table[:, 2] == scale)).to(device)
            self.register_buffer(f"of_scale_{index}", chosen, persistent=False)

    def sums(self, maps: Tensor) -> Tensor:
        """[B, n, n] -> [B, A]: the sum over each window."""
        return _sums(maps, self.rows, self.cols)

    def added(self, maps: Tensor, finest_seen: Tensor) -> Tensor:
        """[B, A]: the worth of each window, given amounts and the finest scale that each cell was seen at, [B, n,
        n]."""
        worth = torch.empty(len(maps), len(self.table), device=maps.device)
        for index, scale in enumerate(self._scales):
            chosen = self.get_buffer(f"of_scale_{index}")
            octaves = torch.log2(finest_seen / scale).clamp(min=0)
            worth[:, chosen] = _sums(maps * octaves, self.rows[chosen], self.cols[chosen])
        return worth

    def coverage(self, chosen: Tensor) -> Tensor:
        """Rows of the table [B] -> [B, n, n]: the share of each cell that the window covers."""
        return self.rows[chosen].unsqueeze(2) * self.cols[chosen].unsqueeze(1)


def sums_flops(*, num_windows: int, size: int) -> int:
    """FLOPs of the sums over one scene's map of size x size cells."""
    return 2 * num_windows * size * (size + 1)


def _sums(maps: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    return (torch.matmul(maps, cols.T) * rows.T).sum(dim=1)


def _covered(centers: Tensor, scales: Tensor, *, size: int) -> Tensor:
    """[A, size]: the share of each of `size` equal intervals of [-1, 1] that lies in [center - scale, center +
    scale]."""
    edges = torch.linspace(-1, 1, size + 1, device=centers.device)
    low = torch.maximum(edges[:-1], (centers - scales).unsqueeze(1))
    high = torch.minimum(edges[1:], (centers + scales).unsqueeze(1))
    return ((high - low) * (size / 2)).clamp(0, 1)
