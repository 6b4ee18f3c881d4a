"""The last rollouts, with observations on their device and in their precision."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.tried import take


@dataclass(frozen=True)
class Samples:
    """B states with the actions taken and their rewards."""

    observation: dict[str, Tensor]  # [B, ...] each
    actions: Tensor  # [B] int64
    depth: Tensor  # [B] int64, which decision of its episode
    rewards: Tensor  # [B] float32


class Replay:
    """A ring of `num_rollouts` rollouts of `rows` states each. Everything except observations is on the host."""

    def __init__(self, *, num_rollouts: int, rows: int) -> None:
        self._capacity = num_rollouts * rows
        self._at, self._full = 0, False
        self._observation: dict[str, Tensor] = {}  # allocated by the first one
        self._actions = torch.zeros(self._capacity, dtype=torch.int64)
        self._depth = torch.zeros(self._capacity, dtype=torch.int64)
        self._rewards = torch.zeros(self._capacity)

    def __len__(self) -> int:
        return self._capacity if self._full else self._at

    def add(self, observation: dict[str, Tensor], actions: Tensor, depth: Tensor, rewards: Tensor) -> None:
        """Add a step of all environments, replacing the oldest."""
        rows = slice(self._at, self._at + len(actions))
        if not self._observation:
            self._observation = {
                key: torch.zeros(self._capacity, *value.shape[1:], dtype=value.dtype, device=value.device)
                for key, value in observation.items()
            }
        for key, value in observation.items():
            self._observation[key][rows] = value
        self._actions[rows], self._depth[rows], self._rewards[rows] = actions, depth, rewards
        self._at += len(actions)
        if self._at == self._capacity:
            self._at, self._full = 0, True

    def take(self, rows: Tensor, *, device: torch.device) -> Samples:
        return Samples(
            observation=take(self._observation, rows, device=device),
            actions=self._actions[rows],
            depth=self._depth[rows],
            rewards=self._rewards[rows],
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "at": self._at,
            "full": self._full,
            "observation": {key: value.clone() for key, value in self._observation.items()},
            **{name: getattr(self, f"_{name}").clone() for name in ("actions", "depth", "rewards")},
        }

    def load_state_dict(self, state: dict[str, Any], *, device: torch.device) -> None:
        """device: that of observations."""
        self._at, self._full = state["at"], state["full"]
        self._observation = {key: value.to(device, copy=True) for key, value in state["observation"].items()}
        for name in ("actions", "depth", "rewards"):
            setattr(self, f"_{name}", state[name].clone())
