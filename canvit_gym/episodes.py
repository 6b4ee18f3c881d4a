"""N concurrent episodes on the device: scenes, states, readings and observations, without any notion of reward.

Host-side arrays are numpy, device-side ones are tensors; rows are environment indices. Every method works on
the rows it is given, so that episodes that end can be replaced while the others continue.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, cast

import numpy as np
import torch
from canvit_core.preprocess import IMAGENET_MEAN, IMAGENET_STD
from canvit_pytorch import RecurrentState, Viewpoint
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.backbone.canvas import normalized_canvas
from canvit_gym.backbone.load import Backbone
from canvit_gym.device_step import CompiledStep, DeviceStep, Held, RecordedStep, StepResult
from canvit_gym.dtypes import float32_by_default
from canvit_gym.observations import ObservationLayout, Taken, to_uint8
from canvit_gym.scenes.ahead import SceneLoader
from canvit_gym.scenes.source import SceneBatch, SceneSource
from canvit_gym.states import FixedStates, Rows, States, index_of
from canvit_gym.tasks.goals import Goals, choose_goals, goal_uniforms, require_available
from canvit_gym.tasks.metric import Metric
from canvit_gym.tasks.pictures import TaskPicture
from canvit_gym.tasks.task import Task, Truth
from canvit_gym.viewpoints import FULL_SCENE, to_viewpoint


def stays_in_place(device: torch.device) -> bool:
    """Whether compiled steps take all rows and use tensors that never move, as CUDA graphs require."""
    return device.type == "cuda"


def loads_ahead(device: torch.device) -> bool:
    """Whether a thread loads the next scenes. On a CPU it would only take cores from the steps."""
    return device.type == "cuda"


type _Method[**P, R] = Callable[Concatenate["EpisodeBatch", P], R]


def _own_precision[**P, R](method: _Method[P, R]) -> _Method[P, R]:
    """Compute as without the caller's autocast, which would change the readings; the backbone has its own."""

    @wraps(method)
    def without_autocast(self: "EpisodeBatch", *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(self.backbone.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return without_autocast


@dataclass(frozen=True)
class EpisodeView:
    """One episode at one moment, on the host: all that a picture needs. It holds the truth, so agents do not see it."""

    image: NDArray[np.uint8]  # [H, W, 3]
    glimpse: NDArray[np.uint8]  # [px, px, 3], the last one; zeros before the first
    viewpoints: NDArray[np.float32]  # [t, 3] (row, col, scale), in the order taken
    canvas: NDArray[np.float32]  # [G, G, D], layer-normalized
    prediction: NDArray[np.float32]  # as the task predicts: [H, W] labels, [K] probabilities, ...
    truth: NDArray[Any]  # as the task shows it: [H, W] labels, [] class, ...
    classes: tuple[str, ...]
    budget: int
    loss_curve: NDArray[np.float32]  # [budget + 1], index = glimpses taken; NaN where not measured
    score_curve: NDArray[np.float32]
    metric: Metric
    """The name and the format of the score."""
    picture: TaskPicture
    """Draws reading and truth."""
    goal: str = ""
    """The name of the goal, in goal-conditioned tasks."""


class _RowsOf(Mapping[str, Tensor]):
    """Rows of named tensors, taken when asked for: a loss has no use for the label maps that a score needs."""

    def __init__(self, whole: Mapping[str, Tensor], rows: Rows) -> None:
        self._whole, self._rows = whole, rows

    def __getitem__(self, name: str) -> Tensor:
        value = self._whole[name]
        return value[index_of(self._rows, value)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)


def normalize(images: Tensor, *, mean: Tensor, std: Tensor, out: Tensor | None) -> Tensor:
    """uint8 [n, 3, H, W] -> (images / 255 - mean) / std in float32, in two passes over the large result.

    canvit-pytorch's imagenet_normalize up to rounding, for a GPU.
    """
    return torch.mul(images, 1 / (255 * std), out=out).sub_(mean / std)


def begin_to_host(tensors: dict[str, Tensor]) -> Callable[[], dict[str, NDArray[Any]]]:
    """Begin to copy tensors to the host. The returned function waits for them, once for all, and returns the arrays."""
    device = next(iter(tensors.values())).device
    if device.type != "cuda":
        return lambda: {key: value.cpu().numpy() for key, value in tensors.items()}
    host = {key: torch.empty_like(value, device="cpu", pin_memory=True) for key, value in tensors.items()}
    for key, value in tensors.items():
        host[key].copy_(value, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(device))

    def wait() -> dict[str, NDArray[Any]]:
        arrived.synchronize()
        return {key: value.numpy() for key, value in host.items()}

    return wait


@dataclass(frozen=True)
class _Measured:
    """Potentials of rows after `glimpses` glimpses, on their way to the host."""

    rows: Rows
    glimpses: NDArray[np.int64]
    arriving: Callable[[], dict[str, NDArray[Any]]]
    """Waits for "potentials", [number of potentials, len(rows)]."""


class EpisodeBatch:
    """State of `num` episodes: `reset_rows` puts scenes in rows, `step_rows` takes a glimpse in rows and reads it."""

    @float32_by_default()
    def __init__(
        self,
        *,
        num: int,
        backbone: Backbone,
        task: Task,
        layout: ObservationLayout,
        scenes: SceneSource,
        budget: int,
        potentials: Sequence[str] = ("loss",),
        counted: bool = False,
        compiles: bool = True,
    ) -> None:
        """potentials: the names of those to measure after every reading. counted: whether the task's `count` will be
        called after every glimpse, so that the truth is prepared for it. compiles: False for a batch that is too
        short-lived to compile for, whatever the backbone's `compile` says."""
        for name in potentials:
            task.require_potential(name, wanted_by="this batch of episodes")
        self.num = num
        self.backbone = backbone
        self.task = task
        self.layout = layout
        self._loader = self._loader_of(scenes)
        self.budget = budget
        self.measured = tuple(potentials)
        self._counted = counted
        self._device_step = DeviceStep(backbone=backbone, task=task, layout=layout, potentials=self.measured)
        self._compiled_step: CompiledStep | None = None
        self._recorded_step: RecordedStep | None = None
        if backbone.compile and compiles:
            self._compiled_step = CompiledStep(self._device_step)
            if stays_in_place(backbone.device):
                self._recorded_step = RecordedStep(self._compiled_step, num)
        self.all_rows: Rows = np.arange(num)
        self._mean, self._std = (
            torch.tensor(values, device=backbone.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )

        self.scene = np.full(num, -1, dtype=np.int64)
        self.glimpses = np.zeros(num, dtype=np.int64)
        self.viewpoints = np.zeros((num, budget, 3), dtype=np.float32)
        self.targets = self.viewpoints
        """[N, budget, 3] where glimpses were meant to be taken: differs from `viewpoints` only if some miss
        (canvit_gym.perturbations). Action masks follow it."""
        self.goal: NDArray[np.int64] | None = None if task.goals is None else np.zeros(num, dtype=np.int64)
        self._potentials = {name: np.zeros(num, dtype=np.float32) for name in self.measured}
        self._curves = {name: np.full((num, budget + 1), np.nan, dtype=np.float32) for name in self.measured}
        self._in_flight: _Measured | None = None

        self.images: Tensor | None = None  # [N, 3, H, W], ImageNet-normalized
        self.truth: dict[str, Tensor] = {}
        self._states = (States if self._recorded_step is None else FixedStates)(num, backbone.init_state)
        self._logits: Tensor | None = None
        self._is_read = False
        self._kept: dict[str, Tensor] = {}  # of the observation's DeviceKeys, [N, ...] each

    def _loader_of(self, scenes: SceneSource) -> SceneLoader:
        return SceneLoader(scenes, self.backbone.device, ahead=loads_ahead(self.backbone.device))

    @property
    def scenes(self) -> SceneSource:
        """Where scenes come from. It may be replaced by a source of other scenes of this size, before a reset."""
        return self._loader.scenes

    @scenes.setter
    def scenes(self, scenes: SceneSource) -> None:
        self._loader.close()
        self._loader = self._loader_of(scenes)

    @property
    def state(self) -> RecurrentState:
        """The backbone's state of every scene. Valid until the next reset or step; clone it to keep or change it."""
        with torch.inference_mode():
            return self._states.whole()

    @property
    def logits(self) -> Tensor | None:
        """The current readings, [N, ...]. None before the first one."""
        return self._logits if self._is_read else None

    @property
    def potentials(self) -> dict[str, NDArray[np.float32]]:
        """[N] each, as of the last reading."""
        self._settle()
        return self._potentials

    @property
    def curves(self) -> dict[str, NDArray[np.float32]]:
        """[N, budget + 1] each, index = glimpses taken; NaN where not measured."""
        self._settle()
        return self._curves

    @float32_by_default()
    @_own_precision
    @torch.inference_mode()
    def reset_rows(
        self,
        rows: Rows,
        scene: NDArray[np.int64],
        *,
        read: bool,
        goal: NDArray[np.int64] | None = None,
        uniform: NDArray[np.float64] | None = None,
    ) -> None:
        """Put scenes [len(rows)] in rows, with an empty canvas; `read` decodes the empty canvas.

        goal: [len(rows)], for a task that has goals; None draws them with `uniform`, numbers in [0, 1), which by
        default depend on the scenes' indices.

        Raises:
            ValueError: a scene does not hold the given goal.
        """
        self._settle()
        loaded = self._loader.load(scene)
        batch = loaded.batch
        if self.goal is not None:
            self.goal[rows] = self._goals(loaded.on_host(), scene, goal, uniform)
        asked = None if self.goal is None else self.goal[rows]
        truth = self.task.truth(batch, goal=asked, potentials=self.measured, counted=self._counted)
        for name, value in truth.items():
            self.truth[name] = self._assigned(self.truth.get(name), rows, value)
        self._put_images(rows, batch.images)
        self._states.restart(rows)

        self.scene[rows] = scene
        self.glimpses[rows] = 0
        self.viewpoints[rows] = 0
        for curve in self._curves.values():
            curve[rows] = np.nan
        logits, kept = self._device_step.start(len(rows), read=read)
        self._keep(rows, kept)
        if logits is not None:
            self._logits, self._is_read = self._assigned(self._logits, rows, logits), True
            self._note(rows, self._device_step.measure(logits, self._truth_of(rows), self.measured))
        elif len(rows) == self.num:
            self._is_read = False  # the readings are of other scenes

    def expect(self, scene: NDArray[np.int64]) -> None:
        """Announce the scenes that `reset_rows` will be called with next, so that they can be loaded meanwhile."""
        self._loader.expect(scene)

    def close(self) -> None:
        """End the thread that loads scenes, if any. Call nothing else afterwards."""
        self._loader.close()

    def _goals(
        self,
        batch: SceneBatch,
        scene: NDArray[np.int64],
        goal: NDArray[np.int64] | None,
        uniform: NDArray[np.float64] | None,
    ) -> NDArray[np.int64]:
        assert self.task.goals is not None
        available = self.task.goals.available(batch)
        if goal is None:
            return choose_goals(available, goal_uniforms(scene) if uniform is None else uniform)
        require_available(goal, available, scene, self.task.goals.names)
        return goal

    def _put_images(self, rows: Rows, images: Tensor) -> None:
        """uint8 [len(rows), 3, H, W] -> ImageNet-normalized, in rows of `self.images`.

        On a CPU the operations and their order are those of canvit-pytorch's imagenet_normalize: its pixels to the bit.
        """
        device = self.backbone.device
        if device.type != "cpu":
            images = images.to(device, non_blocking=True)
            in_place = self.images if len(rows) == self.num else None
            normalized = normalize(images, mean=self._mean, std=self._std, out=in_place)
            if in_place is None:
                self.images = self._assigned(self.images, rows, normalized)
            return
        if self.images is None:
            self.images = torch.empty(self.num, *images.shape[1:])
        for row, image in zip(rows.tolist(), images, strict=True):  # one image stays in the cache from first to last
            torch.div(image.float().div_(255).sub_(self._mean), self._std, out=self.images[row])

    @float32_by_default()
    @_own_precision
    @torch.inference_mode()
    def step_rows(self, rows: Rows, viewpoints: NDArray[np.float32]) -> None:
        """One batched forward: the next glimpse of each row at viewpoints [len(rows), 3], then read the canvas."""
        assert self.images is not None, "reset_rows() comes first"
        if self._recorded_step is not None:
            measured = self._step_in_place(self._recorded_step, rows, viewpoints)
        else:
            if len(rows) == self.num:
                self._logits = None  # frees the memory of the earlier readings
            result = self._stepped(rows, viewpoints)
            self._states.put(rows, result.state)
            self._keep(rows, result.kept)
            self._logits = self._assigned(self._logits, rows, result.logits)
            measured = result.measured
        self._is_read = True
        self.viewpoints[rows, self.glimpses[rows]] = viewpoints
        self.glimpses[rows] += 1
        self._note(rows, measured)

    def _step_in_place(self, step: RecordedStep, rows: Rows, viewpoints: NDArray[np.float32]) -> Tensor | None:
        """Update what is held of rows; returns their potentials [number of potentials, len(rows)].

        All rows step, the others at any viewpoint, since another number of rows would be compiled anew. Then the others
        get back what they had.
        """
        assert self.images is not None
        held = self._held()
        if len(rows) == self.num:
            return step(self.images, viewpoints, self.truth, held)
        others = index_of(np.setdiff1d(self.all_rows, rows), self.images)
        values = [tensor[others] for tensor in held.tensors()]
        everywhere = np.tile(FULL_SCENE, (self.num, 1))
        everywhere[rows] = viewpoints
        measured = step(self.images, everywhere, self.truth, held)
        for tensor, value in zip(held.tensors(), values, strict=True):
            tensor[others] = value
        return None if measured is None else measured[:, index_of(rows, measured)]

    def _held(self) -> Held:
        """What recorded steps update. The first one finds the readings of empty canvases there."""
        if self._logits is None or len(self._kept) < len(self._device_step.keys):
            logits, kept = self._device_step.start(self.num, read=True)
            assert logits is not None
            self._logits = logits.contiguous() if self._logits is None else self._logits
            self._kept = {name: self._kept.get(name, value.contiguous()) for name, value in kept.items()}
        kept = {name: self._kept[name] for name in self._device_step.keys}  # in the order in which steps take them
        return Held(state=self._states.whole(), logits=self._logits, kept=kept)

    def _stepped(self, rows: Rows, viewpoints: NDArray[np.float32]) -> StepResult:
        assert self.images is not None
        if self._compiled_step is not None and len(rows) == 1 < self.num:
            # With another scene, which is dropped: code compiled for any number above one does not run on one.
            pair = np.sort([rows[0], (rows[0] + 1) % self.num])
            both = self._stepped(pair, np.repeat(viewpoints, 2, axis=0))
            return both.rows(torch.from_numpy(np.flatnonzero(pair == rows[0])))
        where = to_viewpoint(viewpoints, self.backbone.device)
        state, truth = self._states.take(rows), self._truth_of(rows)
        before = self._kept if len(rows) == self.num else _RowsOf(self._kept, rows)
        if self._compiled_step is not None:
            images = self.images if len(rows) == self.num else self.images[index_of(rows, self.images)]
            return self._compiled_step(images, where, state, truth, before)
        return self._device_step(self._glimpses(rows, where), where, state, truth, before)

    def _assigned(self, target: Tensor | None, rows: Rows, value: Tensor) -> Tensor:
        """`target` with `value` at `rows`: the value itself if it covers every row and tensors may move."""
        if target is None:
            return value if self._recorded_step is None else value.clone(memory_format=torch.contiguous_format)
        if len(rows) == self.num:
            return value if self._recorded_step is None else target.copy_(value)
        target[index_of(rows, target)] = value
        return target

    def _truth_of(self, rows: Rows) -> Truth:
        return self.truth if len(rows) == self.num else _RowsOf(self.truth, rows)

    def _keep(self, rows: Rows, kept: dict[str, Tensor]) -> None:
        for name, value in kept.items():
            self._kept[name] = self._assigned(self._kept.get(name), rows, value)

    def _glimpses(self, rows: Rows, where: Viewpoint) -> Tensor:
        """[len(rows), 3, px, px], ImageNet-normalized."""
        assert self.images is not None
        if len(rows) == self.num:
            return self.backbone.glimpse(self.images, where)
        if 2 * len(rows) <= self.num:
            images = self.images[index_of(rows, self.images)]
            return self.backbone.glimpse(images, where)
        # Sampling every scene and dropping some glimpses is cheaper than copying the scenes of most.
        index = index_of(rows, where.scales)
        everywhere = to_viewpoint(np.tile(FULL_SCENE, (self.num, 1)), self.backbone.device)
        everywhere.centers[index], everywhere.scales[index] = where.centers, where.scales
        return self.backbone.glimpse(self.images, everywhere)[index]

    @torch.no_grad()
    def taken_glimpses(self, rows: Rows, t: NDArray[np.int64]) -> Tensor:
        """[len(rows), 3, px, px], ImageNet-normalized: what glimpse t [len(rows)] (0-based) of each row showed."""
        return self._glimpses(rows, to_viewpoint(self.viewpoints[rows, t], self.backbone.device))

    def _note(self, rows: Rows, values: Tensor | None) -> None:
        """Potentials [number of them, len(rows)] of the current readings are on their way to the host."""
        self._settle()
        if values is not None:
            # They are copied while the observation is made; `_settle` waits for them.
            arriving = begin_to_host({"potentials": values})
            self._in_flight = _Measured(rows=rows, glimpses=self.glimpses[rows], arriving=arriving)

    @float32_by_default()
    def _settle(self) -> None:
        """Wait for the last potentials and note them.

        Raises:
            FloatingPointError: a potential of a scene is not finite; names the scene and the glimpse.
        """
        last, self._in_flight = self._in_flight, None
        if last is None:
            return
        values = last.arriving()["potentials"]
        for name, measured in zip(self.measured, values, strict=True):
            self._potentials[name][last.rows] = measured
            self._curves[name][last.rows, last.glimpses] = measured
        if (wrong := np.argwhere(~np.isfinite(values.T))).size:  # as any logit that is not finite makes the loss
            place, which = wrong[0]
            row, taken, name = int(last.rows[place]), int(last.glimpses[place]), self.measured[which]
            when = f"glimpse {taken} at {self.viewpoints[row, taken - 1].tolist()}" if taken else "before any glimpse"
            raise FloatingPointError(
                f"scene {self.scene[row]}, {when}: the reading is not finite ({name} {values[which, place]}). Check "
                f"the weights of checkpoint {self.backbone.name!r} and its probe, or try precision='float32' (this is "
                f"{self.backbone.precision})."
            )

    @float32_by_default()
    @torch.no_grad()
    def observe(self, rows: Rows | None = None) -> dict[str, Tensor]:
        """Fresh tensors of the observation's keys, [len(rows), ...] each, on the device."""
        rows = self.all_rows if rows is None else rows
        sent = {
            key: torch.from_numpy(value).to(self.backbone.device, non_blocking=True)
            for key, value in self._known(rows).items()
        }
        values = sent | self._picked(rows)
        return {key: values[key] for key in self.layout.keys}

    @float32_by_default()
    @torch.no_grad()
    def begin_observation(self, rows: Rows | None = None) -> Callable[[], dict[str, NDArray[Any]]]:
        """Begin to copy the observation to the host. The returned function waits for it, and returns fresh arrays of
        its keys, [len(rows), ...] each. What the host knows does not go to the device for that."""
        rows = self.all_rows if rows is None else rows
        known, picked = self._known(rows), self._picked(rows)
        arriving = begin_to_host(picked) if picked else dict

        def wait() -> dict[str, NDArray[Any]]:
            values = known | arriving()
            return {key: values[key] for key in self.layout.keys}

        return wait

    def _known(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """The observation's HostKeys."""
        goal = None if self.goal is None else cast(Goals, self.task.goals).encode(self.goal[rows])
        taken = Taken(self.glimpses[rows], self.viewpoints[rows], self.budget, goal)
        return {name: key.read(taken).astype(self.layout.dtype) for name, key in self.layout.host_keys.items()}

    def _picked(self, rows: Rows) -> dict[str, Tensor]:
        """The observation's DeviceKeys: never aliases of what is kept, whose rows are updated in place."""
        dtype = getattr(torch, self.layout.dtype)

        def picked(kept: Tensor) -> Tensor:
            value = kept if len(rows) == self.num else kept[index_of(rows, kept)]
            value = value.to(dtype) if value.is_floating_point() else value
            return value.clone() if value is kept else value

        return {name: picked(self._kept[name]) for name in self._device_step.keys}

    @float32_by_default()
    @_own_precision
    @torch.no_grad()
    def view(self, row: int) -> EpisodeView:
        """Episode `row`, for a picture. The score curve holds what was tracked, and always the current score."""
        assert self.images is not None and self.logits is not None
        logits = self.logits[row : row + 1]
        state = RecurrentState(
            canvas=self.state.canvas[row : row + 1], recurrent_cls=self.state.recurrent_cls[row : row + 1]
        )
        truth = self._truth_of(np.array([row]))
        taken = int(self.glimpses[row])
        glimpse = np.zeros((self.layout.glimpse_size_px, self.layout.glimpse_size_px, 3), dtype=np.uint8)
        if taken:
            pixels = self.taken_glimpses(np.array([row]), np.array([taken - 1]))
            glimpse = to_uint8(pixels)[0].permute(1, 2, 0).cpu().numpy()
        loss_curve, score_curve = self._curve("loss", row), self._curve("score", row)
        score_curve[taken] = self.task.potentials["score"].measure(logits, truth).item()
        goals = self.task.goals
        grid = self.backbone.canvas_grid
        return EpisodeView(
            image=to_uint8(self.images[row : row + 1])[0].permute(1, 2, 0).cpu().numpy(),
            glimpse=glimpse,
            viewpoints=self.viewpoints[row, :taken].copy(),
            canvas=normalized_canvas(self.backbone, state)[0].view(grid, grid, -1).cpu().numpy(),
            prediction=self.task.predict(logits)[0].cpu().numpy(),
            truth=self.task.shown(truth)[0].cpu().numpy(),
            classes=self.task.classes,
            budget=self.budget,
            loss_curve=loss_curve,
            score_curve=score_curve,
            metric=self.task.metric,
            picture=self.task.picture,
            goal="" if goals is None or self.goal is None else goals.names[int(self.goal[row])],
        )

    def _curve(self, name: str, row: int) -> NDArray[np.float32]:
        """[budget + 1], NaN where not measured."""
        known = self.curves.get(name)
        return np.full(self.budget + 1, np.nan, dtype=np.float32) if known is None else known[row].copy()
