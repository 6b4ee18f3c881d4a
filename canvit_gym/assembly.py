"""EnvConfig -> parts: scenes, backbone, task, actions, observation layout. Everything that needs them asks here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from canvit_gym.actions import ActionKind, Actions, make_actions
from canvit_gym.backbone.load import Backbone, load_backbone, resolve_device
from canvit_gym.config import PRESETS, EnvConfig
from canvit_gym.observations import ObservationLayout
from canvit_gym.rewards import REWARDS
from canvit_gym.scenes.datasets import DATASETS, SceneRequest
from canvit_gym.scenes.source import SceneSource, closing_sources
from canvit_gym.tasks import TASKS
from canvit_gym.tasks.task import Task


def build_backbone(config: EnvConfig) -> Backbone:
    return load_backbone(
        config.checkpoint,
        device=config.device,
        precision=config.precision,
        revision=config.revision,
        canvas_grid=config.canvas_grid,
        scene_size_px=config.scene_size_px,
        compile=config.compile,
    )


def build_scenes(config: EnvConfig, *, batched: bool = True) -> SceneSource:
    """The scenes of the config's split. Where they come one at a time, no worker processes are used unasked."""
    return DATASETS[config.dataset].scenes(
        SceneRequest(
            split=config.split,
            num_scenes=config.num_scenes,
            scene_size_px=lambda: build_backbone(config).scene_size_px,
            root=config.root,
            tuning_scenes=config.tuning_scenes,
            workers=0 if config.workers is None and not batched else config.workers,
            unreadable=config.unreadable,
            cache=config.cache,
            pin_memory=resolve_device(config.device).type == "cuda",
            mask_values=config.mask_values,
        )
    )


@contextmanager
def listed_scenes(config: EnvConfig) -> Iterator[SceneSource]:
    """The scenes of the config's split, for their name, fingerprint, number and classes: none is cached for these."""
    scenes = build_scenes(replace(config, cache=False), batched=False)
    with closing_sources(scenes):
        yield scenes


def classes_of(config: EnvConfig) -> tuple[str, ...]:
    """The classes of the config's data set."""
    with listed_scenes(replace(config, num_scenes=1, shard=(0, 1))) as scenes:
        return scenes.classes


def require_scene_size(config: EnvConfig, backbone: Backbone, scenes: SceneSource) -> None:
    """Raise ValueError where the scenes have another size than the backbone looks at."""
    if scenes.scene_size_px != backbone.scene_size_px:
        raise ValueError(
            f"checkpoint {config.checkpoint!r} expects scenes of {backbone.scene_size_px} px, but those of "
            f"{config.dataset} have {scenes.scene_size_px} px and no other: pass scene_size_px={scenes.scene_size_px}, "
            "or a checkpoint of that size (such as nano)"
        )


def task_kind(dataset: str) -> str:
    """What a data set's labels are for: the name of its task."""
    return DATASETS[dataset].task


def build_task(config: EnvConfig, backbone: Backbone, classes: tuple[str, ...]) -> Task:
    """The task of the config's data set, reading scenes of these classes.

    Raises:
        ValueError: a probe that does not fit, or a reward that the task cannot pay.
    """
    task = TASKS[task_kind(config.dataset)].build(config, backbone, classes)
    task.require_potential(REWARDS[config.reward].potential, wanted_by=f"reward={config.reward!r}")
    return task


def build_actions(config: EnvConfig, kind: ActionKind | None = None) -> Actions:
    """The actions of the config's kind, or of another with the config's values."""
    return make_actions(kind or config.action, **config.action_parameters)


def build_layout(config: EnvConfig, backbone: Backbone, task: Task) -> ObservationLayout:
    """
    Raises:
        ValueError: sizes that the canvas does not have, or keys that the task has nothing to show for.
    """
    try:
        return _layout(config, backbone, task)
    except ValueError as error:
        if config.observation_preset is None:
            raise
        fields = ", ".join(f"{name}={config.to_json()[name]!r}" for name in PRESETS[config.observation_preset])
        raise ValueError(
            f"observation_preset={config.observation_preset!r} does not fit this environment: {error}. In place of the "
            f"preset pass what it stands for, with this change: {fields}"
        ) from error


def _layout(config: EnvConfig, backbone: Backbone, task: Task) -> ObservationLayout:
    map_size = backbone.canvas_grid if config.map_size is None else config.map_size
    return ObservationLayout(
        keys=config.observations,
        canvas_size=config.canvas_size,
        map_size=map_size,
        dtype=config.observation_dtype,
        canvas_dim=backbone.canvit.canvas_dim,
        backbone_dim=backbone.canvit.backbone_dim,
        canvas_grid=backbone.canvas_grid,
        glimpse_size_px=backbone.glimpse_size_px,
        uncertainty_shape=task.uncertainty_shape(map_size),
        goal_shape=None if task.goals is None else task.goals.shape,
        # Only where it is shown: the layouts of other policies stay as they were recorded.
        num_classes=len(task.classes) if "reading" in config.observations else None,
    )
