"""Which code runs a step: canvit_gym's fast one, or canvit-pytorch's own if its version is not a tested one."""

import logging
from importlib.metadata import PackageNotFoundError, version

from canvit_pytorch import CanViT, RecurrentState, Viewpoint, sample_at_viewpoint
from torch import Tensor

from canvit_gym.backbone.fast_step import FastStep

log = logging.getLogger("canvit_gym")

TESTED_VERSIONS = ("0.2.1",)
"""Versions of canvit-pytorch whose forward the tests compare with FastStep."""


class ReferenceStep:
    """Like FastStep, through canvit-pytorch's own forward."""

    def __init__(self, canvit: CanViT, *, glimpse_size_px: int) -> None:
        self.canvit, self._glimpse_size_px = canvit, glimpse_size_px

    def sample(self, images: Tensor, centers: Tensor, scales: Tensor) -> Tensor:
        viewpoint = Viewpoint(centers=centers, scales=scales)
        return sample_at_viewpoint(spatial=images, viewpoint=viewpoint, glimpse_size_px=self._glimpse_size_px)

    def __call__(
        self, glimpse: Tensor, canvas: Tensor, recurrent_cls: Tensor, centers: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        state = RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls)
        viewpoint = Viewpoint(centers=centers, scales=scales)
        after = self.canvit(glimpse=glimpse, state=state, viewpoint=viewpoint).state
        return after.canvas, after.recurrent_cls


def step_of(canvit: CanViT, *, canvas_grid: int, glimpse_size_px: int, bfloat16: bool) -> FastStep | ReferenceStep:
    """The fast step if the installed canvit-pytorch is a tested version, else canvit-pytorch's own."""
    try:
        installed = version("canvit-pytorch")
    except PackageNotFoundError:
        installed = "of no known version"
    if installed in TESTED_VERSIONS:
        return FastStep(canvit, canvas_grid=canvas_grid, glimpse_size_px=glimpse_size_px, bfloat16=bfloat16)
    log.warning("canvit-pytorch is %s: its own forward runs in place of canvit_gym's faster one", installed)
    return ReferenceStep(canvit, glimpse_size_px=glimpse_size_px)
