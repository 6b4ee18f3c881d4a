"""Which probe reads a data set where none is asked for: the shipped or released one for its checkpoint and canvas."""

from typing import Literal

from canvit_gym.backbone.hub import ade20k_probe
from canvit_gym.backbone.load import Backbone
from canvit_gym.backbone.nano import NANO_CANVAS_GRID

TaskKind = Literal["segmentation", "classification"]


def default_probe(dataset: str, kind: TaskKind, backbone: Backbone) -> str | None:
    """The name of the probe; None where the backbone is fine-tuned for this kind of task and needs none.

    Raises:
        ValueError: there is none; the message says what to do.
    """
    if kind == "classification" and backbone.is_finetuned:
        return None
    cure = ""
    if dataset.startswith("fashion-"):
        if backbone.name == "nano" and backbone.canvas_grid == NANO_CANVAS_GRID:
            return f"nano-{kind}-probe"
        cure = f" or use checkpoint='nano' with canvas_grid={NANO_CANVAS_GRID}"
    elif dataset == "ade20k":
        return ade20k_probe(backbone.source, scene_size_px=backbone.scene_size_px, canvas_grid=backbone.canvas_grid)
    elif dataset == "imagenet1k":
        if backbone.name != "nano":
            return "dinov3-vitb16-in1k"
        cure = " or use checkpoint='flagship' or 'finetuned-in1k'"
    raise ValueError(
        f"there is no {kind} probe of {dataset} for checkpoint {backbone.name!r} on a {backbone.canvas_grid} x "
        f"{backbone.canvas_grid} canvas: pass probe='directory' (fit one with python -m experiments.fit_probe){cure}"
    )
