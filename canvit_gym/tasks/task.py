"""The interface of tasks: how a state is read, how good the reading is, and how it is reported and drawn.

A reading is the output of a frozen probe on a state: `logits`, float32 on the device. A potential is a number per scene
that says how good a reading is; rewards are differences of potentials (canvit_gym.rewards). Every task has the
potentials `loss` (smooth, less is better) and `score` (the number that is reported, more is better), and may declare
others.

To add a task, subclass Task in a new module and add an entry to canvit_gym.tasks.TASKS. To add a potential, decorate a
method with `potential`.
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
"""Tensors [n, ...] on the device by name: whatever a task's potentials and counts need."""

Measure = Callable[[Tensor, Truth], Tensor]
"""(logits [B, ...], truth) -> [B]"""


@dataclass(frozen=True)
class Potential:
    """A number per scene that says how good a reading is."""

    measure: Measure
    symbol: str
    """In the formulas of the documentation: L, S, P, ..."""
    doc: str
    """A short description, with the unit."""
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
    """Name -> (symbol, doc) of the potentials of a class of tasks."""
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
    """How readings and the truth are drawn."""
    in_every_info: ClassVar[tuple[str, ...]] = ("loss",)
    """Potentials that cost next to nothing and are therefore part of every info."""
    reads_canvas: ClassVar[bool] = True
    """Whether `read` uses the layer-normalized canvas."""
    reading_shape: ClassVar[str] = "[B, K, G, G]"
    """Shape of the logits: "[B, K, G, G]" for classes of every canvas cell, "[B, K]" for classes of the scene,
    "[B, D, G, G]" for features of every cell. Policies that look where cells are uncertain need the first."""
    has_probe: ClassVar[bool] = True
    """Whether a probe of classes, which `canvit-gym fit-probe` fits, reads the states."""
    goals: Goals | None = None
    """The possible goals; None if the task is not goal-conditioned."""

    def __init__(self, *, backbone: Backbone, classes: tuple[str, ...], source: Source) -> None:
        self.backbone = backbone
        self.classes = classes
        self._source = source

    @property
    def probe_sha256(self) -> str:
        return self._source.sha256

    @property
    def key(self) -> Hashable:
        """Equal for tasks of one backbone that read and measure the same, which share compiled code. A task with
        further settings adds them."""
        return type(self), self.probe_sha256, self.classes

    @property
    def record(self) -> dict[str, Any]:
        """JSON values that identify the probe: see canvit_gym.backbone.hub.Source."""
        return self._source.record

    @cached_property
    def potentials(self) -> dict[str, Potential]:
        """Name -> potential that this task can measure."""
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
        """Raise ValueError if this task cannot measure a potential."""
        if name not in self.potentials:
            raise ValueError(
                f"{wanted_by} needs the potential {name!r}, which the task {self.name} does not measure; it measures "
                f"{', '.join(self.potentials)}"
            )

    @property
    @abstractmethod
    def flops_per_reading(self) -> int:
        """FLOPs of `read` per scene, counted as in canvit_pytorch.flops."""

    @abstractmethod
    def truth(
        self,
        scenes: SceneBatch,
        *,
        goal: NDArray[Any] | None = None,
        potentials: Collection[str] = (),
        counted: bool = False,
    ) -> dict[str, Tensor]:
        """The ground truth of n scenes on the device, including "labels" if scenes are labelled.

        goal: [n] for goal-conditioned tasks. potentials: names of the potentials that will be measured after every
        glimpse. counted: whether `count` will be called after every glimpse. Both may be used to prepare for it.
        """

    def shown(self, truth: Truth) -> Tensor:
        """[n, ...]: what `picture` draws of the truth; labels, unless the task has something else."""
        return truth["labels"].long()

    def labelled(self, truth: Truth) -> Tensor:
        """[n] booleans: whether a scene has any label. Evaluations leave out scenes without one."""
        return torch.ones(len(next(iter(truth.values()))), dtype=torch.bool)

    @abstractmethod
    def read(self, state: RecurrentState, canvas_norm: Tensor | None) -> Tensor:
        """The reading of B states: float32 logits of `reading_shape`.

        canvas_norm: the canvas patches [B, G*G, D] after a LayerNorm without affine, if the caller has computed them.
        """

    def canvas_logits(self, canvas: Tensor) -> Tensor:
        """Class logits [B, K, G, G] of a canvas [B, n_tokens, canvas_dim], for canvit-pytorch's own policies.

        Raises:
            NotImplementedError: the task does not read classes of canvas cells.
        """
        raise NotImplementedError(f"the task {self.name} does not read class logits from canvas cells")

    @abstractmethod
    def count(self, logits: Tensor, truth: Truth) -> dict[str, Tensor]:
        """Name in `metric.counts` -> [B, ...] per scene, from which the metric is computed."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """The part of a reading that `picture` draws: [B, H, W] int64 labels at scene size, [B, K] probabilities, or
        anything else that the task's picture can draw."""

    @classmethod
    @abstractmethod
    def uncertainty_shape(cls, map_size: int) -> tuple[int, ...] | None:
        """Shape of the observation `uncertainty`; None if readings have no uncertainty."""

    @abstractmethod
    def uncertainty(self, logits: Tensor, *, map_size: int) -> Tensor:
        """[B, *uncertainty_shape(map_size)] in [0, 1]."""


