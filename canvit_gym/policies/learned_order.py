"""Learned order: one order of the table for all scenes, learned from rewards on training scenes.

In the spirit of Kutscher et al., REOrdering Patches Improves Vision Models (2025, arXiv:2505.23751): a Plackett-Luce
distribution over orders has one score per viewpoint and is trained by REINFORCE, from an order that is known to be
good. There that prior is the order whose patches compress least or most, here the best of simple orders on the training
scenes. An order's return is minus the mean loss over its glimpses; it is compared with the returns of other orders in
the same scene, so that a scene's difficulty cancels.

The viewpoints are taken in order of decreasing score. If the learned order is no better than the prior on training
scenes that it did not learn from, the prior is kept.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from canvit_gym.checks import integer
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.dependency import COMPONENTS, DAMPING, RIDGE, dependencies, pagerank, tile_features
from canvit_gym.policies.fixed_sequence import (
    BATCH_SIZE,
    BestFixedSequence,
    FixedSequence,
    cached_sequence,
    episodes_like,
    followed,
    training_episodes,
)
from canvit_gym.policies.orders import center_out, raster_order, required_table, with_first
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.spec import Context
from canvit_gym.policies.table import takes_first_glimpse

METHOD = "Plackett-Luce"
SCENES_AT_ONCE, ORDERS_PER_SCENE = 16, 4
LEARNING_RATE = 0.1
PRIOR_SPREAD = 3.0
"""Scores begin evenly spaced over this width, from the prior's first viewpoint down to its last."""

INFO = PolicyInfo(
    name="learned_order",
    paper_name="learned order (after Kutscher et al. 2025)",
    description="The environment's viewpoints in one order for all scenes, learned on training scenes by REINFORCE on "
    "a Plackett-Luce distribution over orders.",
    deterministic=True,
    needs_table=True,
)


def build_learned_order(context: Context, *, num_scenes: int = 256, updates: int = 100) -> BestFixedSequence:
    """Load the order from the cache; otherwise learn it now and cache it."""
    integer(1)("num_scenes", num_scenes)
    integer(1)("updates", updates)
    config = context.config
    table = required_table(config, INFO.name)
    settings = [
        METHOD, updates, context.num_glimpses, config.first_glimpse is None, LEARNING_RATE, PRIOR_SPREAD,
        SCENES_AT_ONCE, ORDERS_PER_SCENE, COMPONENTS, RIDGE, DAMPING,
    ]  # fmt: skip
    cached = cached_sequence(config, num_scenes=num_scenes, candidates=table, settings=settings)
    if not cached.is_file():
        learn_order(
            config, context.num_glimpses, num_scenes=num_scenes, updates=updates, progress=context.progress
        ).save(cached)
    return BestFixedSequence(FixedSequence.load(cached), info=INFO)


def learn_order(
    config: EnvConfig,
    num_glimpses: int,
    *,
    num_scenes: int = 256,
    updates: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> FixedSequence:
    """Order the whole table for episodes of num_glimpses. Half of the scenes are used for learning."""
    table = required_table(config, INFO.name)
    given = takes_first_glimpse(config)
    batches, nothing = training_episodes(config, len(table) + 1, num_scenes, table)
    ranks = pagerank(dependencies(np.concatenate([tile_features(episodes, table) for episodes in batches])))
    priors = {
        "raster": raster_order(table),
        "center out": center_out(table),
        "dependency rank": table[np.argsort(-ranks, kind="stable")],
    }
    scene = np.concatenate([episodes.scene for episodes in batches])
    learned_from, held_out = scene[::2], scene[1::2]

    def loss(order: NDArray[np.float32], scenes: NDArray[np.int64]) -> float:
        """Mean over glimpses and scenes."""
        sequence = with_first(order, first_is_given=given)[:num_glimpses]
        losses = [_losses(batches[0], part, sequence) for part in np.array_split(scenes, -(-len(scenes) // BATCH_SIZE))]
        return float(np.concatenate(losses).mean())

    prior = min(priors.values(), key=lambda order: loss(order, learned_from))
    rows = [int(np.flatnonzero((table == viewpoint).all(axis=1))[0]) for viewpoint in prior]
    scores = torch.empty(len(table), dtype=torch.float64)
    scores[rows] = torch.linspace(PRIOR_SPREAD / 2, -PRIOR_SPREAD / 2, len(table), dtype=torch.float64)
    scores.requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=LEARNING_RATE)
    rng = np.random.default_rng(seed)
    pool = _endless(learned_from, rng)
    for _ in tqdm(range(updates), desc=INFO.name, unit="update", disable=None if progress else True):
        chosen = np.sort([next(pool) for _ in range(min(SCENES_AT_ONCE, len(learned_from)))])
        orders = sample_orders(scores.detach().numpy(), num=len(chosen) * ORDERS_PER_SCENE, rng=rng)
        sequences = np.stack([with_first(table[order], first_is_given=given)[:num_glimpses] for order in orders])
        returns = -_losses(batches[0], np.repeat(chosen, ORDERS_PER_SCENE), sequences).reshape(-1, ORDERS_PER_SCENE)
        advantage = returns - returns.mean(axis=1, keepdims=True)
        advantage = torch.from_numpy(advantage / (advantage.std() + 1e-9)).flatten()
        count = num_glimpses - given  # viewpoints that the episode's return can depend on
        log_likelihood = order_log_likelihood(scores, torch.from_numpy(orders), count=count)
        optimizer.zero_grad()
        (-(advantage * log_likelihood).mean()).backward()
        optimizer.step()
    order = table[np.argsort(-scores.detach().numpy(), kind="stable")]
    if loss(order, held_out) >= loss(prior, held_out):
        order = prior
    found = replace(nothing, method=METHOD)
    for episodes in batches:
        episodes.reset_rows(episodes.all_rows, episodes.scene, read=False)
    for viewpoint in with_first(order, first_is_given=given):
        found = followed(batches, found, viewpoint)
    return found


def _losses(template: EpisodeBatch, scenes: NDArray[np.int64], sequences: NDArray[np.float32]) -> NDArray[np.float64]:
    """[n] mean loss over the glimpses of each scene [n], at viewpoints [T, 3] or, one sequence a row, [n, T, 3]."""
    sequences = np.broadcast_to(sequences, (len(scenes), *sequences.shape[-2:]))
    episodes = episodes_like(template, num=len(scenes), budget=sequences.shape[1])
    episodes.reset_rows(episodes.all_rows, scenes, read=False)
    total = np.zeros(len(scenes))
    for t in range(sequences.shape[1]):
        episodes.step_rows(episodes.all_rows, np.ascontiguousarray(sequences[:, t]))
        total += episodes.potentials["loss"]
    return total / sequences.shape[1]


def _endless(scenes: NDArray[np.int64], rng: np.random.Generator) -> Iterator[int]:
    """Shuffled passes without replacement."""
    while True:
        yield from rng.permutation(scenes).tolist()


def sample_orders(scores: NDArray[np.float64], *, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[num, A] orders from the Plackett-Luce distribution: by decreasing score plus Gumbel noise."""
    return np.argsort(-(scores + rng.gumbel(size=(num, len(scores)))), axis=1)


def order_log_likelihood(scores: Tensor, orders: Tensor, *, count: int) -> Tensor:
    """[n]: of the first `count` places of orders [n, A] given scores [A], each a softmax over the viewpoints left."""
    ordered = scores[orders]  # [n, A]
    left = ordered.flip(1).logcumsumexp(dim=1).flip(1)  # [n, A]: over this place and all later ones
    return (ordered - left)[:, :count].sum(dim=1)
