"""Rewards: differences of a potential, so that an episode's undiscounted return is final minus first.

(Those of `relative_loss_reduction` are shares of what is left instead, and `final_score` pays once, at the end.)

With score S (mIoU or accuracy), soft score P (the same of probabilities instead of decisions: soft IoU, or the
probability of the true class) and loss L (cross-entropy, nats) before (t) and after (t + 1) a glimpse:

| name | reward |
| --- | --- |
| `score_gain` | S_{t+1} - S_t |
| `soft_score_gain` | P_{t+1} - P_t |
| `loss_reduction` | L_t - L_{t+1} |
| `relative_loss_reduction` | (L_t - L_{t+1}) / max(L_t, 0.05) |
| `final_score` | S at the end of the episode, 0 before |

A soft score pays for what the score counts and is smooth like the loss; unlike a loss it is bounded, so that no scene
read wrongly with confidence outweighs many others.

`glimpse_cost` is subtracted once per glimpse the agent takes.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Reward = Literal["loss_reduction", "relative_loss_reduction", "score_gain", "soft_score_gain", "final_score"]

RELATIVE_LOSS_FLOOR = 0.05
"""Nats. A scene that is all but solved would otherwise pay or cost any number of times its loss."""


def uses_score(reward: Reward) -> bool:
    return reward in ("score_gain", "final_score")


def uses_soft_score(reward: Reward) -> bool:
    return reward == "soft_score_gain"


def check_reward(reward: str, glimpse_cost: float) -> None:
    """Raise ValueError for an unknown reward or a cost that is no finite number >= 0."""
    if reward not in get_args(Reward):
        raise ValueError(f"unknown reward {reward!r}; choose one of {', '.join(get_args(Reward))}")
    if not 0 <= glimpse_cost < float("inf"):
        raise ValueError(f"glimpse_cost must be a finite number >= 0, got {glimpse_cost}")


def potential_reward(
    reward: Reward,
    *,
    loss: tuple[NDArray[np.float32], NDArray[np.float32]],
    score: tuple[NDArray[np.float32], NDArray[np.float32]],
    soft_score: tuple[NDArray[np.float32], NDArray[np.float32]],
    ended: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """[N] rewards from (before, after) pairs of potentials. Scores may be NaN where the reward has no use for them.

    >>> loss, score = (np.array([2.0]), np.array([1.5])), (np.array([0.25]), np.array([0.5]))
    >>> soft_score, ended = (np.array([0.25]), np.array([0.375])), np.array([True])
    >>> for reward in get_args(Reward):
    ...     print(reward, potential_reward(reward, loss=loss, score=score, soft_score=soft_score, ended=ended))
    loss_reduction [0.5]
    relative_loss_reduction [0.25]
    score_gain [0.25]
    soft_score_gain [0.125]
    final_score [0.5]
    """
    (loss_before, loss_after), (score_before, score_after) = loss, score
    match reward:
        case "loss_reduction":
            value = loss_before - loss_after
        case "relative_loss_reduction":
            value = (loss_before - loss_after) / np.maximum(loss_before, RELATIVE_LOSS_FLOOR)
        case "score_gain":
            value = score_after - score_before
        case "soft_score_gain":
            value = soft_score[1] - soft_score[0]
        case "final_score":
            value = np.where(ended, score_after, 0)
    return value.astype(np.float64)
