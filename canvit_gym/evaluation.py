"""Exact evaluation: every scene of a split once, in order, measured after every glimpse. Scenes without any label are
left out, with a warning.

An evaluation has the task's metric (canvit_gym.tasks.metric), its loss, and the FLOPs. The metric of segmentation is
the mIoU of the data set, counted like canvit-pytorch's MeanIoU, that of classification top-1 and top-5 accuracy. The
counts of each scene are kept and can be saved, so that any statistic (canvit_gym.statistics) can be computed later. In
goal-conditioned tasks every scene has one goal, the same in every evaluation.

Results do not depend on the batch size, except for float32 rounding: matrix products of different shapes sum in a
different order, so a pixel whose two best classes tie may change its class, and a policy that compares such numbers may
choose another viewpoint.
"""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from canvit_gym.actions import checked_viewpoints
from canvit_gym.arrays import read_arrays, write_arrays
from canvit_gym.assembly import (
    build_actions,
    build_backbone,
    build_layout,
    build_scenes,
    build_task,
    listed_scenes,
    require_scene_size,
)
from canvit_gym.checks import integer
from canvit_gym.config import EnvConfig, config_from_kwargs
from canvit_gym.dtypes import float32_by_default
from canvit_gym.episodes import EpisodeBatch, EpisodeView, stays_in_place
from canvit_gym.equality import EqualByValue
from canvit_gym.perturbations import (
    Perturbation,
    PerturbedEpisodes,
    checked_perturbations,
    perturbation_from_record,
)
from canvit_gym.policies.protocol import GlimpsePolicy
from canvit_gym.policies.seen import Seen, window
from canvit_gym.scenes.files import ScenesOnDisk, spread
from canvit_gym.scenes.sampler import batches_ahead
from canvit_gym.scenes.source import SceneSource, closing_sources
from canvit_gym.seeding import seeded
from canvit_gym.statistics import Mean, Statistic, area_under_curve
from canvit_gym.tasks import metric_named
from canvit_gym.tasks.metric import Metric
from canvit_gym.versions import package_version

FORMAT = 1
"""Version of the file format of saved evaluations."""

_NUM_SCENES = re.compile(r", \d+ scenes$")
"""How the names of this package's scene sources end."""
_PACKAGES = ("canvit-gym", "canvit-pytorch", "torch", "numpy")
_ARRAYS = ("scene", "viewpoints", "loss", "gflops")
_OPTIONAL = ("goal", "stops")
_OF_VERSION_0_1 = ("intersection", "union")
"""Arrays that version 0.1 also saved for accuracies, where they are redundant."""


