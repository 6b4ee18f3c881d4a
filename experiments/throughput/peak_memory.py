"""The peak memory of a process, or of a function."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch


def peak_mib(device: torch.device) -> float:
    """The peak resident memory of this process or, on a GPU, the peak of what was allocated there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage includes the peak of the process that started this one
        return int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def peak_of_allocations(run: Callable[[], object]) -> int:
    """The largest sum of the CPU memory that PyTorch allocated in `run` and had not yet freed, in bytes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [cast(Any, event).nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())
