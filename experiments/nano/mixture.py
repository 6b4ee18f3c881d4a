"""The training scenes of nano and its teacher: scenes of the suite's flavours, in the shares declared here.

Scenes, labels and the teacher's features stay on the device if they fit, and batches are chosen, mirrored and
normalized there. Batch `step` is a function of (seed, step), so a resumed run sees the same batches as an uninterrupted
one, on any device.
"""

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from canvit_pytorch.preprocess import imagenet_normalize
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from canvit_gym.backbone.nano import NANO_CANVAS_GRID
from canvit_gym.backbone.nano_teacher import CELL_PX, TEACHER_DIM, PassiveTeacher, TeacherFeatures
from canvit_gym.scenes.fashion import SCENE_SIZE_PX, Flavour
from canvit_gym.scenes.prepared import FashionScenes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Scenes of one flavour."""

    flavour: Flavour
    share: float
    """Share of the scenes in every batch."""
    num_scenes: int
    """Training scenes to draw from."""


MIXTURES: dict[str, tuple[Part, ...]] = {
    # From 1 item per scene to 10, and from 16 px to 44 px.
    "suite": (
        Part("segmentation", 0.30, 24_576),  # 3 to 5 items
        Part("search", 0.12, 16_384),  # 7 to 9 items of different classes
        Part("crowd", 0.14, 16_384),  # 8 to 10 small items
        Part("distractors", 0.10, 16_384),  # 1 or 2 items among look-alikes
        Part("twice", 0.09, 16_384),  # 4 items, two of them of one class, among look-alikes
        Part("classification", 0.25, 16_384),  # 1 item
    ),
    "pair": (Part("segmentation", 0.75, 24_576), Part("classification", 0.25, 12_288)),
}
"""Mixtures by name. Classification comes last: scenes with one item are the last ones of a batch."""

SINGLE: Flavour = "classification"
"""The flavour whose scenes hold one item each."""

RESIDENT_SHARE = 0.5
"""Share of a GPU's free memory; scenes that take more stay on the host."""

_CELLS = NANO_CANVAS_GRID**2
_SCENE_BYTES = 3 * SCENE_SIZE_PX**2
_CHUNK = 256


def mixture(name: str, *, max_scenes: int | None = None, single_share: float | None = None) -> tuple[Part, ...]:
    """The parts of a declared mixture.

    Args:
        name: a key of MIXTURES.
        max_scenes: largest number of scenes of each flavour.
        single_share: share of the scenes with one item, instead of the declared one; the others keep their proportions.

    Raises:
        ValueError: unknown name, or a share outside [0, 1).
    """
    if name not in MIXTURES:
        raise ValueError(f"unknown mixture {name!r}; choose one of {', '.join(MIXTURES)}")
    parts = MIXTURES[name]
    if max_scenes is not None:
        parts = tuple(replace(part, num_scenes=min(part.num_scenes, max_scenes)) for part in parts)
    if single_share is not None:
        if not 0 <= single_share < 1:
            raise ValueError(f"the share of scenes of one item must be at least 0 and below 1, got {single_share}")
        others = sum(part.share for part in parts if part.flavour != SINGLE)
        parts = tuple(
            replace(part, share=single_share if part.flavour == SINGLE else part.share * (1 - single_share) / others)
            for part in parts
        )
    return parts


def batch_counts(parts: tuple[Part, ...], batch_size: int) -> tuple[int, ...]:
    """Number of scenes of each part in a batch: the largest remainders are rounded up, and every part has at least one.

    Raises:
        ValueError: fewer scenes than parts.
    """
    wanted = [part.flavour for part in parts if part.share]
    if batch_size < len(wanted):
        raise ValueError(
            f"batches of {batch_size} cannot hold a scene of each of {', '.join(wanted)}: take at least {len(wanted)}"
        )
    exact = [batch_size * part.share for part in parts]
    counts = [int(number) for number in exact]
    by_remainder = sorted(range(len(parts)), key=lambda part: counts[part] - exact[part])
    for part in by_remainder[: batch_size - sum(counts)]:
        counts[part] += 1
    for part in range(len(parts)):
        if parts[part].share and not counts[part]:
            counts[counts.index(max(counts))] -= 1
            counts[part] = 1
    return tuple(counts)


