"""A pool of episodes on disk: states of training scenes, with the gains of viewpoints that were tried in each.

    python -m agents.pool --env CanViT/FashionSearch-v0 --states 24576

Most of what a learner of gains costs are the backbone's forward passes, and they are the same for every seed, and for
every algorithm that has the same reward, observations and table of viewpoints. A pool is made once, in blocks; an
interrupted command continues with the next block, and a larger `--states` adds blocks. Learners make a pool that they
need and that is missing.

A learner has to predict gains in the states that its own policy reaches. In half of the states episodes therefore go on
as the environment's best hand-coded policy would, in a quarter with the best of the tried viewpoints, and in the others
with a random one. Environments without such a policy have the last two in equal shares. Maps are stored in float16.

A pool depends on the environment's options, the checkpoint, the probe and the number of candidates; each combination
has its own directory, below `$CANVIT_GYM_CACHE/pools`.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from agents.algorithms import DEFAULT, load_hyperparameters
from agents.behaviours import follow_policy, look_anywhere, mixture, take_best
from agents.supervised import num_to_learn_from
from agents.training_state import preserved_random_state
from agents.tried import TriedViewpoints, collect, require_table
from canvit_gym.atomic import replacing, write_json
from canvit_gym.checks import integer
from canvit_gym.command_line import GOES_ON, env_config, json_object, run_command
from canvit_gym.config import EnvConfig, override
from canvit_gym.policies.registry import make_policy
from canvit_gym.provenance import plain, provenance
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.decoding import UnreadableSceneError
from canvit_gym.scenes.prepared import cache_dir
from canvit_gym.scenes.source import SceneSource, StreamedSource
from canvit_gym.vector_env import GlimpseVectorEnv

log = logging.getLogger(__name__)

BLOCK_EPISODES = 1024
NUM_ENVS = 64
SEED = 0
SHARES = {3: (0.5, 0.25, 0.25), 2: (0.5, 0.5)}
"""By the number of behaviours: the shares of the states in which episodes go on as a hand-coded policy would, with the
best of the tried viewpoints, and with a random one."""
_IN_OBSERVATION = "observation/"
_IRRELEVANT = ("device", "root", "cache", "workers", "track_score", "compile")
"""Options of an environment that a pool does not depend on, but for rounding."""
_VERSION = 1
"""Raised when a pool of the same options would hold other episodes or gains."""


@dataclass(frozen=True)
class PoolConfig:
    env: str = "CanViT/FashionSegmentation-v0"
    """Environment id; its options are those of the algorithm's entry."""
    algo: str = DEFAULT
    env_kwargs: str | None = None
    """Further keyword arguments of the environment, as JSON."""
    states: int = 24_576
    """At least this many states; whole blocks are made."""
    candidates: int = 8
    """Number of viewpoints tried in every state."""
    progress: bool = True


def load_pool(config: EnvConfig, *, states: int, candidates: int, progress: bool = False) -> TriedViewpoints:
    """The first `states` states (of whole episodes) of the environment's pool. Makes what is missing of it.

    A pool that another process is making is waited for. The random generators stay as they are.

    Raises:
        ValueError: continuous actions, or fewer viewpoints than candidates.
        OSError: the pool cannot be written.
    """
    integer(1)("states", states)
    integer(2)("candidates", candidates)
    require_table(config, candidates)
    with preserved_random_state():  # a run that makes the pool must equal one that finds it
        paths = _make_missing_blocks(config, states=states, candidates=candidates, progress=progress)
    blocks = [_load(path) for path in paths]
    decisions = config.num_decisions
    surplus = sum(map(len, blocks)) - math.ceil(states / decisions) * decisions
    blocks[-1] = blocks[-1].first(len(blocks[-1]) - surplus)
    return blocks[0].and_then(*blocks[1:])


def _make_missing_blocks(config: EnvConfig, *, states: int, candidates: int, progress: bool) -> list[Path]:
    """The files of the blocks that hold these states; those that are missing are made."""
    envs = GlimpseVectorEnv(NUM_ENVS, autoreset_mode="disabled", **vars(config))
    try:
        directory = _directory(envs, candidates)
        of_block = BLOCK_EPISODES * config.num_decisions
        paths = [directory / f"block-{index:05d}.safetensors" for index in range(math.ceil(states / of_block))]
        with FileLock(directory / "pool.lock"):
            missing = [index for index, path in enumerate(paths) if not path.exists()]
            total = len(missing) * of_block
            with tqdm(total=total, desc="Pool", unit="state", disable=None if progress and missing else True) as bar:
                for index in missing:
                    _save(_make_block(envs, index, candidates=candidates, advance=bar.update), paths[index])
            if missing:
                write_json(directory / "provenance.json", provenance())
    finally:
        envs.close()
    return paths


def split(pool: TriedViewpoints) -> tuple[TriedViewpoints, TriedViewpoints]:
    """(states to learn from, states held out), whole episodes each.

    Raises:
        ValueError: the pool has a single episode.
    """
    episodes, decisions = pool.rewards.shape
    if episodes < 2:
        raise ValueError(
            f"a pool of {len(pool)} states is a single episode, and some must be held out: ask for more states"
        )
    states = decisions * num_to_learn_from(episodes)
    return pool.first(states), pool.after(states)


