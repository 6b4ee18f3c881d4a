"""Statistics of evaluations: bootstrap intervals, and robust aggregates as in rliable (Agarwal et al., 2021).

Observations come from S runs (seeds of a policy, or of its training) on N scenes, at T glimpses. Every run sees the
same scenes, so that the two factors are crossed. A resample draws

- N scenes with replacement, the same for all runs and policies of a call. Comparisons are therefore paired: the
  difficulty of a scene, which all policies share, cancels in differences;
- for each policy, independently, as many runs as it has, with replacement (stratified by policy). Rows that share a
  `run` (evaluations of one trained policy) are drawn together.

A deterministic policy has one run, so only its scenes are resampled. The drawn scenes depend only on the seed, the
number of resamples and N. Intervals are percentile intervals: 95% from the 2.5th to the 97.5th percentile.
With few runs they are too narrow, like those of any bootstrap: the spread of S runs is underestimated by (S - 1) / S,
and two runs have only three distinct resamples.

A resample is a row of multiplicities [N]. The mIoU of a data set, which is not a mean over scenes, is thus a matrix
product: multiplicities [R, N] times counts [N, T * K].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]

RESAMPLES = 2000
CHUNK = 256
"""Resamples computed at once."""


def area_under_curve(curve: ArrayLike) -> NDArray[np.float64]:
    """[..., T] -> [...]: the trapezoid area over glimpses 1 to T, divided by T - 1; the value itself if T is 1.

    It is on the scale of the curve: the area of a constant curve is the constant.
    """
    values = np.asarray(curve, dtype=np.float64)
    if values.shape[-1] == 1:
        return values[..., 0]
    return np.trapezoid(values, axis=-1) / (values.shape[-1] - 1)


def mean_iou(intersection: NDArray[np.number], union: NDArray[np.number]) -> NDArray[np.float64]:
    """[..., K] counts -> [...]: the mean over the classes that occur (union > 0), or 0 if none does."""
    present = union > 0
    ratio = np.divide(intersection, union, out=np.zeros(union.shape), where=present)
    return ratio.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)


def interquartile_mean(values: ArrayLike) -> float:
    """The mean of the middle half of all values: a quarter of them, rounded down, is left out at each end.

    rliable computes it over runs and tasks in the same way: scipy.stats.trim_mean(values, 0.25, axis=None).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    if not len(ordered):
        raise ValueError("the interquartile mean of no values is undefined; evaluate at least one scene")
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def probability_of_improvement(one: ArrayLike, other: ArrayLike) -> float:
    """P(one > other), where ties count half: over all pairs of runs on the same task, averaged over tasks.

    one: [S, N] scores of S runs on N tasks (here: scenes). other: [S', N] on the same tasks.
    """
    values = _pairs(_two_dimensional(one, "one"), _two_dimensional(other, "other"))
    return float(values.mean())


