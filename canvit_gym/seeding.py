"""PyTorch's global generators, seeded for a while: the CPU's and, where work is done on a GPU, that GPU's alone.

torch.manual_seed and a bare torch.random.fork_rng reach for every GPU there is, which begins a CUDA context on each.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws on the CPU and on `device` follow from `seed`; afterwards their generators stand where they stood."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
