"""Compute every number of a benchmark's report from its records, with 95% bootstrap intervals.

Scores are data-set mIoU or top-1, shares in [0, 1], averaged over a policy's runs; cross-entropies are in nats.
canvit_gym.statistics describes how runs and scenes are resampled: with the same scenes for every policy, so that
differences and shares are paired.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvit_gym.benchmark.records import Benchmark, Entry
from canvit_gym.evaluation import Evaluation, loss_statistic, require_same_scenes, score_statistic
from canvit_gym.statistics import (
    RESAMPLES,
    InterquartileMean,
    Mean,
    Statistic,
    area_under_curve,
    bootstrap_interval,
    improvement_interval,
)

MIN_LEARNED_RUNS = 3
_ROUNDING = 1e-9
"""A smaller lead is none: equal scores may differ by this much, depending on the order in which they are added up."""

Draws = NDArray[np.float64]  # [R, ...]


def per_scene(evaluation: Evaluation) -> NDArray[np.float64]:
    """[N, T] how well each scene is read, more is better.

    The metric's SceneMeasure chooses the scene's score, or minus its loss if scores are only right or wrong.
    """
    if evaluation.measure.scene_measure.of == "score":
        return evaluation.scene_score()
    return -evaluation.loss.astype(np.float64)


def _scene_measure(evaluation: Evaluation) -> str:
    """The name of the number in `per_scene`."""
    measure = evaluation.measure.scene_measure
    return measure.name if measure.of == "score" else f"minus {measure.name}"


def last(curve: Draws) -> Draws:
    """[R, T] -> [R]"""
    return curve[:, -1]


def _estimates(*statistics: Statistic, **named: Callable[..., Draws]) -> dict[str, Any]:
    """Name -> {"value", "interval"} of a function [R, T], ... -> [R] or [R, T] of the statistics."""
    shapes: dict[str, tuple[int, ...]] = {}

    def together(*curves: Draws) -> Draws:
        columns = []
        for name, function in named.items():
            values = function(*curves)
            shapes[name] = values.shape[1:]
            columns.append(values.reshape(len(values), -1))
        return np.concatenate(columns, axis=1)

    found = bootstrap_interval(*statistics, of=together)
    edges = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
    parts = [np.split(values, edges) for values in (found.value, found.low, found.high)]
    return {
        name: {
            "value": _plain(value.reshape(shapes[name])),
            "interval": [_plain(bound.reshape(shapes[name])) for bound in (low, high)],
        }
        for name, value, low, high in zip(named, *parts, strict=True)
    }


def _plain(values: NDArray[Any]) -> Any:
    """Nested lists rounded to six significant digits, more than a resampled interval has."""
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(values).tolist()


class _Observed:
    """One policy's observations on the scenes with the indices `scenes`, one row per evaluation."""

    def __init__(self, entry: Entry, scenes: NDArray[np.integer]) -> None:
        self.entry = entry
        evaluations = [e.on(scenes) for run in entry.runs for e in run.evaluations]
        self.run = [i for i, run in enumerate(entry.runs) for _ in run.evaluations]
        self.score = score_statistic(evaluations, run=self.run)
        self.loss = loss_statistic(evaluations, run=self.run)
        self.per_scene = np.stack([per_scene(e)[:, -1:] for e in evaluations])  # [S, N, 1]
        measure = evaluations[0].measure
        self.shares = {
            name: Mean(np.stack([measure.scene_share(name, e.counts) for e in evaluations]), run=self.run)
            for name in measure.shares
        }


def require_paired(benchmark: Benchmark) -> None:
    """
    Raises:
        ValueError: policies or people whose scenes are others than those that the reference has at the same indices,
            so that they cannot be compared scene by scene.
    """
    reference = benchmark.reference.first
    for entry in (*benchmark.entries, *benchmark.people):
        both = entry.first.scene[np.isin(entry.first.scene, reference.scene)]
        try:
            require_same_scenes([reference.on(both), entry.first.on(both)])
        except ValueError as error:
            raise ValueError(
                f"{entry.label} cannot be compared with {benchmark.reference.label}: {error}. Make its record anew."
            ) from error


