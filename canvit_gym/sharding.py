"""Scenes shared out among the single environments of a vectorizer.

Splits that are not shuffled come in order: single environments that know nothing of each other all begin with scene 0,
so four of them evaluate a quarter of the scenes four times. `env_fns` gives each its own share.
"""

import multiprocessing
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
    "to the i-th of n). gymnasium.make_vec(id, num_envs=n) shares them out by itself, and is many times faster."
)


def env_fns(env_id: str, num_envs: int, **kwargs: Any) -> list[Callable[[], gym.Env[Any, Any]]]:
    """Functions that each make one of `num_envs` environments, which share out the scenes: for SyncVectorEnv,
    AsyncVectorEnv, DummyVecEnv, SubprocVecEnv and the like.

    They can be sent to other processes, also to spawned ones. A `shard` among the keyword arguments is shared out.

    >>> import gymnasium as gym
    >>> envs = gym.vector.SyncVectorEnv(env_fns("CanViT/FashionSegmentation-v0", 3, split="test", num_scenes=16))
    >>> envs.reset()[1]["scene"].tolist()
    [0, 1, 2]
    >>> envs.close()
    """
    integer(1)("num_envs", num_envs)
    first, count = kwargs.pop("shard", (0, 1))
    # A spawned process has not imported this package: Gymnasium does so for ids of this form.
    name = f"canvit_gym:{env_id}" if env_id.startswith("CanViT/") else env_id
    return [partial(gym.make, name, shard=(first + count * i, count * num_envs), **kwargs) for i in range(num_envs)]


_walking: "WeakSet[GlimpseEnv]" = WeakSet()
"""Single environments that have begun to go through the scenes of a split in order."""
_told: set[tuple[object, ...]] = set()


def note_walk(env: "GlimpseEnv") -> None:
    """Warn, once, where another environment goes through the same scenes in the same order."""
    config = env.envs.config
    if config.split == "training" or env in _walking:
        return
    key = _scenes_of(config)
    twins = sum(not other.envs.closed and _scenes_of(other.envs.config) == key for other in _walking)
    _walking.add(env)
    in_worker = config.shard == (0, 1) and multiprocessing.parent_process() is not None
    if key in _told or not (twins or in_worker):
        return
    _told.add(key)
    where = "in this process" if twins else "in a worker process: if others have one as well, they"
    what = f"{twins + 1} single environments" if twins else "a single environment"
    warnings.warn(
        f"{what} {where} go through the same {len(env.envs.scenes)} scenes of {config.split!r} in the same order, so "
        f"together they see each scene more than once. {_CURE}",
        UserWarning,
        stacklevel=3,
    )


def _scenes_of(config: "EnvConfig") -> tuple[object, ...]:
    return config.dataset, config.root, config.split, config.num_scenes, config.tuning_scenes, config.shard
