"""What a policy is handed: a read-only window onto a batch of episodes.

`Seen` shows what an agent could know: observations, the backbone's state and its reading, the viewpoints so far and
what was seen there. `SeenWithTruth` also shows the labels, the scenes' pixels and where their items lie. Only policies
that declare `uses_labels` are handed it: they are ceilings, not opponents.

Rows are scenes. Arrays on the host are copies; tensors are the episodes' own: read them, and clone what shall outlive
the next glimpse.
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
    """The window that a policy with this `info` may have. `actions`: the environment's, where there is one."""
    return (SeenWithTruth if info.uses_labels else Seen)(episodes, actions=actions)


class Seen:
    """What an agent could know of a batch of episodes."""

    def __init__(self, episodes: EpisodeBatch, *, actions: Actions | None = None) -> None:
        self._episodes = episodes
        self._actions = actions

    def __getattr__(self, name: str) -> Any:
        if name in _TRUTH:
            raise AttributeError(
                f"{name!r} is not shown to a policy that does without labels; a ceiling declares uses_labels=True in "
                "its PolicyInfo and is handed SeenWithTruth"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def num(self) -> int:
        """How many scenes: N."""
        return self._episodes.num

    @property
    def scene(self) -> NDArray[np.int64]:
        """[N] the scenes' indices in their split, for random draws that do not depend on the batch."""
        return self._episodes.scene.copy()

    @property
    def budget(self) -> int:
        """Glimpses per episode."""
        return self._episodes.budget

    @property
    def taken(self) -> NDArray[np.int64]:
        """[N] glimpses taken so far."""
        return self._episodes.glimpses.copy()

    @property
    def viewpoints(self) -> NDArray[np.float32]:
        """[N, budget, 3] (row, col, scale) of the glimpses so far; zeros where none was taken yet."""
        return self._episodes.viewpoints.copy()

    @property
    def goal(self) -> NDArray[np.int64] | None:
        """[N] what is asked for in each scene, of `task.goals`; None where the task asks for nothing."""
        goal = self._episodes.goal
        return None if goal is None else goal.copy()

    @property
    def actions(self) -> Actions | None:
        """The environment's actions; None where glimpses are taken without an environment."""
        return self._actions

    def allowed(self, candidates: NDArray[np.float32]) -> NDArray[np.bool_]:
        """[N, A]: which of the candidates [A, 3] the environment lets each scene look at next.

        All of them, but for an environment with revisit=False: there only its own viewpoints are, each of them once.
        """
        actions = self._actions
        if not isinstance(actions, DiscreteActions) or actions.revisit:
            return np.ones((self.num, len(candidates)), dtype=np.bool_)
        allowed = actions.allowed(self._episodes.targets, self._episodes.glimpses)
        if candidates is actions.viewpoints:
            return allowed
        same = (candidates[:, None] == actions.viewpoints).all(axis=2)  # [A, table]
        return (allowed[:, None] & same).any(axis=2)

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self._episodes.backbone

    @property
    def task(self) -> Task:
        """How the model is read: the frozen probe and its classes."""
        return self._episodes.task

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def canvas_grid(self) -> int:
        """G, the canvas's cells on a side."""
        return self.backbone.canvas_grid

    @property
    def layout(self) -> ObservationLayout:
        """Keys and sizes of `observe()`."""
        return self._episodes.layout

    def observe(self) -> dict[str, Tensor]:
        """The observations that the policy's `info.observations` asks for, [N, ...] each, fresh."""
        return self._episodes.observe()

    @property
    def state(self) -> RecurrentState:
        """The backbone's state of every scene."""
        return self._episodes.state

    @property
    def logits(self) -> Tensor:
        """The probe's reading now: [N, K, G, G] or [N, K], as `task.reading_shape` says.

        Raises:
            RuntimeError: nothing was read yet.
        """
        logits = self._episodes.logits
        if logits is None:
            raise RuntimeError("no glimpse was taken yet, so there is no reading: choose glimpse 0 without it")
        return logits

    @property
    def uncertainty(self) -> Tensor:
        """The reading's predictive entropy in nats: [N, G, G] of a map, else [N]."""
        return predictive_entropy(self.logits)

    def glimpse(self, t: int) -> Tensor:
        """[N, 3, px, px] the ImageNet-normalized pixels of glimpse t (0-based).

        Raises:
            ValueError: not every scene had glimpse t.
        """
        fewest = int(self.taken.min())
        if not 0 <= t < fewest:
            raise ValueError(f"glimpse {t} was not taken: {fewest} were")
        return self._episodes.taken_glimpses(self._episodes.all_rows, np.full(self.num, t))


class SeenWithTruth(Seen):
    """For ceilings: what an agent could know, and the labels, the scenes' pixels and where their items lie."""

    @property
    def truth(self) -> Mapping[str, Tensor]:
        """The labels as the task measures with them: see Task.truth."""
        return self._episodes.truth

    @property
    def images(self) -> Tensor:
        """[N, 3, H, W] the scenes, ImageNet-normalized."""
        assert self._episodes.images is not None
        return self._episodes.images

    @property
    def items(self) -> list[tuple[Item, ...]]:
        """Per scene, its items: what they are, and where.

        Raises:
            ValueError: the data set does not say where its items lie.
        """
        scenes = self._episodes.scenes
        if not isinstance(scenes, LocatedSource):
            raise ValueError(
                f"{scenes.name} does not say where its items lie; use a data set that does, such as FashionScenes, or "
                "a ceiling that does not ask (greedy_oracle)"
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
