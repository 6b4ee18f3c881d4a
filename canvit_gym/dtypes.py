"""PyTorch's default dtype, for what this package computes.

Programs set it to float64 or bfloat16 for parts of their own. The environments compute in float32 all the same: tensors
that canvit-pytorch and PyTorch make without naming a dtype (grids of sampling, quotients of whole numbers) would
otherwise not fit the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_by_default() -> Iterator[None]:
    """For a block, or a function that it decorates, the default dtype is float32; afterwards it is what it was."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
