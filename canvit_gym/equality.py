"""Equality of dataclasses that hold arrays. The generated one raises, or compares identities, depending on Python's
version.
"""

from dataclasses import fields
from typing import Any

import numpy as np


class EqualByValue:
    """Instances of one class are equal if all fields are: arrays in dtype, shape and every value (NaN equals NaN).

    Use it with `@dataclass(eq=False)`.
    """

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(same_values(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]


def same_values(one: Any, other: Any) -> bool:
    """Whether two values are equal, in which arrays may occur as they are or in dicts."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        if type(one) is not type(other) or (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_values(value, other[key]) for key, value in one.items())
    return bool(one == other)
