"""What a task is: how a state is read, how good the reading is, and how it is reported and drawn.

A reading is what a frozen probe makes of a state: `logits`, float32 on the device. A potential is a number that a
reading has now, one per scene; rewards are differences of potentials (canvit_gym.rewards). Every task has the
potentials `loss` (smooth, less is better) and `score` (what people report, more is better), and others it declares.

A new task is a subclass of Task in a module of its own and an entry of canvit_gym.tasks.TASKS. A new potential is a
method with the decorator `potential`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from canvit_pytorch import RecurrentState
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.backbone.hub import Source
from canvit_gym.backbone.load import Backbone
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.tasks.goals import Goals
from canvit_gym.tasks.metric import Metric
from canvit_gym.tasks.pictures import TaskPicture

Truth = Mapping[str, Tensor]
"""Named tensors [n, ...] on the device: whatever a task's potentials and counts need."""

Measure = Callable[[Tensor, Truth], Tensor]
"""(logits [B, ...], truth) -> [B]"""


@dataclass(frozen=True)
class Potential:
    """A number per scene that a reading has now."""

    measure: Measure
    symbol: str
    """In the formulas of the documentation: L, S, P, ..."""
    doc: str
    """What it is, in a few words, with its unit."""
    compiles: bool = False
    """Whether `measure` may be part of a compiled step: it uses only tensors, whose shapes follow from its inputs'
    shapes, and never synchronizes with the device. Others are measured after the step."""
    less_is_better: bool = False


_Method = TypeVar("_Method", bound=Callable[..., Tensor])


def potential(
    symbol: str, doc: str, *, compiles: bool = False, less_is_better: bool = False
) -> Callable[[_Method], _Method]:
    """Declare a method `(self, logits, truth) -> [B]` of a Task to be a potential, named after the method.

    Args: see Potential.
    """

    def declare(method: _Method) -> _Method:
        method.declared = (symbol, doc)  # type: ignore[attr-defined]
        method.compiles = compiles  # type: ignore[attr-defined]
        method.less_is_better = less_is_better  # type: ignore[attr-defined]
        return method

    return declare


def declared_potentials(task: type["Task"]) -> dict[str, tuple[str, str]]:
    """Name -> (symbol, doc) of what a kind of task can measure."""
    found: dict[str, tuple[str, str]] = {}
    for kind in reversed(task.__mro__):
        found |= {name: value.declared for name, value in vars(kind).items() if hasattr(value, "declared")}
    return found


