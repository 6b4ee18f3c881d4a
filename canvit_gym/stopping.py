"""Where a policy stops, and how good the reading is there.

Evaluations go on to the budget in every scene. Until a policy's stop such an episode is the same as one that ends
there, so that a single evaluation measures every stopping rule.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvit_gym.assembly import build_actions, task_kind
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies.learned import LearnedPolicy
from canvit_gym.policies.protocol import GlimpsePolicy
from canvit_gym.policies.seen import window
from canvit_gym.policies.streams import scene_uniforms
from canvit_gym.rewards import REWARDS
from canvit_gym.tasks import TASKS


@dataclass(frozen=True)
class Stops:
    """An evaluation in which every scene went on to the budget, and where each would have stopped."""

    evaluation: Evaluation
    glimpses: NDArray[np.int64]  # [N] taken at the stop; the budget where the policy did not stop
    gain: NDArray[np.float32]  # [N, T] the potential of the environment's reward, negated where less is better

    @property
    def mean_glimpses(self) -> float:
        return float(self.glimpses.mean())

    def at_stop(self, values: NDArray[Any]) -> NDArray[Any]:
        """[N, T, ...] -> [N, ...]"""
        return values[np.arange(len(self.glimpses)), self.glimpses - 1]

    def score(self) -> float:
        """The metric over all scenes, of the readings at the stops."""
        counts = {name: self.at_stop(values)[:, None] for name, values in self.evaluation.counts.items()}
        return float(self.evaluation.measure.score(counts)[0])

    def loss(self) -> float:
        return float(self.at_stop(self.evaluation.loss).mean())

    def worth(self, config: EnvConfig) -> float:
        """The mean potential at the stops, minus the price of all glimpses, the first one too.

        For rewards that are differences of the potential this is the mean return, up to a constant of the scenes.
        """
        return float(self.at_stop(self.gain).mean() - config.glimpse_cost * self.mean_glimpses)


WHEN_RIGHT, OWN_ACTION, AT_RANDOM, AT_CONFIDENCE = "when right", "by its own action", "at random", "at confidence "
"""Names of the ways to stop that `evaluate_with_stops` knows; the last one is followed by a probability."""
_AT_RANDOM_STREAM = 1 << 21
"""Offset of the random numbers of stops: policies also draw theirs from (seed, scene, t)."""

StopRule = Callable[[int, EpisodeBatch], NDArray[np.bool_]]
"""(t, episodes) -> [B]: whether each episode is to stop after glimpse t (0-based)."""


def own_stop(policy: LearnedPolicy, config: EnvConfig) -> StopRule:
    """Where a policy that was trained with a stop action would rather stop: where that is more likely than going on or,
    if it has values, worth more than every viewpoint; of a policy whose viewpoints are sampled, where "stop" is drawn
    (apart from where it looks if it goes on). Viewpoints that the environment forbids do not compete with it.
    """
    actions = build_actions(config)

    def wants_to(t: int, episodes: EpisodeBatch) -> NDArray[np.bool_]:
        return policy.wants_to_stop(t, window(policy.info, episodes, actions=actions))

    return wants_to


def confident(threshold: float) -> StopRule:
    """Where the most likely class of a classification has at least this probability."""

    def is_sure(t: int, episodes: EpisodeBatch) -> NDArray[np.bool_]:
        return confidence(episodes) >= threshold

    return is_sure


def at_random(seed: int) -> StopRule:
    """After a number of glimpses that is drawn uniformly for every scene."""

    def has_come(t: int, episodes: EpisodeBatch) -> NDArray[np.bool_]:
        drawn = scene_uniforms(seed, episodes.scene, _AT_RANDOM_STREAM)
        return t >= np.floor(drawn * episodes.budget)

    return has_come


def at_confidence(threshold: float) -> str:
    """The name of `confident` with this threshold; above 1 episodes never stop.

    >>> at_confidence(0.6)
    'at confidence 0.6'
    """
    return AT_CONFIDENCE + repr(float(threshold)).removesuffix(".0")


def named(policy: str, stop: str | None) -> str:
    """A policy and where it stops, in words. None: it goes on to the budget.

    >>> named("random", at_confidence(0.6))
    'random, stops at confidence 0.6'
    >>> named("random", WHEN_RIGHT)
    'random, told when the reading is right'
    """
    if stop is None:
        return policy
    return f"{policy}, told when the reading is right" if stop == WHEN_RIGHT else f"{policy}, stops {stop}"


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
        going_on = taken == episodes.budget
        if t + 1 < episodes.budget and going_on.any():  # a rule may run a network
            taken[going_on & self._rule(t, episodes)] = t + 1

    def glimpses(self) -> NDArray[np.int64]:
        """[N] taken at the stop, scenes in the order of the evaluation."""
        return np.concatenate(self._glimpses)


def evaluate_with_stops(
    policy: GlimpsePolicy, *, stop: str, config: EnvConfig, seed: int = 0, **options: Any
) -> Evaluation:
    """Evaluate a policy and record where it would stop.

    Args:
        policy: a policy; a learned one with a stop action for OWN_ACTION.
        stop: WHEN_RIGHT, OWN_ACTION, AT_RANDOM, or `at_confidence(p)`.
        config: the environment's.
        seed: of the policy, and of stops at random.
        options: what else `evaluate` takes, except on_glimpse.

    Raises:
        ValueError: an unknown name, or as in `evaluate`.
        TypeError: OWN_ACTION of a policy that is not a learned one.

    >>> from canvit_gym.policies import make_policy
    >>> config = EnvConfig(dataset="fashion-classification", split="test", num_scenes=4, device="cpu", budget=3)
    >>> policy = make_policy("random", config=config, num_glimpses=3)
    >>> evaluate_with_stops(policy, stop="at confidence 0", config=config).stops.tolist()
    [1, 1, 1, 1]
    """
    if stop == WHEN_RIGHT:  # which is known only afterwards
        found = evaluate(policy, config=config, seed=seed, **options)
        return replace(found, stops=stops_when_right(found.scene_score()))
    recorder = StopRecorder(_rule_named(stop, policy, config, seed=seed))
    found = evaluate(policy, config=config, seed=seed, on_glimpse=recorder, **options)
    return replace(found, stops=recorder.glimpses())


def _rule_named(name: str, policy: GlimpsePolicy, config: EnvConfig, *, seed: int) -> StopRule:
    if name == OWN_ACTION:
        if not isinstance(policy, LearnedPolicy):
            raise TypeError(f"only learned policies stop {OWN_ACTION!r}, not {policy.info.name!r}: choose another way")
        return own_stop(policy, config)
    if name == AT_RANDOM:
        return at_random(seed)
    if (threshold := _threshold(name)) is None:
        known = f"{WHEN_RIGHT!r}, {OWN_ACTION!r}, {AT_RANDOM!r} or {at_confidence(0.5)!r}"
        raise ValueError(f"unknown way to stop {name!r}; choose {known}")
    if TASKS[task_kind(config.dataset)].kind.reading_shape != "[B, K]":
        raise ValueError(
            f"only classifications have a confidence to stop at, not {config.dataset!r}: choose another way"
        )
    return confident(threshold)


def _threshold(name: object) -> float | None:
    """That of a name as `at_confidence` gives; None for other names."""
    if not isinstance(name, str) or not name.startswith(AT_CONFIDENCE):
        return None
    try:
        threshold = float(name.removeprefix(AT_CONFIDENCE))
    except ValueError:
        return None
    return None if np.isnan(threshold) else threshold


def stops(policy: LearnedPolicy, config: EnvConfig, *, seed: int = 0) -> Stops:
    """Where the policy's most likely actions stop, or its sampled ones."""
    recorder = StopRecorder(own_stop(policy, config))
    gains: list[list[NDArray[np.float32]]] = [[] for _ in range(config.budget)]

    def after_glimpse(t: int, episodes: EpisodeBatch) -> None:
        recorder(t, episodes)
        assert episodes.logits is not None
        potential = episodes.task.potentials[REWARDS[config.reward].potential]
        measured = potential.measure(episodes.logits, episodes.truth).float().cpu().numpy()
        gains[t].append(-measured if potential.less_is_better else measured)

    evaluation = evaluate(policy, config=config, seed=seed, on_glimpse=after_glimpse)
    gain = np.stack([np.concatenate(batches) for batches in gains], axis=1)
    return Stops(evaluation=evaluation, glimpses=recorder.glimpses(), gain=gain)