def compare(benchmark: Benchmark) -> dict[str, Any]:
    """All numbers as JSON values: `policies` by label, in the benchmark's order, and `oracle`.

    Raises:
        ValueError: entries on different scenes.
    """
    require_paired(benchmark)

    @cache
    def observed(label: str) -> _Observed:
        return _Observed(next(e for e in benchmark.entries if e.label == label), reference.first.scene)

    reference = benchmark.reference
    whole = [entry for entry in benchmark.entries if entry.has(reference.first.scene)]
    policies: dict[str, Any] = {entry.label: _described(entry) for entry in benchmark.entries}
    for entry in whole:
        policies[entry.label] |= _alone(observed(entry.label))
        if entry is not reference:
            policies[entry.label]["minus_reference"] = _difference(observed(entry.label), observed(reference.label))
    fixed = next((entry for entry in whole if entry.spec.partition("(")[0] == "best_fixed_sequence"), None)
    for entry in whole:
        if entry.learned and fixed is not None:
            policies[entry.label]["minus_fixed"] = _difference(
                observed(entry.label), observed(fixed.label), improvement=False
            )
    opponents = [entry.label for entry in whole if not entry.uses_labels]
    best = max(opponents, key=lambda label: policies[label]["score"]["value"][-1])
    for label in opponents:
        if label != best:
            policies[label]["minus_best"] = _difference(observed(label), observed(best), improvement=False)
    return {
        "metric": benchmark.metric,
        "per_scene_measure": _scene_measure(benchmark.reference.first),
        "num_scenes": benchmark.num_scenes,
        "budget": benchmark.budget,
        "reference": reference.label,
        "best": best,
        "fixed": fixed.label if fixed else None,
        "resamples": RESAMPLES,
        "policies": policies,
        "oracle": _headroom(benchmark),
        "people": [_people(benchmark, entry) for entry in benchmark.people],
    }


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "spec": entry.spec,
        "description": entry.description,
        "deterministic": entry.deterministic,
        "uses_labels": entry.uses_labels,
        "learned": entry.learned,
        "num_runs": len(entry.runs),
        "num_evaluations": entry.num_evaluations,
        "num_scenes": entry.num_scenes,
        "scales": entry.scales,
        "gflops": np.asarray(entry.first.gflops, dtype=np.float64).tolist(),
    }


def _same(curve: Draws) -> Draws:
    return curve


def _alone(observed: _Observed) -> dict[str, Any]:
    score = _estimates(observed.score, curve=_same, area=area_under_curve)
    loss = _estimates(observed.loss, curve=_same, area=area_under_curve)
    middle = InterquartileMean(observed.per_scene, run=observed.run)
    numbers = {
        "score": score["curve"],
        "score_area": score["area"],
        "cross_entropy": loss["curve"],
        "cross_entropy_area": loss["area"],
        "interquartile_mean": _estimates(middle, value=last)["value"],
        "score_of_each_run": [
            float(np.mean([e.score()[-1] for e in run.evaluations])) for run in observed.entry.runs
        ],
    }  # fmt: skip
    for name, share in observed.shares.items():
        numbers[name] = _estimates(share, curve=_same)["curve"]
    return numbers


def _difference(one: _Observed, other: _Observed, *, improvement: bool = True) -> dict[str, Any]:
    """one - other: curves, areas, and the probability that one reads a scene better after all glimpses."""

    def area(a: Draws, b: Draws) -> Draws:
        return area_under_curve(a - b)

    score = _estimates(one.score, other.score, curve=np.subtract, area=area)
    loss = _estimates(one.loss, other.loss, curve=np.subtract, area=area)
    numbers = {
        "score": score["curve"],
        "score_area": score["area"],
        "cross_entropy": loss["curve"],
        "cross_entropy_area": loss["area"],
    }
    if improvement:
        found = improvement_interval(one.per_scene, other.per_scene, runs=(one.run, other.run))
        numbers["probability_of_improvement"] = {
            "value": _plain(found.value[0]),
            "interval": [_plain(found.low[0]), _plain(found.high[0])],
        }
    return numbers


def _headroom(benchmark: Benchmark) -> dict[str, Any] | None:
    """(policy - C2F) / (oracle - C2F), on the oracle's scenes. None if one of the two is not in the benchmark.

    A share is None if the oracle is not clearly ahead of C2F, or if it is not ahead in some resample.
    """
    named = {entry.spec.partition("(")[0]: entry for entry in reversed(benchmark.entries) if not entry.learned}
    oracle_entry, baseline_entry = named.get("greedy_oracle"), named.get("coarse_to_fine")
    if oracle_entry is None or baseline_entry is None:
        return None
    scenes = oracle_entry.first.scene
    oracle, baseline = _Observed(oracle_entry, scenes), _Observed(baseline_entry, scenes)
    lead = {
        "score": _estimates(oracle.score, baseline.score, last=_last_difference)["last"],
        "cross_entropy": _estimates(oracle.loss, baseline.loss, last=_last_difference)["last"],
    }
    policies: dict[str, Any] = {}
    for entry in benchmark.entries:
        observed = _Observed(entry, scenes)
        numbers: dict[str, Any] = {
            "score": _estimates(observed.score, curve=_same)["curve"],
            "cross_entropy": _estimates(observed.loss, curve=_same)["curve"],
        }
        if entry not in (oracle_entry, baseline_entry):
            for name, curves in (
                ("score", (observed.score, baseline.score, oracle.score)),
                ("cross_entropy", (observed.loss, baseline.loss, oracle.loss)),
            ):
                numbers[f"share_{name}"] = _share(lead[name], *curves, higher_is_better=name == "score")
        policies[entry.label] = numbers
    return {
        "label": oracle_entry.label,
        "baseline": baseline_entry.label,
        "num_scenes": len(scenes),
        "lead": lead,
        "policies": policies,
    }


