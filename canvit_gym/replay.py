"""Replay recorded viewpoints, which reproduces the recorded readings without the policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from canvit_gym.assembly import build_backbone, build_layout, build_scenes, build_task
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch, EpisodeView
from canvit_gym.perturbations import Perturbation, PerturbedEpisodes
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen

BATCH_SIZE = 64


@dataclass(frozen=True)
class Moment:
    """An episode after a glimpse."""

    view: EpisodeView
    uncertainty: NDArray[np.float32] | None
    """Like the observation of this name: [1, m, m], or [1] if a reading is of the whole scene; None if the task has
    none."""


class _ReplayedEpisodes(PerturbedEpisodes):
    """Recorded viewpoints are where glimpses were taken, so that none may miss its target once more."""

    def perturbed_viewpoints(
        self, viewpoints: NDArray[np.float32], scene: NDArray[np.int64], t: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        return viewpoints


@torch.no_grad()
def replay(
    viewpoints: NDArray[np.float32],
    scenes: NDArray[np.int64],
    *,
    config: EnvConfig,
    goal: NDArray[np.int64] | None = None,
    perturbations: Sequence[Perturbation] = (),
    taken: NDArray[np.int64] | None = None,
) -> list[list[Moment]]:
    """Take viewpoints [n, T, 3] on scenes [n] of the config's split; returns a Moment after every glimpse, [n][T].

    `goal` [n] is that of each scene, in goal-conditioned tasks; None means the goals of evaluations. `perturbations`
    are those under which the viewpoints were recorded. `taken` [n], at least 1, is how many glimpses of each scene were
    taken (None: all T): afterwards the last Moment is repeated.

    Raises:
        ValueError: there is no such scene.
    """
    source = build_scenes(config)
    if len(scenes) and not (scenes.min() >= 0 and scenes.max() < len(source)):
        raise ValueError(f"{source.name} holds scenes 0 to {len(source) - 1}, not all of {scenes.tolist()}")
    backbone = build_backbone(config)
    task = build_task(config, backbone, source.classes)
    is_unsure = task.uncertainty_shape(1) is not None
    layout = build_layout(config.with_observations(("uncertainty",) if is_unsure else ("time",)), backbone, task)
    make_episodes = partial(_ReplayedEpisodes, perturbations=perturbations) if perturbations else EpisodeBatch
    taken = np.full(len(scenes), viewpoints.shape[1]) if taken is None else taken
    moments: list[list[Moment]] = [[] for _ in scenes]
    for begin in range(0, len(scenes), BATCH_SIZE):
        rows = np.arange(begin, min(begin + BATCH_SIZE, len(scenes)))
        episodes = make_episodes(
            num=len(rows),
            backbone=backbone,
            task=task,
            layout=layout,
            scenes=source,
            budget=viewpoints.shape[1],
            potentials=("loss", "score"),
            compiles=False,  # for a few steps
        )
        asked = None if goal is None else goal[rows]
        episodes.reset_rows(episodes.all_rows, scenes[rows], read=False, goal=asked)
        for t in range(taken[rows].max()):
            going_on = np.flatnonzero(taken[rows] > t)
            episodes.step_rows(going_on, viewpoints[rows[going_on], t])
            uncertainty = episodes.observe(going_on)["uncertainty"].cpu().numpy() if is_unsure else None
            for i, place in enumerate(going_on.tolist()):
                unsure = None if uncertainty is None else uncertainty[i]
                moments[rows[place]].append(Moment(view=episodes.view(place), uncertainty=unsure))
    return [steps + steps[-1:] * (viewpoints.shape[1] - len(steps)) for steps in moments]


class Replay:
    """A policy that takes recorded viewpoints."""

    def __init__(self, viewpoints: Mapping[int, NDArray[np.float32]], *, name: str, description: str) -> None:
        """
        Args:
            viewpoints: [T, 3] by scene.
            name: its name in tables.
            description: whose viewpoints they are.
        """
        self._viewpoints = viewpoints
        self.info = PolicyInfo(name=name, paper_name=name, description=description, deterministic=True)

    def reset(self, seen: Seen, *, seed: int) -> None:
        if unknown := sorted(set(seen.scene.tolist()) - set(self._viewpoints)):
            raise ValueError(f"there are no recorded viewpoints of scenes {unknown}")

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        return np.stack([self._viewpoints[scene][t] for scene in seen.scene.tolist()])

    def flops_per_decision(self, seen: Seen) -> int:
        return 0
