"""Counting without upsampling is counting after upsampling: canvit-pytorch's metrics on F.interpolate."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from canvit_pytorch.benchmarks.ade20k import MeanIoU, per_image_confusion
from torch import Tensor

from canvit_gym import confusion
from canvit_gym.confusion import QuadLabels, count_confusion


def upsampled(logits: Tensor, size: int) -> Tensor:
    return F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False).argmax(dim=1)


def smooth_logits(num: int, num_classes: int, grid: int, *, seed: int) -> Tensor:
    """Regions of one class with borders, as a probe reads them, on multiples of 1/64: every product is then exact in
    float32, in whatever order it is added, and ties happen."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 4 * torch.randn(num, num_classes, max(2, grid // 3), max(2, grid // 3), generator=generator)
    noise = 0.3 * torch.randn(num, num_classes, grid, grid, generator=generator)
    return ((F.interpolate(coarse, size=(grid, grid), mode="bilinear") + noise) * 64).round() / 64


def some_labels(num: int, num_classes: int, size: int, *, seed: int) -> Tensor:
    """Blocks of labels, a tenth of them unlabeled."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, num_classes, size=(num, -(-size // 5), -(-size // 5)))
    blocks[rng.random(blocks.shape) < 0.1] = 255
    return torch.from_numpy(blocks.repeat(5, axis=1).repeat(5, axis=2)[:, :size, :size].astype(np.uint8))


@pytest.mark.parametrize(
    ("num_classes", "grid", "cell"), [(11, 16, 8), (150, 8, 16), (2, 5, 2), (3, 1, 4), (21, 7, 6), (1, 4, 4)]
)
def test_counts_are_canvit_pytorchs_to_the_pixel(num_classes: int, grid: int, cell: int) -> None:
    num, size = 6, grid * cell
    logits = smooth_logits(num, num_classes, grid, seed=grid)
    labels = some_labels(num, num_classes, size, seed=cell)
    truth = QuadLabels.cut(labels, grid=grid, num_classes=num_classes)
    intersection, union = count_confusion(logits, truth)
    expected = per_image_confusion(upsampled(logits, size), labels.long(), num_classes)
    assert torch.equal(intersection, expected[0].long()) and torch.equal(union, expected[1].long())
    assert torch.equal(truth.area, expected[2].long())

    miou = MeanIoU(device=torch.device("cpu"), num_classes=num_classes)
    miou.update(upsampled(logits, size), labels.long())
    assert torch.equal(miou.intersection.long(), intersection.sum(dim=0))
    assert torch.equal(miou.union.long(), union.sum(dim=0))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_logits_of_any_kind(offset: float) -> None:
    """White noise: no quad is certain. Far from zero, where float32 ties are common, a few pixels may differ."""
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 11, 16, 16) + offset, some_labels(4, 11, 128, seed=0)
    intersection, union = count_confusion(logits, QuadLabels.cut(labels, grid=16, num_classes=11))
    expected = per_image_confusion(upsampled(logits, 128), labels.long(), 11)
    allowed = 0 if offset == 0 else 2e-3 * 128**2
    assert (intersection - expected[0]).abs().max() <= allowed and (union - expected[1]).abs().max() <= allowed


def test_of_equal_logits_the_first_wins() -> None:
    logits, labels = torch.zeros(1, 4, 2, 2), torch.zeros(1, 8, 8, dtype=torch.uint8)
    intersection, union = count_confusion(logits, QuadLabels.cut(labels, grid=2, num_classes=4))
    assert intersection.tolist() == union.tolist() == [[64, 0, 0, 0]]


def test_scenes_without_labels_count_nothing() -> None:
    logits, labels = smooth_logits(2, 3, 4, seed=0), torch.full((2, 16, 16), 255, dtype=torch.uint8)
    intersection, union = count_confusion(logits, QuadLabels.cut(labels, grid=4, num_classes=3))
    assert not intersection.any() and not union.any()


def test_chunks_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = smooth_logits(5, 11, 16, seed=1), some_labels(5, 11, 128, seed=1)
    truth = QuadLabels.cut(labels, grid=16, num_classes=11)
    whole = count_confusion(logits, truth)
    monkeypatch.setitem(confusion.CHUNK, "cpu", 64 * 7)
    assert all(torch.equal(one, other) for one, other in zip(whole, count_confusion(logits, truth), strict=True))
    monkeypatch.setitem(confusion.CHUNK, "cpu", 1)
    assert all(torch.equal(one, other) for one, other in zip(whole, count_confusion(logits, truth), strict=True))


def test_most_quads_are_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for all this; a bound that is too cautious would interpolate everything and still count correctly."""
    coarse = torch.randn(8, 11, 3, 3, generator=torch.Generator().manual_seed(2))
    logits = F.interpolate(coarse, size=(16, 16), mode="bilinear")
    best = F.unfold(F.pad(logits, (1, 1, 1, 1), mode="replicate").argmax(dim=1, keepdim=True).float(), 2)
    disagree = int((best != best[:, :1]).any(dim=1).sum())  # best: [B, 4 corners, quads]
    interpolated = []

    def none(how_many: Tensor, room: int) -> list[tuple[int, int, int]]:
        interpolated.append(len(how_many))
        return []

    monkeypatch.setattr(confusion, "_chunks", none)
    count_confusion(logits, QuadLabels.cut(some_labels(8, 11, 128, seed=2), grid=16, num_classes=11))
    assert disagree <= interpolated[0] < 0.5 * 8 * 17**2


@pytest.mark.parametrize(("size", "grid"), [(100, 16), (48, 16)])
def test_maps_that_do_not_divide_are_refused(size: int, grid: int) -> None:
    with pytest.raises(ValueError, match=f"{size} px do not divide into {grid} canvas cells"):
        QuadLabels.cut(torch.zeros(1, size, size, dtype=torch.uint8), grid=grid, num_classes=3)
