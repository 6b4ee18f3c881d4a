"""What the GPU could do and what CanViT-B does on it, measured by one script in under eight minutes.

    python -m experiments.throughput.gpu_report --output experiments/results/throughput/gpu
    python -m experiments.throughput.gpu_report --only loops environment   # some sections alone
    python -m experiments.throughput.gpu_report --dry-run        # nano on the CPU, small: does it run at all

CanViT-B with random weights, 64 scenes of 512 px a batch, a canvas of 32 x 32 cells, bfloat16 (autocast), in sections:

- chip: the measured bfloat16 matrix rate and memory bandwidth, from which floors are computed;
- loops: full-scene and random glimpses, in turns: canvit-pytorch's own code in eager mode, Backbone.step eagerly and
  compiled; with the share of the matrix rate, counting canvit_pytorch.flops;
- environment: the vector env against the loop of the same compiled backbone, in turns, and its synchronizations;
- latency: milliseconds per step of one scene, for the loops and the vector env;
- ppo: rollouts and updates, glimpses/s, and the shares of the time in steps and in the update;
- evaluation: exact evaluation of 256 scenes at 21 glimpses against the loop, in turns;
- kernels: the GPU time of one compiled step by kind of kernel, against floors: FLOPs over rate, bytes over bandwidth;
- episode: the time of an episode of the vector env, begun anew, beside the GPU time of all that it runs, by kind;
- memory: the memory of a scene, measured as the difference of peaks at two numbers of scenes;
- canvas 64: the loops with a canvas of 64 x 64 cells;
- agreement: the error of compiled bfloat16 states against eager float32, beside that of canvit-pytorch's own bfloat16.

Sections are independent, and each is written as JSON and Markdown when it ends. The report names sections that failed
or would have begun after --deadline-s. A row is only called compiled, graphed or bfloat16 if the backbone reports that
this is what ran; the exit status is 1 if anything else ran or a section failed.
"""

import json
import re
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from canvit_pytorch import Viewpoint
from torch.profiler import ProfilerActivity, profile

from agents.ppo.policy import ViewpointPolicy
from canvit_gym.assembly import build_backbone
from canvit_gym.atomic import write_text
from canvit_gym.backbone.load import Backbone
from canvit_gym.command_line import run_command
from canvit_gym.provenance import plain, provenance
from canvit_gym.vector_env import GlimpseVectorEnv
from experiments.throughput.clock import synchronize
from experiments.throughput.contestants import CONTESTANTS, Job, Run
from experiments.throughput.peak_memory import peak_of_allocations
from experiments.throughput.ppo import learn_rollouts, learn_timed, ppo_for_throughput
from experiments.throughput.what_ran import fallback, label, ran_as_json, ran_of

CANVIT_EAGER = "canvit-pytorch, eager"
STEP_EAGER, STEP_COMPILED = "Backbone.step, eager", "Backbone.step, compiled"
VECTOR_ENV, EVALUATION = "vector env, compiled", "evaluation, compiled"
ON_DEVICE = "vector env, observations stay on the device, compiled"

KINDS = {
    "matrix products": r"gemm|cutlass|nvjet|cublas|splitk|xmma|aten::(addmm|mm|bmm|baddbmm|linear)",
    "attention": r"flash|fmha|attention|sdpa",
    "fused loops": r"triton",
    "copies": r"memcpy|memset|copy",
}
"""How kernels are classified by their names; all others are \"other\"."""


EVALUATED_GLIMPSES, EVALUATED_BATCHES = 21, 4
"""Every 64 scenes are loaded for 21 glimpses of each."""
GPUS_GB = (24, 80, 141)
RESERVED_MB = 1500
"""What CUDA's context and libraries take of a GPU's memory."""
FRAGMENTATION = 0.1
"""The share of it that PyTorch's allocator cannot use."""


