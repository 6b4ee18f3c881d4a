"""Checks of hyperparameters. Each error names the value and what it may be.

canvit_gym.checks has the checks of single values. This module has those that only hyperparameters need: for options of
the policy's network, and for schedules.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from canvit_gym.checks import Check, integer
from canvit_gym.policies.networks import NETWORK_OPTIONS
from canvit_gym.policies.prior import DETECTED

ENVIRONMENT_OPTIONS = ("viewpoints", "allow_stop")
"""Options of the network that the environment's actions decide."""


def check_fields(hyper: object, check: Check, *names: str) -> None:
    """Raise ValueError unless these fields of a dataclass of hyperparameters pass the check."""
    for name in names:
        check(f"hyperparameter {name}", getattr(hyper, name))


def mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object of options, got {value!r}")
    return value


def options_of(options: type) -> Check:
    """An object of options that a dataclass takes; the dataclass checks their values."""

    def check(name: str, value: Any) -> dict[str, Any]:
        known = [option.name for option in fields(options)]
        if unknown := sorted(set(mapping(name, value)) - set(known)):
            short = name.removeprefix("hyperparameter ")
            raise ValueError(f"unknown {short} options {', '.join(unknown)}; there are: {', '.join(known)}")
        options(**value)
        return value

    return check


def network_options(*, leave_out: Sequence[str] = (), detector: bool = True) -> Check:
    """The policy_kwargs of a learner whose network has the options of ViewpointNetwork, except for `leave_out`.

    detector: whether the learner trains the network's detector, if it has one (agents.detection).
    """
    known = [name for name in NETWORK_OPTIONS if name not in (*ENVIRONMENT_OPTIONS, *leave_out)]

    def check(name: str, value: Any) -> dict[str, Any]:
        options = mapping(name, value)
        for option, low in (("channels", 1), ("context_dim", 1), ("upsample", 1), ("blocks", 0)):
            if option in options:
                integer(low)(f"{name} {option}", options[option])
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"unknown {name} {', '.join(unknown)}; there are: {', '.join(known)}")
        if options.get("prior") == DETECTED and not detector:
            raise ValueError(f"{name} prior {DETECTED!r}: this learner trains no detector; choose another, or null")
        return options

    return check


def schedule(name: str, value: float | str) -> Callable[[float], float]:
    """A constant, or for "lin_x" a linear fall from x at the beginning (progress remaining 1) to 0 at the end.

    SB3's progress remaining is negative if the last rollout exceeds the total; the value never is.
    """
    linear = isinstance(value, str) and value.startswith("lin_")
    try:
        number = float(value.removeprefix("lin_") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        number = -1.0
    if (isinstance(value, str) and not linear) or not 0 < number < float("inf"):
        raise ValueError(f'{name} must be a number > 0 or "lin_" followed by one ("lin_3e-4"), got {value!r}')
    return (lambda remaining: number * max(remaining, 0.0)) if linear else (lambda _: number)
