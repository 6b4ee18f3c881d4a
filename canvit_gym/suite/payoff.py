"""The payoff of an environment of the suite: one number of an evaluation.

The score after the last glimpse; if only the order matters (revisit=False), the area under the score's curve; if
glimpses have a price (allow_stop=True), the score when episodes stop minus the price of the glimpses taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, score_statistic
from canvit_gym.statistics import Mean, Statistic, area_under_curve
from canvit_gym.stopping import stopped_return


@dataclass(frozen=True)
class Payoff:
    """One number of evaluations, for any resampling of scenes and runs."""

    name: str
    """In words, to go beside the metric's name."""
    statistic: Callable[[Sequence[Evaluation]], Statistic]
    """Runs on the same scenes -> their mean payoff, [R, 1]."""


@dataclass(frozen=True)
class _OfCurve:
    """A number of a statistic's curve over glimpses."""

    curve: Statistic
    of: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """[R, T] -> [R]"""

    @property
    def run(self) -> NDArray[np.int64]:
        return self.curve.run

    @property
    def num_scenes(self) -> int:
        return self.curve.num_scenes

    def __call__(self, rows: NDArray[np.float64], scenes: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.of(self.curve(rows, scenes))[:, None]


def payoff_of(env: EnvConfig) -> Payoff:
    """The payoff of an environment of this configuration."""
    if env.allow_stop:
        returns = partial(_stopped, price=env.glimpse_cost)
        return Payoff(
            f"score where the episode stops, minus {env.glimpse_cost:g} a glimpse",
            lambda runs: Mean(np.stack([returns(one) for one in runs])[..., None]),
        )
    if not env.revisit:
        return Payoff("area under the score's curve", lambda runs: _OfCurve(score_statistic(runs), area_under_curve))
    return Payoff("score after the last glimpse", _last_score)


def _last_score(runs: Sequence[Evaluation]) -> Statistic:
    """The score after the last glimpse alone: earlier scores need not be resampled."""
    return score_statistic([replace(one, counts={k: v[:, -1:] for k, v in one.counts.items()}) for one in runs])


def _stopped(one: Evaluation, *, price: float) -> NDArray[np.float64]:
    assert one.stops is not None, "recorded where episodes can be stopped"
    return stopped_return(one.scene_score(), one.stops, price)


def glimpses_taken(runs: Sequence[Evaluation]) -> float:
    """The number of glimpses taken, averaged over scenes and runs."""
    return float(np.mean([one.loss.shape[1] if one.stops is None else one.stops.mean() for one in runs]))
