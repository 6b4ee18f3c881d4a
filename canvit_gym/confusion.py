"""Intersections and unions of bilinearly upsampled readings, without upsampling where the outcome is certain.

Frame: logits lie on the canvas grid [G, G], labels on the scene's pixels [S, S], S = G * cell with an even cell. The
cell x cell pixels between four neighbouring cell centers form a quad; at the scene's border, where bilinear
upsampling repeats the outermost cells, quads stick out by half: (G + 1)^2 quads cover the scene.

Within a quad every upsampled logit is a convex combination of the class's logits at the four corners, so it lies
between their minimum and their maximum. A class whose maximum stays below another's minimum wins none of the quad's
pixels. In most quads this leaves one class, and counting its pixels takes no interpolation; in the others only the
classes that are left are interpolated and compared. On a GPU one kernel does all of this (canvit_gym.confusion_kernel),
without waiting for the numbers of quads and classes that are left. The counts are those of canvit-pytorch's
`per_image_confusion` on `F.interpolate(logits, mode="bilinear").argmax(dim=1)`; only where two classes tie to within
float32 rounding may a pixel go to the other one, as it may between PyTorch's own kernels.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL
from torch import Tensor

from canvit_gym.backbone.compilation import first_line

ROUNDING = 1e-5
"""A class this close to another, relative to the largest logit, is not ruled out: far above float32 rounding."""

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Interpolated logits held at once: what stays in a CPU's cache; on a GPU 256 MiB."""

TIES = 1e-3
"""The share of pixels that two ways of counting may give to different classes."""

_kernel_works: dict[tuple[torch.device, int, int, int], bool] = {}
"""By device, number of classes, canvas and size of the scene."""


