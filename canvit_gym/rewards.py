"""Rewards, computed from one potential of the task before and after a glimpse.

Most are differences of the potential, so that an episode's undiscounted return is its final value minus its first.
`REWARDS` lists all of them. To add a reward on an existing potential, add an entry. A new potential is a method of a
task (canvit_gym.tasks.task).

`glimpse_cost` is subtracted once for every glimpse that the agent takes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RELATIVE_LOSS_FLOOR = 0.05
"""Nats. Without a floor, relative changes of a loss close to 0 have no bound."""


@dataclass(frozen=True)
class Paid:
    """What a step did in N environments: the arguments of a reward's formula. Arrays broadcast to one shape."""

    before: NDArray[np.floating]  # the potential before the step
    after: NDArray[np.floating]
    ended: NDArray[np.bool_]  # whether the episode ends with this step
    glimpses: NDArray[np.int64]  # number taken so far, with this step's
    stopped: NDArray[np.bool_]  # whether the agent stopped, without a glimpse
    budget: int


@dataclass(frozen=True)
class Reward:
    """A choice of `reward=`."""

    potential: str
    """Name of the potential that it is computed from (Task.potentials)."""
    formula: Callable[[Paid], NDArray[np.floating]]
    doc: str
    """The reward of a glimpse in words, with the potential's symbol in braces."""


def _area(step: Paid) -> NDArray[np.floating]:
    """The trapezoid that a glimpse adds to the area under the curve over glimpses 1 to budget; a stop adds the rest."""
    spans = max(step.budget - 1, 1)
    if step.budget == 1:  # a curve of one glimpse: its value
        return np.where(step.glimpses > 0, step.after, 0)
    added = np.where(step.stopped | (step.glimpses < 2), 0, (step.before + step.after) / 2)
    rest = np.where(step.ended, step.budget - step.glimpses, 0) * step.after
    return np.where(step.glimpses > 0, added + rest, 0) / spans


REWARDS: dict[str, Reward] = {
    "loss_reduction": Reward("loss", lambda step: step.before - step.after, "{L} before minus {L} after"),
    "relative_loss_reduction": Reward(
        "loss",
        lambda step: (step.before - step.after) / np.maximum(step.before, RELATIVE_LOSS_FLOOR),
        f"{{L}} before minus {{L}} after, divided by {{L}} before (at least {RELATIVE_LOSS_FLOOR})",
    ),
    "score_gain": Reward("score", lambda step: step.after - step.before, "{S} after minus {S} before"),
    "soft_score_gain": Reward("soft_score", lambda step: step.after - step.before, "{P} after minus {P} before"),
    "final_score": Reward(
        "score", lambda step: np.where(step.ended, step.after, 0), "{S} at the end of the episode, 0 before"
    ),
    "score_area": Reward(
        "score",
        _area,
        "the mean of {S} before and after, divided by (budget - 1); a stop pays {S} for all remaining glimpses at "
        "once. The return is the area under the curve of {S} over glimpses, on the scale of {S}",
    ),
}
"""Name -> reward. A soft score measures what the score counts but is smooth like the loss. Unlike the loss it is
bounded, so that a single scene that is read wrongly with confidence does not outweigh many others."""


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

    ended, stopped: nowhere by default. glimpses: number taken after the step; by default the budget.

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
