"""Exact evaluation: every scene of a split once, in order, measured after every glimpse. (Scenes without any label
have nothing to measure and are left out, with a warning.)

Segmentation is reported as data-set mIoU (intersections and unions summed over scenes, then averaged over
classes, as canvit-pytorch's MeanIoU does) of the logits upsampled to the scene before the argmax;
classification as top-1 and top-5 accuracy; both with the mean cross-entropy and the FLOPs it took. What was counted
on each scene is kept and can be saved, so that any statistic (canvit_gym.statistics) can be computed without a rerun.

The numbers do not depend on the batch size, up to float32 rounding: matrix products of other shapes add in another
order, so a pixel whose two best classes tie may change sides, and a policy that compares such numbers may look
elsewhere.
"""

import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from canvit_gym.actions import checked_viewpoints
from canvit_gym.assembly import (
    build_actions,
    build_backbone,
    build_layout,
    build_scenes,
    build_task,
    require_scene_size,
)
from canvit_gym.atomic import replacing
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch, EpisodeView
from canvit_gym.policies.protocol import GlimpsePolicy
from canvit_gym.policies.seen import Seen, window
from canvit_gym.scenes.files import ScenesOnDisk
from canvit_gym.scenes.sampler import batches_ahead
from canvit_gym.scenes.source import SceneSource, StreamedSource
from canvit_gym.seeding import seeded
from canvit_gym.statistics import Mean, MeanIoU, area_under_curve, mean_iou
from canvit_gym.tasks.segmentation import SegmentationTask
from canvit_gym.versions import package_version

FORMAT = 1
"""Of a saved evaluation."""

_PACKAGES = ("canvit-gym", "canvit-pytorch", "torch", "numpy")
_ARRAYS = ("scene", "viewpoints", "loss", "intersection", "union", "rank", "gflops")


@dataclass(frozen=True)
class Evaluation:
    """One policy on one split: N scenes, T glimpses, K classes."""

    scene: NDArray[np.int64]  # [N]
    viewpoints: NDArray[np.float32]  # [N, T, 3]
    loss: NDArray[np.float32]  # [N, T] cross-entropy in nats
    intersection: NDArray[np.integer]  # [N, T, K] pixels; classification: [N, T, 1], 1 where correct
    union: NDArray[np.integer]  # [N, T, K] pixels; classification: ones
    rank: NDArray[np.uint16] | None  # classification: [N, T] classes that come before the true one; 0 is correct
    gflops: NDArray[np.float64]  # [T] per scene up to and with each glimpse: the backbone's and the policy's own
    metric: Literal["mIoU", "top-1"]
    seed: int
    record: dict[str, Any]
    """JSON values: the policy, the configuration, scenes, checkpoint, probe, class names and versions."""

    def score(self, scenes: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float64]:
        """[T] mIoU or top-1 accuracy of the split, or of a choice of its scenes (with repetition)."""
        return mean_iou(self.intersection[scenes].sum(axis=0), self.union[scenes].sum(axis=0))

    def top5(self) -> NDArray[np.float64]:
        """[T] share of scenes whose class is among the five most likely."""
        if self.rank is None:
            raise ValueError("top-5 accuracy is of classification; this is an evaluation of a segmentation")
        return (self.rank < 5).mean(axis=0)

    def mean_loss(self) -> NDArray[np.float64]:
        """[T]"""
        return self.loss.mean(axis=0, dtype=np.float64)

    def scene_score(self) -> NDArray[np.float64]:
        """[N, T] each scene's own mIoU, or 1 where its class is the most likely one and 0 elsewhere."""
        return mean_iou(self.intersection, self.union)

    def area_under_curve(self) -> float:
        """Of the score over glimpses, on the score's scale: see canvit_gym.statistics.area_under_curve."""
        return float(area_under_curve(self.score()))

    def save(self, path: Path) -> None:
        """A compressed npz of the arrays and a JSON header. An interruption leaves no file, or the whole one."""
        header = {"format": FORMAT, "metric": self.metric, "seed": self.seed, "record": self.record}
        arrays = {name: value for name in _ARRAYS if (value := getattr(self, name)) is not None}
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """What `save` wrote. Nothing in the file is executed.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a damaged file, or one of another format.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
                header = json.loads(str(found.pop("header")))
                written = header["format"]
        except FileNotFoundError:
            raise FileNotFoundError(f"no evaluation at {path}; Evaluation.save writes one") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is not a saved evaluation, or damaged ({error}): delete it and evaluate again"
            ) from (error)
        if written != FORMAT:
            raise ValueError(
                f"{path} is of format {written}, this version of canvit_gym reads format {FORMAT}: evaluate again, or "
                "use the version that wrote it"
            )
        try:
            del header["format"]
            evaluation = cls(rank=found.pop("rank", None), **found, **header)
            evaluation._check_shapes()
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it and evaluate again") from error
        return evaluation

    def _check_shapes(self) -> None:
        num_scenes, num_glimpses = self.loss.shape
        num_classes = self.union.shape[-1]
        expected = {
            "scene": (num_scenes,),
            "viewpoints": (num_scenes, num_glimpses, 3),
            "intersection": (num_scenes, num_glimpses, num_classes),
            "union": (num_scenes, num_glimpses, num_classes),
            "gflops": (num_glimpses,),
        }
        if self.metric == "top-1":
            expected["rank"] = (num_scenes, num_glimpses)
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape} where {shape} is expected")


def score_statistic(runs: Sequence[Evaluation], *, run: Sequence[int] | None = None) -> MeanIoU | Mean:
    """The data set's mIoU, or top-1 accuracy, of several runs on the same scenes: for canvit_gym.statistics."""
    _require_same_scenes(runs)
    if runs[0].metric == "mIoU":
        counts = (np.stack([getattr(e, name) for e in runs]) for name in ("intersection", "union"))
        return MeanIoU(*counts, run=run)
    return Mean(np.stack([e.scene_score() for e in runs]), run=run)


