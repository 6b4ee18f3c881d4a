"""TorchLearner, the base of learners in plain PyTorch: a network, its optimizer, a logger and their state."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import nn

from agents.learner import State
from agents.settings import Plan


class TorchLearner[Network: nn.Module]:
    """Base of an agents.learner.Learner.

    Subclasses set `_network` and `optimizer`, and extend `capture` and `restore` by everything else that the next
    update depends on.
    """

    _network: Network
    optimizer: torch.optim.Optimizer

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.num_timesteps = 0
        self._logger = Logger(None, [])

    @property
    def network(self) -> nn.Module:
        return self._network

    @property
    def network_options(self) -> dict[str, Any]:
        return self.plan.hyper.policy_kwargs

    def set_logger(self, logger: Logger) -> None:
        self._logger = logger

    def _refuse_callbacks(self, callbacks: Sequence[BaseCallback]) -> None:
        if callbacks:
            raise TypeError(
                f"callbacks are for algorithms of Stable-Baselines3, but {self.plan.settings.algo} is not one: leave "
                "them out"
            )

    def capture(self) -> State:
        return {
            "num_timesteps": self.num_timesteps,
            "policy": {name: value.detach().clone() for name, value in self._network.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def restore(self, state: State) -> None:
        self.num_timesteps = state["num_timesteps"]
        self.restore_network(state)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def restore_network(self, state: State) -> None:
        self._network.load_state_dict(state["policy"])
