"""The share of a run's time in each stage, without the stages inside it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import canvit_gym.device_step as device_step
import canvit_gym.evaluation as evaluation
import canvit_gym.observations as observations
from canvit_gym.backbone.load import Backbone
from canvit_gym.device_step import DeviceStep
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.vector_env import GlimpseVectorEnv
from experiments.throughput.clock import synchronize
from experiments.throughput.contestants import Run

PYTHON = "Python and copies between states"
STAGES: dict[str, list[tuple[Any, str]]] = {
    "scenes": [(EpisodeBatch, "reset_rows")],
    "glimpse sampling": [(Backbone, "glimpse")],
    "backbone": [(Backbone, "step"), (Backbone, "init_state")],
    "probe": [(DeviceStep, "_decode")],
    "score": [
        (DeviceStep, "measure"),
        (evaluation._Counter, "count"),
    ],
    "observation": [
        (device_step, "pooled_canvas"),
        (observations, "update_acuity"),
        (EpisodeBatch, "observe"),
        (GlimpseVectorEnv, "_observation"),
    ],
}


@contextmanager
def clocked(device: torch.device) -> Iterator[dict[str, float]]:
    """Measure seconds by stage within the block. Every stage ends with a synchronization, so nothing overlaps."""
    seconds = dict.fromkeys(STAGES, 0.0)
    open_stages: list[float] = []
    originals = [(owner, name, getattr(owner, name)) for stage in STAGES.values() for owner, name in stage]

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            synchronize(device)
            began = time.perf_counter()
            open_stages.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(device)
                taken = time.perf_counter() - began
                seconds[stage] += taken - open_stages.pop()
                if open_stages:
                    open_stages[-1] += taken

        return wrapper

    try:
        for stage, members in STAGES.items():
            for owner, name in members:
                setattr(owner, name, timed(stage, getattr(owner, name)))
        yield seconds
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def shares(run: Run, device: torch.device, *, repeats: int) -> dict[str, float]:
    """Shares of the time by stage; they add up to 1."""
    with clocked(device) as seconds:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        synchronize(device)
        total = time.perf_counter() - began
    found = {stage: seconds[stage] / total for stage in STAGES}
    return {**found, PYTHON: 1 - sum(found.values())}
