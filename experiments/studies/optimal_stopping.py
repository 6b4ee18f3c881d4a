"""When it pays to stop, learned from episodes that went on: least-squares Monte Carlo (Longstaff and Schwartz 2001,
doi:10.1093/rfs/14.1.113), a method for pricing options.

The decision before the last glimpse is learned first: by how much stopping pays more than going on, regressed on what
the agent has read so far. With that decision made, an episode's outcome is known from there on, and the decision before
it can be learned, down to the first one. Where the agent looks stays as it is, so this says how well one could stop
there by what one reads.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.supervised import gradient_step, minibatches, rise_and_fall

EPOCHS = 10
BATCH_SIZE = 256
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.1
HIDDEN = 64


def facts(readings: NDArray[np.floating[Any]], t: int) -> Tensor:
    """[N, T, K] probabilities of K classes -> [N, F]: what is known after glimpse t (0-based).

    The reading and its three highest probabilities, the reading before it, the mean of all, and how many of them name
    the same class as the last one.
    """
    so_far = torch.from_numpy(readings[:, : t + 1]).float()
    now, before = so_far[:, -1], so_far[:, max(t - 1, 0)]
    highest = now.topk(3, dim=1).values
    agreed = (so_far.argmax(dim=2) == now.argmax(dim=1, keepdim=True)).float().mean(dim=1, keepdim=True)
    return torch.cat([now, highest, (highest + 1e-4).log(), before, so_far.mean(dim=1), agreed], dim=1)


class Regression(nn.Module):
    """[N, F] -> [N]: a perceptron on standardized inputs."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.mean, self.std = inputs.mean(dim=0), inputs.std(dim=0) + 1e-4
        self.net = nn.Sequential(
            nn.Linear(inputs.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net((inputs - self.mean) / self.std)[:, 0]


def learn_when_to_stop(
    readings: NDArray[np.floating[Any]], score: NDArray[np.floating[Any]], *, price: float, seed: int
) -> list[Regression]:
    """Of each of the T - 1 decisions: by how much stopping pays more than going on and stopping later where it pays.

    Args:
        readings: [N, T, K] after every glimpse of episodes that went on to the budget.
        score: [N, T] of these readings.
        price: of a glimpse, in units of the score.
    """
    torch.manual_seed(seed)
    decisions = score.shape[1] - 1
    outcome = torch.from_numpy(score[:, -1]).float()  # of going on
    learned: list[Regression] = []
    for t in reversed(range(decisions)):
        now = torch.from_numpy(score[:, t]).float()
        inputs, going_on = facts(readings, t), outcome - price
        regression = _fitted(inputs, now - going_on)
        outcome = torch.where(_predicted(regression, inputs) >= 0, now, going_on)
        learned.append(regression)
    return learned[::-1]


def _fitted(inputs: Tensor, targets: Tensor) -> Regression:
    regression = Regression(inputs)
    optimizer = torch.optim.AdamW(regression.parameters(), weight_decay=WEIGHT_DECAY)
    for rows in minibatches(
        len(inputs), epochs=EPOCHS, batch_size=BATCH_SIZE, optimizer=optimizer, rate=rise_and_fall(LEARNING_RATE),
        title="When to stop", progress=False,
    ):  # fmt: skip
        gradient_step(regression, optimizer, F.mse_loss(regression(inputs[rows]), targets[rows]))
    return regression


@torch.no_grad()
def _predicted(regression: Regression, inputs: Tensor) -> Tensor:
    return regression(inputs)


def worth_of_stopping(learned: Sequence[Regression], readings: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """[N, T]: by how much stopping after each glimpse pays more than going on; infinite after the last one."""
    worths = [_predicted(regression, facts(readings, t)).double().numpy() for t, regression in enumerate(learned)]
    return np.stack([*worths, np.full(len(readings), np.inf)], axis=1)
