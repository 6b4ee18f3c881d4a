"""Intersections and predicted pixels of upsampled readings on a GPU, as one Triton kernel.

The same quads and the same bound as in canvit_gym.confusion. A program counts one quad of one scene: it compares the
classes at the four corners, and if one class is left, counts the quad's labels; otherwise it interpolates the classes
that are left, in PyTorch's order of operations. Nothing waits for the device, and nothing is as large as the upsampled
logits.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# Triton compiles the kernel's body itself: what its types say is not what they are there.

import torch
import triton
import triton.language as tl
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL
from torch import Tensor


@triton.jit
def _count_quad(
    logits,
    labels,
    intersection,
    predicted,
    num_classes,
    grid,
    size,
    rounding,
    cell: tl.constexpr,
    side: tl.constexpr,
    width: tl.constexpr,
    ignored: tl.constexpr,
):
    """logits [B, K, G, G] and labels [B, S, S], contiguous; side and width: cell and K, rounded up to powers of two."""
    quad, scene = tl.program_id(0), tl.program_id(1)
    row, column = quad // (grid + 1), quad % (grid + 1)
    top, bottom = tl.maximum(row - 1, 0), tl.minimum(row, grid - 1)
    left, right = tl.maximum(column - 1, 0), tl.minimum(column, grid - 1)
    first = logits + scene.to(tl.int64) * num_classes * grid * grid

    classes = tl.arange(0, width)
    exists = classes < num_classes
    corner = first + classes * grid * grid
    top_left = tl.load(corner + top * grid + left, mask=exists, other=-float("inf"))
    top_right = tl.load(corner + top * grid + right, mask=exists, other=-float("inf"))
    bottom_left = tl.load(corner + bottom * grid + left, mask=exists, other=-float("inf"))
    bottom_right = tl.load(corner + bottom * grid + right, mask=exists, other=-float("inf"))
    lowest = tl.minimum(tl.minimum(top_left, top_right), tl.minimum(bottom_left, bottom_right))
    highest = tl.maximum(tl.maximum(top_left, top_right), tl.maximum(bottom_left, bottom_right))
    largest = tl.max(tl.where(exists, tl.maximum(tl.abs(lowest), tl.abs(highest)), 0.0), axis=0)
    bar = tl.max(lowest, axis=0) - rounding * largest
    is_candidate = exists & (highest >= bar)
    how_many = tl.sum(is_candidate.to(tl.int32), axis=0)

    along = tl.arange(0, side)
    y, x = row * cell - cell // 2 + along, column * cell - cell // 2 + along
    inside_y, inside_x = (along < cell) & (y >= 0) & (y < size), (along < cell) & (x >= 0) & (x < size)
    place = scene.to(tl.int64) * size * size + y[:, None] * size + x[None, :]
    label = tl.load(labels + place, mask=inside_y[:, None] & inside_x[None, :], other=ignored).to(tl.int32)
    is_labelled = label != ignored

    if how_many == 1:
        winner = tl.sum(tl.where(is_candidate, classes, 0), axis=0)
        hits, total = (label == winner).to(tl.int32), is_labelled.to(tl.int32)
        tl.atomic_add(intersection + scene * num_classes + winner, tl.sum(tl.sum(hits, axis=1), axis=0))
        tl.atomic_add(predicted + scene * num_classes + winner, tl.sum(tl.sum(total, axis=1), axis=0))
    elif how_many > 1:
        far = (along + 0.5) / cell
        near = 1 - far
        best = tl.full((side, side), -float("inf"), tl.float32)
        chosen = tl.full((side, side), -1, tl.int32)
        one = tl.full((), -1, tl.int32)
        for _ in range(how_many):  # the candidates, in ascending order
            one = tl.min(tl.where(is_candidate & (classes > one), classes, width), axis=0)
            at = first + one * grid * grid
            a, b = tl.load(at + top * grid + left), tl.load(at + top * grid + right)
            c, d = tl.load(at + bottom * grid + left), tl.load(at + bottom * grid + right)
            upper, lower = near * a + far * b, near * c + far * d
            value = near[:, None] * upper[None, :] + far[:, None] * lower[None, :]
            chosen = tl.where(value > best, one, chosen)  # the first of a tie wins
            best = tl.maximum(value, best)
        one = tl.full((), -1, tl.int32)
        for _ in range(how_many):
            one = tl.min(tl.where(is_candidate & (classes > one), classes, width), axis=0)
            won = (chosen == one) & is_labelled
            total = tl.sum(tl.sum(won.to(tl.int32), axis=1), axis=0)
            if total > 0:
                hits = tl.sum(tl.sum((won & (label == one)).to(tl.int32), axis=1), axis=0)
                tl.atomic_add(predicted + scene * num_classes + one, total)
                tl.atomic_add(intersection + scene * num_classes + one, hits)


def count_quads(logits: Tensor, labels: Tensor, *, rounding: float) -> tuple[Tensor, Tensor]:
    """(intersection, predicted) in pixels, [B, K] int32 each: pixels that a class wins rightly, and wins where there is
    a label.

    Args:
        logits: [B, K, G, G] float32.
        labels: [B, S, S] uint8 classes or IGNORE_LABEL; S = G * cell with an even cell.
        rounding: a class this close to another, relative to the largest logit of the quad, is not ruled out.
    """
    num, num_classes, grid, _ = logits.shape
    size = labels.shape[-1]
    cell = size // grid
    assert logits.dtype == torch.float32 and labels.dtype == torch.uint8, (logits.dtype, labels.dtype)
    assert cell * grid == size and cell % 2 == 0, (size, grid)
    intersection, predicted = torch.zeros(2, num, num_classes, dtype=torch.int32, device=logits.device)
    with torch.cuda.device_of(logits):
        _count_quad[((grid + 1) ** 2, num)](
            logits.contiguous(),
            labels.contiguous(),
            intersection,
            predicted,
            num_classes,
            grid,
            size,
            rounding,
            cell=cell,
            side=triton.next_power_of_2(cell),
            width=triton.next_power_of_2(num_classes),
            ignored=IGNORE_LABEL,
            enable_fp_fusion=False,
        )
    return intersection, predicted
