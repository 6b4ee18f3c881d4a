"""The frozen networks that checkpoints were pretrained to predict: whole scenes in, features of every canvas cell out.

A teacher is named like a probe: a shipped one ("nano-teacher"), a directory, or a Hub id, such as DINOv3's own.
canvit-pytorch loads DINOv3, which requires the package transformers.
"""

import json
from dataclasses import dataclass
from functools import cache

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from canvit_gym.backbone.hub import CONFIG, WEIGHTS, Source, locate, mark_used
from canvit_gym.backbone.load import Backbone
from canvit_gym.backbone.nano_teacher import CELL_PX, TEACHER_DIM, load_nano_teacher
from canvit_gym.backbone.weights import quiet_loading, require_finite

TEACHERS: dict[int, str] = {
    TEACHER_DIM: "nano-teacher",
    384: "facebook/dinov3-vits16-pretrain-lvd1689m",
    768: "facebook/dinov3-vitb16-pretrain-lvd1689m",
}
"""Width of the features -> the teacher of that width. The last two are canvit_pytorch.teacher.DINOV3_REPOS, which
cannot be imported without transformers."""

NANO_TEACHER, DINOV3 = "canvit_gym_nano_teacher", "dinov3_vit"
"""`model_type` in a teacher's config.json."""

SCENES_AT_ONCE = 64
"""Scenes per forward pass of a teacher, to bound the memory of its activations."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen teacher, and where it comes from."""

    network: nn.Module
    """ImageNet-normalized scenes [B, 3, H, W] -> an object whose `patches` are [B, G*G, D]."""
    source: Source
    width: int
    """D, the number of features of a cell."""
    cell_px: int
    """Side of a cell in pixels of the scene."""

    def __call__(self, images: Tensor) -> Tensor:
        """ImageNet-normalized scenes [B, 3, H, W] -> float32 features [B, G*G, D]."""
        return torch.cat([self.network(part).patches.float() for part in images.split(SCENES_AT_ONCE)])


def default_teacher(backbone: Backbone) -> str:
    """The name of the teacher that a checkpoint was pretrained with, by the width of what it predicts.

    Raises:
        ValueError: the checkpoint is fine-tuned, or no teacher of this width is known.
    """
    width = backbone.pretrained.teacher_dim
    if width not in TEACHERS:
        known = ", ".join(f"{dim} ({name})" for dim, name in TEACHERS.items())
        raise ValueError(
            f"checkpoint {backbone.name!r} predicts features of width {width}, and no teacher of this width is known; "
            f"there are {known}. Pass probe='directory' of its teacher."
        )
    return TEACHERS[width]


def load_teacher(name: str, backbone: Backbone) -> Teacher:
    """The frozen teacher of this name, whose features the backbone's canvas predicts cell by cell.

    Raises:
        FileNotFoundError: no such teacher, or neither network nor cache.
        ImportError: DINOv3 without the package transformers.
        ValueError: another kind of network, or one that does not fit the checkpoint or the sizes of canvas and scene.
    """
    model = backbone.pretrained
    teacher = _load(locate("probe", name, files=(CONFIG, WEIGHTS)), backbone.device)
    if teacher.width != model.teacher_dim:
        fitting = TEACHERS.get(model.teacher_dim, "the one that it was pretrained with")
        raise ValueError(
            f"teacher {name!r} has features of width {teacher.width}, but checkpoint {backbone.name!r} predicts "
            f"features of width {model.teacher_dim}: leave probe out, or pass its own teacher ({fitting})"
        )
    grid = model.teacher_patch_grid
    if backbone.canvas_grid != grid:
        raise ValueError(
            f"checkpoint {backbone.name!r} predicts features of a {grid} x {grid} grid, which the canvas must match, "
            f"but canvas_grid={backbone.canvas_grid}: leave canvas_grid out, or pass canvas_grid={grid}"
        )
    if (wanted := grid * teacher.cell_px) != backbone.scene_size_px:
        raise ValueError(
            f"teacher {name!r} has a {grid} x {grid} grid of cells of {teacher.cell_px} px on scenes of {wanted} px, "
            f"but scene_size_px={backbone.scene_size_px}: pass scene_size_px={wanted}"
        )
    if not (model.teacher_patch_standardizer.fitted and model.teacher_cls_standardizer.fitted):
        raise ValueError(
            f"checkpoint {backbone.name!r} holds no statistics of its teacher's features (its standardizers were never "
            "fitted), so it cannot be compared with them: use a checkpoint that was pretrained"
        )
    return teacher


@cache
def _load(source: Source, device: torch.device) -> Teacher:
    try:
        config = json.loads((source.directory / CONFIG).read_text(encoding="utf-8"))
        kind = config.get("model_type") if isinstance(config, dict) else None
    except (UnicodeDecodeError, json.JSONDecodeError):
        kind = None
    if kind not in (NANO_TEACHER, DINOV3):
        raise ValueError(
            f"{source.name!r} ({source.directory}) is no teacher: the model_type in its {CONFIG} is {kind!r}, and "
            f"there are {NANO_TEACHER!r} and {DINOV3!r}. Leave probe out for the checkpoint's own teacher."
        )
    try:
        with quiet_loading():
            teacher = _nano_teacher(source, device) if kind == NANO_TEACHER else _dinov3(source, device)
        require_finite(teacher.network)
    except (AssertionError, KeyError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(f"teacher {source.name!r} ({source.directory}) cannot be loaded: {error}") from error
    mark_used(source)
    return teacher


def _nano_teacher(source: Source, device: torch.device) -> Teacher:
    network = load_nano_teacher(source.directory / WEIGHTS, device)
    return Teacher(network=network, source=source, width=network.cell_head.out_channels, cell_px=CELL_PX)


def _dinov3(source: Source, device: torch.device) -> Teacher:
    try:
        from canvit_pytorch.teacher import load_teacher as load_dinov3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"teacher {source.name!r} is DINOv3, which canvit-pytorch loads with the package transformers: "
            "pip install 'canvit-gym[teacher]'"
        ) from error
    network = load_dinov3(str(source.directory), device)
    return Teacher(network=network, source=source, width=network.embed_dim, cell_px=network.patch_size)
