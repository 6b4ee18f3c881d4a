"""Backgrounds: coloured noise of several scales, in integer arithmetic."""

import numpy as np
from numpy.typing import NDArray

from canvit_gym.scenes.fashion.draws import Draws

SCENE_SIZE_PX = 128


def background(draws: Draws) -> NDArray[np.int16]:
    """[3, 128, 128] coloured noise in [0, 255]."""
    lum = _octaves(draws, channels=1, finest=64, roughness=draws.between(7, 13))
    chroma = _octaves(draws, channels=3, finest=16, roughness=draws.between(6, 12))
    lum *= np.int16(draws.between(6, 14))
    lum >>= 5
    chroma *= np.int16(draws.between(6, 14))
    chroma >>= 5
    chroma += lum
    for channel in chroma:
        channel += np.int16(draws.between(50, 140))
    return np.clip(chroma, 0, 255, out=chroma)


def _octaves(draws: Draws, *, channels: int, finest: int, roughness: int) -> NDArray[np.int16]:
    """[channels, 128, 128] multi-scale noise, about [-256, 256]; roughness / 16 is the gain from octave to octave."""
    size, gain = 4, 32
    field = draws.noise(channels, size)
    while size < SCENE_SIZE_PX:
        field = _doubled(_doubled(field, 1), 2)
        size *= 2
        gain = gain * roughness >> 4
        if size <= finest:
            field += draws.noise(channels, size) * np.int16(gain) >> 5
    return field


def _doubled(field: NDArray[np.int16], axis: int) -> NDArray[np.int16]:
    """Linear upsampling by two along an axis, cell centers aligned, borders clamped."""
    x = np.moveaxis(field, axis, 0)
    out = np.empty((2 * x.shape[0], *x.shape[1:]), dtype=np.int16)
    x3 = x * np.int16(3)
    even, odd = out[0::2], out[1::2]
    np.add(x3[1:], x[:-1], out=even[1:])
    even[0] = x[0] * np.int16(4)
    np.add(x3[:-1], x[1:], out=odd[:-1])
    odd[-1] = x[-1] * np.int16(4)
    out >>= 2
    return np.moveaxis(out, 0, axis)