@dataclass(frozen=True, eq=False)
class Evaluation(EqualByValue):
    """The evaluation of one policy on one split: N scenes, T glimpses."""

    scene: NDArray[np.int64]  # [N]
    viewpoints: NDArray[np.float32]  # [N, T, 3]
    loss: NDArray[np.float32]  # [N, T] the task's loss, usually a cross-entropy in nats
    counts: dict[str, NDArray[Any]]  # [N, T, ...] from which the metric is computed: see Metric.counts
    gflops: NDArray[np.float64]
    """[T] cumulative per scene, of backbone and policy. A decision of the policy (GlimpsePolicy.flops_per_decision) is
    charged for every glimpse, also for the first one, and also if a policy decides nothing there."""
    metric: str
    """Name of the task's metric."""
    seed: int
    record: dict[str, Any]
    """JSON values: the policy, the configuration, scenes, checkpoint, probe, class names and versions."""
    goal: NDArray[np.int64] | None = None  # [N] in goal-conditioned tasks
    stops: NDArray[np.int64] | None = None
    """[N] number of glimpses after which the policy would have stopped, if that was recorded (canvit_gym.stopping). All
    arrays go on to the last glimpse."""

    @property
    def measure(self) -> Metric:
        """The metric object, which computes, formats and resamples the score."""
        return metric_named(self.metric)

    def first(self, num_scenes: int) -> "Evaluation":
        """The evaluation of only the first scenes."""
        return self.choose(slice(num_scenes))

    def on(self, scenes: NDArray[np.integer]) -> "Evaluation":
        """The evaluation of the scenes with these indices [n], in this order.

        Raises:
            ValueError: one of them was not evaluated.
        """
        row = {scene: row for row, scene in enumerate(self.scene.tolist())}
        if missing := [scene for scene in scenes.tolist() if scene not in row]:
            raise ValueError(f"scenes {missing[:5]} are not among the {len(self.scene)} of this evaluation")
        return self.choose(np.array([row[scene] for scene in scenes.tolist()], dtype=np.int64))

    def choose(self, rows: NDArray[np.integer] | slice) -> "Evaluation":
        """The evaluation of the scenes in these rows."""
        counts = {name: value[rows] for name, value in self.counts.items()}
        arrays = {name: getattr(self, name)[rows] for name in ("scene", "viewpoints", "loss")}
        optional = {name: None if (v := getattr(self, name)) is None else v[rows] for name in _OPTIONAL}
        return replace(self, **arrays, **optional, counts=counts)

    def score(self, scenes: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float64]:
        """[T] the metric on all scenes, or on some of them (with repetition)."""
        return self.measure.score({name: value[scenes] for name, value in self.counts.items()})

    def share(self, name: str) -> NDArray[np.float64]:
        """[T] one of the metric's further shares of scenes, such as "top5" in classification.

        Raises:
            ValueError: the metric has no such share.
        """
        if name not in self.measure.shares:
            raise ValueError(f"{self.metric} has no share {name!r}; it has: {', '.join(self.measure.shares) or 'none'}")
        return self.measure.scene_share(name, self.counts).mean(axis=0)

    def mean_loss(self) -> NDArray[np.float64]:
        """[T]"""
        return self.loss.mean(axis=0, dtype=np.float64)

    def scene_score(self) -> NDArray[np.float64]:
        """[N, T] the score of each scene: its mIoU, or whether its class is the most likely one (1 or 0)."""
        return self.measure.scene_score(self.counts)

    def area_under_curve(self) -> float:
        """The area under the curve of the score over glimpses, on its scale: see
        canvit_gym.statistics.area_under_curve."""
        return float(area_under_curve(self.score()))

    def save(self, path: Path) -> None:
        """Write the arrays and a JSON header as a compressed npz. An interruption leaves no partial file."""
        header = {"format": FORMAT, "metric": self.metric, "seed": self.seed, "record": self.record}
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS} | self.counts
        arrays |= {name: value for name in _OPTIONAL if (value := getattr(self, name)) is not None}
        write_arrays(path, header, arrays)

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a damaged file, or another format.
        """
        try:
            written, header, found = read_arrays(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"no evaluation at {path}; Evaluation.save writes one") from None
        except IsADirectoryError:
            raise ValueError(f"{path} is a directory: name the file in it that Evaluation.save wrote") from None
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged, or not a saved evaluation ({error}): delete it and evaluate again"
            ) from (error)
        if written != FORMAT:
            raise ValueError(
                f"{path} has format {written}, but this version of canvit_gym reads format {FORMAT}: evaluate again, "
                "or use the version that wrote it"
            )
        try:
            counts = {name: found[name] for name in metric_named(header["metric"]).counts}
            if unknown := sorted(set(found) - {*_ARRAYS, *counts, *_OPTIONAL, *_OF_VERSION_0_1}):
                raise ValueError(f"it holds {', '.join(unknown)}")
            optional = {name: found.get(name) for name in _OPTIONAL}
            evaluation = cls(counts=counts, **{name: found[name] for name in _ARRAYS}, **optional, **header)
            evaluation._check_shapes()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it and evaluate again") from error
        return evaluation

    def _check_shapes(self) -> None:
        num_scenes, num_glimpses = self.loss.shape
        expected = {
            "scene": (num_scenes,),
            "viewpoints": (num_scenes, num_glimpses, 3),
            "gflops": (num_glimpses,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        axes = self.measure.counts
        beyond = {value.shape[2:] for name, value in self.counts.items() if axes[name]}  # the classes, the same for all
        for name, value in self.counts.items():
            if value.shape[:2] != (num_scenes, num_glimpses) or value.ndim != 2 + axes[name] or len(beyond) > 1:
                raise ValueError(f"{name} has shape {value.shape}, of {num_scenes} scenes and {num_glimpses} glimpses")


def score_statistic(runs: Sequence[Evaluation], *, run: Sequence[int] | None = None) -> Statistic:
    """The score of several runs on the same scenes, for canvit_gym.statistics."""
    require_same_scenes(runs)
    counts = {name: np.stack([e.counts[name] for e in runs]) for name in runs[0].counts}
    return runs[0].measure.statistic(counts, run=run)


def loss_statistic(runs: Sequence[Evaluation], *, run: Sequence[int] | None = None) -> Mean:
    """The mean loss of several runs on the same scenes, for canvit_gym.statistics."""
    require_same_scenes(runs)
    return Mean(np.stack([e.loss for e in runs]), run=run)


def recorded_config(evaluation: Evaluation) -> EnvConfig:
    """The configuration that it was made with, by this version or an earlier one, on this machine's device.

    Raises:
        TypeError: a keyword that no version knows.
    """
    return replace(config_from_kwargs(evaluation.record["config"]), device="auto")


def recorded_perturbations(evaluation: Evaluation) -> tuple[Perturbation, ...]:
    """Those under which it was made, in order.

    Raises:
        ValueError: one of them is not known here.
    """
    return tuple(map(perturbation_from_record, evaluation.record.get("perturbations", ())))


def name_of_split(scenes: str) -> str:
    """The name of a scene source without the number of its scenes.

    Sources with the same scene at every index that both have may differ in that number: FashionScenes with 200 scenes
    are the first 200 of 1,000. Those on disk, of which a smaller number is spread over the split, are told apart by
    what remains ("images, 200 of 1000"), and by the hash of their files.

    >>> name_of_split("FashionScenes v3, segmentation, test, 200 scenes")
    'FashionScenes v3, segmentation, test'
    """
    return _NUM_SCENES.sub("", scenes)


def require_same_scenes(runs: Sequence[Evaluation]) -> None:
    """
    Raises:
        ValueError: no evaluations, or evaluations on different scenes: of different sources, with other indices or in
            another order, or by different metrics.
    """
    if not runs:
        raise ValueError("no evaluations given; evaluate the policy first")
    first = runs[0]
    for other in runs[1:]:
        contents = {e.record["scenes_sha256"] for e in (first, other) if "scenes_sha256" in e.record}
        splits = {(name_of_split(e.record["scenes"]), e.metric) for e in (first, other)}
        if len(splits) > 1 or not np.array_equal(first.scene, other.scene):
            raise ValueError(
                f"these evaluations are not on the same scenes: {len(first.scene)} of {first.record['scenes']} "
                f"({first.metric}) and {len(other.scene)} of {other.record['scenes']} ({other.metric})"
            )
        if len(contents) > 1:
            raise ValueError(
                f"these evaluations are not on the same scenes: both are on {first.record['scenes']}, but its files "
                "differ in names or sizes. Evaluate both on the same copy of the data set."
            )


def evaluate(
    policy: GlimpsePolicy,
    *,
    config: EnvConfig,
    num_glimpses: int | None = None,
    max_scenes: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: str | None = None,
    on_glimpse: Callable[[int, EpisodeBatch], None] | None = None,
    perturbations: Sequence[str | Perturbation] = (),
) -> Evaluation:
    """Run `policy` on every scene of `config.split` (and `config.shard`), num_glimpses each (default: the budget).

    `max_scenes`: evaluate at most that many of them, for a policy that costs too much for all. They keep the indices
    that they have in an evaluation of all, so that the two can be paired: see `Evaluation.on`. With a smaller
    `config.num_scenes`, on the contrary, the scenes of a data set on disk get other indices.

    The policy chooses every viewpoint, including the first, and never stops: canvit_gym.stopping.evaluate_with_stops
    records where it would. PyTorch's global generators are seeded for the rollouts and restored afterwards.
    `on_glimpse(t, episodes)` is called after every glimpse; `progress` is the title of a progress bar. `perturbations`,
    or names of some, change scenes and glimpses, see canvit_gym.perturbations. With unreadable="skip", scenes of a data
    set on disk that cannot be read are left out.

    Raises:
        TypeError: `policy` is not a policy but, for example, its name, or `config` not an EnvConfig but an id.
        ValueError: batch_size, num_glimpses or max_scenes below 1, a seed below 0, no scenes, a policy that does not
            support the task or the observations, or viewpoints that do not lie inside the scene.
        FloatingPointError: a reading that is not finite.
    """
    _require_parts(policy, config)
    perturbations = checked_perturbations(perturbations)
    scenes = build_scenes(config)
    with closing_sources(scenes):
        if not len(scenes):
            raise ValueError(f"{scenes.name} has no scenes; choose another split or another root")
        order = _order(scenes, config, max_scenes)
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
            perturbations=perturbations,
        )


def evaluated_scenes(config: EnvConfig, *, max_scenes: int | None = None) -> NDArray[np.int64]:
    """[N] the indices of the scenes that `evaluate` evaluates, increasing.

    Of a data set on disk, `max_scenes` are evenly spread over all, since files are often sorted by class; of other
    sources they are the first.

    >>> evaluated_scenes(EnvConfig(split="test", num_scenes=8, shard=(1, 2), device="cpu"), max_scenes=3).tolist()
    [1, 3, 5]
    """
    with listed_scenes(config) as scenes:
        return _order(scenes, config, max_scenes)


def _order(scenes: SceneSource, config: EnvConfig, max_scenes: int | None) -> NDArray[np.int64]:
    """[N] the indices of the scenes to evaluate, increasing."""
    order = np.arange(config.shard[0], len(scenes), config.shard[1])
    if max_scenes is None or integer(1)("max_scenes", max_scenes) >= len(order):
        return order
    return order[spread(max_scenes, len(order))] if isinstance(scenes, ScenesOnDisk) else order[:max_scenes]


def _require_parts(policy: object, config: object) -> None:
    if not hasattr(policy, "viewpoints") or isinstance(policy, type):
        raise TypeError(
            f"policy must be a GlimpsePolicy, got {policy!r}: make one by name with "
            "canvit_gym.policies.make_policy(name, config=config, num_glimpses=n)"
        )
    if not isinstance(config, EnvConfig):
        raise TypeError(f"config must be an EnvConfig, got {config!r}: make one with canvit_gym.config_for(id, ...)")


@torch.no_grad()
@float32_by_default()
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
    perturbations: Sequence[Perturbation] = (),
) -> Evaluation:
    """Evaluate the scenes with the indices `order`."""
    batch_size, num_glimpses = integer(1)("batch_size", batch_size), integer(1)("num_glimpses", num_glimpses)
    seed = integer(0)("seed", seed)
    backbone = build_backbone(config)
    require_scene_size(config, backbone, scenes)
    task = build_task(config, backbone, scenes.classes)
    # Observations cost more than counting: only compute the keys that the policy reads, or else one that is free.
    wanted = policy.info.observations
    if missing := [key for key in wanted if key not in config.observations]:
        raise ValueError(
            f"policy {policy.info.name!r} reads {', '.join(missing)}, but the environment's observations are "
            f"{', '.join(config.observations)}: add {'it' if len(missing) == 1 else 'them'}"
        )
    actions = build_actions(config)
    layout = build_layout(config.with_observations(wanted or ("time",)), backbone, task)

    make_episodes = partial(PerturbedEpisodes, perturbations=perturbations) if perturbations else EpisodeBatch
    batches_of: dict[int, EpisodeBatch] = {}
    used = ExitStack()
    used.callback(lambda: [batch.close() for batch in batches_of.values()])

    def begun(chosen: NDArray[np.int64]) -> EpisodeBatch:
        """Episodes on the chosen scenes. Batches of the first size are reused, with everything recorded for them. Those
        of another size (the last one, or without unlabeled scenes) are not worth compiling where that depends on the
        size, nor keeping: there may be as many sizes as scenes in a batch.
        """
        num = len(chosen)
        if num not in batches_of:
            for other in list(batches_of)[1:]:
                batches_of.pop(other).close()
            batches_of[num] = make_episodes(
                num=num,
                backbone=backbone,
                task=task,
                layout=layout,
                scenes=scenes,
                budget=num_glimpses,
                counted=True,
                compiles=not batches_of or not stays_in_place(backbone.device),
            )
        episodes = batches_of[num]
        episodes.reset_rows(episodes.all_rows, chosen, read=bool(wanted))
        return episodes

    flops = np.zeros(num_glimpses)
    parts: list[tuple[tuple[NDArray[Any], ...], dict[str, NDArray[Any]]]] = []
    bar = tqdm(total=len(order), desc=progress, unit="scene", disable=None if progress else True)
    with used, bar, seeded(seed, backbone.device):
        for chosen in batches_ahead(scenes, order, batch_size=batch_size):
            episodes = begun(chosen)
            done = int(np.searchsorted(order, chosen[-1], side="right"))  # with those that were left out
            if done + len(chosen) <= len(order):  # a smaller batch has episodes of its own
                episodes.expect(order[done : done + len(chosen)])
            if not (labelled := _labelled(episodes)).all():
                left_out = chosen[~labelled].tolist()
                warnings.warn(f"scenes {left_out} have no label and are left out", RuntimeWarning, stacklevel=5)
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
            goals = () if episodes.goal is None else (episodes.goal.copy(),)
            loss = episodes.curves["loss"][:, 1:].copy()
            parts.append(((chosen, episodes.viewpoints.copy(), loss, *goals), counter.counts()))
            bar.update(len(chosen))
    if not parts:
        raise ValueError(
            f"none of the {len(order)} scenes of {scenes.name} could be read and has a label; see the warnings"
        )
    scene, viewpoints, loss, *goal = (np.concatenate(c) for c in zip(*(arrays for arrays, _ in parts), strict=True))
    counts = {name: np.concatenate([part[name] for _, part in parts]) for name in task.metric.counts}
    return Evaluation(
        scene=scene,
        viewpoints=viewpoints,
        loss=loss,
        counts=counts,
        goal=goal[0] if goal else None,
        gflops=flops.cumsum() / 1e9,
        metric=task.metric.name,
        seed=seed,
        record=json.loads(
            json.dumps(
                {
                    "policy": asdict(policy.info),
                    "config": config.to_json(),
                    "scenes": scenes.name,
                    **({"perturbations": [p.record() for p in perturbations]} if perturbations else {}),
                    **({"scenes_sha256": scenes.content_sha256} if isinstance(scenes, ScenesOnDisk) else {}),
                    "classes": task.classes,
                    "checkpoint": backbone.record,
                    "probe": task.record,
                    "batch_size": batch_size,
                    "device": backbone.device.type,
                    "versions": _versions(),
                }
            )
        ),
    )


def _labelled(episodes: EpisodeBatch) -> NDArray[np.bool_]:
    """[B]: whether each scene has any label."""
    return episodes.task.labelled(episodes.truth).cpu().numpy()


@cache
def _versions() -> dict[str, str]:
    return {name: package_version(name) for name in _PACKAGES}


def _viewpoints(policy: GlimpsePolicy, t: int, seen: Seen) -> NDArray[np.float32]:
    """[B, 3] the policy's viewpoints for glimpse t. Raise ValueError if they are not valid."""
    try:
        viewpoints = checked_viewpoints(policy.viewpoints(t, seen))
        if len(viewpoints) != seen.num:
            raise ValueError(f"{len(viewpoints)} viewpoints for {seen.num} scenes")
    except ValueError as error:
        raise ValueError(f"policy {policy.info.name!r}, glimpse {t + 1}: {error}") from error
    return viewpoints.astype(np.float32, copy=False)


