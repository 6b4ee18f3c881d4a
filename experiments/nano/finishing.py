"""The last phase of nano's pretraining: rollouts on the cross-entropy of the class shares themselves.

A target is a mixture of the teacher's prediction and the labels (by default half of each). canvit-pytorch's own
training step only has squared errors. These teach the features well, but are slow to decide which class a cell belongs
to.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from canvit_pytorch import CanViTForPretraining, RecurrentState, Viewpoint, sample_at_viewpoint
from canvit_pytorch.policies import PolicyName, make_policy, random_viewpoints
from canvit_pytorch.pretrain.step import sample_rollout_length
from torch import Tensor

from canvit_gym.backbone.compilation import TrainedFunction
from canvit_gym.backbone.nano import NANO_CANVAS_GRID, NANO_GLIMPSE_SIZE_PX
from experiments.nano.mixture import TrainingBatch
from experiments.nano.running import Compile

ITEM_SCALES = (0.2, 0.6)
"""Scales of glimpses drawn around items, log-uniform: an item is 0.12 to 0.34 of a scene's side."""

QUADTREE: PolicyName = "coarse_to_fine"
"""The rollout that keeps its own viewpoints to the end, as it is evaluated."""


@dataclass(frozen=True)
class FinishTargets:
    cells: Tensor
    """[B, G*G, TEACHER_DIM], class shares."""
    scene: Tensor
    """[B, TEACHER_DIM] in [0, 1]: several classes, then which are present."""
    weight: Tensor
    """[B, G*G], of each cell's cross-entropy, 1 on average."""
    classes: Tensor
    """[num_single, 10], of the last scenes, which hold one item: probabilities of its class."""

    @staticmethod
    def of(batch: TrainingBatch, *, item_weight: float, teacher_share: float) -> "FinishTargets":
        """Targets of a batch: a share `teacher_share` comes from the teacher, the rest from the labels. A cell that an
        item covers weighs `item_weight` times as much as background."""
        assert batch.teacher is not None, "the teacher has not seen the scenes: call add_teacher first"
        cells = torch.lerp(batch.shares, batch.teacher.patches.softmax(dim=-1), teacher_share)
        scene = torch.lerp(batch.present, batch.teacher.cls.sigmoid(), teacher_share)
        weight = 1 + (item_weight - 1) * (1 - cells[..., 0])
        single = scene[len(scene) - batch.num_single :, 1:]
        return FinishTargets(
            cells=cells,
            scene=scene,
            weight=weight / weight.mean(),
            classes=single / single.sum(dim=1, keepdim=True),
        )