TRAINING_RECORD = "training.json"
"""A file next to a probe's weights that records how it was fitted (written by canvit_gym.probes.fit)."""

_RECORDED: dict[str, type] = {"classes": list, "checkpoint_sha256": str, "canvas_grid": int}
"""What check_probe reads in a probe's record."""
_REFIT = "Put the intact file in its place, remove it, or fit the probe again (canvit-gym fit-probe)."


def check_probe(what: str, directory: Path, *, backbone: Backbone, num_classes: int, classes: tuple[str, ...]) -> None:
    """Raise ValueError if a probe was, as far as its record says, fitted on other classes, another checkpoint or
    canvas."""
    if num_classes != len(classes):
        raise ValueError(
            f"{what} distinguishes {num_classes} classes, but the scenes have {len(classes)}. "
            "Use a probe fitted on these classes (canvit-gym fit-probe)."
        )
    path = directory / TRAINING_RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. {_REFIT}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold a JSON object, as canvit_gym.probes.fit writes it. {_REFIT}")
    for name, kind in _RECORDED.items():
        if not isinstance(value := record.get(name), kind | None):
            raise ValueError(f"{path}: {name!r} is {value!r}, as canvit_gym.probes.fit never writes it. {_REFIT}")
    if (fitted := record.get("classes")) is not None and len(fitted) != num_classes:
        raise ValueError(f"{path} names {len(fitted)} classes, but {what} distinguishes {num_classes}. {_REFIT}")
    if fitted is not None and tuple(fitted) != classes:
        at = next(i for i, (one, other) in enumerate(zip(fitted, classes, strict=True)) if one != other)
        raise ValueError(
            f"{what} was fitted on other classes: its class {at} is {fitted[at]!r}, that of the scenes "
            f"{classes[at]!r}. Use a probe fitted on these classes, in this order (canvit-gym fit-probe)."
        )
    if record.get("checkpoint_sha256") not in (None, backbone.sha256):
        raise ValueError(
            f"{what} was fitted on another checkpoint (sha256 {record['checkpoint_sha256'][:12]}…) than "
            f"{backbone.name!r} (sha256 {backbone.sha256[:12]}…). Use that checkpoint, or fit a probe on this one "
            "(canvit-gym fit-probe)."
        )
    if (fitted := record.get("canvas_grid")) not in (None, backbone.canvas_grid):
        raise ValueError(
            f"{what} was fitted on a canvas grid of {fitted}, but this one is {backbone.canvas_grid}. "
            f"Use canvas_grid={fitted}, or fit a probe on this one (canvit-gym fit-probe)."
        )
