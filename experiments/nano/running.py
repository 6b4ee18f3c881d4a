"""Helpers of nano's training: time budget, number format, gradient check and log."""

import logging
import time
from pathlib import Path
from typing import Literal, Protocol

import torch

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "tf32", "bf16"]
Compile = Literal["auto", "off"]


class Budget:
    """The time that this start may take. `minutes` None: no limit."""

    def __init__(self, minutes: float | None) -> None:
        if minutes is not None and not minutes > 0:
            raise ValueError(f"--minutes must be positive, got {minutes}")
        self.minutes = minutes
        self._began = time.monotonic()

    @property
    def spent(self) -> bool:
        return self.minutes is not None and time.monotonic() - self._began >= 60 * self.minutes

    def say_goes_on(self, where: str) -> None:
        log.info("%s minutes are over %s. The state is saved; run the same command to continue.", self.minutes, where)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What "auto" means on a device: bf16 on a GPU that has it, TF32 on another GPU, float32 on a CPU.

    Raises:
        ValueError: TF32 without a GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"--precision tf32 is a format of NVIDIA GPUs, and the device is {device}: choose float32")
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    return "bf16" if torch.cuda.is_bf16_supported() else "tf32"


def autocast_for(precision: Precision, device: torch.device) -> torch.autocast:
    """The autocast context of forward passes. Matrix products left in float32 use TF32, unless float32 was chosen."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


class _NoWriter:
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        pass


def tensorboard(run_dir: Path) -> Writer:
    """A TensorBoard log; nothing is written if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("tensorboard is not installed: no curves are written to %s", run_dir)
        return _NoWriter()
    return SummaryWriter(str(run_dir))


class GradientCheck:
    """Keeps on the device whether every gradient so far was finite. Reading it waits for the GPU, so do that rarely."""

    def __init__(self, device: torch.device, *, state_file: Path) -> None:
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._state_file = state_file
        self._since: int | None = None
        self.every = 1 if device.type == "cpu" else 50

    def add(self, norm: torch.Tensor, *, step: int) -> None:
        self._finite &= torch.isfinite(norm)
        self._since = step if self._since is None else self._since
        if (step + 1) % self.every == 0:
            self.read(step=step)

    def read(self, *, step: int) -> None:
        """Check the gradients so far.

        Raises:
            FloatingPointError: a gradient was not finite.
        """
        if not self._finite:
            first = self._since
            raise FloatingPointError(
                f"a gradient was not finite at step {step if first in (None, step) else f'{first} to {step}'}; take a "
                f"smaller --peak-lr. The last good state is in {self._state_file}"
            )
        self._since = None
