"""Scenes that are loaded before they are needed, for environments on a GPU.

Copying the pixels of 64 scenes of 512 px takes a CPU about as long as five compiled steps of CanViT-B take a GPU. So a
thread loads the scenes that come next while the current ones are stepped, and sends them to the GPU on a stream of its
own. Scenes are held in the batches in which they were announced, on both sides, until the last of a batch is used.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.cuda_streams import side_streams
from canvit_gym.scenes.source import SceneBatch, SceneSource, load_scenes, loads_in_threads


@dataclass(frozen=True)
class LoadedScenes:
    """Scenes as they are used, on the device if they were sent in advance, and a function that picks them on the host:
    a copy, which most have no use for."""

    batch: SceneBatch
    on_host: Callable[[], SceneBatch]


@dataclass(frozen=True)
class _Sent:
    host: SceneBatch
    device: SceneBatch
    arrived: torch.cuda.Event | None


class SceneLoader:
    """Loads scenes of a source. Those that were announced by `expect` are loaded by a thread meanwhile.

    Announced or not, the scenes are the same, and so are the errors: whatever a thread fails to load is loaded again
    when it is asked for.
    """

    def __init__(self, scenes: SceneSource, device: torch.device, *, ahead: bool) -> None:
        """ahead: whether there is a thread; it is not used for sources that cannot be loaded by one."""
        self.scenes = scenes
        self._device = device
        self._stream = side_streams(device).loading if ahead and device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "scenes-ahead") if ahead and loads_in_threads(scenes) else None
        self._place: dict[int, tuple[Future[_Sent], int]] = {}  # of scenes that are expected: their batch, their row

    def expect(self, indices: NDArray[np.int64]) -> None:
        """Announce the scenes that will be loaded next, in place of those announced before."""
        if self._thread is None:
            return
        wanted = dict.fromkeys(indices.tolist())
        self._place = {index: place for index, place in self._place.items() if index in wanted}
        if missing := [index for index in wanted if index not in self._place]:
            sent = self._thread.submit(self._send, np.array(missing))
            self._place.update({index: (sent, row) for row, index in enumerate(missing)})

    def load(self, indices: NDArray[np.int64]) -> LoadedScenes:
        """The scenes at `indices` [n], each in [0, number of scenes).

        Raises:
            ValueError, OSError: see `load_scenes` and the source.
        """
        found = self._arrived(indices) if self._place else None
        if found is None:
            batch = load_scenes(self.scenes, indices)
            return LoadedScenes(batch=batch, on_host=lambda: batch)
        return found

    def close(self) -> None:
        """Wait until the thread is idle, and end it."""
        self._place.clear()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def _send(self, indices: NDArray[np.int64]) -> _Sent:
        host = load_scenes(self.scenes, indices)
        if self._stream is None:
            return _Sent(host=host, device=host, arrived=None)
        with torch.cuda.stream(self._stream):
            device = SceneBatch(images=self._copy(host.images), labels=self._copy(host.labels))
            arrived = torch.cuda.Event()
            arrived.record()
        return _Sent(host=host, device=device, arrived=arrived)

    def _copy(self, tensor: Tensor) -> Tensor:
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(self._device, non_blocking=True)

    def _arrived(self, indices: NDArray[np.int64]) -> LoadedScenes | None:
        """The scenes at `indices`. None if one was not expected, or if its batch could not be loaded."""
        found = [self._place.pop(index, None) for index in indices.tolist()]  # the caller may change what it gets
        places = [place for place in found if place is not None]
        if len(places) < len(found):
            return None
        first_row: dict[Future[_Sent], int] = {}
        batches: list[_Sent] = []
        count = 0
        for future, _ in places:
            if future not in first_row:
                try:
                    sent = future.result()
                except Exception:  # loading it again raises it where the scene is needed
                    return None
                first_row[future] = count
                count += len(sent.host.images)
                batches.append(sent)
        rows = torch.tensor([first_row[future] + row for future, row in places])
        for sent in batches:
            if sent.arrived is not None:
                stream = torch.cuda.current_stream(self._device)
                stream.wait_event(sent.arrived)
                for tensor in (sent.device.images, sent.device.labels):
                    tensor.record_stream(stream)  # its memory is not reused before this stream is done with it
        return LoadedScenes(
            batch=_picked([sent.device for sent in batches], rows),
            on_host=lambda: _picked([sent.host for sent in batches], rows),
        )


def _picked(batches: Sequence[SceneBatch], rows: Tensor) -> SceneBatch:
    """The given rows of all batches; without a copy if these are all of the only one, in order."""
    if len(batches) == 1 and torch.equal(rows, torch.arange(len(batches[0].images))):
        return batches[0]

    def picked(parts: list[Tensor]) -> Tensor:
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole[rows.to(whole.device, non_blocking=True)]

    return SceneBatch(images=picked([b.images for b in batches]), labels=picked([b.labels for b in batches]))
