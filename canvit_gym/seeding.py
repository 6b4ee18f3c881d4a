"""Temporarily seed PyTorch's global generators: that of the CPU and, if a GPU is used, that of this GPU only.

torch.manual_seed and torch.random.fork_rng without devices affect all GPUs, which creates a CUDA context on each.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of `device` for the block, and restore them afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
