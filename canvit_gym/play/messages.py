"""Parts of the messages to the page: readings, truths, uncertainties, actions, as JSON values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvit_gym.actions import DiscreteActions
from canvit_gym.env import GlimpseEnv
from canvit_gym.episodes import EpisodeView
from canvit_gym.play.pictures import label_bytes, map_bytes, numbers, share_bytes

Message = dict[str, Any]

MAP_PX = 128
"""At most the side of a map of classes."""
MOST_BARS = 8


def reading_message(view: EpisodeView) -> Message:
    """What the probe reads: a map of classes, or the likeliest classes with their probabilities."""
    if view.prediction.ndim == 2:
        labels = label_bytes(view.prediction.astype(np.int64), size=min(view.prediction.shape[0], MAP_PX))
        return {"form": "map", **map_bytes(labels)}
    return {"form": "bars", "bars": likeliest(view.prediction, MOST_BARS)}


def likeliest(probabilities: NDArray[np.floating], most: int) -> list[list[float]]:
    """[class, probability] of up to `most` classes, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:most]
    return [[int(c), round(float(probabilities[c]), 4)] for c in order]


def truth_message(view: EpisodeView) -> Message:
    if view.truth.ndim == 2:
        return {"form": "map", **map_bytes(label_bytes(view.truth, size=min(view.truth.shape[0], MAP_PX)))}
    return {"form": "class", "class": int(view.truth)}


def uncertainty_message(uncertainty: NDArray[np.floating]) -> Message:
    """The observation's `uncertainty`: a map [1, m, m] or a number [1]."""
    if uncertainty.ndim == 1:
        return {"form": "number", "value": round(float(uncertainty[0]), 4)}
    return {"form": "map", **map_bytes(share_bytes(uncertainty[0]))}


def actions_message(env: GlimpseEnv) -> Message:
    """Where the environment lets one look."""
    actions = env.actions
    if isinstance(actions, DiscreteActions):
        table = [numbers(viewpoint) for viewpoint in actions.viewpoints]
        return {"kind": "discrete", "viewpoints": table, "stop": actions.allow_stop}
    return {"kind": "continuous", "min_scale": env.envs.config.min_scale, "stop": actions.allow_stop}
