"""Do faster settings give the same numbers as eager float32? Measured on the validation split of FashionScenes.

- error: the largest difference divided by the largest value, for canvas and CLS after five glimpses of C2F;
- same viewpoints: the share of EG-C2F's viewpoints that agree when each setting follows its own readings;
- mIoU: that of EG-C2F after the last glimpse, in points, and its difference.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from canvit_pytorch.policies import make_policy as canvit_policy
from canvit_pytorch.preprocess import imagenet_normalize

from canvit_gym.assembly import build_backbone, build_scenes
from canvit_gym.backbone.load import Backbone
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies import make_policy

SETTINGS: dict[str, dict[str, Any]] = {
    "float32, compiled": {"compile": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
}


def agreement(config: EnvConfig, *, num_glimpses: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Measurements by setting; "float32" is the reference."""
    reference = _evaluated(config, num_glimpses, batch_size)
    states = _final_state(config, num_glimpses, batch_size)
    found = {"float32": {"miou": 100 * float(reference.score()[-1])}}
    for name, setting in SETTINGS.items():
        other = replace(config, **setting)
        result = _evaluated(other, num_glimpses, batch_size)
        parts = zip(_final_state(other, num_glimpses, batch_size), states, strict=True)
        canvas, recurrent_cls = (float((one - exact).abs().max() / exact.abs().max()) for one, exact in parts)
        found[name] = {
            "canvas_error": canvas,
            "cls_error": recurrent_cls,
            "same_viewpoints": float((result.viewpoints == reference.viewpoints).all(axis=2).mean()),
            "miou": 100 * float(result.score()[-1]),
            "miou_difference": 100 * float(result.score()[-1] - reference.score()[-1]),
        }
    return found


def _evaluated(config: EnvConfig, num_glimpses: int, batch_size: int) -> Evaluation:
    policy = make_policy("entropy_coarse_to_fine", config=config, num_glimpses=num_glimpses)
    return evaluate(policy, config=config, num_glimpses=num_glimpses, batch_size=batch_size)


def _final_state(config: EnvConfig, num_glimpses: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(canvas, recurrent CLS) of the first scenes after the same viewpoints for every setting."""
    backbone: Backbone = build_backbone(config)
    images = build_scenes(config).load(np.arange(batch_size)).images.to(backbone.device)
    torch.manual_seed(0)
    policy = canvit_policy(
        "coarse_to_fine",
        batch_size=batch_size,
        device=backbone.device,
        num_glimpses=num_glimpses,
        canvas_grid_size=backbone.canvas_grid,
    )
    with torch.inference_mode():
        images, state = imagenet_normalize(images.float() / 255), backbone.init_state(batch_size)
        for t in range(num_glimpses):
            viewpoint = policy.step(t, state)
            state = backbone.step(backbone.glimpse(images, viewpoint), state, viewpoint)
    return state.canvas.float(), state.recurrent_cls.float()
