"""How the vector env's cost grows with the scenes per batch, the budget, the canvas and the pooled observation size.

    python -m experiments.studies.scaling --output experiments/results/throughput/scaling

Along each axis all sizes are measured in turns, in one process; the cost of a size is the median over the turns. The
exponent is the slope of log cost over log size, fitted to the three largest sizes: 1 is linear growth, less is better.
Writes .json, .md and .png.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canvit_gym.backbone.load import resolve_device
from canvit_gym.command_line import output_directory, run_command
from canvit_gym.provenance import plain, provenance
from experiments.throughput.clock import synchronize
from experiments.throughput.contestants import CONTESTANTS
from experiments.throughput.options import MeasurementOptions
from experiments.throughput.workers import busy_note

LINEAR = 1.05
"""An exponent up to this counts as linear, since repeated measurements differ by as much."""


@dataclass(frozen=True)
class Axis:
    """A quantity that grows while the others stay constant."""

    title: str
    size: str
    """The quantity on the horizontal axis; the cost is expected to be linear in it."""
    field: str
    """Name of the field of Job."""
    values: tuple[int, ...]
    size_of: Callable[[int], int]
    per_episode: bool = False
    """Whether the cost is that of an episode instead of a step."""


AXES = (
    Axis("scenes per batch", "scenes", "num_envs", (1, 2, 4, 8, 16, 32, 64, 128, 256), lambda n: n),
    Axis("budget", "glimpses an episode", "budget", (2, 3, 5, 9, 17), lambda n: n, per_episode=True),
    Axis("canvas", "canvas cells", "canvas_grid", (8, 16, 24, 32, 48, 64), lambda grid: grid**2),
    Axis("pooled observation", "observed cells", "canvas_size", (1, 2, 4, 8, 16), lambda side: side**2),
)


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(MeasurementOptions):
    num_envs: int = 32
    repeats: int = 7
    largest: int | None = None
    """No sizes above this along any axis. None: all of them."""
    output: Path | None = None
    """Where to write, without the ending; the table is printed in any case."""


def measure(axis: Axis, config: ScalingConfig) -> dict[str, Any]:
    """Measure milliseconds by size, and the exponent."""
    device = resolve_device(config.device)
    base = config.job("vector env", rounds=1)
    values = [value for value in axis.values if config.largest is None or value <= config.largest]
    runs: dict[int, Callable[[], int]] = {}
    steps: dict[int, int] = {}
    for value in values:
        job = replace(base, **{axis.field: value})
        job = replace(job, rounds=max(1, config.num_envs // job.num_envs))
        runs[value] = CONTESTANTS["vector env"](job)
        steps[value] = job.rounds * job.budget
        runs[value]()
    seconds: dict[int, list[float]] = {value: [] for value in values}
    for _ in range(config.repeats):
        for value, run in runs.items():
            synchronize(device)
            began = time.perf_counter()
            run()
            synchronize(device)
            seconds[value].append(time.perf_counter() - began)
    sizes = [axis.size_of(value) for value in values]
    milliseconds = [
        1e3 * statistics.median(seconds[value]) / steps[value] * (value if axis.per_episode else 1) for value in values
    ]
    return {
        "title": axis.title,
        "size": axis.size,
        "sizes": sizes,
        "milliseconds": milliseconds,
        "per": "episode" if axis.per_episode else "step",
        "exponent": exponent(sizes, milliseconds),
    }


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The exponent of the growth of the costs, at the largest sizes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(costs[-3:]), deg=1)[0])


def table(results: list[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        header = [result["size"], *map(str, result["sizes"])]
        lines += [
            f"| {' | '.join(header)} |",
            "| --- " * len(header) + "|",
            f"| ms per {result['per']} | {' | '.join(f'{ms:.1f}' for ms in result['milliseconds'])} |",
            "",
            f"Exponent at the end: {result['exponent']:.2f} "
            f"({'linear or better' if result['exponent'] <= LINEAR else 'worse than linear'}).",
            "",
        ]
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Log-log plots, each with the line of linear growth through its last point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(3.2 * len(results), 3.0), layout="constrained")
    for result, ax in zip(results, axes, strict=True):
        sizes, costs = result["sizes"], result["milliseconds"]
        ax.plot(sizes, [costs[-1] * size / sizes[-1] for size in sizes], color="0.7", lw=1, label="linear")
        ax.plot(sizes, costs, "o-", ms=4, label="measured")
        ax.set(xscale="log", yscale="log", xlabel=result["size"], ylabel=f"ms per {result['per']}")
        ax.set_title(result["title"])
        ax.set_xticks(sizes, [str(size) for size in sizes], fontsize=7)
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(config: ScalingConfig) -> None:
    config.check()
    if config.output is not None:
        output_directory(config.output.parent, option="--output")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    load_before = os.getloadavg()
    results = [measure(axis, config) for axis in AXES]
    origin = provenance()
    text = "\n\n".join([f"Written by\n\n    {origin['command']}", *busy_note(load_before), table(results)])
    print(text)
    if config.output is not None:
        record = dict(
            config=plain(asdict(config)),
            axes=results,
            load_before=load_before,
            load_after=os.getloadavg(),
            provenance=origin,
        )
        config.output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        config.output.with_suffix(".md").write_text(text, encoding="utf-8")
        plot(results, config.output.with_suffix(".png"))


if __name__ == "__main__":
    run_command(main, ScalingConfig, description=__doc__)
