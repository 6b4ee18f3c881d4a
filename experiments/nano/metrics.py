"""How close nano comes to its teacher, and whether its scores fall as glimpses accumulate."""

from collections.abc import Mapping, Sequence
from typing import Any

FALL_POINTS = 0.25
"""A curve falls if it is more than this below its best after fewer glimpses. Smaller differences are noise: they depend
on which tile C2F views first."""


def largest_fall(curve: Sequence[float]) -> float:
    """The largest distance of a curve below its own best at earlier glimpses; 0 if it never falls.

    >>> largest_fall([30.0, 45.0, 44.0, 46.0])
    1.0
    """
    best, fall = float("-inf"), 0.0
    for value in curve:
        best = max(best, value)
        fall = max(fall, best - value)
    return fall


def reading(curves: Mapping[str, Sequence[float]], teacher: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """For each curve of C2F in %: its last value, share of the teacher's (on the same scenes), and largest fall.

    Args:
        curves: by name, "c2f_miou", "c2f_top1" and so on.
        teacher: in [0, 1], by the same names without "c2f_".
    """
    results: dict[str, dict[str, Any]] = {}
    for name, curve in curves.items():
        of_teacher = 100 * teacher[name.removeprefix("c2f_")]
        fall = largest_fall(curve)
        results[name] = dict(
            glimpses=len(curve),
            last=round(curve[-1], 2),
            teacher=round(of_teacher, 2),
            share_of_teacher=round(curve[-1] / of_teacher, 4) if of_teacher else None,
            largest_fall=round(fall, 2),
            falls=fall > FALL_POINTS,
        )
    return results
