"""Divide scenes among the single environments of a vectorizer.

Splits that are not shuffled come in order: independent single environments all begin with scene 0, so four of them
evaluate a quarter of the scenes four times. `env_fns` gives each its own share.
"""

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import gymnasium as gym

from canvit_gym.checks import integer

if TYPE_CHECKING:
    from canvit_gym.config import EnvConfig
    from canvit_gym.env import GlimpseEnv

_CURE = (
    "Give each its own share: canvit_gym.env_fns(id, n, ...) makes n functions for a vectorizer (or pass shard=(i, n) "
    "to the i-th of n). gymnasium.make_vec(id, num_envs=n) shares them out by itself, and is many times faster. Ray "
    "RLlib: config.callbacks(on_environment_created=canvit_gym.share_scenes)."
)


def env_fns(env_id: str, num_envs: int, **kwargs: Any) -> list[Callable[[], gym.Env[Any, Any]]]:
    """Functions that each make one of `num_envs` environments, which share out the scenes: for SyncVectorEnv,
    AsyncVectorEnv, DummyVecEnv, SubprocVecEnv and the like.

    They can be sent to other processes, including spawned ones. A `shard` in the keyword arguments is divided further.

    >>> import gymnasium as gym
    >>> envs = gym.vector.SyncVectorEnv(env_fns("CanViT/FashionSegmentation-v0", 3, split="test", num_scenes=16))
    >>> envs.reset()[1]["scene"].tolist()
    [0, 1, 2]
    >>> envs.close()
    """
    integer(1)("num_envs", num_envs)
    shard = kwargs.pop("shard", (0, 1))
    # For ids of this form Gymnasium imports this package, also in spawned processes.
    name = f"canvit_gym:{env_id}" if env_id.startswith("CanViT/") else env_id
    return [partial(gym.make, name, shard=_part(shard, i, num_envs), **kwargs) for i in range(num_envs)]


def share_scenes(*, env: gym.vector.VectorEnv[Any, Any, Any], env_context: Any, **_: Any) -> None:
    """A callback for Ray RLlib: every runner, and every environment of a runner, gets scenes of its own.

        config.callbacks(on_environment_created=canvit_gym.share_scenes)

    RLlib calls it in each runner, with the runner's vector environment before its first reset, and with a context that
    knows the runner's number. A `shard` among the environments' keyword arguments is shared out.
    """
    # 0 is the local runner, which samples where there are no others.
    runner, runners = max(env_context.worker_index - 1, 0), max(env_context.num_workers or 0, 1)
    inner: Any = env.unwrapped
    if hasattr(inner, "shard"):  # the native one, which shares out its part among its scenes
        inner.shard = _part(inner.shard, runner, runners)
        return
    total = runners * env.num_envs
    shards = inner.get_attr("shard")
    inner.set_attr("shard", [_part(shard, runner * env.num_envs + k, total) for k, shard in enumerate(shards)])


def _part(shard: tuple[int, int], index: int, count: int) -> tuple[int, int]:
    """Part `index` of `count` of what `shard` is already a part of."""
    first, every = shard
    return first + every * index, every * count


_walking: "WeakSet[GlimpseEnv]" = WeakSet()
"""Single environments that have begun to go through a split in order."""
_told: set[tuple[object, ...]] = set()


def note_walk(env: "GlimpseEnv") -> None:
    """Warn, once, where another environment of this process goes through the same scenes in the same order."""
    config = env.envs.config
    if config.split == "training" or env in _walking:
        return
    key = _scenes_of(config)
    twins = sum(not other.envs.closed and _scenes_of(other.envs.config) == key for other in _walking)
    _walking.add(env)
    if twins:
        _warn(config, len(env.envs.scenes), f"{twins + 1} single environments in this process")


def warn_in_worker(config: "EnvConfig", num_scenes: int) -> None:
    """Warn, once, where a worker process goes through all scenes in order: others may do so as well."""
    if config.split != "training" and config.shard == (0, 1) and _in_worker():
        _warn(config, num_scenes, "an environment in a worker process: if others have one as well, they")


def _in_worker() -> bool:
    """Whether this process is one of several that another one started: of multiprocessing, or an actor of Ray's."""
    ray: Any = sys.modules.get("ray")
    in_actor = ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
    return in_actor or multiprocessing.parent_process() is not None


def _warn(config: "EnvConfig", num_scenes: int, who: str) -> None:
    if (key := _scenes_of(config)) in _told:
        return
    _told.add(key)
    warnings.warn(
        f"{who} go through the same {num_scenes} scenes of {config.split!r} in the same order, so together they see "
        f"each scene more than once. {_CURE}",
        UserWarning,
        stacklevel=4,
    )


def _scenes_of(config: "EnvConfig") -> tuple[object, ...]:
    return config.dataset, config.root, config.split, config.num_scenes, config.tuning_scenes, config.shard
