"""The kernel that counts pixels on a GPU: run by Triton's interpreter on the CPU, compiled for GPUs without one, and
left alone where it does not work."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_confusion import smooth_logits, some_labels
from torch import Tensor

from canvit_gym import confusion
from canvit_gym.confusion import QuadLabels, count_confusion

pytest.importorskip("triton")

INTERPRETED = """
import torch
from test_confusion import smooth_logits, some_labels
from canvit_gym import confusion
from canvit_gym.confusion import QuadLabels, _count_by_kernel, _count_by_quads

torch.manual_seed(0)
for num_classes, grid, cell in [(11, 4, 8), (40, 2, 16), (2, 5, 2), (3, 1, 4), (5, 3, 6), (1, 2, 4)]:
    labels = some_labels(3, num_classes, grid * cell, seed=cell)
    logits = smooth_logits(3, num_classes, grid, seed=grid)
    logits[0], logits[1] = torch.randn(logits[0].shape), 0  # no quad is certain; all classes tie
    truth = QuadLabels.cut(labels, grid=grid, num_classes=num_classes)
    counts, expected = _count_by_kernel(logits, truth, labels), _count_by_quads(logits, truth)
    assert counts is not None
    for name, one, other in zip(("intersection", "predicted"), counts, expected, strict=True):
        assert torch.equal(one, other), (num_classes, grid, cell, name, one, other)
    logits[2] = float("nan")
    counts = _count_by_kernel(logits, truth, labels)
    assert counts is not None and not counts[1][2].any() and counts[1][0].sum() == truth.labeled[0].sum()
"""

COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from canvit_gym.confusion_kernel import _count_quad

types = dict(logits="*fp32", labels="*u8", intersection="*i32", predicted="*i32", num_classes="i32", grid="i32",
             size="i32", rounding="fp32") | dict.fromkeys(("cell", "side", "width", "ignored"), "constexpr")
for capability in (80, 90):
    for cell, side, width in ((16, 16, 256), (6, 8, 2)):
        given = dict(cell=cell, side=side, width=width, ignored=255)
        source = ASTSource(fn=_count_quad, signature=types, constexprs=given)
        kernel = compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
        assert len(kernel.asm["cubin"]) > 1000
"""


@pytest.mark.parametrize(("script", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")], ids=["counts", "compiles"])
def test_without_a_gpu(script: str, interpret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, since Triton decides when the kernel is defined."""
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[1]}")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def wrong(logits: Tensor, labels: Tensor, *, rounding: float) -> tuple[Tensor, Tensor]:
    counts = torch.zeros(2, *logits.shape[:2], dtype=torch.int32)
    return counts[0], counts[1]


def broken(logits: Tensor, labels: Tensor, *, rounding: float) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no compiler\nfor many reasons")


@pytest.mark.parametrize(
    ("kernel", "reason"), [(wrong, r"it counts \d+ of \d+ pixels otherwise"), (broken, "no compiler$")]
)
def test_pytorch_counts_where_the_kernel_does_not_work(
    kernel: Callable[..., tuple[Tensor, Tensor]], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "canvit_gym.confusion_kernel", types.SimpleNamespace(count_quads=kernel))
    monkeypatch.setattr(confusion, "_kernel_works", {})
    labels, logits = some_labels(2, 3, 16, seed=0), smooth_logits(2, 3, 4, seed=0)
    truth = QuadLabels.cut(labels, grid=4, num_classes=3)
    with pytest.warns(UserWarning, match=f"counted by PyTorch, since the kernel does not work: {reason}"):
        assert confusion._count_by_kernel(logits, truth, labels) is None
    assert confusion._count_by_kernel(logits, truth, labels) is None  # without another warning


@pytest.mark.gpu
def test_a_gpu_counts_what_a_cpu_counts() -> None:
    for num_classes, grid, cell in [(150, 32, 16), (11, 16, 8), (3, 1, 4), (1, 4, 4)]:
        labels = some_labels(4, num_classes, grid * cell, seed=cell)
        logits = smooth_logits(4, num_classes, grid, seed=grid)
        truth = QuadLabels.cut(labels, grid=grid, num_classes=num_classes)
        expected = count_confusion(logits, truth)
        on_gpu = QuadLabels(**{name: tensor.cuda() for name, tensor in vars(truth).items()})
        found = count_confusion(logits.cuda(), on_gpu, labels=labels.cuda())
        assert all(torch.equal(one.cpu(), other) for one, other in zip(found, expected, strict=True))
    assert confusion._kernel_works and all(confusion._kernel_works.values())
