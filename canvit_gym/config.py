"""What an environment is made of, as JSON-able values, and how its parts are built from them."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

from canvit_gym.actions import ActionKind, Actions, make_actions
from canvit_gym.backbone.load import Backbone, Precision, asset_dir, load_backbone
from canvit_gym.observations import DEFAULT_KEYS, FloatDtype, ObservationKey, ObservationLayout
from canvit_gym.rewards import Reward, check_reward
from canvit_gym.scenes.fashion import Split
from canvit_gym.scenes.order import check_shard
from canvit_gym.scenes.prepared import DEFAULT_NUM_SCENES, FashionScenes
from canvit_gym.scenes.source import SceneSource
from canvit_gym.tasks.classification import ClassificationTask, load_classifier
from canvit_gym.tasks.segmentation import SegmentationTask, load_probe
from canvit_gym.viewpoints import FirstGlimpse

Dataset = Literal["fashion-segmentation", "fashion-classification"]


_CHOICES: dict[str, Any] = {
    "dataset": Dataset,
    "split": Split,
    "precision": Precision,
    "action": ActionKind,
    "observation_dtype": FloatDtype,
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
    split: Split = "training"
    num_scenes: int | None = None
    shard: tuple[int, int] = (0, 1)
    checkpoint: str = "nano"
    probe: str | None = None
    device: str = "auto"
    precision: Precision = "float32"
    budget: int = 5
    first_glimpse: FirstGlimpse | None = "full"
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
        for name, low in (("budget", 1), ("canvas_size", 1), ("grid_centers", 1), ("quadtree_levels", 0)):
            _check_whole(name, getattr(self, name), low)
        for name in ("num_scenes", "map_size"):
            if (value := getattr(self, name)) is not None:
                _check_whole(name, value, 1)
        for name in ("min_scale", "glimpse_cost"):
            if not _is_number(value := getattr(self, name)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        for name in ("allow_stop", "track_score"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        if not isinstance(self.grid_scales, tuple) or not all(_is_number(scale) for scale in self.grid_scales):
            raise ValueError(f"grid_scales must be a list of numbers, got {self.grid_scales!r}")
        if not isinstance(self.observations, tuple):
            raise ValueError(f"observations must be a list of keys, got {self.observations!r}")
        for name in ("checkpoint", "probe", "device"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "probe" and value is None):
                raise ValueError(f"{name} must be a string, so that the environment's spec is JSON; got {value!r}")
        check_shard(self.shard)
        check_reward(self.reward, self.glimpse_cost)
        for kind in get_args(ActionKind):  # a bad value is told even where the kind of action has no use for it
            build_actions(self, kind)
        if self.budget < 2 and self.first_glimpse is not None:
            raise ValueError("a budget of 1 is spent by the first glimpse: use budget >= 2 or first_glimpse=None")
        self._check_first_glimpse()

    def _check_first_glimpse(self) -> None:
        first = self.first_glimpse
        if first is None or first in ("full", "random"):
            return
        if not (isinstance(first, tuple) and len(first) == 3 and all(_is_number(value) for value in first)):
            raise ValueError(f"first_glimpse must be 'full', 'random', None or (row, col, scale), got {first!r}")
        row, col, scale = first
        if not (0 < scale <= 1 and max(abs(row), abs(col)) <= 1 - scale + 1e-6):
            raise ValueError(
                f"first_glimpse {first} does not lie inside the scene: scale must be in (0, 1] and "
                "|row|, |col| at most 1 - scale"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, such that EnvConfig(**config.to_json()) == config."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def config_from_kwargs(kwargs: dict[str, Any]) -> EnvConfig:
    """EnvConfig(**kwargs), with an error that lists what there is where a keyword is unknown."""
    known = [field.name for field in fields(EnvConfig)]
    if unknown := sorted(set(kwargs) - set(known)):
        raise TypeError(f"unknown environment keyword {', '.join(unknown)}; there are: {', '.join(known)}")
    return EnvConfig(**kwargs)


def build_backbone(config: EnvConfig) -> Backbone:
    return load_backbone(config.checkpoint, device=config.device, precision=config.precision)


def build_scenes(config: EnvConfig) -> SceneSource:
    count = DEFAULT_NUM_SCENES[config.split] if config.num_scenes is None else config.num_scenes
    return FashionScenes(cast(Any, config.dataset.removeprefix("fashion-")), config.split, count)


def build_task(
    config: EnvConfig, backbone: Backbone, classes: tuple[str, ...]
) -> SegmentationTask | ClassificationTask:
    kind = config.dataset.removeprefix("fashion-")
    if config.probe is None and config.checkpoint != "nano":
        raise ValueError(
            f"there is no {kind} probe of {config.dataset} for checkpoint {config.checkpoint!r}: pass "
            "probe='directory' (fit one with python -m experiments.fit_probe) or use checkpoint='nano'"
        )
    name = config.probe or f"nano-{kind}-probe"
    location = name if config.probe else str(asset_dir(name))
    if kind == "segmentation":
        probe = load_probe(name, location, backbone, num_classes=len(classes))
        return SegmentationTask(backbone=backbone, probe=probe, classes=classes, location=location)
    model = load_classifier(name, location, backbone, num_classes=len(classes))
    return ClassificationTask(backbone=backbone, model=model, classes=classes, location=location)


def build_actions(config: EnvConfig, kind: ActionKind | None = None) -> Actions:
    """The actions of the config's kind, or of another with the config's values."""
    return make_actions(
        kind or config.action,
        allow_stop=config.allow_stop,
        min_scale=config.min_scale,
        grid_scales=config.grid_scales,
        grid_centers=config.grid_centers,
        quadtree_levels=config.quadtree_levels,
    )


def build_layout(config: EnvConfig, backbone: Backbone, *, is_dense: bool) -> ObservationLayout:
    return ObservationLayout(
        keys=config.observations,
        canvas_size=config.canvas_size,
        map_size=backbone.canvas_grid if config.map_size is None else config.map_size,
        dtype=config.observation_dtype,
        canvas_dim=backbone.canvit.canvas_dim,
        backbone_dim=backbone.canvit.backbone_dim,
        canvas_grid=backbone.canvas_grid,
        glimpse_size_px=backbone.glimpse_size_px,
        is_dense=is_dense,
    )
