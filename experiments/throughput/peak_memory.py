"""The peak memory of a process."""

import resource
from pathlib import Path

import torch


def peak_mib(device: torch.device) -> float:
    """The peak resident memory of this process or, on a GPU, the peak of what was allocated there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage includes the peak of the process that started this one
        return int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
