"""The six policies of the CanViT paper, through canvit-pytorch's own make_policy."""

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from canvit_pytorch.policies import POLICIES, FixedSequence, Policy, PolicyName, make_policy
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.flops import probe_flops
from canvit_gym.policies.protocol import PolicyInfo, check_supported
from canvit_gym.policies.streams import scene_seeds
from canvit_gym.seeding import seeded
from canvit_gym.tasks.segmentation import SegmentationTask
from canvit_gym.viewpoints import to_rows

RandomStream = Literal["scene", "batch"]


class PaperPolicy:
    """One of canvit-pytorch's policies, unchanged.

    random_stream: where the random ones draw from. "scene" makes a policy of batch size one per scene under a seed
    of that scene's own, so that viewpoints are a function of (seed, scene). "batch" makes one policy for the whole
    batch and draws from PyTorch's global generator, exactly as canvit-pytorch's own evaluation does; viewpoints
    then depend on the batch size.
    """

    def __init__(self, name: PolicyName, *, num_glimpses: int, random_stream: RandomStream = "scene") -> None:
        if name not in POLICIES:
            raise ValueError(f"unknown policy {name!r} of the CanViT paper; there are: {', '.join(POLICIES)}")
        if random_stream not in get_args(RandomStream):
            raise ValueError(f"random_stream must be one of {', '.join(get_args(RandomStream))}, got {random_stream!r}")
        if num_glimpses < 1:
            raise ValueError(f"num_glimpses must be at least 1, got {num_glimpses}")
        self.info = paper_info(name)
        self._name: PolicyName = name
        self._num_glimpses = num_glimpses
        self._per_scene = random_stream == "scene" and not self.info.deterministic
        self._policy: Policy | None = None
        self._table: NDArray[np.float32] | None = None  # [B, num_glimpses, 3]

    def reset(self, episodes: EpisodeBatch, *, seed: int) -> None:
        check_supported(self.info, episodes.task.name, episodes.backbone.canvas_grid)
        if episodes.budget > self._num_glimpses:
            raise ValueError(
                f"{self.info.name} was made for {self._num_glimpses} glimpses and cannot take {episodes.budget}; "
                f"make it with num_glimpses={episodes.budget}"
            )
        self._policy, self._table = None, None
        if self._per_scene:
            self._table = self._drawn_per_scene(episodes, seed)
        else:
            self._policy = self._made(episodes, batch_size=episodes.num, device=episodes.backbone.device)

    def viewpoints(self, t: int, episodes: EpisodeBatch) -> NDArray[np.float32]:
        if self._table is not None:
            return self._table[:, t]
        assert self._policy is not None and episodes.state is not None, "reset() comes first"
        return to_rows(self._policy.step(t, episodes.state))

    def flops_per_decision(self, episodes: EpisodeBatch) -> int:
        return probe_flops(episodes) if self.info.needs_segmentation_probe else 0

    def _drawn_per_scene(self, episodes: EpisodeBatch, seed: int) -> NDArray[np.float32]:
        """Every random policy draws its sequence before it sees anything. Drawn on the CPU: one result everywhere."""
        cpu, sequences = torch.device("cpu"), []
        for scene_seed in scene_seeds(seed, episodes.scene):
            with seeded(scene_seed, cpu):
                policy = self._made(episodes, batch_size=1, device=cpu)
            assert isinstance(policy, FixedSequence), policy
            sequences.append(torch.cat([v for p in policy.viewpoints for v in (p.centers[0], p.scales)]))
        return torch.stack(sequences).view(episodes.num, self._num_glimpses, 3).numpy()

    def _made(self, episodes: EpisodeBatch, *, batch_size: int, device: torch.device) -> Policy:
        return make_policy(
            self._name,
            batch_size=batch_size,
            device=device,
            num_glimpses=self._num_glimpses,
            canvas_grid_size=episodes.backbone.canvas_grid,
            canvas_logits=canvas_logits(episodes) if self.info.needs_segmentation_probe else None,
        )


def paper_info(name: PolicyName) -> PolicyInfo:
    spec = POLICIES[name]
    return PolicyInfo(
        name=name,
        paper_name=spec.paper_name,
        description=spec.description,
        deterministic=spec.deterministic,
        needs_segmentation_probe=spec.needs_segmentation_probe,
        tasks=("segmentation",) if spec.needs_segmentation_probe else ("segmentation", "classification"),
        canvas_grids="power of two" if spec.needs_segmentation_probe else "any",
    )


def canvas_logits(episodes: EpisodeBatch) -> Callable[[Tensor], Tensor]:
    """Canvas [B, n_tokens, canvas_dim] -> segmentation logits [B, K, G, G], as canvit-pytorch decodes it."""
    assert isinstance(episodes.task, SegmentationTask), episodes.task.name
    return cast(Any, episodes.task.model.logits)
