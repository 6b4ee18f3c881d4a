"""Backbones of all sizes for speed measurements: nano as shipped, the others with random weights.

Random weights and probes are stored in $CANVIT_GYM_RANDOM_WEIGHTS if it is set, so that processes can share them,
otherwise in a temporary directory until the process ends.
"""

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from canvit_core.config import CanViTConfig
from canvit_pytorch import CanViTForPretraining, SegmentationProbe
from PIL import Image

from canvit_gym.backbone.nano import NANO_CANVAS_GRID, nano_config
from canvit_gym.backbone.weights import quiet_loading
from canvit_gym.scenes.fashion import SCENE_SIZE_PX, SEGMENTATION_CLASSES

ModelSize = Literal["nano", "CanViT-S", "CanViT-B"]
BACKBONES: dict[ModelSize, Literal["vits16", "vitb16"]] = {"CanViT-S": "vits16", "CanViT-B": "vitb16"}
PRETRAINING_GRID = 32
"""The canvas grid of the released CanViT-B: scenes of 512 px, and so glimpses of 128 px."""
TEACHER_DIM = 768


SHARED_DIRECTORY = "CANVIT_GYM_RANDOM_WEIGHTS"

LARGE_SIZE_PX = 512
LARGE_CLASSES = 150
LARGE_SCENES = 256
"""Number of large scenes on disk; they are decoded once into a cache."""


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="canvit_gym_random_weights_")


def _directory() -> Path:
    return Path(os.environ.get(SHARED_DIRECTORY) or _temporary().name)


@cache
def _saved(what: str, width: int, num_classes: int = len(SEGMENTATION_CLASSES)) -> str:
    """A checkpoint of a model size, or the probe for a canvas of `width` channels."""
    directory = _directory() / (f"{what}-{width}" if what != "probe" else f"{what}-{width}-{num_classes}")
    if (directory / "model.safetensors").is_file():
        return str(directory)
    with quiet_loading():
        torch.manual_seed(0)
        if what == "probe":
            model = SegmentationProbe(embed_dim=width, num_classes=num_classes, dropout=0.0, use_ln=True)
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


@cache
def _large_scenes(size_px: int, count: int) -> str:
    """A segmentation folder of blurred noise with blocks of labels."""
    root = _directory() / f"scenes-{size_px}-{count}"
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        for split in ("train", "val"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
    for split, some in (("train", 4), ("val", count)):
        for k in range(some):
            noise = Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8))
            labels = Image.fromarray(rng.integers(LARGE_CLASSES, size=(8, 8), dtype=np.uint8))
            noise.resize((size_px, size_px), Image.Resampling.BILINEAR).save(root / f"images/{split}/{k}.jpg")
            labels.resize((size_px, size_px), Image.Resampling.NEAREST).save(root / f"masks/{split}/{k}.png")
    (root / "classes.txt").write_text("".join(f"class {k}\n" for k in range(LARGE_CLASSES)), encoding="utf-8")
    return str(root)


def env_kwargs_of(size: ModelSize, canvas_grid: int, *, large_scenes: bool = False) -> dict[str, Any]:
    """Keyword arguments for the segmentation environment with this backbone, on FashionScenes, or for the environment
    of a segmentation folder with large scenes.
    """
    width = config_of(size).canvas_dim
    if large_scenes:
        root = _large_scenes(LARGE_SIZE_PX, LARGE_SCENES)
        chosen = {
            "root": root,
            "cache": str(Path(root).with_name("cache")),
            "scene_size_px": LARGE_SIZE_PX,
            "probe": _saved("probe", width, LARGE_CLASSES),
        }
    elif size == "nano" and canvas_grid == NANO_CANVAS_GRID:
        return {}
    else:
        chosen = {"scene_size_px": SCENE_SIZE_PX, "probe": _saved("probe", width)}
    chosen |= {"canvas_grid": canvas_grid}
    return chosen if size == "nano" else {**chosen, "checkpoint": _saved(size, width)}
