"""The policies that players are compared with, on the scenes that they played."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeView
from canvit_gym.evaluation import record_views
from canvit_gym.play.messages import reading_message
from canvit_gym.play.pictures import numbers, picture_uri, seen_picture
from canvit_gym.policies import GlimpsePolicy, is_trained, make_policy
from canvit_gym.policies.learned import load_as_trained

KEPT_SCENES = 64

DEFAULT_RIVALS = ("entropy_coarse_to_fine", "entropy_greedy", "saliency", "center(scale=0.55)", "greedy_oracle")
"""The ones among these that support the environment are used."""
STEP_PX = 192


@dataclass(frozen=True)
class Rival:
    """A policy, and the configuration of the environment with the observations that it needs."""

    spec: str
    """As the policy was asked for."""
    policy: GlimpsePolicy
    config: EnvConfig


class Rivals:
    """Policies by the name that the page shows, and their episodes, computed on demand."""

    def __init__(self, rivals: Sequence[Rival]) -> None:
        """
        Raises:
            ValueError: a policy was given twice.
        """
        if twice := [spec for spec, count in Counter(rival.spec for rival in rivals).items() if count > 1]:
            raise ValueError(f"policies given twice: {', '.join(twice)}; name each once")
        called = Counter(rival.policy.info.paper_name for rival in rivals)
        self._rivals = {
            rival.spec if called[name := rival.policy.info.paper_name] > 1 else name: rival for rival in rivals
        }
        self._kept: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._rivals)

    def episode(self, name: str, scene: int) -> dict[str, Any]:
        """A message for the page: the policy's viewpoints, readings and score after every glimpse."""
        key = (name, scene)
        if key not in self._kept:
            policy = self._rivals[name].policy
            views = record_views(policy, config=self._rivals[name].config, rows=np.array([scene]))[0]
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
            while len(self._kept) > KEPT_SCENES * len(self._rivals):
                self._kept.popitem(last=False)
        return self._kept[key]

    def ceiling(self, scene: int) -> float:
        """The best final score of the policies that use labels; NaN if there is none."""
        best = float("nan")
        for name, rival in self._rivals.items():
            if rival.policy.info.uses_labels:
                score = self.episode(name, scene)["curve"][-1]
                best = np.fmax(best, np.nan if score is None else score)
        return float(best)


def _seen(views: Sequence[EpisodeView]) -> str:
    return picture_uri(seen_picture(list(views[-1].viewpoints), [v.glimpse for v in views], size=STEP_PX))


def make_rivals(specs: Sequence[str] | None, config: EnvConfig) -> Rivals:
    """
    Args:
        specs: hand-coded policies by name, as in `make_policy`, and trained ones by their directory or the name of a
            shipped one. None: DEFAULT_RIVALS that support the environment.
        config: the environment's.

    Raises:
        ValueError: an unknown policy, or one that does not support the environment. FileNotFoundError: no such
            directory.
    """
    if specs is not None:
        return Rivals([make_rival(spec, config) for spec in specs])
    rivals = []
    for spec in DEFAULT_RIVALS:
        try:
            rivals.append(make_rival(spec, config))
        except ValueError:  # defaults that do not fit are left out
            continue
    return Rivals(rivals)


def make_rival(spec: str, config: EnvConfig) -> Rival:
    """One policy; see make_rivals."""
    if is_trained(spec):
        policy, own = load_as_trained(spec, config)
    else:
        policy, own = make_policy(spec, config=config, num_glimpses=config.budget), config
    keys = tuple(dict.fromkeys((*own.observations, *policy.info.observations)))
    return Rival(spec=spec, policy=policy, config=own.with_observations(keys))
