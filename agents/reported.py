"""Runs as a report keeps them: without weights, but with what their payoff is computed from, scene by scene.

With these a report can pool runs that were trained and tested at different times or on different machines, and compare
new runs with earlier ones on the same scenes, without the directories of the earlier ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.algorithms import find_algorithm
from agents.clock import read_times
from agents.finished_runs import Run, require_alike
from agents.outcomes import DETERMINISTIC, pays_of_curve
from agents.run_directory import CLOCK, PROVENANCE, without_root
from agents.train_once import SETTINGS
from canvit_gym.arrays import read_arrays, write_arrays
from canvit_gym.config import EnvConfig, override
from canvit_gym.policies.learned import load_record
from canvit_gym.suite.payoff import payoff_of
from canvit_gym.tasks.metric import Counts

REACHED = 0.9
"""The share of its largest gain over random viewpoints after which an algorithm counts as having learned."""
FORMAT = 1
RECIPE = ("algo", "title", "decisions", "glimpses", "env_kwargs", "hyper", "hyperparameters", "settings", "provenance")


@dataclass(frozen=True)
class Reported:
    """The runs of one algorithm on one environment, by seed."""

    recipe: dict[str, Any]
    """What they have in common: the values of RECIPE, as JSON."""
    runs: list[dict[str, Any]]
    """What the report says of each, as JSON; "seed" and "weights_sha256" tell them apart."""
    counts: list[dict[str, Counts]]
    """Of each run, with its most likely viewpoints ("deterministic") and, if it has probabilities, "sampled" ones: what
    its payoff is computed from (canvit_gym.suite.payoff), a row per test scene."""

    def __post_init__(self) -> None:
        assert len(self.runs) == len(self.counts) > 0, (len(self.runs), len(self.counts))


def pooled(new: Mapping[str, Reported], earlier: Mapping[str, Reported], *, where: Path) -> dict[str, Reported]:
    """All runs, by algorithm. New ones replace earlier ones of the same seed.

    where: the file of the earlier ones, for error messages.

    Raises:
        ValueError: new and earlier runs of an algorithm have another recipe.
    """
    return dict(earlier) | {
        name: _with(one, earlier[name], name, where) if name in earlier else one for name, one in new.items()
    }


def _with(new: Reported, earlier: Reported, name: str, where: Path) -> Reported:
    configs = {
        place: one.recipe["settings"] | {"hyperparameters": one.recipe["hyperparameters"]}
        for place, one in ((f"the runs of {name} in {where}", earlier), ("the new ones", new))
    }
    require_alike(configs, cure=f"pass --drop {name} to leave out the earlier ones")
    by_seed = {}
    for one in (earlier, new):
        by_seed |= {run["seed"]: (run, counts) for run, counts in zip(one.runs, one.counts, strict=True)}
    runs, counts = zip(*(by_seed[seed] for seed in sorted(by_seed)), strict=True)
    return Reported(new.recipe, list(runs), list(counts))


def of_runs(runs: list[Run], env: EnvConfig, *, start: float, root: Path) -> Reported:
    """What a report says of the finished runs of one algorithm.

    Args:
        env: the environment that they were tested on.
        start: the payoff of random viewpoints on validation scenes.
        root: the directory of all runs, which is left out of commands.
    """
    payoff = payoff_of(env)
    counts = [{how: payoff.counts(found) for how, found in run.evaluations.items()} for run in runs]
    return Reported(_recipe(runs), [_run(env, run, start, root) for run in runs], counts)


def _recipe(runs: list[Run]) -> dict[str, Any]:
    config = runs[0].config
    algorithm = find_algorithm(config["algo"])
    hyper = algorithm.hyperparameters(**config["hyperparameters"])
    record = load_record(runs[0].directory / "best")
    decisions = runs[0].result["num_timesteps"]  # at least as many as asked for: the last rollout is a whole one
    return {
        "algo": config["algo"],
        "title": algorithm.title,
        "decisions": decisions,
        "glimpses": hyper.glimpses(decisions),
        "env_kwargs": override(hyper.env_kwargs, config["env_kwargs"]),
        "hyper": config["hyper"],
        "hyperparameters": config["hyperparameters"],
        "settings": {name: config[name] for name in SETTINGS},
        "provenance": {key: record.provenance[key] for key in ("versions", "git", "machine")},
    }


def _run(env: EnvConfig, run: Run, start: float, root: Path) -> dict[str, Any]:
    record = load_record(run.directory / "best")
    commands = json.loads((run.directory / PROVENANCE).read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "seed": run.seed,
        "commands": [without_root(one["command"], root) for one in commands],
        "best_at": record.training["num_timesteps"],
        "gpu": record.provenance["machine"]["gpu"],
        "evaluated_on": run.evaluations[DETERMINISTIC].record["device"],
        "weights_sha256": record.weights_sha256,
        "values": {name: payoff_of(env).value(found) for name, found in run.evaluations.items()},
        "score": run.evaluations[DETERMINISTIC].score().tolist(),
    }
    glimpses = run.evaluations[DETERMINISTIC].stops
    return result | ({} if glimpses is None else {"glimpses": float(glimpses.mean())}) | learning(env, run, start)


def learning(env: EnvConfig, run: Run, start: float) -> dict[str, Any]:
    """When validation first reached REACHED of the run's largest gain over `start`; None if there was no gain."""
    evaluations = run.result["evaluations"]
    values = [pays_of_curve(env, entry) for entry in evaluations]
    decisions = [entry["num_timesteps"] for entry in evaluations]
    total = run.result["num_timesteps"]
    times = read_times(run.directory / CLOCK)
    minutes = None if times is None else times["processor_seconds"][-1] / 60
    result: dict[str, Any] = {
        "validation": {"decisions": decisions, "values": values},
        "decisions": total,
        "minutes": minutes,
        "wall_minutes": (run.result["seconds"] if times is None else times["seconds"][-1]) / 60,
        "decisions_to_90": None,
        "minutes_to_90": None,
    }
    if not values or max(values) <= start:
        return result
    place = next(i for i, v in enumerate(values) if v >= start + REACHED * (max(values) - start))
    result["decisions_to_90"] = decisions[place]
    if times is not None and decisions[place] in times["num_timesteps"]:
        result["minutes_to_90"] = times["processor_seconds"][times["num_timesteps"].index(decisions[place])] / 60
    return result


