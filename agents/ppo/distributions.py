"""Distributions over continuous actions in [-1, 1]^d, beside SB3's DiagGaussianDistribution.

SB3's Gaussian is unbounded and its samples are clipped, so that mass piles up at the border, where log-probabilities
know nothing of the clipping. Here log-probabilities and entropies are those of what is sampled, in nats, but for the
mass beyond EDGE (of a tanh-Gaussian with a mean above 7, say), whose samples are clamped.

- TanhGaussian: tanh of a diagonal Gaussian. SB3's SquashedDiagGaussianDistribution has no entropy; here it is
  integrated, so that an entropy bonus has the right gradient.
- BoundedBeta: 2x - 1 of independent Beta(a, b) with a, b > 1: one mode, zero density at the border (Chou et al. 2017).
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from torch import Tensor, nn
from torch.distributions import Beta, Normal

EDGE = 1e-6
"""Actions keep this distance from -1 and 1, where densities and inverses are not finite."""

QUADRATURE_NODES = 32

CONTINUOUS_DISTRIBUTIONS = ("gaussian", "tanh_gaussian", "beta")


class _Bounded(Distribution):
    """What both share: parameters [B, num_parameters] come from one head, and actions lie within EDGE of the border."""

    def __init__(self, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return nn.Linear(latent_dim, self.num_parameters)

    @property
    def num_parameters(self) -> int:
        raise NotImplementedError

    def actions_from_params(self, *parameters: Tensor, deterministic: bool = False) -> Tensor:
        self.proba_distribution(*parameters)
        return self.get_actions(deterministic=deterministic)

    def log_prob_from_params(self, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        actions = self.actions_from_params(*parameters)
        return actions, self.log_prob(actions)


class TanhGaussian(_Bounded):
    """tanh(u), u ~ N(mean, exp(log_std)^2), dimensions independent. Its mode here is tanh(mean), the median."""

    distribution: Any  # a Normal

    def __init__(self, action_dim: int) -> None:
        super().__init__(action_dim)
        nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
        self._nodes = torch.from_numpy(nodes).float()
        self._weights = torch.from_numpy(weights / weights.sum()).float()

    @property
    def num_parameters(self) -> int:
        return self.action_dim

    def proba_distribution(self, mean: Tensor, log_std: Tensor) -> "TanhGaussian":
        self.distribution = Normal(mean, log_std.exp().expand_as(mean), validate_args=False)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        # Always from the action, also for one just sampled: a rollout and its evaluation then agree.
        unsquashed = torch.atanh(actions.clamp(EDGE - 1, 1 - EDGE))
        return (self.distribution.log_prob(unsquashed) - _log_slope(unsquashed)).sum(dim=1)

    def entropy(self) -> Tensor:
        """H(tanh u) = H(u) + E[log slope of tanh at u], the expectation by Gauss-Hermite quadrature."""
        normal = self.distribution
        nodes, weights = self._nodes.to(normal.mean.device), self._weights.to(normal.mean.device)
        u = normal.mean.unsqueeze(-1) + normal.stddev.unsqueeze(-1) * nodes  # [B, d, nodes]
        return (normal.entropy() + _log_slope(u) @ weights).sum(dim=1)

    def sample(self) -> Tensor:
        return torch.tanh(self.distribution.rsample()).clamp(EDGE - 1, 1 - EDGE)

    def mode(self) -> Tensor:
        return torch.tanh(self.distribution.mean)


def _log_slope(u: Tensor) -> Tensor:
    """log d tanh(u)/du, finite for any u."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


class BoundedBeta(_Bounded):
    """2x - 1, x ~ Beta(1 + softplus(p), 1 + softplus(q)), dimensions independent, from parameters [B, 2d] = (p, q)."""

    distribution: Any  # a Beta

    @property
    def num_parameters(self) -> int:
        return 2 * self.action_dim

    def proba_distribution(self, parameters: Tensor) -> "BoundedBeta":
        # Above 1 by so much; 1 + the excess rounds to 1 below 1e-7, the excess itself does not.
        self._excess = F.softplus(parameters) + torch.finfo(parameters.dtype).tiny
        alpha, beta = (1 + self._excess).chunk(2, dim=1)
        self.distribution = Beta(alpha, beta, validate_args=False)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        unit = ((actions + 1) / 2).clamp(EDGE / 2, 1 - EDGE / 2)
        return (self.distribution.log_prob(unit) - math.log(2)).sum(dim=1)

    def entropy(self) -> Tensor:
        return (self.distribution.entropy() + math.log(2)).sum(dim=1)

    def sample(self) -> Tensor:
        return (2 * self.distribution.rsample() - 1).clamp(EDGE - 1, 1 - EDGE)

    def mode(self) -> Tensor:
        alpha, beta = self._excess.chunk(2, dim=1)
        return 2 * alpha / (alpha + beta) - 1


def make_continuous_distribution(name: str, action_dim: int) -> Distribution:
    """
    Raises:
        ValueError: an unknown name.
    """
    match name:
        case "gaussian":
            return DiagGaussianDistribution(action_dim)
        case "tanh_gaussian":
            return TanhGaussian(action_dim)
        case "beta":
            return BoundedBeta(action_dim)
    raise ValueError(f"unknown distribution {name!r}; choose one of {', '.join(CONTINUOUS_DISTRIBUTIONS)}")
