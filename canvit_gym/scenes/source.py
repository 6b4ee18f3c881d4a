"""What a set of scenes is to the environments: scenes by index, as uint8 tensors."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
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
    def classes(self) -> tuple[str, ...]: ...

    @property
    def scene_size_px(self) -> int: ...

    def __len__(self) -> int: ...

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        """The scenes at `indices` ([n], each in [0, len(self))), in that order."""
        ...
