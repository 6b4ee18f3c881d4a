"""Fit the linear probes of a frozen backbone: SegmentationProbe on the canvas, a linear classifier on the CLS token.

    python -m experiments.fit_probe --checkpoint runs/nano/model --output-dir runs/probes

Policy-agnostic: the states come from random viewpoints (F-IID and R-IID in turn), all time steps alike. The
classifier reads the pretraining readout of the recurrent CLS token, so that
CanViTForImageClassification.from_pretrained_with_probe fuses it into one linear map of that token. Both are
kept at their best validation loss.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from canvit_pytorch import SegmentationProbe
from canvit_pytorch.episode import run_episode
from canvit_pytorch.policies import make_policy
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from canvit_gym.backbone.load import Backbone, load_backbone
from canvit_gym.scenes.fashion import Flavour, Split
from canvit_gym.scenes.prepared import FashionScenes
from experiments.provenance import plain
from experiments.teacher import cell_fractions, normalized

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeConfig:
    output_dir: Path
    """Directory to write `segmentation-probe/` and `classification-probe/` into."""
    checkpoint: str = "nano"
    num_scenes: int = 8192
    """Training scenes of each flavour."""
    steps: int = 300
    batch_size: int = 64
    num_glimpses: int = 8
    """Length of each rollout; every state of it is a training example."""
    peak_lr: float = 2e-2
    weight_decay: float = 1e-3
    item_weight: float = 2.0
    """Weight of the items in the segmentation's cross-entropy; background weighs 1."""
    validate_every: int = 100
    seed: int = 0
    device: str = "auto"


def states(
    backbone: Backbone, config: ProbeConfig, *, flavour: Flavour, split: Split, num_scenes: int, steps: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(canvas patches [T*B, G*G, D], recurrent CLS [T*B, 1, D_b], labels [T*B, ...]) of one rollout per step."""
    source = FashionScenes(flavour, split, num_scenes)
    for step in range(steps):
        rng = np.random.default_rng([config.seed, step])
        batch = source.load(rng.integers(len(source), size=config.batch_size))
        images = normalized(batch.images.to(backbone.device))
        torch.manual_seed(int(rng.integers(2**62)))
        policy = make_policy(
            ("full_then_random", "random")[step % 2],
            batch_size=config.batch_size,
            device=backbone.device,
            num_glimpses=config.num_glimpses,
            canvas_grid_size=backbone.canvas_grid,
        )
        with torch.no_grad():
            rollout = run_episode(
                canvit=backbone.canvit,
                images=images,
                policy=policy,
                num_glimpses=config.num_glimpses,
                glimpse_size_px=backbone.glimpse_size_px,
                initial_state=backbone.init_state(config.batch_size),
            )
        labels = batch.labels.to(backbone.device).long()
        yield (
            torch.cat([backbone.canvit.canvas_patches(s.state.canvas) for s in rollout]),
            torch.cat([s.state.recurrent_cls for s in rollout]),
            labels.repeat(config.num_glimpses, *[1] * (labels.ndim - 1)),
        )


def fit(
    probe: nn.Module,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    backbone: Backbone,
    config: ProbeConfig,
    *,
    flavour: Flavour,
) -> float:
    """Train `probe` in place on `loss_of(canvas, cls, labels)`; returns its best validation loss, keeps it there."""
    optimizer = torch.optim.AdamW(probe.parameters(), lr=config.peak_lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.peak_lr, total_steps=config.steps)
    best, best_state = float("inf"), {k: v.clone() for k, v in probe.state_dict().items()}
    batches = states(
        backbone, config, flavour=flavour, split="training", num_scenes=config.num_scenes, steps=config.steps
    )
    for step, batch in enumerate(tqdm(batches, total=config.steps, desc=f"{flavour} probe", mininterval=5)):
        probe.train()
        optimizer.zero_grad(set_to_none=True)
        loss_of(*batch).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            probe.eval()
            with torch.no_grad():
                held_out = states(backbone, config, flavour=flavour, split="validation", num_scenes=512, steps=6)
                validation = float(np.mean([loss_of(*b).item() for b in held_out]))
            log.info("%s probe, step %d: validation loss %.4f", flavour, step + 1, validation)
            if validation < best:
                best, best_state = validation, {k: v.clone() for k, v in probe.state_dict().items()}
    probe.load_state_dict(best_state)
    probe.eval()
    return best


def fit_segmentation(backbone: Backbone, config: ProbeConfig, directory: Path) -> float:
    num_classes = len(FashionScenes("segmentation", "validation", 512).classes)
    torch.manual_seed(config.seed)
    probe = SegmentationProbe(
        embed_dim=backbone.canvit.canvas_dim, num_classes=num_classes, dropout=0.0, use_ln=True
    ).to(backbone.device)
    grid = backbone.canvas_grid

    def loss_of(canvas: Tensor, cls: Tensor, labels: Tensor) -> Tensor:
        # One label map serves all the states of its rollout.
        shares = cell_fractions(labels[: config.batch_size]).repeat(config.num_glimpses, 1, 1, 1)
        logits = probe(canvas.unflatten(1, (grid, grid)))
        weight = 1 + (config.item_weight - 1) * (1 - shares[:, 0])
        return -((shares * F.log_softmax(logits, dim=1)).sum(dim=1) * weight).sum() / weight.sum()

    best = fit(probe, loss_of, backbone, config, flavour="segmentation")
    probe.save_pretrained(directory)
    return best


def fit_classification(backbone: Backbone, config: ProbeConfig, directory: Path) -> float:
    num_classes = len(FashionScenes("classification", "validation", 512).classes)
    model = backbone.pretrained
    probe = nn.Linear(model.teacher_dim, num_classes).to(backbone.device)
    with torch.no_grad():
        # The teacher's features 1..K are the log-odds of the classes: start from reading them off.
        probe.weight.zero_()
        probe.weight[:, 1:] = torch.eye(num_classes, device=backbone.device)
        probe.bias.zero_()

    def loss_of(canvas: Tensor, cls: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            standardized = model.predict_teacher_cls(cls).unsqueeze(1)
            features = model.teacher_cls_standardizer.destandardize(standardized)[:, 0]
        return F.cross_entropy(probe(features), labels)

    best = fit(probe, loss_of, backbone, config, flavour="classification")
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {"weight": probe.weight.detach().cpu(), "bias": probe.bias.detach().cpu()}, directory / "model.safetensors"
    )
    return best


def main(config: ProbeConfig) -> None:
    backbone = load_backbone(config.checkpoint, device=config.device)
    kinds: dict[Literal["segmentation", "classification"], Callable[[Backbone, ProbeConfig, Path], float]] = {
        "segmentation": fit_segmentation,
        "classification": fit_classification,
    }
    for kind, fit_kind in kinds.items():
        directory, began = config.output_dir / f"{kind}-probe", time.monotonic()
        best = fit_kind(backbone, config, directory)
        record = dict(
            config=plain(asdict(config)) | {"checkpoint": Path(config.checkpoint).name},
            checkpoint_sha256=backbone.sha256,
            validation_loss=best,
            seconds=round(time.monotonic() - began, 1),
            torch=torch.__version__,
        )
        (directory / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(tyro.cli(ProbeConfig, description=__doc__))
