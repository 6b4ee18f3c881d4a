"""Numbers that are not finite stop a run before they reach a parameter."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def require_finite(tensors: dict[str, Tensor | NDArray[Any] | None]) -> None:
    """Raise FloatingPointError naming the first tensor with a NaN or an infinity. One synchronization on a GPU."""
    # A sum is finite only where every term is, and no sum of what is learned from comes near the largest float.
    sums = {name: value.sum() for name, value in tensors.items() if value is not None}
    on_device = [value for value in sums.values() if isinstance(value, Tensor)]
    finite = iter(torch.stack(on_device).isfinite().tolist() if on_device else [])
    for name, value in sums.items():
        if not (next(finite) if isinstance(value, Tensor) else np.isfinite(value)):
            raise FloatingPointError(f"{name} is not finite")
