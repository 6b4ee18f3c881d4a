"""What a step does on the device: from images and viewpoints to readings, potentials and observations.

`DeviceStep` is a pure function of tensors. `CompiledStep` compiles all of it, from the sampling of glimpses to the keys
of the observation, as one function. `RecordedStep` runs it for all rows of a batch, on tensors that it updates where
they are, and on a GPU records it as a CUDA graph; callers that step only some rows give the others back what they had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from canvit_pytorch import RecurrentState, Viewpoint
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.backbone.canvas import normalized_canvas
from canvit_gym.backbone.compilation import CompiledFunction, How, Ran, RecordedGraph, precision_on, record
from canvit_gym.backbone.load import Backbone
from canvit_gym.observations import ObservationLayout, StepTensors, pooled_canvas
from canvit_gym.tasks.task import Task, Truth

READING_BYTES = 1 << 20
"""About how many bytes of canvas are read at once on a CPU: they stay in a core's cache between operations."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step of n rows, on the device."""

    state: RecurrentState
    logits: Tensor
    measured: Tensor | None  # [number of potentials, n]
    kept: dict[str, Tensor]  # of the observation's DeviceKeys, [n, ...] each

    def rows(self, index: Tensor) -> "StepResult":
        """The result of some rows."""
        return StepResult(
            state=RecurrentState(canvas=self.state.canvas[index], recurrent_cls=self.state.recurrent_cls[index]),
            logits=self.logits[index],
            measured=None if self.measured is None else self.measured[:, index],
            kept={name: value[index] for name, value in self.kept.items()},
        )


