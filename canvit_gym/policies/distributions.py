"""Distributions over actions, with the interface of torch.distributions: sample(), mode, log_prob(actions), entropy().

Tables of viewpoints have torch's Categorical. Continuous actions in [-1, 1]^d have one of these; log-probabilities and
entropies are sums over dimensions, in nats:

- Gaussian: diagonal, unbounded. Its samples are clipped by whoever takes them, so that mass piles up at the border,
  where log-probabilities know nothing of the clipping.
- TanhGaussian: tanh of a diagonal Gaussian. Its entropy is integrated, so that an entropy bonus has the right gradient.
- BoundedBeta: 2x - 1 of independent Beta(a, b) with a, b > 1: one mode, zero density at the border (Chou et al. 2017).

Of the last two, log-probabilities and entropies are those of what is sampled, but for the mass beyond EDGE (of a
tanh-Gaussian with a mean above 7, say), whose samples are clamped.
"""

import math
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta, Categorical, Normal

EDGE = 1e-6
"""Bounded actions keep this distance from -1 and 1, where densities and inverses are not finite."""

QUADRATURE_NODES = 32

CONTINUOUS_DISTRIBUTIONS = ("gaussian", "tanh_gaussian", "beta")


class ActionDistribution(Protocol):
    """Of a batch of B actions."""

    def sample(self) -> Tensor: ...

    @property
    def mode(self) -> Tensor: ...

    def log_prob(self, actions: Tensor, /) -> Tensor: ...

    def entropy(self) -> Tensor: ...


def categorical(logits: Tensor) -> Categorical:
    """[B, A] logits of a table of actions."""
    return Categorical(logits=logits, validate_args=False)


def most_likely(probabilities: Tensor, *, allow_stop: bool) -> Tensor:
    """[B, A] of a table of actions -> [B]: the most likely one.

    With `allow_stop`, whose action is the last one, it is decided in two steps: to stop if that is more likely than to
    go on, else the most likely viewpoint. There are many viewpoints, so that each alone is less likely than going on.
    """
    if not allow_stop:
        return probabilities.argmax(dim=1)
    stop = probabilities.shape[1] - 1
    return torch.where(probabilities[:, stop] > 0.5, stop, probabilities[:, :stop].argmax(dim=1))


class Gaussian:
    """N(mean [B, d], exp(log_std)^2), dimensions independent."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.normal: Any = Normal(mean, torch.ones_like(mean) * log_std.exp(), validate_args=False)

    def sample(self) -> Tensor:
        return self.normal.rsample()

    @property
    def mode(self) -> Tensor:
        return self.normal.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.normal.log_prob(actions).sum(dim=1)

    def entropy(self) -> Tensor:
        return self.normal.entropy().sum(dim=1)


class TanhGaussian:
    """tanh(u), u ~ N(mean [B, d], exp(log_std)^2), dimensions independent. Its mode here is tanh(mean), the median."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.normal: Any = Normal(mean, log_std.exp().expand_as(mean), validate_args=False)

    def sample(self) -> Tensor:
        return torch.tanh(self.normal.rsample()).clamp(EDGE - 1, 1 - EDGE)

    @property
    def mode(self) -> Tensor:
        return torch.tanh(self.normal.mean)

    def log_prob(self, actions: Tensor) -> Tensor:
        # Always from the action, also for one just sampled: a rollout and its evaluation then agree.
        unsquashed = torch.atanh(actions.clamp(EDGE - 1, 1 - EDGE))
        return (self.normal.log_prob(unsquashed) - _log_slope(unsquashed)).sum(dim=1)

    def entropy(self) -> Tensor:
        """H(tanh u) = H(u) + E[log slope of tanh at u], the expectation by Gauss-Hermite quadrature."""
        normal = self.normal
        nodes, weights = (part.to(normal.mean.device) for part in _quadrature())
        u = normal.mean.unsqueeze(-1) + normal.stddev.unsqueeze(-1) * nodes  # [B, d, nodes]
        return (normal.entropy() + _log_slope(u) @ weights).sum(dim=1)


@cache
def _quadrature() -> tuple[Tensor, Tensor]:
    """(nodes, weights that add up to 1) of a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
    with torch.inference_mode(False):  # they are kept
        return torch.from_numpy(nodes).float(), torch.from_numpy(weights / weights.sum()).float()


def _log_slope(u: Tensor) -> Tensor:
    """log d tanh(u)/du, finite for any u."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


class BoundedBeta:
    """2x - 1, x ~ Beta(1 + softplus(p), 1 + softplus(q)), dimensions independent, from parameters [B, 2d] = (p, q)."""

    def __init__(self, parameters: Tensor) -> None:
        # Above 1 by so much; 1 + the excess rounds to 1 below 1e-7, the excess itself does not.
        self._excess = F.softplus(parameters) + torch.finfo(parameters.dtype).tiny
        alpha, beta = (1 + self._excess).chunk(2, dim=1)
        self.beta: Any = Beta(alpha, beta, validate_args=False)

    def sample(self) -> Tensor:
        return (2 * self.beta.rsample() - 1).clamp(EDGE - 1, 1 - EDGE)

    @property
    def mode(self) -> Tensor:
        alpha, beta = self._excess.chunk(2, dim=1)
        return 2 * alpha / (alpha + beta) - 1

    def log_prob(self, actions: Tensor) -> Tensor:
        unit = ((actions + 1) / 2).clamp(EDGE / 2, 1 - EDGE / 2)
        return (self.beta.log_prob(unit) - math.log(2)).sum(dim=1)

    def entropy(self) -> Tensor:
        return (self.beta.entropy() + math.log(2)).sum(dim=1)


def num_parameters(name: str, action_dim: int) -> int:
    """What a head gives for each action of a continuous distribution; a log deviation is learned beside it.

    Raises:
        ValueError: an unknown name.
    """
    if name not in CONTINUOUS_DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {name!r}; choose one of {', '.join(CONTINUOUS_DISTRIBUTIONS)}")
    return 2 * action_dim if name == "beta" else action_dim


def continuous(name: str, parameters: Tensor, log_std: Tensor | None) -> Gaussian | TanhGaussian | BoundedBeta:
    """The distribution of a head's output [B, num_parameters(name, d)]."""
    if name == "beta":
        return BoundedBeta(parameters)
    assert log_std is not None, name
    return TanhGaussian(parameters, log_std) if name == "tanh_gaussian" else Gaussian(parameters, log_std)