def pixel_counts(labels: Tensor) -> Tensor:
    """uint8 label maps [B, 128, 128] -> uint8 [B, G*G, TEACHER_DIM]: pixels of each class in each cell, of 64."""
    grid, cell = NANO_CANVAS_GRID, CELL_PX
    cells = labels.long().unflatten(1, (grid, cell)).unflatten(3, (grid, cell))  # [B, G, cell, G, cell]
    cells = cells.transpose(2, 3).flatten(3).flatten(1, 2)  # [B, G*G, cell*cell]
    counts = torch.zeros(len(labels), _CELLS, TEACHER_DIM, dtype=torch.int32, device=labels.device)
    counts.scatter_add_(2, cells, torch.ones((), dtype=torch.int32, device=labels.device).expand_as(cells))
    return counts.to(torch.uint8)


def scene_targets(counts: Tensor) -> Tensor:
    """Pixel counts -> [B, TEACHER_DIM] in {0, 1}: whether several classes are present, then which ones."""
    present = (counts.amax(dim=1) > 0).float()[:, 1:]
    return torch.cat([(present.sum(dim=1, keepdim=True) > 1).float(), present], dim=1)


def normalized(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> ImageNet-normalized float32."""
    return imagenet_normalize(images.float() / 255)


@dataclass(frozen=True)
class TrainingBatch:
    images: Tensor
    """[B, 3, 128, 128] float32, normalized."""
    shares: Tensor
    """[B, G*G, TEACHER_DIM], how much of a cell each class covers."""
    present: Tensor
    """[B, TEACHER_DIM] in {0, 1}, see scene_targets."""
    teacher: TeacherFeatures | None
    """None until `add_teacher` was called."""
    num_single: int
    """The last scenes of the batch hold one item each."""


def _prepare(part: Part) -> None:
    FashionScenes(part.flavour, "training", part.num_scenes)


def prepare(parts: tuple[Part, ...]) -> None:
    """Generate the scenes that are not in the cache, with one process per flavour."""
    many = sum(part.num_scenes for part in parts) > 4096
    workers = min(len(parts), os.cpu_count() or 1) if many else 1
    if workers == 1:
        for part in parts:
            _prepare(part)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_prepare, parts))


class TrainingScenes:
    """The scenes of a mixture with their targets, from which batches are drawn.

    Args:
        parts: see `mixture`.
        device: device of the batches.
    """

    def __init__(self, parts: tuple[Part, ...], *, device: torch.device) -> None:
        prepare(parts)
        self.parts, self.device = parts, device
        self.sources = [FashionScenes(part.flavour, "training", part.num_scenes) for part in parts]
        self._first = np.cumsum([0, *(part.num_scenes for part in parts)])
        self._counts = torch.empty(len(self), _CELLS, TEACHER_DIM, dtype=torch.uint8, device=device)
        self._images: Tensor | None = None
        if self._fits():
            self._images = torch.empty(len(self), 3, SCENE_SIZE_PX, SCENE_SIZE_PX, dtype=torch.uint8, device=device)
        self._teacher: TeacherFeatures | None = None
        for rows, images, labels in self._chunks("scenes"):
            self._counts[rows] = pixel_counts(labels.to(device))
            if self._images is not None:
                self._images[rows] = images.to(device)

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def resident(self) -> bool:
        """Whether the scenes' pixels are on the GPU."""
        return self._images is not None

    def describe(self) -> dict[str, dict[str, float]]:
        """Number and share of the scenes of each part, for the record."""
        return {part.flavour: dict(share=round(part.share, 4), scenes=part.num_scenes) for part in self.parts}

    def _fits(self) -> bool:
        if self.device.type != "cuda":
            return False  # on the host, the files are memory-mapped already
        free, _ = torch.cuda.mem_get_info(self.device)
        return len(self) * _SCENE_BYTES < RESIDENT_SHARE * free

    def _chunks(self, what: str) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, images, label maps) of all scenes in order."""
        bar = tqdm(total=len(self), desc=f"nano, {what}", unit="scene", mininterval=10)
        for source, first in zip(self.sources, self._first, strict=False):
            for start in range(0, len(source), _CHUNK):
                stop = min(start + _CHUNK, len(source))
                images, labels = source.load_with_maps(np.arange(start, stop))
                yield slice(int(first) + start, int(first) + stop), images, labels
                bar.update(stop - start)
        bar.close()

    @torch.no_grad()
    def add_teacher(self, teacher: PassiveTeacher) -> None:
        """Run the teacher on every scene once; batches then have its features (stored in float16)."""
        # Written in place: small tensors between large temporary ones would fragment the heap.
        patches = torch.empty(len(self), _CELLS, TEACHER_DIM, dtype=torch.float16, device=self.device)
        cls = torch.empty(len(self), TEACHER_DIM, dtype=torch.float16, device=self.device)
        for rows, images, _ in self._chunks("teacher"):
            on_device = self._images[rows] if self._images is not None else images.to(self.device)
            seen = teacher(normalized(on_device))
            patches[rows], cls[rows] = seen.patches, seen.cls
        self._teacher = TeacherFeatures(patches=patches, cls=cls)

    def picks(self, step: int, *, counts: tuple[int, ...], seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(scenes, whether each is mirrored) of batch `step`: `counts` scenes of each part, part after part."""
        rng = np.random.default_rng([seed, step])
        scenes = [
            first + rng.integers(part.num_scenes, size=count)
            for part, first, count in zip(self.parts, self._first, counts, strict=False)
        ]
        return np.concatenate(scenes), rng.integers(2, size=sum(counts)).astype(bool)

    def batch(self, step: int, *, batch_size: int, seed: int, parts: tuple[Part, ...] | None = None) -> TrainingBatch:
        """Batch `step` of the stream of batches with this seed; on average, half of its scenes are mirrored.

        parts: the same scenes in other shares. None: the mixture's own shares.
        """
        counts = batch_counts(parts or self.parts, batch_size)
        picked, mirrored = self.picks(step, counts=counts, seed=seed)
        rows = torch.from_numpy(picked).to(self.device)
        flip = torch.from_numpy(mirrored).to(self.device)
        images = self._images[rows] if self._images is not None else self._load(picked).to(self.device)
        images = torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
        pixels = _mirrored(self._counts[rows], flip)
        teacher = None
        if self._teacher is not None:
            patches = _mirrored(self._teacher.patches[rows], flip).float()
            teacher = TeacherFeatures(patches=patches, cls=self._teacher.cls[rows].float())
        num_single = counts[-1] if self.parts[-1].flavour == SINGLE else 0
        shares = pixels.float() / CELL_PX**2
        return TrainingBatch(normalized(images), shares, scene_targets(pixels), teacher, num_single)

    def _load(self, picked: NDArray[np.int64]) -> Tensor:
        part_of = np.searchsorted(self._first, picked, side="right") - 1
        return torch.cat(
            [
                source.load_with_maps(picked[part_of == part] - self._first[part])[0]
                for part, source in enumerate(self.sources)
            ]
        )


def _mirrored(cells: Tensor, flip: Tensor) -> Tensor:
    """[B, G*G, D], with the scenes in `flip` mirrored from left to right."""
    grid = cells.unflatten(1, (NANO_CANVAS_GRID, NANO_CANVAS_GRID))
    return torch.where(flip.view(-1, 1, 1, 1), grid.flip(2), grid).flatten(1, 2)
