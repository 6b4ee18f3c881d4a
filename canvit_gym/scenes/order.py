"""Which scene comes next: passes over a split, or over one worker's share of it."""

import numpy as np
from numpy.typing import NDArray


class SceneOrder:
    """An endless sequence of scene indices: every pass holds each scene of the shard exactly once."""

    def __init__(self, *, num_scenes: int, shard: tuple[int, int], shuffle: bool) -> None:
        index, count = shard
        if not (count >= 1 and 0 <= index < count):
            raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {shard}")
        self._scenes = np.arange(index, num_scenes, count)
        if not len(self._scenes):
            raise ValueError(f"shard {shard} of {num_scenes} scenes is empty; use at most {num_scenes} shards")
        self._shuffle = shuffle
        self._pass = self._scenes[:0]

    def restart(self) -> None:
        """Forget the current pass."""
        self._pass = self._scenes[:0]

    def take(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The next `count` scenes; a new pass begins where one ends."""
        while len(self._pass) < count:
            following = rng.permutation(self._scenes) if self._shuffle else self._scenes
            self._pass = np.concatenate([self._pass, following])
        taken, self._pass = self._pass[:count], self._pass[count:]
        return taken
