"""A bounded cache of the states after a first glimpse that is the same for every episode.

Such a state depends on the scene alone, so a scene that comes back needs no forward for it. States are kept in half the
bytes of float32 or less; while the cache is in use every first state is rounded so, kept or not, and no number
depends on what the cache holds, up to float32 rounding where episodes end at different times: what is held leaves the
batch of the forward, and matrix products of other shapes add in another order.

A full cache keeps what it has: under passes over more scenes than it holds, a cache that forgets the least recently
used would forget every scene just before it comes back.
"""

from typing import Literal

import numpy as np
import torch
from canvit_pytorch import RecurrentState
from numpy.typing import NDArray
from torch import Tensor

CacheDtype = Literal["float16", "bfloat16"]
CacheDevice = Literal["host", "device"]


class FirstGlimpseCache:
    """States of scenes [N, num_registers + G*G, D] and [N, 1, D_b], by the scene's index."""

    def __init__(
        self,
        *,
        viewpoint: NDArray[np.float32],
        num_scenes: int,
        num_bytes: int,
        dtype: CacheDtype,
        where: CacheDevice,
        device: torch.device,
    ) -> None:
        """viewpoint: [3], the first glimpse. At most num_bytes are taken, and no more than num_scenes need."""
        self.viewpoint = viewpoint
        self._num_scenes = num_scenes
        self._num_bytes = num_bytes
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._device = device
        self._stored_on = torch.device("cpu") if where == "host" else device
        self._slots: dict[int, int] = {}
        self._canvas: Tensor | None = None
        self._recurrent_cls: Tensor | None = None
        self.capacity = 0
        """Scenes it has room for; known once the first state is there."""

    def __len__(self) -> int:
        return len(self._slots)

    def holds(self, scene: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n]: of which scenes the state is here."""
        return np.array([index in self._slots for index in scene.tolist()], dtype=np.bool_)

    def rounded(self, state: RecurrentState) -> RecurrentState:
        """What `get` would give after `keep`."""
        return RecurrentState(
            canvas=state.canvas.to(self._dtype).float(), recurrent_cls=state.recurrent_cls.to(self._dtype).float()
        )

    def keep(self, scene: NDArray[np.int64], state: RecurrentState) -> None:
        """Store the states of scenes [n], as far as there is room."""
        if self._canvas is None:
            self._allocate(state)
        assert self._canvas is not None and self._recurrent_cls is not None
        new: dict[int, int] = {}  # scene -> row
        for row, index in enumerate(scene.tolist()):
            if index not in self._slots and len(self._slots) + len(new) < self.capacity:
                new.setdefault(index, row)
        if not new:
            return
        rows = torch.tensor(list(new.values())).to(state.canvas.device, non_blocking=True)
        slots = slice(len(self._slots), len(self._slots) + len(new))
        self._canvas[slots] = state.canvas.index_select(0, rows)
        self._recurrent_cls[slots] = state.recurrent_cls.index_select(0, rows)
        self._slots.update(zip(new, range(slots.start, slots.stop), strict=True))

    def get(self, scene: NDArray[np.int64]) -> RecurrentState:
        """The states of scenes that are held, in float32 and beside the backbone."""
        assert self._canvas is not None and self._recurrent_cls is not None
        slots = torch.tensor([self._slots[index] for index in scene.tolist()])
        slots = slots.to(self._stored_on, non_blocking=True)
        canvas, recurrent_cls = (
            stored.index_select(0, slots).to(self._device, non_blocking=True).float()
            for stored in (self._canvas, self._recurrent_cls)
        )
        return RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls)

    def _allocate(self, state: RecurrentState) -> None:
        """The room is taken at once, so that it is short at the start or never."""
        shapes = [tuple(part.shape[1:]) for part in (state.canvas, state.recurrent_cls)]
        scene_bytes = self._dtype.itemsize * sum(int(np.prod(shape)) for shape in shapes)
        self.capacity = min(self._num_bytes // scene_bytes, self._num_scenes)
        if not self.capacity:
            raise ValueError(
                f"first_glimpse_cache_mb gives {self._num_bytes / 1e6:g} MB, but the state of one scene takes "
                f"{scene_bytes / 1e6:g} MB: give it more, or 0 for no cache"
            )
        self._canvas, self._recurrent_cls = (
            torch.empty(self.capacity, *shape, dtype=self._dtype, device=self._stored_on) for shape in shapes
        )
