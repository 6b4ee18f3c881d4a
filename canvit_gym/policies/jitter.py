"""Jittered: any policy, with glimpses that miss the chosen viewpoints by a little.

A reading depends on the exact pixels at which a glimpse is sampled, in ways that nothing on the canvas predicts. The
greedy oracle, which tries viewpoints with the labels, therefore also selects samplings that happen to be read well.
The lead that remains after its glimpses were moved by up to half a canvas cell is due to knowing places; the rest was
luck. A policy that reads the canvas cannot know places more precisely than one cell either.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from canvit_gym.checks import finite
from canvit_gym.policies.protocol import GlimpsePolicy
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.streams import scene_displacements
from canvit_gym.viewpoints import clip_to_scene

OWN_STREAM = 1 << 19
"""Offset of its random streams: the wrapped policy may use the streams (seed, scene, t) itself."""


class Jittered:
    """`policy`, with every glimpse but the first moved uniformly by up to `cells` canvas cells along each axis.

    Crops stay inside the scene. Random numbers are a function of (seed, scene, t).

    >>> from canvit_gym.config import EnvConfig
    >>> from canvit_gym.evaluation import evaluate
    >>> from canvit_gym.policies import make_policy
    >>> config = EnvConfig(split="test", num_scenes=2, device="cpu")
    >>> jittered = Jittered(make_policy("center(scale=0.5)", config=config, num_glimpses=2), cells=0.5)
    >>> off = evaluate(jittered, config=config, num_glimpses=2).viewpoints[:, 1]
    >>> bool((abs(off[:, :2]) <= 1 / 16).all()), off[:, 2].tolist()
    (True, [0.5, 0.5])
    """

    def __init__(self, policy: GlimpsePolicy, *, cells: float = 0.5) -> None:
        finite(low=0)("cells", cells)
        self._policy, self._cells = policy, cells
        self.info = replace(
            policy.info,
            name=f"{policy.info.name}, jittered",
            paper_name=f"{policy.info.paper_name}, jittered",
            description=f"{policy.info.description} Glimpses are moved by up to {cells:g} canvas cells.",
            deterministic=False,
        )

    def reset(self, seen: Seen, *, seed: int) -> None:
        self._seed = seed
        self._policy.reset(seen, seed=seed)

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        wanted = self._policy.viewpoints(t, seen)
        if t == 0:
            return wanted
        reach = 2 * self._cells / seen.canvas_grid
        off = reach * scene_displacements(self._seed, seen.scene, OWN_STREAM + t)
        return clip_to_scene(wanted[:, :2] + off, wanted[:, 2:])

    def flops_per_decision(self, seen: Seen) -> int:
        return self._policy.flops_per_decision(seen)
