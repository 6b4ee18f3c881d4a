"""The protocol of glimpse policies, hand-coded or learned, and how they describe themselves.

Viewpoints are rows (row, col, scale) in scene coordinates: [B, 3] float32 on the host.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from canvit_pytorch.policies.entropy import canvas_grid_supported
from numpy.typing import NDArray

from canvit_gym.observations import ObservationKey
from canvit_gym.policies.seen import Seen
from canvit_gym.tasks import TASKS


@dataclass(frozen=True)
class PolicyInfo:
    """How a policy is described in tables and plots, and where it can be used."""

    name: str
    paper_name: str
    """Its label in tables: the name in the CanViT paper, or the source of the idea."""
    description: str
    deterministic: bool
    """Whether two seeds give the same viewpoints."""
    needs_segmentation_probe: bool = False
    uses_labels: bool = False
    """Whether it is a ceiling, which uses the ground truth to choose, and not an opponent."""
    tasks: tuple[str, ...] | None = None
    """Names of the tasks that it supports; None: every task that the other fields allow."""
    needs_table: bool = False
    """Whether it orders the viewpoints of an environment with revisit=False, and works only there."""
    canvas_grids: Literal["any", "power of two"] = "any"
    observations: tuple[ObservationKey, ...] = ()
    """Keys that the policy reads with `seen.observe()`. An evaluation computes no other keys; without any, it does not
    read the empty canvas before the first glimpse."""


class GlimpsePolicy(Protocol):
    """Chooses the viewpoints of a batch of concurrent episodes, one glimpse at a time."""

    @property
    def info(self) -> PolicyInfo: ...

    def reset(self, seen: Seen, *, seed: int) -> None:
        """A new batch of episodes begins, on the scenes `seen.scene`. Forget the last batch.

        Random numbers must be a function of the seed, the scene's index and t, so that results do not depend on how
        scenes are batched.

        Raises:
            ValueError: the policy does not support the task, the canvas or the number of glimpses.
        """
        ...

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        """[B, 3] viewpoints of glimpse t (0-based), given what was seen so far."""
        ...

    def flops_per_decision(self, seen: Seen) -> int:
        """FLOPs of choosing a viewpoint for one scene, without the backbone's forward of the glimpse itself.

        Counted as canvit_pytorch.flops counts: matrix products and convolutions, two per multiply-accumulate.
        Evaluations charge it for every glimpse, the first one included.
        """
        ...


CLASSES_OF_CELLS = "[B, K, G, G]"
"""Task.reading_shape if the probe classifies every canvas cell."""


def supported_tasks(info: PolicyInfo) -> tuple[str, ...]:
    """Names of the tasks that the policy supports."""
    return tuple(
        name
        for name, task in TASKS.items()
        if (info.tasks is None or name in info.tasks)
        and not (info.needs_segmentation_probe and task.kind.reading_shape != CLASSES_OF_CELLS)
    )


def check_supported(info: PolicyInfo, task_name: str, canvas_grid: int) -> None:
    """
    Raises:
        ValueError: the policy does not support the task, or this canvas grid.
    """
    if info.tasks is not None and task_name not in info.tasks:
        raise ValueError(
            f"policy {info.name!r} supports {' and '.join(info.tasks)}, not {task_name}; choose another policy, or "
            "an environment of such a task"
        )
    if info.needs_segmentation_probe and TASKS[task_name].kind.reading_shape != CLASSES_OF_CELLS:
        raise ValueError(
            f"policy {info.name!r} needs a segmentation probe, which the task {task_name} does not have; choose "
            "another policy, or an environment of a task that has one"
        )
    if info.canvas_grids == "power of two" and not canvas_grid_supported(canvas_grid):
        raise ValueError(
            f"policy {info.name!r} aligns quadtree tiles with canvas cells, which needs a canvas grid that is a power "
            f"of two, but this one is {canvas_grid}; choose another policy (entropy_greedy works on any grid) or "
            "another checkpoint"
        )
