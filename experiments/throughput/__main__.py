"""Glimpses per second of every layer, compared with canvit-pytorch's run_episode.

    python -m experiments.throughput --output experiments/results/throughput/cpu.json

Every contestant runs in its own process, and they take turns. The tables show medians over the turns, and medians of
the ratios within a turn. The first run of each contestant is a warm-up (including compilation) and is not counted. Do
not use the machine for anything else meanwhile: about eight minutes on two CPU cores, or a minute with --quick. A row
is only called compiled or bfloat16 if its backbone reports that this is what ran; the exit status is 1 if anything else
ran.

The tables show every layer at one batch size; where the time goes; the latency of a step by batch size; model and
canvas sizes; how closely faster settings agree with eager float32; and the environment's own overhead beside that of
ap_gym, both without a backbone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from canvit_gym.backbone.load import resolve_device
from canvit_gym.backbone.nano import NANO_GLIMPSE_SIZE_PX
from canvit_gym.checks import integer
from canvit_gym.command_line import output_directory, run_command
from canvit_gym.provenance import plain, provenance
from canvit_gym.scenes.prepared import FashionScenes
from experiments.throughput.agreement import agreement
from experiments.throughput.contestants import Job
from experiments.throughput.models import SHARED_DIRECTORY, ModelSize, env_kwargs_of
from experiments.throughput.options import MeasurementOptions
from experiments.throughput.what_ran import fallback, label
from experiments.throughput.workers import busy_note, in_turns, ratio, started

REFERENCE, AS_PUBLISHED = "run_episode", "run_episode, default allocator"
VECTOR_ENV = "vector env"
NO_BACKBONE, AP_GYM = "vector env without a backbone", "ap_gym ImageClassificationVectorEnv"
BATCHES = (1, 8, 64, 256)
CANVAS_GRIDS = (16, 32, 64)
SIZES: dict[ModelSize, int] = {"nano": 16, "CanViT-S": 4, "CanViT-B": 2}
"""Scenes a batch on a CPU; 64 on a GPU."""


@dataclass(frozen=True, kw_only=True)
class ThroughputConfig(MeasurementOptions):
    rounds: int = 2
    """Passes over all environments in a run, `budget` glimpses each."""
    quick: bool = False
    """Three turns of the main layers only."""
    ap_gym_python: Path | None = None
    """A Python with ap_gym installed, for the comparison with it."""
    output: Path | None = None
    """Where to write the JSON record, and the tables beside it as .md; printed in any case."""


def layers(config: ThroughputConfig) -> dict[str, Job]:
    job = config.job(REFERENCE, rounds=config.rounds)
    names = [REFERENCE, "Backbone.step loop", VECTOR_ENV, "vector env, early stops", "SB3 adapter", "exact evaluation"]
    jobs = {AS_PUBLISHED: replace(job, own_memory=False), **{name: replace(job, contestant=name) for name in names}}
    if config.quick:
        return jobs
    env = jobs[VECTOR_ENV]
    return {
        **jobs,
        "Backbone.step loop, compiled": replace(jobs["Backbone.step loop"], compile=True),
        "vector env, 1 thread": replace(env, threads=1),
        "vector env, compiled": replace(env, compile=True),
        "vector env, bfloat16": replace(env, precision="bfloat16"),
        "vector env, bfloat16, compiled": replace(env, precision="bfloat16", compile=True),
        "PPO end to end": replace(job, contestant="PPO end to end"),
        "SyncVectorEnv of single envs": replace(job, contestant="SyncVectorEnv of single envs"),
    }


def sections(config: ThroughputConfig) -> dict[str, Callable[[], Any]]:
    """The measurements in order, by their keys in the record."""
    found: dict[str, Callable[[], Any]] = {"layers": lambda: measure_layers(config)}
    if not config.quick:
        found["latency"] = lambda: measure_latency(config)
        found["sizes"] = lambda: measure_sizes(config)
        found["agreement"] = lambda: agreement(
            layers(config)[VECTOR_ENV].config(), num_glimpses=config.budget, batch_size=config.num_envs
        )
    found["overhead"] = lambda: measure_overhead(config)
    return found


def measure_layers(config: ThroughputConfig) -> dict[str, Any]:
    jobs = layers(config)
    with started(jobs) as (workers, said):
        measured: dict[str, Any] = in_turns(workers, repeats=config.repeats)
        for name, found in measured.items():
            found |= said[name] | workers[name].ask("memory") | {"ran": workers[name].ask("ran")}
            found["label"] = label(name, jobs[name], found["ran"])
            found["fell_back"] = fallback(jobs[name], found["ran"])
        stages = {name: workers[name].ask("stages") for name in (VECTOR_ENV, "SB3 adapter", "exact evaluation")}
    return {"contestants": measured, "stages": stages}


def measure_latency(config: ThroughputConfig) -> dict[str, Any]:
    """Milliseconds per step of a whole batch, by contestant and batch size."""
    job = layers(config)[REFERENCE]
    found: dict[str, dict[int, float]] = {}
    for num_envs in BATCHES:
        rounds = max(1, 32 // num_envs)
        sized = replace(job, num_envs=num_envs, rounds=rounds)
        jobs = {
            REFERENCE: sized,
            VECTOR_ENV: replace(sized, contestant=VECTOR_ENV),
            "vector env, compiled": replace(sized, contestant=VECTOR_ENV, compile=True),
        }
        with started(jobs) as (workers, _):
            for name, rates in in_turns(workers, repeats=config.repeats).items():
                median = statistics.median(rates["glimpses_per_second"])
                ran_instead = fallback(jobs[name], workers[name].ask("ran"))
                told_as = name if ran_instead is None else f"{name}: FELL BACK, ran {ran_instead}"
                found.setdefault(told_as, {})[num_envs] = 1e3 * num_envs / median
    return found


def measure_sizes(config: ThroughputConfig) -> list[dict[str, Any]]:
    """run_episode and the vector env by model and canvas size, with few runs of small batches."""
    rows = []
    on_gpu = resolve_device(config.device).type == "cuda"
    for size, small_batch in SIZES.items():
        num_envs = 64 if on_gpu else small_batch
        for grid in CANVAS_GRIDS:
            env_kwargs_of(size, grid)  # writes the random weights that the processes read
            job = replace(layers(config)[REFERENCE], model=size, canvas_grid=grid, num_envs=num_envs, rounds=1)
            with started({REFERENCE: job, VECTOR_ENV: replace(job, contestant=VECTOR_ENV)}) as (workers, _):
                measured = in_turns(workers, repeats=3)
                memory = {name: workers[name].ask("memory")["peak_mib"] for name in workers}
            rates = {name: found["glimpses_per_second"] for name, found in measured.items()}
            rows.append(
                {
                    "model": size,
                    "canvas_grid": grid,
                    "num_envs": num_envs,
                    "glimpses_per_second": {name: statistics.median(values) for name, values in rates.items()},
                    "ratio": ratio(rates[VECTOR_ENV], rates[REFERENCE]),
                    "peak_mib": memory,
                }
            )
    return rows


def measure_overhead(config: ThroughputConfig) -> dict[str, Any]:
    """Environment steps per second without a backbone: ours, and ap_gym's if it is available."""
    ours = replace(layers(config)[REFERENCE], contestant=NO_BACKBONE, rounds=8 * config.rounds)
    with tempfile.TemporaryDirectory() as directory:
        jobs: dict[str, Job | list[str]] = {NO_BACKBONE: ours}
        if config.ap_gym_python is not None:
            jobs[AP_GYM] = ap_gym_command(config, Path(directory))
        with started(jobs) as (workers, _):
            measured = in_turns(workers, repeats=config.repeats)
    rates = {name: found["glimpses_per_second"] for name, found in measured.items()}
    return {
        "env_steps_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ours_over_ap_gym": ratio(rates[NO_BACKBONE], rates[AP_GYM]) if AP_GYM in rates else None,
    }


