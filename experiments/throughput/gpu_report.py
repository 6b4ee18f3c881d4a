"""What the GPU could do, and what CanViT-B does on it: one script of under eight minutes.

    python -m experiments.throughput.gpu_report --output experiments/results/throughput/gpu
    python -m experiments.throughput.gpu_report --dry-run        # nano on the CPU, small: does it run at all

CanViT-B with random weights, a canvas of 32 x 32 cells, 64 scenes a batch, bfloat16 (autocast):

- the chip: its measured bfloat16 matrix rate and its memory bandwidth;
- loops of full-scene and random glimpses, in turns: canvit-pytorch's own in eager mode, Backbone.step eagerly and
  compiled; with the share of the matrix rate, counting canvit_pytorch.flops; at 1 and 8 scenes too, where CUDA graphs
  are used;
- the vector env against the loop of the same backbone;
- PPO end to end, rollouts and updates: glimpses/s, and the shares of the time in the backbone and in the update;
- how many device synchronizations PyTorch finds in a step that hands its rewards to an agent on the device;
- one step's three largest costs, each against its floor: bytes over bandwidth, FLOPs over rate;
- the error of compiled bfloat16 states, against eager float32.

Sections that would begin after --deadline-s are left out, and named.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from canvit_pytorch import RecurrentState, Viewpoint
from torch.profiler import ProfilerActivity, profile

from canvit_gym.assembly import build_backbone
from canvit_gym.backbone.load import Backbone
from canvit_gym.command_line import run_command
from canvit_gym.provenance import plain, provenance
from canvit_gym.vector_env import GlimpseVectorEnv
from experiments.throughput.clock import synchronize
from experiments.throughput.contestants import CONTESTANTS, Job
from experiments.throughput.ppo import learn_rollouts, learn_timed, ppo_for_throughput

CANVIT_EAGER, STEP_EAGER, STEP_COMPILED = "canvit-pytorch, eager", "Backbone.step, eager", "Backbone.step, compiled"


@dataclass(frozen=True)
class GPUReportConfig:
    num_envs: int = 64
    canvas_grid: int = 32
    budget: int = 5
    repeats: int = 7
    deadline_s: float = 360.0
    """No section begins later than this."""
    compile: bool = True
    dry_run: bool = False
    output: Path | None = None
    """Where to write, without the ending: .json and .md."""


@dataclass(frozen=True)
class Chip:
    matmul_flops_per_s: float
    bytes_per_s: float


def seconds_of(run: Callable[[], Any], device: torch.device, *, repeats: int) -> float:
    """The median, after a run that warms up."""
    run()
    found = []
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def measure_chip(device: torch.device, *, side: int, copied_bytes: int) -> Chip:
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = 10
    product = seconds_of(lambda: [one @ other for _ in range(times)], device, repeats=5) / times
    copy = seconds_of(lambda: [target.copy_(source) for _ in range(times)], device, repeats=5) / times
    return Chip(matmul_flops_per_s=2 * side**3 / product, bytes_per_s=2 * copied_bytes / copy)


def loops(job: Job, config: GPUReportConfig) -> dict[str, Job]:
    jobs = {
        CANVIT_EAGER: replace(job, contestant="run_episode"),
        STEP_EAGER: replace(job, contestant="Backbone.step loop"),
    }
    if config.compile:
        jobs[STEP_COMPILED] = replace(jobs[STEP_EAGER], compile=True)
    return jobs


def in_turns(jobs: dict[str, Job], device: torch.device, *, repeats: int) -> dict[str, list[float]]:
    """Glimpses per second by contestant and turn."""
    runs = {name: CONTESTANTS[job.contestant](job) for name, job in jobs.items()}
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            synchronize(device)
            began = time.perf_counter()
            glimpses = run()
            synchronize(device)
            rates[name].append(glimpses / (time.perf_counter() - began))
    return rates


def compare_loops(job: Job, config: GPUReportConfig, chip: Chip) -> dict[str, Any]:
    backbone = build_backbone(job.config())
    rates = in_turns(loops(job, config), backbone.device, repeats=config.repeats)
    return {
        name: {
            "glimpses_per_second": (rate := statistics.median(values)),
            "ratio_to_canvit_pytorch": statistics.median(
                one / other for one, other in zip(values, rates[CANVIT_EAGER], strict=True)
            ),
            "share_of_matmul_rate": rate * backbone.glimpse_flops / chip.matmul_flops_per_s,
        }
        for name, values in rates.items()
    }


def compare_environment(job: Job, config: GPUReportConfig) -> dict[str, float]:
    """Glimpses per second of the vector env over those of the loop of the same backbone, eagerly and compiled."""
    device = torch.device(job.device)
    found = {}
    for compiled in (False, True)[: 1 + config.compile]:
        loop = replace(job, contestant="Backbone.step loop", compile=compiled)
        jobs = {"loop": loop, "env": replace(loop, contestant="vector env")}
        rates = in_turns(jobs, device, repeats=config.repeats)
        ratios = [env / bare for env, bare in zip(rates["env"], rates["loop"], strict=True)]
        found["compiled" if compiled else "eager"] = statistics.median(ratios)
    return found


def ppo_end_to_end(job: Job, *, rollouts: int = 3) -> dict[str, float]:
    """Of canvit_gym's PPO with the hyperparameters of the segmentation environment: see learn_timed."""
    model = ppo_for_throughput("CanViT/FashionSegmentation-v0", num_envs=job.num_envs, env_kwargs=job.env_kwargs())
    learn_rollouts(model, 1)
    return learn_timed(model, rollouts=rollouts)


