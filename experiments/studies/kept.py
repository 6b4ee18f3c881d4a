"""Evaluations of a study with what else it measures, kept in files: an interrupted study can continue."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from canvit_gym.atomic import replacing
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies.protocol import GlimpsePolicy

Signal = Callable[[EpisodeBatch], NDArray[Any]]
"""Measured after every glimpse: B episodes -> [B, ...]."""


@dataclass(frozen=True)
class Look:
    """A policy on N scenes, made to spend the whole budget of T glimpses."""

    evaluation: Evaluation
    signals: dict[str, NDArray[Any]]
    """Name -> [N, T, ...]."""


def look(make: Callable[[], GlimpsePolicy], env: EnvConfig, *, path: Path, signals: Mapping[str, Signal]) -> Look:
    """The evaluation and the signals kept in `path` and beside it; measured and saved if they are not there.

    Args:
        make: makes the policy, if it has to be evaluated.
        path: a .npz file, whose name depends on all that the numbers depend on (agents.outcomes.evaluation_key).
        signals: name -> what is measured of the episodes.
    """
    beside = path.with_suffix(".signals.npz")
    if path.is_file():
        kept = _read(beside)
        if kept.keys() >= signals.keys():
            return Look(Evaluation.load(path), {name: kept[name] for name in signals})
    parts: dict[str, list[list[NDArray[Any]]]] = {name: [[] for _ in range(env.budget)] for name in signals}

    def note(t: int, episodes: EpisodeBatch) -> None:
        for name, of in signals.items():
            parts[name][t].append(of(episodes))

    found = evaluate(make(), config=env, on_glimpse=note, progress=path.stem)
    values = {name: np.stack([np.concatenate(part) for part in of], axis=1) for name, of in parts.items()}
    if values:
        with replacing(beside) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **cast(dict[str, Any], values))
    found.save(path)
    return Look(found, values)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    with np.load(path) as kept:
        return {name: kept[name] for name in kept.files}
