"""The payoff of an environment of the suite: one number of an evaluation.

The score after the last glimpse; if it pays to know more early (as in FashionOrder-v0), the area under the score's
curve; if glimpses have a price (allow_stop=True), the score when episodes stop minus the price of the glimpses taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, require_same_scenes
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.statistics import Mean, Statistic, Transformed, area_under_curve
from canvit_gym.stopping import stopped_return
from canvit_gym.tasks import metric_named
from canvit_gym.tasks.metric import Counts, Metric


@dataclass(frozen=True)
class Payoff:
    """One number of evaluations, for any resampling of scenes and runs."""

    name: str
    """In words, to go beside the metric's name."""
    counts: Callable[[Evaluation], Counts]
    """An evaluation -> all that its payoff is computed from: arrays [N, ...] by name, a row per scene."""
    of_counts: Callable[[Metric, Counts], Statistic]
    """Counts of R runs on the same scenes, [R, N, ...] -> their mean payoff, [R, 1]."""
    of_curve: Callable[[NDArray[np.floating]], float]
    """A curve [budget] over glimpses -> its worth if no episode stops early."""

    def statistic(self, runs: Sequence[Evaluation]) -> Statistic:
        """The payoff of several runs on the same scenes, for canvit_gym.statistics.

        Raises:
            ValueError: the runs are on different scenes.
        """
        require_same_scenes(runs)
        return self.of_counts(metric_named(runs[0].metric), stacked([self.counts(one) for one in runs]))

    def value(self, found: Evaluation) -> float:
        """The payoff of one evaluation."""
        one = self.statistic([found])
        return float(one(np.ones((1, 1)), np.ones((1, one.num_scenes)))[0, 0])


def payoff_of(env: EnvConfig) -> Payoff:
    """The payoff of an environment of this configuration."""
    if env.allow_stop:
        price = env.glimpse_cost
        return Payoff(
            f"score where the episode stops, minus {price:g} a glimpse",
            counts=lambda one: {"return": _stopped(one, price)},
            of_counts=lambda _, counts: Mean(counts["return"][..., None]),
            of_curve=_last,
        )
    skill = DATASETS[env.dataset].skill
    if skill is not None and skill.early_counts:
        return Payoff(
            "area under the score's curve",
            counts=lambda one: one.counts,
            of_counts=lambda metric, counts: Transformed(
                metric.statistic(counts), lambda curves: area_under_curve(curves)[:, None]
            ),
            of_curve=lambda curve: float(area_under_curve(curve)),
        )
    return Payoff(
        "score after the last glimpse",
        counts=lambda one: {name: array[:, -1:] for name, array in one.counts.items()},
        of_counts=lambda metric, counts: metric.statistic(counts),
        of_curve=_last,
    )


def stacked(runs: Sequence[Counts]) -> Counts:
    """Counts [N, ...] of each run -> of all runs, [R, N, ...]."""
    return {name: np.stack([one[name] for one in runs]) for name in runs[0]}


def _last(curve: NDArray[np.floating]) -> float:
    return float(curve[-1])


def _stopped(one: Evaluation, price: float) -> NDArray[np.float64]:
    """[N]"""
    assert one.stops is not None, "recorded where episodes can be stopped"
    return stopped_return(one.scene_score(), one.stops, price)


def glimpses_taken(runs: Sequence[Evaluation]) -> float:
    """The number of glimpses taken, averaged over scenes and runs."""
    return float(np.mean([one.loss.shape[1] if one.stops is None else one.stops.mean() for one in runs]))
