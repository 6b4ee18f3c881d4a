"""A prior over viewpoints: what a hand-coded policy would look at, for a network to start from and correct.

Residual policy learning (Silver et al. 2018, arXiv:1812.06298; Johannink et al. 2019, arXiv:1812.03201) adds a network
to a controller that already does something sensible. Here the controller is that of the greedy windows: the worth of a
viewpoint's window (canvit_gym.policies.windows), given an amount of something in every cell, which the network's
observations hold. Before any training the most likely viewpoint is the one that the hand-coded policy takes among the
same windows. With the prior "detected", the amounts are those of a detector
(canvit_gym.policies.trunks.Detector), which learns from labels before the rest of the network learns.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from canvit_gym.observations import finest_scale
from canvit_gym.policies.windows import Windows

INITIAL_WEIGHT = 2.0
"""Of worths whose standard deviation over the table is 1: the best window then has about a tenth of the probability."""
DETECTED = "detected"
"""The prior whose amounts a detector predicts."""
_EPSILON = 1e-6


def _goal(observation: Mapping[str, Tensor]) -> Tensor:
    return torch.einsum("bk,bkij->bij", observation["goal"].float(), observation["reading"].float())


PRIORS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Tensor]], Tensor]]] = {
    "uncertainty": (("uncertainty",), lambda observation: observation["uncertainty"][:, 0].float()),
    "items": (("reading",), lambda observation: 1 - observation["reading"][:, 0].float()),
    "goal": (("reading", "goal"), _goal),
}
"""Name -> (the observations it needs, these -> [B, m, m] non-negative amounts): predictive entropy; the probability of
any class but the first one, which is the background of FashionScenes; the probability of the goal."""


def amounts_of(name: str, observation: Mapping[str, Tensor]) -> Tensor:
    """[B, m, m]"""
    return PRIORS[name][1](observation)


def reads_maps(observations: spaces.Dict) -> bool:
    """Whether the observations hold the probe's reading as a map per class."""
    return "reading" in observations.spaces and len(observations["reading"].shape or ()) == 3


def check_prior(name: str, observations: spaces.Dict, actions: spaces.Space) -> None:
    """
    Raises:
        ValueError: an unknown prior, or one that does not fit the observations or the actions.
    """
    if name not in (*PRIORS, DETECTED):
        raise ValueError(f"unknown prior {name!r}; choose one of {', '.join((*PRIORS, DETECTED))}, or null")
    if isinstance(actions, spaces.Box):
        raise ValueError(
            f"a prior needs a table of viewpoints (action grid or quadtree), got {actions}: set policy_kwargs prior to "
            "null"
        )
    needed = (*(PRIORS[name][0] if name in PRIORS else ()), "acuity")
    shapes = {key: observations[key].shape or () for key in needed if key in observations.spaces}
    maps = [shapes.get(key, ()) for key in needed if key != "goal"]
    if len(shapes) < len(needed) or any(len(shape) != 3 for shape in maps) or len({shape[1:] for shape in maps}) > 1:
        raise ValueError(
            f"prior {name!r} needs {', '.join(needed)} among the observations (maps of one size, but for the goal), "
            f"which are {list(observations.spaces)} here: add them, or set policy_kwargs prior to null"
        )


class WindowPrior(nn.Module):
    """(amounts, acuity) -> [B, A]: the standardized worth of each viewpoint of a table, times a weight that is learned.

    Args of forward: amounts [B, m, m], as in PRIORS; acuity [B, 1, m, m], as observed.
    """

    def __init__(self, viewpoints: NDArray[np.float32], *, size: int, weight: float = INITIAL_WEIGHT) -> None:
        """size: m. weight: at first."""
        super().__init__()
        self.windows = Windows(viewpoints, size=size, device=torch.device("cpu"))
        self.weight = nn.Parameter(torch.tensor(float(weight)))

    def forward(self, amounts: Tensor, acuity: Tensor) -> Tensor:
        return self.weight * self.worths(amounts, acuity)

    def worths(self, amounts: Tensor, acuity: Tensor) -> Tensor:
        """[B, A]: the same without the weight."""
        worth = self.windows.added(amounts, finest_scale(acuity[:, 0].float()))
        worth = worth - worth.mean(dim=1, keepdim=True)
        return worth / (worth.square().mean(dim=1, keepdim=True).sqrt() + _EPSILON)
