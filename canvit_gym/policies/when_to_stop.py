"""When to stop, as a part of a network: what a probe reads -> by how much stopping pays more than going on.

It is learned from labels before the rest of a network learns (agents.when_to_stop), and begins its stop action as
canvit_gym.policies.prior begins its viewpoints.
"""

from collections.abc import Mapping

import torch
from gymnasium import spaces
from torch import Tensor, nn

HIGHEST = 3
"""The number of classes, the most likely ones, whose probabilities are told apart from the classes they belong to."""
_EPSILON = 1e-4


def require_stop_action(there_is_one: bool) -> None:
    """Raise ValueError if there is no stop action beside a table of viewpoints."""
    if not there_is_one:
        raise ValueError(
            "learned_stop is about a stop action beside a table of viewpoints, which there is none of: make the "
            "environment with allow_stop=True and action='grid' or 'quadtree', or set policy_kwargs learned_stop to "
            "false"
        )


def check_stoppable(observations: spaces.Dict, *, allow_stop: bool) -> None:
    """
    Raises:
        ValueError: there is no stop action, or the observations do not hold what WorthOfStopping needs.
    """
    require_stop_action(allow_stop)
    shapes = {key: box.shape or () for key, box in observations.items()}
    if "time" not in shapes or len(shapes.get("reading", ())) != 1:
        raise ValueError(
            "learned_stop needs `time` and a `reading` of the scene as a whole among the observations, which are "
            f"{shapes}: add them, or set policy_kwargs learned_stop to false"
        )


class WorthOfStopping(nn.Module):
    """{reading [B, K], time [B, 1], ...} -> [B]: by how much stopping pays more than going on, in units of `spread`."""

    spread: Tensor
    """The standard deviation of `worth` over the states that it was trained on, in units of the score."""

    def __init__(self, num_classes: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.highest = min(HIGHEST, num_classes)
        self.net = nn.Sequential(
            nn.Linear(num_classes + 2 * self.highest + 1, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        self.register_buffer("spread", torch.ones(()))

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        return self.worth(observations) / self.spread

    def worth(self, observations: Mapping[str, Tensor]) -> Tensor:
        """[B], in units of the score."""
        reading = observations["reading"].float()
        highest = reading.topk(self.highest, dim=1).values
        odds = (highest + _EPSILON).log() - (1 - highest + _EPSILON).log()
        return self.net(torch.cat([reading, highest, odds / 5, observations["time"].float()], dim=1))[:, 0]
