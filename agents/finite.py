"""Stop a run at numbers that are not finite, before they reach a policy that is saved.

On a CPU tensors are checked immediately. On a GPU every check would wait for the device, so an update collects its
checks there and reads them all at its end (`checked_at_the_end`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Checks:
    """The checks since the block began, in order, not yet read."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: list[Tensor] = []

    def add(self, names: Sequence[str], sums: Tensor) -> None:
        """Add sums to check. sums: [len(names)]."""
        self._names += names
        self._sums.append(sums)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def sums(self) -> Tensor:
        """[n] on the device, one for each name."""
        return torch.cat(self._sums)

    def finite(self) -> Tensor:
        """[n] booleans on the device: whether each sum is finite."""
        return self.sums().isfinite()

    def raise_unless(self, finite: Sequence[bool]) -> None:
        """
        Raises:
            FloatingPointError: one of `finite()` is false. It names the first one, since the others may follow from it.
        """
        for name, ok in zip(self._names, finite, strict=True):
            if not ok:
                raise FloatingPointError(f"{name} is not finite")


_checks: ContextVar[Checks | None] = ContextVar("_checks", default=None)


@contextmanager
def checked_at_the_end() -> Iterator[Checks]:
    """Within the block, check tensors without waiting for their device. Read the checks before leaving the block."""
    checks = Checks()
    token = _checks.set(checks)
    try:
        yield checks
    finally:
        _checks.reset(token)


class GradientWatch:
    """Names the parameter whose gradient is not finite after the backward pass, before clipping mixes gradients.

    The sums of all gradients are checked together, before every step of one of the policy's optimizers. This takes one
    synchronization on a GPU, and none within `checked_at_the_end`.
    """

    def __init__(self, policy: torch.nn.Module, *optimizers: torch.optim.Optimizer) -> None:
        self._sums: dict[str, Tensor] = {}
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._watcher(name))
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(lambda *_: self.check())

    def _watcher(self, name: str) -> Callable[[Tensor], None]:
        def watch(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self._sums[name] = parameter.grad.sum()

        return watch

    def check(self) -> None:
        """Check the gradients since the last check; the optimizer does this before every step."""
        sums, self._sums = self._sums, {}
        require_finite_sums({f"the gradient of {name}": value for name, value in sums.items()})


def require_finite(tensors: dict[str, Tensor | NDArray[Any] | None]) -> None:
    """Raise FloatingPointError naming the first tensor with a NaN or an infinity. This takes one synchronization on a
    GPU, and none within `checked_at_the_end`.
    """
    # A sum is only finite if every term is, and no sum in training comes near the largest float.
    sums = {name: value.sum() for name, value in tensors.items() if value is not None}
    require_finite_sums({name: value for name, value in sums.items() if isinstance(value, Tensor)})
    for name, value in sums.items():
        if not isinstance(value, Tensor) and not np.isfinite(value):
            raise FloatingPointError(f"{name} is not finite")


def require_finite_sums(sums: dict[str, Tensor]) -> None:
    """Like require_finite, for sums that have already been computed, all on one device."""
    if not sums:
        return
    add_checks(tuple(sums), torch.stack([value.detach() for value in sums.values()]))


def add_checks(names: Sequence[str], sums: Tensor) -> None:
    """Like require_finite, for sums [len(names)] that are one tensor."""
    if (checks := _checks.get()) is not None:
        checks.add(names, sums)
        return
    now = Checks()
    now.add(names, sums)
    now.raise_unless(now.finite().tolist())
