"""Which probe reads a data set where none is asked for: the shipped or released one for its checkpoint and canvas."""

from canvit_gym.backbone.load import Backbone
from canvit_gym.scenes.datasets import DatasetSpec


def default_probe(spec: DatasetSpec, backbone: Backbone) -> str | None:
    """The name of the probe; None where the backbone is fine-tuned for this kind of task and needs none.

    Raises:
        ValueError: there is none; the message says what to do.
    """
    if spec.task == "classification" and backbone.is_finetuned:
        return None
    if (name := spec.default_probe(backbone)) is not None:
        return name
    raise ValueError(
        f"there is no {spec.task} probe of {spec.name} for checkpoint {backbone.name!r} on a {backbone.canvas_grid} x "
        f"{backbone.canvas_grid} canvas: pass probe='directory', which `canvit-gym fit-probe "
        f"--env {spec.env_id} --output-dir directory` writes{spec.probe_cure}"
    )