def ap_gym_command(config: ThroughputConfig, directory: Path) -> list[str]:
    """The command that measures ap_gym on the same scenes, with their images in its format."""
    scenes = FashionScenes("classification", "validation", config.num_scenes).load(np.arange(config.num_scenes))
    images = np.ascontiguousarray(scenes.images.permute(0, 2, 3, 1).numpy())
    np.savez(directory / "scenes.npz", images=images, labels=scenes.labels.numpy())
    job = {
        "scenes": str(directory / "scenes.npz"),
        "num_envs": config.num_envs,
        "budget": config.budget,
        "rounds": config.rounds,
        "glimpse_size_px": NANO_GLIMPSE_SIZE_PX,
    }
    return [str(config.ap_gym_python), str(Path(__file__).with_name("ap_gym_worker.py")), json.dumps(job)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(record: Mapping[str, Any]) -> str:
    """The record as Markdown tables."""
    config, contestants = record["config"], record["layers"]["contestants"]
    rates = {name: found["glimpses_per_second"] for name, found in contestants.items()}
    parts = [
        f"Written by\n\n    {record['provenance']['command']}",
        *busy_note(record["load_before"]),
        f"nano, {config['num_envs']} scenes a batch, {config['budget']} glimpses a scene:",
        table(
            ["", "glimpses/s", f"ratio to {REFERENCE}", f"to {AS_PUBLISHED}", "peak MiB", "ready after s"],
            [
                [
                    contestants[name]["label"],
                    f"{statistics.median(values):,.0f}",
                    f"{ratio(values, rates[REFERENCE]):.2f}",
                    f"{ratio(values, rates[AS_PUBLISHED]):.2f}",
                    f"{contestants[name]['peak_mib']:.0f}",
                    f"{contestants[name]['seconds_to_start']:.0f}",
                ]
                for name, values in rates.items()
            ],
        ),
        "Where the time goes:",
        by_column(record["layers"]["stages"], "{:.1%}"),
    ]
    if latency := record.get("latency"):
        parts += ["Milliseconds a step, by scenes a batch:", by_column(latency, "{:.1f}")]
    if sizes := record.get("sizes"):
        header = ["model", "canvas", "scenes a batch", REFERENCE, VECTOR_ENV, "ratio", "peak MiB"]
        rows = [
            [
                row["model"],
                str(row["canvas_grid"]),
                str(row["num_envs"]),
                *(f"{row['glimpses_per_second'][name]:,.1f}" for name in (REFERENCE, VECTOR_ENV)),
                f"{row['ratio']:.2f}",
                f"{row['peak_mib'][VECTOR_ENV]:.0f}",
            ]
            for row in sizes
        ]
        parts += ["Glimpses/s by model and canvas (all but nano with random weights):", table(header, rows)]
    if found := record.get("agreement"):
        header = ["", "canvas error", "CLS error", "EG-C2F: same viewpoints", "mIoU", "difference in points"]
        rows = [
            [
                name,
                *(f"{values[key]:.1e}" if key in values else "" for key in ("canvas_error", "cls_error")),
                f"{values['same_viewpoints']:.2%}" if "same_viewpoints" in values else "",
                f"{values['miou']:.2f}",
                f"{values.get('miou_difference', 0):+.3f}",
            ]
            for name, values in found.items()
        ]
        parts += ["Agreement with eager float32 (experiments.throughput.agreement):", table(header, rows)]
    overhead = record["overhead"]
    parts.append("Environment steps per second without a backbone, 32 px glimpses as observations:")
    parts.append("\n".join(f"- {who}: {rate:,.0f}" for who, rate in overhead["env_steps_per_second"].items()))
    if overhead["ours_over_ap_gym"] is not None:
        parts.append(f"Ours over ap_gym's: {overhead['ours_over_ap_gym']:.1f}")
    return "\n\n".join(parts) + "\n"


def by_column(rows: Mapping[str, Mapping[Any, float]], form: str) -> str:
    columns = list(next(iter(rows.values())))
    cells = [
        [who, *(form.format(found[column]) if column in found else "" for column in columns)]
        for who, found in rows.items()
    ]
    return table(["", *map(str, columns)], cells)


def main(config: ThroughputConfig) -> None:
    config.check()
    integer(1)("rounds", config.rounds)
    if config.output is not None:
        output_directory(config.output.parent, option="--output")
    if config.ap_gym_python is not None:
        require_ap_gym(config.ap_gym_python)
    if config.quick:
        config = replace(config, repeats=min(3, config.repeats), rounds=1)
    with tempfile.TemporaryDirectory(prefix="canvit_gym_random_weights_") as directory:
        os.environ.setdefault(SHARED_DIRECTORY, directory)
        build_scenes_once(config)
        record: dict[str, Any] = {"config": plain(asdict(config)), "load_before": os.getloadavg()}
        for name, section in sections(config).items():
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            record[name] = section()
    record["load_after"] = os.getloadavg()
    record["provenance"] = provenance()
    print(tables(record), end="")
    if config.output is not None:
        config.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        config.output.with_suffix(".md").write_text(tables(record), encoding="utf-8")
    if fell_back := [name for name, found in record["layers"]["contestants"].items() if found["fell_back"]]:
        print(f"fell back: {', '.join(fell_back)}", file=sys.stderr)
        raise SystemExit(1)


def require_ap_gym(python: Path) -> None:
    """Raise before anything is measured if this Python has no ap_gym."""
    done = subprocess.run([str(python), "-c", "import ap_gym"], capture_output=True, text=True)
    if done.returncode:
        raise OSError(
            f"{python} cannot import ap_gym: {done.stderr.splitlines()[-1]}. Install it in a separate environment: "
            "pip install ap-gym==0.7.1 pillow aiohttp"
        )


def build_scenes_once(config: ThroughputConfig) -> None:
    """Prepare the scenes on disk before the processes need them."""
    for flavour in ("segmentation", "classification"):
        FashionScenes(flavour, "validation", config.num_scenes)


if __name__ == "__main__":
    run_command(main, ThroughputConfig, description=__doc__)
