"""EnvConfig: the keyword arguments of the environments, as JSON-able data that is checked. assembly.py builds the
parts.

Keywords are flat (`gym.make(id, budget=9, action="continuous")`); the classes below group them for readers. Every field
is declared once, with its default, its check and its documentation. The environments' pages are generated from these
(canvit_gym.pages).
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self, get_args

import numpy as np

from canvit_gym.actions import ActionKind, DiscreteActions, make_actions
from canvit_gym.backbone.load import Precision
from canvit_gym.checks import Check, boolean, finite, integer, is_number, number, one_of, optional, several, text
from canvit_gym.observations import COMPACT_KEYS, DEFAULT_KEYS, FloatDtype, ObservationKey, check_keys
from canvit_gym.rewards import REWARDS
from canvit_gym.scenes.datasets import DATASETS, Unreadable, check_scene_arguments
from canvit_gym.scenes.sampler import check_shard
from canvit_gym.viewpoints import MIN_SCALE, FirstGlimpse, first_viewpoints

_NO_CACHE = "first glimpses are not cached any more (it saved no time); states are no longer rounded"
RETIRED_KEYWORDS: dict[str, tuple[Any, str]] = {
    "first_glimpse_cache_mb": (0, _NO_CACHE),
    "first_glimpse_cache_dtype": ("float16", _NO_CACHE),
    "first_glimpse_cache_on": ("host", _NO_CACHE),
}
"""Keywords of earlier versions, which old records and specs may contain -> (default, why it has no effect now)."""


def option(default: Any, check: Check, doc: str, *, on_disk: bool = False) -> Any:
    """Declare a field with its default, its check and its documentation.

    on_disk: whether it applies only to data sets on disk.
    """
    return field(default=default, metadata={"check": check, "doc": doc, "on_disk": on_disk})


def _unchecked(name: str, value: Any) -> Any:
    """No check here: the group checks it together with others. Lists become tuples, which JSON does not have."""
    return tuple(value) if isinstance(value, list) else value


def _first_glimpse(name: str, value: Any) -> Any:
    """Numbers become Python's, which JSON has. Whether they are a viewpoint is checked by the group."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, list | tuple):
        return tuple(number(name, entry) if is_number(entry) else entry for entry in value)
    return value


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
            f'{name} must map mask values to class names, such as {{"0": "sky", "255": None}}, got {value!r}'
        )
    return {str(key): label for key, label in value.items()}


