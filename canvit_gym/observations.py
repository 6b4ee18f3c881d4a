"""Observations: what the agent gets to see of what the backbone knows.

An observation is a Dict of the requested keys; nothing is computed for the others. It never contains the label, the
score, or pixels that no glimpse has seen. `OBSERVATIONS` lists all keys. Each is an object that defines its space, what
it keeps from past steps, and what it shows. To add a key, add an entry.

There are two kinds of keys. A `DeviceKey` is kept as a tensor with a row per environment and computed from the tensors
of a step alone. A `HostKey` is computed from the viewpoints taken, the budget and the goal.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch import RecurrentState
from canvit_pytorch.policies.entropy import predictive_entropy
from canvit_pytorch.preprocess import imagenet_denormalize
from canvit_pytorch.viewpoint import Viewpoint
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.viewpoints import cell_grid

ObservationKey = str
"""A name in OBSERVATIONS."""
FloatDtype = Literal["float32", "float16"]

GAZE_LENGTH = 8
"""Number of recent viewpoints in `gaze`: all but the first of an episode of nine glimpses."""

SKETCH_CHANNELS = 8
"""Number of directions onto which `sketch` projects the canvas."""

COMPACT_KEYS: tuple[ObservationKey, ...] = ("sketch", "uncertainty", "acuity", "gaze", "time")
"""The keys of observation_preset="compact"."""

DEFAULT_KEYS: tuple[ObservationKey, ...] = ("canvas", "uncertainty", "acuity", "viewpoint", "time")


def bound(dim: int) -> int:
    """A bound on the entries of a layer-normalized token, which stay within sqrt(dim - 1); the rest allows for
    rounding."""
    return math.ceil(math.sqrt(dim))


@dataclass(frozen=True)
class ObservationLayout:
    """Keys and sizes of the observations. A policy records the layout it was trained with and refuses any other."""

    keys: tuple[ObservationKey, ...]
    canvas_size: int
    map_size: int
    dtype: FloatDtype
    canvas_dim: int
    backbone_dim: int
    canvas_grid: int
    glimpse_size_px: int
    uncertainty_shape: tuple[int, ...] | None
    """For one environment; None if the task's readings have no uncertainty."""
    goal_shape: tuple[int, ...] | None = None
    """For one environment; None if the task has no goals."""
    num_classes: int | None = None
    """Of the task's readings; None if `reading` is not among the keys."""

    def __post_init__(self) -> None:
        check_keys(self.keys)
        if self.dtype not in get_args(FloatDtype):
            raise ValueError(f"observation_dtype must be one of {', '.join(get_args(FloatDtype))}, got {self.dtype!r}")
        for name, size in (("canvas_size", self.canvas_size), ("map_size", self.map_size)):
            if not 1 <= size <= self.canvas_grid:
                raise ValueError(f"{name} must lie in [1, {self.canvas_grid}], the side of the canvas; got {size}")
        for key in self.keys:
            OBSERVATIONS[key].require_possible(self)

    @property
    def space(self) -> spaces.Dict:
        return spaces.Dict({key: OBSERVATIONS[key].space(self) for key in self.keys})

    @property
    def device_keys(self) -> dict[str, "DeviceKey"]:
        return {name: key for name in self.keys if isinstance(key := OBSERVATIONS[name], DeviceKey)}

    @property
    def host_keys(self) -> dict[str, "HostKey"]:
        return {name: key for name in self.keys if isinstance(key := OBSERVATIONS[name], HostKey)}

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ObservationLayout":
        """The inverse of `to_json`. Also reads layouts of version 0.1, which had `is_dense` in place of the shape."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if "is_dense" in known:
            size = known["map_size"]
            known["uncertainty_shape"] = (1, size, size) if known.pop("is_dense") else (1,)
        return cls(**known)

    def box(self, low: float, high: float, *shape: int) -> spaces.Box:
        """A Box of the layout's float dtype."""
        return spaces.Box(low, high, shape, np.dtype(self.dtype).type)


@dataclass(frozen=True)
class StepTensors:
    """The result of a step for n environments, on the device: everything a DeviceKey is computed from."""

    state: RecurrentState
    logits: Tensor
    pooled_canvas: Tensor | None  # [n, D, g, g], if a key reads it
    uncertainty: Tensor | None  # [n, *uncertainty_shape], if a key reads it
    glimpse: Tensor | None  # [n, 3, px, px], ImageNet-normalized; None before any glimpse
    viewpoint: Viewpoint | None


@dataclass(frozen=True)
class Taken:
    """What n episodes have done so far, on the host: everything a HostKey is computed from."""

    glimpses: NDArray[np.int64]  # [n]
    viewpoints: NDArray[np.float32]  # [n, budget, 3]; zeros for glimpses not taken yet
    budget: int
    goal: NDArray[np.float32] | None  # [n, *goal_shape], as the task encodes it


