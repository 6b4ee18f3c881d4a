"""What policies get to see: a read-only window onto a batch of episodes.

`Seen` shows what an agent could know: observations, the backbone's state and its reading, the viewpoints so far and
the pixels seen there. `SeenWithTruth` also shows the labels, the scenes' pixels and where their items are. It is only
given to policies that declare `uses_labels`, which are ceilings, not opponents.

Rows are scenes. Arrays on the host are copies. Tensors belong to the episodes: do not change them, and clone what you
need after the next glimpse.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from canvit_pytorch import RecurrentState
from canvit_pytorch.policies.entropy import predictive_entropy
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.actions import Actions, DiscreteActions
from canvit_gym.backbone.load import Backbone
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.observations import ObservationLayout
from canvit_gym.policies.lookahead import Measure, outcomes_after
from canvit_gym.scenes.source import Item, LocatedSource
from canvit_gym.tasks.task import Task

if TYPE_CHECKING:
    from tqdm import tqdm

    from canvit_gym.policies.protocol import PolicyInfo


def window(info: "PolicyInfo", episodes: EpisodeBatch, *, actions: Actions | None = None) -> "Seen":
    """The window for a policy with this `info`. `actions`: those of the environment, if there is one."""
    return (SeenWithTruth if info.uses_labels else Seen)(episodes, actions=actions)


class Seen:
    """What an agent could know of a batch of episodes."""

    def __init__(self, episodes: EpisodeBatch, *, actions: Actions | None = None) -> None:
        self._episodes = episodes
        self._actions = actions

    def __getattr__(self, name: str) -> Any:
        if name in _TRUTH:
            raise AttributeError(
                f"{name!r} is hidden from policies that do not use labels; a ceiling declares uses_labels=True in its "
                "PolicyInfo and is given SeenWithTruth"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def num(self) -> int:
        """N, the number of scenes."""
        return self._episodes.num

    @property
    def scene(self) -> NDArray[np.int64]:
        """[N] indices of the scenes in their split, from which to seed random numbers."""
        return self._episodes.scene.copy()

    @property
    def budget(self) -> int:
        """Number of glimpses per episode."""
        return self._episodes.budget

    @property
    def taken(self) -> NDArray[np.int64]:
        """[N] number of glimpses taken so far."""
        return self._episodes.glimpses.copy()

    @property
    def viewpoints(self) -> NDArray[np.float32]:
        """[N, budget, 3] (row, col, scale) of the glimpses so far; zeros for glimpses not taken yet."""
        return self._episodes.viewpoints.copy()

    @property
    def goal(self) -> NDArray[np.int64] | None:
        """[N] the goal in each scene, see `task.goals`; None if the task is not goal-conditioned."""
        goal = self._episodes.goal
        return None if goal is None else goal.copy()

    @property
    def actions(self) -> Actions | None:
        """The environment's actions; None if glimpses are taken without an environment."""
        return self._actions

    def allowed(self, candidates: NDArray[np.float32]) -> NDArray[np.bool_]:
        """[N, A]: which of the candidates [A, 3] the environment allows next in each scene.

        All of them, unless revisit=False: then the environment's own viewpoints, each once per episode.
        """
        actions = self._actions
        if not isinstance(actions, DiscreteActions) or actions.revisit:
            return np.ones((self.num, len(candidates)), dtype=np.bool_)
        allowed = actions.allowed(self._episodes.targets, self._episodes.glimpses)
        if np.array_equal(candidates, actions.viewpoints):
            return allowed
        same = (candidates[:, None] == actions.viewpoints).all(axis=2)  # [A, table]
        return (allowed[:, None] & same).any(axis=2)

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self._episodes.backbone

    @property
    def task(self) -> Task:
        """The task with its frozen probe and class names."""
        return self._episodes.task

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def canvas_grid(self) -> int:
        """G, the side of the canvas in cells."""
        return self.backbone.canvas_grid

    @property
    def layout(self) -> ObservationLayout:
        """Keys and sizes of `observe()`."""
        return self._episodes.layout

    def observe(self) -> dict[str, Tensor]:
        """The observations in the policy's `info.observations`: fresh tensors [N, ...]."""
        return self._episodes.observe()

    @property
    def state(self) -> RecurrentState:
        """The backbone's state of every scene."""
        return self._episodes.state

    @property
    def logits(self) -> Tensor:
        """The probe's reading now: [N, K, G, G] or [N, K], as `task.reading_shape` says.

        Raises:
            RuntimeError: there is no reading before the first glimpse.
        """
        logits = self._episodes.logits
        if logits is None:
            raise RuntimeError("no glimpse was taken yet, so there is no reading: choose glimpse 0 without one")
        return logits

    @property
    def uncertainty(self) -> Tensor:
        """The reading's predictive entropy in nats: [N, G, G] for readings of cells, else [N]."""
        return predictive_entropy(self.logits)

    def glimpse(self, t: int) -> Tensor:
        """[N, 3, px, px] the ImageNet-normalized pixels of glimpse t (0-based).

        Raises:
            ValueError: glimpse t has not been taken in every scene.
        """
        fewest = int(self.taken.min())
        if not 0 <= t < fewest:
            raise ValueError(f"glimpse {t} has not been taken: there are {fewest} so far")
        return self._episodes.taken_glimpses(self._episodes.all_rows, np.full(self.num, t))


class SeenWithTruth(Seen):
    """For ceilings: also shows the labels, the scenes' pixels and where their items are."""

    @property
    def truth(self) -> Mapping[str, Tensor]:
        """The labels in the form in which the task uses them: see Task.truth."""
        return self._episodes.truth

    @property
    def images(self) -> Tensor:
        """[N, 3, H, W] the scenes, ImageNet-normalized."""
        assert self._episodes.images is not None
        return self._episodes.images

    @property
    def items(self) -> list[tuple[Item, ...]]:
        """Class and place of the items of each scene.

        Raises:
            ValueError: the data set does not record where its items are.
        """
        scenes = self._episodes.scenes
        if not isinstance(scenes, LocatedSource):
            raise ValueError(
                f"{scenes.name} does not record where its items are; use a data set that does, such as FashionScenes, "
                "or a ceiling that does not need it (greedy_oracle)"
            )
        return [scenes.items(index) for index in self.scene.tolist()]

    def outcomes_after(
        self,
        candidates: NDArray[np.float32],
        *,
        measure: Measure | None = None,
        truth: Mapping[str, Tensor] | None = None,
        progress: "tqdm[Any] | None" = None,
    ) -> NDArray[np.float32]:
        """[A, N] the loss, or another measure, of each scene after a glimpse at each of the candidates [A, 3]."""
        return outcomes_after(self._episodes, candidates, measure=measure, truth=truth, progress=progress)


def with_truth(seen: Seen) -> SeenWithTruth:
    """The window of a ceiling; TypeError where the policy was handed the other one."""
    if not isinstance(seen, SeenWithTruth):
        raise TypeError("a policy that uses labels must be handed SeenWithTruth: canvit_gym.policies.window makes it")
    return seen


_TRUTH = {name for name in vars(SeenWithTruth) if not name.startswith("_")} | {
    "labels", "loss", "score", "potentials", "curves", "scenes", "view",
}  # fmt: skip
"""What `Seen` does not show."""
