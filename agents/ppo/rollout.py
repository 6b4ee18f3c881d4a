"""A rollout buffer whose observations stay on their device.

Stock SB3 moves every observation to the host, copies the whole rollout into another order before the update, and moves
every minibatch back. Here observations are stored once, as the environment's tensors (canvit_gym.sb3.GlimpseVecEnv with
tensors=...), on their device and in their precision. Minibatches are gathered there in stock SB3's order, so that all
numbers equal those of DictRolloutBuffer with float32 observations.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, DictRolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import Tensor

_LEARNED_FROM = ("actions", "values", "log_probs", "advantages", "returns")


class TensorRolloutBuffer(DictRolloutBuffer):
    """A `rollout_buffer_class` for environments whose observations are tensors. Everything else stays on the host as
    in SB3, in [n_steps, n_envs] arrays that are never reordered.
    """

    tensors: dict[str, Tensor]
    """[n_steps, n_envs, ...] each; allocated with the first observation and reused."""

    def reset(self) -> None:
        if not hasattr(self, "tensors"):
            self.tensors = {}
        shape = (self.buffer_size, self.n_envs)
        self.actions = np.zeros((*shape, self.action_dim), dtype=self.action_space.dtype)
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, np.zeros(shape, dtype=np.float32))
        self._estimates: list[Tensor] = []
        self._columns: dict[str, Tensor] = {}
        BaseBuffer.reset(self)

    def add(  # type: ignore[override]
        self,
        obs: dict[str, Tensor],
        action: NDArray[Any],
        reward: NDArray[np.float32],
        episode_start: NDArray[np.bool_],
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        for key, given in obs.items():
            if not isinstance(given, Tensor):
                raise TypeError(
                    f"observation {key!r} is a {type(given).__name__}, but TensorRolloutBuffer stores tensors: make "
                    "the environment with make_sb3_env(..., tensors='float16'), or leave rollout_buffer_class out"
                )
            shape, stored = (self.buffer_size, *given.shape), self.tensors.get(key)
            if stored is None or (stored.shape, stored.dtype, stored.device) != (shape, given.dtype, given.device):
                self.tensors[key] = torch.empty(shape, dtype=given.dtype, device=given.device)
            self.tensors[key][self.pos] = given
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self._estimates.append(torch.stack([value.flatten(), log_prob.flatten()]))
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: NDArray[np.bool_]) -> None:
        estimates = torch.stack(self._estimates).cpu().numpy()  # one transfer for all value estimates of the rollout
        self.values, self.log_probs = estimates[:, 0].copy(), estimates[:, 1].copy()
        super().compute_returns_and_advantage(last_values, dones)

    def get(self, batch_size: int | None = None) -> Generator[DictRolloutBufferSamples, None, None]:  # type: ignore[override]
        if not self.full:
            raise RuntimeError(f"the rollout has {self.pos} of {self.buffer_size} steps: it is not complete")
        total = self.buffer_size * self.n_envs
        # Stock SB3 orders rows by environment, then step; here they are ordered by step, then environment.
        order = np.random.permutation(total)
        rows = torch.from_numpy(order % self.buffer_size * self.n_envs + order // self.buffer_size).to(self.device)
        if not self._columns:
            for name in _LEARNED_FROM:
                column = getattr(self, name).reshape(total, -1).astype(np.float32, copy=False)
                self._columns[name] = torch.from_numpy(column).to(self.device)
        for batch in rows.split(batch_size or total):
            actions, *columns = (self._columns[name].index_select(0, batch) for name in _LEARNED_FROM)
            values, log_probs, advantages, returns = (column.flatten() for column in columns)
            yield DictRolloutBufferSamples(
                observations={
                    key: stored.flatten(0, 1).index_select(0, batch.to(stored.device)).to(self.device)
                    for key, stored in self.tensors.items()
                },
                actions=actions,
                old_values=values,
                old_log_prob=log_probs,
                advantages=advantages,
                returns=returns,
            )

    @property
    def num_bytes(self) -> int:
        """The size of a whole rollout, before its update makes minibatches."""
        arrays = sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))
        return arrays + sum(value.nbytes for value in self.tensors.values())
