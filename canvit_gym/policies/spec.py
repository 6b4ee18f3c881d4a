"""What the registry holds of a policy: see canvit_gym.policies.registry."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from canvit_gym.config import EnvConfig
from canvit_gym.policies.protocol import GlimpsePolicy, PolicyInfo


@dataclass(frozen=True)
class Context:
    """What a policy is made for."""

    config: EnvConfig
    """The environment."""
    num_glimpses: int
    """The most glimpses that an episode will have, the first one included."""
    progress: bool = False
    """Whether a search that takes long shows a progress bar."""


@dataclass(frozen=True)
class PolicySpec:
    """A policy by name: what it says about itself with its default arguments, and how it is made."""

    info: PolicyInfo
    build: Callable[..., GlimpsePolicy]
    """(context, *, ...) -> policy. Its keyword-only parameters are the arguments that a spec string may give."""
    by_default: bool = True
    """Whether it runs in a benchmark that names no policies."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Name -> default."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
