"""The greedy oracle: tries every candidate viewpoint with the true loss and takes the best. A ceiling, not a policy."""

import numpy as np
import torch
from canvit_pytorch import Viewpoint
from numpy.typing import NDArray

from canvit_gym.actions import grid_viewpoints
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.viewpoints import FULL_SCENE


def oracle_candidates() -> NDArray[np.float32]:
    """74 viewpoints: 5 x 5 centers at scale 1/2 and 7 x 7 at scale 1/4."""
    return np.concatenate([grid_viewpoints(scales=(0.5,), centers=5), grid_viewpoints(scales=(0.25,), centers=7)])


class GreedyOracle:
    """The full scene, then at each glimpse the candidate after which the loss against the labels is lowest.

    One step ahead: a sequence that gains more in the end may exist. Costs one forward per candidate and glimpse.
    """

    info = PolicyInfo(
        name="greedy_oracle",
        paper_name="greedy oracle (uses labels)",
        description="The best of 74 candidates by the true loss after the glimpse.",
        deterministic=True,
        uses_labels=True,
    )

    def __init__(self, candidates: NDArray[np.float32] | None = None) -> None:
        self.candidates = oracle_candidates() if candidates is None else candidates

    def begin(self, batch_size: int, device: torch.device) -> None:
        """Nothing is remembered between episodes."""

    @torch.no_grad()
    def viewpoints(self, t: int, episodes: EpisodeBatch) -> NDArray[np.float32]:
        if t == 0:
            return np.tile(FULL_SCENE, (episodes.num, 1))
        assert episodes.images is not None and episodes.state is not None
        backbone, losses = episodes.backbone, []
        for candidate in torch.from_numpy(self.candidates).to(backbone.device):
            viewpoint = Viewpoint(
                centers=candidate[:2].expand(episodes.num, 2).contiguous(), scales=candidate[2].repeat(episodes.num)
            )
            state = backbone.step(backbone.glimpse(episodes.images, viewpoint), episodes.state, viewpoint)
            losses.append(episodes.task.loss(episodes.task.read(state, None), episodes.truth))
        return self.candidates[torch.stack(losses).argmin(dim=0).cpu().numpy()]
