"""The last phase of nano's pretraining: rollouts on the cross-entropy of the class shares themselves.

Half of a target is the teacher's, half the labels'. canvit-pytorch's own training step has squared errors only;
those teach the features well but decide slowly which class a cell belongs to.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch import CanViTForPretraining, Viewpoint, sample_at_viewpoint
from canvit_pytorch.policies import PolicyName, make_policy, random_viewpoints
from canvit_pytorch.pretrain.step import sample_rollout_length
from torch import Tensor
from tqdm import tqdm

from canvit_gym.backbone.nano import NANO_CANVAS_GRID, NANO_GLIMPSE_SIZE_PX
from canvit_gym.backbone.nano_teacher import TEACHER_DIM, PassiveTeacher
from canvit_gym.scenes.prepared import FashionScenes
from experiments.nano.teacher import MixedScenes, cell_fractions, normalized, scene_targets

ITEM_SCALES = (0.2, 0.6)
"""Scales of glimpses drawn around items, log-uniform: an item is 0.20 to 0.34 of a scene's side."""


@dataclass(frozen=True)
class FinishBatch:
    images: Tensor  # [B, 3, 128, 128], normalized
    cells: Tensor  # [B, G*G, TEACHER_DIM], class shares
    scene: Tensor  # [B, TEACHER_DIM] in [0, 1]: several items, then which classes are present
    num_classification: int  # the last scenes of the batch hold one item each


