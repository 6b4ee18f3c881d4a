"""The entries of the policy registry: see canvit_gym.policies.registry."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from canvit_gym.config import EnvConfig
from canvit_gym.policies.protocol import GlimpsePolicy, PolicyInfo


@dataclass(frozen=True)
class Context:
    """The environment that a policy is made for."""

    config: EnvConfig
    """The environment."""
    num_glimpses: int
    """The largest number of glimpses per episode, including the first one."""
    progress: bool = False
    """Whether long searches show a progress bar."""


@dataclass(frozen=True)
class PolicySpec:
    """An entry of the registry: the policy's description with default arguments, and how to build it."""

    info: PolicyInfo
    build: Callable[..., GlimpsePolicy]
    """(context, *, ...) -> policy. Its keyword-only parameters are the arguments of spec strings."""
    by_default: bool = True
    """Whether a benchmark runs it if no policies are named."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Name -> default."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
