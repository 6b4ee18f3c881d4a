"""What a step does on the device: from images and viewpoints to readings, potentials and observations.

`DeviceStep` is a pure function of tensors. `CompiledStep` compiles all of it, from the sampling of glimpses to the keys
of the observation, as one function. `RecordedStep` runs it for all rows of a batch, on tensors that stay where they
are, and on a GPU records it as a CUDA graph; callers that step only some rows drop the results of the others.
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


class CompiledStep:
    """A DeviceStep and the sampling before it, through torch.compile as one function.

    Potentials that cannot be compiled (see `Potential.compiles`) are measured after it.
    """

    def __init__(self, step: DeviceStep) -> None:
        self.step = step
        task, self._backbone = step.task, step.backbone
        self._within = tuple(name for name in step.potentials if task.potentials[name].compiles)
        self._accumulating = tuple(name for name, key in step.keys.items() if key.accumulates)

    def inputs(
        self, images: Tensor, viewpoints: Tensor, state: RecurrentState, truth: Truth, before: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """The inputs of the compiled function; viewpoints: [n, 3]."""
        kept = [before[name] for name in self._accumulating]
        return (images, viewpoints, state.canvas, state.recurrent_cls, *truth.values(), *kept)

    def function(self, truth_names: tuple[str, ...]) -> CompiledFunction:
        """The compiled function, shared by all batches of episodes that compute the same."""
        step = self.step
        key = (step.task.key, step.layout, self._within, truth_names)
        if key not in self._backbone.compiled:
            self._backbone.compiled[key] = CompiledFunction(
                self._plain_function(truth_names), name=f"a step of {self._backbone.name}", any_number=True
            )
        return self._backbone.compiled[key]

    def _plain_function(self, truth_names: tuple[str, ...]) -> "_PlainStep":
        return _PlainStep(self.step, self._within, truth_names, self._accumulating)

    def result(self, outputs: tuple[Tensor, ...], truth: Truth) -> StepResult:
        """The outputs of the compiled function as a StepResult."""
        canvas, recurrent_cls, logits, *rest = outputs
        measured = dict(zip(self._within, rest, strict=False))
        kept = dict(zip(self.step.keys, rest[len(measured) :], strict=True))
        after = [name for name in self.step.potentials if name not in measured]
        if (others := self.step.measure(logits, truth, after)) is not None:
            measured |= dict(zip(after, others, strict=True))
        return StepResult(
            state=RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls),
            logits=logits,
            measured=torch.stack([measured[name] for name in self.step.potentials]) if measured else None,
            kept=kept,
        )

    def count(self, how: How) -> None:
        """Record in the backbone how a step ran."""
        with self._backbone.autocast():
            self._backbone.ran[Ran(how, precision_on(self._backbone.device))] += 1

    def __call__(
        self, images: Tensor, where: Viewpoint, state: RecurrentState, truth: Truth, before: Mapping[str, Tensor]
    ) -> StepResult:
        """Scenes [n, 3, H, W] at viewpoints `where` -> the result."""
        viewpoints = torch.cat([where.centers, where.scales.unsqueeze(1)], dim=1)
        function = self.function(tuple(truth))
        outputs = function(*self.inputs(images, viewpoints, state, truth, before))
        self.count(function.how)
        return self.result(outputs, truth)


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

    def __call__(
        self, images: Tensor, viewpoints: Tensor, canvas: Tensor, recurrent_cls: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
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


class RecordedStep:
    """A CompiledStep of all rows of a batch, on tensors that stay where they are; on a GPU a CUDA graph.

    The next step of any graph of this process overwrites its results: copy them first.
    """

    def __init__(self, compiled: CompiledStep, num: int) -> None:
        device = compiled.step.backbone.device
        self._compiled = compiled
        with torch.inference_mode():  # like all tensors that steps read and return
            self._viewpoints = torch.zeros(num, 3, device=device)
        self._graph: RecordedGraph | None = None
        self._records = device.type == "cuda"

    def __call__(
        self,
        images: Tensor,
        viewpoints: NDArray[np.float32],
        state: RecurrentState,
        truth: Truth,
        before: Mapping[str, Tensor],
    ) -> StepResult:
        """viewpoints: [N, 3] on the host. All tensors are those of the previous call, with new values."""
        given = torch.from_numpy(viewpoints)
        self._viewpoints.copy_(given.pin_memory() if self._records else given, non_blocking=True)
        inputs = self._compiled.inputs(images, self._viewpoints, state, truth, before)
        if self._graph is None:
            function = self._compiled.function(tuple(truth))
            outputs, how = function(*inputs), function.how
            if self._records:
                self._graph = record(function, inputs) if how == "compiled" else None
                self._records = self._graph is not None
        else:
            moved = [i for i, (one, held) in enumerate(zip(inputs, self._graph.inputs, strict=True)) if one is not held]
            assert not moved, f"inputs {moved} of a recorded step are other tensors than when it was recorded"
            outputs, how = self._graph.replay(), "cuda graph"
        self._compiled.count(how)
        return self._compiled.result(outputs, truth)
