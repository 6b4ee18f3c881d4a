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
from canvit_gym.statistics import Mean, Statistic, Transformed, area_under_curve
from canvit_gym.stopping import stopped_return


@dataclass(frozen=True)
class Payoff:
    """One number of evaluations, for any resampling of scenes and runs."""

    name: str
    """In words, to go beside the metric's name."""
    statistic: Callable[[Sequence[Evaluation]], Statistic]
    """Runs on the same scenes -> their mean payoff, [R, 1]."""
    of_curve: Callable[[NDArray[np.floating]], float]
    """A curve [budget] over glimpses -> its worth if no episode stops early."""

    def value(self, found: Evaluation) -> float:
        """The payoff of one evaluation."""
        one = self.statistic([found])
        return float(one(np.ones((1, 1)), np.ones((1, one.num_scenes)))[0, 0])


def payoff_of(env: EnvConfig) -> Payoff:
    """The payoff of an environment of this configuration."""
    if env.allow_stop:
        returns = partial(_stopped, price=env.glimpse_cost)
        return Payoff(
            f"score where the episode stops, minus {env.glimpse_cost:g} a glimpse",
            lambda runs: Mean(np.stack([returns(one) for one in runs])[..., None]),
            _last,
        )
    if not env.revisit:
        return Payoff(
            "area under the score's curve",
            lambda runs: Transformed(score_statistic(runs), lambda curves: area_under_curve(curves)[:, None]),
            lambda curve: float(area_under_curve(curve)),
        )
    return Payoff("score after the last glimpse", _last_score, _last)


def _last(curve: NDArray[np.floating]) -> float:
    return float(curve[-1])


def _last_score(runs: Sequence[Evaluation]) -> Statistic:
    """The score after the last glimpse alone: earlier scores need not be resampled."""
    return score_statistic([replace(one, counts={k: v[:, -1:] for k, v in one.counts.items()}) for one in runs])


def _stopped(one: Evaluation, *, price: float) -> NDArray[np.float64]:
    assert one.stops is not None, "recorded where episodes can be stopped"
    return stopped_return(one.scene_score(), one.stops, price)


def glimpses_taken(runs: Sequence[Evaluation]) -> float:
    """The number of glimpses taken, averaged over scenes and runs."""
    return float(np.mean([one.loss.shape[1] if one.stops is None else one.stops.mean() for one in runs]))
