"""Which scene comes next: passes over a split, or over one worker's share of it."""

import numpy as np
from numpy.typing import NDArray


def check_shard(shard: tuple[int, int]) -> None:
    """Raise ValueError where `shard` is not (i, n) with 0 <= i < n."""
    whole = isinstance(shard, tuple) and len(shard) == 2 and all(type(value) is int for value in shard)
    if not (whole and 0 <= shard[0] < shard[1]):
        raise ValueError(f"shard must be (i, n), two ints with 0 <= i < n, got {shard!r}")


class SceneOrder:
    """An endless sequence of scene indices: every pass holds each scene of the shard exactly once.

    >>> order = SceneOrder(num_scenes=5, shard=(1, 2), shuffle=False)
    >>> order.take(3, np.random.default_rng(0)).tolist()
    [1, 3, 1]
    """

    def __init__(self, *, num_scenes: int, shard: tuple[int, int], shuffle: bool) -> None:
        check_shard(shard)
        index, count = shard
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