def save_counts(path: Path, algorithms: Mapping[str, Reported], *, scenes: dict[str, Any]) -> None:
    """Write the counts of all runs as a compressed npz. An interruption leaves no partial file.

    scenes: JSON values that tell the scenes and the model apart; runs can only be pooled where they are the same.
    """
    arrays: dict[str, Any] = {}
    for name, one in algorithms.items():
        for run, kept in zip(one.runs, one.counts, strict=True):
            for how, counts in kept.items():
                arrays |= {f"{_place(name, run)}{how}/{key}": _smallest(array) for key, array in counts.items()}
    write_arrays(path, {"format": FORMAT, "scenes": scenes}, arrays)


def load_reported(path: Path, entries: Mapping[str, dict[str, Any]], *, scenes: dict[str, Any]) -> dict[str, Reported]:
    """Read the runs that `entries`, an environment's "algorithms" in its JSON file, describe.

    Algorithms of which a run has no counts in the file are left out, and all if there is no file.

    Args:
        path: what `save_counts` wrote beside the JSON file.
        scenes: those that the counts must be of.

    Raises:
        ValueError: a damaged file, or counts of other scenes.
    """
    if not entries or not path.exists():
        return {}
    cure = f"Pass --drop {' '.join(entries)} to leave the earlier runs out"
    try:
        written, header, found = read_arrays(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or does not hold counts of reported runs ({error}). {cure}") from error
    there = header.get("scenes", {})
    if written != FORMAT or there != scenes:
        differing = [name for name, value in scenes.items() if there.get(name) != value] or ["format"]
        raise ValueError(f"{path} holds counts with another {', '.join(differing)}. {cure}")
    reported = {}
    for name, entry in entries.items():
        counts = [_of_run(found, _place(name, run)) for run in entry["runs"]]
        if all(counts):
            reported[name] = Reported({key: entry[key] for key in RECIPE}, entry["runs"], counts)
    return reported


def _place(name: str, run: dict[str, Any]) -> str:
    """Where the counts of a run are. Its weights tell whether they are those of the run in the JSON file."""
    return f"{name}/{run['weights_sha256']}/"


def _of_run(found: Mapping[str, Any], place: str) -> dict[str, Counts]:
    kept: dict[str, dict[str, Any]] = {}
    for name, array in found.items():
        if name.startswith(place):
            how, key = name.removeprefix(place).split("/")
            kept.setdefault(how, {})[key] = array
    return dict(kept)


def _smallest(array: np.ndarray) -> np.ndarray:
    """The same numbers in the smallest type of integers that holds them; others as they are."""
    if not np.issubdtype(array.dtype, np.integer) or not array.size:
        return array
    return array.astype(np.result_type(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))
