"""Supervised learning on states held in memory: what the learners of gains and the studies share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from agents.finite import require_finite
from canvit_gym.checks import finite, integer

WARM_UP = 0.05
"""The share of the updates in which `rise_and_fall` rises: high rates fail from the first update on."""
HELD_OUT = 1 / 16
"""The share of the episodes that predictions are tested on."""
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Stage:
    """How a part of a network learns before the rest of it: from how many states, one glimpse each, and how."""

    hyperparameter: ClassVar[str]
    """The hyperparameter that these are the options of."""
    states: int
    epochs: int
    batch_size: int
    learning_rate: float
    """Its peak; see agents.supervised.rise_and_fall."""
    weight_decay: float
    """Of AdamW."""

    def __post_init__(self) -> None:
        for name, low in (("states", 1), ("epochs", 1), ("batch_size", 2)):
            integer(low)(f"{self.hyperparameter} {name}", getattr(self, name))
        finite(above=0)(f"{self.hyperparameter} learning_rate", self.learning_rate)
        finite(low=0)(f"{self.hyperparameter} weight_decay", self.weight_decay)


def glimpses_of(stage: Stage | None) -> int:
    """The number of glimpses that its states take, if whole batches of episodes have as many."""
    return 0 if stage is None else stage.states


def num_to_learn_from(episodes: int) -> int:
    """The number of episodes to learn from; the others, the last ones and at least one, are held out."""
    return episodes - max(1, int(HELD_OUT * episodes))


def rise_and_fall(peak: float) -> Callable[[float], float]:
    """Share of the updates done -> learning rate: linear up to the peak, at WARM_UP, then linear towards 0."""
    return lambda done: peak * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


def minibatches(
    num: int,
    *,
    epochs: int,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
    title: str,
    progress: bool,
) -> Iterator[Tensor]:
    """The rows [B] of every update: shuffled in every epoch, with the optimizer's learning rate set.

    Args:
        num: number of rows.
        rate: share of the updates done, in (0, 1) -> learning rate.
        title: of the progress bar.
    """
    updates = epochs * -(-num // batch_size)
    done = 0
    with tqdm(total=updates, desc=title, unit="update", disable=None if progress else True) as bar:
        for _ in range(epochs):
            for rows in torch.randperm(num).split(batch_size):
                done += 1
                optimizer.param_groups[0]["lr"] = rate(done / (updates + 1))
                yield rows
                bar.update()


def gradient_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    *,
    max_grad_norm: float = MAX_GRAD_NORM,
    title: str = "the loss",
) -> None:
    """Take one step along the clipped gradient of `loss`, whose name in errors is `title`.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; no parameter has changed.
    """
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
    require_finite({title: loss.detach(), "its gradient": norm})
    optimizer.step()
