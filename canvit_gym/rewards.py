"""Rewards: what a glimpse pays, from one potential of the task before and after it.

Most are differences, so that an episode's undiscounted return is final minus first. `REWARDS` has them all; a reward
on a potential that exists is one more entry, and a new potential is a method of a task (canvit_gym.tasks.task).

`glimpse_cost` is subtracted once per glimpse the agent takes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RELATIVE_LOSS_FLOOR = 0.05
"""Nats. A scene that is all but solved would otherwise pay or cost any number of times its loss."""


@dataclass(frozen=True)
class Paid:
    """What a step has done in N environments: the arguments of a reward's formula. Arrays broadcast to one shape."""

    before: NDArray[np.floating]  # the potential before the step
    after: NDArray[np.floating]
    ended: NDArray[np.bool_]  # whether the episode ends with this step
    glimpses: NDArray[np.int64]  # taken, after the step
    stopped: NDArray[np.bool_]  # whether the agent stopped, without a glimpse
    budget: int


@dataclass(frozen=True)
class Reward:
    """One choice of `reward=`."""

    potential: str
    """Name of the potential that it is computed from; the task measures it (Task.potentials)."""
    formula: Callable[[Paid], NDArray[np.floating]]
    doc: str
    """Per glimpse, with the potential's symbol in braces."""


def _area(step: Paid) -> NDArray[np.floating]:
    """The trapezoid that a glimpse adds to the area under the curve over glimpses 1 to budget; a stop adds the rest."""
    spans = max(step.budget - 1, 1)
    if step.budget == 1:  # a curve of one glimpse: its value
        return step.after * np.ones_like(step.glimpses)
    added = np.where(step.stopped | (step.glimpses < 2), 0, (step.before + step.after) / 2)
    rest = np.where(step.ended, step.budget - step.glimpses, 0) * step.after
    return np.where(step.glimpses > 0, added + rest, 0) / spans


REWARDS: dict[str, Reward] = {
    "loss_reduction": Reward("loss", lambda step: step.before - step.after, "{L} before minus {L} after"),
    "relative_loss_reduction": Reward(
        "loss",
        lambda step: (step.before - step.after) / np.maximum(step.before, RELATIVE_LOSS_FLOOR),
        f"the same, divided by {{L}} before (at least {RELATIVE_LOSS_FLOOR})",
    ),
    "score_gain": Reward("score", lambda step: step.after - step.before, "{S} after minus {S} before"),
    "soft_score_gain": Reward("soft_score", lambda step: step.after - step.before, "{P} after minus {P} before"),
    "final_score": Reward(
        "score", lambda step: np.where(step.ended, step.after, 0), "{S} at the end of the episode, 0 before"
    ),
    "score_area": Reward(
        "score",
        _area,
        "the mean of {S} before and after, divided by the budget less 1; what a stop leaves of the budget is paid at "
        "once. The return is the area under the curve of {S} over glimpses, on the scale of {S}",
    ),
}
"""Name -> reward. A soft score pays for what the score counts and is smooth like the loss; unlike a loss it is bounded,
so that no scene read wrongly with confidence outweighs many others."""


def step_reward(
    reward: str,
    before: NDArray[np.floating],
    after: NDArray[np.floating],
    *,
    ended: NDArray[np.bool_] | None = None,
    stopped: NDArray[np.bool_] | None = None,
    glimpses: NDArray[np.int64] | None = None,
    budget: int = 2,
) -> NDArray[np.float64]:
    """Rewards of one step, in the shape of `after`; without `glimpse_cost`.

    ended, stopped: default: nowhere. glimpses: taken, after the step; default: any but the first.

    >>> for name in REWARDS:
    ...     print(name, step_reward(name, np.array([0.5]), np.array([0.25]), ended=np.array([True])))
    loss_reduction [0.25]
    relative_loss_reduction [0.5]
    score_gain [-0.25]
    soft_score_gain [-0.25]
    final_score [0.25]
    score_area [0.375]
    """
    nowhere = np.zeros(after.shape, dtype=np.bool_)
    step = Paid(
        before=before,
        after=after,
        ended=nowhere if ended is None else ended,
        stopped=nowhere if stopped is None else stopped,
        glimpses=np.full(after.shape, budget) if glimpses is None else glimpses,
        budget=budget,
    )
    return np.asarray(REWARDS[reward].formula(step), dtype=np.float64)
