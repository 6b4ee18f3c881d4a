"""Random numbers that are a function of (seed, scene, t): what is drawn for a scene does not depend on its batch."""

import numpy as np
from numpy.typing import NDArray


def scene_seeds(seed: int, scenes: NDArray[np.int64], t: int = 0) -> list[int]:
    """A 63-bit seed per scene, for PyTorch's generators."""
    return [
        int(np.random.SeedSequence((seed, scene, t)).generate_state(1, np.uint64)[0] >> 1) for scene in scenes.tolist()
    ]


def scene_displacements(seed: int, scenes: NDArray[np.int64], t: int) -> NDArray[np.float64]:
    """[len(scenes), 2], uniform in [-1, 1): rows and columns. Draws at 2 t and 2 t + 1."""
    return 2 * np.stack([scene_uniforms(seed, scenes, 2 * t + axis) for axis in (0, 1)], axis=1) - 1


def scene_uniforms(seed: int, scenes: NDArray[np.int64], t: int) -> NDArray[np.float64]:
    """[len(scenes)], uniform in [0, 1)."""
    return np.array([value >> 10 for value in scene_seeds(seed, scenes, t)]) / 2**53