def loss_statistic(runs: Sequence[Evaluation], *, run: Sequence[int] | None = None) -> Mean:
    """The mean cross-entropy of several runs on the same scenes: for canvit_gym.statistics."""
    _require_same_scenes(runs)
    return Mean(np.stack([e.loss for e in runs]), run=run)


def _require_same_scenes(runs: Sequence[Evaluation]) -> None:
    if not runs:
        raise ValueError("no evaluations given; evaluate the policy first")
    first = runs[0]
    for other in runs[1:]:
        contents = {e.record["scenes_sha256"] for e in (first, other) if "scenes_sha256" in e.record}
        if (first.record["scenes"], first.metric) != (other.record["scenes"], other.metric) or not np.array_equal(
            first.scene, other.scene
        ):
            raise ValueError(
                f"these evaluations are not on the same scenes: {len(first.scene)} of {first.record['scenes']} "
                f"({first.metric}) and {len(other.scene)} of {other.record['scenes']} ({other.metric})"
            )
        if len(contents) > 1:
            raise ValueError(
                f"these evaluations are not on the same scenes: both are on {first.record['scenes']}, but of files of "
                "other names or sizes. Evaluate both on the same copy of the data set."
            )


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

    The policy chooses every viewpoint, the first included. PyTorch's global generator (of a GPU also
    its own) is seeded for the rollouts and restored afterwards. `on_glimpse(t, episodes)` is called after every
    glimpse; `progress` names a progress bar. Of a data set on disk with unreadable="skip", scenes that cannot be read
    are left out.

    Raises:
        TypeError: no policy, but its name, say.
        ValueError: batch_size or num_glimpses below 1, a seed below 0, no scenes, a policy that does not fit the task
            or the observations, or viewpoints that do not lie inside the scene.
        FloatingPointError: a reading that is not finite.
    """
    _require_policy(policy)
    scenes = build_scenes(config)
    if not len(scenes):
        raise ValueError(f"{scenes.name} holds no scenes; choose another split or another root")
    order = np.arange(config.shard[0], len(scenes), config.shard[1])
    if not len(order):
        raise ValueError(f"shard {config.shard} of {len(scenes)} scenes is empty; use at most {len(scenes)} shards")
    return _roll_out(
        policy,
        config=config,
        scenes=scenes,
        order=order,
        num_glimpses=config.budget if num_glimpses is None else num_glimpses,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        on_glimpse=on_glimpse,
    )


def _require_policy(policy: object) -> None:
    if not hasattr(policy, "viewpoints"):
        raise TypeError(
            f"policy must be a GlimpsePolicy, got {policy!r}: make one by name with "
            "canvit_gym.policies.make_policy(name, config=config, num_glimpses=n)"
        )


@torch.no_grad()
def _roll_out(
    policy: GlimpsePolicy,
    *,
    config: EnvConfig,
    scenes: SceneSource,
    order: NDArray[np.int64],
    num_glimpses: int,
    batch_size: int,
    seed: int,
    progress: str | None,
    on_glimpse: Callable[[int, EpisodeBatch], None] | None,
) -> Evaluation:
    """The scenes `order` of the config's, in this order."""
    if batch_size < 1 or num_glimpses < 1:
        raise ValueError(f"batch_size and num_glimpses must be at least 1, got {batch_size} and {num_glimpses}")
    if seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed}")
    backbone = build_backbone(config)
    require_scene_size(config, backbone, scenes)
    task = build_task(config, backbone, scenes.classes)
    # Observations cost more than counting does: only the keys that the policy asks for, or else one that is free.
    wanted = policy.info.observations
    if missing := [key for key in wanted if key not in config.observations]:
        raise ValueError(
            f"policy {policy.info.name!r} reads {', '.join(missing)}, which the environment's observations lack: they "
            f"are {', '.join(config.observations)}; add {'it' if len(missing) == 1 else 'them'}"
        )
    actions = build_actions(config)
    layout = build_layout(replace(config, observations=wanted or ("time",)), backbone, is_dense=task.is_dense)

    def begun(chosen: NDArray[np.int64]) -> EpisodeBatch:
        episodes = EpisodeBatch(
            num=len(chosen),
            backbone=backbone,
            task=task,
            layout=layout,
            scenes=scenes,
            budget=num_glimpses,
            with_score=False,
        )
        episodes.reset_rows(episodes.all_rows, chosen, read=bool(wanted))
        return episodes

    flops = np.zeros(num_glimpses)
    parts: list[tuple[NDArray[Any], ...]] = []
    bar = tqdm(total=len(order), desc=progress, unit="scene", disable=None if progress else True)
    with bar, _batches(scenes, order, batch_size) as batches, seeded(seed, backbone.device):
        for chosen in batches:
            episodes = begun(chosen)
            if not (labelled := _labelled(episodes)).all():
                left_out = chosen[~labelled].tolist()
                warnings.warn(f"scenes {left_out} hold no label and are left out", RuntimeWarning, stacklevel=3)
                bar.update(len(left_out))
                if not len(chosen := chosen[labelled]):
                    continue
                episodes = begun(chosen)
            counter = _Counter(episodes)
            seen = window(policy.info, episodes, actions=actions)
            policy.reset(seen, seed=seed)
            for t in range(num_glimpses):
                viewpoints = _viewpoints(policy, t, seen)
                flops[t] = backbone.glimpse_flops + policy.flops_per_decision(seen)
                episodes.step_rows(episodes.all_rows, viewpoints)
                counter.count()
                if on_glimpse is not None:
                    on_glimpse(t, episodes)
            parts.append((chosen, episodes.viewpoints, episodes.loss_curve[:, 1:], *counter.counts()))
            bar.update(len(chosen))
    if not parts:
        raise ValueError(
            f"none of the {len(order)} scenes of {scenes.name} can be read and holds a label; see the warnings"
        )
    scene, viewpoints, loss, intersection, union, rank = (np.concatenate(c) for c in zip(*parts, strict=True))
    return Evaluation(
        scene=scene,
        viewpoints=viewpoints,
        loss=loss,
        intersection=intersection,
        union=union,
        rank=None if task.is_dense else rank,
        gflops=flops.cumsum() / 1e9,
        metric="mIoU" if task.is_dense else "top-1",
        seed=seed,
        record=json.loads(
            json.dumps(
                {
                    "policy": asdict(policy.info),
                    "config": config.to_json(),
                    "scenes": scenes.name,
                    **({"scenes_sha256": scenes.content_sha256} if isinstance(scenes, ScenesOnDisk) else {}),
                    "classes": task.classes,
                    "checkpoint": backbone.record,
                    "probe": task.record,
                    "batch_size": batch_size,
                    "versions": _versions(),
                }
            )
        ),
    )


