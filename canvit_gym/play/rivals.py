"""The policies that a player is compared with, on the scene that he played."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeView
from canvit_gym.evaluation import record_views
from canvit_gym.play.messages import reading_message
from canvit_gym.play.pictures import numbers, picture_uri, seen_picture
from canvit_gym.policies import GlimpsePolicy, make_policy

KEPT_SCENES = 64

DEFAULT_RIVALS = ("entropy_coarse_to_fine", "entropy_greedy", "saliency", "center(scale=0.55)", "greedy_oracle")
"""Those of them that support the environment."""
STEP_PX = 192


class Rivals:
    """Policies by the name that the page shows, and their episodes, made when they are asked for."""

    def __init__(self, policies: Sequence[GlimpsePolicy], config: EnvConfig) -> None:
        self._config = config
        self._policies: dict[str, GlimpsePolicy] = {}
        for policy in policies:
            name = policy.info.paper_name
            self._policies[name if name not in self._policies else policy.info.name] = policy
        self._kept: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._policies)

    def episode(self, name: str, scene: int) -> dict[str, Any]:
        """A message for the page: the policy's viewpoints, readings and score after every glimpse."""
        key = (name, scene)
        if key not in self._kept:
            policy = self._policies[name]
            wanted = policy.info.observations
            config = replace(self._config, observations=tuple(dict.fromkeys((*self._config.observations, *wanted))))
            views = record_views(policy, config=config, rows=np.array([scene]))[0]
            self._kept[key] = {
                "kind": "rival",
                "scene": scene,
                "name": name,
                "about": policy.info.description,
                "ceiling": policy.info.uses_labels,
                "viewpoints": [numbers(v) for v in views[-1].viewpoints],
                "seen": [_seen(views[: t + 1]) for t in range(len(views))],
                "readings": [reading_message(view) for view in views],
                "curve": numbers(float(view.score_curve[t + 1]) for t, view in enumerate(views)),
            }
            while len(self._kept) > KEPT_SCENES * len(self._policies):
                self._kept.popitem(last=False)
        return self._kept[key]

    def ceiling(self, scene: int) -> float:
        """The best final score of the policies that use labels; NaN where there is none."""
        best = float("nan")
        for name, policy in self._policies.items():
            if policy.info.uses_labels:
                score = self.episode(name, scene)["curve"][-1]
                best = np.fmax(best, np.nan if score is None else score)
        return float(best)


def _seen(views: Sequence[EpisodeView]) -> str:
    return picture_uri(seen_picture(list(views[-1].viewpoints), [v.glimpse for v in views], size=STEP_PX))


def make_rivals(specs: Sequence[str] | None, config: EnvConfig) -> Rivals:
    """
    Args:
        specs: policies by name, as in `make_policy`. None: DEFAULT_RIVALS that support the environment.
        config: the environment's.

    Raises:
        ValueError: an unknown policy, or one that does not support the environment.
    """
    if specs is not None:
        return Rivals([make_policy(spec, config=config, num_glimpses=config.budget) for spec in specs], config)
    policies = []
    for spec in DEFAULT_RIVALS:
        try:
            policies.append(make_policy(spec, config=config, num_glimpses=config.budget))
        except ValueError:  # of the default ones, those that fit
            continue
    return Rivals(policies, config)
