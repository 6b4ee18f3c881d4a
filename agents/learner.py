"""The interface of learners.

agents.train makes the learner of a run's algorithm (agents.algorithms), begins or restores it, and calls `learn`. The
learner calls the monitor (agents.monitor) after every step of its environments and between updates. The monitor
evaluates the policy and writes policies and states.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import nn

State = dict[str, Any]
"""Tensors, numbers, strings, and lists and dicts of them: see agents.training_state."""


class Closable(Protocol):
    def close(self) -> None: ...


@contextmanager
def closed_on_error(envs: Closable) -> Iterator[None]:
    """Close the environments if the rest of a learner cannot be made: agents.matrix goes on with other runs."""
    try:
        yield
    except BaseException:
        envs.close()
        raise


class Monitoring(Protocol):
    """The methods that a learner calls while it learns."""

    def stepped(self, num_decisions: int) -> None:
        """Call after a step of all environments."""
        ...

    def between_updates(self) -> None:
        """Call before every rollout, when no update is in progress. May raise KeyboardInterrupt."""
        ...


@runtime_checkable
class TellsHowItRan(Protocol):
    """A learner whose result says how it ran."""

    @property
    def ran(self) -> dict[str, str]:
        """The device, and how each part that may be compiled ran: "compiled", "eager", or "eager: " and the reason."""
        ...


class Learner(Protocol):
    """An algorithm at work on its environments."""

    @property
    def num_timesteps(self) -> int:
        """Number of decisions so far, in all environments together."""
        ...

    @property
    def network(self) -> nn.Module:
        """The policy's network in plain PyTorch, which is saved and evaluated (canvit_gym.policies.networks)."""
        ...

    @property
    def network_class(self) -> str:
        """Its name in canvit_gym.policies.networks.NETWORK_CLASSES."""
        ...

    @property
    def network_options(self) -> dict[str, Any]:
        """Its keyword arguments, except for those that the environment's actions determine."""
        ...

    @property
    def captures_every_update(self) -> bool:
        """Whether `capture` is cheap enough for every update. Otherwise it is only called when a state is written."""
        ...

    @property
    def status(self) -> dict[str, float | None]:
        """Numbers for the progress bar."""
        ...

    def set_logger(self, logger: Logger) -> None: ...

    def begin(self, *, progress: bool) -> list[dict[str, float]]:
        """Begin a new run, with a warm start if the hyperparameters have one. Returns the warm start's statistics."""
        ...

    def learn(self, total: int, monitor: Monitoring, *, callbacks: Sequence[BaseCallback] = ()) -> bool:
        """Learn until `total` decisions have been made, including the update on the last complete rollout.

        Returns: whether this was reached; False if a callback ended training earlier.

        Raises:
            KeyboardInterrupt, FloatingPointError: at any time.
        """
        ...

    def capture(self) -> State:
        """Everything that the next update depends on. Only called between updates."""
        ...

    def restore(self, state: State) -> None:
        """Restore a captured state into a new learner with the same settings."""
        ...

    def restore_network(self, state: State) -> None:
        """Restore only the network, after an interruption within an update."""
        ...

    def close(self) -> None: ...
