"""Measure time on a device, waiting for its work to finish."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Clock:
    """Adds up the time inside a method that `timing` has replaced."""

    device: torch.device
    seconds: float = field(default=0.0, init=False)

    def timing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize(self.device)
            began = time.perf_counter()
            result = method(*args, **kwargs)
            synchronize(self.device)
            self.seconds += time.perf_counter() - began
            return result

        return timed
