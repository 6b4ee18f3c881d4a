"""The environment ids, one per data set. Registered on `import canvit_gym`; nothing heavy is imported for it."""

from typing import Any

import gymnasium as gym

from canvit_gym.scenes.datasets import DATASETS, DatasetSpec, check_spec

ENVIRONMENTS: dict[str, dict[str, Any]] = {}
"""Id -> its keyword arguments; see canvit_gym.config.EnvConfig for all there are."""


def register_dataset(spec: DatasetSpec) -> None:
    """Make a data set of your own known: `gym.make(spec.env_id)` then makes environments on it.

    What makes its scenes returns a `canvit_gym.scenes.source.SceneSource`. Processes that are spawned (AsyncVectorEnv,
    Ray) have to call this as well: put it into a module and use the id "module:namespace/Name-v0".

    Raises:
        ValueError: a name or id that is taken or malformed, or a task that does not exist.
    """
    from canvit_gym.tasks import TASKS  # imports torch, which `import canvit_gym` shall not

    check_spec(spec, tasks=TASKS)
    if spec.env_id in gym.registry:
        raise ValueError(f"the id {spec.env_id!r} is registered with Gymnasium already; choose another")
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
