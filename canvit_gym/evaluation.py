"""Exact evaluation: every scene of a split once, in order, measured after every glimpse.

Segmentation is reported as data-set mIoU (intersections and unions summed over scenes, then averaged over
classes, as canvit-pytorch's MeanIoU does) of the logits upsampled to the scene before the argmax;
classification as top-1 accuracy; both with the mean cross-entropy. Per-scene counts are kept, so that any
statistic can be recomputed and bootstrapped over scenes without a rerun.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from canvit_pytorch.benchmarks.ade20k import per_image_confusion
from numpy.typing import NDArray
from tqdm import tqdm

from canvit_gym.config import EnvConfig, build_backbone, build_layout, build_scenes, build_task
from canvit_gym.episodes import EpisodeBatch, EpisodeView
from canvit_gym.policies.protocol import GlimpsePolicy
from canvit_gym.tasks.segmentation import SegmentationTask


@dataclass(frozen=True)
class Evaluation:
    """One policy on one split: N scenes, T glimpses, K classes."""

    scene: NDArray[np.int64]  # [N]
    viewpoints: NDArray[np.float32]  # [N, T, 3]
    loss: NDArray[np.float32]  # [N, T] cross-entropy in nats
    intersection: NDArray[np.int64]  # [N, T, K] pixels; classification: 1 where correct, K = 1
    union: NDArray[np.int64]  # [N, T, K] pixels; classification: ones
    metric: Literal["mIoU", "top-1"]

    def score(self, scenes: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float64]:
        """[T] mIoU or top-1 of the split, or of a choice of its scenes (with repetition, for a bootstrap)."""
        intersection, union = self.intersection[scenes].sum(axis=0), self.union[scenes].sum(axis=0)
        present = union > 0
        return np.where(present, intersection / np.maximum(union, 1), 0).sum(axis=1) / present.sum(axis=1)

    def mean_loss(self) -> NDArray[np.float64]:
        """[T]"""
        return self.loss.mean(axis=0, dtype=np.float64)


@torch.no_grad()
def evaluate(
    policy: GlimpsePolicy,
    *,
    config: EnvConfig,
    num_glimpses: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: str | None = None,
    on_glimpse: Callable[[int, EpisodeBatch], None] | None = None,
) -> Evaluation:
    """Roll `policy` out on every scene of `config.split` (of `config.shard`), num_glimpses each (default: the budget).

    The policy chooses every viewpoint, the first included. PyTorch's global generator is seeded for the
    rollouts and restored afterwards. `on_glimpse(t, episodes)` is called after every glimpse; `progress`
    names a progress bar.

    Raises:
        ValueError: batch_size or num_glimpses below 1, or a policy that does not fit the task.
    """
    num_glimpses = config.budget if num_glimpses is None else num_glimpses
    if batch_size < 1 or num_glimpses < 1:
        raise ValueError(f"batch_size and num_glimpses must be at least 1, got {batch_size} and {num_glimpses}")
    backbone, scenes = build_backbone(config), build_scenes(config)
    task = build_task(config, backbone, scenes.classes)
    layout = build_layout(config, backbone, is_dense=task.is_dense)
    order = np.arange(config.shard[0], len(scenes), config.shard[1])
    if not len(order):
        raise ValueError(f"shard {config.shard} of {len(scenes)} scenes is empty; use at most {len(scenes)} shards")
    parts: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]] = []
    bar = tqdm(total=len(order), desc=progress, unit="scene", disable=None if progress else True)
    with bar, torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            episodes = EpisodeBatch(
                num=len(chosen),
                backbone=backbone,
                task=task,
                layout=layout,
                scenes=scenes,
                budget=num_glimpses,
                with_score=False,
            )
            episodes.begin(episodes.all_rows, chosen, read=True)
            policy.begin(len(chosen), backbone.device)
            counts = []
            for t in range(num_glimpses):
                episodes.look(episodes.all_rows, policy.viewpoints(t, episodes))
                counts.append(_counts(task, episodes))
                if on_glimpse is not None:
                    on_glimpse(t, episodes)
            intersection, union = (np.stack(c, axis=1) for c in zip(*counts, strict=True))
            parts.append((episodes.viewpoints, episodes.loss_curve[:, 1:], intersection, union))
            bar.update(len(chosen))
    viewpoints, loss, intersection, union = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Evaluation(
        scene=order,
        viewpoints=viewpoints,
        loss=loss,
        intersection=intersection,
        union=union,
        metric="mIoU" if task.is_dense else "top-1",
    )


def _counts(task: object, episodes: EpisodeBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(intersection, union) of the current readings: [B, K] pixels, or [B, 1] correct and ones."""
    assert episodes.logits is not None
    labels = episodes.truth["labels"].long()
    if isinstance(task, SegmentationTask):
        predictions = task.predict(episodes.logits, labels.shape[-1])
        intersection, union, _ = per_image_confusion(predictions, labels, len(task.classes))
        return intersection.cpu().numpy().astype(np.int64), union.cpu().numpy().astype(np.int64)
    correct = (episodes.logits.argmax(dim=1) == labels).long().cpu().numpy()[:, None]
    return correct, np.ones_like(correct)


def paired_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], *, num_scenes: int, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile interval of a statistic over scenes resampled with replacement.

    Pair two policies by computing their difference inside `statistic`, on the same resampled scenes.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(num_scenes, size=num_scenes)) for _ in range(resamples)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def record_views(
    policy: GlimpsePolicy, *, config: EnvConfig, rows: NDArray[np.int64], num_glimpses: int | None = None, seed: int = 0
) -> list[list[EpisodeView]]:
    """The views of scenes `rows` of the split after every glimpse: [len(rows)][T], for pictures."""
    num_scenes = int(rows.max()) + 1
    views: list[list[EpisodeView]] = [[] for _ in rows]

    def keep(t: int, episodes: EpisodeBatch) -> None:
        for i, scene in enumerate(rows):
            if row := np.flatnonzero(episodes.scene == scene).tolist():
                views[i].append(episodes.view(row[0]))

    evaluate(
        policy, config=replace(config, num_scenes=num_scenes), num_glimpses=num_glimpses, seed=seed, on_glimpse=keep
    )
    return views
