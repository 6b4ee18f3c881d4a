"""Tiny data sets in the real layouts, generated: a handful of images of odd sizes, the same on every run.

`tiny(kind)` makes one of each kind per process, in a directory that is removed when the process ends; the
`write_...` functions make others. Images are 24 to 96 px on a side, never square, JPEG except where said.

`segmentation_probe(k)` and `classification_probe(k)` are randomly initialized probes of nano's width: with
them an environment loads and runs, and reads nothing of use.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from canvit_pytorch import SegmentationProbe
from PIL import Image
from safetensors.torch import save_file

Kind = Literal["ade20k", "imagenet1k", "image-folder", "segmentation-folder"]

WNIDS = tuple(f"n{10_000_000 + 7 * k}" for k in range(1000))
FOLDER_CLASSES = ("disc", "ring", "square")
SEGMENTATION_CLASSES = ("ground", "disc", "square")
NANO_CANVAS_DIM = 128


@cache
def _home() -> Path:
    path = Path(tempfile.mkdtemp(prefix="canvit_gym_tiny_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def scene(seed: int, *, num_classes: int = 3) -> tuple[Image.Image, np.ndarray]:
    """(RGB image, [H, W] uint8 classes 0..num_classes - 1): coloured shapes on noise; class 0 is the ground."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.choice(np.arange(25, 97), size=2, replace=False))
    pixels = rng.integers(0, 80, size=(height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), dtype=np.uint8)
    rows, cols = np.mgrid[:height, :width]
    for _ in range(4):
        label = int(rng.integers(1, num_classes))
        row, col, radius = rng.integers(height), rng.integers(width), rng.integers(5, 15)
        inside = (np.abs(rows - row) < radius) & (np.abs(cols - col) < radius)
        if label % 2:
            inside &= (rows - row) ** 2 + (cols - col) ** 2 < radius**2
        labels[inside] = label
        pixels[inside] = np.random.default_rng(label).integers(60, 256, size=3)
    return Image.fromarray(pixels), labels


def write_ade20k(root: Path, *, training: int = 8, validation: int = 6) -> Path:
    """ADEChallengeData2016: images/ and annotations/, training and validation; annotations are 0 (none) to 150."""
    for split, short, count in (("training", "train", training), ("validation", "val", validation)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for k in range(count):
            image, labels = scene(1000 * (split == "validation") + k, num_classes=9)
            values = np.array([1, 150, 0, 4, 5, 13, 21, 77, 102], dtype=np.uint8)  # 0: unlabeled
            name = f"ADE_{short}_{k + 1:08d}"
            image.save(root / "images" / split / f"{name}.jpg", quality=90)
            Image.fromarray(values[labels]).save(root / "annotations" / split / f"{name}.png")
    return root


def write_imagenet(root: Path) -> Path:
    """train/ and val/ with the 1,000 class folders, one image each (two in the first three of train/)."""
    for split in ("train", "val"):
        pictures = []
        for k in range(7):
            path = root / f"{split}{k}.jpg"
            root.mkdir(parents=True, exist_ok=True)
            scene(500 + 100 * (split == "val") + k)[0].save(path, quality=90)
            pictures.append(path)
        for k, wnid in enumerate(WNIDS):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for copy in range(1 + (split == "train" and k < 3)):
                shutil.copyfile(pictures[(k + copy) % 7], folder / f"{wnid}_{copy}.JPEG")
        for path in pictures:
            path.unlink()
    return root


def write_image_folder(root: Path, *, splits: tuple[str, ...] = ("train", "val", "test"), per_class: int = 4) -> Path:
    """A folder per class below each split; without splits, below the root. JPEG and PNG."""
    for number, split in enumerate(splits or ("",)):
        for label, name in enumerate(FOLDER_CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(per_class):
                suffix = "png" if k % 2 else "jpg"
                scene(10_000 * (number + 1) + 100 * label + k)[0].save(folder / f"{name} {k}.{suffix}")
    return root


def write_segmentation_folder(
    root: Path, *, splits: tuple[str, ...] = ("train", "val", "test"), per_split: int = 5
) -> Path:
    """images/ and masks/ (with a folder per split below, or none) and classes.txt; a frame of 255 is ignored."""
    for number, split in enumerate(splits or ("",)):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for k in range(per_split):
            image, labels = scene(50_000 + 1000 * number + k)
            labels[:2] = labels[:, -2:] = 255
            image.save(root / "images" / split / f"scene_{k}.jpg", quality=90)
            Image.fromarray(labels).save(root / "masks" / split / f"scene_{k}.png")
    (root / "classes.txt").write_text("\n".join(SEGMENTATION_CLASSES) + "\n")
    return root


@cache
def tiny(kind: Kind) -> Path:
    """The data set of a kind: made once, to be read only (copy it to change it)."""
    root = _home() / kind
    match kind:
        case "ade20k":
            return write_ade20k(root)
        case "imagenet1k":
            return write_imagenet(root)
        case "image-folder":
            return write_image_folder(root)
        case "segmentation-folder":
            return write_segmentation_folder(root)


@cache
def segmentation_probe(num_classes: int, *, embed_dim: int = NANO_CANVAS_DIM) -> Path:
    """A random SegmentationProbe; of the classes it tells apart, none is told apart well."""
    path = _home() / f"segmentation-probe-{num_classes}-{embed_dim}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = SegmentationProbe(embed_dim=embed_dim, num_classes=num_classes, dropout=0.1, use_ln=True)
        torch.nn.init.normal_(probe.conv.weight, std=0.3)
    probe.save_pretrained(path)
    return path


@cache
def classification_probe(num_classes: int, *, teacher_dim: int | None = None) -> Path:
    """A random linear probe on the teacher's CLS token (default: as wide as nano's teacher)."""
    if teacher_dim is None:
        from canvit_gym.backbone.load import load_backbone

        teacher_dim = load_backbone("nano", device="cpu").pretrained.teacher_dim
    path = _home() / f"classification-probe-{num_classes}-{teacher_dim}"
    path.mkdir()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_classes, teacher_dim, generator=generator) * 0.1
    save_file({"weight": weight, "bias": torch.zeros(num_classes)}, path / "model.safetensors")
    return path
