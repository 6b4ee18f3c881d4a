"""Episodes that people played, saved in the format of evaluation records: `canvit-gym benchmark --also human=FILE`.

A record holds scenes, viewpoints, what the probe read there, and the seconds that each glimpse took. It holds nothing
about the player and no directory of their machine.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.provenance import strip_directories
from canvit_gym.replay import Replay

HUMAN = "human"
SECONDS = "seconds_by_scene"
"""Key of a record: for each scene, the seconds before every glimpse."""

_OF_THE_MACHINE = (
    "device", "workers", "cache", "root", "compile", "precision", "first_glimpse_cache_mb", "first_glimpse_cache_dtype",
    "first_glimpse_cache_on", "observations", "reward", "glimpse_cost", "track_score", "shard",
)  # fmt: skip
"""Fields of a configuration in which two records of one environment may differ."""


@dataclass(frozen=True)
class Played:
    """One episode that a person played."""

    scene: int
    viewpoints: NDArray[np.float32]  # [t, 3], t >= 1: fewer than the budget if the player stopped
    seconds: tuple[float, ...]  # [t] before every glimpse; 0 for one taken by the environment


class Recorder:
    """Adds episodes to a file, one scene each, first tries only. Earlier episodes are kept."""

    def __init__(self, path: Path, config: EnvConfig, *, num_scenes: int) -> None:
        """
        Args:
            path: the file; if it exists, episodes are added to it.
            config: the configuration of the environment.
            num_scenes: the number of scenes in its split.

        Raises:
            ValueError: the file is not a record, or is of another environment. OSError: it cannot be written.
        """
        self._path, self._config, self._num_scenes = path, config, num_scenes
        self._record: Evaluation | None = None
        if path.exists():
            self._record = read_played(path)
            self._require_same(self._record)
        elif not path.parent.is_dir():
            raise FileNotFoundError(f"there is no directory {path.parent} for --record {path.name}: make it first")

    @property
    def scenes(self) -> frozenset[int]:
        """The scenes that were played."""
        return frozenset() if self._record is None else frozenset(self._record.scene.tolist())

    def add(self, played: Played) -> None:
        """Evaluate the episode and write the file, unless its scene was played before."""
        if played.scene in self.scenes:
            return
        measured = self._measured(played)
        joined = measured if self._record is None else join(self._record, measured)
        joined.save(self._path)
        self._record = joined

    def _measured(self, played: Played) -> Evaluation:
        """One scene's record, in evaluation's format, with `budget` glimpses: the last value stays after a stop."""
        taken, budget = len(played.viewpoints), self._config.budget
        policy = Replay({played.scene: played.viewpoints}, name=HUMAN, description="people who looked for themselves")
        of_scene = replace(self._config, shard=(played.scene, self._num_scenes))
        found = evaluate(policy, config=of_scene, num_glimpses=taken)
        held = np.minimum(np.arange(budget), taken - 1)
        return replace(
            found,
            viewpoints=found.viewpoints[:, held],
            loss=found.loss[:, held],
            counts={name: value[:, held] for name, value in found.counts.items()},
            gflops=found.gflops[0] * np.arange(1, budget + 1),
            record=found.record
            | {
                "config": strip_directories(self._config.to_json()),
                SECONDS: {str(played.scene): [round(value, 2) for value in played.seconds]},
            },
        )

    def _require_same(self, record: Evaluation) -> None:
        theirs, ours = (strip_directories(one) for one in (record.record["config"], self._config.to_json()))
        names = [name for name in ours if name not in _OF_THE_MACHINE]
        if differing := [name for name in names if theirs.get(name) != ours[name]]:
            raise ValueError(
                f"{self._path} is a record of another environment: "
                + "; ".join(f"{name} is {theirs.get(name)!r} there, {ours[name]!r} now" for name in differing)
                + ". Choose another file for --record"
            )


def read_played(path: Path) -> Evaluation:
    """A file that `Recorder` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an evaluation record, that of a policy, or one of perturbed scenes, which people never play.
    """
    record = Evaluation.load(path)
    cure = "name a file that canvit-gym play --record wrote (or, for --record, a new one)"
    if SECONDS not in record.record:
        raise ValueError(
            f"{path} is the record of a policy, {record.record['policy']['name']!r}, not of people: {cure}"
        )
    if perturbations := record.record.get("perturbations"):
        names = ", ".join(perturbation["name"] for perturbation in perturbations)
        raise ValueError(f"{path} was recorded under perturbations ({names}), which play does not have: {cure}")
    return record


def taken_glimpses(record: Evaluation) -> NDArray[np.int64]:
    """[N] the number of glimpses that were taken of each scene. Only people's may be fewer than the record has, which
    repeats what they saw last: the episodes of policies go on, also after a stop that was recorded."""
    seconds, all_of_them = record.record.get(SECONDS, {}), record.viewpoints.shape[1]
    taken = [len(seconds.get(str(scene), range(all_of_them))) for scene in record.scene.tolist()]
    return np.array(taken, dtype=np.int64)


def join(one: Evaluation, other: Evaluation) -> Evaluation:
    """The scenes of both, in this order."""
    arrays = {
        name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("scene", "viewpoints", "loss")
    }
    return replace(
        one,
        **arrays,
        counts={name: np.concatenate([value, other.counts[name]]) for name, value in one.counts.items()},
        goal=None if one.goal is None or other.goal is None else np.concatenate([one.goal, other.goal]),
        record=one.record | {SECONDS: one.record[SECONDS] | other.record[SECONDS]},
    )
