"""How episodes go on while viewpoints are tried in their states (agents.tried): by chance, by a policy, by the labels.

A behaviour chooses a row of the table of viewpoints for every episode, and never a stop, so that all episodes have the
same length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.actions import DiscreteActions
from canvit_gym.policies.networks import ViewpointNetwork
from canvit_gym.policies.protocol import GlimpsePolicy
from canvit_gym.policies.seen import window
from canvit_gym.policies.table import nearest_rows
from canvit_gym.vector_env import GlimpseVectorEnv


@dataclass(frozen=True)
class TriedStep:
    """A step of N episodes, before the next viewpoint is chosen."""

    observation: dict[str, Tensor]  # [N, ...] each
    tried: NDArray[np.int64]  # [K] rows of the table
    gains: NDArray[np.float64]  # [N, K] what they would gain


Behaviour = Callable[[TriedStep], NDArray[np.int64]]
"""The row of the table that each episode takes next, [N]."""


def random_viewpoints(envs: GlimpseVectorEnv, rng: np.random.Generator) -> NDArray[np.int64]:
    """[N] random rows of the table, among those that are allowed."""
    num = _num_viewpoints(envs)
    if envs.config.revisit:
        return rng.integers(num, size=envs.num_envs)
    allowed = envs.action_masks()[:, :num]
    return np.where(allowed, rng.random(allowed.shape), -1).argmax(axis=1)


def look_anywhere(envs: GlimpseVectorEnv, rng: np.random.Generator) -> Behaviour:
    """Random viewpoints."""
    return lambda step: random_viewpoints(envs, rng)


def sample_network(network: ViewpointNetwork, envs: GlimpseVectorEnv) -> Behaviour:
    """Viewpoints sampled from a network's probabilities."""
    device = next(network.parameters()).device

    def behaviour(step: TriedStep) -> NDArray[np.int64]:
        given = {key: value.to(device) for key, value in step.observation.items()}
        probabilities = network.distribution(given).probs[:, : _num_viewpoints(envs)]  # type: ignore[attr-defined]
        return torch.multinomial(probabilities, 1).squeeze(1).cpu().numpy()

    return behaviour


def take_best(envs: GlimpseVectorEnv, rng: np.random.Generator) -> Behaviour:
    """The best of the tried viewpoints that are allowed; a random one if none is."""

    def behaviour(step: TriedStep) -> NDArray[np.int64]:
        allowed = envs.action_masks()[:, step.tried]
        best = step.tried[np.where(allowed, step.gains, -np.inf).argmax(axis=1)]
        return np.where(allowed.any(axis=1), best, random_viewpoints(envs, rng))

    return behaviour


def follow_policy(policy: GlimpsePolicy, envs: GlimpseVectorEnv) -> Behaviour:
    """The viewpoints of the table that are nearest to those of a hand-coded policy."""
    assert isinstance(envs.actions, DiscreteActions)
    table = envs.actions.viewpoints
    first = int(envs.config.first_glimpse is not None)

    def behaviour(step: TriedStep) -> NDArray[np.int64]:
        seen = window(policy.info, envs.episodes, actions=envs.actions)
        if (taken := int(seen.taken[0])) == first:
            policy.reset(seen, seed=0)
        return nearest_rows(policy.viewpoints(taken, seen), table, seen)

    return behaviour


def mixture(parts: Sequence[Behaviour], shares: Sequence[float], rng: np.random.Generator) -> Behaviour:
    """Draw for every episode and step which of the behaviours it follows."""

    def behaviour(step: TriedStep) -> NDArray[np.int64]:
        choices = np.stack([part(step) for part in parts])
        drawn = rng.choice(len(parts), size=choices.shape[1], p=shares)
        return choices[drawn, np.arange(choices.shape[1])]

    return behaviour


def _num_viewpoints(envs: GlimpseVectorEnv) -> int:
    assert isinstance(envs.actions, DiscreteActions)
    return len(envs.actions.viewpoints)
