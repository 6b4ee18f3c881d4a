"""Where an agent with a stop action stops, and what the reading is worth there."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies.learned import LearnedPolicy
from canvit_gym.rewards import REWARDS


@dataclass(frozen=True)
class Stops:
    """An evaluation in which every scene went on to the budget, and where each would have stopped."""

    evaluation: Evaluation
    glimpses: NDArray[np.int64]  # [N] taken at the stop; the budget where there was none

    @property
    def mean_glimpses(self) -> float:
        return float(self.glimpses.mean())

    def at_stop(self, values: NDArray[Any]) -> NDArray[Any]:
        """[N, T, ...] -> [N, ...]"""
        return values[np.arange(len(self.glimpses)), self.glimpses - 1]

    def score(self) -> float:
        """The data set's score of the readings at the stops."""
        counts = {name: self.at_stop(values)[:, None] for name, values in self.evaluation.counts.items()}
        return float(self.evaluation.measure.score(counts)[0])

    def loss(self) -> float:
        return float(self.at_stop(self.evaluation.loss).mean())

    def worth(self, config: EnvConfig) -> float:
        """The reward's potential at the stops, on average, less what the glimpses cost.

        Of loss_reduction and score_gain this is the mean return, up to a constant of the scenes. A soft score is stood
        for by the score, a relative loss by the loss.
        """
        by_loss = REWARDS[config.reward].potential == "loss"
        potential = -self.loss() if by_loss else self.at_stop(self.evaluation.scene_score()).mean()
        return float(potential - config.glimpse_cost * self.mean_glimpses)


def stops(policy: LearnedPolicy, config: EnvConfig, *, seed: int = 0) -> Stops:
    """Of the policy's most likely actions. Up to its stop an episode that is made to go on is the episode itself: one
    evaluation tells both.
    """
    actions = build_actions(config)
    wants_to: list[list[NDArray[np.bool_]]] = [[] for _ in range(config.budget)]

    def decide(t: int, episodes: EpisodeBatch) -> None:
        observation = {key: value.to(policy.device) for key, value in episodes.observe().items()}
        wants_to[t].append(actions.decode(policy.act(observation))[1])

    evaluation = evaluate(policy, config=config, seed=seed, on_glimpse=decide)
    stopping = np.stack([np.concatenate(of_glimpse) for of_glimpse in wants_to], axis=1)  # [N, T] after each glimpse
    stopping[:, -1] = True
    return Stops(evaluation=evaluation, glimpses=stopping.argmax(axis=1) + 1)
