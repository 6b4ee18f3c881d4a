"""The passive teacher nano learns from: a small convolutional network that sees the whole scene at full resolution.

The network itself is canvit_gym.backbone.nano_teacher's; this module trains it.

    python -m experiments.nano.teacher --run-dir runs/teacher

Resumes from the run directory after an interruption.
"""

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch.benchmarks.ade20k import MeanIoU
from canvit_pytorch.preprocess import imagenet_normalize
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from canvit_gym.atomic import replacing
from canvit_gym.backbone.nano_teacher import CELL_PX, TEACHER_DIM, TEACHER_WEIGHTS, PassiveTeacher
from canvit_gym.command_line import run_command
from canvit_gym.provenance import plain
from canvit_gym.scenes.fashion import Split
from canvit_gym.scenes.prepared import FashionScenes

log = logging.getLogger(__name__)

ITEM_WEIGHT = 2.0
"""Weight of a cell that an item covers in the cross-entropy; background weighs 1."""


class MixedScenes:
    """Batches of both flavours (one classification scene in four, unless told otherwise), mirrored half of the time.

    Batch `step` is a function of (seed, step), so that a resumed run sees what an uninterrupted one sees.
    """

    def __init__(
        self,
        *,
        num_segmentation: int,
        num_classification: int,
        batch_size: int,
        seed: int,
        classification_share: float = 0.25,
    ) -> None:
        self.sources = (
            FashionScenes("segmentation", "training", num_segmentation),
            FashionScenes("classification", "training", num_classification),
        )
        self.batch_size = batch_size
        self.num_classification = int(batch_size * classification_share)
        self.seed = seed

    def picks(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
        """(segmentation scenes, classification scenes, whether they are mirrored); a batch holds them in this order."""
        rng = np.random.default_rng([self.seed, step])
        counts = (self.batch_size - self.num_classification, self.num_classification)
        segmentation, classification = (
            rng.integers(len(source), size=count) for source, count in zip(self.sources, counts, strict=True)
        )
        return segmentation, classification, bool(rng.integers(2))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(uint8 images [B, 3, 128, 128], int64 label maps [B, 128, 128])."""
        *picks, mirrored = self.picks(step)
        loaded = [source.load_with_maps(picked) for source, picked in zip(self.sources, picks, strict=True)]
        image, label = (torch.cat(parts) for parts in zip(*loaded, strict=True))
        if mirrored:
            image, label = image.flip(-1), label.flip(-1)
        return image, label.long()


def cell_fractions(labels: Tensor) -> Tensor:
    """[B, 128, 128] label maps -> [B, TEACHER_DIM, 16, 16]: the share of each cell that each class covers."""
    return F.avg_pool2d(F.one_hot(labels, TEACHER_DIM).permute(0, 3, 1, 2).float(), CELL_PX)


def scene_targets(labels: Tensor, *, several: Tensor) -> Tensor:
    """[B, TEACHER_DIM] in {0, 1}: several items?, then which classes are present."""
    present = F.one_hot(labels.flatten(1), TEACHER_DIM).amax(dim=1).float()
    return torch.cat([several.float().unsqueeze(1), present[:, 1:]], dim=1)


def normalized(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> ImageNet-normalized float32."""
    return imagenet_normalize(images.float() / 255)


@dataclass(frozen=True)
class TeacherConfig:
    run_dir: Path
    """Checkpoints, TensorBoard log and the final teacher go here."""
    steps: int = 4000
    batch_size: int = 32
    peak_lr: float = 3e-3
    weight_decay: float = 0.02
    num_segmentation: int = 24576
    num_classification: int = 12288
    """Training scenes of each flavour."""
    seed: int = 0
    save_every: int = 500
    validation_scenes: int = 512
    test_scenes: int = 1000
    """Of each flavour."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@torch.inference_mode()
def evaluate(
    teacher: PassiveTeacher, *, split: Split, num_scenes: int, device: torch.device, batch_size: int = 64
) -> dict[str, float]:
    """mIoU and accuracy of the teacher on a held-out split: what passive vision at full resolution reaches."""
    teacher.eval()
    miou = MeanIoU(device=device, num_classes=TEACHER_DIM)
    segmentation = FashionScenes("segmentation", split, num_scenes)
    classification = FashionScenes("classification", split, num_scenes)
    for indices in np.array_split(np.arange(len(segmentation)), -(-len(segmentation) // batch_size)):
        batch = segmentation.load(indices)
        cells, _ = teacher.logits(normalized(batch.images.to(device)))
        up = F.interpolate(cells.float(), size=batch.labels.shape[-2:], mode="bilinear", align_corners=False)
        miou.update(up.argmax(dim=1), batch.labels.to(device).long())
    correct = 0
    for indices in np.array_split(np.arange(len(classification)), -(-len(classification) // batch_size)):
        batch = classification.load(indices)
        _, scene = teacher.logits(normalized(batch.images.to(device)))
        correct += int((scene[:, 1:].argmax(dim=1).cpu() == batch.labels).sum())
    return {"miou": miou.compute(), "top1": correct / len(classification)}


def train(config: TeacherConfig) -> dict[str, float]:
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    scenes = MixedScenes(
        num_segmentation=config.num_segmentation,
        num_classification=config.num_classification,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    teacher = PassiveTeacher().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=config.peak_lr, weight_decay=config.weight_decay)
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
    writer = SummaryWriter(str(config.run_dir))
    num_classification = config.batch_size // 4
    several = torch.arange(config.batch_size, device=device) < config.batch_size - num_classification
    began = time.monotonic() - seconds
    for step in tqdm(range(start, config.steps), initial=start, total=config.steps, desc="Teacher", mininterval=5):
        images, labels = (t.to(device) for t in scenes.batch(step))
        teacher.train()
        with torch.autocast(device.type, torch.bfloat16):
            cells, scene = teacher.logits(normalized(images))
        fractions = cell_fractions(labels)
        weight = 1 + (ITEM_WEIGHT - 1) * (1 - fractions[:, 0])
        cell_loss = (-(fractions * F.log_softmax(cells.float(), dim=1)).sum(dim=1) * weight).mean()
        scene_loss = F.binary_cross_entropy_with_logits(scene.float(), scene_targets(labels, several=several))
        optimizer.zero_grad(set_to_none=True)
        (cell_loss + scene_loss).backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            writer.add_scalar("teacher/cell_loss", cell_loss.item(), step)
            writer.add_scalar("teacher/scene_loss", scene_loss.item(), step)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
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
            metrics = evaluate(teacher, split="validation", num_scenes=config.validation_scenes, device=device)
            log.info("step %d: %s", step + 1, metrics)
            for name, value in metrics.items():
                writer.add_scalar(f"teacher/validation_{name}", value, step + 1)
    save_file({k: v.contiguous() for k, v in teacher.state_dict().items()}, config.run_dir / TEACHER_WEIGHTS)
    test = evaluate(teacher, split="test", num_scenes=config.test_scenes, device=device)
    metrics = {f"test_{k}": v for k, v in test.items()}
    record = dict(config=plain(asdict(config)), seconds=seconds, **metrics)
    (config.run_dir / "teacher.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    log.info("Teacher: %s", metrics)
    return metrics


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_command(train, TeacherConfig, description=__doc__)
