"""The peak of what a process has held in memory."""

import resource
from pathlib import Path

import torch


def peak_mib(device: torch.device) -> float:
    """Of this process, resident; on a GPU of what was allocated there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells begins with the peak of the process that started this one
        return int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
