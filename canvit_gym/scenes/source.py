"""The interface of scenes: scenes by index, as uint8 tensors."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SceneBatch:
    """Scenes and their truth, on the host. Fresh memory: the caller may keep or change it."""

    images: Tensor  # [n, 3, H, W] uint8 RGB
    labels: Tensor  # segmentation: [n, H, W] uint8 class map, 255 without one; classification: [n] int64 class


class SceneSource(Protocol):
    """Scenes 0 .. num_scenes - 1 of one split."""

    @property
    def name(self) -> str:
        """Data set, split and version, as recorded with results."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal only for equal scenes, so that results computed on them may be cached under it."""
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
    """An item of a scene, in a square box."""

    label: int
    """Its class, as an index into the source's `classes`."""
    row: float
    """The box's center, in scene coordinates [-1, 1]."""
    col: float
    scale: float
    """Half the box's side: a viewpoint (row, col, scale) shows just the box."""


@runtime_checkable
class LocatedSource(Protocol):
    """A source that also knows where the items of its scenes are."""

    def items(self, index: int) -> tuple[Item, ...]:
        """The items of scene `index`, beginning with the one that the label is about, if any."""
        ...


@runtime_checkable
class StreamedSource(Protocol):
    """A source of files, which prefetches scenes and handles files that cannot be read."""

    skips_unreadable: bool
    """Whether scenes that cannot be read are left out; otherwise loading one raises an error."""

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Hint that these scenes are loaded next, in this order. It replaces the previous hint."""
        ...

    def readable(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n] whether each scene can be loaded; readable ones are kept for `load`."""
        ...

    def close(self) -> None:
        """End the worker processes, if any. Scenes can still be loaded."""
        ...


def close_source(source: SceneSource) -> None:
    """End the worker processes of the source, if it has any."""
    if isinstance(source, StreamedSource):
        source.close()


@contextmanager
def closing_sources(*sources: SceneSource) -> Iterator[None]:
    """Close the sources at the end, also after an error."""
    with ExitStack() as stack:
        for source in sources:
            stack.callback(close_source, source)
        yield


def load_scenes(scenes: SceneSource, indices: NDArray[np.int64]) -> SceneBatch:
    """The scenes at `indices`, checked, since the source may be user code.

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
    _check_labels(batch.labels, scenes, num)
    return batch


def _check_labels(labels: Any, scenes: SceneSource, num: int) -> None:
    """Raise ValueError unless the labels [num] are classes, or label maps of the scenes' size."""
    size, count = scenes.scene_size_px, len(scenes.classes)
    if isinstance(labels, Tensor) and labels.dtype == torch.int64 and list(labels.shape) == [num]:
        if count and bool(((labels < 0) | (labels >= count)).any()):  # a source without classes has no labels either
            raise ValueError(
                f"labels of {scenes.name} must be classes in [0, {count - 1}], got {labels.tolist()}: see its `classes`"
            )
    elif not (isinstance(labels, Tensor) and labels.dtype == torch.uint8 and list(labels.shape) == [num, size, size]):
        got = f"{labels.dtype} of {list(labels.shape)}" if hasattr(labels, "dtype") else repr(labels)
        raise ValueError(
            f"labels of {scenes.name} must be int64 of shape {[num]} (classes) or uint8 of shape {[num, size, size]} "
            f"(label maps), got {got}: see canvit_gym.scenes.source.SceneBatch"
        )
    elif count and num and int((labels + 1).amax()) > count:  # + 1: 255, which has no class, becomes 0
        raise ValueError(
            f"label maps of {scenes.name} must hold classes in [0, {count - 1}], or {IGNORE_LABEL} where there is "
            f"none, got {sorted(set(labels.unique().tolist()) - set(range(count)) - {IGNORE_LABEL})}: see its `classes`"
        )


def loads_in_threads(scenes: SceneSource) -> bool:
    """Whether another thread may call `load`. A source says so by an attribute of this name."""
    return getattr(scenes, "loads_in_threads", False)
