"""Metrics: what is counted on every scene, and how a number for the whole data set is computed from the counts.

Counts are arrays by name: [N, T, ...] for N scenes after each of T glimpses. The mIoU of a data set is not a mean over
scenes, so a metric also defines how its counts are resampled (canvit_gym.statistics).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from canvit_gym.statistics import Mean, MeanIoU, Statistic, mean_iou

Counts = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Display:
    """How a number is written."""

    unit: str
    """Written after the number: "%", "nats", or nothing."""
    factor: float = 1.0
    """The stored number is multiplied by this."""
    digits: int = 3
    difference_unit: str = ""
    """Unit of a difference of two such numbers: points, for percentages."""

    def text(self, value: float, *, signed: bool = False) -> str:
        """The number without its unit.

        >>> Display("%", factor=100, digits=1).text(0.8136), Display("nats").text(-0.25, signed=True)
        ('81.4', '-0.250')
        """
        return f"{self.factor * value:{'+' if signed else ''}.{self.digits}f}"


PERCENT = Display("%", factor=100, digits=1, difference_unit="points")
NATS = Display("nats", digits=3, difference_unit="nats")


@dataclass(frozen=True)
class SceneMeasure:
    """The number by which single scenes are compared (interquartile mean, probability of improvement, gallery)."""

    name: str
    """For example "mIoU of the scene"."""
    of: Literal["score", "loss"]
    """The scene's own score, or its loss (less is better)."""
    display: Display


@dataclass(frozen=True)
class LossName:
    """What the loss is called that evaluations keep beside the score; less is better."""

    name: str = "cross-entropy"
    unit: str = "nats"

    @property
    def label(self) -> str:
        """
        >>> LossName().label, LossName("mean squared error", unit="").label
        ('cross-entropy, nats', 'mean squared error')
        """
        return f"{self.name}, {self.unit}" if self.unit else self.name


class Metric(Protocol):
    """A number for a data set, computed from counts per scene."""

    @property
    def name(self) -> str:
        """The name in tables and saved evaluations."""
        ...

    @property
    def doc(self) -> str:
        """How it is computed, in a sentence or two for reports."""
        ...

    @property
    def display(self) -> Display: ...

    @property
    def scene_measure(self) -> SceneMeasure: ...

    @property
    def loss(self) -> LossName: ...

    @property
    def counts(self) -> Mapping[str, int]:
        """Name of a count -> number of its axes beyond [N, T]."""
        ...

    @property
    def shares(self) -> tuple[str, ...]:
        """Names of further shares of scenes that reports show: see scene_share."""
        ...

    def scene_score(self, counts: Counts) -> NDArray[np.float64]:
        """[N, T, ...] -> [N, T]: each scene's own score."""
        ...

    def score(self, counts: Counts) -> NDArray[np.float64]:
        """[N, T, ...] -> [T]: the score over all scenes."""
        ...

    def statistic(self, counts: Counts, *, run: Sequence[int] | None = None) -> Statistic:
        """[S, N, T, ...] of S runs -> a statistic that can be computed for any resampling of runs and scenes."""
        ...

    def scene_share(self, name: str, counts: Counts) -> NDArray[np.float64]:
        """[N, T]: one of `shares`, 0 or 1 per scene."""
        ...


class _NoShares:
    @property
    def shares(self) -> tuple[str, ...]:
        return ()

    def scene_share(self, name: str, counts: Counts) -> NDArray[np.float64]:
        raise KeyError(name)


@dataclass(frozen=True)
class IoUMetric(_NoShares):
    """The mIoU of the data set, from the intersections and unions that every scene counts in pixels."""

    name: str = "mIoU"
    doc: str = (
        "mIoU is that of the whole data set: intersections and unions are summed over scenes, then divided, then "
        "averaged over classes. The logits are upsampled to the scene's size before the argmax."
    )
    display: Display = PERCENT
    scene_measure: SceneMeasure = SceneMeasure("mIoU of the scene", "score", PERCENT)
    loss: LossName = LossName()
    counts: Mapping[str, int] = field(default_factory=lambda: {"intersection": 1, "union": 1})

    def scene_score(self, counts: Counts) -> NDArray[np.float64]:
        return mean_iou(counts["intersection"], counts["union"])

    def score(self, counts: Counts) -> NDArray[np.float64]:
        return mean_iou(counts["intersection"].sum(axis=0), counts["union"].sum(axis=0))

    def statistic(self, counts: Counts, *, run: Sequence[int] | None = None) -> MeanIoU:
        return MeanIoU(counts["intersection"], counts["union"], run=run)


@dataclass(frozen=True)
class AccuracyMetric:
    """Top-1 accuracy, from the number of classes that are ranked above the true one."""

    name: str = "top-1"
    doc: str = (
        "Top-1 and top-5 are shares of scenes. Comparisons scene by scene (IQM, P(improvement), gallery) use the "
        "cross-entropy, because right or wrong says little about a single scene."
    )
    display: Display = PERCENT
    scene_measure: SceneMeasure = SceneMeasure("cross-entropy of the scene", "loss", NATS)
    loss: LossName = LossName()
    counts: Mapping[str, int] = field(default_factory=lambda: {"rank": 0})
    shares: tuple[str, ...] = ("top5",)

    def scene_score(self, counts: Counts) -> NDArray[np.float64]:
        return (counts["rank"] == 0).astype(np.float64)

    def score(self, counts: Counts) -> NDArray[np.float64]:
        return (counts["rank"] == 0).mean(axis=0)

    def statistic(self, counts: Counts, *, run: Sequence[int] | None = None) -> Mean:
        return Mean(counts["rank"] == 0, run=run)

    def scene_share(self, name: str, counts: Counts) -> NDArray[np.float64]:
        assert name == "top5", name
        return (counts["rank"] < 5).astype(np.float64)


@dataclass(frozen=True)
class MeanMetric(_NoShares):
    """The mean over scenes of one number per scene, counted as `value`.

    >>> metric = MeanMetric("cosine", doc="The mean cosine.")
    >>> metric.score({"value": np.array([[0.25], [0.75]])}).tolist()
    [0.5]
    """

    name: str
    doc: str
    display: Display = PERCENT
    scene_measure: SceneMeasure = SceneMeasure("score of the scene", "score", PERCENT)
    loss: LossName = LossName()
    counts: Mapping[str, int] = field(default_factory=lambda: {"value": 0})

    def scene_score(self, counts: Counts) -> NDArray[np.float64]:
        return counts["value"].astype(np.float64)

    def score(self, counts: Counts) -> NDArray[np.float64]:
        return counts["value"].mean(axis=0, dtype=np.float64)

    def statistic(self, counts: Counts, *, run: Sequence[int] | None = None) -> Mean:
        return Mean(counts["value"], run=run)
