"""Choosing viewpoints of a table that the environment allows.

An environment with revisit=False has a fixed table of viewpoints and allows each of them once per episode. Policies
that compare candidates compare the rows of this table and take the best one allowed (`best_allowed`). `make_policy`
wraps all other policies in `OnTable`, which moves their viewpoints to the nearest one allowed.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.actions import DiscreteActions, squared_distances
from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig
from canvit_gym.policies.protocol import GlimpsePolicy
from canvit_gym.policies.seen import Seen


def fixed_table(config: EnvConfig) -> NDArray[np.float32] | None:
    """The viewpoints [A, 3] of an environment with revisit=False; None for all others."""
    if config.revisit:
        return None
    actions = build_actions(config)
    assert isinstance(actions, DiscreteActions), actions  # EnvConfig checks it
    return actions.viewpoints


def takes_first_glimpse(config: EnvConfig) -> bool:
    """Whether the environment chooses the first glimpse itself, which then need not be in the table."""
    return config.first_glimpse is not None


def best_allowed(worth: Tensor, candidates: NDArray[np.float32], seen: Seen) -> NDArray[np.int64]:
    """[N] indices of the allowed candidates [A, 3] with the largest worth [N, A].

    Raises:
        ValueError: none of the candidates is allowed in some scene.
    """
    allowed = seen.allowed(candidates)
    if not allowed.all():
        if (stuck := np.flatnonzero(~allowed.any(axis=1))).size:
            raise ValueError(
                f"none of the {len(candidates)} candidates is allowed in scene {seen.scene[stuck[0]]}: with "
                "revisit=False they must be viewpoints of the environment's table that have not been taken. Make the "
                "policy with make_policy for this environment, and take no more glimpses than the table has rows"
            )
        worth = worth.masked_fill(~torch.from_numpy(allowed).to(worth.device), -torch.inf)
    return worth.argmax(dim=1).cpu().numpy()


def nearest_rows(wanted: NDArray[np.float32], table: NDArray[np.float32], seen: Seen) -> NDArray[np.int64]:
    """[N] allowed rows of the table [A, 3] nearest to the viewpoints `wanted` [N, 3]."""
    return best_allowed(torch.from_numpy(-squared_distances(wanted, table)), table, seen)


class OnTable:
    """`policy` in an environment with revisit=False: moves its viewpoints to the nearest allowed ones."""

    def __init__(self, policy: GlimpsePolicy, table: NDArray[np.float32], *, first_is_given: bool) -> None:
        """first_is_given: whether the environment chooses glimpse 0, which then may be anywhere."""
        self.policy, self.info = policy, policy.info
        self._table = table
        self._first_is_given = first_is_given

    def reset(self, seen: Seen, *, seed: int) -> None:
        self.policy.reset(seen, seed=seed)

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        wanted = self.policy.viewpoints(t, seen)
        return wanted if t == 0 and self._first_is_given else self._table[nearest_rows(wanted, self._table, seen)]

    def flops_per_decision(self, seen: Seen) -> int:
        return self.policy.flops_per_decision(seen)
