"""Locators: ceilings that know where the items of a scene lie, but not how a glimpse will be read.

Their gain over the best policy without labels is the value of knowing where to look; the greedy oracle's lead also
includes luck in how a glimpse happens to be read.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from canvit_gym.actions import grid_viewpoints
from canvit_gym.checks import finite, integer
from canvit_gym.observations import update_acuity
from canvit_gym.policies.protocol import PolicyInfo, check_supported
from canvit_gym.policies.seen import Seen, with_truth
from canvit_gym.policies.sequences import Scales, checked_scales
from canvit_gym.policies.spec import Context
from canvit_gym.policies.streams import scene_displacements
from canvit_gym.policies.table import best_allowed, fixed_table
from canvit_gym.policies.windows import Windows
from canvit_gym.scenes.fashion import BACKGROUND
from canvit_gym.scenes.source import Item
from canvit_gym.viewpoints import FULL_SCENE, clip_to_scene, to_viewpoint


class BoxLocator:
    """The full scene, then a glimpse of each item, the largest first, over and over.

    factor: a glimpse's side as a multiple of the item's.
    jitter: glimpses are off center by up to this share of their scale, so that no item is seen twice in the same way.
    """

    info = PolicyInfo(
        name="box_locator",
        paper_name="locator (told where items lie)",
        description="The full scene, then each item by itself, the largest first: is told where items lie, not how "
        "they will be read.",
        deterministic=True,
        uses_labels=True,
    )

    sought = "item to look at"
    """In errors."""

    def __init__(self, *, factor: float = 1.25, jitter: float = 0.0) -> None:
        for name, value in (("factor", factor), ("jitter", jitter)):
            finite(low=0)(name, value)
        if factor == 0:
            raise ValueError("factor must be above 0: a glimpse has a size")
        self.info = replace(self.info, deterministic=jitter == 0)
        self._factor, self._jitter = factor, jitter

    def reset(self, seen: Seen, *, seed: int) -> None:
        self._seed = seed
        self._boxes: list[list[tuple[float, float, float]]] = []  # per scene, (scale, row, col) of its items
        for scene, items in zip(seen.scene, self.items_to_look_at(seen), strict=True):
            if not items:
                raise ValueError(f"scene {scene} holds no {self.sought}; use scenes that do, or another ceiling")
            self._boxes.append(sorted(((item.scale, item.row, item.col) for item in items), reverse=True))

    def items_to_look_at(self, seen: Seen) -> Sequence[Sequence[Item]]:
        """[N] of each scene."""
        return with_truth(seen).items

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if t == 0:
            return np.tile(FULL_SCENE, (seen.num, 1))
        boxes = np.array([boxes[(t - 1) % len(boxes)] for boxes in self._boxes])
        scale = np.minimum(1, self._factor * boxes[:, :1])
        off = self._jitter * scale * scene_displacements(self._seed, seen.scene, t)
        return clip_to_scene(boxes[:, 1:] + off, scale)

    def flops_per_decision(self, seen: Seen) -> int:
        return 0


class WindowLocator:
    """entropy_greedy, but with the area that items truly cover in place of the entropy.

    Takes the window that adds the most resolution where items are (see `canvit_gym.policies.windows`).
    """

    info = PolicyInfo(
        name="window_locator",
        paper_name="window locator (told where items lie)",
        description="The full scene, then the window that adds most resolution where items are: is told which cells "
        "items cover, not how they will be read.",
        deterministic=True,
        uses_labels=True,
        tasks=("segmentation",),
    )

    def __init__(self, *, scale: Scales = 0.5, centers: int = 8, table: NDArray[np.float32] | None = None) -> None:
        integer(1)("centers", centers)
        scales = checked_scales(scale)
        self.candidates = grid_viewpoints(scales=scales, centers=centers) if table is None else table

    def reset(self, seen: Seen, *, seed: int) -> None:
        check_supported(self.info, seen.task.name, seen.canvas_grid)
        self._windows = Windows(self.candidates, size=seen.canvas_grid, device=seen.device)
        self._items = 1 - with_truth(seen).truth["shares"][:, BACKGROUND]
        self._seen_at = torch.zeros(seen.num, seen.canvas_grid, seen.canvas_grid, device=seen.device)

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if t == 0:
            return np.tile(FULL_SCENE, (seen.num, 1))
        self._seen_at = update_acuity(self._seen_at, to_viewpoint(seen.viewpoints[:, t - 1], seen.device))
        added = self._windows.added(self._items, self._seen_at)
        return self.candidates[best_allowed(added, self.candidates, seen)]

    def flops_per_decision(self, seen: Seen) -> int:
        return 0


def build_box_locator(context: Context, *, factor: float = 1.25, jitter: float = 0.0) -> BoxLocator:
    return BoxLocator(factor=factor, jitter=jitter)


def build_window_locator(context: Context, *, scale: Scales = 0.5, centers: int = 8) -> WindowLocator:
    return WindowLocator(scale=scale, centers=centers, table=fixed_table(context.config))
