"""The passive teacher of nano: a small convolutional network that sees the whole scene at full resolution.

The network itself is in canvit_gym.backbone.nano_teacher; this module trains it.

    python -m experiments.nano.teacher --run-dir runs/teacher

Resumes from the run directory after an interruption, or after --minutes; the resumed run equals an uninterrupted one.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch.benchmarks.ade20k import MeanIoU
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from canvit_gym.atomic import replacing, write_text
from canvit_gym.backbone.nano_teacher import TEACHER_DIM, TEACHER_WEIGHTS, PassiveTeacher
from canvit_gym.checks import check_options, integer
from canvit_gym.command_line import GOES_ON, run_command
from canvit_gym.provenance import plain
from canvit_gym.scenes.fashion import FLAVOURS, Flavour, Split
from canvit_gym.scenes.prepared import FashionScenes
from experiments.nano.mixture import SINGLE, TrainingScenes, batch_counts, mixture, normalized
from experiments.nano.running import Budget, tensorboard

log = logging.getLogger(__name__)

ITEM_WEIGHT = 2.0
"""Weight of a cell that an item covers in the cross-entropy; background weighs 1."""


@dataclass(frozen=True)
class TeacherConfig:
    run_dir: Path
    """Checkpoints, TensorBoard log and the final teacher go here."""
    steps: int = 4000
    batch_size: int = 32
    peak_lr: float = 3e-3
    weight_decay: float = 0.02
    mixture: str = "suite"
    """Which scenes to train on: a name in experiments.nano.mixture."""
    max_scenes: int | None = None
    """Training scenes of each flavour, at most. None: as the mixture declares."""
    seed: int = 0
    save_every: int = 500
    minutes: float | None = None
    """End this start after this many minutes and save the state to continue from. None: train to the end."""
    validation_scenes: int = 512
    test_scenes: int = 1000
    """Number of scenes of each flavour."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@torch.inference_mode()
def evaluate(
    teacher: PassiveTeacher,
    *,
    split: Split,
    num_scenes: int,
    flavours: Sequence[Flavour],
    device: torch.device,
    batch_size: int = 64,
) -> dict[str, float]:
    """Evaluate passive vision at full resolution on a held-out split: accuracy on scenes with one item ("top1"), and
    mIoU on the other flavours with label maps ("miou" for segmentation, "miou_crowd", ...)."""
    teacher.eval()
    results: dict[str, float] = {}
    for flavour in flavours:
        if flavour != SINGLE and FLAVOURS[flavour].labels != "maps":
            continue
        source = FashionScenes(flavour, split, num_scenes)
        miou, correct = MeanIoU(device=device, num_classes=TEACHER_DIM), 0
        for indices in np.array_split(np.arange(len(source)), -(-len(source) // batch_size)):
            batch = source.load(indices)
            cells, scene = teacher.logits(normalized(batch.images.to(device)))
            if flavour == SINGLE:
                correct += int((scene[:, 1:].argmax(dim=1).cpu() == batch.labels).sum())
            else:
                up = F.interpolate(cells.float(), size=batch.labels.shape[-2:], mode="bilinear", align_corners=False)
                miou.update(up.argmax(dim=1), batch.labels.to(device).long())
        if flavour == SINGLE:
            results["top1"] = correct / len(source)
        else:
            results["miou" if flavour == "segmentation" else f"miou_{flavour}"] = miou.compute()
    return results


def train(config: TeacherConfig) -> dict[str, float] | None:
    """Returns metrics on test scenes; None if --minutes ended this start before the last step."""
    check_options(config, integer(1), "steps", "save_every", "validation_scenes", "test_scenes")
    budget = Budget(config.minutes)
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    parts = mixture(config.mixture, max_scenes=config.max_scenes)
    flavours = [part.flavour for part in parts]
    batch_counts(parts, config.batch_size)  # raises before any work
    scenes = TrainingScenes(parts, device=device)
    teacher = PassiveTeacher().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        teacher.parameters(), lr=config.peak_lr, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.peak_lr, total_steps=config.steps, pct_start=0.15
    )
    checkpoint, start, seconds = config.run_dir / "state.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start, seconds = state["step"], state["seconds"]
        log.info("Resuming at step %d", start)
    writer = tensorboard(config.run_dir)
    began = time.monotonic() - seconds
    for step in tqdm(range(start, config.steps), initial=start, total=config.steps, desc="Teacher", mininterval=5):
        batch = scenes.batch(step, batch_size=config.batch_size, seed=config.seed)
        teacher.train()
        with torch.autocast(device.type, torch.bfloat16):
            cells, scene = teacher.logits(batch.images)
        weight = 1 + (ITEM_WEIGHT - 1) * (1 - batch.shares[..., 0])
        log_shares = F.log_softmax(cells.float(), dim=1).flatten(2).transpose(1, 2)
        cell_loss = (-(batch.shares * log_shares).sum(dim=-1) * weight).mean()
        scene_loss = F.binary_cross_entropy_with_logits(scene.float(), batch.present)
        optimizer.zero_grad(set_to_none=True)
        (cell_loss + scene_loss).backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            writer.add_scalar("teacher/cell_loss", cell_loss.item(), step)
            writer.add_scalar("teacher/scene_loss", scene_loss.item(), step)
        last, over = step + 1 == config.steps, budget.spent
        if (step + 1) % config.save_every == 0 or last or over:
            seconds = time.monotonic() - began
            state = dict(
                teacher=teacher.state_dict(),
                optimizer=optimizer.state_dict(),
                schedule=schedule.state_dict(),
                step=step + 1,
                seconds=seconds,
            )
            with replacing(checkpoint) as partial:
                torch.save(state, partial)
        if over and not last:
            budget.say_goes_on(f"at step {step + 1} of {config.steps} of the teacher")
            return None
        if (step + 1) % config.save_every == 0 or last:
            metrics = evaluate(
                teacher, split="validation", num_scenes=config.validation_scenes, flavours=flavours, device=device
            )
            log.info("step %d: %s", step + 1, metrics)
            for name, value in metrics.items():
                writer.add_scalar(f"teacher/validation_{name}", value, step + 1)
    with replacing(config.run_dir / TEACHER_WEIGHTS) as partial:
        save_file({k: v.contiguous() for k, v in teacher.state_dict().items()}, partial)
    test = evaluate(teacher, split="test", num_scenes=config.test_scenes, flavours=flavours, device=device)
    metrics = {f"test_{k}": v for k, v in test.items()}
    record = dict(
        config=plain(asdict(config)), scenes=scenes.describe(), seconds=seconds, **metrics, torch=torch.__version__
    )
    write_text(config.run_dir / "teacher.json", json.dumps(record, indent=2) + "\n")
    log.info("Teacher: %s", metrics)
    return metrics


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_command(train, TeacherConfig, description=__doc__, if_interrupted=GOES_ON)
