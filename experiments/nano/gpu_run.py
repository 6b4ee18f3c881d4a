"""Train teacher, nano and probes, and measure them, in calls of a few minutes that continue one another.

    bash experiments/nano/gpu_run.sh runs/gpu

trains on a GPU, starting from the shipped nano's weights: first the teacher on the mixture of scenes, then nano for
--finish-minutes over all calls, then its probes. A call that has nothing left to train measures again.
"""

import json
import logging
import shutil
import signal
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from canvit_gym.atomic import replacing, write_json
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.backbone.nano_teacher import TEACHER_WEIGHTS, load_nano_teacher
from canvit_gym.command_line import GOES_ON, output_directory, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import PaperPolicy
from canvit_gym.probes import fit
from canvit_gym.provenance import provenance
from experiments.nano import pretrain, teacher
from experiments.nano.metrics import reading
from experiments.nano.mixture import mixture
from experiments.nano.running import Compile, Precision

log = logging.getLogger(__name__)

ARCHIVE = "run.tar"
STATES = {"teacher_state.pt": Path("teacher/state.pt"), "nano_state.pt": Path("nano/state.pt")}
"""Files kept beside the archive, with their place in the run: together they would be too large for one file."""
COMPILED = "compiled.bin"
"""The cache of torch.compile, so that the next call on such a machine need not compile again."""
MOST_BYTES = 15 << 20
"""Limit for the cache of torch.compile; a larger one is left out."""
LATE_S = 10
"""Seconds after the end of the minutes at which whatever is still running is interrupted."""
PROBES = (
    ("segmentation-probe", dict(env="CanViT/FashionSegmentation-v0")),
    ("classification-probe", dict(env="CanViT/FashionClassification-v0")),
    ("odd-probe", dict(env="CanViT/FashionOdd-v0", reads="recurrent_cls", num_glimpses=7)),
)


@dataclass(frozen=True)
class GpuRunConfig:
    state_dir: Path
    """Directory with the state of an earlier call; may be empty."""
    output_dir: Path | None = None
    """Directory for the state of this call. None: the same directory."""
    minutes: float = 8.5
    """Minutes for this call, without loading Python and packing."""
    wrap_up_minutes: float = 0.5
    """Kept of it for measuring at the end of pretraining."""
    finish_minutes: float = 11.0
    """Training time of nano's finish over all calls; the learning rate falls to its end."""
    from_scratch: bool = False
    """Not from the shipped weights: glimpse-stream learning and distillation come first."""
    mixture: str = "suite"
    max_scenes: int | None = None
    """Training scenes of each flavour, at most. None: as the mixture declares."""
    teacher_steps: int = 6000
    teacher_batch_size: int = 128
    teacher_lr: float = 4e-3
    batch_size: int = 1024
    peak_lr: float = 3e-3
    """At 1,024 scenes; twice that of the runs at 48."""
    muon_lr: float = 5e-3
    probe_steps: int = 450
    probe_scenes: int = 8192
    measured_scenes: int = 512
    """Validation scenes of each flavour."""
    glimpses: int = 21
    """C2F is measured after 1 to this many glimpses."""
    precision: Precision = "auto"
    compile: Compile = "auto"
    seed: int = 21
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


