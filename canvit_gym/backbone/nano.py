"""nano: the CanViT of about one million parameters that ships with this package, for scenes of 128 px.

canvit-pytorch builds a backbone from its name in `canvit_core.backbone.BACKBONES`, so the name has to be
registered in every process before a nano checkpoint is built or loaded: call `register_nano()`.
"""

from typing import Any, cast

from canvit_core.backbone import BACKBONES, ViTSpec
from canvit_pytorch import CanViTConfig

NANO_BACKBONE = "canvit_gym_nano"

NANO_SPEC = ViTSpec(embed_dim=128, num_heads=4, num_blocks=4, patch_size=8, layerscale_init=0.1)
"""LayerScale starts at 0.1: at canvit-pytorch's 1e-5 a model this shallow learns nothing for a long time."""

NANO_GLIMPSE_SIZE_PX = 32
NANO_CANVAS_GRID = 16


def register_nano() -> None:
    """Register `NANO_BACKBONE` with canvit-pytorch in this process. Idempotent."""
    # The dict is typed by the released names; canvit-core reads it at run time.
    backbones = cast(dict[str, ViTSpec], BACKBONES)
    known = backbones.setdefault(NANO_BACKBONE, NANO_SPEC)
    if known != NANO_SPEC:
        raise RuntimeError(f"the backbone name {NANO_BACKBONE!r} is taken by another architecture: {known}")


def nano_config() -> CanViTConfig:
    """nano's architecture: a canvas 4 x 32 wide with 4 registers, one read and one write."""
    register_nano()
    return CanViTConfig(
        backbone_name=cast(Any, NANO_BACKBONE),
        canvas_num_heads=4,
        canvas_head_dim=32,
        num_canvas_registers=4,
        num_backbone_registers=2,
        rw_stride=2,
    )
