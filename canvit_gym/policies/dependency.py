"""Dependency rank: takes first the viewpoints that are most informative about all others.

In the spirit of Guo et al., The Collapse of Patches (2025, arXiv:2511.22281): patches that others depend on come first,
as PageRank orders the graph of dependencies. There an autoencoder learns which patches a patch is rebuilt from. Here
features of the frozen backbone are regressed on each other:

1. in every training scene, a single glimpse is taken at each viewpoint of the table, from an empty canvas; its features
   are the recurrent CLS token, layer-normalized and reduced to its principal components;
2. the dependency of j on i is the share of the variance of j's features that a ridge regression on i's explains, in
   scenes that it was not fitted on;
3. a random walker moves from j to i in proportion to how much j depends on i. The rank is how often it visits i.

No labels are used, and the order is the same for all scenes.
"""

from dataclasses import replace

import numpy as np
import torch
from canvit_pytorch import RecurrentState
from numpy.typing import NDArray

from canvit_gym.checks import integer
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.fixed_sequence import (
    BestFixedSequence,
    FixedSequence,
    cached_sequence,
    followed,
    training_episodes,
)
from canvit_gym.policies.orders import required_table, with_first
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.spec import Context
from canvit_gym.policies.table import takes_first_glimpse
from canvit_gym.viewpoints import to_viewpoint

METHOD = "dependency rank"
COMPONENTS = 8
RIDGE = 1.0
"""Penalty of the regression, as a fraction of the number of scenes it is fitted on; features have unit variance."""
DAMPING = 0.85
"""Of PageRank: the walker restarts with probability 1 - DAMPING."""

INFO = PolicyInfo(
    name="dependency_rank",
    paper_name="dependency rank (after Guo et al. 2025)",
    description="The environment's viewpoints in the order of how much they tell about all others: PageRank over "
    "regressions between their features, in training scenes.",
    deterministic=True,
    needs_table=True,
)


def build_dependency_rank(context: Context, *, num_scenes: int = 256) -> BestFixedSequence:
    """Load the order from the cache; otherwise rank the viewpoints now and cache it."""
    integer(1)("num_scenes", num_scenes)
    config = context.config
    table = required_table(config, INFO.name)
    settings = [METHOD, COMPONENTS, RIDGE, DAMPING, config.first_glimpse is None]
    cached = cached_sequence(config, num_scenes=num_scenes, candidates=table, settings=settings)
    if not cached.is_file():
        rank_by_dependency(config, num_scenes=num_scenes).save(cached)
    return BestFixedSequence(FixedSequence.load(cached), info=INFO)


def rank_by_dependency(config: EnvConfig, *, num_scenes: int = 256) -> FixedSequence:
    """Order the whole table; the result holds the loss in the training scenes after each glimpse."""
    table = required_table(config, INFO.name)
    batches, found = training_episodes(config, len(table) + 1, num_scenes, table)
    features = np.concatenate([tile_features(episodes, table) for episodes in batches])
    order = table[np.argsort(-pagerank(dependencies(features)), kind="stable")]
    for viewpoint in with_first(order, first_is_given=takes_first_glimpse(config)):
        found = followed(batches, found, viewpoint)
    return replace(found, method=METHOD)


@torch.no_grad()
def tile_features(episodes: EpisodeBatch, table: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N, A, D]: the CLS token after a single glimpse at each viewpoint, layer-normalized."""
    backbone, images = episodes.backbone, episodes.images
    assert images is not None
    features = []
    for row in table:
        viewpoint = to_viewpoint(np.tile(row, (episodes.num, 1)), backbone.device)
        empty: RecurrentState = backbone.init_state(episodes.num)
        cls = backbone.step(backbone.glimpse(images, viewpoint), empty, viewpoint).recurrent_cls[:, 0].float()
        features.append(torch.nn.functional.layer_norm(cls, cls.shape[-1:]).cpu().double().numpy())
    return np.stack(features, axis=1)


def dependencies(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, A, D] -> [A, A]: entry (j, i) is the share of j's variance that i explains, in [0, 1]; 0 on the diagonal.

    Scenes are split in half: each half is predicted by the regression fitted on the other.
    """
    num, tiles, _ = features.shape
    if num < 4:
        raise ValueError(f"dependencies take at least 4 training scenes, got {num}; use more")
    flat = features - features.mean(axis=0)  # what is the same at a place in all scenes carries no information
    _, _, axes = np.linalg.svd(flat.reshape(num * tiles, -1), full_matrices=False)
    reduced = flat @ axes[:COMPONENTS].T  # [N, A, d]
    scaled = reduced / np.maximum(reduced.std(axis=0), 1e-9)
    explained = np.zeros((tiles, tiles))
    halves = np.arange(num) % 2
    for half in (0, 1):
        fit, held = scaled[halves != half], scaled[halves == half]
        others, truth = fit.reshape(len(fit), -1), held.reshape(len(held), -1)  # all tiles' features together
        spread = np.square(truth).reshape(len(held), tiles, -1).sum(axis=(0, 2))  # [A]
        for i in range(tiles):
            x = fit[:, i]
            weights = np.linalg.solve(x.T @ x + RIDGE * len(fit) * np.eye(x.shape[1]), x.T @ others)
            missed = np.square(truth - held[:, i] @ weights).reshape(len(held), tiles, -1).sum(axis=(0, 2))
            explained[:, i] += np.clip(1 - missed / spread, 0, 1) / 2
    np.fill_diagonal(explained, 0)
    return explained


def pagerank(dependency: NDArray[np.float64]) -> NDArray[np.float64]:
    """[A, A] (j depends on i) -> [A], summing to 1. A row of zeros counts as depending on all equally."""
    total = dependency.sum(axis=1, keepdims=True)
    count = len(dependency)
    walk = np.where(total > 0, dependency / np.where(total > 0, total, 1), 1 / count)
    rank = np.full(count, 1 / count)
    for _ in range(200):
        rank = (1 - DAMPING) / count + DAMPING * rank @ walk
    return rank
