"""Classical saliency: spectral residual of the first glimpse (Hou & Zhang, CVPR 2007), with inhibition of return."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.actions import grid_viewpoints
from canvit_gym.checks import integer
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.sequences import Scales, checked_scales
from canvit_gym.policies.spec import Context
from canvit_gym.policies.table import best_allowed, fixed_table
from canvit_gym.policies.windows import Windows, sums_flops
from canvit_gym.viewpoints import FULL_SCENE

MAP_SIZE_PX = 64
"""Side of the saliency map, as in the publication; smaller if glimpses are smaller."""

BLUR_SHARE = 2.5 / 64
"""Standard deviation of the final blur, as a share of the map's side, as in the authors' code."""

INHIBITION = 0.1
"""Factor on the saliency of places that were looked at. Not 0, so that the gaze returns after it has seen
everything."""


class SpectralResidualSaliency:
    """The full scene, then the most salient window that has not been looked at.

    The map is computed once, from the pixels of the first glimpse only. Windows of several scales are compared by the
    saliency in them times the octaves of resolution that they add to the full scene (see
    `canvit_gym.policies.windows`); with one scale the saliency alone decides.
    """

    info = PolicyInfo(
        name="saliency",
        paper_name="spectral residual (Hou & Zhang 2007)",
        description="The full scene, then the most salient windows of its spectral-residual saliency map, each "
        "suppressed after it was looked at.",
        deterministic=True,
    )

    def __init__(self, *, scale: Scales = 0.5, centers: int = 16, table: NDArray[np.float32] | None = None) -> None:
        scales = checked_scales(scale)
        if 1 in scales:
            raise ValueError(f"saliency zooms into the full scene: scales must be below 1, got {scales}")
        integer(1)("centers", centers)
        self.candidates = grid_viewpoints(scales=scales, centers=centers) if table is None else table

    def reset(self, seen: Seen, *, seed: int) -> None:
        size = _map_size(seen)
        self._windows = Windows(self.candidates, size=size, device=seen.device)
        self._octaves = -torch.log2(torch.from_numpy(self.candidates[:, 2]).to(seen.device))

    @torch.no_grad()
    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if t == 0:
            return np.tile(FULL_SCENE, (seen.num, 1))
        if t == 1:
            if (elsewhere := np.flatnonzero((seen.viewpoints[:, 0] != FULL_SCENE).any(axis=1))).size:
                raise ValueError(
                    f"{self.info.name} needs a first glimpse of the full scene, but the first glimpse of "
                    f"scene {seen.scene[elsewhere[0]]} was at {seen.viewpoints[elsewhere[0], 0].tolist()}; use "
                    "first_glimpse='full'"
                )
            self._saliency = spectral_residual(seen.glimpse(0).float().mean(dim=1), size=_map_size(seen))
        worth = self._windows.sums(self._saliency) * self._octaves
        chosen = best_allowed(worth, self.candidates, seen)
        covered = self._windows.coverage(torch.from_numpy(chosen).to(seen.device))
        self._saliency = self._saliency * (1 - (1 - INHIBITION) * covered)
        return self.candidates[chosen]

    def flops_per_decision(self, seen: Seen) -> int:
        """The windows' sums. The Fourier transforms of the map, once per episode, are not counted."""
        return sums_flops(num_windows=len(self.candidates), size=_map_size(seen))


def build_saliency(context: Context, *, scale: Scales = 0.5, centers: int = 16) -> SpectralResidualSaliency:
    """Windows of these scales; with revisit=False the environment's table."""
    return SpectralResidualSaliency(scale=scale, centers=centers, table=fixed_table(context.config))


def _map_size(seen: Seen) -> int:
    return min(MAP_SIZE_PX, seen.backbone.glimpse_size_px)


def spectral_residual(gray: Tensor, *, size: int) -> Tensor:
    """Brightness [B, n, n] -> saliency [B, size, size], summing to 1 in each scene.

    The log amplitude spectrum of natural images is smooth. Its deviations from a smoothed spectrum, transformed back
    with the original phase, show what is unusual in the scene.
    """
    small = F.interpolate(gray.unsqueeze(1), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    spectrum = torch.fft.fft2(small)
    amplitude = spectrum.abs().clamp(min=1e-6).log()
    smooth = F.avg_pool2d(F.pad(amplitude, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    residual = torch.fft.ifft2(torch.polar((amplitude - smooth).exp(), spectrum.angle())).abs().square()
    blurred = _blurred(residual, sigma=BLUR_SHARE * size)[:, 0]
    return blurred / blurred.sum(dim=(1, 2), keepdim=True)


def _blurred(maps: Tensor, *, sigma: float) -> Tensor:
    """Gaussian blur of [B, 1, n, n] with replicated borders."""
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