class _Counter:
    """Collects the counts of a batch after every glimpse, on the device until the end."""

    def __init__(self, episodes: EpisodeBatch) -> None:
        self._episodes = episodes
        self._counts: list[dict[str, Tensor]] = []

    def count(self) -> None:
        """Count the current readings."""
        logits = self._episodes.logits
        assert logits is not None
        self._counts.append(self._episodes.task.count(logits, self._episodes.truth))

    def counts(self) -> dict[str, NDArray[Any]]:
        """[B, T, ...] by name; integers in the smallest dtype that fits."""
        stacked = {name: torch.stack([each[name] for each in self._counts], dim=1) for name in self._counts[0]}
        return {name: _small(value.cpu().numpy()) for name, value in stacked.items()}


def _small(counts: NDArray[Any]) -> NDArray[Any]:
    if counts.dtype.kind == "f":
        return counts.astype(np.float32)
    return counts.astype(np.uint16 if counts.max(initial=0) < 1 << 16 else np.int32)


def record_views(
    policy: GlimpsePolicy, *, config: EnvConfig, rows: NDArray[np.int64], num_glimpses: int | None = None, seed: int = 0
) -> list[list[EpisodeView]]:
    """Views of the scenes `rows` of the split after every glimpse, for pictures: [len(rows)][T].

    Raises:
        ValueError: an index out of range, a scene that has no label or cannot be read, or as in `evaluate`.
    """
    _require_parts(policy, config)
    scenes, rows = build_scenes(config), np.asarray(rows)
    views: list[list[EpisodeView]] = [[] for _ in rows]

    def keep(t: int, episodes: EpisodeBatch) -> None:
        for i, scene in enumerate(rows):
            if row := np.flatnonzero(episodes.scene == scene).tolist():
                views[i].append(episodes.view(row[0]))

    with closing_sources(scenes):
        if not np.issubdtype(rows.dtype, np.integer) or rows.ndim != 1 or ((rows < 0) | (rows >= len(scenes))).any():
            raise ValueError(
                f"rows must be indices of scenes, [n] integers in [0, {len(scenes) - 1}], got {rows.tolist()}"
            )
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
    if without := [int(scene) for scene, seen in zip(rows, views, strict=True) if not seen]:
        raise ValueError(f"scenes {without} have no label or cannot be read: choose others, or repair them")
    return views
