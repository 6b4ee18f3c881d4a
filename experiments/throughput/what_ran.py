"""What a contestant actually ran, as counted by its backbone, compared with what its job asks for."""

from collections import Counter
from collections.abc import Mapping

import torch

from canvit_gym.assembly import build_backbone
from canvit_gym.backbone.compilation import Ran
from canvit_gym.backbone.load import CUDA_GRAPH_SCENES
from experiments.throughput.contestants import FOREIGN, Job


def ran_of(job: Job) -> Counter[Ran]:
    """What steps of the job's backbone have run so far in this process."""
    return Counter() if job.contestant in FOREIGN else build_backbone(job.config()).ran.copy()


def ran_as_json(ran: Mapping[Ran, int]) -> dict[str, int]:
    """As JSON: {"cuda graph, bfloat16": 35}."""
    return {", ".join(way): count for way, count in sorted(ran.items())}


def fallback(job: Job, ran: Mapping[str, int]) -> str | None:
    """What ran instead of what the job asks for; None if that ran. ran: as returned by `ran_as_json`.

    If a job asks for compilation, steps may be compiled, such as those before a CUDA graph is recorded, but not eager;
    and on a GPU there must be graphs wherever graphs are recorded.
    """
    if job.contestant in FOREIGN:
        return None
    ways = {tuple(way.split(", ")) for way in ran}
    if not ways:
        return "no step of its backbone"
    if others := sorted({precision for _, precision in ways} - {job.precision}):
        return ", ".join(others)
    if not job.compile:
        return None
    how = {how for how, _ in ways}
    if "eager" in how:
        return "eager"
    on_gpu = torch.cuda.is_available() if job.device == "auto" else job.device != "cpu"
    records = on_gpu and not (job.contestant == "Backbone.step loop" and job.num_envs > CUDA_GRAPH_SCENES)
    return "compiled, without a CUDA graph" if records and "cuda graph" not in how else None


def label(name: str, job: Job, ran: Mapping[str, int]) -> str:
    """The contestant's name in a table, which never claims something that did not run."""
    instead = fallback(job, ran)
    if instead is None:
        graphs = job.compile and any(way.startswith("cuda graph") for way in ran)
        return f"{name} (CUDA graph)" if graphs else name
    return f"**{name}: FELL BACK, ran {instead}**"
