"""What training asks of a learner, whatever its algorithm.

Training (agents.train) makes the learner of a run's algorithm (agents.algorithms), begins or restores it, and lets it
learn. The learner calls the monitor (agents.monitor) after every step of its environments and between its updates;
there the policy is evaluated, and policies and states are written.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import nn

State = dict[str, Any]
"""Tensors, numbers, strings, and lists and dicts of them: see agents.training_state."""


class Monitoring(Protocol):
    """What a learner calls while it learns."""

    def stepped(self, num_decisions: int) -> None:
        """After a step of all environments."""
        ...

    def between_updates(self) -> None:
        """Before every rollout: nothing is under way. May raise KeyboardInterrupt."""
        ...


@runtime_checkable
class TellsHowItRan(Protocol):
    """A learner whose result says how it ran."""

    @property
    def ran(self) -> dict[str, str]:
        """The device, and of what may be compiled whether it was: "compiled", "eager", or "eager: " and why."""
        ...


class Learner(Protocol):
    """An algorithm at work on its environments."""

    @property
    def num_timesteps(self) -> int:
        """Decisions so far, in all environments together."""
        ...

    @property
    def network(self) -> nn.Module:
        """The policy's network in plain PyTorch: what is saved and evaluated (canvit_gym.policies.networks)."""
        ...

    @property
    def network_class(self) -> str:
        """Its name in canvit_gym.policies.networks.NETWORK_CLASSES."""
        ...

    @property
    def network_options(self) -> dict[str, Any]:
        """Its keyword arguments, beyond those that the environment's actions decide."""
        ...

    @property
    def captures_every_update(self) -> bool:
        """Whether `capture` is cheap enough for every update; else it is called where a state is written only."""
        ...

    @property
    def status(self) -> dict[str, float | None]:
        """Numbers for the progress bar."""
        ...

    def set_logger(self, logger: Logger) -> None: ...

    def begin(self, *, progress: bool) -> list[dict[str, float]]:
        """Before the first update of a new run: a warm start, if the hyperparameters ask for one, and what it found."""
        ...

    def learn(self, total: int, monitor: Monitoring, *, callbacks: Sequence[BaseCallback] = ()) -> bool:
        """Until `total` decisions were made, its last rollout completed and learned from.

        Returns: whether that was reached; False where a callback ended training before.

        Raises:
            KeyboardInterrupt, FloatingPointError: anywhere.
        """
        ...

    def capture(self) -> State:
        """All that the next update depends on. Called between updates alone."""
        ...

    def restore(self, state: State) -> None:
        """Make a fresh learner of the same settings the one whose state was captured."""
        ...

    def restore_network(self, state: State) -> None:
        """The network alone, after an interruption within an update."""
        ...

    def close(self) -> None: ...