def _directory(envs: GlimpseVectorEnv, candidates: int) -> Path:
    options = {name: value for name, value in vars(envs.config).items() if name not in _IRRELEVANT}
    identity = {
        "env": plain(options),
        "checkpoint": envs.episodes.backbone.sha256,
        "probe": envs.task.probe_sha256,
        "scenes": envs.episodes.scenes.fingerprint,
        "candidates": candidates,
        "block_episodes": BLOCK_EPISODES,
        "num_envs": NUM_ENVS,
        "followed": _followed_policy(envs.config),
        "shares": SHARES,
        "seed": SEED,
        "version": _VERSION if _is_of_all_scenes(envs.config) else _VERSION + 1,
    }
    text = json.dumps(identity, sort_keys=True)
    directory = cache_dir() / "pools" / f"{envs.config.dataset}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not (directory / "pool.json").exists():
        write_json(directory / "pool.json", identity)
    return directory


def _is_of_all_scenes(config: EnvConfig) -> bool:
    """Pools of a shard, or without unreadable scenes, were once made of all scenes, and are not to be found again."""
    return config.shard == (0, 1) and config.unreadable == "raise"


def _followed_policy(config: EnvConfig) -> str | None:
    skill = DATASETS[config.dataset].skill
    return None if skill is None else skill.opponents[0]


def _make_block(
    envs: GlimpseVectorEnv, index: int, *, candidates: int, advance: Callable[[int], Any]
) -> TriedViewpoints:
    """Blocks follow each other in one pass over the training scenes, as far as there are enough of them."""
    rng = np.random.default_rng([SEED, index])
    envs.reset(seed=int(rng.integers(2**31)))
    parts = [take_best(envs, rng), look_anywhere(envs, rng)]
    if (spec := _followed_policy(envs.config)) is not None:
        policy = make_policy(spec, config=envs.config, num_glimpses=envs.config.budget)
        parts = [follow_policy(policy, envs), *parts]
    scenes = _readable(envs.episodes.scenes, _scenes_of_block(envs, index).reshape(-1, envs.num_envs))
    return collect(
        envs, candidates=candidates, states=BLOCK_EPISODES * envs.config.num_decisions, rng=rng,
        behaviour=mixture(parts, SHARES[len(parts)], rng), advance=advance, scenes=scenes,
    )  # fmt: skip


def _scenes_of_block(envs: GlimpseVectorEnv, index: int) -> NDArray[np.int64]:
    """[BLOCK_EPISODES]: a part of an endless sequence of shuffled passes over the scenes of the environment's shard.

    Episodes that are held out therefore show scenes that no other block shows, unless a pool is longer than a pass.
    """
    first_scene, every = envs.shard
    scenes = np.arange(first_scene, len(envs.episodes.scenes), every)
    num_scenes = len(scenes)
    first, last = index * BLOCK_EPISODES, (index + 1) * BLOCK_EPISODES
    passes = range(first // num_scenes, (last - 1) // num_scenes + 1)
    shuffled = np.concatenate([np.random.default_rng([SEED, 0, number]).permutation(num_scenes) for number in passes])
    return scenes[shuffled[first - passes[0] * num_scenes :][:BLOCK_EPISODES]]


def _readable(source: SceneSource, batches: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The batches of scenes [batches, num_envs] one by one. With unreadable="skip", a scene that cannot be read is
    replaced by the one before it, so that all blocks keep their own scenes.

    Raises:
        UnreadableSceneError: none of the first batch can be read.
    """
    last: int | None = None
    for batch in batches:
        if isinstance(source, StreamedSource) and source.skips_unreadable:
            readable = source.readable(batch)
            if last is None:
                if not readable.any():
                    raise UnreadableSceneError(f"none of {len(batch)} scenes of {source.name} can be read")
                last = int(batch[readable.argmax()])
            for place in np.flatnonzero(~readable):
                batch[place] = last if place == 0 else batch[place - 1]
            last = int(batch[-1])
        yield batch


def _save(block: TriedViewpoints, path: Path) -> None:
    tensors = {_IN_OBSERVATION + key: value.cpu().contiguous() for key, value in block.observations.items()}
    tensors |= {name: getattr(block, name).contiguous() for name in ("chosen", "gains", "rewards")}
    with replacing(path) as partial:
        save_file(tensors, partial)


def _load(path: Path) -> TriedViewpoints:
    try:
        tensors: Mapping[str, Any] = load_file(path)
        return TriedViewpoints(
            observations={
                key.removeprefix(_IN_OBSERVATION): value
                for key, value in tensors.items()
                if key.startswith(_IN_OBSERVATION)
            },
            **{name: tensors[name] for name in ("chosen", "gains", "rewards")},
        )
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it will be made again") from error


def main(config: PoolConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    hyper = load_hyperparameters(config.env, {}, algo=config.algo)
    env_kwargs = override(hyper.env_kwargs, json_object(config.env_kwargs, option="--env-kwargs"))
    pool = load_pool(
        env_config(config.env, env_kwargs), states=config.states, candidates=config.candidates, progress=config.progress
    )
    spread = (pool.gains - pool.gains.mean(dim=1, keepdim=True)).square().mean().sqrt()
    log.info("%s states; gains differ by %.4f within a state (standard deviation)", f"{len(pool):,}", spread)


if __name__ == "__main__":
    run_command(main, PoolConfig, description=__doc__, if_interrupted=GOES_ON)
