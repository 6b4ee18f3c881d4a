"""Random integers of one scene: a counter-based generator (Philox 4x64, Salmon et al. 2011), keyed by the scene.

It only uses integers, because floating point may round differently on another machine.
"""

import numpy as np
from numpy.typing import NDArray

GENERATOR_VERSION = 1
"""Part of every scene's key. Increase it whenever a change affects a single pixel of an existing flavour."""


class Draws:
    """Bounded integers and bytes from one Philox stream, in the order of the calls."""

    def __init__(self, flavour: int, split: int, index: int) -> None:
        self._philox = np.random.Philox(key=[(GENERATOR_VERSION << 32) | (flavour << 8) | split, index])
        self._words: list[int] = self._philox.random_raw(192).tolist()
        self._next = 0

    def below(self, n: int) -> int:
        """An integer in [0, n); the bias of a 32-bit multiply-shift is below n / 2^32."""
        if self._next == len(self._words):
            self._words, self._next = self._philox.random_raw(192).tolist(), 0
        word = self._words[self._next]
        self._next += 1
        return ((word >> 32) * n) >> 32

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def choice[T](self, values: tuple[T, ...]) -> T:
        return values[self.below(len(values))]

    def distinct(self, count: int, n: int) -> list[int]:
        """`count` different integers in [0, n), in random order."""
        pool = list(range(n))
        return [pool.pop(self.below(len(pool))) for _ in range(count)]

    def noise(self, channels: int, size: int) -> NDArray[np.int16]:
        """[channels, size, size] integers in [-128, 127]."""
        count = channels * size * size
        raw = self._philox.random_raw(-(-count // 8)).astype("<u8", copy=False).view(np.int8)
        return raw[:count].reshape(channels, size, size).astype(np.int16)
