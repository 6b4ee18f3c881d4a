"""Where a policy stops, and what the reading is worth there.

An evaluation takes as many glimpses of every scene as the budget has. Up to where a policy would have stopped, an
episode that is made to go on is the episode itself: one evaluation tells both.
"""

from collections.abc import Callable
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


StopRule = Callable[[int, EpisodeBatch], NDArray[np.bool_]]
"""(t, episodes) -> [B]: whether each episode is to stop after glimpse t (0-based)."""


def own_stop(policy: LearnedPolicy, config: EnvConfig) -> StopRule:
    """Where "stop" is likelier than every viewpoint of a policy that was trained with a stop action."""
    actions = build_actions(config)

    def wants_to(t: int, episodes: EpisodeBatch) -> NDArray[np.bool_]:
        observation = {key: value.to(policy.device) for key, value in episodes.observe().items()}
        return actions.decode(policy.act(observation))[1]

    return wants_to


def confident(threshold: float) -> StopRule:
    """Where the most likely class of a classification has at least this probability."""

    def is_sure(t: int, episodes: EpisodeBatch) -> NDArray[np.bool_]:
        return confidence(episodes) >= threshold

    return is_sure


def confidence(episodes: EpisodeBatch) -> NDArray[np.float32]:
    """[B] the probability of the most likely class, as a classification is read now."""
    assert episodes.logits is not None
    return episodes.logits.softmax(dim=1).amax(dim=1).cpu().numpy()


class StopRecorder:
    """What `evaluate` calls as `on_glimpse`: it notes where a rule would stop, at the latest when the budget is spent.

    >>> from canvit_gym.policies import make_policy
    >>> config = EnvConfig(dataset="fashion-classification", split="test", num_scenes=4, device="cpu", budget=3)
    >>> recorder = StopRecorder(confident(0.0))
    >>> found = evaluate(make_policy("random", config=config, num_glimpses=3), config=config, on_glimpse=recorder)
    >>> recorder.glimpses().tolist()
    [1, 1, 1, 1]
    """

    def __init__(self, rule: StopRule) -> None:
        self._rule = rule
        self._glimpses: list[NDArray[np.int64]] = []  # of every batch so far

    def __call__(self, t: int, episodes: EpisodeBatch) -> None:
        if t == 0:
            self._glimpses.append(np.full(episodes.num, episodes.budget))
        taken = self._glimpses[-1]
        taken[:] = np.where((taken == episodes.budget) & self._rule(t, episodes), t + 1, taken)

    def glimpses(self) -> NDArray[np.int64]:
        """[N] taken at the stop, scenes in the order of the evaluation."""
        return np.concatenate(self._glimpses)


def stops(policy: LearnedPolicy, config: EnvConfig, *, seed: int = 0) -> Stops:
    """Of the policy's most likely actions."""
    recorder = StopRecorder(own_stop(policy, config))
    evaluation = evaluate(policy, config=config, seed=seed, on_glimpse=recorder)
    return Stops(evaluation=evaluation, glimpses=recorder.glimpses())


def stops_when_right(scene_score: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N, T] scores of scenes -> [N] glimpses taken when the reading is first right; 1 where it never is."""
    return (scene_score > 0.5).argmax(axis=1) + 1


def stopped_return(scene_score: NDArray[np.float64], glimpses: NDArray[np.int64], price: float) -> NDArray[np.float64]:
    """[N, T] scores of scenes, [N] glimpses at the stop -> [N] the score there minus the price of all but the first."""
    return scene_score[np.arange(len(glimpses)), glimpses - 1] - price * (glimpses - 1)
