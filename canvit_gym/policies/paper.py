"""The six policies of the CanViT paper, canvit-pytorch's own."""

from typing import Literal, get_args

import numpy as np
from canvit_pytorch.policies import POLICIES, Policy, PolicyName, make_policy
from numpy.typing import NDArray

from canvit_gym.checks import integer
from canvit_gym.policies.draws import draw
from canvit_gym.policies.flops import probe_flops
from canvit_gym.policies.protocol import PolicyInfo, check_supported
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.spec import Context
from canvit_gym.policies.streams import scene_seeds
from canvit_gym.viewpoints import to_rows

RandomStream = Literal["scene", "batch"]


class PaperPolicy:
    """One of canvit-pytorch's policies, unchanged.

    random_stream: where the random policies draw from. With "scene", the viewpoints of a scene are those of a policy of
    batch size one, seeded for that scene, so they depend only on (seed, scene). "batch" makes one policy for the whole
    batch and draws from PyTorch's global generator, exactly as canvit-pytorch's own evaluation does; viewpoints
    then depend on the batch size.
    """

    def __init__(self, name: PolicyName, *, num_glimpses: int, random_stream: RandomStream = "scene") -> None:
        if name not in POLICIES:
            raise ValueError(f"unknown policy {name!r} of the CanViT paper; there are: {', '.join(POLICIES)}")
        if random_stream not in get_args(RandomStream):
            raise ValueError(f"random_stream must be one of {', '.join(get_args(RandomStream))}, got {random_stream!r}")
        integer(1)("num_glimpses", num_glimpses)
        self.info = paper_info(name)
        self._name: PolicyName = name
        self._num_glimpses = num_glimpses
        self._per_scene = random_stream == "scene" and not self.info.deterministic
        self._policy: Policy | None = None
        self._table: NDArray[np.float32] | None = None  # [B, num_glimpses, 3]

    def reset(self, seen: Seen, *, seed: int) -> None:
        check_supported(self.info, seen.task.name, seen.canvas_grid)
        if seen.budget > self._num_glimpses:
            raise ValueError(
                f"{self.info.name} was made for {self._num_glimpses} glimpses and cannot take {seen.budget}; "
                f"make it with num_glimpses={seen.budget}"
            )
        self._policy, self._table = None, None
        if self._per_scene:
            # On the CPU, so that all devices agree: the whole sequence is drawn before anything is seen.
            self._table = draw(self._name, scene_seeds(seed, seen.scene), num_glimpses=self._num_glimpses)
        else:
            self._policy = self._made(seen)

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if self._table is not None:
            return self._table[:, t]
        assert self._policy is not None, "reset() comes first"
        return to_rows(self._policy.step(t, seen.state))

    def flops_per_decision(self, seen: Seen) -> int:
        return probe_flops(seen) if self.info.needs_segmentation_probe else 0

    def _made(self, seen: Seen) -> Policy:
        return make_policy(
            self._name,
            batch_size=seen.num,
            device=seen.device,
            num_glimpses=self._num_glimpses,
            canvas_grid_size=seen.canvas_grid,
            canvas_logits=seen.task.canvas_logits if self.info.needs_segmentation_probe else None,
        )


def build_paper(name: PolicyName, context: Context, *, random_stream: RandomStream = "scene") -> PaperPolicy:
    return PaperPolicy(name, num_glimpses=context.num_glimpses, random_stream=random_stream)


def paper_info(name: PolicyName) -> PolicyInfo:
    spec = POLICIES[name]
    return PolicyInfo(
        name=name,
        paper_name=spec.paper_name,
        description=spec.description,
        deterministic=spec.deterministic,
        needs_segmentation_probe=spec.needs_segmentation_probe,
        canvas_grids="power of two" if spec.needs_segmentation_probe else "any",
    )
