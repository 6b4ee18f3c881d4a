"""EnvConfig: the keyword arguments of the environments. JSON-able data and its checks; assembly.py makes parts of it.

Keywords are flat (`gym.make(id, budget=9, action="continuous")`); the classes below group them for the reader. Every
field is declared once, with its default, its check and its documentation, from which the pages of the environments are
made (canvit_gym.pages).
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from canvit_gym.actions import ActionKind, DiscreteActions, make_actions
from canvit_gym.backbone.load import Precision
from canvit_gym.checks import Check, boolean, finite, integer, is_number, number, one_of, optional, several, text
from canvit_gym.observations import COMPACT_KEYS, DEFAULT_KEYS, FloatDtype, ObservationKey, check_keys
from canvit_gym.rewards import REWARDS
from canvit_gym.scenes.datasets import DATASETS, Unreadable, check_scene_arguments
from canvit_gym.scenes.sampler import check_shard
from canvit_gym.viewpoints import MIN_SCALE, FirstGlimpse

_NO_CACHE = "first glimpses are not cached any more (it saved no time); states are no longer rounded"
RETIRED_KEYWORDS: dict[str, tuple[Any, str]] = {
    "first_glimpse_cache_mb": (0, _NO_CACHE),
    "first_glimpse_cache_dtype": ("float16", _NO_CACHE),
    "first_glimpse_cache_on": ("host", _NO_CACHE),
}
"""Keywords of earlier versions that records and specs may still hold -> (their default, why they have no effect)."""


def option(default: Any, check: Check, doc: str, *, on_disk: bool = False) -> Any:
    """A field: its default, its check, and what it means.

    on_disk: whether it is for data sets on disk alone.
    """
    return field(default=default, metadata={"check": check, "doc": doc, "on_disk": on_disk})


def _whatever(name: str, value: Any) -> Any:
    """What the group checks as a whole. Lists become tuples: JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def _cache(name: str, value: Any) -> bool | str:
    if isinstance(value, str):
        return text(name, value)
    try:
        return boolean(name, value)
    except ValueError:
        raise ValueError(f"{name} must be True, False or a directory, got {value!r}") from None


def _shard(name: str, value: Any) -> tuple[int, int]:
    return check_shard(value)


def _mask_values(name: str, value: Any) -> dict[str, str | None]:
    """Keys become strings, as in JSON."""
    if not isinstance(value, Mapping) or not value or not all(v is None or isinstance(v, str) for v in value.values()):
        raise ValueError(
            f'{name} must map values to names of classes, such as {{"0": "sky", "255": None}}, got {value!r}'
        )
    return {str(key): label for key, label in value.items()}