@dataclass(frozen=True)
class QuadLabels:
    """Label maps of B scenes cut into Q = (G + 1)^2 quads each: once, then compared with any number of readings."""

    # [B, cell^2, Q] uint8, IGNORE_LABEL beyond the border; quads innermost: sums over pixels are then sums of vectors
    pixels: Tensor
    labeled: Tensor  # [B, Q] pixels with a label
    area: Tensor  # [B, K] pixels of each class

    @classmethod
    def cut(cls, labels: Tensor, *, grid: int, num_classes: int) -> "QuadLabels":
        """labels: [B, S, S] uint8, classes or IGNORE_LABEL.

        Raises:
            ValueError: the label maps do not divide into cells of an even size.
        """
        num, size, _ = labels.shape
        cell = size // grid
        if cell * grid != size or cell % 2:
            raise ValueError(f"label maps of {size} px do not divide into {grid} canvas cells of an even size")
        padded = F.pad(labels, (cell // 2,) * 4, value=IGNORE_LABEL)
        pixels = padded.view(num, grid + 1, cell, grid + 1, cell).permute(0, 2, 4, 1, 3).reshape(num, cell**2, -1)
        return cls(
            pixels=pixels,
            labeled=(pixels != IGNORE_LABEL).view(torch.uint8).sum(dim=1, dtype=torch.int32),
            area=_pixels_of_labels(labels)[:, :num_classes],
        )


def _pixels_of_labels(labels: Tensor) -> Tensor:
    """[B, S, S] uint8 -> [B, 256] int64: pixels of each label."""
    num, size, _ = labels.shape
    if labels.device.type == "cpu":
        scene = torch.arange(num, dtype=torch.int32).unsqueeze(1) * 256
        return torch.bincount((labels.flatten(1).int() + scene).flatten(), minlength=num * 256).view(num, 256)
    # By lines first: a GPU is slow where many threads add to one number, and bincount waits for the largest index.
    return count_on_device(labels.flatten(0, 1).long(), 256).view(num, size, 256).sum(dim=1)


def count_on_device(index: Tensor, bins: int) -> Tensor:
    """[n, m] int64, each in [0, bins) -> [n, bins] int32: how often each occurs in its row. Unlike bincount it does not
    wait for the device."""
    counts = torch.zeros(len(index), bins, dtype=torch.int32, device=index.device)
    ones = torch.ones((), dtype=torch.int32, device=index.device).expand(index.shape)
    return counts.scatter_add_(1, index, ones)


def count_confusion(logits: Tensor, truth: QuadLabels, *, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(intersection, union) in pixels, [B, K] int64 each, of finite float32 logits [B, K, G, G].

    labels: [B, S, S], of which `truth` was cut. With them, readings on a GPU are counted by one kernel.
    """
    counts = None if labels is None or logits.device.type != "cuda" else _count_by_kernel(logits, truth, labels)
    intersection, predicted = _count_by_quads(logits, truth) if counts is None else counts
    return intersection.long(), predicted.long() + truth.area - intersection


def _count_by_kernel(logits: Tensor, truth: QuadLabels, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """(intersection, predicted) [B, K]; None, after one warning, where the kernel does not work.

    It is compiled on the user's machine, so its first counts of every shape are compared with those of PyTorch.
    """
    shape = (logits.device, logits.shape[1], logits.shape[2], labels.shape[-1])
    if not _kernel_works.get(shape, True):
        return None
    try:
        from canvit_gym.confusion_kernel import count_quads

        counts = count_quads(logits, labels, rounding=ROUNDING)
        if shape not in _kernel_works:
            differs = (torch.stack(counts) - torch.stack(_count_by_quads(logits, truth))).abs().sum()
            if differs > TIES * truth.labeled.sum():
                raise RuntimeError(f"it counts {int(differs)} of {int(truth.labeled.sum())} pixels otherwise")
            _kernel_works[shape] = True
        return counts
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever Triton and the tools it calls may raise
        _kernel_works[shape] = False
        reason = first_line(error)
        warnings.warn(f"pixels are counted by PyTorch, since the kernel does not work: {reason}", stacklevel=2)
        return None


def _count_by_quads(logits: Tensor, truth: QuadLabels) -> tuple[Tensor, Tensor]:
    """(intersection, predicted) [B, K]: pixels that a class wins rightly, and wins where there is a label."""
    num, num_classes, grid, _ = logits.shape
    device, side, cell = logits.device, grid + 1, math.isqrt(truth.pixels.shape[1])
    cells = F.pad(logits, (1, 1, 1, 1), mode="replicate")
    lowest, highest = _over_corners(torch.minimum, cells), _over_corners(torch.maximum, cells)  # [B, K, (G + 1)^2]
    bar = lowest.amax(dim=1, keepdim=True) - ROUNDING * logits.abs().amax()
    candidates = highest >= bar
    how_many = candidates.view(torch.uint8).sum(dim=1, dtype=torch.int32).flatten()  # [Q]
    names = torch.arange(num_classes, device=device, dtype=torch.uint8)
    winner = (candidates * names.unsqueeze(1)).sum(dim=1, dtype=torch.int32).flatten()  # where there is one candidate
    scene = torch.arange(num, device=device).repeat_interleave(side**2, output_size=num * side**2)

    # One bin per scene and class, and one that is dropped, for the quads still open.
    counts = torch.zeros(2, num * num_classes + 1, dtype=torch.int32, device=device)
    certain = how_many == 1
    hits = truth.pixels == winner.to(torch.uint8).view(num, 1, -1)
    hits = hits.view(torch.uint8).sum(dim=1, dtype=torch.int32).flatten()
    bins = torch.where(certain, scene * num_classes + winner, num * num_classes)
    counts.index_add_(1, bins, torch.stack([hits, truth.labeled.flatten()]))

    still_open = (how_many > 1).nonzero().squeeze(1)  # none of a reading that is not finite, which its loss tells
    # In the order of their numbers of candidates, so that few other classes are interpolated.
    still_open = still_open[how_many[still_open].argsort()]
    for start, end, most in _chunks(how_many[still_open], CHUNK.get(device.type, CHUNK["cpu"]) // cell**2):
        quad = still_open[start:end]
        position, quad_scene = quad % side**2, scene[quad]
        # The candidates in ascending order; where there are fewer than `most`, any other classes: they win nothing.
        ranked = candidates[quad_scene, :, position] * (num_classes - names.int())
        classes = (num_classes - ranked.topk(most, dim=1).values).clamp(max=num_classes - 1)
        classes = classes.t().contiguous()  # [m, n]
        values = _upsampled(cells, quad_scene, classes, row=position // side, column=position % side, cell=cell)
        wins = _wins(values, classes, truth.pixels[quad_scene, :, position].t().contiguous())
        counts.index_add_(1, (quad_scene * num_classes + classes).flatten(), wins)
    intersection, predicted = counts[:, :-1].view(2, num, num_classes)
    return intersection, predicted


def _over_corners(reduce: Callable[[Tensor, Tensor], Tensor], cells: Tensor) -> Tensor:
    """[B, K, G + 2, G + 2] -> [B, K, (G + 1)^2]"""
    rows = reduce(cells[:, :, 1:], cells[:, :, :-1])
    return reduce(rows[..., 1:], rows[..., :-1]).flatten(2)


def _upsampled(cells: Tensor, scene: Tensor, classes: Tensor, *, row: Tensor, column: Tensor, cell: int) -> Tensor:
    """[m, cell^2, n] logits of `classes` [m, n] at the pixels of the quads at (scene, row, column) [n]."""
    far = (torch.arange(cell, device=cells.device).view(1, -1, 1) + 0.5) / cell
    near = 1 - far

    _, num_classes, height, width = cells.shape
    top_left = ((scene * num_classes + classes) * height + row) * width + column

    def corner(down: int, right: int) -> Tensor:
        return cells.view(-1)[top_left + (down * width + right)].unsqueeze(1)

    left, right = (near * corner(0, x) + far * corner(1, x) for x in (0, 1))  # [m, cell, n]
    values = left.unsqueeze(2) * near
    return values.addcmul_(right.unsqueeze(2), far).flatten(1, 2)


def _chunks(how_many: Tensor, room: int) -> list[tuple[int, int, int]]:
    """(start, end, how_many[end - 1]) of runs of the ascending `how_many`, (end - start) * how_many[end - 1] <= room.

    A run has at least one element, whether there is room for it or not.
    """
    sizes = how_many.tolist()
    chunks, start = [], 0
    while start < len(sizes):
        end = min(len(sizes), start + max(1, room // sizes[start]))
        while end - start > 1 and (end - start) * sizes[end - 1] > room:
            end = start + max(1, room // sizes[end - 1])
        chunks.append((start, end, sizes[end - 1]))
        start = end
    return chunks


def _wins(values: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """[2, m * n] pixels that each candidate wins rightly, and wins where there is a label. The first of a tie wins."""
    best = values.amax(dim=0)  # [cell^2, n]
    is_open = labels != IGNORE_LABEL
    wins = torch.empty(2, *classes.shape, dtype=torch.int32, device=values.device)
    for j, name in enumerate(classes.to(torch.uint8)):
        won = (values[j] == best).logical_and_(is_open)
        is_open.logical_xor_(won)
        torch.sum(won.view(torch.uint8), dim=0, dtype=torch.int32, out=wins[1, j])
        torch.sum(won.logical_and_(labels == name).view(torch.uint8), dim=0, dtype=torch.int32, out=wins[0, j])
    return wins.flatten(1)
