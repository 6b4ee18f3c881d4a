"""Look ahead with the labels: how good the reading would be after each of many candidate viewpoints.

Candidates are rows (row, col, scale). The episodes do not change.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from canvit_pytorch import RecurrentState, Viewpoint
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from canvit_gym.episodes import EpisodeBatch
from canvit_gym.viewpoints import to_viewpoint

ROWS_PER_FORWARD = 64
"""Candidates x scenes per forward. On a CPU a row costs least at 32 rows, and half as much again at 128."""


Measure = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""(logits, truth) -> [B]: one of a Task's potentials."""


@torch.no_grad()
def outcomes_after(
    episodes: EpisodeBatch,
    candidates: NDArray[np.float32],
    *,
    measure: Measure | None = None,
    truth: Mapping[str, Tensor] | None = None,
    progress: "tqdm[Any] | None" = None,
) -> NDArray[np.float32]:
    """[A, B]: the loss (or another measure) of scene b after a glimpse at candidate a.

    measure: the task's loss in nats by default. truth: labels to use in place of the episodes' own. progress: a bar
    that advances by one for every candidate.
    """
    images, state = episodes.images, episodes.state
    assert images is not None and state is not None, "reset_rows() comes first"
    backbone, task, num = episodes.backbone, episodes.task, episodes.num
    truth = episodes.truth if truth is None else truth
    measure = task.potentials["loss"].measure if measure is None else measure
    per_forward = max(1, ROWS_PER_FORWARD // num)
    outcomes = []
    for start in range(0, len(candidates), per_forward):
        chunk = candidates[start : start + per_forward]
        viewpoints = [to_viewpoint(np.tile(row, (num, 1)), backbone.device) for row in chunk]
        # One sampling per candidate, so that scenes are never copied.
        glimpses = torch.cat([backbone.glimpse(images, viewpoint) for viewpoint in viewpoints])
        together = Viewpoint(
            centers=torch.cat([viewpoint.centers for viewpoint in viewpoints]),
            scales=torch.cat([viewpoint.scales for viewpoint in viewpoints]),
        )
        logits = task.read(backbone.step(glimpses, _repeated(state, len(chunk)), together), None)
        outcomes += [measure(part, truth) for part in logits.split(num)]
        if progress is not None:
            progress.update(len(chunk))
    return torch.stack(outcomes).cpu().numpy()


def _repeated(state: RecurrentState, times: int) -> RecurrentState:
    """The state repeated `times` times along the batch; not copied if times is 1."""
    if times == 1:
        return state
    return RecurrentState(
        canvas=state.canvas.repeat(times, 1, 1), recurrent_cls=state.recurrent_cls.repeat(times, 1, 1)
    )
