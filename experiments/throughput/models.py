"""Backbones of all sizes for measurements of speed: nano as it ships, the others with random weights.

Random weights lie, with probes as random, in $CANVIT_GYM_RANDOM_WEIGHTS where it is set, so that processes can share
them, else in a temporary directory until the process ends.
"""

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from canvit_core.config import CanViTConfig
from canvit_pytorch import CanViTForPretraining, SegmentationProbe

from canvit_gym.backbone.load import quiet_loading
from canvit_gym.backbone.nano import NANO_CANVAS_GRID, nano_config
from canvit_gym.scenes.fashion import SCENE_SIZE_PX, SEGMENTATION_CLASSES

ModelSize = Literal["nano", "CanViT-S", "CanViT-B"]
BACKBONES: dict[ModelSize, Literal["vits16", "vitb16"]] = {"CanViT-S": "vits16", "CanViT-B": "vitb16"}
PRETRAINING_GRID = 32
"""The released CanViT-B's: 512 px scenes, so glimpses of 128 px."""
TEACHER_DIM = 768


SHARED_DIRECTORY = "CANVIT_GYM_RANDOM_WEIGHTS"


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="canvit_gym_random_weights_")


@cache
def _saved(what: str, width: int) -> str:
    """A checkpoint of a size, or the probe of a canvas of `width` channels."""
    directory = Path(os.environ.get(SHARED_DIRECTORY) or _temporary().name) / f"{what}-{width}"
    if (directory / "model.safetensors").is_file():
        return str(directory)
    with quiet_loading():
        torch.manual_seed(0)
        if what == "probe":
            model = SegmentationProbe(embed_dim=width, num_classes=len(SEGMENTATION_CLASSES), dropout=0.0, use_ln=True)
        else:
            model = CanViTForPretraining(
                canvit_config=config_of(cast(ModelSize, what)),
                teacher_dim=TEACHER_DIM,
                teacher_patch_grid=PRETRAINING_GRID,
            )
        cast(Any, model).save_pretrained(directory)
    return str(directory)


def config_of(size: ModelSize) -> CanViTConfig:
    return nano_config() if size == "nano" else CanViTConfig(backbone_name=BACKBONES[size])


def env_kwargs_of(size: ModelSize, canvas_grid: int) -> dict[str, Any]:
    """Keyword arguments of the segmentation environment with this backbone, on FashionScenes as they are."""
    if size == "nano" and canvas_grid == NANO_CANVAS_GRID:
        return {}
    width = config_of(size).canvas_dim
    sizes = {"canvas_grid": canvas_grid, "scene_size_px": SCENE_SIZE_PX, "probe": _saved("probe", width)}
    return sizes if size == "nano" else {**sizes, "checkpoint": _saved(size, width)}
