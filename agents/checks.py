"""Checks of hyperparameters. Each error names the value and what it may be.

canvit_gym.checks has the checks of single values. This module has those that only hyperparameters need: for options of
the policy's network, and for schedules.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from canvit_gym.checks import Check, boolean, finite, integer, number, one_of, optional
from canvit_gym.policies.distributions import CONTINUOUS_DISTRIBUTIONS
from canvit_gym.policies.networks import NETWORKS
from canvit_gym.policies.prior import DETECTED, PRIORS

OPTION_CHECKS: dict[str, Check] = {
    "network": one_of(lambda: NETWORKS),
    "channels": integer(1),
    "context_dim": integer(1),
    "blocks": integer(0),
    "separable": boolean,
    "upsample": integer(1),
    "mask_seen": boolean,
    "inhibition": optional(finite(low=0)),
    "prior": optional(one_of(lambda: (*PRIORS, DETECTED))),
    "prior_weight": number,
    "learned_stop": boolean,
    "distribution": one_of(lambda: CONTINUOUS_DISTRIBUTIONS),
    "log_std_init": number,
}
"""Those of ViewpointNetwork, except for the ones that the environment's actions decide."""
ENCODER_CHECKS: dict[str, Check] = {
    "features_dim": integer(1),
    "channels": integer(1),
    "context_dim": integer(1),
    "blocks": integer(0),
    "cell_channels": integer(1),
    "separable": boolean,
}
"""Those of MapEncoder."""


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
    checks = {name: check for name, check in OPTION_CHECKS.items() if name not in leave_out}

    def check(name: str, value: Any) -> dict[str, Any]:
        options = _checked_options(name, value, checks)
        if options.get("prior") == DETECTED and not detector:
            raise ValueError(f"{name} prior {DETECTED!r}: this learner trains no detector; choose another, or null")
        return options

    return check


def encoder_options(name: str, value: Any) -> dict[str, Any]:
    """The options of canvit_gym.policies.trunks.MapEncoder."""
    return _checked_options(name, value, ENCODER_CHECKS)


def _checked_options(name: str, value: Any, checks: dict[str, Check]) -> dict[str, Any]:
    options = mapping(name, value)
    if unknown := sorted(set(options) - set(checks)):
        raise ValueError(f"unknown {name} {', '.join(unknown)}; there are: {', '.join(checks)}")
    for option, given in options.items():
        checks[option](f"{name} {option}", given)
    return options


def widths(name: str, value: Any) -> list[int]:
    """The widths of layers that follow one another."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a list of at least one width, such as [256], got {value!r}")
    for width in value:
        integer(1)(name, width)
    return value


def schedule(name: str, value: float | str) -> Callable[[float], float]:
    """A constant, or for "lin_x" a linear fall from x at the beginning (progress remaining 1) to 0 at the end.

    SB3's progress remaining is negative if the last rollout exceeds the total; the value never is.
    """
    linear = isinstance(value, str) and value.startswith("lin_")
    try:
        first = float(value.removeprefix("lin_")) if isinstance(value, str) and linear else value
    except ValueError:
        first = None
    if not isinstance(first, int | float) or isinstance(first, bool) or not 0 < first < float("inf"):
        raise ValueError(f'{name} must be a number > 0 or "lin_" followed by one ("lin_3e-4"), got {value!r}')
    return (lambda remaining: first * max(remaining, 0.0)) if linear else (lambda _: float(first))
