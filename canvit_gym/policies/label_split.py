"""Split a scene's labelled pixels into two halves: choose by one and score on the other, to remove luck.

The greedy oracle takes the candidate after which the loss is lowest. Part of its lead is luck: among many candidates
some happen to improve the reading, for reasons that nothing on the canvas predicts. An oracle that chooses by one half
and is scored on the other keeps what its glimpses reveal about a region, and loses what only happened to fit the pixels
that it was chosen by.

The halves are the two colours of a checkerboard: "even" and "odd" squares of `block` x `block` canvas cells, where the
top-left square is even. With single cells (block=1) every window covers as much of one half as of the other, so that
the choice favours no place. But neighbouring cells share their object and nearly their features, so either half tells
whether that object will be read correctly, and the remaining lead is an upper bound of the lead without luck. The
larger the squares, the fewer objects have pixels in both halves, and the more the choice favours places of its own
half: with squares wider than objects the remaining lead is a lower bound. Report both.

A classification label belongs to the whole scene and cannot be split, and there is no second reading of the same scene
with independent luck. For such tasks this raises ValueError.
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
    """The episodes' truth with the labels of only one half, for `task.loss`.

    Raises:
        ValueError: the task's labels cannot be split.
    """
    if "shares" not in episodes.truth:
        raise ValueError(
            f"{episodes.task.name} has one label per scene, which cannot be split into halves to measure the luck in "
            "an oracle's lead; use a segmentation environment"
        )
    shares = episodes.truth["shares"]  # [B, K, G, G]
    grid = shares.shape[-1]
    if block >= grid:
        raise ValueError(f"a {grid} x {grid} canvas has no odd squares of {block} cells; use block={grid // 4}")
    squares = torch.arange(grid, device=shares.device) // block
    odd = (squares.unsqueeze(1) + squares) % 2
    return {**episodes.truth, "shares": shares * (odd if half == "odd" else 1 - odd)}


class HalfLoss:
    """Measures the cross-entropy on one half of the pixels after every glimpse of an evaluated policy.

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
        """For `on_glimpse` of `evaluate`."""
        assert episodes.logits is not None
        if t == 0:
            self._truth = half_truth(episodes, self.half, block=self.block)
            self._batches.append([])
        self._batches[-1].append(episodes.task.potentials["loss"].measure(episodes.logits, self._truth))

    def loss(self) -> NDArray[np.float32]:
        """[N, T] in nats, scenes in the order of the evaluation."""
        return torch.cat([torch.stack(batch, dim=1) for batch in self._batches]).cpu().numpy()
