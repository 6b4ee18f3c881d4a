"""Finished runs of an algorithm on an environment, with their evaluations on test scenes."""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.matrix import tested
from agents.run_directory import CONFIG, RESULT
from agents.train_once import settings
from canvit_gym.evaluation import Evaluation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    directory: Path
    seed: int
    config: dict[str, Any]
    result: dict[str, Any]
    evaluations: dict[str, Evaluation]


def finished(root: Path, *, algo: str = "*", name: str = "*") -> list[tuple[Path, dict[str, Any]]]:
    """(directory, configuration) of the finished runs."""
    directories = [path.parent for path in sorted(root.glob(f"{algo}/{name}/seed-*/{RESULT}"))]
    return [(path, json.loads((path / CONFIG).read_text(encoding="utf-8"))) for path in directories]


def find_runs(
    root: Path, num_scenes: int | None, *, algo: str = "*", name: str = "*", left_out: Sequence[str] = ()
) -> dict[str, dict[str, list[Run]]]:
    """Environment -> algorithm's directory -> finished runs, by seed. Evaluates those that have not been evaluated.

    left_out: ids of environments to leave out.

    Raises:
        ValueError: runs of one algorithm differ in more than their seed, or were never validated.
    """
    found: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for directory, config in finished(root, algo=algo, name=name):
        if config["env"] in left_out:
            continue
        if not config["eval_every"]:
            raise ValueError(f"{directory} was trained without validation (eval_every=0): it has no best policy")
        log.info("%s", directory)
        run = Run(
            directory=directory,
            seed=config["seed"],
            config=config,
            result=json.loads((directory / RESULT).read_text(encoding="utf-8")),
            evaluations=tested(directory, num_scenes=num_scenes),
        )
        found[config["env"]][directory.parents[1].name].append(run)
    for env_id, of_algorithms in found.items():
        for name, runs in of_algorithms.items():
            runs.sort(key=lambda run: run.seed)
            seeds = [run.seed for run in runs]
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{name} on {env_id} has seeds {seeds}: every seed may be there once")
            require_alike(
                {str(run.directory): run.config for run in runs}, cure="move one of them to another directory"
            )
    return found


def require_alike(configs: Mapping[str, dict[str, Any]], *, cure: str) -> None:
    """
    Args:
        configs: where a run is -> its configuration: SETTINGS (agents.train_once) and "hyperparameters".
        cure: what to do otherwise, for the error message.

    Raises:
        ValueError: two of them differ.
    """
    (first, of_first), *others = ((where, settings(config)) for where, config in configs.items())
    for where, own in others:
        for key, value in of_first.items():
            if own[key] != value:
                raise ValueError(
                    f"{first} and {where} differ in {key}: {value!r} and {own[key]!r}. Runs that are averaged must be "
                    f"alike but for their seeds; {cure}"
                )
