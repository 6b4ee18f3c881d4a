"""Tasks: what is read from a scene, how good the reading is, and how it is reported and drawn. One module per task.

A data set names its task (`DatasetSpec.task`); `TASKS` says how it is built. Nothing outside this package asks which
kind of task it has: see canvit_gym.tasks.task.Task.
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
    """One task by name."""

    kind: type[Task]
    build: Callable[[EnvConfig, Backbone, tuple[str, ...]], Task]
    """(config, backbone, class names of the scenes) -> the task."""
    source: str
    """What is read, as the documentation says it: "every cell"."""
    doc: str

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def metric(self) -> Metric:
        return self.kind.metric

    @property
    def potentials(self) -> dict[str, tuple[str, str]]:
        """Name -> (symbol, what it is)."""
        return declared_potentials(self.kind)


TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            kind=SegmentationTask,
            build=build_segmentation,
            source="every cell",
            doc="Name every pixel of the scene.",
        ),
        TaskSpec(
            kind=ClassificationTask,
            build=build_classification,
            source="the recurrent CLS token",
            doc="Name what the scene shows.",
        ),
        TaskSpec(
            kind=SearchTask,
            build=build_search,
            source="every cell",
            doc="Outline the items of the class that is asked for.",
        ),
        TaskSpec(
            kind=ReconstructionTask,
            build=build_reconstruction,
            source="every cell",
            doc="Predict the frozen teacher's features of the whole scene; no labels are needed.",
        ),
    )
}
"""By name; a task of your own is one more entry."""


def is_compared_by_score(metric: str) -> bool:
    """Whether single scenes are compared by their score in this metric; else by their loss, less being better."""
    return metric_named(metric).scene_measure.of == "score"


def metric_named(name: str) -> Metric:
    """The metric of this name of one of the tasks.

    Raises:
        ValueError: there is none.
    """
    metrics = {spec.metric.name: spec.metric for spec in TASKS.values()}
    if name not in metrics:
        raise ValueError(
            f"unknown metric {name!r}: no task of canvit_gym.tasks.TASKS has it, they have {', '.join(metrics)}; "
            "import what adds the task first"
        )
    return metrics[name]
