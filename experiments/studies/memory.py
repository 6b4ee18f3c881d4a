"""How many scenes of CanViT-B fit on a GPU: computed from a measurement on the CPU.

    python -m experiments.studies.memory --output-dir experiments/results/memory

The environment's own episodes (canvit_gym.episodes) step scenes of 512 px through CanViT-B with random weights and a
segmentation probe with 150 classes. PyTorch's profiler records every allocation. The largest sum of live bytes after
the first glimpse, at two batch sizes, gives the bytes that each scene adds and those that are fixed. The number of
scenes that fit is then (usable - fixed) / per scene; `RESERVED_BYTES` (CUDA context, libraries) and `FRAGMENTATION`
(the allocator) of a GPU's memory are not usable.

No GPU is involved, so this is an estimate: CUDA kernels may need more or less scratch memory than those of the CPU. A
policy's network and its rollout buffer, compilation, and other processes on the GPU are not counted.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from canvit_pytorch import CanViTConfig, CanViTForPretraining, SegmentationProbe
from canvit_pytorch.hub import repos
from numpy.typing import NDArray

from canvit_gym.assembly import build_layout
from canvit_gym.backbone.hub import Source
from canvit_gym.backbone.load import Backbone, Geometry, Precision
from canvit_gym.command_line import run_command
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.provenance import provenance
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.tasks.segmentation import SegmentationTask
from canvit_gym.viewpoints import FULL_SCENE

log = logging.getLogger(__name__)

GPUS_GB = (24, 80, 141)
GRIDS = (32, 64)
NUM_CLASSES = 150
RESERVED_BYTES = 1_500_000_000
FRAGMENTATION = 0.1
BATCHES = (1, 3)
GLIMPSES = 3


@dataclass(frozen=True)
class MemoryConfig:
    output_dir: Path | None = None
    """memory.json and memory.md go here. None: the table is only printed."""


@dataclass(frozen=True)
class NoiseScenes:
    """Scenes of noise: only their sizes matter."""

    scene_size_px: int
    name: str = "noise"
    fingerprint: str = "noise"
    classes: tuple[str, ...] = tuple(str(k) for k in range(NUM_CLASSES))

    def __len__(self) -> int:
        return 64

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        size = self.scene_size_px
        images = torch.randint(256, (len(indices), 3, size, size), dtype=torch.uint8)
        return SceneBatch(
            images=images, labels=torch.randint(NUM_CLASSES, (len(indices), size, size), dtype=torch.uint8)
        )


def random_backbone(model: CanViTForPretraining, *, grid: int, precision: Precision) -> Backbone:
    source = Source(
        kind="checkpoint", name="CanViT-B, random", repo=None, revision=None, directory=Path(), stamp=(0, 0)
    )
    geometry = Geometry(
        scene_size_px=repos.RELEASED_SCENE_SIZE_PX,
        canvas_grid=grid,
        glimpse_size_px=repos.RELEASED_GLIMPSE_SIZE_PX,
    )
    return Backbone(model=model, source=source, geometry=geometry, device=torch.device("cpu"), precision=precision)


def make_episodes(backbone: Backbone, *, num: int) -> EpisodeBatch:
    """What an environment with default keyword arguments keeps for `num` scenes."""
    scenes = NoiseScenes(backbone.scene_size_px)
    probe = SegmentationProbe(
        embed_dim=backbone.canvit.canvas_dim, num_classes=NUM_CLASSES, dropout=0.0, use_ln=True
    ).eval()
    task = SegmentationTask(backbone=backbone, probe=probe, classes=scenes.classes, source=backbone.source)
    layout = build_layout(EnvConfig(), backbone, task)
    return EpisodeBatch(num=num, backbone=backbone, task=task, layout=layout, scenes=scenes, budget=GLIMPSES)


def peak_bytes(backbone: Backbone, *, num: int) -> int:
    """The largest sum of live allocations while `num` scenes begin, take GLIMPSES glimpses and return observations."""
    episodes = make_episodes(backbone, num=num)
    looks = np.tile(FULL_SCENE, (num, 1))

    def look() -> None:
        episodes.reset_rows(episodes.all_rows, np.arange(num), read=False)
        for _ in range(GLIMPSES):
            episodes.step_rows(episodes.all_rows, looks)
            episodes.observe()

    return peak_of_allocations(look)


def peak_of_allocations(run: Callable[[], object]) -> int:
    """The largest sum of CPU memory allocated by `run` and not yet freed."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [cast(Any, event).nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())


def measure() -> list[dict[str, Any]]:
    """Bytes per scene and fixed bytes, by canvas grid and precision."""
    torch.manual_seed(0)
    model = CanViTForPretraining(
        canvit_config=CanViTConfig(), teacher_dim=768, teacher_patch_grid=repos.RELEASED_CANVAS_GRID_SIZE
    )
    model.eval().requires_grad_(False)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rows = []
    for grid in GRIDS:
        for precision in get_args(Precision):
            backbone = random_backbone(model, grid=grid, precision=precision)
            few, many = (peak_bytes(backbone, num=num) for num in BATCHES)
            per_scene = (many - few) / (BATCHES[1] - BATCHES[0])
            fixed = weights + max(0.0, few - BATCHES[0] * per_scene)
            usable = {gb: (gb * 1e9 - RESERVED_BYTES) * (1 - FRAGMENTATION) for gb in GPUS_GB}
            rows.append(
                dict(
                    canvas_grid=grid,
                    precision=precision,
                    mb_per_scene=round(per_scene / 1e6, 1),
                    fixed_mb=round(fixed / 1e6, 1),
                    scenes={str(gb): int((memory - fixed) / per_scene) for gb, memory in usable.items()},
                )
            )
            log.info("%s", rows[-1])
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the numbers of scenes that fit, rounded down to two digits."""

    def rounded(count: int) -> str:
        digits = 10 ** max(0, len(str(count)) - 2)
        return f"{count // digits * digits:,}"

    lines = [
        "| canvas | precision | MB per scene | " + " | ".join(f"{gb} GB" for gb in GPUS_GB) + " |",
        "| --- | --- | ---: |" + " ---: |" * len(GPUS_GB),
    ]
    for row in rows:
        counts = " | ".join(rounded(row["scenes"][str(gb)]) for gb in GPUS_GB)
        canvas = f"{row['canvas_grid']} x {row['canvas_grid']}"
        lines.append(f"| {canvas} | {row['precision']} | {row['mb_per_scene']:.0f} | {counts} |")
    return "\n".join(lines) + "\n"


def main(config: MemoryConfig) -> None:
    rows = measure()
    print(table(rows))
    if config.output_dir is not None:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        assumed = {"reserved_bytes": RESERVED_BYTES, "fragmentation": FRAGMENTATION, "batches": BATCHES}
        record = {"rows": rows, "assumed": assumed, "provenance": provenance()}
        (config.output_dir / "memory.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (config.output_dir / "memory.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_command(main, MemoryConfig, description=__doc__)
