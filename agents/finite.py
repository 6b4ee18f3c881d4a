"""Numbers that are not finite stop a run before they reach a policy that is kept.

On a CPU they are looked at as they come. On a GPU every look waits for it, so that an update collects its looks on the
device and reads them at its end (`checked_at_the_end`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Checks:
    """What was looked at since the block began, in order, and not yet read."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: list[Tensor] = []

    def add(self, names: Sequence[str], sums: Tensor) -> None:
        """[len(names)] sums."""
        self._names += names
        self._sums.append(sums)

    def finite(self) -> Tensor:
        """[n] booleans on the device."""
        return torch.cat(self._sums).isfinite()

    def raise_unless(self, finite: Sequence[bool]) -> None:
        """
        Raises:
            FloatingPointError: one of `finite()` is false. Names the first one: what came later may follow from it.
        """
        for name, ok in zip(self._names, finite, strict=True):
            if not ok:
                raise FloatingPointError(f"{name} is not finite")


_checks: ContextVar[Checks | None] = ContextVar("_checks", default=None)


@contextmanager
def checked_at_the_end() -> Iterator[Checks]:
    """In the block, tensors are looked at without waiting for their device. Read the checks before it is left."""
    checks = Checks()
    token = _checks.set(checks)
    try:
        yield checks
    finally:
        _checks.reset(token)


def require_finite(tensors: dict[str, Tensor | NDArray[Any] | None]) -> None:
    """Raise FloatingPointError naming the first tensor with a NaN or an infinity. One synchronization on a GPU, none
    within `checked_at_the_end`.
    """
    # A sum is finite only where every term is, and no sum of what is learned from comes near the largest float.
    sums = {name: value.sum() for name, value in tensors.items() if value is not None}
    require_finite_sums({name: value for name, value in sums.items() if isinstance(value, Tensor)})
    for name, value in sums.items():
        if not isinstance(value, Tensor) and not np.isfinite(value):
            raise FloatingPointError(f"{name} is not finite")


def require_finite_sums(sums: dict[str, Tensor]) -> None:
    """As require_finite, of numbers on one device that have been added up already."""
    if not sums:
        return
    together = torch.stack([value.detach() for value in sums.values()])
    if (checks := _checks.get()) is not None:
        checks.add(list(sums), together)
        return
    now = Checks()
    now.add(list(sums), together)
    now.raise_unless(now.finite().tolist())
