"""Dataclasses that hold arrays are equal by value, on every version of Python."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from canvit_gym.equality import EqualByValue


@dataclass(frozen=True, eq=False)
class Held(EqualByValue):
    array: np.ndarray
    more: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Other(Held): ...


def held(array: Any = (1.0, np.nan), **more: Any) -> Held:
    return Held(np.array(array), more)


def test_by_value() -> None:
    assert held() == held() and held(a=np.arange(3), b={"c": np.zeros(2)}) == held(a=np.arange(3), b={"c": np.zeros(2)})
    assert held(["x"]) == held(["x"])


@pytest.mark.parametrize(
    "other",
    [
        held((1.0, 2.0)), held((1.0,)), Held(np.array([1, np.nan], dtype=np.float32), {}), held(a=1),
        Held((1.0, 2.0), {}),  # type: ignore[arg-type]
        Other(held().array, {}), None,
    ],
)  # fmt: skip
def test_differences(other: Any) -> None:
    assert held() != other


def test_arrays_have_no_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(held())