def _labelled(episodes: EpisodeBatch) -> NDArray[np.bool_]:
    """[B]: a scene without any label has neither loss nor score."""
    labels = episodes.truth["labels"]
    if not episodes.task.is_dense:
        return np.ones(len(labels), dtype=np.bool_)
    return (labels != IGNORE_LABEL).flatten(1).any(dim=1).cpu().numpy()


@cache
def _versions() -> dict[str, str]:
    return {name: package_version(name) for name in _PACKAGES}


@contextmanager
def _batches(scenes: SceneSource, order: NDArray[np.int64], batch_size: int) -> Iterator[Iterator[NDArray[np.int64]]]:
    """Batches of `order`, each made ready by the source's workers while the one before it is evaluated."""
    try:
        yield batches_ahead(scenes, order, batch_size=batch_size)
    finally:
        if isinstance(scenes, StreamedSource):
            scenes.close()


def _viewpoints(policy: GlimpsePolicy, t: int, seen: Seen) -> NDArray[np.float32]:
    """[B, 3] of glimpse t, as the policy gives them, or ValueError where a backbone cannot take them."""
    try:
        viewpoints = checked_viewpoints(policy.viewpoints(t, seen))
        if len(viewpoints) != seen.num:
            raise ValueError(f"{len(viewpoints)} viewpoints for {seen.num} scenes")
    except ValueError as error:
        raise ValueError(f"policy {policy.info.name!r}, glimpse {t + 1}: {error}") from error
    return viewpoints.astype(np.float32, copy=False)


