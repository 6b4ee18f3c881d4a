"""Checks of single values, for every argument of the environments: each names the value and says what is asked for.

A check takes (name, value) and returns the value in plain Python types, so that numpy's integers, floats and booleans
are taken as what they are and end up in a spec as JSON.
"""

import math
import operator
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Check = Callable[[str, Any], Any]
"""(name, value) -> the value in plain types; ValueError where it is not allowed."""


def is_number(value: object) -> bool:
    """Whether a value is a real number and no boolean."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def expanded(name: str, value: str | Path) -> Path:
    """The path, with "~" expanded.

    Raises:
        FileNotFoundError: it begins with "~", but the user has no home directory, as in some containers.
    """
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{name}={str(value)!r}: there is no home directory; use a path without ~") from error


def integer(low: int) -> Check:
    """An integer >= low.

    >>> integer(1)("budget", np.int64(5))
    5
    """

    def check(name: str, value: Any) -> int:
        try:
            number = None if isinstance(value, bool | np.bool_) else operator.index(value)
        except TypeError:
            number = None
        if number is None or number < low:
            raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")
        return number

    return check


def number(name: str, value: Any) -> float:
    """Any real number, NaN and infinities included: what they mean is checked where it is known."""
    if not is_number(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return value if isinstance(value, int) else float(value)


def finite(*, low: float = -math.inf, above: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number in [low, high] and above `above`.

    >>> finite(low=0, high=1)("gamma", 0.5)
    0.5
    """
    bounds = [
        f">= {low:g}" * (low > -math.inf),
        f"> {above:g}" * (above > -math.inf),
        f"<= {high:g}" * (high < math.inf),
    ]
    allowed = " and ".join(filter(None, bounds))
    if -math.inf < low and high < math.inf:
        allowed = f"in [{low:g}, {high:g}]"

    def check(name: str, value: Any) -> float:
        if not is_number(value) or not math.isfinite(value) or not (low <= value <= high and above < value):
            raise ValueError(f"{name} must be a finite number {allowed}, got {value!r}")
        return number(name, value)

    return check


def boolean(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A string that is not empty, as the unset variable of a shell would leave it."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, so that the environment's spec is JSON; got {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty: leave it out for the default")
    return value


def one_of(choices: Callable[[], Iterable[str]]) -> Check:
    """One of the names that `choices` lists when asked."""

    def check(name: str, value: Any) -> str:
        there = tuple(choices())
        if not isinstance(value, str) or value not in there:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(there)}")
        return value

    return check


def check_options(config: object, check: Check, *names: str) -> None:
    """Raise ValueError unless these options of a command pass the check. Messages name them as --option-name."""
    for name in names:
        check(f"--{name.replace('_', '-')}", getattr(config, name))


def optional(check: Check) -> Check:
    """None, or what `check` takes."""
    return lambda name, value: None if value is None else check(name, value)


def several(check: Check, what: str) -> Check:
    """A list or tuple of what `check` takes, as a tuple: JSON has no tuples."""

    def checked(name: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple | np.ndarray):
            raise ValueError(f"{name} must be a list of {what}, got {value!r}")
        try:
            return tuple(check(name, entry) for entry in value)
        except ValueError:
            raise ValueError(f"{name} must be a list of {what}, got {value!r}") from None

    return checked
