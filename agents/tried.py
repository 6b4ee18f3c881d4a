"""States in which viewpoints were tried with the labels: what supervised learners of gains learn from.

On training scenes, where labels may be used, K viewpoints of the table are tried in a state, each with a forward pass
of the backbone. Their gains are the environment's rewards for the next glimpse (of the soft score, if the reward is
based on the score, which is not smooth and distinguishes similar viewpoints less well).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.behaviours import Behaviour, TriedStep
from canvit_gym.actions import DiscreteActions
from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.lookahead import outcomes_after
from canvit_gym.rewards import REWARDS, step_reward
from canvit_gym.vector_env import GlimpseVectorEnv


@dataclass(frozen=True)
class TriedViewpoints:
    """S states: observations, gains of the tried viewpoints, and rewards of the whole episodes."""

    observations: dict[str, Tensor]  # [S, ...] each, maps in float16
    chosen: Tensor  # [S, K] int64, which actions were tried; a stop gains nothing
    gains: Tensor  # [S, K] float32
    rewards: Tensor  # [S / T, T] float64: states of an episode are contiguous

    def __len__(self) -> int:
        return len(self.gains)

    def first(self, num_states: int) -> "TriedViewpoints":
        """The first states; they must be those of whole episodes."""
        return TriedViewpoints(
            observations={key: value[:num_states] for key, value in self.observations.items()},
            chosen=self.chosen[:num_states],
            gains=self.gains[:num_states],
            rewards=self.rewards[: num_states // self.rewards.shape[1]],
        )

    def after(self, num_states: int) -> "TriedViewpoints":
        """The states after the first ones, which must be those of whole episodes."""
        return TriedViewpoints(
            observations={key: value[num_states:] for key, value in self.observations.items()},
            chosen=self.chosen[num_states:],
            gains=self.gains[num_states:],
            rewards=self.rewards[num_states // self.rewards.shape[1] :],
        )

    def and_then(self, *others: "TriedViewpoints") -> "TriedViewpoints":
        parts = (self, *others)
        return TriedViewpoints(
            observations={key: torch.cat([part.observations[key] for part in parts]) for key in self.observations},
            chosen=torch.cat([part.chosen for part in parts]),
            gains=torch.cat([part.gains for part in parts]),
            rewards=torch.cat([part.rewards for part in parts]),
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and dicts of them."""
        return dict(vars(self))

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], *, device: torch.device) -> "TriedViewpoints":
        """device: that of observations; everything else is on the host."""
        return cls(**{**state, "observations": {key: value.to(device) for key, value in state["observations"].items()}})


def require_table(config: EnvConfig, candidates: int) -> None:
    """Raise ValueError unless the actions are a table of at least this many viewpoints."""
    actions = build_actions(config)
    if not isinstance(actions, DiscreteActions) or len(actions.viewpoints) < candidates:
        raise ValueError(
            f"{candidates} viewpoints of a table are tried in every state, but the actions are {actions.space}: use "
            "action='grid' or 'quadtree', or fewer candidates"
        )


@torch.no_grad()
def collect(
    envs: GlimpseVectorEnv,
    *,
    candidates: int,
    states: int,
    rng: np.random.Generator,
    behaviour: Behaviour,
    advance: Callable[[int], Any],
    scenes: Iterator[NDArray[np.int64]] | None = None,
) -> TriedViewpoints:
    """Collect at least this many states, in whole batches of whole episodes.

    Args:
        envs: DISABLED autoreset, a table of viewpoints, and reset once before.
        candidates: K, the number of viewpoints tried in every state; the same ones for all states of a batched step.
        rng: draws the candidates.
        behaviour: chooses where episodes go on.
        advance: called with the number of states of every batch.
        scenes: gives the scenes [num_envs] of the next batch. None: the environment's own order.
    """
    actions = envs.actions
    assert isinstance(actions, DiscreteActions), actions
    table, reward, cost = actions.viewpoints, envs.config.reward, envs.config.glimpse_cost
    batches: list[TriedViewpoints] = []
    count = 0
    while count < states:
        envs.reset(options=None if scenes is None else {"scene": next(scenes)})
        steps: list[dict[str, Tensor]] = []
        of_episode: tuple[list[NDArray[Any]], ...] = ([], [], [])
        ended = np.zeros(envs.num_envs, dtype=np.bool_)
        while not ended.any():
            observation = envs.observation_tensors()
            steps.append(compact(observation))
            tried = rng.choice(len(table), candidates, replace=False)
            gain = gains_of(reward, envs.episodes, table[tried]).T - cost
            looks = behaviour(TriedStep(observation=observation, tried=tried, gains=gain))
            if actions.allow_stop:  # a stop has no gain and no cost
                tried, gain = np.append(tried, len(table)), np.pad(gain, ((0, 0), (0, 1)))
            _, paid, ended, _, _ = envs.step(looks)
            for column, value in zip(of_episode, (np.tile(tried, (envs.num_envs, 1)), gain, paid), strict=True):
                column.append(value)
        chosen, gains, paid = (np.stack(column, axis=1) for column in of_episode)
        batches.append(
            TriedViewpoints(
                observations=by_episode(steps),
                chosen=torch.from_numpy(chosen).flatten(0, 1),
                gains=torch.from_numpy(gains).flatten(0, 1).float(),
                rewards=torch.from_numpy(paid.astype(np.float64)),
            )
        )
        count += paid.size
        advance(paid.size)
    return batches[0].and_then(*batches[1:])


def by_episode(steps: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Observations [N, ...] of T steps -> [N * T, ...]: states of an episode are contiguous."""
    return {key: torch.stack([step[key] for step in steps], dim=1).flatten(0, 1) for key in steps[0]}


def take(observations: dict[str, Tensor], rows: Tensor, *, device: torch.device) -> dict[str, Tensor]:
    """The rows [B] of kept observations."""
    rows = rows.to(next(iter(observations.values())).device)
    return {key: value[rows].to(device) for key, value in observations.items()}


def compact(observation: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy to keep, with maps in float16."""
    return {key: value.half() if value.ndim == 4 else value.clone() for key, value in observation.items()}


def gains_of(reward: str, episodes: EpisodeBatch, candidates: NDArray[np.float32]) -> NDArray[np.float64]:
    """[K, N]: the reward that each of the candidates [K, 3] would get now, in every episode."""
    kind = "soft_score_gain" if REWARDS[reward].potential == "score" else reward
    measure = episodes.task.potentials[REWARDS[kind].potential].measure
    assert episodes.logits is not None
    before = measure(episodes.logits, episodes.truth).cpu().numpy()
    after = outcomes_after(episodes, candidates, measure=measure)
    return step_reward(kind, np.broadcast_to(before, after.shape), after)
