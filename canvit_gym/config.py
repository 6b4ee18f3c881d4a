"""EnvConfig: what an environment is made of, as JSON-able values. Data and checks; parts are built by assembly.py."""

from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from canvit_gym.actions import ActionKind, make_actions
from canvit_gym.backbone.load import Precision
from canvit_gym.first_glimpses import CacheDevice, CacheDtype
from canvit_gym.observations import DEFAULT_KEYS, FloatDtype, ObservationKey, check_keys
from canvit_gym.rewards import Reward, check_reward
from canvit_gym.scenes.catalog import Dataset, SplitName, Unreadable, check_scene_arguments
from canvit_gym.scenes.sampler import check_shard
from canvit_gym.viewpoints import MIN_SCALE, FirstGlimpse

_CHOICES: dict[str, Any] = {
    "dataset": Dataset,
    "unreadable": Unreadable,
    "precision": Precision,
    "action": ActionKind,
    "observation_dtype": FloatDtype,
    "first_glimpse_cache_dtype": CacheDtype,
    "first_glimpse_cache_on": CacheDevice,
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_whole(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be a whole number (an int) >= {low}, got {value!r}")


@dataclass(frozen=True)
class EnvConfig:
    """Keyword arguments of the environments, with their defaults; see GlimpseVectorEnv for what they mean."""

    dataset: Dataset = "fashion-segmentation"
    split: SplitName = "training"
    num_scenes: int | None = None
    root: str | None = None
    tuning_scenes: int = 0
    workers: int | None = None
    unreadable: Unreadable = "raise"
    cache: bool | str = False
    shard: tuple[int, int] = (0, 1)
    checkpoint: str = "nano"
    revision: str | None = None
    canvas_grid: int | None = None
    scene_size_px: int | None = None
    probe: str | None = None
    device: str = "auto"
    precision: Precision = "float32"
    compile: bool = False
    budget: int = 5
    first_glimpse: FirstGlimpse | None = "full"
    first_glimpse_cache_mb: int = 0
    first_glimpse_cache_dtype: CacheDtype = "float16"
    first_glimpse_cache_on: CacheDevice = "host"
    action: ActionKind = "grid"
    min_scale: float = 0.125
    grid_scales: tuple[float, ...] = (0.5, 0.25)
    grid_centers: int = 16
    quadtree_levels: int = 2
    allow_stop: bool = False
    glimpse_cost: float = 0.0
    reward: Reward = "loss_reduction"
    observations: tuple[ObservationKey, ...] = DEFAULT_KEYS
    canvas_size: int = 8
    map_size: int | None = None
    observation_dtype: FloatDtype = "float32"
    track_score: bool = False

    def __post_init__(self) -> None:
        for name in ("shard", "grid_scales", "observations", "first_glimpse"):
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choices):
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(get_args(choices))}")
        for name, low in (
            ("budget", 1),
            ("canvas_size", 1),
            ("grid_centers", 1),
            ("quadtree_levels", 0),
            ("tuning_scenes", 0),
            ("first_glimpse_cache_mb", 0),
        ):
            _check_whole(name, getattr(self, name), low)
        for name in ("num_scenes", "map_size", "canvas_grid", "scene_size_px"):
            if (value := getattr(self, name)) is not None:
                _check_whole(name, value, 1)
        if self.workers is not None:
            _check_whole("workers", self.workers, 0)
        for name in ("min_scale", "glimpse_cost"):
            if not _is_number(value := getattr(self, name)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        for name in ("allow_stop", "track_score", "compile"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        if not isinstance(self.grid_scales, tuple) or not all(_is_number(scale) for scale in self.grid_scales):
            raise ValueError(f"grid_scales must be a list of numbers, got {self.grid_scales!r}")
        if not isinstance(self.observations, tuple):
            raise ValueError(f"observations must be a list of keys, got {self.observations!r}")
        check_keys(self.observations)
        if not isinstance(self.cache, bool | str):
            raise ValueError(f"cache must be True, False or a directory, got {self.cache!r}")
        for name in ("root", "checkpoint", "revision", "probe", "device"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name in ("root", "revision", "probe") and value is None):
                raise ValueError(f"{name} must be a string, so that the environment's spec is JSON; got {value!r}")
        for name in ("root", "checkpoint", "revision", "probe", "device", "cache"):
            if getattr(self, name) == "":  # as an unset variable of a shell leaves it
                raise ValueError(f"{name} must not be empty: leave it out for the default")
        check_shard(self.shard)
        check_scene_arguments(
            dataset=self.dataset,
            split=self.split,
            root=self.root,
            tuning_scenes=self.tuning_scenes,
            cache=self.cache,
        )
        check_reward(self.reward, self.glimpse_cost)
        for kind in get_args(ActionKind):  # a bad value is told even where the kind of action has no use for it
            make_actions(kind, **self.action_parameters)
        if self.budget < 2 and self.first_glimpse is not None:
            raise ValueError("a budget of 1 is spent by the first glimpse: use budget >= 2 or first_glimpse=None")
        self._check_first_glimpse()

    def _check_first_glimpse(self) -> None:
        first = self.first_glimpse
        if self.first_glimpse_cache_mb and (first is None or first == "random"):
            raise ValueError(
                f"first_glimpse_cache_mb={self.first_glimpse_cache_mb} needs a first glimpse that is the same for "
                f"every episode: use first_glimpse='full' or (row, col, scale), not {first!r}, or no cache"
            )
        if first is None or (isinstance(first, str) and first in ("full", "random")):
            return
        if not (isinstance(first, tuple) and len(first) == 3 and all(_is_number(value) for value in first)):
            raise ValueError(f"first_glimpse must be 'full', 'random', None or (row, col, scale), got {first!r}")
        row, col, scale = first
        inside = all(abs(center) <= 1 - scale + 1e-6 for center in (row, col))  # each by itself: max() hides a NaN
        if not (MIN_SCALE <= scale <= 1 and inside):
            raise ValueError(
                f"first_glimpse {first} does not lie inside the scene: scale must be in [{MIN_SCALE}, 1] and "
                "|row|, |col| at most 1 - scale"
            )

    @property
    def action_parameters(self) -> dict[str, Any]:
        """What `make_actions` takes besides the kind."""
        names = ("allow_stop", "min_scale", "grid_scales", "grid_centers", "quadtree_levels")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Plain values, such that EnvConfig(**config.to_json()) == config."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def config_from_kwargs(kwargs: dict[str, Any]) -> EnvConfig:
    """EnvConfig(**kwargs), with an error that lists what there is where a keyword is unknown."""
    known = [field.name for field in fields(EnvConfig)]
    if unknown := sorted(set(kwargs) - set(known)):
        raise TypeError(f"unknown environment keyword {', '.join(unknown)}; there are: {', '.join(known)}")
    return EnvConfig(**kwargs)
