"""PyTorch's default dtype for this package's computations.

Programs may set it to float64 or bfloat16. The environments still compute in float32: tensors that canvit-pytorch and
PyTorch make without an explicit dtype (sampling grids, quotients of integers) would otherwise not match the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Set the default dtype to float32 for a block or a decorated function, and restore it afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