class _Counter:
    """What is counted on one batch of scenes, one glimpse after the other; on the device until the end."""

    def __init__(self, episodes: EpisodeBatch) -> None:
        self._episodes, self._task = episodes, episodes.task
        self._labels = episodes.truth["labels"]
        self._truth = episodes.truth | (
            self._task.quads(self._labels) if isinstance(self._task, SegmentationTask) else {}
        )
        self._counts: list[tuple[Tensor, Tensor, Tensor]] = []

    def count(self) -> None:
        """The current readings."""
        logits = self._episodes.logits
        assert logits is not None
        if isinstance(self._task, SegmentationTask):
            intersection, union = self._task.confusion(logits, self._truth)
            self._counts.append((intersection, union, intersection[:, 0]))
            return
        true = logits.gather(1, self._labels.unsqueeze(1))
        # As argmax and topk on the CPU: of equal logits the first comes first.
        before = torch.arange(logits.shape[1], device=logits.device) < self._labels.unsqueeze(1)
        rank = ((logits > true) | ((logits == true) & before)).sum(dim=1)
        correct = (rank == 0).long().unsqueeze(1)
        self._counts.append((correct, torch.ones_like(correct), rank))

    def counts(self) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]:
        """(intersection [B, T, K], union [B, T, K], rank [B, T]), as small as they fit."""
        pixels = self._labels[0].numel()
        dtypes = (np.uint16 if pixels < 1 << 16 else np.int32,) * 2 + (np.uint16,)
        columns = (torch.stack(column, dim=1).cpu().numpy() for column in zip(*self._counts, strict=True))
        intersection, union, rank = (column.astype(dtype) for column, dtype in zip(columns, dtypes, strict=True))
        return intersection, union, rank


def record_views(
    policy: GlimpsePolicy, *, config: EnvConfig, rows: NDArray[np.int64], num_glimpses: int | None = None, seed: int = 0
) -> list[list[EpisodeView]]:
    """The views of scenes `rows` of the split after every glimpse: [len(rows)][T], for pictures.

    Raises:
        ValueError: there is no such scene, or as `evaluate`.
    """
    _require_policy(policy)
    scenes, rows = build_scenes(config), np.asarray(rows)
    if not np.issubdtype(rows.dtype, np.integer) or rows.ndim != 1 or ((rows < 0) | (rows >= len(scenes))).any():
        raise ValueError(f"rows must be indices of scenes, [n] integers in [0, {len(scenes) - 1}], got {rows.tolist()}")
    views: list[list[EpisodeView]] = [[] for _ in rows]

    def keep(t: int, episodes: EpisodeBatch) -> None:
        for i, scene in enumerate(rows):
            if row := np.flatnonzero(episodes.scene == scene).tolist():
                views[i].append(episodes.view(row[0]))

    _roll_out(
        policy,
        config=config,
        scenes=scenes,
        order=np.unique(rows),
        num_glimpses=config.budget if num_glimpses is None else num_glimpses,
        batch_size=64,
        seed=seed,
        progress=None,
        on_glimpse=keep,
    )
    return views
