"""Jittered: any policy whose glimpses land a little beside where it wants them.

A reading depends on where exactly a glimpse is sampled, to the pixel, in ways that nothing in sight tells. A policy
that tries viewpoints with the labels, the greedy oracle, picks those that happen to fall well. What is left of its lead
once its glimpses land up to half a canvas cell beside is what it knows about places; the rest was luck in the sampling.
A policy that reads the canvas knows places no better than that.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.protocol import GlimpsePolicy
from canvit_gym.policies.streams import scene_displacements
from canvit_gym.viewpoints import clip_to_scene

OWN_STREAM = 1 << 19
"""Where its random numbers begin: the policy may draw from (seed, scene, t) itself."""


class Jittered:
    """`policy`, every glimpse but the first moved by up to `cells` canvas cells along each axis, uniformly.

    Crops stay inside the scene. Draws are a function of (seed, scene, t).

    >>> from canvit_gym.config import EnvConfig
    >>> from canvit_gym.evaluation import evaluate
    >>> from canvit_gym.policies import make_policy
    >>> config = EnvConfig(split="test", num_scenes=2, device="cpu")
    >>> trembling = Jittered(make_policy("center(scale=0.5)", config=config, num_glimpses=2), cells=0.5)
    >>> off = evaluate(trembling, config=config, num_glimpses=2).viewpoints[:, 1]
    >>> bool((abs(off[:, :2]) <= 1 / 16).all()), off[:, 2].tolist()
    (True, [0.5, 0.5])
    """

    def __init__(self, policy: GlimpsePolicy, *, cells: float = 0.5) -> None:
        if not 0 <= cells < float("inf"):
            raise ValueError(f"cells must be a finite number of canvas cells >= 0, got {cells!r}")
        self._policy, self._cells = policy, cells
        self.info = replace(
            policy.info,
            name=f"{policy.info.name}, trembling",
            paper_name=f"{policy.info.paper_name}, trembling",
            description=f"{policy.info.description} Glimpses land up to {cells:g} canvas cells beside.",
            deterministic=False,
        )

    def reset(self, episodes: EpisodeBatch, *, seed: int) -> None:
        self._seed = seed
        self._policy.reset(episodes, seed=seed)

    def viewpoints(self, t: int, episodes: EpisodeBatch) -> NDArray[np.float32]:
        wanted = self._policy.viewpoints(t, episodes)
        if t == 0:
            return wanted
        reach = 2 * self._cells / episodes.backbone.canvas_grid
        off = reach * scene_displacements(self._seed, episodes.scene, OWN_STREAM + t)
        return clip_to_scene(wanted[:, :2] + off, wanted[:, 2:])

    def flops_per_decision(self, episodes: EpisodeBatch) -> int:
        return self._policy.flops_per_decision(episodes)
