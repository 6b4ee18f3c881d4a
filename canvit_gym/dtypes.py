"""PyTorch's default dtype for this package's computations.

Programs may set it to float64 or bfloat16. The environments still compute in float32: tensors that canvit-pytorch and
PyTorch make without an explicit dtype (sampling grids, quotients of integers) would otherwise not match the weights.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_within, _before = 0, torch.float32
"""How many blocks there are now, in all threads, and the dtype from before the first of them."""


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Set the default dtype to float32 for a block or a decorated function, and restore it afterwards. It is that of
    all threads, so the last of several blocks restores it."""
    global _within, _before
    with _lock:
        if not _within:
            _before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                torch.set_default_dtype(_before)
