"""Frozen CanViTs, loaded once per process and shared by every environment that uses the same one."""

import json
from collections import Counter
from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, get_args

import torch
from canvit_pytorch import (
    CanViT,
    CanViTForImageClassification,
    CanViTForPretraining,
    RecurrentState,
    Viewpoint,
)
from canvit_pytorch.flops import glimpse_flops
from canvit_pytorch.hub.repos import RELEASED_CANVAS_GRID_SIZE
from torch import Tensor

from canvit_gym.backbone.compilation import CompiledFunction, GraphedFunction, Precision, Ran, precision_on
from canvit_gym.backbone.fast_step import FastStep
from canvit_gym.backbone.forks import compute_alone_after_forks
from canvit_gym.backbone.hub import CONFIG, WEIGHTS, Source, locate, mark_used
from canvit_gym.backbone.memory import keep_freed_memory
from canvit_gym.backbone.nano import register_nano
from canvit_gym.backbone.step import ReferenceStep, step_of
from canvit_gym.backbone.weights import LOADING_ERRORS, load_weights

CheckpointModel = CanViTForPretraining | CanViTForImageClassification

GLIMPSES_PER_SIDE = 4
"""A glimpse's side has a quarter of the pretraining scene's pixels, in nano as in the released CanViT-B."""


@dataclass(frozen=True)
class Geometry:
    """How a backbone sees a scene: sizes in pixels and in canvas cells. All three can be chosen freely."""

    scene_size_px: int
    canvas_grid: int
    glimpse_size_px: int


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CanViT in evaluation mode, and the geometry it is used with."""

    model: CheckpointModel
    source: Source
    geometry: Geometry
    device: torch.device
    precision: Precision
    compile: bool = False
    """Whether steps go through torch.compile: from the first step on; if that fails, eagerly with a warning."""

    @property
    def canvit(self) -> CanViT:
        return self.model.canvit

    @property
    def pretrained(self) -> CanViTForPretraining:
        """The model with its pretraining readouts, which a fine-tuned one no longer has."""
        if not isinstance(self.model, CanViTForPretraining):
            raise ValueError(
                f"checkpoint {self.name!r} is fine-tuned for classification and has no pretraining readouts; use a "
                "pretrained one, such as 'flagship'"
            )
        return self.model

    @property
    def is_finetuned(self) -> bool:
        """Whether it is fine-tuned for classification: such a model has its own classifier."""
        return isinstance(self.model, CanViTForImageClassification)

    @property
    def name(self) -> str:
        """The name as given: "nano", a released name, a Hub id, a directory."""
        return self.source.name

    @property
    def sha256(self) -> str:
        """Of model.safetensors; results and policies record it."""
        return self.source.sha256

    @property
    def canvas_grid(self) -> int:
        """Side of the canvas, in cells."""
        return self.geometry.canvas_grid

    @property
    def scene_size_px(self) -> int:
        return self.geometry.scene_size_px

    @property
    def glimpse_size_px(self) -> int:
        return self.geometry.glimpse_size_px

    @property
    def record(self) -> dict[str, Any]:
        """JSON values that say what was loaded."""
        return {
            **self.source.record,
            "model": type(self.model).__name__,
            "scene_size_px": self.scene_size_px,
            "canvas_grid": self.canvas_grid,
            "glimpse_size_px": self.glimpse_size_px,
            "precision": self.precision,
            "compile": self.compile,
        }

    @cached_property
    def glimpse_flops(self) -> int:
        """FLOPs of one step of one scene, as canvit_pytorch.flops counts them."""
        return glimpse_flops(
            self.canvit.config, glimpse_size_px=self.glimpse_size_px, canvas_grid_size=self.canvas_grid
        )

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def init_state(self, batch_size: int) -> RecurrentState:
        """The state before any glimpse."""
        return self.canvit.init_state(batch_size=batch_size, canvas_grid_size=self.canvas_grid)

    def glimpse(self, images: Tensor, viewpoint: Viewpoint) -> Tensor:
        """[B, 3, H, W] -> [B, 3, glimpse_size_px, glimpse_size_px]: what the backbone sees at each viewpoint."""
        return self.fast_step.sample(images, viewpoint.centers, viewpoint.scales)

    def step(self, glimpse: Tensor, state: RecurrentState, viewpoint: Viewpoint) -> RecurrentState:
        """The state after a glimpse [B, 3, glimpse_size_px, glimpse_size_px] taken at `viewpoint`."""
        with self.autocast():
            take = self._compiled_step if self.compile else self.fast_step
            canvas, cls = take(glimpse, state.canvas, state.recurrent_cls, viewpoint.centers, viewpoint.scales)
            self.ran[Ran(self._compiled_step.how if self.compile else "eager", precision_on(self.device))] += 1
        return RecurrentState(canvas=canvas, recurrent_cls=cls)

    @cached_property
    def ran(self) -> Counter[Ran]:
        """How many steps ran in which way in this process: the effect of `compile` and `precision`."""
        return Counter()

    @cached_property
    def compiled(self) -> dict[Hashable, CompiledFunction]:
        """Whole steps of environments (canvit_gym.device_step), by what they compute; compiled once per process."""
        return {}

    @cached_property
    def fast_step(self) -> FastStep | ReferenceStep:
        """The step on plain tensors, without autocast or compilation."""
        return step_of(
            self.canvit,
            canvas_grid=self.canvas_grid,
            glimpse_size_px=self.glimpse_size_px,
            bfloat16=self.precision == "bfloat16",
        )

    @cached_property
    def _compiled_step(self) -> GraphedFunction:
        compiled = CompiledFunction(self.fast_step, name=f"a step of {self.name}", any_number=True)
        return GraphedFunction(compiled, up_to=CUDA_GRAPH_SCENES)


CUDA_GRAPH_SCENES = 16
"""The most scenes for which Backbone.step records graphs. With more, kernels take longer than launching them one by
one, and copying states in and out of a graph would cost more than it saves."""

MOST_CELLS, MOST_PX = 4096, 1 << 16
"""The largest sizes accepted from a checkpoint's own record, which its weights do not bound."""


