"""Goals: what a goal-conditioned task asks for, one integer per scene, which the agent observes as `goal`.

A goal is drawn with the scene, from the environment's own seeds, among those that the scene allows; or it is given by
`reset(options={"goal": ...})`. A given goal that the scene does not hold raises an error: there would be nothing to
find. A scene that holds none of the goals (such as your own image without labels) allows all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from canvit_gym.scenes.source import SceneBatch


class Goals(Protocol):
    """The goals 0, 1, ... of a task."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the observation `goal`, whose entries lie in [0, 1]."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The name of every goal in pictures and errors."""
        ...

    def available(self, scenes: SceneBatch) -> NDArray[np.bool_]:
        """[n, number of goals]: which goals each scene can be asked for."""
        ...

    def encode(self, goal: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n] -> [n, *shape]: what the agent observes."""
        ...


@dataclass(frozen=True)
class ClassGoals:
    """One goal per class that a label map may hold, one-hot in the observation. `background` is never a goal."""

    names: tuple[str, ...]
    background: int | None = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.names),)

    def available(self, scenes: SceneBatch) -> NDArray[np.bool_]:
        labels = scenes.labels.numpy().reshape(len(scenes.labels), -1)
        offset = np.arange(len(labels))[:, None] * 256
        held = np.bincount((labels + offset).ravel(), minlength=256 * len(labels)).reshape(len(labels), 256)
        present = held[:, : len(self.names)] > 0
        if self.background is not None:
            present[:, self.background] = False
        return present

    def encode(self, goal: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.eye(len(self.names), dtype=np.float32)[goal]


def choose_goals(available: NDArray[np.bool_], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] goals, each drawn evenly among those available [n, number of goals] by a uniform number in [0, 1).

    >>> choose_goals(np.array([[False, True, True], [False, False, False]]), np.array([0.6, 0.0])).tolist()
    [2, 0]
    """
    allowed = available | ~available.any(axis=1, keepdims=True)
    place = np.floor(uniform * allowed.sum(axis=1)).astype(np.int64)  # among the allowed, from 0
    return (allowed.cumsum(axis=1) > place[:, None]).argmax(axis=1)


def goal_uniforms(scene: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] numbers in [0, 1), a function of the scene's index alone: evaluations give every policy the same goals."""
    mixed = (scene.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def checked_goals(given: Any, *, num: int, goals: Goals) -> NDArray[np.int64]:
    """`options["goal"]` as [num] goals; raises ValueError unless it is one goal or num of them."""
    names = goals.names
    try:
        array = np.asarray(given)
    except ValueError:  # a ragged list
        array = np.zeros(0)
    right = np.issubdtype(array.dtype, np.integer) and array.shape in ((), (num,))
    if not right or ((array < 0) | (array >= len(names))).any():
        raise ValueError(
            f"options['goal'] must be one goal or {num} of them, whole numbers in [0, {len(names) - 1}] "
            f"({', '.join(f'{i}: {name}' for i, name in enumerate(names))}), got {given!r}"
        )
    return np.broadcast_to(array, (num,)).astype(np.int64)


def require_available(
    goal: NDArray[np.int64], available: NDArray[np.bool_], scene: NDArray[np.int64], names: Sequence[str]
) -> None:
    """Raise ValueError if a scene [n] holds some of the goals, but not its own."""
    allowed = available | ~available.any(axis=1, keepdims=True)
    if (wrong := np.flatnonzero(~allowed[np.arange(len(goal)), goal])).size:
        row = wrong[0]
        there = ", ".join(f"{i} ({names[i]})" for i in np.flatnonzero(available[row]))
        raise ValueError(
            f"scene {scene[row]} does not hold the goal {goal[row]} ({names[int(goal[row])]}); it holds {there}. "
            "Choose one of those, or leave options['goal'] out"
        )
