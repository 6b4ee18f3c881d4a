"""Distributions with the interface of Stable-Baselines3."""

from typing import Any

from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from torch import Tensor, nn

from canvit_gym.policies import distributions


class StoppableDistribution(CategoricalDistribution):
    """Over a table of viewpoints and, as the last action, to stop."""

    def mode(self) -> Tensor:
        return distributions.most_likely(self.distribution.probs, allow_stop=True)


class ContinuousDistribution(Distribution):
    """A distribution of canvit_gym.policies.distributions, by name; it is the attribute `distribution`."""

    distribution: Any

    def __init__(self, name: str, action_dim: int) -> None:
        super().__init__()
        self.name = name
        self.num_parameters = distributions.num_parameters(name, action_dim)

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return nn.Linear(latent_dim, self.num_parameters)

    def proba_distribution(self, parameters: Tensor, log_std: Tensor | None = None) -> "ContinuousDistribution":
        self.distribution = distributions.continuous(self.name, parameters, log_std)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.distribution.log_prob(actions)

    def entropy(self) -> Tensor:
        return self.distribution.entropy()

    def sample(self) -> Tensor:
        return self.distribution.sample()

    def mode(self) -> Tensor:
        return self.distribution.mode

    def actions_from_params(self, *parameters: Tensor, deterministic: bool = False) -> Tensor:
        return self.proba_distribution(*parameters).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        actions = self.actions_from_params(*parameters)
        return actions, self.log_prob(actions)
