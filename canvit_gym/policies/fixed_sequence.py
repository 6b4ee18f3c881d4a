"""The best fixed sequence: the viewpoints that are best on average over training scenes, whatever the scene shows.

A greedy search finds it: the full scene first, then at each glimpse the candidate after which the mean loss over
training scenes is lowest, given those before it. So a prefix is the result for a smaller budget. A learned policy
that cannot beat it has learned a prior over viewpoints, not where to look in a scene.

Sequences that other methods find on training scenes (canvit_gym.policies.dependency, canvit_gym.policies.learned_order)
are saved and used the same way.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from canvit_gym.assembly import (
    build_backbone,
    build_layout,
    build_scenes,
    build_task,
    classes_of,
    listed_scenes,
    require_scene_size,
)
from canvit_gym.atomic import write_text
from canvit_gym.backbone.load import Backbone
from canvit_gym.checks import integer
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.equality import EqualByValue
from canvit_gym.policies.lookahead import outcomes_after
from canvit_gym.policies.oracle import oracle_candidates
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.spec import Context
from canvit_gym.policies.table import fixed_table, takes_first_glimpse
from canvit_gym.scenes.prepared import cache_dir
from canvit_gym.scenes.sampler import batches_ahead
from canvit_gym.scenes.source import closing_sources
from canvit_gym.tasks.task import Task
from canvit_gym.viewpoints import FULL_SCENE

BATCH_SIZE = 64
"""The first round of a search takes a quarter of the batches of this many scenes."""
MIN_SHORTLIST = 8
"""At least this many candidates are compared on all scenes."""

GREEDY = "greedy search"


@dataclass(frozen=True)
class SearchedOn:
    """What a sequence was searched on: another checkpoint, probe, data set or size of canvas has another best one."""

    dataset: str
    classes_sha256: str
    checkpoint_sha256: str
    probe_sha256: str
    canvas_grid: int
    scene_size_px: int


@dataclass(frozen=True, eq=False)
class FixedSequence(EqualByValue):
    """T viewpoints with what they were searched on; JSON on disk."""

    viewpoints: NDArray[np.float32]  # [T, 3] (row, col, scale)
    loss: NDArray[np.float64]  # [T] mean cross-entropy over the search's scenes after each glimpse, in nats
    searched_on: SearchedOn
    checkpoint: str
    scenes: str
    """The training scenes, as their source names them."""
    num_scenes: int
    num_candidates: int
    candidates_sha256: str
    method: str = GREEDY
    """How it was found."""

    def save(self, path: Path) -> None:
        """Write the file; an interruption leaves the old one or the new one, never half of it."""
        values = asdict(self) | {"viewpoints": self.viewpoints.tolist(), "loss": self.loss.tolist()}
        write_text(path, json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Raises:
            FileNotFoundError: no such file.
            ValueError: not a fixed sequence.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no fixed sequence at {path}; save one with search_fixed_sequence(...).save(path), or leave the path "
                "out to search now"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **values
                | {
                    "viewpoints": np.array(values["viewpoints"], dtype=np.float32).reshape(-1, 3),
                    "loss": np.array(values["loss"], dtype=np.float64),
                    "searched_on": SearchedOn(**values["searched_on"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a fixed sequence as FixedSequence.save writes it: {error!r}") from error

    def require_same(self, found: SearchedOn) -> None:
        """Raise ValueError if what the sequence would be used on differs from what it was searched on."""
        ours, theirs = asdict(self.searched_on), asdict(found)
        differences = [f"{k}: searched on {ours[k]!r}, found {theirs[k]!r}" for k in ours if ours[k] != theirs[k]]
        if differences:
            raise ValueError(
                f"the fixed sequence of {self.checkpoint!r} on {self.scenes} does not fit: {'; '.join(differences)}. "
                "Search one here with canvit_gym.policies.search_fixed_sequence"
            )


class BestFixedSequence:
    """Takes the viewpoints of a FixedSequence, the same in every scene."""

    info = PolicyInfo(
        name="best_fixed_sequence",
        paper_name="best fixed sequence",
        description="The sequence of viewpoints that a greedy search on training scenes found best on average; it sees "
        "no image.",
        deterministic=True,
    )

    def __init__(self, sequence: FixedSequence, *, info: PolicyInfo | None = None) -> None:
        """info: for a sequence that was found in another way."""
        self.sequence = sequence
        self.info = info or self.info

    def reset(self, seen: Seen, *, seed: int) -> None:
        if seen.budget > len(self.sequence.viewpoints):
            raise ValueError(
                f"{self.info.name} has {len(self.sequence.viewpoints)} glimpses and cannot take "
                f"{seen.budget}; make the policy, or search, with num_glimpses={seen.budget}"
            )
        # `seen` has the classes of the data set, but not its name.
        dataset = self.sequence.searched_on.dataset
        self.sequence.require_same(_searched_on(dataset, seen.backbone, seen.task))

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        return np.tile(self.sequence.viewpoints[t], (seen.num, 1))

    def flops_per_decision(self, seen: Seen) -> int:
        return 0


def build_best_fixed_sequence(context: Context, *, num_scenes: int = 256, path: str | None = None) -> BestFixedSequence:
    """Load the sequence from `path` or the cache; otherwise search it now and cache it after every glimpse."""
    config, num_glimpses = context.config, context.num_glimpses
    if path is not None:
        sequence = FixedSequence.load(Path(path))
        sequence.require_same(searched_on(config))
        if len(sequence.viewpoints) < num_glimpses:
            raise ValueError(
                f"the fixed sequence in {path} has {len(sequence.viewpoints)} glimpses, but {num_glimpses} are asked "
                f"for: search one with num_glimpses={num_glimpses}"
            )
        return BestFixedSequence(sequence)
    table = fixed_table(config)
    settings: list[Any] = [GREEDY, BATCH_SIZE, MIN_SHORTLIST]
    cached = cached_sequence(
        config,
        num_scenes=num_scenes,
        candidates=oracle_candidates() if table is None else table,
        settings=settings if table is None else [*settings, "each once", config.first_glimpse is None],
    )
    known = FixedSequence.load(cached) if cached.is_file() else None
    if known is None or len(known.viewpoints) < num_glimpses:
        known = search_fixed_sequence(
            config,
            num_glimpses,
            num_scenes,
            candidates=table,
            progress=context.progress,
            known=known,
            on_glimpse=lambda found: found.save(cached),
        )
    return BestFixedSequence(known)


def cached_sequence(
    config: EnvConfig, *, num_scenes: int, candidates: NDArray[np.float32], settings: list[Any]
) -> Path:
    """The file in the cache for a sequence found on `num_scenes` training scenes.

    settings: the method and whatever else the sequence depends on, its constants included, as JSON values.
    """
    with listed_scenes(search_config(config, num_scenes)) as scenes:
        fingerprint = scenes.fingerprint
    key = [asdict(searched_on(config)), fingerprint, candidates_sha256(candidates), settings]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_dir() / "fixed_sequences" / f"{config.dataset}-{digest}.json"


def search_fixed_sequence(
    config: EnvConfig,
    num_glimpses: int,
    num_scenes: int = 256,
    candidates: NDArray[np.float32] | None = None,
    progress: bool = False,
    *,
    known: FixedSequence | None = None,
    on_glimpse: Callable[[FixedSequence], None] | None = None,
) -> FixedSequence:
    """Search on num_scenes training scenes of `config`'s data set, whatever its split.

    Successive halving: a quarter of the scenes rules out three quarters of the candidates (at least eight are kept),
    the others are compared on all scenes. States are kept between glimpses, so each candidate costs one forward pass.

    In an environment with revisit=False every candidate is taken once, and the candidates are its own viewpoints.

    candidates: the table [A, 3]; default: the greedy oracle's, or the environment's own. known: a shorter result of the
    same search, to continue from. on_glimpse: called after each glimpse with the sequence found so far.

    Raises:
        ValueError: sizes below 1, more glimpses than viewpoints, or `known` comes from another search.
    """
    for name, value in (("num_glimpses", num_glimpses), ("num_scenes", num_scenes)):
        integer(1)(name, value)
    table = fixed_table(config)
    if candidates is None:
        candidates = oracle_candidates() if table is None else table
    if candidates.ndim != 2 or candidates.shape[1] != 3 or not len(candidates):
        raise ValueError(f"candidates must be a table [A, 3] of at least one viewpoint, got shape {candidates.shape}")
    batches, found = training_episodes(config, num_glimpses, num_scenes, candidates)
    if known is not None:
        known.require_same(found.searched_on)
        if (known.num_scenes, known.candidates_sha256) != (found.num_scenes, found.candidates_sha256):
            raise ValueError("the known sequence is of another search, with other scenes or candidates")
        found = known
        for viewpoint in known.viewpoints:
            look(batches, viewpoint)
    first_round = max(1, len(batches) // 4)
    shortlist = max(MIN_SHORTLIST, math.ceil(len(candidates) / 4))
    bar = tqdm(
        total=(num_glimpses - max(1, len(found.viewpoints)))
        * (len(candidates) * first_round + min(shortlist, len(candidates)) * (len(batches) - first_round)),
        desc=f"best fixed sequence on {found.num_scenes} training scenes",
        unit="batch",
        disable=None if progress else True,
    )
    with bar:
        while len(found.viewpoints) < num_glimpses:
            viewpoint = FULL_SCENE
            if len(found.viewpoints) or not (table is None or takes_first_glimpse(config)):
                left = candidates if table is None else _not_in(candidates, found.viewpoints)
                if not len(left):
                    raise ValueError(
                        f"{num_glimpses} glimpses are asked for, but with revisit=False there are no more than "
                        f"{len(found.viewpoints)}; use a smaller budget"
                    )
                losses = _total_losses(batches[:first_round], left, bar)
                kept = np.sort(losses.argsort(kind="stable")[:shortlist])
                totals = losses[kept] + _total_losses(batches[first_round:], left[kept], bar)
                viewpoint = left[kept[totals.argmin()]]
            found = followed(batches, found, viewpoint)
            if on_glimpse is not None:
                on_glimpse(found)
    return found


def followed(batches: list[EpisodeBatch], found: FixedSequence, viewpoint: NDArray[np.float32]) -> FixedSequence:
    """Take a glimpse at `viewpoint` in all training scenes; returns the sequence with it appended."""
    look(batches, viewpoint)
    loss = np.concatenate([episodes.potentials["loss"] for episodes in batches]).mean(dtype=np.float64)
    return replace(found, viewpoints=np.vstack([found.viewpoints, viewpoint[None]]), loss=np.append(found.loss, loss))


def _not_in(candidates: NDArray[np.float32], taken: NDArray[np.float32]) -> NDArray[np.float32]:
    return candidates[~(candidates[:, None] == taken).all(axis=2).any(axis=1)]


def episodes_like(template: EpisodeBatch, *, num: int, budget: int) -> EpisodeBatch:
    """An empty batch for other scenes of the same source, with the same backbone, task and layout."""
    return EpisodeBatch(
        num=num,
        backbone=template.backbone,
        task=template.task,
        layout=template.layout,
        scenes=template.scenes,
        budget=budget,
    )


def training_episodes(
    config: EnvConfig, num_glimpses: int, num_scenes: int, candidates: NDArray[np.float32]
) -> tuple[list[EpisodeBatch], FixedSequence]:
    """Batches of training scenes before any glimpse, and an empty sequence."""
    training = search_config(config, num_scenes)
    backbone, scenes = build_backbone(training), build_scenes(training)
    require_scene_size(training, backbone, scenes)
    task = build_task(training, backbone, scenes.classes)
    # Only the loss of these episodes is needed.
    layout = build_layout(training.with_observations(("time",)), backbone, task)
    batches = []
    with closing_sources(scenes):
        for chosen in batches_ahead(scenes, np.arange(len(scenes)), batch_size=BATCH_SIZE):
            episodes = EpisodeBatch(
                num=len(chosen),
                backbone=backbone,
                task=task,
                layout=layout,
                scenes=scenes,
                budget=num_glimpses,
            )
            episodes.reset_rows(episodes.all_rows, chosen, read=False)
            batches.append(episodes)
    if not batches:
        raise ValueError(f"{scenes.name}: no training scene to search on; choose another root")
    nothing = FixedSequence(
        viewpoints=np.zeros((0, 3), dtype=np.float32),
        loss=np.zeros(0),
        searched_on=_searched_on(config.dataset, backbone, task),
        checkpoint=config.checkpoint,
        scenes=scenes.name,
        num_scenes=sum(episodes.num for episodes in batches),
        num_candidates=len(candidates),
        candidates_sha256=candidates_sha256(candidates),
    )
    return batches, nothing


def search_config(config: EnvConfig, num_scenes: int) -> EnvConfig:
    """The configuration of the training scenes that a search for this environment uses."""
    return replace(config, split="training", num_scenes=num_scenes, shard=(0, 1))


def searched_on(config: EnvConfig) -> SearchedOn:
    """What a search for this environment would run on, with the checkpoints as they are now."""
    backbone = build_backbone(config)
    task = build_task(config, backbone, classes_of(config))
    return _searched_on(config.dataset, backbone, task)


def _searched_on(dataset: str, backbone: Backbone, task: Task) -> SearchedOn:
    return SearchedOn(
        dataset=dataset,
        classes_sha256=hashlib.sha256("\n".join(task.classes).encode()).hexdigest(),
        checkpoint_sha256=backbone.sha256,
        probe_sha256=task.probe_sha256,
        canvas_grid=backbone.canvas_grid,
        scene_size_px=backbone.scene_size_px,
    )


def candidates_sha256(candidates: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(candidates, dtype="<f4").tobytes()).hexdigest()


def look(batches: list[EpisodeBatch], viewpoint: NDArray[np.float32]) -> None:
    for episodes in batches:
        episodes.step_rows(episodes.all_rows, np.tile(viewpoint, (episodes.num, 1)))


def _total_losses(
    batches: list[EpisodeBatch], candidates: NDArray[np.float32], bar: "tqdm[Any]"
) -> NDArray[np.float64]:
    """[A]: summed over the scenes of all batches."""
    total = np.zeros(len(candidates))
    for episodes in batches:
        total += outcomes_after(episodes, candidates, progress=bar).sum(axis=1, dtype=np.float64)
    return total