@torch.no_grad()
def _targets(
    source: FashionScenes, *, several: bool, teacher: PassiveTeacher, device: torch.device, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """(cells [N, G*G, TEACHER_DIM], scene [N, TEACHER_DIM]) of all scenes of a flavour, float16."""
    # Written in place: small tensors kept between large ones that come and go would leave the heap full of holes.
    cells = torch.empty(len(source), NANO_CANVAS_GRID**2, TEACHER_DIM, dtype=torch.float16)
    scene = torch.empty(len(source), TEACHER_DIM, dtype=torch.float16)
    for start in tqdm(range(0, len(source), chunk), desc=f"targets of {source.flavour}", mininterval=10):
        rows = slice(start, min(start + chunk, len(source)))
        images, labels = source.load_with_maps(np.arange(rows.start, rows.stop))
        features = teacher(normalized(images.to(device)))
        labels = labels.to(device).long()
        shares = cell_fractions(labels).flatten(2).transpose(1, 2)
        present = scene_targets(labels, several=torch.full((len(labels),), several, device=device))
        cells[rows] = (features.patches.softmax(dim=-1) + shares) / 2
        scene[rows] = (features.cls.sigmoid() + present) / 2
    return cells, scene


class FinishScenes:
    """Batches of `scenes` with their targets, which are computed once for all scenes (5.7 kB each).

    A mirrored scene has its own targets mirrored, so that the teacher sees every scene once.
    """

    def __init__(self, scenes: MixedScenes, *, teacher: PassiveTeacher, device: torch.device) -> None:
        self._scenes, self._device = scenes, device
        self._targets = [
            _targets(source, several=flavour == 0, teacher=teacher, device=device)
            for flavour, source in enumerate(scenes.sources)
        ]

    def batch(self, step: int) -> FinishBatch:
        images, _ = self._scenes.batch(step)
        *picks, mirrored = self._scenes.picks(step)
        cells, scene = (
            torch.cat([target[torch.from_numpy(picked)] for target, picked in zip(flavours, picks, strict=True)])
            .to(self._device)
            .float()
            for flavours in zip(*self._targets, strict=True)
        )
        if mirrored:
            cells = cells.unflatten(1, (NANO_CANVAS_GRID, NANO_CANVAS_GRID)).flip(2).flatten(1, 2)
        return FinishBatch(normalized(images.to(self._device)), cells, scene, self._scenes.num_classification)


def item_viewpoints(item_shares: Tensor) -> Viewpoint:
    """One viewpoint per scene around a random point of its items. item_shares: [B, G*G], how much of a cell they cover.

    The center is kept where the crop stays inside the scene.
    """
    batch_size, device = len(item_shares), item_shares.device
    cell = torch.multinomial(item_shares, 1)[:, 0]
    cells = torch.stack([cell // NANO_CANVAS_GRID, cell % NANO_CANVAS_GRID], dim=1)
    centers = 2 * (cells + torch.rand(batch_size, 2, device=device)) / NANO_CANVAS_GRID - 1
    low, high = ITEM_SCALES
    scales = low * (high / low) ** torch.rand(batch_size, device=device)
    limit = (1 - scales).unsqueeze(1)
    return Viewpoint(centers=centers.clamp(-limit, limit), scales=scales)


def mixed_viewpoints(item_shares: Tensor, *, item_share: float) -> Viewpoint:
    """canvit-pytorch's random viewpoints, a share of them moved to items: most random ones show background."""
    batch_size, device = len(item_shares), item_shares.device
    anywhere = random_viewpoints(batch_size=batch_size, device=device)
    items = item_viewpoints(item_shares)
    moved = torch.rand(batch_size, device=device) < item_share
    return Viewpoint(
        centers=torch.where(moved.unsqueeze(1), items.centers, anywhere.centers),
        scales=torch.where(moved, items.scales, anywhere.scales),
    )


def finishing_step(
    model: CanViTForPretraining,
    batch: FinishBatch,
    *,
    policy_name: PolicyName,
    item_share: float,
    item_weight: float,
    class_weight: float,
    chunk_glimpses: int,
    stop_probability: float,
) -> tuple[dict[str, Tensor], int]:
    """One rollout, gradients accumulated over chunks of glimpses. Returns (mean losses per glimpse, glimpses).

    policy_name draws the first glimpse; of the later ones `item_share` show items. A cell that an item covers weighs
    `item_weight`; scenes of one item add `class_weight` times the cross-entropy of its class, read from the CLS token.
    """
    images, batch_size, device = batch.images, len(batch.images), batch.images.device
    num_glimpses = sample_rollout_length(tbptt_chunk_glimpses=chunk_glimpses, stop_probability=stop_probability)
    first = make_policy(
        policy_name,
        batch_size=batch_size,
        device=device,
        num_glimpses=num_glimpses,
        canvas_grid_size=NANO_CANVAS_GRID,
    )
    items = 1 - batch.cells[..., 0]
    weight = 1 + (item_weight - 1) * items
    weight = weight / weight.mean()
    single = slice(batch_size - batch.num_classification, None)
    classes = batch.scene[single, 1:] / batch.scene[single, 1:].sum(dim=1, keepdim=True)
    state = model.init_state(batch_size=batch_size, canvas_grid_size=NANO_CANVAS_GRID)
    chunk_loss = torch.zeros((), device=device)
    totals: dict[str, Tensor] = {}
    for t in range(num_glimpses):
        viewpoint = first.step(t, state) if t == 0 else mixed_viewpoints(items, item_share=item_share)
        glimpse = sample_at_viewpoint(spatial=images, viewpoint=viewpoint, glimpse_size_px=NANO_GLIMPSE_SIZE_PX)
        state = model(glimpse=glimpse, state=state, viewpoint=viewpoint).state
        cell_logits = model.teacher_patch_standardizer.destandardize(model.predict_teacher_patches(state.canvas))
        predicted_cls = model.predict_teacher_cls(state.recurrent_cls).unsqueeze(1)
        scene_logits = model.teacher_cls_standardizer.destandardize(predicted_cls)[:, 0]
        losses = dict(
            cells=(-(batch.cells * F.log_softmax(cell_logits, dim=-1)).sum(dim=-1) * weight).mean(),
            scene=F.binary_cross_entropy_with_logits(scene_logits, batch.scene),
        )
        if batch.num_classification:
            losses["one_item"] = F.cross_entropy(scene_logits[single, 1:], classes)
        chunk_loss = chunk_loss + losses["cells"] + losses["scene"] + class_weight * losses.get("one_item", 0.0)
        for name, loss in losses.items():
            totals[name] = totals.get(name, 0.0) + loss.detach()
        if (t + 1) % chunk_glimpses == 0:
            (chunk_loss / num_glimpses).backward()
            chunk_loss = torch.zeros((), device=device)
            state = state.detach()
    return {name: total / num_glimpses for name, total in totals.items()}, num_glimpses
