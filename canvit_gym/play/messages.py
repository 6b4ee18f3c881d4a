"""Parts of the messages to the page: readings, truths, uncertainties, actions, as JSON values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvit_gym.actions import DiscreteActions
from canvit_gym.env import GlimpseEnv
from canvit_gym.episodes import EpisodeView
from canvit_gym.play.pictures import label_bytes, map_bytes, numbers, picture_uri, share_bytes

Message = dict[str, Any]

MAP_PX = 128
"""The largest side of a map of classes."""
MOST_BARS = 8


def reading_message(view: EpisodeView) -> Message:
    """What the probe reads: a map of classes, the likeliest classes with their probabilities, or a picture."""
    if is_label_map(view.prediction):
        labels = label_bytes(view.prediction.astype(np.int64), size=min(view.prediction.shape[0], MAP_PX))
        return {"form": "map", **map_bytes(labels)}
    if is_distribution(view):
        return {"form": "bars", "bars": likeliest(view.prediction, MOST_BARS)}
    return {"form": "picture", "picture": picture_uri(np.asarray(view.picture.reading(view, MAP_PX).convert("RGB")))}


def is_label_map(values: NDArray[Any]) -> bool:
    """Whether these are classes [H, W]."""
    return values.ndim == 2 and bool(np.all(values == np.round(values)))


def is_distribution(view: EpisodeView) -> bool:
    """Whether the reading is a probability for every class."""
    return view.prediction.ndim == 1 and len(view.prediction) == len(view.classes)


def likeliest(probabilities: NDArray[np.floating], most: int) -> list[list[float]]:
    """[class, probability] of up to `most` classes, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:most]
    return [[int(c), round(float(probabilities[c]), 4)] for c in order]


def truth_message(view: EpisodeView) -> Message:
    """A map of classes, a class, a picture, or words, depending on the task."""
    if is_label_map(view.truth):
        return {"form": "map", **map_bytes(label_bytes(view.truth, size=min(view.truth.shape[0], MAP_PX)))}
    if is_distribution(view):
        return {"form": "class", "class": int(view.truth)}
    if (picture := view.picture.truth(view, MAP_PX)) is not None:
        return {"form": "picture", "picture": picture_uri(np.asarray(picture.convert("RGB")))}
    return {"form": "words", "words": view.picture.caption(view)}


def uncertainty_message(uncertainty: NDArray[np.floating] | None) -> Message | None:
    """The observation's `uncertainty`: a map [1, m, m] or a number [1]; None if the task has none."""
    if uncertainty is None:
        return None
    if uncertainty.ndim == 1:
        return {"form": "number", "value": round(float(uncertainty[0]), 4)}
    return {"form": "map", **map_bytes(share_bytes(uncertainty[0]))}


def allowed_actions(info: dict[str, Any]) -> list[int] | None:
    """The actions that may be taken now, if some may not."""
    mask = info.get("action_mask")
    return None if mask is None or np.all(mask) else np.flatnonzero(mask).tolist()


def actions_message(env: GlimpseEnv) -> Message:
    """The viewpoints that the environment allows."""
    actions = env.actions
    if isinstance(actions, DiscreteActions):
        table = [numbers(viewpoint) for viewpoint in actions.viewpoints]
        return {"kind": "discrete", "viewpoints": table, "stop": actions.allow_stop}
    return {"kind": "continuous", "min_scale": env.envs.config.min_scale, "stop": actions.allow_stop}
