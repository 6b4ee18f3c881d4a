"""N concurrent episodes on the device: scenes, states, readings and what was seen, without any notion of reward.

Host-side arrays are numpy, device-side ones are tensors; rows are environment indices. Every method works on
the rows it is given, so that scenes which end are replaced while the others go on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from canvit_core.preprocess import IMAGENET_MEAN, IMAGENET_STD
from canvit_pytorch import RecurrentState
from canvit_pytorch.preprocess import imagenet_denormalize
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.backbone.load import Backbone
from canvit_gym.observations import ObservationLayout, pooled_canvas, sharpened, uncertainty
from canvit_gym.scenes.source import SceneSource
from canvit_gym.tasks.segmentation import normalized_canvas
from canvit_gym.tasks.task import Task
from canvit_gym.viewpoints import FULL_SCENE, to_viewpoint

Rows = NDArray[np.int64]


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
    target[_index(rows, target)] = value
    return target


def _index(rows: Rows, like: Tensor) -> Tensor:
    """Rows as a tensor beside `like`: indexing with it is twice as fast as with the array."""
    return torch.from_numpy(rows).to(like.device)


class EpisodeBatch:
    """State of `num` episodes. `begin` puts scenes in rows, `look` takes a glimpse in rows and reads the result."""

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
    ) -> None:
        self.num = num
        self.backbone = backbone
        self.task = task
        self.layout = layout
        self.scenes = scenes
        self.budget = budget
        self.with_score = with_score
        self.all_rows: Rows = np.arange(num)
        self._mean, self._std = (
            torch.tensor(values, device=backbone.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )

        self.scene = np.full(num, -1, dtype=np.int64)
        self.glimpses = np.zeros(num, dtype=np.int64)
        self.viewpoints = np.zeros((num, budget, 3), dtype=np.float32)
        self.loss = np.zeros(num, dtype=np.float32)
        self.score = np.full(num, np.nan, dtype=np.float32)
        self.loss_curve = np.full((num, budget + 1), np.nan, dtype=np.float32)
        self.score_curve = np.full((num, budget + 1), np.nan, dtype=np.float32)

        self.images: Tensor | None = None  # [N, 3, H, W], ImageNet-normalized
        self.truth: dict[str, Tensor] = {}
        self.state: RecurrentState | None = None
        self.logits: Tensor | None = None
        self._pooled: Tensor | None = None  # [N, D, g, g]
        self._acuity: Tensor | None = None  # [N, m, m]
        self._pixels: Tensor | None = None  # [N, 3, px, px] uint8

    @torch.no_grad()
    def begin(self, rows: Rows, scene: NDArray[np.int64], *, read: bool) -> None:
        """Put scenes [len(rows)] in rows, with an empty canvas; `read` decodes the empty canvas."""
        device = self.backbone.device
        batch = self.scenes.load(scene)
        # In place: fresh buffers of this size cost more than the arithmetic. The operations and their order are
        # those of canvit-pytorch's imagenet_normalize, so the pixels are its to the bit.
        images = batch.images.to(device).float().div_(255).sub_(self._mean).div_(self._std)
        self.images = _assign(self.images, rows, images, self.num)
        for name, value in self.task.truth(batch.labels).items():
            self.truth[name] = _assign(self.truth.get(name), rows, value, self.num)
        state = self.backbone.init_state(len(rows))
        # init_state expands one token over the batch; rows that are replaced later need memory of their own.
        state = RecurrentState(canvas=state.canvas, recurrent_cls=state.recurrent_cls.contiguous())
        self._set_state(rows, state)

        self.scene[rows] = scene
        self.glimpses[rows] = 0
        self.viewpoints[rows] = 0
        self.loss_curve[rows] = np.nan
        self.score_curve[rows] = np.nan
        if "acuity" in self.layout.keys:
            size = self.layout.map_size
            zeros = torch.zeros(len(rows), size, size, device=device)
            self._acuity = _assign(self._acuity, rows, zeros, self.num)
        if "glimpse" in self.layout.keys:
            px = self.layout.glimpse_size_px
            zeros = torch.zeros(len(rows), 3, px, px, dtype=torch.uint8, device=device)
            self._pixels = _assign(self._pixels, rows, zeros, self.num)
        if read:
            self._read(rows, state)

    @torch.no_grad()
    def look(self, rows: Rows, viewpoints: NDArray[np.float32]) -> None:
        """One batched forward: the next glimpse of each row at viewpoints [len(rows), 3], then read the canvas."""
        assert self.images is not None and self.state is not None, "begin() comes first"
        viewpoint = to_viewpoint(viewpoints, self.backbone.device)
        if len(rows) == self.num:
            glimpse = self.backbone.glimpse(self.images, viewpoint)
        else:
            # Sampling every scene and dropping some glimpses is cheaper than copying the scenes of some.
            everywhere = np.tile(FULL_SCENE, (self.num, 1))
            everywhere[rows] = viewpoints
            glimpse = self.backbone.glimpse(self.images, to_viewpoint(everywhere, self.backbone.device))[rows]
        state = self.backbone.step(glimpse, self._state_rows(rows), viewpoint)
        self._set_state(rows, state)

        self.viewpoints[rows, self.glimpses[rows]] = viewpoints
        self.glimpses[rows] += 1
        if self._acuity is not None:
            acuity = self._acuity if len(rows) == self.num else self._acuity[rows]
            self._acuity = _assign(self._acuity, rows, sharpened(acuity, viewpoint), self.num)
        if self._pixels is not None:
            self._pixels = _assign(self._pixels, rows, _to_uint8(glimpse), self.num)
        self._read(rows, state)

    def _set_state(self, rows: Rows, state: RecurrentState) -> None:
        if self.state is None or len(rows) == self.num:
            self.state = state
        else:
            index = _index(rows, state.canvas)
            self.state.canvas[index] = state.canvas
            self.state.recurrent_cls[index] = state.recurrent_cls

    def _state_rows(self, rows: Rows) -> RecurrentState:
        assert self.state is not None
        if len(rows) == self.num:
            return self.state
        index = _index(rows, self.state.canvas)
        return RecurrentState(canvas=self.state.canvas[index], recurrent_cls=self.state.recurrent_cls[index])

    def _read(self, rows: Rows, state: RecurrentState) -> None:
        """Decode the state of rows: logits, loss, score where asked for, and the pooled canvas."""
        truth = self.truth if len(rows) == self.num else {k: v[_index(rows, v)] for k, v in self.truth.items()}
        wants_canvas = "canvas" in self.layout.keys
        canvas_norm = normalized_canvas(self.backbone, state) if wants_canvas or self.task.is_dense else None
        logits = self.task.read(state, canvas_norm)
        self.logits = _assign(self.logits, rows, logits, self.num)
        if wants_canvas:
            assert canvas_norm is not None
            pooled = pooled_canvas(canvas_norm, size=self.layout.canvas_size)
            self._pooled = _assign(self._pooled, rows, pooled, self.num)
        potentials = [self.task.loss(logits, truth)]
        if self.with_score:
            potentials.append(self.task.score(logits, truth))
        host = torch.stack(potentials).cpu().numpy()  # the step's one device synchronization
        self.loss[rows] = host[0]
        self.loss_curve[rows, self.glimpses[rows]] = host[0]
        if self.with_score:
            self.score[rows] = host[1]
            self.score_curve[rows, self.glimpses[rows]] = host[1]

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
            value = stored if whole else stored[rows]
            value = value.to(dtype) if value.is_floating_point() else value
            return value.clone() if value is stored else value

        def from_host(values: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(values).to(device=device, dtype=dtype)

        observation: dict[str, Tensor] = {}
        for key in self.layout.keys:
            match key:
                case "canvas":
                    assert self._pooled is not None
                    observation[key] = picked(self._pooled)
                case "uncertainty":
                    logits = self.logits if whole else self.logits[rows]
                    observation[key] = uncertainty(logits, size=self.layout.map_size).to(dtype)
                case "acuity":
                    assert self._acuity is not None
                    observation[key] = picked(self._acuity).unsqueeze(1)
                case "cls":
                    cls = self._state_rows(rows).recurrent_cls[:, 0].float()
                    observation[key] = torch.nn.functional.layer_norm(cls, cls.shape[-1:]).to(dtype)
                case "viewpoint":
                    last = np.maximum(self.glimpses[rows] - 1, 0)
                    observation[key] = from_host(self.viewpoints[rows, last])
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
        rows = np.array([row])
        state, logits = self._state_rows(rows), self.logits[row : row + 1]
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
