"""Which scene comes next: passes over a split, or over a shard of it, and prefetching."""

import operator
from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from canvit_gym.scenes.decoding import UnreadableSceneError
from canvit_gym.scenes.source import SceneSource, StreamedSource


def check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """The shard in plain integers. Raise ValueError unless it is (i, n) with 0 <= i < n."""
    try:
        if any(isinstance(value, bool | np.bool_) for value in shard):
            raise TypeError
        index, count = map(operator.index, shard)
    except (TypeError, ValueError):
        index, count = -1, -1
    if not 0 <= index < count:
        raise ValueError(f"shard must be (i, n), two integers with 0 <= i < n, got {shard!r}")
    return index, count


class SceneSampler:
    """An endless sequence of scene indices. Every pass has each scene of the shard exactly once.

    >>> order = SceneSampler(num_scenes=5, shard=(1, 2), shuffle=False)
    >>> order.take(3, np.random.default_rng(0)).tolist()
    [1, 3, 1]
    """

    def __init__(self, *, num_scenes: int, shard: tuple[int, int], shuffle: bool) -> None:
        index, count = check_shard(shard)
        self._scenes = np.arange(index, num_scenes, count)
        if not num_scenes:
            raise ValueError("there are no scenes; choose another split or another root")
        if not len(self._scenes):
            raise ValueError(f"shard {shard} of {num_scenes} scenes is empty; use at most {num_scenes} shards")
        self._shuffle = shuffle
        self._pass = self._scenes[:0]

    def __len__(self) -> int:
        """Scenes of a pass."""
        return len(self._scenes)

    def restart(self) -> None:
        """Forget the current pass."""
        self._pass = self._scenes[:0]

    @property
    def left(self) -> NDArray[np.int64]:
        """The scenes that are known to come next, in order. Assign them to another sampler to continue there."""
        return self._pass.copy()

    @left.setter
    def left(self, scenes: NDArray[np.int64]) -> None:
        self._pass = np.array(scenes, dtype=np.int64)

    def take(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The next `count` scenes; a new pass follows when one ends."""
        taken = self.upcoming(count, rng)
        self._pass = self._pass[count:]
        return taken

    def drawn(self, count: int) -> NDArray[np.int64]:
        """Those of the next `count` scenes that are known without drawing a new pass."""
        return self._pass[:count]

    def upcoming(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The next `count` scenes without taking them; new passes are drawn as needed."""
        while len(self._pass) < count:
            following = rng.permutation(self._scenes) if self._shuffle else self._scenes
            self._pass = np.concatenate([self._pass, following])
        return self._pass[:count]


def next_scenes(
    order: SceneSampler, scenes: SceneSource, *, count: int, ahead: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The next `count` scenes that can be loaded. The source prefetches them and the `ahead` after them.

    The drawn scenes only depend on the files, neither on the number of workers nor on their speed.

    Raises:
        UnreadableSceneError: unreadable scenes are left out, and a whole pass has no readable one.
    """
    taken = order.take(count, rng)
    if not isinstance(scenes, StreamedSource):
        return taken
    scenes.prefetch(np.concatenate([taken, order.upcoming(ahead, rng)]))
    if not scenes.skips_unreadable:
        return taken
    chosen, in_vain = taken[scenes.readable(taken)], 0
    while (missing := count - len(chosen)) > 0:
        more = order.take(missing, rng)
        readable = more[scenes.readable(more)]
        in_vain = 0 if len(readable) else in_vain + len(more)
        if in_vain >= len(order):
            name = cast(SceneSource, scenes).name
            raise UnreadableSceneError(f"none of the {len(order)} scenes of {name} can be read")
        chosen = np.concatenate([chosen, readable])
    return chosen


def batches_ahead(scenes: SceneSource, indices: NDArray[np.int64], *, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """`indices` in order, batch_size at a time; the next batch is prefetched while one is in use.

    If the source leaves unreadable scenes out they are missing here too: use the yielded indices.
    """
    if not isinstance(scenes, StreamedSource):
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]
        return
    at = 0
    while at < len(indices):
        chosen = indices[:0]
        while (missing := batch_size - len(chosen)) > 0 and at < len(indices):
            more = indices[at : at + missing]
            scenes.prefetch(indices[at : at + missing + batch_size])
            at += len(more)
            chosen = np.concatenate([chosen, more[scenes.readable(more)] if scenes.skips_unreadable else more])
        if len(chosen):
            yield chosen
