"""The environment ids, one per data set. `import canvit_gym` registers them and imports nothing heavy."""

from typing import Any

import gymnasium as gym

from canvit_gym.scenes.datasets import DATASETS, DatasetSpec, check_spec

ENVIRONMENTS: dict[str, dict[str, Any]] = {}
"""Id -> its default keyword arguments. canvit_gym.config.EnvConfig lists all keyword arguments."""


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
