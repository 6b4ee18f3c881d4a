"""DIME as a learner of agents.algorithms.

    sigmoid(v(s, a)) * entropy(s)  ->  the drop in loss from the glimpse at a

Rollouts, replay and the share of greedy steps are those of agents.q_regression; targets are in nats, without
normalization. All glimpses cost the same, so the best gain per cost is the largest gain. An agent that may stop does so
when that gain is less than `price`, by default the environment's glimpse_cost. The price can be changed after training
(`policy.network.price = 0.02`), so a single policy gives a curve of score against mean number of glimpses.
"""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from agents.algorithms import Algorithm
from agents.checks import check_fields
from agents.q_regression.hyperparameters import QHyperparameters
from agents.q_regression.learner import QRegression
from canvit_gym.checks import finite, optional
from canvit_gym.config import EnvConfig
from canvit_gym.policies.networks import GainNetwork


@dataclass(frozen=True)
class DimeHyperparameters(QHyperparameters):
    """An entry of agents/hyperparameters/dime.yml, which explains the fields."""

    price: float | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, optional(finite(low=0)), "price")
        check_fields(self, optional(finite(low=0, high=1)), "confidence")

    def check_fit(self, config: EnvConfig) -> None:
        if config.reward != "loss_reduction":
            raise ValueError(f"dime predicts the drop in loss: use reward='loss_reduction', not {config.reward!r}")
        if "uncertainty" not in config.observations:
            raise ValueError(
                "dime bounds gains by the reading's entropy: add 'uncertainty' to the observations, which are "
                f"{', '.join(config.observations)}"
            )
        super().check_fit(config)


class Dime(QRegression):
    """Trains a GainNetwork on rollouts."""

    network_class = "GainNetwork"

    @property
    def network_options(self) -> dict[str, Any]:
        hyper = cast(DimeHyperparameters, self.hyper)
        cost = self.plan.env.glimpse_cost
        return {
            **hyper.policy_kwargs,
            "num_classes": self._num_classes,
            "price": cost if hyper.price is None else hyper.price,
            "confidence": hyper.confidence,
        }

    def _fit_prior(self) -> None:
        """A prior is added to the logit of a share of the entropy, not to a target: it keeps its weight."""

    def _predicted(self, values: Tensor) -> Tensor:
        # A stop is worth the price or, by confidence, infinity or minus infinity.
        return values[:, :-1] if self.plan.env.allow_stop else values

    def predictions_and_targets(
        self, observation: dict[str, Tensor], actions: Tensor, gains: Tensor, depth: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Drops in loss, in nats; stops are not learned from."""
        found = cast(GainNetwork, self._network).gains(observation)
        looked = actions < found.shape[1]
        predicted = found.gather(1, actions.clamp(max=found.shape[1] - 1).to(self.device))
        drops = gains[looked] + self.plan.env.glimpse_cost
        return predicted[looked.to(self.device)], drops.to(self.device)


ALGORITHM = Algorithm(title="DIME", hyperparameters=DimeHyperparameters, make=Dime)