def _keys(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list of keys, got {value!r}")
    check_keys(tuple(value))
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Scenes: which images are looked at."""

    dataset: str = option(
        "fashion-segmentation",
        one_of(lambda: DATASETS),
        "the name of a data set: see canvit_gym.scenes.datasets; set by the id",
    )
    split: str = option(
        "training",
        _whatever,
        '"training" comes in shuffled passes without replacement, every other split in order',
    )
    num_scenes: int | None = option(
        None, optional(integer(1)), "at most so many of the split's scenes, evenly spread over it; None: all of them"
    )
    shard: tuple[int, int] = option(
        (0, 1), _shard, "(i, n) takes every n-th scene from the i-th, so that n processes see disjoint scenes"
    )
    root: str | None = option(None, optional(text), "the directory of the data set", on_disk=True)
    tuning_scenes: int = option(
        0,
        integer(0),
        'so many training scenes, evenly spread, are left out of the training split and are the split "tuning": to '
        "choose hyperparameters on",
        on_disk=True,
    )
    workers: int | None = option(
        None,
        optional(integer(0)),
        "processes that decode and resize scenes ahead of need; the scenes do not depend on it. None: one per CPU core "
        "but one, at most 8, and none for a single environment",
        on_disk=True,
    )
    unreadable: Unreadable = option(
        "raise",
        one_of(lambda: get_args(Unreadable)),
        '"raise" stops at a file that cannot be decoded and names it; "skip" goes on without it, warns once, and keeps '
        "count in envs.scenes.unreadable",
        on_disk=True,
    )
    cache: bool | str = option(
        False,
        _cache,
        "True or a directory: every scene is decoded once into a memory-mapped file and read from there. True is "
        "$CANVIT_GYM_CACHE. What changes on disk is decoded anew",
        on_disk=True,
    )

    mask_values: dict[str, str | None] | None = option(
        None,
        optional(_mask_values),
        'what the masks of a segmentation folder hold: {"0": "background", "255": "thing"} or, where they are colours, '
        '{"#000000": "background", "#ff0000": "thing"}; None (null) as a name: ignored. Without it masks hold class '
        "indices, and 255 where a pixel is ignored",
        on_disk=True,
    )

    def _check_scenes(self) -> None:
        check_scene_arguments(
            dataset=self.dataset,
            split=self.split,
            root=self.root,
            tuning_scenes=self.tuning_scenes,
            cache=self.cache,
            mask_values=self.mask_values,
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Model: the frozen backbone and the probe that reads it."""

    checkpoint: str = option("nano", text, '"nano", a released name such as "flagship", a Hub id or a directory')
    revision: str | None = option(None, optional(text), "of a Hub id; None: the newest")
    probe: str | None = option(
        None, optional(text), "a directory, or the name of a probe; None: the checkpoint's own for this data set"
    )
    canvas_grid: int | None = option(
        None, optional(integer(1)), "cells of the canvas on a side; None: as many as in pretraining"
    )
    scene_size_px: int | None = option(
        None, optional(integer(1)), "pixels of the scene on a side; None: as many as in pretraining"
    )
    device: str = option("auto", text, '"auto" (CUDA where there is one), "cpu" or "cuda"')
    precision: Precision = option(
        "float32", one_of(lambda: get_args(Precision)), '"float32", or "bfloat16" by autocast'
    )
    compile: bool = option(
        False,
        boolean,
        "whether steps go through torch.compile, and on a GPU through CUDA graphs. Compiling takes about half a minute "
        "at the first step, once per process, and a C++ compiler on a CPU",
    )


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig:
    """Episode: how many glimpses, and who takes the first."""

    budget: int = option(5, integer(1), "glimpses per episode, the first one included")
    first_glimpse: FirstGlimpse | None = option(
        "full", _whatever, '"full" (the whole scene), "random", (row, col, scale), or None (the agent takes it)'
    )

    def _check_episode(self) -> None:
        if self.budget < 2 and self.first_glimpse is not None:
            raise ValueError("a budget of 1 is spent by the first glimpse: use budget >= 2 or first_glimpse=None")
        first = self.first_glimpse
        if first is None or (isinstance(first, str) and first in ("full", "random")):
            return
        if not (isinstance(first, tuple) and len(first) == 3 and all(is_number(value) for value in first)):
            raise ValueError(f"first_glimpse must be 'full', 'random', None or (row, col, scale), got {first!r}")
        row, col, scale = first
        inside = all(abs(center) <= 1 - scale + 1e-6 for center in (row, col))  # each by itself: max() hides a NaN
        if not (MIN_SCALE <= scale <= 1 and inside):
            raise ValueError(
                f"first_glimpse {first} does not lie inside the scene: scale must be in [{MIN_SCALE}, 1] and "
                "|row|, |col| at most 1 - scale"
            )


@dataclass(frozen=True, kw_only=True)
class ActionConfig:
    """Actions: how an agent names a viewpoint. See canvit_gym.actions."""

    action: ActionKind = option(
        "grid", one_of(lambda: get_args(ActionKind)), '"grid", "continuous" or "quadtree": see Action Space'
    )
    min_scale: float = option(0.125, number, "the finest scale of continuous actions")
    grid_scales: tuple[float, ...] = option((0.5, 0.25), several(number, "numbers"), "the scales of grid actions")
    grid_centers: int = option(16, integer(1), "centers of grid actions along each axis, per scale")
    quadtree_levels: int = option(2, integer(0), "the finest level of quadtree actions: tiles of scale 1 / 2^level")
    allow_stop: bool = option(False, boolean, "whether the agent may end an episode early")
    revisit: bool = option(
        True,
        boolean,
        "whether a viewpoint may be looked at again in an episode. If not, every action but stopping is allowed once: "
        "see action masks. Grid and quadtree actions only",
    )

    @property
    def action_parameters(self) -> dict[str, Any]:
        """What `make_actions` takes besides the kind."""
        return {f.name: getattr(self, f.name) for f in fields(ActionConfig) if f.name != "action"}

    def _check_actions(self) -> None:
        for kind in get_args(ActionKind):  # a bad value is an error even where the kind of action has no use for it
            make_actions(kind, **self.action_parameters)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Rewards: what a glimpse pays and costs. See canvit_gym.rewards."""

    reward: str = option("loss_reduction", one_of(lambda: REWARDS), "what a glimpse pays: see Rewards")
    glimpse_cost: float = option(0.0, finite(low=0), "taken off the reward for every glimpse the agent takes")
    track_score: bool = option(False, boolean, "whether every info holds the score")


@dataclass(frozen=True, kw_only=True)
class ObservationConfig:
    """Observations: what the agent is shown. See canvit_gym.observations."""

    observations: tuple[ObservationKey, ...] = option(DEFAULT_KEYS, _keys, "the keys: see Observation Space")
    canvas_size: int = option(8, integer(1), 'cells on a side of "canvas", pooled from the canvas')
    map_size: int | None = option(
        None, optional(integer(1)), 'cells on a side of "uncertainty" and "acuity"; None: as many as the canvas has'
    )
    observation_preset: str | None = option(
        None,
        optional(one_of(lambda: PRESETS)),
        'all of these at once: "compact" is less than 2 kB a step; None: as they are given',
    )
    observation_dtype: FloatDtype = option(
        "float32", one_of(lambda: get_args(FloatDtype)), '"float32" or "float16": of every key but pixels'
    )

    def _apply_preset(self) -> None:
        """Set the fields that the preset names; one that is given as well is a contradiction."""
        if self.observation_preset is None:
            return
        preset = dict(PRESETS[self.observation_preset])
        if "goal" in self.observations:
            preset["observations"] = (*preset["observations"], "goal")
        defaults = {f.name: f.default for f in fields(ObservationConfig)}
        for name, value in preset.items():
            given = getattr(self, name)
            without_goal = tuple(key for key in given if key != "goal") if name == "observations" else given
            if given != value and without_goal != defaults[name]:
                raise ValueError(
                    f"observation_preset={self.observation_preset!r} sets {name}, but it is given as {given!r}: leave "
                    "one of the two out"
                )
            object.__setattr__(self, name, value)


PRESETS: dict[str, dict[str, Any]] = {
    "compact": {"observations": COMPACT_KEYS, "canvas_size": 8, "map_size": 8, "observation_dtype": "float16"}
}
"""observation_preset -> the fields that it sets."""


@dataclass(frozen=True, kw_only=True)
class EnvConfig(ObservationConfig, RewardConfig, ActionConfig, EpisodeConfig, ModelConfig, SceneConfig):
    """All keyword arguments of the environments, with their defaults. (A dataclass takes its last base's fields first.)

    >>> EnvConfig(budget=9).action
    'grid'
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, f.metadata["check"](f.name, getattr(self, f.name)))
        self._apply_preset()
        self._check_scenes()
        self._check_episode()
        self._check_actions()
        if not self.revisit:
            self._check_table()

    def _check_table(self) -> None:
        """Without revisit, there must be a table of viewpoints, as long as an episode."""
        actions = make_actions(self.action, **self.action_parameters)
        if not isinstance(actions, DiscreteActions):
            raise ValueError(
                f"revisit=False needs a table of viewpoints, but the actions are {self.action!r}: use action='grid' or "
                "'quadtree'"
            )
        given = 0 if self.first_glimpse is None else 1  # glimpses that the agent does not choose
        first = (0.0, 0.0, 1.0) if self.first_glimpse == "full" else self.first_glimpse
        left = len(actions.viewpoints) - (tuple(first or ()) in {tuple(row) for row in actions.viewpoints.tolist()})
        if self.budget - given > left:
            raise ValueError(
                f"budget={self.budget} asks for {self.budget - given} viewpoints, but with revisit=False there are "
                f"only {left}: use a budget of at most {left + given}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, such that EnvConfig(**config.to_json()) == config."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


GROUPS: tuple[type[Any], ...] = (
    SceneConfig,
    ModelConfig,
    EpisodeConfig,
    ActionConfig,
    RewardConfig,
    ObservationConfig,
)
"""EnvConfig's groups of fields, in the order in which the documentation has them."""


def config_from_kwargs(kwargs: dict[str, Any]) -> EnvConfig:
    """EnvConfig(**kwargs), of this version or an earlier one.

    Raises:
        TypeError: an unknown keyword; the message lists those there are.
    """
    known = [f.name for f in fields(EnvConfig)]
    if unknown := sorted(set(kwargs) - set(known) - set(RETIRED_KEYWORDS)):
        # The words "unexpected keyword argument" are what other libraries look for before they retry without one.
        raise TypeError(
            f"unknown environment keyword {', '.join(unknown)}; there are: {', '.join(known)} "
            f"(got an unexpected keyword argument {unknown[0]!r})"
        )
    for name, (default, why) in RETIRED_KEYWORDS.items():
        if kwargs.get(name, default) != default:
            warnings.warn(f"{name}={kwargs[name]!r} has no effect any more: {why}", DeprecationWarning, stacklevel=3)
    return EnvConfig(**{name: value for name, value in kwargs.items() if name in known})