class _Key(ABC):
    """A key of the observation. The strings are its row in the documentation."""

    shape: ClassVar[str]
    range: ClassVar[str]
    meaning: ClassVar[str]

    @abstractmethod
    def space(self, layout: ObservationLayout) -> spaces.Box: ...

    def require_possible(self, layout: ObservationLayout) -> None:
        """Raise ValueError if the environment has nothing to show under this key."""
        return


class DeviceKey(_Key):
    """A key whose values are kept on the device: [N, ...], a row per environment."""

    reads_canvas: ClassVar[bool] = False
    """Whether it needs StepTensors.pooled_canvas."""
    reads_uncertainty: ClassVar[bool] = False
    """Whether it needs StepTensors.uncertainty."""
    accumulates: ClassVar[bool] = False
    """Whether `update` needs the value from before the step."""

    def start(self, layout: ObservationLayout, num: int, device: torch.device) -> Tensor | None:
        """[num, ...] before any glimpse. None: `update` computes it from the reading of an empty canvas."""
        return None

    @abstractmethod
    def update(self, before: Tensor | None, step: StepTensors, layout: ObservationLayout) -> Tensor:
        """[n, ...] after a step; a pure function. before: the value before the step, for keys that accumulate."""


class HostKey(_Key):
    """A key that is computed from scratch from what the host knows."""

    @abstractmethod
    def read(self, taken: Taken) -> NDArray[np.float32]:
        """[n, ...]"""


class Canvas(DeviceKey):
    shape, range = "[D, g, g]", "[-sqrt(D), sqrt(D)]"
    meaning = "canvas tokens, layer-normalized, mean-pooled to g x g"
    reads_canvas = True

    def space(self, layout: ObservationLayout) -> spaces.Box:
        limit = bound(layout.canvas_dim)
        return layout.box(-limit, limit, layout.canvas_dim, layout.canvas_size, layout.canvas_size)

    def update(self, before: Tensor | None, step: StepTensors, layout: ObservationLayout) -> Tensor:
        assert step.pooled_canvas is not None
        return step.pooled_canvas


class Sketch(DeviceKey):
    shape, range = f"[{SKETCH_CHANNELS}, g, g]", "[-sqrt(D), sqrt(D)]"
    meaning = f"`canvas` projected onto {SKETCH_CHANNELS} fixed random directions: a small summary of it"
    reads_canvas = True

    def space(self, layout: ObservationLayout) -> spaces.Box:
        limit = bound(layout.canvas_dim)
        return layout.box(-limit, limit, SKETCH_CHANNELS, layout.canvas_size, layout.canvas_size)

    def require_possible(self, layout: ObservationLayout) -> None:
        if layout.canvas_dim < SKETCH_CHANNELS:
            raise ValueError(
                f"observations include 'sketch', but the canvas has only {layout.canvas_dim} channels: leave it out"
            )

    def update(self, before: Tensor | None, step: StepTensors, layout: ObservationLayout) -> Tensor:
        assert step.pooled_canvas is not None
        directions = sketch_directions(dim=layout.canvas_dim, device=step.pooled_canvas.device)
        return torch.einsum("kd,ndij->nkij", directions, step.pooled_canvas.float())


class UncertaintyKey(DeviceKey):
    shape, range = "[1, m, m], or [1] if the task reads the scene as a whole", "[0, 1]"
    meaning = "the probe's predictive entropy, as a share of its maximum, log K"
    reads_uncertainty = True

    def space(self, layout: ObservationLayout) -> spaces.Box:
        assert layout.uncertainty_shape is not None
        return layout.box(0, 1, *layout.uncertainty_shape)

    def require_possible(self, layout: ObservationLayout) -> None:
        if layout.uncertainty_shape is None:
            raise ValueError(
                "observations include 'uncertainty', but this environment's task does not predict probabilities: "
                "leave it out"
            )

    def update(self, before: Tensor | None, step: StepTensors, layout: ObservationLayout) -> Tensor:
        assert step.uncertainty is not None
        return step.uncertainty


class Reading(DeviceKey):
    shape, range = "[K, m, m], or [K] if the task reads the scene as a whole", "[0, 1]"
    meaning = "the probe's probabilities of the K classes"

    def space(self, layout: ObservationLayout) -> spaces.Box:
        assert layout.num_classes is not None and layout.uncertainty_shape is not None
        return layout.box(0, 1, layout.num_classes, *layout.uncertainty_shape[1:])

    def require_possible(self, layout: ObservationLayout) -> None:
        if layout.uncertainty_shape is None:
            raise ValueError(
                "observations include 'reading', but this environment's task does not predict probabilities: "
                "leave it out"
            )

    def update(self, before: Tensor | None, step: StepTensors, layout: ObservationLayout) -> Tensor:
        probabilities = step.logits.softmax(dim=1)
        if probabilities.ndim == 2 or probabilities.shape[-1] == layout.map_size:
            return probabilities
        return _pooled(probabilities, size=layout.map_size)


