"""Tasks: what a probe reads from a scene, how good the reading is, and how it is reported and drawn. One module each.

A data set names its task (`DatasetSpec.task`), and `TASKS` builds it. Code outside this package only uses the interface
canvit_gym.tasks.task.Task and never asks which task it has.
"""

from collections.abc import Callable
from dataclasses import dataclass

from canvit_gym.backbone.load import Backbone
from canvit_gym.config import EnvConfig
from canvit_gym.tasks.classification import ClassificationTask, build_classification
from canvit_gym.tasks.metric import Metric
from canvit_gym.tasks.reconstruction import ReconstructionTask, build_reconstruction
from canvit_gym.tasks.search import SearchTask, build_search
from canvit_gym.tasks.segmentation import SegmentationTask, build_segmentation
from canvit_gym.tasks.task import Task, declared_potentials


@dataclass(frozen=True)
class TaskSpec:
    """An entry of TASKS."""

    kind: type[Task]
    build: Callable[[EnvConfig, Backbone, tuple[str, ...]], Task]
    """(config, backbone, class names of the scenes) -> the task."""
    source: str
    """What the probe reads, for the documentation: "every cell"."""
    doc: str

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def metric(self) -> Metric:
        return self.kind.metric

    @property
    def potentials(self) -> dict[str, tuple[str, str]]:
        """Name -> (symbol, description)."""
        return declared_potentials(self.kind)


TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            kind=SegmentationTask,
            build=build_segmentation,
            source="every cell",
            doc="Classify every pixel of the scene.",
        ),
        TaskSpec(
            kind=ClassificationTask,
            build=build_classification,
            source="the recurrent CLS token",
            doc="Classify the scene.",
        ),
        TaskSpec(
            kind=SearchTask,
            build=build_search,
            source="every cell",
            doc="Segment the items of the class that the goal names.",
        ),
        TaskSpec(
            kind=ReconstructionTask,
            build=build_reconstruction,
            source="every cell",
            doc="Predict the frozen teacher's features of the whole scene; no labels are needed.",
        ),
    )
}
"""Name -> task. To add your own task, add an entry."""


def is_compared_by_score(metric: str) -> bool:
    """Whether single scenes are compared by their score in this metric. Otherwise they are compared by their loss."""
    return metric_named(metric).scene_measure.of == "score"


def metric_named(name: str) -> Metric:
    """The metric with this name.

    Raises:
        ValueError: no task has such a metric.
    """
    metrics = {spec.metric.name: spec.metric for spec in TASKS.values()}
    if name not in metrics:
        raise ValueError(
            f"unknown metric {name!r}: the tasks of canvit_gym.tasks.TASKS have {', '.join(metrics)}; first import the "
            "module that adds its task"
        )
    return metrics[name]