def _model_class(source: Source) -> type[CanViTForPretraining] | type[CanViTForImageClassification]:
    """The class of canvit-pytorch to which a checkpoint belongs, according to its config.json."""
    config = _config(source)
    if {"model_config", "backbone_name"} <= config.keys():
        raise ValueError(
            f"checkpoint {source.name!r} ({source.directory}) is in the format of canvit-pytorch 0.1. Convert it:\n"
            f"    python -m canvit_pytorch.legacy {source.directory} NEW_DIRECTORY\n"
            "and pass checkpoint='NEW_DIRECTORY'. (Released checkpoints are in the new format at their main revision.)"
        )
    if {"embed_dim", "num_classes"} <= config.keys():
        raise ValueError(
            f"checkpoint {source.name!r} ({source.directory}) is a segmentation probe, not a CanViT: pass it as probe="
        )
    return CanViTForImageClassification if "n_classes" in config else CanViTForPretraining


def _config(source: Source) -> dict[str, Any]:
    try:
        config = json.loads((source.directory / CONFIG).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        config = None
    return config if isinstance(config, dict) else {}


@cache
def _load_model(source: Source, device: torch.device) -> CheckpointModel:
    register_nano()
    model_class = _model_class(source)
    try:
        model = load_weights(model_class, source, _config(source))
    except LOADING_ERRORS as error:
        raise ValueError(
            f"checkpoint {source.name!r} ({source.directory}) is not a {model_class.__name__} of canvit-pytorch 0.2: "
            f"{error}. Save it with save_pretrained, or name another checkpoint."
        ) from error
    mark_used(source)
    return model.to(device).eval().requires_grad_(False)


def _pretraining_geometry(model: CheckpointModel, source: Source) -> Geometry:
    """The sizes a checkpoint was trained with: from its own record, else implied by its architecture."""
    training = _config(source).get("training")
    recorded = {
        key: value for key, value in (training if isinstance(training, dict) else {}).items() if type(value) is int
    }
    if isinstance(model, CanViTForPretraining):
        canvas_grid = model.teacher_patch_grid
    else:
        canvas_grid = recorded.get("canvas_grid_size", RELEASED_CANVAS_GRID_SIZE)
    # One canvas cell per patch of the teacher, which saw the whole scene.
    scene_size_px = recorded.get("scene_size_px", canvas_grid * model.canvit.patch_size)
    glimpse_size_px = recorded.get("glimpse_size_px", scene_size_px // GLIMPSES_PER_SIDE)
    if not (0 < canvas_grid <= MOST_CELLS and 0 < glimpse_size_px <= scene_size_px <= MOST_PX):
        raise ValueError(
            f"checkpoint {source.name!r} ({source.directory}): config.json records a canvas of {canvas_grid} cells, "
            f"scenes of {scene_size_px} px and glimpses of {glimpse_size_px} px, which cannot be. Correct its training "
            "record."
        )
    return Geometry(scene_size_px=scene_size_px, canvas_grid=canvas_grid, glimpse_size_px=glimpse_size_px)


@cache
def _backbone(
    source: Source, device: torch.device, precision: Precision, geometry: Geometry, compiles: bool
) -> Backbone:
    return Backbone(
        model=_load_model(source, device),
        source=source,
        geometry=geometry,
        device=device,
        precision=precision,
        compile=compiles,
    )


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA if available, else the CPU. GPUs get an index: "cuda" means the current one.

    Raises:
        ValueError: no such device, or a default device of PyTorch that is not the CPU.
    """
    default = torch.get_default_device()
    if default.type != "cpu":
        raise ValueError(
            f"the default device of PyTorch is {str(default)!r}, but canvit_gym needs tensors on the host as well, "
            f"and moves the others itself: call torch.set_default_device('cpu') and pass device={device!r} instead"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; use 'cpu', 'cuda' or 'auto'") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported; use 'cpu', 'cuda' or 'auto'")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: PyTorch sees no CUDA device. Use device='cpu' or 'auto'.")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices, counted from 0")
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return resolved


def load_backbone(
    name: str = "nano",
    *,
    device: str = "auto",
    precision: Precision = "float32",
    revision: str | None = None,
    canvas_grid: int | None = None,
    scene_size_px: int | None = None,
    compile: bool = False,
) -> Backbone:
    """Load the frozen backbone of a name: see canvit_gym.backbone.hub.

    revision: a branch, tag or commit of a Hub repository. canvas_grid, scene_size_px: None for the sizes of
    pretraining; a glimpse keeps its size in pixels in any case. compile: run steps through torch.compile, which
    compiles at the first one (for 3 to 30 s, on slow machines up to a minute). On a CPU this process keeps the memory
    it frees: see canvit_gym.backbone.memory. Processes forked from it use one thread: see canvit_gym.backbone.forks.

    Raises:
        FileNotFoundError: no such checkpoint, or a directory without config.json or model.safetensors.
        ValueError: an unknown precision or device, or weights that do not fit their config.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
    where = resolve_device(device)
    compute_alone_after_forks()
    if where.type == "cpu":
        keep_freed_memory()
    source = locate("checkpoint", name, files=(CONFIG, WEIGHTS), revision=revision)
    usual = _pretraining_geometry(_load_model(source, where), source)
    geometry = Geometry(
        scene_size_px=scene_size_px or usual.scene_size_px,
        canvas_grid=canvas_grid or usual.canvas_grid,
        glimpse_size_px=usual.glimpse_size_px,
    )
    if geometry.scene_size_px < geometry.glimpse_size_px:
        raise ValueError(
            f"scene_size_px={geometry.scene_size_px} is smaller than a glimpse of checkpoint {name!r} "
            f"({geometry.glimpse_size_px} px); use at least that, or leave it out for {usual.scene_size_px}"
        )
    return _backbone(source, where, precision, geometry, compile)