def _two_dimensional(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must have shape [runs, tasks], with at least one of each; got {array.shape}")
    return array


def _pairs(one: Floats, other: Floats) -> NDArray[np.float32]:
    """[S, N, ...] and [S', N, ...] -> [S, S', N, ...]: 1 where one is greater, 0.5 where they are equal, else 0."""
    if one.shape[1:] != other.shape[1:]:
        raise ValueError(f"both must be on the same tasks, got shapes {one.shape} and {other.shape}")
    mine, theirs = one[:, None], other[None]
    return (mine > theirs) + np.float32(0.5) * (mine == theirs)


class Statistic(Protocol):
    """One or T numbers of one policy's S x N observations, computed for any multiplicities of runs and scenes."""

    @property
    def run(self) -> NDArray[np.int64]:
        """[S] the run of each row, 0 to number of runs - 1. Rows of a run are drawn together."""
        ...

    @property
    def num_scenes(self) -> int: ...

    def __call__(self, rows: NDArray[np.float64], scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Multiplicities [R, S] and [R, N] -> [R, T]."""
        ...


def _runs(run: Sequence[int] | NDArray[np.int64] | None, num_rows: int) -> NDArray[np.int64]:
    if run is None:
        return np.arange(num_rows)
    if len(run) != num_rows:
        raise ValueError(f"run must have an entry for each of {num_rows} rows, got {len(run)}")
    return np.unique(np.asarray(run), return_inverse=True)[1]


def _observations(values: ArrayLike, name: str, ndim: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name} must have {ndim} axes [runs, scenes, ...], none empty; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but is not at {np.argwhere(~np.isfinite(array))[0].tolist()}")
    return array


class Mean:
    """The mean over runs and scenes of values [S, N, T]: cross-entropy, accuracy, per-scene mIoU."""

    def __init__(self, values: ArrayLike, *, run: Sequence[int] | None = None) -> None:
        self._values = _observations(values, "values", 3)
        self.run, self.num_scenes = _runs(run, len(self._values)), self._values.shape[1]

    def __call__(self, rows: NDArray[np.float64], scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        of_rows = np.stack([scenes @ values for values in self._values], axis=1) / scenes.sum(axis=1)[:, None, None]
        return _over_rows(rows, of_rows)


class MeanIoU:
    """The mean over runs of the data set's mIoU, from counts [S, N, T, K] in pixels."""

    def __init__(
        self, intersection: NDArray[np.number], union: NDArray[np.number], *, run: Sequence[int] | None = None
    ) -> None:
        if intersection.shape != union.shape:
            raise ValueError(f"intersection {intersection.shape} and union {union.shape} must have one shape")
        # float32 products of integers are exact up to 2^24 pixels, and to seven digits beyond.
        self._intersection = _observations(intersection, "intersection", 4).astype(np.float32)
        self._union = _observations(union, "union", 4).astype(np.float32)
        self.run, self.num_scenes = _runs(run, len(intersection)), intersection.shape[1]

    def __call__(self, rows: NDArray[np.float64], scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        weights, of_rows = scenes.astype(np.float32), []
        _, num_scenes, *shape = self._union.shape  # T, K
        for counts in zip(self._intersection, self._union, strict=True):
            sums = [(weights @ c.reshape(num_scenes, -1)).reshape(len(weights), *shape) for c in counts]
            of_rows.append(mean_iou(*sums))
        return _over_rows(rows, np.stack(of_rows, axis=1))


class InterquartileMean:
    """The interquartile mean of values [S, N, T] over runs and scenes together: see interquartile_mean."""

    def __init__(self, values: ArrayLike, *, run: Sequence[int] | None = None) -> None:
        array = _observations(values, "values", 3)
        self.run, self.num_scenes = _runs(run, len(array)), array.shape[1]
        flat = array.reshape(-1, array.shape[2])  # [S * N, T]
        self._order = np.argsort(flat, axis=0, kind="stable")
        self._sorted = np.take_along_axis(flat, self._order, axis=0)

    def __call__(self, rows: NDArray[np.float64], scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        weights = (rows[:, :, None] * scenes[:, None]).reshape(len(rows), -1)  # [R, S * N]
        cut = weights.sum(axis=1, keepdims=True) // 4
        kept = np.empty((len(rows), self._sorted.shape[1]))
        for t in range(kept.shape[1]):
            # A value of multiplicity m takes m places in the order. Those between the two cuts count.
            upper = np.cumsum(weights[:, self._order[:, t]], axis=1)
            within = np.clip(upper, cut, upper[:, -1:] - cut)
            places = np.diff(within, axis=1, prepend=cut)
            kept[:, t] = places @ self._sorted[:, t] / places.sum(axis=1)
        return kept


class OfFirst:
    """A statistic of only the first of `num_scenes` scenes, for a bootstrap together with statistics of all of them.

    A resample may contain more or fewer of these scenes. If it contains none the statistic is undefined, so there
    should be more than a few.

    >>> values = np.linspace(0, 1, 40)[None, :, None]
    >>> few, everything = OfFirst(Mean(values[:, :20]), num_scenes=40), Mean(values)
    >>> round(float(bootstrap_interval(few, everything, of=np.subtract).value[0]), 4)
    -0.2564
    """

    def __init__(self, statistic: Statistic, *, num_scenes: int) -> None:
        if num_scenes < statistic.num_scenes:
            raise ValueError(f"num_scenes must be at least the statistic's {statistic.num_scenes}, got {num_scenes}")
        self._statistic, self.run, self.num_scenes = statistic, statistic.run, num_scenes

    def __call__(self, rows: NDArray[np.float64], scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._statistic(rows, scenes[:, : self._statistic.num_scenes])


@dataclass(frozen=True)
class Together:
    """Statistics of the same runs, which are drawn together: their values side by side, [R, T + T' + ...].

    >>> trained, begun = Mean([[[0.5], [0.9]], [[0.6], [1.0]]]), Mean([[[0.4], [0.8]], [[0.5], [0.9]]])
    >>> gain = bootstrap_interval(Together((trained, begun)), of=lambda values: values[:, 0] - values[:, 1])
    >>> round(float(gain.low), 3), round(float(gain.high), 3)
    (0.1, 0.1)
    """

    statistics: tuple[Statistic, ...]

    @property
    def run(self) -> NDArray[np.int64]:
        return self.statistics[0].run

    @property
    def num_scenes(self) -> int:
        return self.statistics[0].num_scenes

    def __call__(self, rows: NDArray[np.float64], scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([statistic(rows, scenes) for statistic in self.statistics], axis=1)


@dataclass(frozen=True)
class Transformed:
    """What a function [R, T] -> [R, T'] makes of a statistic.

    >>> area = Transformed(Mean([[[0.0, 1.0]], [[0.5, 0.5]]]), lambda curves: area_under_curve(curves)[:, None])
    >>> bootstrap_interval(area).value.tolist()
    [0.5]
    """

    statistic: Statistic
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    @property
    def run(self) -> NDArray[np.int64]:
        return self.statistic.run

    @property
    def num_scenes(self) -> int:
        return self.statistic.num_scenes

    def __call__(self, rows: NDArray[np.float64], scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.function(self.statistic(rows, scenes))


class OverRuns:
    """The interquartile mean over runs of a number of each: rliable's aggregate, of one task.

    `runs` are statistics of one run each, all on the same scenes.

    >>> seeds = OverRuns([Mean([[[score]]]) for score in (0.1, 0.5, 0.6, 0.7, 0.9)])
    >>> round(float(bootstrap_interval(seeds).value[0]), 3)
    0.6
    """

    def __init__(self, runs: Sequence[Statistic]) -> None:
        if not runs or any(len(one.run) != 1 for one in runs):
            raise ValueError(f"runs must be statistics of one run each, got {[len(one.run) for one in runs]} runs")
        self._runs, self.run, self.num_scenes = tuple(runs), np.arange(len(runs)), runs[0].num_scenes

    def of_runs(self, scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Multiplicities [R, N] -> [R, S, T]"""
        alone = np.ones((len(scenes), 1))
        return np.stack([one(alone, scenes) for one in self._runs], axis=1)

    def __call__(self, rows: NDArray[np.float64], scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        values = self.of_runs(scenes)
        order = np.argsort(values, axis=1, kind="stable")
        weights = np.take_along_axis(np.broadcast_to(rows[:, :, None], values.shape), order, axis=1)
        total = rows.sum(axis=1)[:, None, None]
        cut = total // 4
        within = np.clip(weights.cumsum(axis=1), cut, total - cut)  # as in InterquartileMean
        places = np.diff(within, axis=1, prepend=cut)
        return (places * np.take_along_axis(values, order, axis=1)).sum(axis=1) / places.sum(axis=1)


def _over_rows(rows: NDArray[np.float64], of_rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiplicities [R, S] and values [R, S, T] -> their mean [R, T]."""
    return np.einsum("rs,rst->rt", rows, of_rows) / rows.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Estimate:
    """A statistic and its percentile interval: arrays of one shape."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def to_json(self) -> dict[str, list[float]]:
        """{"value", "low", "high"} with all numbers."""
        return {name: getattr(self, name).tolist() for name in ("value", "low", "high")}

    def at(self, place: int) -> dict[str, float]:
        """{"value", "low", "high"} of one of the numbers: for a curve over glimpses, -1 is after the last."""
        return {name: float(getattr(self, name)[place]) for name in ("value", "low", "high")}


def bootstrap_interval(
    *statistics: Statistic,
    of: Callable[..., NDArray[np.float64]] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The interval of a policy's statistic, or of a function `of` of several policies' statistics on the same scenes.

    `of` is given one array [R, T] per statistic and returns [R, ...]:

    >>> wide, narrow = Mean([[[0.0], [1.0]]]), Mean([[[0.4], [0.6]]])
    >>> area = bootstrap_interval(wide, of=area_under_curve)
    >>> difference = bootstrap_interval(wide, narrow, of=np.subtract)
    >>> float(difference.value[0]), float(difference.low[0]), float(difference.high[0])
    (0.0, -0.4, 0.4)

    Raises:
        ValueError: policies on different numbers of scenes, or a bad confidence or number of resamples.
    """
    if of is None and len(statistics) != 1:
        raise ValueError(f"with {len(statistics)} statistics pass a function of them, such as of=np.subtract")
    function = of or (lambda values: values)

    def compute(scenes: NDArray[np.float64], rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return function(*(statistic(r, scenes) for statistic, r in zip(statistics, rows, strict=True)))

    return _bootstrap(compute, statistics, resamples=resamples, confidence=confidence, seed=seed)


def paired_difference(
    one: Statistic,
    other: Statistic,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """[T] the difference one - other, on the same resampled scenes."""
    return bootstrap_interval(one, other, of=np.subtract, resamples=resamples, confidence=confidence, seed=seed)


def improvement_interval(
    one: ArrayLike,
    other: ArrayLike,
    *,
    runs: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """[T] probability of improvement of scores [S, N, T] over scores [S', N, T]: see probability_of_improvement."""
    statistics = Mean(one, run=runs[0]), Mean(other, run=runs[1])
    pairs = _pairs(np.asarray(one), np.asarray(other))  # [S, S', N, T]

    def compute(scenes: NDArray[np.float64], rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        of_pairs = np.einsum("rn,ijnt->rijt", scenes, pairs, optimize=True) / scenes.sum(axis=1)[:, None, None, None]
        mine, theirs = (r / r.sum(axis=1, keepdims=True) for r in rows)
        return np.einsum("ri,rj,rijt->rt", mine, theirs, of_pairs, optimize=True)

    return _bootstrap(compute, statistics, resamples=resamples, confidence=confidence, seed=seed)


def run_improvement_interval(
    one: OverRuns, other: OverRuns, *, resamples: int = RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """[T] the probability that a run of `one` is better than a run of `other` on the same scenes, ties counted half.

    >>> one, other = (OverRuns([Mean([[[score]]]) for score in scores]) for scores in ((0.4, 0.6), (0.5, 0.3)))
    >>> float(run_improvement_interval(one, other).value[0])
    0.75
    """

    def compute(scenes: NDArray[np.float64], rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        mine, theirs = (statistic.of_runs(scenes) for statistic in (one, other))  # [R, S, T], [R, S', T]
        pairs = _pairs(np.moveaxis(mine, 0, 1), np.moveaxis(theirs, 0, 1))  # [S, S', R, T]
        weights = [r / r.sum(axis=1, keepdims=True) for r in rows]
        return np.einsum("ri,rj,ijrt->rt", *weights, pairs, optimize=True)

    return _bootstrap(compute, (one, other), resamples=resamples, confidence=confidence, seed=seed)


def _bootstrap(
    compute: Callable[[NDArray[np.float64], Sequence[NDArray[np.float64]]], NDArray[np.float64]],
    statistics: Sequence[Statistic],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Estimate:
    if resamples < 2 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be >= 2 and confidence in (0, 1), got {resamples} and {confidence}")
    numbers = {statistic.num_scenes for statistic in statistics}
    if len(numbers) != 1:
        raise ValueError(
            f"all must be on the same scenes, got {sorted(numbers)} of them; evaluate them with one num_scenes"
        )
    (num_scenes,) = numbers
    observed = compute(np.ones((1, num_scenes)), [np.ones((1, len(s.run))) for s in statistics])[0]
    scene_draws = multiplicities(num_scenes, resamples=resamples, seed=(seed, 0))
    run_draws = [
        multiplicities(int(s.run.max()) + 1, resamples=resamples, seed=(seed, 1 + i)) for i, s in enumerate(statistics)
    ]
    values = np.concatenate(
        [
            compute(scenes, [drawn[:, s.run] for drawn, s in zip(runs, statistics, strict=True)])
            for scenes, *runs in zip(scene_draws, *run_draws, strict=True)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return Estimate(value=np.asarray(observed), low=low, high=high)


def multiplicities(num: int, *, resamples: int, seed: int | Sequence[int]) -> Iterator[NDArray[np.float64]]:
    """Chunks [r, num] of `resamples` rows: how often each of `num` things is among num draws with replacement."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        drawn = rng.integers(num, size=(size, num)) + num * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num).reshape(size, num).astype(np.float64)
