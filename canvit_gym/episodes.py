"""N concurrent episodes on the device: scenes, states, readings and what was seen, without any notion of reward.

Host-side arrays are numpy, device-side ones are tensors; rows are environment indices. Every method works on
the rows it is given, so that scenes which end are replaced while the others go on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from canvit_core.preprocess import IMAGENET_MEAN, IMAGENET_STD
from canvit_pytorch import RecurrentState, Viewpoint
from canvit_pytorch.preprocess import imagenet_denormalize
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.backbone.canvas import normalized_canvas
from canvit_gym.backbone.load import Backbone
from canvit_gym.observations import GAZE_LENGTH, ObservationLayout, pooled_canvas, uncertainty, update_acuity
from canvit_gym.scenes.source import SceneSource, load_scenes
from canvit_gym.states import Rows, States, index_of
from canvit_gym.tasks.task import Task
from canvit_gym.viewpoints import FULL_SCENE, to_viewpoint

READING_BYTES = 1 << 20
"""Of canvas read at once on a CPU, about: what stays in a core's cache between the operations on it."""


@dataclass(frozen=True)
class EpisodeView:
    """One episode as it stands, on the host: all that a picture of it needs. Holds the truth: no observation."""

    image: NDArray[np.uint8]  # [H, W, 3]
    glimpse: NDArray[np.uint8]  # [px, px, 3], the last one; zeros before the first
    viewpoints: NDArray[np.float32]  # [t, 3] (row, col, scale), in the order taken
    canvas: NDArray[np.float32]  # [G, G, D], layer-normalized
    prediction: NDArray[np.float32]  # dense: [H, W] labels; else [K] probabilities
    truth: NDArray[np.int64]  # dense: [H, W] labels; else [] class
    classes: tuple[str, ...]
    budget: int
    loss_curve: NDArray[np.float32]  # [budget + 1], index = glimpses taken; NaN where not measured
    score_curve: NDArray[np.float32]


def _assign(target: Tensor | None, rows: Rows, value: Tensor, num: int) -> Tensor:
    """`target` with `value` at `rows`; the value itself where it covers every row."""
    if target is None or len(rows) == num:
        return value
    target[index_of(rows, target)] = value
    return target


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


