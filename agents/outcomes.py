"""What an environment pays a policy on held-out scenes, used neither for training nor for tuning.

By default this is the score after the last glimpse. If only the order of glimpses counts (revisit=False), it is the
area under the curve of the score. If glimpses have a price (allow_stop=True), it is the score where the episode stops
minus the price of all glimpses after the first. Evaluations are kept in files, so that an interrupted command can
continue.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvit_gym.atomic import replacing
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate, score_statistic
from canvit_gym.policies import make_policy
from canvit_gym.policies.learned import LearnedPolicy
from canvit_gym.statistics import Mean, Statistic, Transformed, area_under_curve
from canvit_gym.stopping import StopRecorder, confident, stopped_return, stops

_AT_CONFIDENCE = re.compile(r"(?P<spec>.+), stops at confidence (?P<threshold>[\d.]+)")


@dataclass(frozen=True)
class Outcome:
    """The evaluation of one policy on N scenes and, if it may stop, the number of glimpses [N] that it took."""

    evaluation: Evaluation
    glimpses: NDArray[np.int64] | None = None


def pays(env: EnvConfig) -> str:
    """What the environment pays, in words."""
    if env.allow_stop:
        return f"score where the episode stops, minus {env.glimpse_cost:g} a glimpse"
    return "score after the last glimpse" if env.revisit else "area under the score's curve"


def pays_of_curve(env: EnvConfig, entry: dict[str, Any]) -> float:
    """What the environment pays according to an evaluation during training (agents.monitor)."""
    if "at_stop" in entry:
        return entry["at_stop"]["score"] - env.glimpse_cost * (entry["at_stop"]["glimpses"] - 1)
    return float(_of_curve(env, np.array([entry["score"]]))[0, 0])


def _of_curve(env: EnvConfig, curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R, T] -> [R, 1]"""
    return curves[:, -1:] if env.revisit else area_under_curve(curves)[:, None]


def statistic(env: EnvConfig, outcome: Outcome) -> Statistic:
    """What the environment pays for one run, as a statistic of canvit_gym.statistics."""
    found = outcome.evaluation
    if outcome.glimpses is None:
        return Transformed(score_statistic((found,)), lambda curves: _of_curve(env, curves))
    return Mean(stopped_return(found.scene_score(), outcome.glimpses, env.glimpse_cost)[None, :, None])


def value(env: EnvConfig, outcome: Outcome) -> float:
    """What the environment pays, on average over the scenes."""
    one = statistic(env, outcome)
    return float(one(np.ones((1, 1)), np.ones((1, one.num_scenes)))[0, 0])


def of_learned(policy: LearnedPolicy, env: EnvConfig, *, path: Path) -> Outcome:
    """Evaluate a trained policy, or read its evaluation from `path` if there is one.

    Raises:
        ValueError: the policy does not fit the environment.
    """

    def measure() -> Outcome:
        if env.allow_stop:
            found = stops(policy, env)
            return Outcome(found.evaluation, found.glimpses)
        return Outcome(evaluate(policy, config=env))

    return _kept(path, measure, stopping=env.allow_stop)


def of_hand_coded(name: str, env: EnvConfig, *, directory: Path) -> Outcome:
    """Evaluate a hand-coded policy, "NAME" or "NAME, stops at confidence C", on `env`; kept in `directory`."""
    matched = _AT_CONFIDENCE.fullmatch(name)
    spec, threshold = (matched["spec"], float(matched["threshold"])) if matched else (name, None)

    def measure() -> Outcome:
        recorder = StopRecorder(confident(np.inf if threshold is None else threshold))
        policy = make_policy(spec, config=env, num_glimpses=env.budget)
        found = evaluate(policy, config=env, on_glimpse=recorder if env.allow_stop else None)
        return Outcome(found, recorder.glimpses() if env.allow_stop else None)

    slug = re.sub(r"[^\w.]+", "-", name).strip("-")
    path = directory / f"{slug}-{env.split}-{env.num_scenes or 'all'}.npz"
    return _kept(path, measure, stopping=env.allow_stop)


def _kept(path: Path, measure: Callable[[], Outcome], *, stopping: bool) -> Outcome:
    beside = path.with_suffix(".glimpses.npy")
    if path.is_file() and (beside.is_file() or not stopping):
        return Outcome(Evaluation.load(path), np.load(beside) if stopping else None)
    outcome = measure()
    if outcome.glimpses is not None:
        with replacing(beside) as partial, partial.open("wb") as file:
            np.save(file, outcome.glimpses)
    outcome.evaluation.save(path)
    return outcome