def item_viewpoints(item_shares: Tensor) -> Viewpoint:
    """One viewpoint per scene around a random point of its items, moved so that the crop stays inside the scene.

    item_shares: [B, G*G], the share of each cell that items cover.
    """
    batch_size, device = len(item_shares), item_shares.device
    # The method of torch.multinomial, without its check of the shares, which would wait for the GPU.
    cell = (item_shares / torch.empty_like(item_shares).exponential_()).argmax(dim=1)
    cells = torch.stack([cell // NANO_CANVAS_GRID, cell % NANO_CANVAS_GRID], dim=1)
    centers = 2 * (cells + torch.rand(batch_size, 2, device=device)) / NANO_CANVAS_GRID - 1
    low, high = ITEM_SCALES
    scales = low * (high / low) ** torch.rand(batch_size, device=device)
    limit = (1 - scales).unsqueeze(1)
    return Viewpoint(centers=centers.clamp(-limit, limit), scales=scales)


def mixed_viewpoints(item_shares: Tensor, *, item_share: float) -> Viewpoint:
    """canvit-pytorch's random viewpoints, with a share of them moved to items, since most would show background."""
    batch_size, device = len(item_shares), item_shares.device
    anywhere = random_viewpoints(batch_size=batch_size, device=device)
    items = item_viewpoints(item_shares)
    moved = torch.rand(batch_size, device=device) < item_share
    return Viewpoint(
        centers=torch.where(moved.unsqueeze(1), items.centers, anywhere.centers),
        scales=torch.where(moved, items.scales, anywhere.scales),
    )


class FinishGlimpse:
    """One glimpse of a finishing rollout: sampling, forward pass and losses in a single compiled function of tensors.

    ran: see TrainedFunction.
    """

    def __init__(self, model: CanViTForPretraining, *, compile: Compile) -> None:
        self._model = model
        self._call = TrainedFunction(self._run, name="a glimpse of the finish", compile=compile == "auto")

    @property
    def ran(self) -> str:
        return self._call.ran

    def __call__(
        self, images: Tensor, state: RecurrentState, viewpoint: Viewpoint, targets: FinishTargets
    ) -> tuple[RecurrentState, dict[str, Tensor]]:
        """Returns (the state afterwards, losses by name as means over the scenes)."""
        # Make expanded tensors contiguous: compiled code depends on strides.
        state_before = (state.canvas.contiguous(), state.recurrent_cls.contiguous())
        looked_at = (viewpoint.centers.contiguous(), viewpoint.scales.contiguous())
        wanted = (targets.cells, targets.scene, targets.weight, targets.classes)
        canvas, recurrent_cls, cells, scene, one_item = self._call(images, *state_before, *looked_at, *wanted)
        losses = dict(cells=cells, scene=scene)
        if len(targets.classes):
            losses["one_item"] = one_item
        return RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls), losses

    def _run(
        self,
        images: Tensor,
        canvas: Tensor,
        recurrent_cls: Tensor,
        centers: Tensor,
        scales: Tensor,
        cells: Tensor,
        scene: Tensor,
        weight: Tensor,
        classes: Tensor,
    ) -> tuple[Tensor, ...]:
        model = self._model
        viewpoint = Viewpoint(centers=centers, scales=scales)
        glimpse = sample_at_viewpoint(spatial=images, viewpoint=viewpoint, glimpse_size_px=NANO_GLIMPSE_SIZE_PX)
        before = RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls)
        state = model(glimpse=glimpse, state=before, viewpoint=viewpoint).state
        cell_logits = model.teacher_patch_standardizer.destandardize(
            model.predict_teacher_patches(state.canvas).float()
        )
        predicted_cls = model.predict_teacher_cls(state.recurrent_cls).float().unsqueeze(1)
        scene_logits = model.teacher_cls_standardizer.destandardize(predicted_cls)[:, 0]
        cell_loss = (-(cells * F.log_softmax(cell_logits, dim=-1)).sum(dim=-1) * weight).mean()
        scene_loss = F.binary_cross_entropy_with_logits(scene_logits, scene)
        if len(classes):
            class_loss = F.cross_entropy(scene_logits[len(scene) - len(classes) :, 1:], classes)
        else:
            class_loss = scene_loss.new_zeros(())
        return state.canvas, state.recurrent_cls, cell_loss, scene_loss, class_loss


def finishing_step(
    model: CanViTForPretraining,
    batch: TrainingBatch,
    *,
    look: FinishGlimpse,
    policy_name: PolicyName,
    item_share: float,
    item_weight: float,
    class_weight: float,
    teacher_share: float,
    chunk_glimpses: int,
    stop_probability: float,
    autocast: AbstractContextManager,
) -> tuple[dict[str, Tensor], int]:
    """One rollout, gradients accumulated over chunks of glimpses. Returns (mean losses per glimpse, glimpses).

    policy_name chooses the first glimpse. A share `item_share` of the later ones shows items, except in a quadtree
    rollout, which keeps its own viewpoints. A cell that an item covers weighs `item_weight`. Scenes with one item add
    `class_weight` times the cross-entropy of its class, read from the CLS token.
    """
    images, batch_size, device = batch.images, len(batch.images), batch.images.device
    num_glimpses = sample_rollout_length(tbptt_chunk_glimpses=chunk_glimpses, stop_probability=stop_probability)
    policy = make_policy(
        policy_name,
        batch_size=batch_size,
        device=device,
        num_glimpses=num_glimpses,
        canvas_grid_size=NANO_CANVAS_GRID,
    )
    targets = FinishTargets.of(batch, item_weight=item_weight, teacher_share=teacher_share)
    items = 1 - targets.cells[..., 0]
    state = model.init_state(batch_size=batch_size, canvas_grid_size=NANO_CANVAS_GRID)
    chunk_loss = torch.zeros((), device=device)
    totals: dict[str, Tensor] = {}
    for t in range(num_glimpses):
        follows = t == 0 or policy_name == QUADTREE
        viewpoint = policy.step(t, state) if follows else mixed_viewpoints(items, item_share=item_share)
        with autocast:
            state, losses = look(images, state, viewpoint, targets)
        chunk_loss = chunk_loss + losses["cells"] + losses["scene"] + class_weight * losses.get("one_item", 0.0)
        for name, loss in losses.items():
            totals[name] = totals.get(name, 0.0) + loss.detach()
        if (t + 1) % chunk_glimpses == 0:
            (chunk_loss / num_glimpses).backward()
            chunk_loss = torch.zeros((), device=device)
            state = state.detach()
    return {name: total / num_glimpses for name, total in totals.items()}, num_glimpses