def _keys(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list of keys, got {value!r}")
    check_keys(tuple(value))
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Scenes: which images the agent sees."""

    dataset: str = option(
        "fashion-segmentation",
        one_of(lambda: DATASETS),
        "name of the data set (see canvit_gym.scenes.datasets); set by the id",
    )
    split: str = option(
        "training",
        _unchecked,
        '"training" is sampled in shuffled passes without replacement; every other split comes in order',
    )
    num_scenes: int | None = option(
        None, optional(integer(1)), "how many of the split's scenes to use, evenly spread over it; None: all of them"
    )
    shard: tuple[int, int] = option(
        (0, 1), _shard, "(i, n) takes every n-th scene, starting with the i-th, so that n processes see disjoint scenes"
    )
    root: str | None = option(None, optional(text), "directory of the data set", on_disk=True)
    tuning_scenes: int = option(
        0,
        integer(0),
        'number of training scenes, evenly spread, that are held out of the training split as the split "tuning", to '
        "choose policies, probes and hyperparameters by",
        on_disk=True,
    )
    workers: int | None = option(
        None,
        optional(integer(0)),
        "number of processes that decode and resize scenes in advance; it does not change the scenes. None: one less "
        "than the number of CPU cores, at most 8, and none for a single environment",
        on_disk=True,
    )
    unreadable: Unreadable = option(
        "raise",
        one_of(lambda: get_args(Unreadable)),
        '"raise" stops at a file that cannot be decoded and names it; "skip" leaves the file out, warns once, and '
        "counts such files in envs.scenes.unreadable",
        on_disk=True,
    )
    cache: bool | str = option(
        False,
        _cache,
        "True or a directory: decode every scene once into a memory-mapped file and read it from there. True means "
        "$CANVIT_GYM_CACHE. Files that change on disk are decoded again",
        on_disk=True,
    )

    mask_values: dict[str, str | None] | None = option(
        None,
        optional(_mask_values),
        'class names of the values in the masks of a segmentation folder: {"0": "background", "255": "thing"} or, for '
        'colour masks, {"#000000": "background", "#ff0000": "thing"}; pixels whose name is None (null) are ignored. '
        "Default: masks contain class indices, and 255 for ignored pixels",
        on_disk=True,
    )

    @property
    def choosing_split(self) -> str:
        """The split to choose by: "tuning" if training scenes are held out for it, else "validation"."""
        return "tuning" if self.tuning_scenes else "validation"

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
    revision: str | None = option(None, optional(text), "revision of a Hub id; None: the newest")
    probe: str | None = option(
        None,
        optional(text),
        "a directory, or the name of a probe; None: the one fitted on this checkpoint and data set",
    )
    canvas_grid: int | None = option(None, optional(integer(1)), "side of the canvas in cells; None: as in pretraining")
    scene_size_px: int | None = option(
        None, optional(integer(1)), "side of the scene in pixels; None: as in pretraining"
    )
    device: str = option("auto", text, '"auto" (CUDA where available), "cpu" or "cuda"')
    precision: Precision = option(
        "float32", one_of(lambda: get_args(Precision)), '"float32", or "bfloat16" through autocast'
    )
    compile: bool = option(
        False,
        boolean,
        "whether to compile steps with torch.compile, and to use CUDA graphs on a GPU. The first step of a process "
        "then takes 3 to 30 s longer, on slow machines up to a minute; on a CPU a C++ compiler is needed",
    )


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig:
    """Episode: the number of glimpses, and how the first one is chosen."""

    budget: int = option(5, integer(1), "number of glimpses per episode, including the first one")
    first_glimpse: FirstGlimpse | None = option(
        "full", _first_glimpse, '"full" (the whole scene), "random", (row, col, scale), or None (the agent chooses it)'
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
    """Actions: how an action encodes a viewpoint. See canvit_gym.actions."""

    action: ActionKind = option(
        "grid", one_of(lambda: get_args(ActionKind)), '"grid", "continuous" or "quadtree": see Action Space'
    )
    min_scale: float = option(0.125, number, "the finest scale of continuous actions")
    grid_scales: tuple[float, ...] = option((0.5, 0.25), several(number, "numbers"), "the scales of grid actions")
    grid_centers: int = option(16, integer(1), "number of centers along each axis, per scale, of grid actions")
    quadtree_levels: int = option(2, integer(0), "the finest level of quadtree actions: tiles of scale 1 / 2^level")
    allow_stop: bool = option(False, boolean, "whether the agent may end an episode early")
    revisit: bool = option(
        True,
        boolean,
        "whether a viewpoint may be chosen again within an episode. If not, every action except stopping is allowed "
        'once, and `info["action_mask"]` says which. For grid and quadtree actions only',
    )

    @property
    def action_parameters(self) -> dict[str, Any]:
        """The arguments of `make_actions` other than the kind."""
        return {f.name: getattr(self, f.name) for f in fields(ActionConfig) if f.name != "action"}

    def _check_actions(self) -> None:
        for kind in get_args(ActionKind):  # a bad value is an error even where the chosen kind does not use it
            make_actions(kind, **self.action_parameters)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Rewards: what the agent is paid for a glimpse, and what it costs. See canvit_gym.rewards."""

    reward: str = option("loss_reduction", one_of(lambda: REWARDS), "name of the reward: see Rewards")
    glimpse_cost: float = option(
        0.0, finite(low=0), "subtracted from the reward for every glimpse that the agent takes"
    )
    track_score: bool = option(
        False, boolean, "whether every info contains the score, even if neither the task nor the reward needs it"
    )


@dataclass(frozen=True, kw_only=True)
class ObservationConfig:
    """Observations: what the agent gets to see. See canvit_gym.observations."""

    observations: tuple[ObservationKey, ...] = option(
        DEFAULT_KEYS, _keys, "the keys of the Dict: see Observation Space"
    )
    canvas_size: int = option(8, integer(1), 'side g of "canvas" and "sketch" in cells, pooled from the canvas')
    map_size: int | None = option(
        None,
        optional(integer(1)),
        'side m of "uncertainty", "acuity" and the maps of "reading" in cells; None: that of the canvas',
    )
    observation_preset: str | None = option(
        None,
        optional(one_of(lambda: PRESETS)),
        "sets observations, canvas_size, map_size and observation_dtype, which are left out then: "
        '"compact" takes less than 2 kB per step; None: no preset',
    )
    observation_dtype: FloatDtype = option(
        "float32", one_of(lambda: get_args(FloatDtype)), '"float32" or "float16": the dtype of every key except pixels'
    )

    def _apply_preset(self, own: Mapping[str, Any]) -> None:
        """Set the fields of the preset; passing one of them as well is a contradiction.

        own: the defaults of the id, which nobody passed.
        """
        if self.observation_preset is None:
            return
        preset = dict(PRESETS[self.observation_preset])
        if "goal" in self.observations:
            preset["observations"] = (*preset["observations"], "goal")
        defaults = {f.name: f.default for f in fields(ObservationConfig)}
        for name, value in preset.items():
            given = getattr(self, name)
            without_goal = tuple(key for key in given if key != "goal") if name == "observations" else given
            not_passed = (value, defaults[name], _unchecked(name, own.get(name, defaults[name])))
            if given not in not_passed and without_goal not in not_passed:
                raise _passed_beside_preset(self.observation_preset, name, given)
            object.__setattr__(self, name, value)


def _passed_beside_preset(preset: str, name: str, given: object) -> ValueError:
    return ValueError(
        f"observation_preset={preset!r} sets {name}, but {name}={given!r} was passed as well: pass only one of the two"
    )


PRESETS: dict[str, dict[str, Any]] = {
    "compact": {"observations": COMPACT_KEYS, "canvas_size": 8, "map_size": 8, "observation_dtype": "float16"}
}
"""observation_preset -> the fields that it sets."""


def override(defaults: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """{**defaults, **kwargs}, without defaults of the fields that an observation_preset in `kwargs` sets."""
    preset = PRESETS.get(kwargs.get("observation_preset") or "", {})
    return {**{name: value for name, value in defaults.items() if name not in preset}, **kwargs}


@dataclass(frozen=True, kw_only=True)
class EnvConfig(ObservationConfig, RewardConfig, ActionConfig, EpisodeConfig, ModelConfig, SceneConfig):
    """All keyword arguments of the environments, with their defaults. (Fields of a dataclass's last base come first.)

    >>> EnvConfig(budget=9).action
    'grid'
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, f.metadata["check"](f.name, getattr(self, f.name)))
        self._apply_preset(DATASETS[self.dataset].env_defaults)
        self._check_scenes()
        self._check_episode()
        self._check_actions()
        if not self.revisit:
            self._check_table()

    @property
    def num_decisions(self) -> int:
        """The number of decisions in an episode without an early stop: of its glimpses that are not given."""
        return self.budget - (self.first_glimpse is not None)

    def _check_table(self) -> None:
        """Without revisit there must be a table with enough viewpoints for an episode."""
        actions = make_actions(self.action, **self.action_parameters)
        if not isinstance(actions, DiscreteActions):
            raise ValueError(
                f"revisit=False needs a table of viewpoints, but the actions are {self.action!r}: use action='grid' or "
                "'quadtree'"
            )
        left = len(actions.viewpoints)
        if self.first_glimpse not in (None, "random"):
            first = first_viewpoints(self.first_glimpse, 1)
            left = int(actions.allowed(first[:, None], np.array([1])).sum())
        if self.num_decisions > left:
            raise ValueError(
                f"budget={self.budget} asks for {self.num_decisions} viewpoints, but with revisit=False there are only "
                f"{left}: use a budget of at most {left + self.budget - self.num_decisions}"
            )

    def with_observations(self, keys: tuple[str, ...]) -> Self:
        """The same with other observation keys. What else a preset has set stays."""
        return replace(self, observations=keys, observation_preset=None)

    def to_json(self) -> dict[str, Any]:
        """JSON values; EnvConfig(**config.to_json()) == config."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


GROUPS: tuple[type[Any], ...] = (
    SceneConfig,
    ModelConfig,
    EpisodeConfig,
    ActionConfig,
    RewardConfig,
    ObservationConfig,
)
"""EnvConfig's groups of fields, in the order of the documentation."""


def config_from_kwargs(kwargs: dict[str, Any]) -> EnvConfig:
    """EnvConfig(**kwargs), of this version or an earlier one.

    Raises:
        TypeError: an unknown keyword; the message lists the known ones.
        ValueError: a bad value, or one beside an observation_preset that sets another.
    """
    known = [f.name for f in fields(EnvConfig)]
    if unknown := sorted(set(kwargs) - set(known) - set(RETIRED_KEYWORDS)):
        # Other libraries look for the words "unexpected keyword argument" before they retry without one.
        raise TypeError(
            f"unknown environment keyword {', '.join(unknown)}; there are: {', '.join(known)} "
            f"(got an unexpected keyword argument {unknown[0]!r})"
        )
    for name, (default, why) in RETIRED_KEYWORDS.items():
        if kwargs.get(name, default) != default:
            warnings.warn(f"{name}={kwargs[name]!r} has no effect any more: {why}", DeprecationWarning, stacklevel=3)
    config = EnvConfig(**{name: value for name, value in kwargs.items() if name in known})
    if (preset := config.observation_preset) is not None:
        own = DATASETS[config.dataset].env_defaults
        for name in PRESETS[preset]:  # here, unlike in EnvConfig, a field's default can be told from what was passed
            if name not in own and _unchecked(name, kwargs.get(name, getattr(config, name))) != getattr(config, name):
                raise _passed_beside_preset(preset, name, kwargs[name])
    return config