@dataclass(frozen=True)
class GPUReportConfig:
    num_envs: int = 64
    canvas_grid: int = 32
    budget: int = 5
    repeats: int = 7
    deadline_s: float = 400.0
    """No section begins later than this."""
    only: tuple[str, ...] = ()
    """Names of sections; none: all of them."""
    compile: bool = True
    dry_run: bool = False
    output: Path | None = None
    """Where to write, without the ending: .json and .md."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.only) - set(SECTIONS)):
            raise ValueError(f"unknown sections {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")


@dataclass(frozen=True)
class Chip:
    matmul_flops_per_s: float
    bytes_per_s: float


class Setting:
    """The setting that all sections share."""

    def __init__(self, config: GPUReportConfig) -> None:
        self.config = config
        self.job = Job(
            contestant="run_episode",
            model="CanViT-B",
            canvas_grid=config.canvas_grid,
            num_envs=config.num_envs,
            budget=config.budget,
            rounds=1,
            device="cuda",
            precision="bfloat16",
            large_scenes=True,
            num_scenes=4 * config.num_envs,
        )
        if config.dry_run:
            small = dict(model="nano", canvas_grid=16, num_envs=min(4, config.num_envs), num_scenes=8, device="cpu")
            self.job = replace(self.job, large_scenes=False, **small)  # type: ignore[arg-type]
        self.device = torch.device(self.job.device)
        self.fallbacks: list[str] = []
        """What ran instead of what was asked for, by section."""
        self._chip: Chip | None = None

    @property
    def compiled(self) -> Job:
        return replace(self.job, compile=self.config.compile)

    @property
    def chip(self) -> Chip:
        """Measured once, for whichever section asks first."""
        if self._chip is None:
            side, copied = (256, 1 << 20) if self.config.dry_run else (8192, 1 << 30)
            self._chip = measure_chip(self.device, side=side, copied_bytes=copied)
        return self._chip


def seconds_of(run: Callable[[], Any], device: torch.device, *, repeats: int) -> float:
    """The median time of a run, after a warm-up."""
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


def loops(job: Job, *, compiles: bool) -> dict[str, Job]:
    jobs = {
        CANVIT_EAGER: replace(job, contestant="run_episode", compile=False),
        STEP_EAGER: replace(job, contestant="Backbone.step loop", compile=False),
    }
    return jobs | ({STEP_COMPILED: replace(jobs[STEP_EAGER], compile=True)} if compiles else {})


def in_turns(setting: Setting, jobs: dict[str, Job]) -> dict[str, dict[str, Any]]:
    """By contestant: glimpses per second in every turn, what ran, and the label that matches what ran."""
    ran: dict[str, Counter[Any]] = {name: Counter() for name in jobs}
    rates: dict[str, list[float]] = {name: [] for name in jobs}

    def rate_of(name: str, run: Run) -> float:
        """Glimpses per second. Asking what ran is not timed: only the loop would hide it behind work in the queue."""
        before = ran_of(jobs[name])
        synchronize(setting.device)
        began = time.perf_counter()
        glimpses = run()
        synchronize(setting.device)
        seconds = time.perf_counter() - began
        ran[name] += ran_of(jobs[name]) - before
        return glimpses / seconds

    runs: dict[str, Run] = {}
    for name, job in jobs.items():
        runs[name] = CONTESTANTS[job.contestant](job)
        for _ in range(2):  # compiles, then records
            rate_of(name, runs[name])
    for _ in range(setting.config.repeats):
        for name, run in runs.items():
            rates[name].append(rate_of(name, run))
    found = {}
    for name, job in jobs.items():
        ways = ran_as_json(ran[name])
        if instead := fallback(job, ways):
            setting.fallbacks.append(f"{name} at {job.num_envs} scenes, canvas {job.canvas_grid}: {instead}")
        found[name] = {
            "glimpses_per_second": rates[name],
            "milliseconds_per_step": 1e3 * job.num_envs / statistics.median(rates[name]),
            "ran": ways,
            "label": label(name, job, ways),
        }
    return found


def ratio(found: dict[str, dict[str, Any]], name: str, reference: str) -> float:
    """The median of the ratios within a turn."""
    pairs = zip(found[name]["glimpses_per_second"], found[reference]["glimpses_per_second"], strict=True)
    return statistics.median(one / other for one, other in pairs)


def compare_loops(setting: Setting, job: Job | None = None) -> dict[str, Any]:
    job = setting.job if job is None else job
    found = in_turns(setting, loops(job, compiles=setting.config.compile))
    flops = build_backbone(job.config()).glimpse_flops
    for name, row in found.items():
        row["ratio"] = ratio(found, name, CANVIT_EAGER)
        rate = statistics.median(row["glimpses_per_second"])
        row["share_of_matmul_rate"] = rate * flops / setting.chip.matmul_flops_per_s
    return {"num_envs": job.num_envs, "canvas_grid": job.canvas_grid, "rows": found}


def compare_canvas_64(setting: Setting) -> dict[str, Any]:
    return compare_loops(setting, replace(setting.job, canvas_grid=2 * setting.job.canvas_grid))


def against_loop(setting: Setting, contestants: dict[str, str], **changes: Any) -> dict[str, Any]:
    """Compare contestants (by the names of their rows) with the loop of the same backbone. changes: of the job."""
    compiles = setting.config.compile
    loop = replace(setting.compiled, contestant="Backbone.step loop", **{"rounds": 2, **changes})
    loop_name = STEP_COMPILED if compiles else STEP_EAGER
    others = {name: replace(loop, contestant=contestant) for name, contestant in contestants.items()}
    found = in_turns(setting, {loop_name: loop, **others})
    for row_name, row in found.items():
        row["ratio"] = ratio(found, row_name, loop_name)
    return {"num_envs": loop.num_envs, "canvas_grid": loop.canvas_grid, "budget": loop.budget, "rows": found}


def compare_environment(setting: Setting) -> dict[str, Any]:
    found = against_loop(setting, {VECTOR_ENV: "vector env", ON_DEVICE: "vector env, observations on the device"})
    return {**found, "synchronizations": synchronizations(setting.compiled)}


def compare_evaluation(setting: Setting) -> dict[str, Any]:
    """Of as many glimpses as evaluations on whole data sets have at least, since each records a graph of its own."""
    return against_loop(setting, {EVALUATION: "exact evaluation"}, budget=EVALUATED_GLIMPSES, rounds=EVALUATED_BATCHES)


def measure_latency(setting: Setting) -> dict[str, Any]:
    job = replace(setting.job, num_envs=1, rounds=8)
    jobs = loops(job, compiles=setting.config.compile)
    if setting.config.compile:
        jobs[VECTOR_ENV] = replace(job, contestant="vector env", compile=True)
    found = in_turns(setting, jobs)
    for name, row in found.items():
        row["ratio"] = ratio(found, name, CANVIT_EAGER)
    return {"num_envs": 1, "canvas_grid": job.canvas_grid, "rows": found}


def ppo_end_to_end(setting: Setting, *, rollouts: int = 3) -> dict[str, Any]:
    """learn_timed for our PPO with the hyperparameters of the segmentation environment."""
    job = replace(setting.compiled, contestant="PPO end to end", large_scenes=False)
    before = ran_of(job)
    model = ppo_for_throughput("CanViT/FashionSegmentation-v0", num_envs=job.num_envs, env_kwargs=job.env_kwargs())
    learn_rollouts(model, 2)
    found = learn_timed(model, rollouts=rollouts)
    ways = ran_as_json(ran_of(job) - before)
    if instead := fallback(job, ways):
        setting.fallbacks.append(f"PPO: {instead}")
    parts = {
        "rollouts": cast(ViewpointPolicy, model.policy).ran_in_rollouts,
        "minibatches": "eager" if model.recorded_gradients is None else model.recorded_gradients.ran,
    }
    if setting.device.type == "cuda":
        setting.fallbacks += [f"PPO's {part}: {how}" for part, how in parts.items() if how != "cuda graph"]
    return {**found, "ran": ways, "label": label("PPO", job, ways), "parts_ran": parts}


def synchronizations(job: Job) -> list[str] | None:
    """PyTorch's warnings about synchronizing operations from one step of an episode to that of the next one, with
    observations that stay on the device.

    The wait for the rewards uses an event and is not among them. None without a GPU.
    """
    if job.device == "cpu":
        return None
    envs = GlimpseVectorEnv(job.num_envs, **vars(job.config()))
    envs.on_device = True
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(2 * job.budget):
        envs.step(envs.action_space.sample())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(job.budget + 1):  # one of them begins the next episodes
                envs.step(envs.action_space.sample())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    envs.close()
    waits = [
        w for w in caught if "synchroniz" in str(w.message) and "prototype" not in str(w.message)
    ]  # of the mode itself
    return [f"{Path(w.filename).name}:{w.lineno} {w.message}" for w in waits]


def one_step(backbone: Backbone, num_scenes: int) -> Callable[[], torch.Tensor]:
    """A function that takes a step on noise from the initial state and returns the canvas."""
    device, size = backbone.device, backbone.glimpse_size_px
    with torch.inference_mode():
        glimpse = torch.randn(num_scenes, 3, size, size).to(device)
        viewpoint = Viewpoint.full_scene(batch_size=num_scenes, device=device)
        state = backbone.init_state(num_scenes)

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return backbone.step(glimpse, state, viewpoint).canvas

    return step


def kernel_times(setting: Setting) -> dict[str, Any]:
    """Milliseconds of one compiled step by kind of kernel, and their lower bounds."""
    job, device = replace(setting.compiled, contestant="Backbone.step loop"), setting.device
    before = ran_of(job)
    backbone = build_backbone(job.config())
    step = one_step(backbone, job.num_envs)
    for _ in range(2):
        step()
    times = device_times(step, device)
    ways = ran_as_json(ran_of(job) - before)
    if instead := fallback(job, ways):
        setting.fallbacks.append(f"kernels: {instead}")
    floors = step_floors(backbone, setting.chip, num_scenes=job.num_envs)
    return {"label": label("a step", job, ways), "floors": floors, **times}


def episode_times(setting: Setting) -> dict[str, Any]:
    """Milliseconds of an episode of the vector env and of the step that begins the next one, in all and on the device.

    Where the sum on the device is the smaller one by far, the device waits for the host.
    """
    job = replace(setting.compiled, contestant="vector env", rounds=1)
    before = ran_of(job)
    episode = CONTESTANTS[job.contestant](job)
    episode()  # compiles; seconds_of warms up, and so records
    seconds = seconds_of(episode, setting.device, repeats=1)
    times = device_times(episode, setting.device)
    ways = ran_as_json(ran_of(job) - before)
    if instead := fallback(job, ways):
        setting.fallbacks.append(f"an episode: {instead}")
    return {"label": label("an episode of the vector env", job, ways), "milliseconds_in_all": 1e3 * seconds, **times}


def device_times(act: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Milliseconds of what `act` runs on the device: in sum, by kind, and the largest."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    synchronize(device)
    with profile(activities=activities) as profiler:
        act()
        synchronize(device)

    def milliseconds(event: Any) -> float:
        return (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e3

    events = [
        event
        for event in profiler.key_averages()
        if event.device_type.name.lower() == device.type and not event.is_user_annotation
    ]
    by_kind: Counter[str] = Counter()
    for event in events:
        by_kind[kind_of(event.key)] += milliseconds(event)  # type: ignore[assignment]
    largest = sorted(events, key=milliseconds, reverse=True)[:12]
    return {
        "milliseconds": sum(by_kind.values()),
        "by_kind": dict(by_kind),
        "largest": [
            {"kernel": event.key[:90], "calls": event.count, "milliseconds": milliseconds(event)} for event in largest
        ],
    }


def kind_of(kernel: str) -> str:
    for kind, pattern in KINDS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "other"


def step_floors(backbone: Backbone, chip: Chip, *, num_scenes: int) -> dict[str, float]:
    """Lower bounds of a step in milliseconds: all its FLOPs at the matrix rate; and the memory traffic of the canvas at
    the bandwidth, where every read loads it once and every write loads and stores it once.
    """
    canvit = backbone.canvit
    canvas = backbone.init_state(1).canvas
    canvas_bytes = num_scenes * canvas.numel() * canvas.element_size()
    passes = len(canvit.canvas_reads) + 2 * len(canvit.canvas_writes)
    return {
        "flops_ms": 1e3 * num_scenes * backbone.glimpse_flops / chip.matmul_flops_per_s,
        "canvas_bytes_ms": 1e3 * passes * canvas_bytes / chip.bytes_per_s,
    }


def memory_per_scene(setting: Setting) -> list[dict[str, Any]]:
    """MB by canvas size: the peak allocated by two episodes of the vector env, at two numbers of scenes. On a CPU,
    where PyTorch does not count allocations, the profiler does, and there is no graph.
    """
    rows = []
    few, many = setting.job.num_envs // 4, setting.job.num_envs
    for grid in (setting.job.canvas_grid, 2 * setting.job.canvas_grid):
        peaks = [
            peak_bytes(replace(setting.job, canvas_grid=grid, num_envs=num), setting.device) for num in (few, many)
        ]
        per_scene = (peaks[1] - peaks[0]) / (many - few)
        rows.append(
            {
                "canvas_grid": grid,
                "mb_per_scene": per_scene / 1e6,
                "fixed_mb": (peaks[0] - few * per_scene) / 1e6,
                "num_envs": [few, many],
                "peak_mb": [peak / 1e6 for peak in peaks],
            }
        )
    if setting.device.type == "cuda":
        rows[0]["peak_mb_with_graph"] = peak_bytes(setting.compiled, setting.device) / 1e6
    return rows


def peak_bytes(job: Job, device: torch.device) -> int:
    """The peak of the bytes allocated by a vector env, including weights, without what this process held before."""
    eager = replace(job, contestant="vector env", rounds=2)
    if device.type != "cuda":
        model = build_backbone(job.config()).model  # loaded once per process, so not counted below
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        return weights + peak_of_allocations(lambda: CONTESTANTS["vector env"](eager)())
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    weights = sum(p.numel() * p.element_size() for p in build_backbone(job.config()).model.parameters())
    torch.cuda.reset_peak_memory_stats(device)
    CONTESTANTS["vector env"](eager)()
    return torch.cuda.max_memory_allocated(device) - before + weights


def agreement(setting: Setting) -> dict[str, float]:
    """Relative errors (Euclidean norm) of the canvas after one glimpse of noise, compared with eager float32."""
    compiled = replace(setting.compiled, contestant="Backbone.step loop")

    def canvas(job: Job) -> torch.Tensor:
        torch.manual_seed(0)
        return one_step(build_backbone(job.config()), job.num_envs)().float()

    exact = canvas(replace(compiled, precision="float32", compile=False))
    before = ran_of(compiled)
    ours = canvas(compiled)
    ways = ran_as_json(ran_of(compiled) - before)
    if instead := fallback(replace(compiled, num_envs=10**6), ways):  # one step: no graph is recorded yet
        setting.fallbacks.append(f"agreement: {instead}")
    backbone = build_backbone(compiled.config())
    torch.manual_seed(0)
    size = backbone.glimpse_size_px
    with torch.inference_mode(), backbone.autocast():
        theirs = backbone.canvit(
            glimpse=torch.randn(compiled.num_envs, 3, size, size).to(backbone.device),
            state=backbone.init_state(compiled.num_envs),
            viewpoint=Viewpoint.full_scene(batch_size=compiled.num_envs, device=backbone.device),
        ).state.canvas.float()
    return {
        "ours": float((ours - exact).norm() / exact.norm()),
        "canvit_pytorch": float((theirs - exact).norm() / exact.norm()),
    }


def format_rows(found: dict[str, Any]) -> list[str]:
    num = found["num_envs"]
    scenes = "1 scene" if num == 1 else f"{num} scenes"
    lines = [f"{scenes} a batch, a canvas of {found['canvas_grid']} x {found['canvas_grid']}:", ""]
    lines += ["| | glimpses/s | ms a step | ratio | share of the matrix rate |", "| --- " * 5 + "|"]
    for row in found["rows"].values():
        share = row.get("share_of_matmul_rate")
        lines.append(
            f"| {row['label']} | {statistics.median(row['glimpses_per_second']):,.1f} "
            f"| {row['milliseconds_per_step']:.2f} | {row['ratio']:.2f} | {'' if share is None else f'{share:.1%}'} |"
        )
    return lines


def format_environment(found: dict[str, Any]) -> list[str]:
    lines = format_rows(found)
    if (waits := found["synchronizations"]) is not None:
        lines += ["", f"Synchronizations in an episode beside the wait for rewards: {len(waits)}.", *waits]
    return lines


def format_ppo(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['label']} end to end: {found['glimpses_per_second']:,.0f} glimpses/s, {found['share_in_steps']:.0%} "
        f"of the time in steps of the scenes, {found['share_in_update']:.0%} in the update "
        f"({', '.join(f'{part}: {how}' for part, how in found['parts_ran'].items())}); rollout buffer "
        f"{found['rollout_buffer_mib']:.0f} MiB."
    ]


def format_kernels(found: dict[str, Any]) -> list[str]:
    floors = found["floors"]
    return [
        f"{found['label'].capitalize()} takes {found['milliseconds']:.2f} ms of kernels. Floors: all FLOPs "
        f"{floors['flops_ms']:.2f} ms, the canvas's passes over memory {floors['canvas_bytes_ms']:.2f} ms.",
        *format_device_times(found),
    ]


def format_episode(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['label'].capitalize()}, with the step that begins the next one, takes "
        f"{found['milliseconds_in_all']:.2f} ms, and what it runs on the device {found['milliseconds']:.2f} ms.",
        *format_device_times(found),
    ]


def format_device_times(found: dict[str, Any]) -> list[str]:
    kinds = sorted(found["by_kind"].items(), key=lambda item: -item[1])
    return [
        "",
        "| kind of kernel | ms |",
        "| --- | --- |",
        *(f"| {kind} | {ms:.2f} |" for kind, ms in kinds),
        "",
        "| kernel | calls | ms |",
        "| --- | --- | --- |",
        *(f"| {row['kernel']} | {row['calls']} | {row['milliseconds']:.2f} |" for row in found["largest"]),
    ]


def format_memory(found: list[dict[str, Any]]) -> list[str]:
    gpus = " | ".join(f"scenes in {gb} GB" for gb in GPUS_GB)
    lines = [
        f"| canvas | MB per scene | fixed MB | peak MB, eager | peak MB with the graph | {gpus} |",
        "| --- " * (5 + len(GPUS_GB)) + "|",
    ]
    for row in found:
        graph = row.get("peak_mb_with_graph")
        fit = " | ".join(f"{scenes_that_fit(row, gb):,}" for gb in GPUS_GB)
        lines.append(
            f"| {row['canvas_grid']} x {row['canvas_grid']} | {row['mb_per_scene']:.1f} | {row['fixed_mb']:.0f} "
            f"| {row['peak_mb'][1]:,.0f} at {row['num_envs'][1]} scenes | {'' if graph is None else f'{graph:,.0f}'} "
            f"| {fit} |"
        )
    lines += [
        "",
        f"Scenes that fit: a GPU's memory less {FRAGMENTATION:.0%} for the allocator and {RESERVED_MB / 1e3:g} GB for "
        "CUDA, less the fixed part, over the memory of a scene; rounded down to two digits. A policy's network and its "
        "rollout buffer are not counted.",
    ]
    return lines


def scenes_that_fit(row: dict[str, Any], gpu_gb: int) -> int:
    usable = (1e3 * gpu_gb - RESERVED_MB) * (1 - FRAGMENTATION)
    count = int((usable - row["fixed_mb"]) / row["mb_per_scene"])
    digits = 10 ** max(0, len(str(count)) - 2)
    return count // digits * digits


def format_agreement(found: dict[str, float]) -> list[str]:
    return [
        f"Relative error of a canvas against eager float32: {found['ours']:.1e}; of canvit-pytorch's own in the same "
        f"precision: {found['canvit_pytorch']:.1e}."
    ]


def format_chip(found: dict[str, float]) -> list[str]:
    return [
        f"Measured: {found['matmul_flops_per_s'] / 1e12:.1f} TFLOP/s in bfloat16 products, "
        f"{found['bytes_per_s'] / 1e9:.0f} GB/s."
    ]


SECTIONS: dict[str, tuple[Callable[[Setting], Any], Callable[[Any], list[str]]]] = {
    "chip": (lambda setting: asdict(setting.chip), format_chip),
    "loops": (compare_loops, format_rows),
    "environment": (compare_environment, format_environment),
    "latency": (measure_latency, format_rows),
    "ppo": (ppo_end_to_end, format_ppo),
    "evaluation": (compare_evaluation, format_rows),
    "kernels": (kernel_times, format_kernels),
    "episode": (episode_times, format_episode),
    "memory": (memory_per_scene, format_memory),
    "canvas 64": (compare_canvas_64, format_rows),
    "agreement": (agreement, format_agreement),
}
"""Name -> (the function that measures it, the function that formats it as Markdown lines), most important first."""


def report(record: dict[str, Any]) -> str:
    lines = [f"{record['device']}, {record['precision']}. Written by", "", f"    {record['provenance']['command']}", ""]
    for name, (_, tell) in SECTIONS.items():
        if name in record["sections"]:
            lines += [f"## {name.capitalize()}", "", *tell(record["sections"][name]), ""]
    for name, error in record["failed"].items():
        lines += [f"**{name} failed: {error.splitlines()[-1]}**", ""]
    if record["fallbacks"]:
        lines += ["**What fell back:**", "", *(f"- {line}" for line in record["fallbacks"]), ""]
    if record["left_out"]:
        lines += [f"Left out for lack of time: {', '.join(record['left_out'])}.", ""]
    wanted = record["config"]["only"] or SECTIONS
    if missing := [n for n in wanted if not any(n in record[k] for k in ("sections", "failed", "left_out"))]:
        lines += [f"Not reached when this was written: {', '.join(missing)}.", ""]
    lines.append(f"{record['seconds']:.0f} s in all.")
    return "\n".join(lines) + "\n"


def write(record: dict[str, Any], output: Path | None) -> None:
    if output is not None:
        write_text(output.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
        write_text(output.with_suffix(".md"), report(record))


def main(config: GPUReportConfig) -> None:
    if not config.dry_run and not torch.cuda.is_available():
        raise OSError("PyTorch sees no CUDA device: run with --dry-run to see that the script works")
    began = time.perf_counter()
    setting = Setting(config)
    record: dict[str, Any] = {
        "config": plain(asdict(config)),
        "device": torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else "CPU",
        "precision": setting.job.precision,
        "sections": {},
        "section_seconds": {},
        "failed": {},
        "fallbacks": setting.fallbacks,
        "left_out": [],
        "provenance": provenance(),
    }
    for name, (measure, _) in SECTIONS.items():
        if config.only and name not in config.only:
            continue
        section_began = time.perf_counter()
        if section_began - began > config.deadline_s:
            record["left_out"].append(name)
            continue
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            record["sections"][name] = measure(setting)
        except Exception as error:  # the other sections are still useful
            traceback.print_exc()
            record["failed"][name] = f"{type(error).__name__}: {error}"
        record["section_seconds"][name] = time.perf_counter() - section_began
        record["seconds"] = time.perf_counter() - began
        write(record, config.output)
    record["seconds"] = time.perf_counter() - began
    write(record, config.output)
    print(report(record), end="")
    if record["failed"] or record["fallbacks"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main, GPUReportConfig, description=__doc__)
