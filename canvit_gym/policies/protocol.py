"""What a glimpse policy is, hand-coded or learned."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from canvit_gym.episodes import EpisodeBatch


class GlimpsePolicy(Protocol):
    """Chooses the viewpoints of a batch of concurrent episodes, one glimpse at a time."""

    def begin(self, batch_size: int, device: torch.device) -> None:
        """A new batch of episodes starts; forget the last."""
        ...

    def viewpoints(self, t: int, episodes: EpisodeBatch) -> NDArray[np.float32]:
        """[B, 3] viewpoints (row, col, scale) of glimpse t (0-based), given the episodes as they stand."""
        ...


@dataclass(frozen=True)
class PolicyInfo:
    """What a table or a plot says about a policy."""

    name: str
    paper_name: str
    description: str
    deterministic: bool
    needs_segmentation_probe: bool = False
    uses_labels: bool = False
    """A ceiling, not an opponent: it chooses with the truth at hand."""