class _Clock:
    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Minutes left, at least a second."""
        return max((self._end - time.monotonic()) / 60, 1 / 60)


@contextmanager
def interrupted_after(minutes: float) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block after `minutes`: every training can be resumed from its state."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def unpack(source: Path, run: Path) -> None:
    """Unpack what an earlier call left into the directory of a run."""
    if (source / ARCHIVE).exists():
        with tarfile.open(source / ARCHIVE) as archive:
            archive.extractall(run, filter="data")
    for name, place in STATES.items():
        if (source / name).exists():
            (run / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, run / place)
    if (source / COMPILED).exists():
        torch.compiler.load_cache_artifacts((source / COMPILED).read_bytes())


def pack(run: Path, destination: Path, *, compiles: bool) -> None:
    """Pack the directory of a run into few files, without those of TensorBoard.

    compiles: keep the cache of torch.compile.
    """
    apart = {run / place for place in STATES.values()}
    with replacing(destination / ARCHIVE) as partial, tarfile.open(partial, "w") as archive:
        for path in sorted(run.rglob("*")):
            if path.is_file() and path not in apart and not path.name.startswith("events.out"):
                archive.add(path, path.relative_to(run))
    for name, place in STATES.items():
        if (run / place).exists():
            with replacing(destination / name) as partial:
                shutil.copyfile(run / place, partial)
        else:
            (destination / name).unlink(missing_ok=True)
    made = torch.compiler.save_cache_artifacts() if compiles else None
    if made is not None and len(made[0]) <= MOST_BYTES:
        (destination / COMPILED).write_bytes(made[0])


def teacher_config(config: GpuRunConfig, run: Path, minutes: float) -> teacher.TeacherConfig:
    return teacher.TeacherConfig(
        run_dir=run / "teacher",
        steps=config.teacher_steps,
        batch_size=config.teacher_batch_size,
        peak_lr=config.teacher_lr,
        mixture=config.mixture,
        max_scenes=config.max_scenes,
        save_every=1000,
        minutes=minutes,
        validation_scenes=config.measured_scenes,
        test_scenes=config.measured_scenes,
        seed=config.seed,
        device=config.device,
    )


def nano_config(config: GpuRunConfig, run: Path, minutes: float) -> pretrain.PretrainingConfig:
    scratch = config.from_scratch
    return pretrain.PretrainingConfig(
        run_dir=run / "nano",
        teacher_dir=run / "teacher",
        init_from=None if scratch else asset_dir("nano"),
        token_steps=1500 if scratch else 0,
        steps=1400 if scratch else 0,
        finish_minutes=config.finish_minutes,
        batch_size=config.batch_size,
        finish_batch_size=config.batch_size,
        finish_stop_probability=0.35,
        finish_item_share=0.4,
        class_weight=0.5,
        peak_lr=config.peak_lr,
        muon_lr=config.muon_lr,
        save_every=100,
        validate_every=1000,
        validation_scenes=min(256, config.measured_scenes),
        validation_glimpses=config.glimpses,
        mixture=config.mixture,
        max_scenes=config.max_scenes,
        precision=config.precision,
        compile=config.compile,
        minutes=minutes,
        seed=config.seed,
        device=config.device,
    )


def measure_readouts(config: GpuRunConfig, run: Path) -> dict[str, Any]:
    """Measure C2F on validation scenes with the pretraining readouts, against the teacher on the same scenes."""
    device = torch.device(config.device)
    flavours = tuple(part.flavour for part in mixture(config.mixture))
    model = pretrain.CanViTForPretraining.from_pretrained(str(run / "nano" / "model")).to(device)
    curves = pretrain.validate(
        model, flavours=flavours, num_glimpses=config.glimpses, num_scenes=config.measured_scenes, device=device
    )
    network = load_nano_teacher(run / "teacher" / TEACHER_WEIGHTS, device)
    passive = teacher.evaluate(
        network, split="validation", num_scenes=config.measured_scenes, flavours=flavours, device=device
    )
    return dict(curves=curves, teacher=passive, reading=reading(curves, passive))


def fit_probes(config: GpuRunConfig, run: Path) -> None:
    for name, settings in PROBES:
        directory = run / "probes" / name
        if (directory / "README.md").exists():  # the last file of a fit
            continue
        options: dict[str, Any] = dict(
            output_dir=directory,
            checkpoint=str(run / "nano" / "model"),
            steps=config.probe_steps,
            num_scenes=config.probe_scenes,
            validation_scenes=config.measured_scenes,
            device=config.device,
        )
        fit.main(fit.ProbeConfig(**{**options, **settings}))


def measure_probes(config: GpuRunConfig, run: Path) -> dict[str, list[float]]:
    """Measure C2F on validation scenes with the probes, in %."""
    curves: dict[str, list[float]] = {}
    for key, kind in (("c2f_miou", "segmentation"), ("c2f_top1", "classification")):
        env = EnvConfig(
            dataset=f"fashion-{kind}",
            split="validation",
            num_scenes=config.measured_scenes,
            checkpoint=str(run / "nano" / "model"),
            probe=str(run / "probes" / f"{kind}-probe"),
            device=config.device,
        )
        policy = PaperPolicy("coarse_to_fine", num_glimpses=config.glimpses)
        result = evaluate(policy, config=env, num_glimpses=config.glimpses, progress=f"C2F, {kind}")
        curves[key] = [round(100 * value, 2) for value in result.score().tolist()]
    return curves


def run_phases(config: GpuRunConfig, run: Path, clock: _Clock, metrics: dict[str, Any]) -> str:
    """Run the phases for which there is time. Returns a description of what is done."""
    if not (run / "teacher" / "teacher.json").exists():
        if teacher.train(teacher_config(config, run, clock.left)) is None:
            return "the teacher is in training"
        (run / "teacher" / "state.pt").unlink()
    left = clock.left - config.wrap_up_minutes
    if left <= 0:
        return "nano has not begun"
    finished = pretrain.train(nano_config(config, run, left))
    metrics["readouts"] = measure_readouts(config, run)
    if not finished:
        return "nano is in training"
    fit_probes(config, run)
    metrics["probes"] = measure_probes(config, run)
    metrics["reading"] = reading(metrics["probes"], metrics["readouts"]["teacher"])
    return "all is done"


def main(config: GpuRunConfig) -> None:
    began, clock = time.monotonic(), _Clock(config.minutes)
    destination = output_directory(config.output_dir or config.state_dir, option="--output-dir")
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        unpack(config.state_dir, run)
        try:
            with interrupted_after(config.minutes + LATE_S / 60):
                state = run_phases(config, run, clock, metrics)
        except KeyboardInterrupt:
            state = "interrupted at the end of its minutes"
        finally:  # whatever went wrong, what was trained until then is kept
            pack(run, destination, compiles=config.compile != "off")
    metrics |= dict(state=state, seconds=round(time.monotonic() - began, 1), provenance=provenance())
    write_json(destination / "metrics.json", metrics)
    for name, entry in metrics.get("reading", metrics.get("readouts", {}).get("reading", {})).items():
        log.info("%s: %s", name, json.dumps(entry))
    log.info("%s, after %.0f s", state, time.monotonic() - began)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_command(main, GpuRunConfig, description=__doc__, if_interrupted=GOES_ON)