class Task(ABC):
    """Reads the states of one frozen backbone with one frozen probe."""

    name: ClassVar[str]
    """Its entry in canvit_gym.tasks.TASKS."""
    metric: ClassVar[Metric]
    """How readings of many scenes are reported."""
    picture: ClassVar[TaskPicture]
    """How readings and truths are drawn."""
    in_every_info: ClassVar[tuple[str, ...]] = ("loss",)
    """Potentials that cost next to nothing: every info holds them, asked for or not."""
    reads_canvas: ClassVar[bool] = True
    """Whether `read` wants the layer-normalized canvas."""
    reading_shape: ClassVar[str] = "[B, K, G, G]"
    """Of the logits: "[B, K, G, G]", classes of every canvas cell; "[B, K]", classes of the scene; "[B, D, G, G]",
    features of every cell. Policies that look where cells are uncertain need the first."""
    has_probe: ClassVar[bool] = True
    """Whether a probe of classes reads the states: what `canvit-gym fit-probe` fits."""
    goals: Goals | None = None
    """What can be asked for; None where the task is not goal-conditioned."""

    def __init__(self, *, backbone: Backbone, classes: tuple[str, ...], source: Source) -> None:
        self.backbone = backbone
        self.classes = classes
        self._source = source

    @property
    def probe_sha256(self) -> str:
        return self._source.sha256

    @property
    def key(self) -> Hashable:
        """Equal for tasks of one backbone that read and measure the same: they share compiled code. A task that has
        settings of its own adds them."""
        return type(self), self.probe_sha256, self.classes

    @property
    def record(self) -> dict[str, Any]:
        """JSON values that say which probe reads: see canvit_gym.backbone.hub.Source."""
        return self._source.record

    @cached_property
    def potentials(self) -> dict[str, Potential]:
        """By name, what this task can measure."""
        return {
            name: Potential(
                measure=(measure := getattr(self, name)),
                symbol=symbol,
                doc=doc,
                compiles=measure.compiles,
                less_is_better=measure.less_is_better,
            )
            for name, (symbol, doc) in declared_potentials(type(self)).items()
        }

    def require_potential(self, name: str, *, wanted_by: str) -> None:
        """Raise ValueError where this task cannot measure a potential."""
        if name not in self.potentials:
            raise ValueError(
                f"{wanted_by} needs the potential {name!r}, which the task {self.name} does not measure; it measures "
                f"{', '.join(self.potentials)}"
            )

    @property
    @abstractmethod
    def flops_per_reading(self) -> int:
        """Of `read`, per scene, counted as canvit_pytorch.flops counts."""

    @abstractmethod
    def truth(
        self,
        scenes: SceneBatch,
        *,
        goal: NDArray[Any] | None = None,
        potentials: Collection[str] = (),
        counted: bool = False,
    ) -> dict[str, Tensor]:
        """What is true of n scenes, on the device; "labels" are among it where scenes are labelled.

        goal: [n] what is asked for, where the task has goals. potentials: the names of those that will be measured
        after every glimpse, and may be prepared for. counted: whether `count` will be called after every glimpse.
        """

    def shown(self, truth: Truth) -> Tensor:
        """[n, ...]: what `picture` draws of the truth; labels, unless the task has something else."""
        return truth["labels"].long()

    def labelled(self, truth: Truth) -> Tensor:
        """[n] booleans: whether a scene has anything to be measured by. Evaluations leave out those that have not."""
        return torch.ones(len(truth["labels"]), dtype=torch.bool)

    @abstractmethod
    def read(self, state: RecurrentState, canvas_norm: Tensor | None) -> Tensor:
        """The reading of B states: float32 logits of `reading_shape`.

        canvas_norm: the canvas patches [B, G*G, D] after a LayerNorm without affine, if the caller has them.
        """

    def canvas_logits(self, canvas: Tensor) -> Tensor:
        """Class logits [B, K, G, G] of a canvas [B, n_tokens, canvas_dim], for canvit-pytorch's own policies.

        Raises:
            NotImplementedError: the task does not read classes of canvas cells.
        """
        raise NotImplementedError(f"the task {self.name} does not read class logits from canvas cells")

    @abstractmethod
    def count(self, logits: Tensor, truth: Truth) -> dict[str, Tensor]:
        """What the metric is computed from: [B, ...] per scene, by the names of `metric.counts`."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """What `picture` draws of a reading: [B, H, W] int64 labels at scene size, [B, K] probabilities, or whatever
        else the task's picture knows how to draw."""

    @classmethod
    @abstractmethod
    def uncertainty_shape(cls, map_size: int) -> tuple[int, ...] | None:
        """Of the observation `uncertainty`; None where a reading has none."""

    @abstractmethod
    def uncertainty(self, logits: Tensor, *, map_size: int) -> Tensor:
        """[B, *uncertainty_shape(map_size)] in [0, 1]."""


TRAINING_RECORD = "training.json"
"""Beside a probe's weights: how it was fitted (canvit_gym.probes.fit writes it)."""


_REFIT = "Put the intact file in its place, remove it, or fit the probe again (canvit-gym fit-probe)."


def check_probe(what: str, directory: Path, *, backbone: Backbone, num_classes: int, classes: tuple[str, ...]) -> None:
    """Raise ValueError where a probe is not for these classes, or for this checkpoint or canvas, as far as it tells."""
    if num_classes != len(classes):
        raise ValueError(
            f"{what} tells {num_classes} classes apart, but the scenes have {len(classes)}. "
            "Use a probe fitted on these classes (canvit-gym fit-probe)."
        )
    path = directory / TRAINING_RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. {_REFIT}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold a JSON object, as canvit_gym.probes.fit writes it. {_REFIT}")
    if (fitted := record.get("classes")) is not None and tuple(fitted) != classes:
        at = next(i for i, (one, other) in enumerate(zip(fitted, classes, strict=True)) if one != other)
        raise ValueError(
            f"{what} was fitted on other classes: its class {at} is {fitted[at]!r}, the scenes' is {classes[at]!r}. "
            "Use a probe fitted on these classes, in this order (canvit-gym fit-probe)."
        )
    if record.get("checkpoint_sha256") not in (None, backbone.sha256):
        raise ValueError(
            f"{what} was fitted on another checkpoint (sha256 {record['checkpoint_sha256'][:12]}…) than "
            f"{backbone.name!r} (sha256 {backbone.sha256[:12]}…). Use that checkpoint, or fit a probe on this one "
            "(canvit-gym fit-probe)."
        )
    if (fitted := record.get("canvas_grid")) not in (None, backbone.canvas_grid):
        raise ValueError(
            f"{what} was fitted on a canvas grid of {fitted}, but this one is of {backbone.canvas_grid}. "
            f"Use canvas_grid={fitted}, or fit a probe on this one (canvit-gym fit-probe)."
        )