def synchronizations(job: Job) -> list[str] | None:
    """What PyTorch says of every synchronizing operation in four steps whose observations stay on the device.

    The wait for the rewards is an event's and not among them. None without a GPU.
    """
    if job.device == "cpu":
        return None
    envs = GlimpseVectorEnv(job.num_envs, **job.env_kwargs())
    envs.on_device = True
    envs.reset(seed=0)
    envs.action_space.seed(0)
    envs.step(envs.action_space.sample())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(4):
                envs.step(envs.action_space.sample())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    envs.close()
    return [f"{Path(w.filename).name}:{w.lineno} {w.message}" for w in caught if "synchroniz" in str(w.message)]


def largest_costs(job: Job, chip: Chip, *, count: int = 3) -> dict[str, Any]:
    """The operations (by kind and shapes) that one eager step spends most time in, and their floors in milliseconds."""
    backbone = build_backbone(job.config())
    step = one_step(backbone, job.num_envs)
    step()
    device = backbone.device
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    synchronize(device)
    with profile(activities=activities, record_shapes=True, with_flops=True) as profiler:
        step()
        synchronize(device)

    def milliseconds(event: Any) -> float:
        return (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e3

    # On a GPU an operation's time is that of its kernels, which stand beside it as events of their own.
    whole = [
        event
        for event in profiler.key_averages()
        if event.device_type.name.lower() == device.type and not event.is_user_annotation
    ]
    events = [event for event in profiler.key_averages(group_by_input_shape=True) if event.input_shapes]
    largest = sorted(events, key=milliseconds, reverse=True)[:count]
    item_size = 2 if job.precision == "bfloat16" else 4
    return {
        "milliseconds": sum(map(milliseconds, whole)),
        "largest": [
            {
                "operation": event.key,
                "shapes": [shape for shape in event.input_shapes if shape],
                "calls": event.count,
                "milliseconds": milliseconds(event),
                **floors(event, chip, item_size=item_size),
            }
            for event in largest
        ],
    }


def floors(event: Any, chip: Chip, *, item_size: int) -> dict[str, float]:
    """Milliseconds that an operation's calls take at least: every input read once, and as much written as the largest
    of them holds; its FLOPs (as PyTorch counts them) at the matrix rate. 0 where PyTorch does not tell: of the shapes
    in a list of tensors, and of most FLOPs.
    """
    sizes = [int(np.prod(shape)) for shape in event.input_shapes if shape]
    moved = item_size * (sum(sizes) + max(sizes, default=0)) * event.count
    return {
        "floor_bytes_ms": 1e3 * moved / chip.bytes_per_s,
        "floor_flops_ms": 1e3 * (event.flops or 0) / chip.matmul_flops_per_s,
    }


def one_step(backbone: Backbone, num_scenes: int) -> Callable[[], RecurrentState]:
    device = backbone.device
    size = backbone.glimpse_size_px
    with torch.inference_mode():
        glimpse = torch.randn(num_scenes, 3, size, size, device=device)
        viewpoint = Viewpoint.full_scene(batch_size=num_scenes, device=device)
        state = backbone.init_state(num_scenes)

    def step() -> RecurrentState:
        with torch.inference_mode():
            return backbone.step(glimpse, state, viewpoint)

    return step


def state_error(job: Job) -> float:
    """The largest difference to eager float32 over the largest value, of the canvas after one glimpse of noise."""
    torch.manual_seed(0)
    exact = one_step(build_backbone(replace(job, precision="float32", compile=False).config()), 4)().canvas
    torch.manual_seed(0)
    other = one_step(build_backbone(job.config()), 4)().canvas
    return float((other - exact).abs().max() / exact.abs().max())


def report(record: dict[str, Any]) -> str:
    chip = record["chip"]
    lines = [
        f"Measured: {chip['matmul_flops_per_s'] / 1e12:.1f} TFLOP/s in bfloat16 products, "
        f"{chip['bytes_per_s'] / 1e9:.0f} GB/s.",
        "",
    ]
    for name, found in record.get("loops", {}).items():
        lines += [f"{name} scenes a batch:", "", "| | glimpses/s | ratio | share of the matrix rate |"]
        lines += ["| --- " * 4 + "|"]
        lines += [
            f"| {who} | {row['glimpses_per_second']:,.1f} | {row['ratio_to_canvit_pytorch']:.2f} "
            f"| {row['share_of_matmul_rate']:.1%} |"
            for who, row in found.items()
        ]
        lines.append("")
    if ratios := record.get("environment"):
        told = ", ".join(f"{ratio:.3f} {how}" for how, ratio in ratios.items())
        lines += [f"Vector env over the loop of the same backbone: {told}.", ""]
    if ppo := record.get("ppo"):
        lines += [
            f"PPO end to end: {ppo['glimpses_per_second']:,.0f} glimpses/s, {ppo['share_in_backbone']:.0%} of the time "
            f"in the backbone's forward, {ppo['share_in_update']:.0%} in the update; rollout buffer "
            f"{ppo['rollout_buffer_mib']:.0f} MiB.",
            "",
        ]
    if (found := record.get("synchronizations")) is not None:
        lines += [f"Synchronizations in four steps beside the wait for rewards: {len(found)}.", *found, ""]
    if costs := record.get("costs"):
        lines += [f"One eager step takes {costs['milliseconds']:.2f} ms; its largest costs:", ""]
        lines += ["| operation | shapes | calls | ms | floor by bytes | floor by FLOPs |", "| --- " * 6 + "|"]
        lines += [
            f"| {cost['operation']} | {cost['shapes']} | {cost['calls']} | {cost['milliseconds']:.2f} "
            f"| {cost['floor_bytes_ms']:.2f} | {cost['floor_flops_ms']:.2f} |"
            for cost in costs["largest"]
        ]
        lines.append("")
    if (error := record.get("state_error")) is not None:
        lines += [f"Relative error of a state in {record['precision']}, compiled where asked: {error:.1e}.", ""]
    if record["left_out"]:
        lines += [f"Left out for lack of time: {', '.join(record['left_out'])}.", ""]
    lines.append(f"{record['seconds']:.0f} s in all.")
    return "\n".join(lines) + "\n"


def main(config: GPUReportConfig) -> None:
    if not config.dry_run and not torch.cuda.is_available():
        raise OSError("PyTorch sees no CUDA device: run with --dry-run to see that the script works")
    began = time.perf_counter()
    job = Job(
        contestant="run_episode",
        model="CanViT-B",
        canvas_grid=config.canvas_grid,
        num_envs=config.num_envs,
        budget=config.budget,
        rounds=1,
        device="cuda",
        precision="bfloat16",
    )
    if config.dry_run:
        job = replace(job, model="nano", canvas_grid=16, num_envs=min(4, config.num_envs), num_scenes=8, device="cpu")
    device = torch.device(job.device)
    side, copied = (256, 1 << 20) if config.dry_run else (8192, 1 << 30)
    chip = measure_chip(device, side=side, copied_bytes=copied)
    record: dict[str, Any] = {
        "config": plain(asdict(config)),
        "precision": job.precision,
        "chip": asdict(chip),
        "loops": {},
        "left_out": [],
    }
    compiled = replace(job, compile=config.compile)
    sections: dict[str, Callable[[], None]] = {
        "loops": lambda: record["loops"].update({job.num_envs: compare_loops(job, config, chip)}),
        "environment": lambda: record.update(environment=compare_environment(job, config)),
        "ppo": lambda: record.update(ppo=ppo_end_to_end(compiled)),
        "synchronizations": lambda: record.update(synchronizations=synchronizations(job)),
        "costs": lambda: record.update(costs=largest_costs(job, chip)),
        "state error": lambda: record.update(state_error=state_error(compiled)),
        **{
            f"loops of {num}": lambda num=num: record["loops"].update(
                {num: compare_loops(replace(job, num_envs=num, rounds=4), config, chip)}
            )
            for num in (1, 8)
        },
    }
    for name, section in sections.items():
        if time.perf_counter() - began > config.deadline_s:
            record["left_out"].append(name)
            continue
        section()
    if device.type == "cuda":
        record["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    record["seconds"] = time.perf_counter() - began
    record["provenance"] = provenance()
    print(report(record), end="")
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        config.output.with_suffix(".md").write_text(report(record), encoding="utf-8")


if __name__ == "__main__":
    run_command(main, GPUReportConfig, description=__doc__)