class Acuity(DeviceKey):
    shape, range = "[1, m, m]", "[0, 1]"
    meaning = "the finest scale at which each cell has been seen; 0 if never"
    accumulates = True

    def space(self, layout: ObservationLayout) -> spaces.Box:
        return layout.box(0, 1, 1, layout.map_size, layout.map_size)

    def start(self, layout: ObservationLayout, num: int, device: torch.device) -> Tensor:
        return torch.zeros(num, 1, layout.map_size, layout.map_size, device=device)

    def update(self, before: Tensor | None, step: StepTensors, layout: ObservationLayout) -> Tensor:
        assert before is not None and step.viewpoint is not None
        return update_acuity(before.squeeze(1), step.viewpoint).unsqueeze(1)


class Cls(DeviceKey):
    shape, range = "[D_b]", "[-sqrt(D_b), sqrt(D_b)]"
    meaning = "the recurrent CLS token, layer-normalized"

    def space(self, layout: ObservationLayout) -> spaces.Box:
        limit = bound(layout.backbone_dim)
        return layout.box(-limit, limit, layout.backbone_dim)

    def update(self, before: Tensor | None, step: StepTensors, layout: ObservationLayout) -> Tensor:
        cls = step.state.recurrent_cls[:, 0].float()
        return F.layer_norm(cls, cls.shape[-1:])


class LastViewpoint(HostKey):
    shape, range = "[3]", "[-1, 1]"
    meaning = "the last (row, col, scale); zeros before the first"

    def space(self, layout: ObservationLayout) -> spaces.Box:
        return layout.box(-1, 1, 3)

    def read(self, taken: Taken) -> NDArray[np.float32]:
        return taken.viewpoints[np.arange(len(taken.glimpses)), np.maximum(taken.glimpses - 1, 0)]


class Gaze(HostKey):
    shape, range = f"[3 * {GAZE_LENGTH}]", "[-1, 1]"
    meaning = f"the last {GAZE_LENGTH} viewpoints, newest first; zeros where there are fewer"

    def space(self, layout: ObservationLayout) -> spaces.Box:
        return layout.box(-1, 1, 3 * GAZE_LENGTH)

    def read(self, taken: Taken) -> NDArray[np.float32]:
        rows = np.arange(len(taken.glimpses))
        recent = taken.glimpses[:, None] - 1 - np.arange(GAZE_LENGTH)  # [n, GAZE_LENGTH]
        viewpoints = taken.viewpoints[rows[:, None], np.maximum(recent, 0)]
        return (viewpoints * (recent >= 0)[..., None]).reshape(len(rows), -1)


class Time(HostKey):
    shape, range = "[1]", "[0, 1]"
    meaning = "share of the budget left"

    def space(self, layout: ObservationLayout) -> spaces.Box:
        return layout.box(0, 1, 1)

    def read(self, taken: Taken) -> NDArray[np.float32]:
        return (1 - taken.glimpses / taken.budget).astype(np.float32)[:, None]


class GlimpsePixels(DeviceKey):
    shape, range = "[3, px, px] uint8", "[0, 255]"
    meaning = "pixels of the last glimpse; zeros before the first"

    def space(self, layout: ObservationLayout) -> spaces.Box:
        return spaces.Box(0, 255, (3, layout.glimpse_size_px, layout.glimpse_size_px), np.uint8)

    def start(self, layout: ObservationLayout, num: int, device: torch.device) -> Tensor:
        px = layout.glimpse_size_px
        return torch.zeros(num, 3, px, px, dtype=torch.uint8, device=device)

    def update(self, before: Tensor | None, step: StepTensors, layout: ObservationLayout) -> Tensor:
        assert step.glimpse is not None
        return to_uint8(step.glimpse)


class Goal(HostKey):
    shape, range = "depends on the task", "[0, 1]"
    meaning = "the goal of a goal-conditioned task; a class is one-hot"

    def space(self, layout: ObservationLayout) -> spaces.Box:
        assert layout.goal_shape is not None
        return layout.box(0, 1, *layout.goal_shape)

    def require_possible(self, layout: ObservationLayout) -> None:
        if layout.goal_shape is None:
            raise ValueError("observations include 'goal', but this environment's task has no goals: leave it out")

    def read(self, taken: Taken) -> NDArray[np.float32]:
        assert taken.goal is not None
        return taken.goal


