"""The six policies of the CanViT paper, through canvit-pytorch's own make_policy."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from canvit_pytorch.policies import POLICIES, Policy, PolicyName, make_policy
from numpy.typing import NDArray

from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.tasks.segmentation import SegmentationTask
from canvit_gym.viewpoints import to_rows


class PaperPolicy:
    """One of canvit-pytorch's policies, unchanged. The random ones draw from PyTorch's global generator."""

    def __init__(self, name: PolicyName, *, num_glimpses: int) -> None:
        spec = POLICIES[name]
        self.info = PolicyInfo(
            name=name,
            paper_name=spec.paper_name,
            description=spec.description,
            deterministic=spec.deterministic,
            needs_segmentation_probe=spec.needs_segmentation_probe,
        )
        self._name: PolicyName = name
        self._num_glimpses = num_glimpses
        self._policy: Policy | None = None

    def begin(self, batch_size: int, device: torch.device) -> None:
        self._policy = None
        self._batch_size, self._device = batch_size, device

    def viewpoints(self, t: int, episodes: EpisodeBatch) -> NDArray[np.float32]:
        if self._policy is None:
            self._policy = make_policy(
                self._name,
                batch_size=self._batch_size,
                device=self._device,
                num_glimpses=self._num_glimpses,
                canvas_grid_size=episodes.backbone.canvas_grid,
                canvas_logits=self._canvas_logits(episodes),
            )
        assert episodes.state is not None
        viewpoint = self._policy.step(t, episodes.state)
        return to_rows(viewpoint)

    def _canvas_logits(self, episodes: EpisodeBatch) -> Callable[[torch.Tensor], torch.Tensor] | None:
        if not self.info.needs_segmentation_probe:
            return None
        if not isinstance(episodes.task, SegmentationTask):
            raise ValueError(
                f"{self.info.paper_name} decodes the canvas with a segmentation probe, which the task "
                f"{episodes.task.name!r} has not; choose another policy"
            )
        return cast(Any, episodes.task.model.logits)
