"""Orders of a table: each viewpoint of an environment with revisit=False once, whatever the scene shows.

`PlannedOrder` takes an order that is known beforehand. canvit_gym.policies.dependency and
canvit_gym.policies.learned_order find good orders on training scenes.
"""

import numpy as np
from numpy.typing import NDArray

from canvit_gym.config import EnvConfig
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.spec import Context
from canvit_gym.policies.streams import scene_seeds
from canvit_gym.policies.table import fixed_table, takes_first_glimpse
from canvit_gym.viewpoints import FULL_SCENE

RASTER = PolicyInfo(
    name="raster_order",
    paper_name="raster order",
    description="The environment's viewpoints from top left to bottom right, each once.",
    deterministic=True,
    needs_table=True,
)
CENTER_OUT = PolicyInfo(
    name="center_out",
    paper_name="center-out order",
    description="The environment's viewpoints from the middle of the scene outwards, each once.",
    deterministic=True,
    needs_table=True,
)


class PlannedOrder:
    """The first glimpse, if the environment takes it, then the rows of a table [A, 3] in order."""

    def __init__(self, order: NDArray[np.float32], *, first_is_given: bool, info: PolicyInfo) -> None:
        self.order, self.info = order, info
        self._sequence = with_first(order, first_is_given=first_is_given)

    def reset(self, seen: Seen, *, seed: int) -> None:
        """
        Raises:
            ValueError: episodes are longer than the order.
        """
        if seen.budget > len(self._sequence):
            raise ValueError(
                f"{self.info.name} has {len(self._sequence)} glimpses and cannot take {seen.budget}; use a budget of "
                f"at most {len(self._sequence)}"
            )

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        return np.tile(self._sequence[t], (seen.num, 1))

    def flops_per_decision(self, seen: Seen) -> int:
        return 0


class RandomOrder:
    """The viewpoints of a table [A, 3] in an order drawn for every scene, a function of (seed, scene)."""

    info = PolicyInfo(
        name="random_order",
        paper_name="random order",
        description="The environment's viewpoints in a random order, another one for every scene, each once.",
        deterministic=False,
        needs_table=True,
    )

    def __init__(self, table: NDArray[np.float32], *, first_is_given: bool) -> None:
        self._table, self._first_is_given = table, first_is_given

    def reset(self, seen: Seen, *, seed: int) -> None:
        sequences = [
            with_first(
                self._table[np.random.default_rng(scene_seed).permutation(len(self._table))],
                first_is_given=self._first_is_given,
            )
            for scene_seed in scene_seeds(seed, seen.scene)
        ]
        self._sequences = np.stack(sequences)  # [N, T, 3]

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        return self._sequences[:, t]

    def flops_per_decision(self, seen: Seen) -> int:
        return 0


def with_first(order: NDArray[np.float32], *, first_is_given: bool) -> NDArray[np.float32]:
    """[T, 3]: the order, after the full scene if the environment shows that first."""
    if not first_is_given:
        return order
    return np.vstack([FULL_SCENE[None], order[(order != FULL_SCENE).any(axis=1)]])


def required_table(config: EnvConfig, name: str) -> NDArray[np.float32]:
    """
    Raises:
        ValueError: the environment has no fixed table to order.
    """
    table = fixed_table(config)
    if table is None:
        raise ValueError(
            f"policy {name!r} orders the viewpoints of an environment that allows each of them once: pass "
            "revisit=False, or choose another policy"
        )
    return table


def raster_order(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Large tiles before small ones, then by row and column."""
    return table[np.lexsort((table[:, 1], table[:, 0], -table[:, 2]))]


def center_out(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """By distance from the middle; ties in reading order."""
    distance = np.hypot(table[:, 0], table[:, 1]).round(6)
    return table[np.lexsort((table[:, 1], table[:, 0], distance))]


def build_raster_order(context: Context) -> PlannedOrder:
    order = raster_order(required_table(context.config, RASTER.name))
    return PlannedOrder(order, first_is_given=takes_first_glimpse(context.config), info=RASTER)


def build_center_out(context: Context) -> PlannedOrder:
    order = center_out(required_table(context.config, CENTER_OUT.name))
    return PlannedOrder(order, first_is_given=takes_first_glimpse(context.config), info=CENTER_OUT)


def build_random_order(context: Context) -> RandomOrder:
    table = required_table(context.config, RandomOrder.info.name)
    return RandomOrder(table, first_is_given=takes_first_glimpse(context.config))
