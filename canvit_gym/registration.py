"""The environment ids, one per data set. `import canvit_gym` registers them and imports nothing heavy."""

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from canvit_gym.scenes.datasets import DATASETS, DatasetSpec, check_spec

if TYPE_CHECKING:
    from canvit_gym.config import EnvConfig

ENVIRONMENTS: dict[str, dict[str, Any]] = {}
"""Id -> its default keyword arguments. canvit_gym.config.EnvConfig lists all keyword arguments."""


def config_for(env_id: str, /, **kwargs: Any) -> "EnvConfig":
    """The configuration of the environment that `gym.make(env_id, **kwargs)` makes, for `evaluate` and `make_policy`.

    It begins with the id's defaults, whereas EnvConfig(...) has those of the library. As for `gym.make`, an id may name
    the module that registers it: "my_module:Mine/Id-v0".

    >>> config = config_for("CanViT/FashionSearch-v0", split="test")
    >>> config.dataset, config.budget, config.split
    ('fashion-search', 4, 'test')

    Raises:
        ValueError: an unknown id, a bad value, or the `dataset` of another id.
        TypeError: an unknown keyword.
    """
    from canvit_gym.config import config_from_kwargs  # imports torch, which `import canvit_gym` must not

    defaults = gym.spec(bare_env_id(env_id)).kwargs
    require_own_dataset(defaults["dataset"], kwargs.get("dataset", defaults["dataset"]))
    return config_from_kwargs({**defaults, **kwargs})


def bare_env_id(env_id: str) -> str:
    """The id without the module that registers it, which is imported first, as Gymnasium does: "my_module:Mine/Id-v0".

    Raises:
        ValueError: the module cannot be imported, or no environment has this id.
    """
    module, _, bare = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"{env_id!r}: cannot import the module {module!r} ({error}); run this in its directory, or install it"
            ) from error
    if bare not in ENVIRONMENTS:
        raise ValueError(f"unknown environment {env_id!r}; there are: {', '.join(ENVIRONMENTS)}")
    return bare


def require_own_dataset(own: str, passed: object) -> None:
    """Raise ValueError if the `dataset` that was passed is not that of the id, whose other defaults would not fit."""
    if passed == own:
        return
    ids = {defaults["dataset"]: env_id for env_id, defaults in ENVIRONMENTS.items()}
    instead = f"use {ids[passed]} instead" if isinstance(passed, str) and passed in ids else "leave dataset out"
    raise ValueError(f"the dataset of {ids.get(own, own)} is {own!r}, but dataset={passed!r} was passed: {instead}")


def register_dataset(spec: DatasetSpec) -> None:
    """Register your own data set, so that `gym.make(spec.env_id)` makes environments on it.

    `spec.scenes` returns a `canvit_gym.scenes.source.SceneSource`. Spawned processes (AsyncVectorEnv, Ray) must
    register it as well: put the call into a module and use the id "module:namespace/Name-v0".

    Raises:
        ValueError: a name or id that is taken or malformed, or an unknown task.
    """
    from canvit_gym.tasks import TASKS  # imports torch, which `import canvit_gym` must not

    check_spec(spec, tasks=TASKS)
    if spec.env_id in gym.registry:
        raise ValueError(f"the id {spec.env_id!r} is already registered with Gymnasium; choose another")
    DATASETS[spec.name] = spec
    _register(spec)


def register_environments() -> None:
    """Register the ids of all data sets with Gymnasium. Idempotent."""
    for spec in DATASETS.values():
        _register(spec)


def _register(spec: DatasetSpec) -> None:
    ENVIRONMENTS[spec.env_id] = spec.kwargs
    if spec.env_id not in gym.registry:
        gym.register(
            spec.env_id,
            entry_point=f"canvit_gym.env:{spec.class_name}",
            vector_entry_point="canvit_gym.vector_env:GlimpseVectorEnv",
            kwargs=spec.kwargs,
        )