def _people(benchmark: Benchmark, people: Entry) -> dict[str, Any]:
    """People, and every policy that was evaluated on their scenes, on these scenes."""
    scenes = people.first.scene
    seen = _Observed(people, scenes)
    policies: dict[str, Any] = {}
    for entry in benchmark.entries:
        if not entry.has(scenes):
            continue
        observed = _Observed(entry, scenes)
        policies[entry.label] = {
            "score": _estimates(observed.score, curve=_same)["curve"],
            "cross_entropy": _estimates(observed.loss, curve=_same)["curve"],
            "people_minus": _difference(seen, observed),
        }
    return {
        "label": people.label,
        "num_scenes": len(scenes),
        "score": _estimates(seen.score, curve=_same)["curve"],
        "cross_entropy": _estimates(seen.loss, curve=_same)["curve"],
        "policies": policies,
    }


def _last_difference(one: Draws, other: Draws) -> Draws:
    return last(one - other)


def share_of_lead(policy: Draws, baseline: Draws, ceiling: Draws, *, higher_is_better: bool = True) -> Draws:
    """(policy - baseline) / (ceiling - baseline); NaN where the ceiling is not better than the baseline.

    Behind the baseline there is no way to the ceiling to have a share of: the ratio would be of the wrong sign.

    >>> score = np.array([0.5, 0.5, 0.5])  # in three resamples
    >>> share_of_lead(score, np.array([0.4, 0.4, 0.6]), np.array([0.8, 0.4, 0.4])).round(2).tolist()
    [0.25, nan, nan]
    """
    return ratio_of_leads(policy - baseline, ceiling - baseline, higher_is_better=higher_is_better)


def ratio_of_leads(lead: Draws, whole: Draws, *, higher_is_better: bool = True) -> Draws:
    """lead / whole; NaN where `whole` is no lead, which is above 0, or below it where lower is better."""
    is_lead = whole > _ROUNDING if higher_is_better else whole < -_ROUNDING
    return np.divide(lead, whole, out=np.full_like(whole, np.nan), where=is_lead)


def clearly_ahead(low: float, high: float, *, higher_is_better: bool) -> bool:
    """Whether a lead's interval, on the better side of zero, keeps away from it, by a fifth of its far end: a share of
    anything else could be any number.
    """
    near, far = (low, high) if higher_is_better else (-high, -low)
    return near > 0.2 * far


def _share(lead: dict[str, Any], *curves: Statistic, higher_is_better: bool) -> dict[str, Any] | None:
    """Of the ceiling's lead; None if it is not clear, or if the ceiling does not lead in some resample."""
    low, high = lead["interval"]
    if not clearly_ahead(low, high, higher_is_better=higher_is_better):
        return None

    def last_share(*draws: Draws) -> Draws:
        return last(share_of_lead(*draws, higher_is_better=higher_is_better))

    share = _estimates(*curves, share=last_share)["share"]
    return share if np.isfinite([share["value"], *share["interval"]]).all() else None


def trained_policies(entries: tuple[Entry, ...]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(labels, training runs) of learned policies, those that only differ in how they are used together."""
    labels: dict[tuple[str, ...], list[str]] = {}
    trainings: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        if entry.learned:
            of_entry = [run.training for run in entry.runs if run.training is not None]
            weights = tuple(training["weights_sha256"] for training in of_entry)
            labels.setdefault(weights, []).append(entry.label)
            trainings[weights] = of_entry
    return [(" / ".join(labels[weights]), trainings[weights]) for weights in labels]


def decisions_of(training: dict[str, Any]) -> int | None:
    """The number of decisions a training run's policy learned from, if its record says so."""
    return training.get("training", {}).get("num_timesteps")


def run_warnings(entries: tuple[Entry, ...]) -> list[str]:
    """Warnings about learned policies: too few training runs, and runs that kept their initial policy."""
    policies = trained_policies(entries)
    too_few = [
        f"{label}: {len(runs)} training run{'s' * (len(runs) > 1)}. Fewer than {MIN_LEARNED_RUNS} say little about how "
        f"the method does on average; the intervals hold for {'this run' if len(runs) == 1 else 'these runs'}, not for "
        "the method."
        for label, runs in policies
        if len(runs) < MIN_LEARNED_RUNS
    ]
    untrained = [
        f"{label}: {count} of {len(runs)} training runs kept their warm start, because no later policy was better on "
        "validation scenes."
        for label, runs in policies
        if (count := sum(decisions_of(run) == 0 for run in runs))
    ]
    return too_few + untrained
