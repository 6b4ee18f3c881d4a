"""Checks of hyperparameters: each names the value and what it may be."""

from collections.abc import Callable, Sequence
from typing import Any

POLICY_KWARGS = (
    "network", "channels", "context_dim", "blocks", "separable", "upsample", "mask_seen", "inhibition", "distribution",
    "log_std_init",
)  # fmt: skip
"""Options of canvit_gym.policies.networks.ViewpointNetwork that are a hyperparameter."""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_whole(name: str, value: Any, *, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"hyperparameter {name} must be a whole number >= {low}, got {value!r}")


def check_number(
    name: str, value: Any, *, low: float | None = None, above: float | None = None, high: float | None = None
) -> None:
    """A finite number, within bounds where they are given."""
    lowest = low if low is not None else above
    within = is_number(value) and abs(value) < float("inf")
    within = within and (low is None or value >= low) and (above is None or value > above)
    if not within or (high is not None and value > high):
        if high is not None:
            raise ValueError(f"hyperparameter {name} must lie in [{lowest}, {high}], got {value!r}")
        sign = ">" if above is not None else ">="
        raise ValueError(f"hyperparameter {name} must be a finite number {sign} {lowest}, got {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        raise ValueError(f"hyperparameter {name} must be one of {tuple(choices)}, got {value!r}")


def check_policy_kwargs(options: Any, *, leave_out: Sequence[str] = ()) -> None:
    known = [name for name in POLICY_KWARGS if name not in leave_out]
    if not isinstance(options, dict):
        raise ValueError(f"hyperparameter policy_kwargs must be an object of options, got {options!r}")
    for name, least in (("channels", 1), ("context_dim", 1), ("upsample", 1), ("blocks", 0)):
        value = options.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"policy_kwargs {name} must be a whole number >= {least}, got {value!r}")
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown policy_kwargs {', '.join(unknown)}; there are: {', '.join(known)}")


def check_schedule(name: str, value: Any) -> None:
    schedule(value, name=name)


def schedule(value: float | str, *, name: str) -> Callable[[float], float]:
    """A constant, or "lin_x": x at the beginning (progress remaining 1), 0 at the end.

    SB3's progress remaining falls below 0 where the last rollout goes beyond the total; a rate never does.
    """
    linear = isinstance(value, str) and value.startswith("lin_")
    try:
        number = float(value.removeprefix("lin_") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        number = -1.0
    if (isinstance(value, str) and not linear) or not 0 < number < float("inf"):
        raise ValueError(f'hyperparameter {name} must be a number > 0 or "lin_" and one, got {value!r}')
    return (lambda remaining: number * max(remaining, 0.0)) if linear else (lambda _: number)