OBSERVATIONS: dict[ObservationKey, DeviceKey | HostKey] = {
    "canvas": Canvas(),
    "sketch": Sketch(),
    "uncertainty": UncertaintyKey(),
    "reading": Reading(),
    "acuity": Acuity(),
    "cls": Cls(),
    "viewpoint": LastViewpoint(),
    "gaze": Gaze(),
    "time": Time(),
    "glimpse": GlimpsePixels(),
    "goal": Goal(),
}
"""D and D_b are the widths of the canvas and of the backbone, g is `canvas_size`, m is `map_size`."""


def check_keys(keys: Sequence[object]) -> None:
    """Raise ValueError unless the keys are known and distinct, and there is at least one."""
    if (
        not keys
        or any(not isinstance(key, str) or key not in OBSERVATIONS for key in keys)
        or len(set(keys)) != len(keys)
    ):
        raise ValueError(
            f"observations must be distinct keys among {', '.join(OBSERVATIONS)}, at least one; got {list(keys)}"
        )


@torch.compiler.assume_constant_result  # constants of a compiled step
def sketch_directions(*, dim: int, device: torch.device) -> Tensor:
    """[SKETCH_CHANNELS, dim] orthonormal rows, the same on every machine."""
    return _kept_directions(dim, device)


@cache
def _kept_directions(dim: int, device: torch.device) -> Tensor:
    drawn = np.random.default_rng(0).standard_normal((dim, SKETCH_CHANNELS))
    rows = np.linalg.qr(drawn)[0].T.astype(np.float32)
    with torch.inference_mode(False):  # they may be used outside of inference mode
        return torch.from_numpy(np.ascontiguousarray(rows)).to(device)


def _pooled(maps: Tensor, *, size: int) -> Tensor:
    """[B, C, G, G] -> [B, C, size, size] by averaging. If size does not divide G, windows overlap by a cell."""
    grid = maps.shape[-1]
    return F.avg_pool2d(maps, grid // size) if grid % size == 0 else F.adaptive_avg_pool2d(maps, size)


def pooled_canvas(canvas_norm: Tensor, *, size: int) -> Tensor:
    """Layer-normalized patches [B, G*G, D] -> [B, D, size, size], mean-pooled."""
    grid = math.isqrt(canvas_norm.shape[1])
    if size == grid or grid % size:
        cells = canvas_norm.transpose(1, 2).unflatten(2, (grid, grid))
        return cells.contiguous() if size == grid else _pooled(cells, size=size)
    # Sums of whole slices, rows first: takes a third of avg_pool2d's time for channels-last maps on a CPU.
    cell = grid // size
    rows = canvas_norm.unflatten(1, (size, cell, grid)).unbind(2)  # cell x [B, size, grid, D]
    columns = sum(rows[1:], rows[0]).unflatten(2, (size, cell)).unbind(3)  # cell x [B, size, size, D]
    return (sum(columns[1:], columns[0]) / cell**2).permute(0, 3, 1, 2)


def predictive_uncertainty(logits: Tensor, *, size: int) -> Tensor:
    """[B, K, G, G] -> [B, 1, size, size], or [B, K] -> [B, 1]: predictive entropy as a share of log K."""
    entropy = (predictive_entropy(logits) / math.log(logits.shape[1])).clamp(0, 1).unsqueeze(1)
    if entropy.ndim == 2 or size == entropy.shape[-1]:
        return entropy
    return _pooled(entropy, size=size)


def finest_scale(acuity: Tensor) -> Tensor:
    """The finest scale that each cell was seen at, from an acuity map; that of the full scene where it was not seen."""
    return torch.where(acuity == 0, torch.ones_like(acuity), acuity)


def update_acuity(acuity: Tensor, viewpoint: Viewpoint) -> Tensor:
    """The acuity map [B, m, m] after a glimpse, which sees the cells whose centers its crop covers."""
    cells = cell_grid(size=acuity.shape[-1], device=acuity.device)[:, 0, 0]  # the same for rows and columns
    scale = viewpoint.scales.view(-1, 1, 1)
    within = (cells - viewpoint.centers.unsqueeze(2)).abs() <= scale  # [B, 2, m]
    finest = torch.minimum(finest_scale(acuity), scale)
    return torch.where(within[:, 0].unsqueeze(2) & within[:, 1].unsqueeze(1), finest, acuity)


def to_uint8(images: Tensor) -> Tensor:
    """ImageNet-normalized [..., 3, H, W] -> uint8 RGB."""
    return (imagenet_denormalize(images) * 255).round().to(torch.uint8)
