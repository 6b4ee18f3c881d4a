"""Search: given a class as the goal, outline its item in the scene; only the reading of that class counts."""

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from canvit_pytorch import SegmentationProbe
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.backbone.hub import Source
from canvit_gym.backbone.load import Backbone
from canvit_gym.config import EnvConfig
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.tasks.goals import ClassGoals
from canvit_gym.tasks.metric import MeanMetric, Metric
from canvit_gym.tasks.segmentation import SegmentationTask, segmentation_parts
from canvit_gym.tasks.task import Truth, potential


class SearchTask(SegmentationTask):
    """Where the items of the goal's class are, read from every canvas cell."""

    name = "search"
    metric: ClassVar[Metric] = MeanMetric(
        "IoU of the goal",
        doc="The mean over scenes of the IoU of the asked-for class, at scene size. The logits are upsampled to the "
        "scene before the argmax.",
    )

    def __init__(
        self, *, backbone: Backbone, probe: SegmentationProbe, classes: tuple[str, ...], source: Source
    ) -> None:
        super().__init__(backbone=backbone, probe=probe, classes=classes, source=source)
        self.goals = ClassGoals(classes)

    def truth(
        self,
        scenes: SceneBatch,
        *,
        goal: NDArray[Any] | None = None,
        potentials: Collection[str] = (),
        counted: bool = False,
    ) -> dict[str, Tensor]:
        """labels [n, H, W] uint8, shares [n, K, G, G], and the goal [n] int64."""
        assert goal is not None, "a search has a goal"
        truth = super().truth(scenes)
        return truth | {"goal": torch.from_numpy(goal.copy()).to(self.backbone.device, non_blocking=True)}

    @potential(
        "L",
        "cross-entropy of whether cells are of the goal's class, items and the rest of equal weight, nats",
        less_is_better=True,
    )
    def loss(self, logits: Tensor, truth: Truth) -> Tensor:
        log_goal = _of_goal(logits.log_softmax(dim=1), truth)
        others = logits.clone().scatter_(1, _index(logits, truth), -torch.inf)
        log_others = others.logsumexp(dim=1) - logits.logsumexp(dim=1)
        item, rest = self._item_and_rest(truth)
        terms = [
            -(share * log).sum(dim=(1, 2)) / share.sum(dim=(1, 2)).clamp(min=1e-6)
            for share, log in ((item, log_goal), (rest, log_others))
        ]
        return (terms[0] + terms[1]) / 2

    @potential("S", "IoU of the goal's class, at scene size")
    def score(self, logits: Tensor, truth: Truth) -> Tensor:
        goal = truth["goal"].view(-1, 1, 1)
        labels = truth["labels"]
        read = (self.predict(logits, labels.shape[-1]) == goal) & (labels < len(self.classes))
        item = labels == goal
        union = (read | item).flatten(1).sum(dim=1)
        return (read & item).flatten(1).sum(dim=1) / union.clamp(min=1)

    @potential("P", "IoU of the goal's probability with its class share")
    def soft_score(self, logits: Tensor, truth: Truth) -> Tensor:
        """[B]: over cells, sum(s p) / sum(s + p - s p); unlabelled parts count in neither sum."""
        item, rest = self._item_and_rest(truth)
        probability = _of_goal(logits.softmax(dim=1), truth) * (item + rest)
        both = (item * probability).sum(dim=(1, 2))
        return both / (item.sum(dim=(1, 2)) + probability.sum(dim=(1, 2)) - both).clamp(min=1e-6)

    def count(self, logits: Tensor, truth: Truth) -> dict[str, Tensor]:
        """value [B]: the score."""
        return {"value": self.score(logits, truth)}

    def _item_and_rest(self, truth: Truth) -> tuple[Tensor, Tensor]:
        """[B, G, G] each: the share of every cell that the goal's class covers, and the share that others cover."""
        item = _of_goal(truth["shares"], truth)
        return item, truth["shares"].sum(dim=1) - item


def _index(maps: Tensor, truth: Truth) -> Tensor:
    """[B, 1, G, G]: the goal, as an index into maps [B, K, G, G]."""
    return truth["goal"].view(-1, 1, 1, 1).expand(-1, 1, *maps.shape[2:])


def _of_goal(maps: Tensor, truth: Truth) -> Tensor:
    """[B, K, G, G] -> [B, G, G]"""
    return maps.gather(1, _index(maps, truth))[:, 0]


def build_search(config: EnvConfig, backbone: Backbone, classes: tuple[str, ...]) -> SearchTask:
    """The task of an environment; the probe is the config's, or the default of its data set."""
    return SearchTask(backbone=backbone, classes=classes, **segmentation_parts(config, backbone, classes))