def stops_when_right(scene_score: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N, T] scores of scenes -> [N] glimpses taken when the reading is first right; 1 where it never is."""
    return (scene_score > 0.5).argmax(axis=1) + 1


def first_at_least(signal: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.int64]:
    """[N, T] a number after every glimpse -> [N] glimpses taken when it first reaches the threshold; T where it never
    does.

    >>> first_at_least(np.array([[0.2, 0.7, 0.9], [0.1, 0.2, 0.3]]), 0.6).tolist()
    [2, 3]
    """
    enough = signal >= threshold
    enough[:, -1] = True
    return enough.argmax(axis=1) + 1


def stopped_return(scene_score: NDArray[np.float64], glimpses: NDArray[np.int64], price: float) -> NDArray[np.float64]:
    """[N, T] scores of scenes, [N] glimpses at the stop -> [N] the score there minus what the glimpses cost."""
    return scene_score[np.arange(len(glimpses)), glimpses - 1] - cost_of_glimpses(glimpses, price)


def cost_of_glimpses[G: (float, NDArray[Any])](glimpses: G, price: float) -> G:
    """What glimpses cost at a price for each. The first is free, since every episode has one.

    >>> cost_of_glimpses(4, 0.5)
    1.5
    """
    return price * (glimpses - 1)