def to_host(tensors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    """As arrays; from a GPU with one synchronization for all of them."""
    device = next(iter(tensors.values())).device
    if device.type != "cuda":
        return {key: value.cpu().numpy() for key, value in tensors.items()}
    host = {key: torch.empty_like(value, device="cpu", pin_memory=True) for key, value in tensors.items()}
    for key, value in tensors.items():
        host[key].copy_(value, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return {key: value.numpy() for key, value in host.items()}


@dataclass(frozen=True)
class _Potentials:
    """Losses, and scores and soft scores where asked for, of rows after so many glimpses: on their way to the host."""

    rows: Rows
    glimpses: NDArray[np.int64]
    values: Tensor  # [1 to 3, len(rows)], in this order
    arrived: torch.cuda.Event | None


class EpisodeBatch:
    """State of `num` episodes: `reset_rows` puts scenes in rows, `step_rows` takes a glimpse in rows and reads it."""

    def __init__(
        self,
        *,
        num: int,
        backbone: Backbone,
        task: Task,
        layout: ObservationLayout,
        scenes: SceneSource,
        budget: int,
        with_score: bool,
        with_soft_score: bool = False,
    ) -> None:
        self.num = num
        self.backbone = backbone
        self.task = task
        self.layout = layout
        self.scenes = scenes
        self.budget = budget
        self.with_score = with_score
        self.with_soft_score = with_soft_score
        self.all_rows: Rows = np.arange(num)
        self._mean, self._std = (
            torch.tensor(values, device=backbone.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )

        self.scene = np.full(num, -1, dtype=np.int64)
        self.glimpses = np.zeros(num, dtype=np.int64)
        self.viewpoints = np.zeros((num, budget, 3), dtype=np.float32)
        self._loss = np.zeros(num, dtype=np.float32)
        self._score = np.full(num, np.nan, dtype=np.float32)
        self._soft_score = np.full(num, np.nan, dtype=np.float32)
        self._loss_curve = np.full((num, budget + 1), np.nan, dtype=np.float32)
        self._score_curve = np.full((num, budget + 1), np.nan, dtype=np.float32)
        self._potentials: _Potentials | None = None

        self.images: Tensor | None = None  # [N, 3, H, W], ImageNet-normalized
        self.truth: dict[str, Tensor] = {}
        self._states = States(num, backbone.init_state)
        self.logits: Tensor | None = None
        self._pooled: Tensor | None = None  # [N, D, g, g]
        self._acuity: Tensor | None = None  # [N, m, m]
        self._pixels: Tensor | None = None  # [N, 3, px, px] uint8

    @property
    def state(self) -> RecurrentState:
        """The backbone's state of every scene. Valid until the next reset or step; clone to keep or change it."""
        with torch.inference_mode():
            return self._states.whole()

    @property
    def loss(self) -> NDArray[np.float32]:
        """[N], as of the last reading."""
        self._settle()
        return self._loss

    @property
    def score(self) -> NDArray[np.float32]:
        """[N], NaN where it is not measured."""
        self._settle()
        return self._score

    @property
    def soft_score(self) -> NDArray[np.float32]:
        """[N], NaN where it is not measured."""
        self._settle()
        return self._soft_score

    @property
    def loss_curve(self) -> NDArray[np.float32]:
        """[N, budget + 1], index = glimpses taken."""
        self._settle()
        return self._loss_curve

    @property
    def score_curve(self) -> NDArray[np.float32]:
        """[N, budget + 1], index = glimpses taken."""
        self._settle()
        return self._score_curve

    @torch.inference_mode()
    def reset_rows(self, rows: Rows, scene: NDArray[np.int64], *, read: bool) -> None:
        """Put scenes [len(rows)] in rows, with an empty canvas; `read` decodes the empty canvas."""
        self._settle()
        device = self.backbone.device
        batch = load_scenes(self.scenes, scene)
        self._put_images(rows, batch.images)
        for name, value in self.task.truth(batch.labels, with_score=self.with_score).items():
            self.truth[name] = _assign(self.truth.get(name), rows, value, self.num)
        self._states.restart(rows)

        self.scene[rows] = scene
        self.glimpses[rows] = 0
        self.viewpoints[rows] = 0
        self._loss_curve[rows] = np.nan
        self._score_curve[rows] = np.nan
        if "acuity" in self.layout.keys:
            size = self.layout.map_size
            zeros = torch.zeros(len(rows), size, size, device=device)
            self._acuity = _assign(self._acuity, rows, zeros, self.num)
        if "glimpse" in self.layout.keys:
            px = self.layout.glimpse_size_px
            zeros = torch.zeros(len(rows), 3, px, px, dtype=torch.uint8, device=device)
            self._pixels = _assign(self._pixels, rows, zeros, self.num)
        if read:
            # One empty canvas is read for all of them.
            empty = self._decode(self.backbone.init_state(1))
            logits, pooled = (None if t is None else t.expand(len(rows), *t.shape[1:]).contiguous() for t in empty)
            assert logits is not None
            self._read(rows, logits, pooled)

    def _put_images(self, rows: Rows, images: Tensor) -> None:
        """uint8 [len(rows), 3, H, W] -> ImageNet-normalized, in rows of `self.images`.

        The operations and their order are those of canvit-pytorch's imagenet_normalize: its pixels to the bit.
        """
        device = self.backbone.device
        if device.type != "cpu":
            images = images.to(device, non_blocking=True).float().div_(255).sub_(self._mean).div_(self._std)
            self.images = _assign(self.images, rows, images, self.num)
            return
        if self.images is None:
            self.images = torch.empty(self.num, *images.shape[1:])
        for row, image in zip(rows.tolist(), images, strict=True):  # one image stays in the cache from first to last
            torch.div(image.float().div_(255).sub_(self._mean), self._std, out=self.images[row])

    @torch.inference_mode()
    def step_rows(self, rows: Rows, viewpoints: NDArray[np.float32]) -> None:
        """One batched forward: the next glimpse of each row at viewpoints [len(rows), 3], then read the canvas."""
        assert self.images is not None, "reset_rows() comes first"
        where = to_viewpoint(viewpoints, self.backbone.device)
        state = self._forward(rows, where)
        self._states.put(rows, state)

        self.viewpoints[rows, self.glimpses[rows]] = viewpoints
        self.glimpses[rows] += 1
        if self._acuity is not None:
            acuity = self._acuity if len(rows) == self.num else self._acuity[index_of(rows, self._acuity)]
            self._acuity = _assign(self._acuity, rows, update_acuity(acuity, where), self.num)
        self._read(rows, *self._decode(state))

    def _forward(self, rows: Rows, where: Viewpoint) -> RecurrentState:
        glimpse = self._glimpses(rows, where)
        if self._pixels is not None:
            self._keep_pixels(rows, glimpse)
        return self.backbone.step(glimpse, self._states.take(rows), where)

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

    def _keep_pixels(self, rows: Rows, glimpse: Tensor) -> None:
        self._pixels = _assign(self._pixels, rows, _to_uint8(glimpse), self.num)

    def _decode(self, state: RecurrentState) -> tuple[Tensor, Tensor | None]:
        """(logits, pooled canvas where it is observed) of states."""
        observed = "canvas" in self.layout.keys
        if not (observed or self.task.is_dense):
            return self.task.read(state, None), None
        scene_bytes = state.canvas[0].numel() * state.canvas.element_size()
        at_once = -(-READING_BYTES // scene_bytes) if state.canvas.device.type == "cpu" else len(state.canvas)
        logits, pooled = [], []
        for canvas, recurrent_cls in zip(state.canvas.split(at_once), state.recurrent_cls.split(at_once), strict=True):
            part = RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls)
            canvas_norm = normalized_canvas(self.backbone, part)
            logits.append(self.task.read(part, canvas_norm))
            if observed:
                pooled.append(pooled_canvas(canvas_norm, size=self.layout.canvas_size))
        if len(logits) == 1:
            return logits[0], pooled[0] if observed else None
        return torch.cat(logits), torch.cat(pooled) if observed else None

    def _read(self, rows: Rows, logits: Tensor, pooled: Tensor | None) -> None:
        """Measure the readings of rows: loss, and the scores where asked for."""
        self._settle()
        self.logits = _assign(self.logits, rows, logits, self.num)
        if pooled is not None:
            self._pooled = _assign(self._pooled, rows, pooled, self.num)
        truth = self.truth if len(rows) == self.num else _RowsOf(self.truth, rows)
        potentials = [self.task.loss(logits, truth)]
        if self.with_score:
            potentials.append(self.task.score(logits, truth))
        if self.with_soft_score:
            potentials.append(self.task.soft_score(logits, truth))
        values, arrived = torch.stack(potentials), None
        if values.device.type == "cuda":
            # What the step is for is on its way while the observation is made; `_settle` waits for it.
            arrived, stream = torch.cuda.Event(), torch.cuda.current_stream(values.device)
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            arrived.record(stream)
        self._potentials = _Potentials(rows=rows, glimpses=self.glimpses[rows], values=values, arrived=arrived)

    def _settle(self) -> None:
        """Wait for the last potentials and note them.

        Raises:
            FloatingPointError: the reading of a scene is not finite; names the scene and the glimpse.
        """
        last, self._potentials = self._potentials, None
        if last is None:
            return
        if last.arrived is not None:
            last.arrived.synchronize()
        values = last.values.numpy()
        self._loss[last.rows] = values[0]
        self._loss_curve[last.rows, last.glimpses] = values[0]
        if self.with_score:
            self._score[last.rows] = values[1]
            self._score_curve[last.rows, last.glimpses] = values[1]
        if self.with_soft_score:
            self._soft_score[last.rows] = values[-1]
        if (wrong := np.flatnonzero(~np.isfinite(values[0]))).size:  # as any logit that is not finite makes the loss
            row, taken = int(last.rows[wrong[0]]), int(last.glimpses[wrong[0]])
            when = f"glimpse {taken} at {self.viewpoints[row, taken - 1].tolist()}" if taken else "before any glimpse"
            raise FloatingPointError(
                f"scene {self.scene[row]}, {when}: the reading is not finite (cross-entropy {self._loss[row]}). Check "
                f"the weights of checkpoint {self.backbone.name!r} and its probe, or try precision='float32' (this is "
                f"{self.backbone.precision})."
            )

    @torch.no_grad()
    def observe(self, rows: Rows | None = None) -> dict[str, Tensor]:
        """Fresh tensors of the keys asked for, [len(rows), ...] each, on the device."""
        rows = self.all_rows if rows is None else rows
        assert self.logits is not None
        dtype = getattr(torch, self.layout.dtype)
        device = self.backbone.device
        whole = len(rows) == self.num

        def picked(stored: Tensor) -> Tensor:
            """Never an alias of what is stored: rows are updated in place."""
            value = stored if whole else stored[index_of(rows, stored)]
            value = value.to(dtype) if value.is_floating_point() else value
            return value.clone() if value is stored else value

        def from_host(values: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(values).to(device=device, dtype=dtype, non_blocking=True)

        observation: dict[str, Tensor] = {}
        for key in self.layout.keys:
            match key:
                case "canvas":
                    assert self._pooled is not None
                    observation[key] = picked(self._pooled)
                case "uncertainty":
                    logits = self.logits if whole else self.logits[index_of(rows, self.logits)]
                    observation[key] = uncertainty(logits, size=self.layout.map_size).to(dtype)
                case "acuity":
                    assert self._acuity is not None
                    observation[key] = picked(self._acuity).unsqueeze(1)
                case "cls":
                    stored = self.state.recurrent_cls[:, 0]
                    cls = (stored if whole else stored[index_of(rows, stored)]).float()
                    observation[key] = torch.nn.functional.layer_norm(cls, cls.shape[-1:]).to(dtype)
                case "viewpoint":
                    last = np.maximum(self.glimpses[rows] - 1, 0)
                    observation[key] = from_host(self.viewpoints[rows, last])
                case "gaze":
                    recent = self.glimpses[rows, None] - 1 - np.arange(GAZE_LENGTH)  # [n, GAZE_LENGTH]
                    taken = self.viewpoints[rows[:, None], np.maximum(recent, 0)]
                    observation[key] = from_host((taken * (recent >= 0)[..., None]).reshape(len(rows), -1))
                case "time":
                    left = (1 - self.glimpses[rows] / self.budget).astype(np.float32)
                    observation[key] = from_host(left[:, None])
                case "glimpse":
                    assert self._pixels is not None
                    observation[key] = picked(self._pixels)
        return observation

    @torch.no_grad()
    def view(self, row: int) -> EpisodeView:
        """Episode `row`, for a picture. The score curve holds what was tracked, and always the current score."""
        assert self.images is not None and self.logits is not None
        logits = self.logits[row : row + 1]
        state = RecurrentState(
            canvas=self.state.canvas[row : row + 1], recurrent_cls=self.state.recurrent_cls[row : row + 1]
        )
        truth = {k: v[row : row + 1] for k, v in self.truth.items()}
        taken = int(self.glimpses[row])
        image = self.images[row : row + 1]
        glimpse = np.zeros((self.layout.glimpse_size_px, self.layout.glimpse_size_px, 3), dtype=np.uint8)
        if taken:
            viewpoint = to_viewpoint(self.viewpoints[row, taken - 1 : taken], self.backbone.device)
            glimpse = _to_uint8(self.backbone.glimpse(image, viewpoint))[0].permute(1, 2, 0).cpu().numpy()
        score_curve = self.score_curve[row].copy()
        score_curve[taken] = self.task.score(logits, truth).item()
        grid = self.backbone.canvas_grid
        return EpisodeView(
            image=_to_uint8(image)[0].permute(1, 2, 0).cpu().numpy(),
            glimpse=glimpse,
            viewpoints=self.viewpoints[row, :taken].copy(),
            canvas=normalized_canvas(self.backbone, state)[0].view(grid, grid, -1).cpu().numpy(),
            prediction=self.task.predict(logits)[0].cpu().numpy(),
            truth=truth["labels"][0].cpu().numpy().astype(np.int64),
            classes=self.task.classes,
            budget=self.budget,
            loss_curve=self.loss_curve[row].copy(),
            score_curve=score_curve,
        )


def _to_uint8(images: Tensor) -> Tensor:
    """ImageNet-normalized [..., 3, H, W] -> uint8 RGB."""
    return (imagenet_denormalize(images) * 255).round().to(torch.uint8)
