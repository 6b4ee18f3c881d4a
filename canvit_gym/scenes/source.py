"""What a set of scenes is to the environments: scenes by index, as uint8 tensors."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SceneBatch:
    """Scenes and their truth, on the host. Fresh memory: the caller may keep or change it."""

    images: Tensor  # [n, 3, H, W] uint8 RGB
    labels: Tensor  # segmentation: [n, H, W] uint8 class map; classification: [n] int64 class


class SceneSource(Protocol):
    """Scenes 0 .. num_scenes - 1 of one split."""

    @property
    def name(self) -> str:
        """Data set, split and version, as recorded with results."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same only where the scenes are: what was found on them may be kept under it."""
        ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def scene_size_px(self) -> int: ...

    def __len__(self) -> int: ...

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        """The scenes at `indices` ([n], each in [0, len(self))), in that order."""
        ...


@dataclass(frozen=True)
class Item:
    """One thing in a scene, in a square box."""

    label: int
    """Its class, as an index into the source's `classes`."""
    row: float
    """Of the box's center, in scene coordinates [-1, 1]."""
    col: float
    scale: float
    """Half the box's side: a viewpoint (row, col, scale) shows just the box."""


@runtime_checkable
class LocatedSource(Protocol):
    """What a source offers besides that knows where the items of its scenes lie."""

    def items(self, index: int) -> tuple[Item, ...]:
        """The items of scene `index`, the asked-for one first where there is one."""
        ...


@runtime_checkable
class StreamedSource(Protocol):
    """What a source of files offers besides: scenes made ready ahead of need, and files that cannot be read."""

    skips_unreadable: bool
    """Whether scenes that cannot be read are to be left out; else loading one raises."""

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """These scenes are loaded next, in this order. A hint: it replaces the last one, and loads what it may."""
        ...

    def readable(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n] whether each scene can be loaded; readable ones are kept ready for `load`."""
        ...

    def close(self) -> None:
        """End the processes that prefetch, if any. Scenes can be loaded on."""
        ...


def load_scenes(scenes: SceneSource, indices: NDArray[np.int64]) -> SceneBatch:
    """The scenes at `indices`, from a source that may be a user's own.

    Raises:
        ValueError: what the source returns is not a SceneBatch of this size.
    """
    batch = scenes.load(indices)
    num, size = len(indices), scenes.scene_size_px
    shape = [num, 3, size, size]
    if batch.images.dtype != torch.uint8 or list(batch.images.shape) != shape:
        raise ValueError(
            f"images of {scenes.name} must be uint8 of shape {shape}, got {batch.images.dtype} of "
            f"{list(batch.images.shape)}: see canvit_gym.scenes.source.SceneBatch"
        )
    if len(batch.labels) != num:
        raise ValueError(f"{scenes.name} returned {len(batch.labels)} labels for {num} scenes")
    return batch
