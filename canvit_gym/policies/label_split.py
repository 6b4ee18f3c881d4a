"""Two halves of a scene's labelled pixels: choose by one, score on the other, and luck drops out.

The greedy oracle takes the candidate after which the loss is lowest. Part of that lead is luck: among many
candidates some happen to push the reading the right way, for reasons that nothing on the canvas predicts. An oracle
that chooses by one half and is scored on the other keeps what looking there truly reveals about the region and
loses what only happened to fit the pixels it was chosen by.

The halves are the two colours of a checkerboard: "even" and "odd" squares of `block` x `block` canvas cells, the
top-left square even. With single cells (block=1) every window covers as much of one half as of the other, so
choosing by one favours no place; but neighbouring cells share their object and nearly their features, so whether
that object will be read correctly is known from either half, and the lead that stays is an upper bound of the
lead without luck. The larger the squares, the fewer objects have pixels in both halves, and the more the choice
also favours the places of its own half: with squares wider than objects the lead that stays is a lower bound.
Report both.

A classification label belongs to the whole scene and has no halves, and a second reading of the same scene with
independent luck does not exist, so there the lead cannot be split this way: ValueError.
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.checks import integer
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.seen import SeenWithTruth

Half = Literal["even", "odd"]


def check_half(half: str, block: int) -> None:
    if half not in get_args(Half):
        raise ValueError(f"half must be one of {', '.join(get_args(Half))}, got {half!r}")
    integer(1)("block", block)


def half_truth(episodes: EpisodeBatch | SeenWithTruth, half: Half, *, block: int = 1) -> dict[str, Tensor]:
    """The episodes' truth with the labels of one half only, for `task.loss`.

    Raises:
        ValueError: the task's labels have no halves.
    """
    if "shares" not in episodes.truth:
        raise ValueError(
            f"the labels of {episodes.task.name} are one per scene and have no halves, so the luck in an oracle's lead "
            "cannot be measured by choosing on one and scoring on the other; use a segmentation environment"
        )
    shares = episodes.truth["shares"]  # [B, K, G, G]
    grid = shares.shape[-1]
    if block >= grid:
        raise ValueError(f"squares of {block} cells leave nothing odd on a {grid} x {grid} canvas; use {grid // 4}")
    squares = torch.arange(grid, device=shares.device) // block
    odd = (squares.unsqueeze(1) + squares) % 2
    return {**episodes.truth, "shares": shares * (odd if half == "odd" else 1 - odd)}


class HalfLoss:
    """The cross-entropy on one half of the pixels after every glimpse, of whichever policy is evaluated.

    >>> from canvit_gym.config import EnvConfig
    >>> from canvit_gym.evaluation import evaluate
    >>> from canvit_gym.policies import make_policy
    >>> config = EnvConfig(split="test", num_scenes=4, device="cpu")
    >>> odd = HalfLoss("odd")
    >>> policy = make_policy("coarse_to_fine", config=config, num_glimpses=5)
    >>> result = evaluate(policy, config=config, on_glimpse=odd)
    >>> odd.loss().shape
    (4, 5)
    """

    def __init__(self, half: Half, *, block: int = 1) -> None:
        check_half(half, block)
        self.half: Half = half
        self.block = block
        self._batches: list[list[Tensor]] = []  # [B] losses per batch and glimpse

    def __call__(self, t: int, episodes: EpisodeBatch) -> None:
        """What `evaluate` calls as `on_glimpse`."""
        assert episodes.logits is not None
        if t == 0:
            self._truth = half_truth(episodes, self.half, block=self.block)
            self._batches.append([])
        self._batches[-1].append(episodes.task.potentials["loss"].measure(episodes.logits, self._truth))

    def loss(self) -> NDArray[np.float32]:
        """[N, T] in nats, scenes in the order of the evaluation."""
        return torch.cat([torch.stack(batch, dim=1) for batch in self._batches]).cpu().numpy()
