"""The state of a training run between two updates: everything that the next update depends on.

It only contains tensors, numbers and strings, written by torch.save and read with weights_only=True, so that nothing is
ever unpickled. A restored run continues as if it had never stopped, bitwise identically on the CPU.

Environments are restored in one of two ways. If episodes always end with the rollout (no stop action, no random first
glimpse), the scenes and goals that all environments have just begun are recorded and begun again. Otherwise episodes
are cut: the order of scenes and the random generator are recorded, and then all environments are reset, both in the run
that continues and in one that resumes.
"""

import ast
import io
import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.learner import State
from canvit_gym.atomic import replacing
from canvit_gym.config import EnvConfig
from canvit_gym.observations import GAZE_LENGTH
from canvit_gym.sb3 import GlimpseVecEnv
from canvit_gym.vector_env import GlimpseVectorEnv


def random_state() -> State:
    """The state of the global random generators of PyTorch, NumPy and Python."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(words), next_gauss],
    }


def set_random_state(state: State) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))


def generator_state(generator: np.random.Generator) -> str:
    """Its state as text, since its integers have more than 64 bits."""
    return json.dumps(generator.bit_generator.state)


def set_generator_state(generator: np.random.Generator, state: str) -> None:
    generator.bit_generator.state = ast.literal_eval(state)  # reads JSON, and what earlier versions wrote with str()


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the generators afterwards, as if nothing had been drawn in between."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def begin_episodes(model: BaseAlgorithm, env: VecEnv, observation: Any = None) -> None:
    """Begin the next rollout of a model of Stable-Baselines3 with new episodes, or with those that have just begun with
    this observation."""
    model._last_obs = cast(Any, env.reset()) if observation is None else observation
    model._last_episode_starts = np.ones(env.num_envs, dtype=np.bool_)


def cut_episodes(model: BaseAlgorithm, env: VecEnv, config: EnvConfig) -> None:
    """Call before every rollout: begin it with new episodes, unless all have ended with the last one. Restored
    environments go on from the order of their scenes, not within an episode."""
    if not ends_with_rollouts(config):
        begin_episodes(model, env)


def capture_environments(env: GlimpseVecEnv) -> State:
    """The state of the environments, between two rollouts."""
    envs = env.glimpse_envs
    whole = ends_with_rollouts(envs.config)
    if whole:
        begun = int(envs.config.first_glimpse is not None)
        assert (envs.episodes.glimpses == begun).all(), f"a rollout ended within episodes: {envs.episodes.glimpses}"
    begun_again: State = {"scenes": envs.episodes.scene.tolist() if whole else []}
    if whole and envs.episodes.goal is not None:
        begun_again["goals"] = envs.episodes.goal.tolist()
    return capture_native(envs) | begun_again


def restore_environments(env: VecEnv, state: State) -> Any:
    """Restore captured environments, through the wrappers of `env`. Returns the first observation."""
    inner = glimpse_env(env)
    inner.seed(0)  # creates a generator, whose state is replaced below
    if state["scenes"]:
        begun = {"scene": state["scenes"]}
        if "goals" in state:
            begun["goal"] = state["goals"]
        elif inner.glimpse_envs.task.goals is not None:
            warnings.warn(
                "this training state was saved by a version that left out the goals of the episodes, so they are drawn "
                "anew: the run continues, but not as it would have without the interruption",
                stacklevel=2,
            )
        inner.set_options([dict(zip(begun, values, strict=True)) for values in zip(*begun.values(), strict=True)])
    observation = env.reset()
    restore_native(inner.glimpse_envs, state)
    return observation


def capture_native(envs: GlimpseVectorEnv) -> State:
    """The state that determines the next scenes, goals and first glimpses."""
    upcoming = envs.upcoming
    return {
        "scene_order": {
            "generator": json.dumps(upcoming["generator"]),
            "pass": torch.from_numpy(upcoming["scenes"]),
        }
    }


def restore_native(envs: GlimpseVectorEnv, state: State) -> None:
    """Restore it, in environments that have been reset."""
    order = state["scene_order"]
    envs.upcoming = {"generator": json.loads(order["generator"]), "scenes": order["pass"].numpy()}


def glimpse_env(env: VecEnv) -> GlimpseVecEnv:
    """The environments themselves, under their wrappers."""
    inner = env.unwrapped
    assert isinstance(inner, GlimpseVecEnv), inner
    return inner


def ends_with_rollouts(config: EnvConfig) -> bool:
    """Whether every episode ends with a rollout of whole episodes, and the next one only depends on its scene."""
    return not config.allow_stop and config.first_glimpse != "random"


def check_revisits(config: EnvConfig, *, inhibition: float | None = None) -> None:
    """Raise ValueError if the environment has revisit=False and the learner does not mask viewpoints taken before.

    inhibition: that of the network, which masks the viewpoints in `gaze`.
    """
    masked = inhibition is not None and "gaze" in config.observations and config.num_decisions <= GAZE_LENGTH
    if not config.revisit and not masked:
        raise ValueError(
            "with revisit=False the environment does not allow viewpoints twice, but this learner does not mask them: "
            "use --algo maskable_ppo, q_regression or dime, or ppo with policy_kwargs inhibition 0.0, 'gaze' among the "
            f"observations and a budget of at most {GAZE_LENGTH} decisions (got {config.num_decisions})"
        )


def check_whole_episodes(config: EnvConfig, n_steps: int, *, name: str = "n_steps") -> None:
    """Raise ValueError if rollouts of `n_steps` would end in the middle of episodes although they could be whole, or if
    they are too short for any episode to end in, where episodes begin anew with every rollout."""
    decisions = config.num_decisions
    if not ends_with_rollouts(config) and n_steps < decisions:
        raise ValueError(
            f"{name} must be at least the {decisions} decisions of an episode (budget {config.budget}), since every "
            f"rollout begins with new episodes; got {n_steps}. Try --hyper '{{\"{name}\": {decisions}}}'"
        )
    if ends_with_rollouts(config) and n_steps % decisions:
        raise ValueError(
            f"{name} must be a multiple of the {decisions} decisions of an episode (budget "
            f"{config.budget}), so that rollouts hold whole episodes; got {n_steps}. Try --hyper "
            f"'{{\"{name}\": {max(1, round(n_steps / decisions)) * decisions}}}'"
        )


def save_state(path: Path, state: State) -> None:
    """Write the state atomically."""
    with replacing(path) as partial:
        torch.save(state, partial)


def load_state(path: Path) -> State:
    """Read the state.

    Raises:
        ValueError: the file is damaged.
    """
    content = io.BytesIO(path.read_bytes())  # from here on every error, even OSError, is about the content
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch may raise anything for damaged files
        raise ValueError(_damaged(path)) from error
    if not isinstance(state, dict) or "num_timesteps" not in state:
        raise ValueError(_damaged(path))
    return state


def _damaged(path: Path) -> str:
    return (
        f"{path} is damaged: it is not a training state. Restore an intact copy; or delete it (and result.json, if the "
        "run was finished) and --resume to train from the beginning with the same settings; or choose another run "
        "directory. The policies in best/ and last/ may still be intact."
    )
