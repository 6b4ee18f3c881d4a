"""A policy that looks where a segmentation probe sees items, for any task."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.backbone.canvas import normalized_canvas
from canvit_gym.policies.greedy_windows import GreedyWindows, windows_of
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.sequences import Scales
from canvit_gym.policies.spec import Context
from canvit_gym.policies.windows import sums_flops
from canvit_gym.scenes.fashion import BACKGROUND, SEGMENTATION_CLASSES
from canvit_gym.tasks.segmentation import fused_probe, load_probe

PROBE = "nano-segmentation-probe"


class ItemProbability(GreedyWindows):
    """The full scene, then the window that adds most resolution where a probe sees anything but background.

    The probe is FashionScenes' segmentation probe on the canvas. Like the task's own probe it was fitted on labelled
    scenes once, and the policy itself sees no label. It shows where items may be even if the task only classifies the
    scene.
    """

    info = PolicyInfo(
        name="item_probability",
        paper_name="item-probability windows",
        description="The full scene, then the window that adds most resolution where a segmentation probe of "
        "FashionScenes sees items (probability of not being background times octaves of resolution added).",
        deterministic=True,
    )

    def __init__(
        self,
        *,
        scale: Scales = (0.5, 0.25),
        centers: int = 16,
        table: NDArray[np.float32] | None = None,
        probe: str = PROBE,
    ) -> None:
        super().__init__(scale=scale, centers=centers, table=table)
        self._probe = probe

    def reset(self, seen: Seen, *, seed: int) -> None:
        """
        Raises:
            ValueError: the probe does not fit the checkpoint.
        """
        super().reset(seen, seed=seed)
        probe, _ = load_probe(self._probe, seen.backbone, classes=SEGMENTATION_CLASSES)
        self._weight, self._bias = fused_probe(probe)

    def amounts(self, seen: Seen) -> Tensor:
        """The probability that a cell is not background."""
        logits = normalized_canvas(seen.backbone, seen.state) @ self._weight.T + self._bias
        items = 1 - torch.softmax(logits, dim=-1)[..., BACKGROUND]
        return items.unflatten(1, (seen.canvas_grid, seen.canvas_grid))

    def flops_per_decision(self, seen: Seen) -> int:
        grid = seen.canvas_grid
        probe = 2 * grid**2 * seen.backbone.canvit.canvas_dim * len(SEGMENTATION_CLASSES)
        return probe + 2 * sums_flops(num_windows=len(self.candidates), size=grid)


def build_item_probability(
    context: Context, *, scale: Scales | None = None, centers: int | None = None, probe: str = PROBE
) -> ItemProbability:
    """By default over the scales and centers of the environment's grid actions."""
    return ItemProbability(**windows_of(context, scale=scale, centers=centers), probe=probe)