class DeviceStep:
    """All that a step does on the device once its glimpses are sampled: a pure function of tensors."""

    def __init__(self, *, backbone: Backbone, task: Task, layout: ObservationLayout, potentials: Sequence[str]) -> None:
        self.backbone = backbone
        self.task = task
        self.layout = layout
        self.potentials = tuple(potentials)
        self.keys = layout.device_keys
        self._pools = any(key.reads_canvas for key in self.keys.values())
        self._shows_uncertainty = any(key.reads_uncertainty for key in self.keys.values())

    def __call__(
        self, glimpse: Tensor, where: Viewpoint, state: RecurrentState, truth: Truth, before: Mapping[str, Tensor]
    ) -> StepResult:
        """Glimpses [n, 3, px, px] at viewpoints `where`, and the states before them -> the result.

        before: the values kept by keys that accumulate.
        """
        state = self.backbone.step(glimpse, state, where)
        logits, kept = self.follow(glimpse, where, state, before)
        return StepResult(state=state, logits=logits, measured=self.measure(logits, truth, self.potentials), kept=kept)

    def follow(
        self, glimpse: Tensor, where: Viewpoint, state: RecurrentState, before: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits, kept) of the states after the glimpses."""
        step = self._read(state, glimpse, where)
        return step.logits, {
            name: key.update(before[name] if key.accumulates else None, step, self.layout)
            for name, key in self.keys.items()
        }

    def start(self, num: int, *, read: bool) -> tuple[Tensor | None, dict[str, Tensor]]:
        """(logits, kept) of `num` scenes before any glimpse; without `read`, only what needs no reading."""
        kept = {name: key.start(self.layout, num, self.backbone.device) for name, key in self.keys.items()}
        if not read:
            return None, {name: value for name, value in kept.items() if value is not None}
        # One empty canvas is read for all of them.
        empty = self._read(self.backbone.init_state(1), None, None)
        for name, key in self.keys.items():
            if kept[name] is None:
                kept[name] = _repeated(key.update(None, empty, self.layout), num)
        return _repeated(empty.logits, num), {name: value for name, value in kept.items() if value is not None}

    def measure(self, logits: Tensor, truth: Truth, potentials: Sequence[str]) -> Tensor | None:
        """[number of potentials, n]"""
        measured = [self.task.potentials[name].measure(logits, truth) for name in potentials]
        return torch.stack(measured) if measured else None

    def _read(self, state: RecurrentState, glimpse: Tensor | None, where: Viewpoint | None) -> StepTensors:
        logits, pooled = self._decode(state)
        shown = self.task.uncertainty(logits, map_size=self.layout.map_size) if self._shows_uncertainty else None
        return StepTensors(
            state=state, logits=logits, pooled_canvas=pooled, uncertainty=shown, glimpse=glimpse, viewpoint=where
        )

    def _decode(self, state: RecurrentState) -> tuple[Tensor, Tensor | None]:
        """(logits, pooled canvas where it is observed) of states."""
        if not (self._pools or self.task.reads_canvas):
            return self.task.read(state, None), None
        if state.canvas.device.type != "cpu" or torch.compiler.is_compiling():
            return self._decode_at_once(state)
        scene_bytes = state.canvas[0].numel() * state.canvas.element_size()
        at_once = -(-READING_BYTES // scene_bytes)
        parts = [
            self._decode_at_once(RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls))
            for canvas, recurrent_cls in zip(
                state.canvas.split(at_once), state.recurrent_cls.split(at_once), strict=True
            )
        ]
        if len(parts) == 1:
            return parts[0]
        logits, pooled = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(pooled) if self._pools else None

    def _decode_at_once(self, state: RecurrentState) -> tuple[Tensor, Tensor | None]:
        canvas_norm = normalized_canvas(self.backbone, state)
        logits = self.task.read(state, canvas_norm)
        return logits, pooled_canvas(canvas_norm, size=self.layout.canvas_size) if self._pools else None


def _repeated(row: Tensor, num: int) -> Tensor:
    """[1, ...] -> [num, ...], each row with its own memory."""
    return row.expand(num, *row.shape[1:]).contiguous()


@dataclass(frozen=True)
class Held:
    """What a batch of episodes keeps on the device, in tensors that never move: results of its last step, by row."""

    state: RecurrentState
    logits: Tensor
    kept: dict[str, Tensor]

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.state.canvas, self.state.recurrent_cls, self.logits, *self.kept.values())


class CompiledStep:
    """A DeviceStep and the sampling before it, through torch.compile as one function.

    Potentials that cannot be compiled (see `Potential.compiles`) are measured after it.
    """

    def __init__(self, step: DeviceStep) -> None:
        self.step = step
        task, self._backbone = step.task, step.backbone
        self._within = tuple(name for name in step.potentials if task.potentials[name].compiles)
        self._accumulating = tuple(name for name, key in step.keys.items() if key.accumulates)

    def __call__(
        self, images: Tensor, where: Viewpoint, state: RecurrentState, truth: Truth, before: Mapping[str, Tensor]
    ) -> StepResult:
        """Scenes [n, 3, H, W] at viewpoints `where` -> the result."""
        viewpoints = torch.cat([where.centers, where.scales.unsqueeze(1)], dim=1)
        kept = [before[name] for name in self._accumulating]
        function = self.function(tuple(truth))
        outputs = function(images, viewpoints, state.canvas, state.recurrent_cls, *truth.values(), *kept)
        self.count(function.how)
        canvas, recurrent_cls, logits, *rest = outputs
        return StepResult(
            state=RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls),
            logits=logits,
            measured=self.measured(rest[: len(self._within)], logits, truth),
            kept=dict(zip(self.step.keys, rest[len(self._within) :], strict=True)),
        )

    def function(self, truth_names: tuple[str, ...], *, in_place: bool = False) -> CompiledFunction:
        """The compiled function, shared by all batches of episodes that compute the same.

        in_place: it writes its results over what the step before it left, and returns the potentials alone.
        """
        step = self.step
        key = (step.task.key, step.layout, self._within, truth_names, in_place)
        if key not in self._backbone.compiled:
            plain = _PlainStep(step, self._within, truth_names, self._accumulating)
            name = f"a step of {self._backbone.name}"
            function = CompiledFunction(_InPlace(plain) if in_place else plain, name=name, any_number=True)
            self._backbone.compiled[key] = function
        return self._backbone.compiled[key]

    def measured(self, within: Sequence[Tensor], logits: Tensor, truth: Truth) -> Tensor | None:
        """[number of potentials, n], of which the compiled function has measured those `within` it."""
        found = dict(zip(self._within, within, strict=True))
        after = [name for name in self.step.potentials if name not in found]
        if (others := self.step.measure(logits, truth, after)) is not None:
            found |= dict(zip(after, others, strict=True))
        return torch.stack([found[name] for name in self.step.potentials]) if found else None

    def count(self, how: How) -> None:
        """Record in the backbone how a step ran."""
        with self._backbone.autocast():
            self._backbone.ran[Ran(how, precision_on(self._backbone.device))] += 1


class _PlainStep:
    """The function that is compiled: tensors in, tensors out."""

    def __init__(
        self, step: DeviceStep, potentials: tuple[str, ...], truth_names: tuple[str, ...], accumulating: tuple[str, ...]
    ) -> None:
        self._step = step
        self._take = step.backbone.fast_step  # here, not at the first call: attributes must not appear while compiling
        self._measures = [step.task.potentials[name].measure for name in potentials]
        self._truth_names = truth_names
        self._accumulating = accumulating
        self.keys = tuple(step.keys)

    def __call__(
        self, images: Tensor, viewpoints: Tensor, canvas: Tensor, recurrent_cls: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """rest: the truth, then the values kept by keys that accumulate. Returns the state, the logits, potentials, and
        the values of all keys.
        """
        num = len(self._truth_names)  # cut to length: PyTorch 2.9 cannot compile a zip of different lengths
        truth = dict(zip(self._truth_names, rest[:num], strict=True))
        before = dict(zip(self._accumulating, rest[num:], strict=True))
        where = Viewpoint(centers=viewpoints[:, :2].contiguous(), scales=viewpoints[:, 2].contiguous())
        glimpse = self._take.sample(images, where.centers, where.scales)
        with self._step.backbone.autocast():
            canvas, recurrent_cls = self._take(glimpse, canvas, recurrent_cls, where.centers, where.scales)
        state = RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls)
        logits, kept = self._step.follow(glimpse, where, state, before)
        return canvas, recurrent_cls, logits, *(measure(logits, truth) for measure in self._measures), *kept.values()

    def split(self, rest: Sequence[Tensor]) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
        """(truth, values kept by all keys) of what `_InPlace` is given."""
        num = len(self._truth_names)
        return rest[:num], dict(zip(self.keys, rest[num:], strict=True))

    def accumulated(self, kept: Mapping[str, Tensor]) -> list[Tensor]:
        return [kept[name] for name in self._accumulating]


class _InPlace:
    """A _PlainStep that writes its results over those of the step before: compiled, without copies of large tensors."""

    def __init__(self, plain: _PlainStep) -> None:
        self._plain = plain

    def __call__(
        self, images: Tensor, viewpoints: Tensor, canvas: Tensor, recurrent_cls: Tensor, logits: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """rest: the truth, then the values kept by all keys. Returns the potentials."""
        truth, kept = self._plain.split(rest)
        before = self._plain.accumulated(kept)
        outputs = self._plain(images, viewpoints, canvas, recurrent_cls, *truth, *before)
        first_kept = len(outputs) - len(kept)
        for held, value in ((canvas, outputs[0]), (recurrent_cls, outputs[1]), (logits, outputs[2])):
            held.copy_(value)
        for held, value in zip(kept.values(), outputs[first_kept:], strict=True):
            held.copy_(value)
        return tuple(outputs[3:first_kept])


class RecordedStep:
    """A CompiledStep of all rows of a batch, which updates in place what the batch holds; on a GPU a CUDA graph."""

    def __init__(self, compiled: CompiledStep, num: int) -> None:
        device = compiled.step.backbone.device
        self._compiled = compiled
        with torch.inference_mode():  # like all tensors that steps read and return
            self._viewpoints = torch.zeros(num, 3, device=device)
        self._graph: RecordedGraph | None = None
        self._records = device.type == "cuda"

    def __call__(self, images: Tensor, viewpoints: NDArray[np.float32], truth: Truth, held: Held) -> Tensor | None:
        """Update `held`; returns the potentials [number of potentials, N].

        viewpoints: [N, 3] on the host. All tensors are those of the previous call, with other values. The next step of
        any graph of this process may overwrite the potentials: copy them first.
        """
        given = torch.from_numpy(viewpoints)
        self._viewpoints.copy_(given.pin_memory() if self._records else given, non_blocking=True)
        state = held.state
        inputs = (
            images,
            self._viewpoints,
            state.canvas,
            state.recurrent_cls,
            held.logits,
            *truth.values(),
            *held.kept.values(),
        )
        if self._graph is None:
            function = self._compiled.function(tuple(truth), in_place=True)
            within, how = function(*inputs), function.how
            if self._records:
                self._graph = self._recorded(function, inputs, held) if how == "compiled" else None
                self._records = self._graph is not None
        else:
            moved = [
                i for i, (one, known) in enumerate(zip(inputs, self._graph.inputs, strict=True)) if one is not known
            ]
            assert not moved, f"inputs {moved} of a recorded step are other tensors than when it was recorded"
            within, how = self._graph.replay(), "cuda graph"
        self._compiled.count(how)
        return self._compiled.measured(within, held.logits, truth)

    def _recorded(self, function: CompiledFunction, inputs: tuple[Tensor, ...], held: Held) -> RecordedGraph | None:
        """The graph. Recording takes steps of its own, so what is held is restored."""
        values = [tensor.clone() for tensor in held.tensors()]
        graph = record(function, inputs)
        for tensor, value in zip(held.tensors(), values, strict=True):
            tensor.copy_(value)
        return graph
