"""GlimpseVectorEnv as a Stable-Baselines3 VecEnv. The one module of the library that imports an RL library.

The native vector env steps all scenes in one batched forward; this adapter only rearranges the results
to SB3's conventions: the last observation of an ended episode goes to `terminal_observation` in its info, the
returned one is already the first of the next scene, and `reset_infos` holds that scene's info. `TimeLimit.truncated`
is true where `max_episode_steps` ended an episode; a spent budget terminates it.

With `tensors`, observations stay on the device, for learners whose rollout buffer takes them (agents.ppo.rollout):
dicts of tensors, with maps in that precision, and infos only for episodes that ended, without `terminal_observation`.
SB3's wrappers that compute on observations (VecNormalize with norm_obs=True, VecCheckNan) need arrays.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from canvit_gym.registration import ENVIRONMENTS
from canvit_gym.vector_env import GlimpseVectorEnv, Observation

# The names of a single environment -> those of a vector environment.
_SINGLE = {"action_space": "single_action_space", "observation_space": "single_observation_space"}
_METHODS_BY_ROW = ("render", "action_masks")
"""Methods of a vector environment that return one result per environment."""
_WHOLE_BATCH_METHODS = ("reset", "step", "close")
_RESET_OPTIONS = ("scene", "goal")
"""Each for every environment, or for none."""

TensorPrecision = Literal["float32", "float16"]
_MAP_DIMENSIONS = 4
"""[N, C, m, m]: maps take most of the memory. Vectors stay in float32."""


def make_sb3_env(
    env_id: str, num_envs: int, *, tensors: TensorPrecision | None = None, **kwargs: Any
) -> "GlimpseVecEnv":
    """`num_envs` scenes of a registered id as one VecEnv; kwargs are the environment's.

    Raises:
        ValueError: an id of another package, or an autoreset_mode: SB3 supports one only.
    """
    spec = gym.registry.get(env_id.rpartition(":")[2])
    if spec is not None and not _makes_glimpse_envs(spec):
        raise ValueError(
            f"{env_id!r} is no environment of canvit_gym: use one of {', '.join(ENVIRONMENTS)}, or for others "
            "stable_baselines3.common.env_util.make_vec_env"
        )
    if "autoreset_mode" in kwargs:
        raise ValueError(
            f"autoreset_mode={kwargs['autoreset_mode']!r}: SB3 needs 'same_step', which make_sb3_env sets: leave it out"
        )
    envs = gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", autoreset_mode="same_step", **kwargs)
    return GlimpseVecEnv(envs, tensors=tensors)


def _makes_glimpse_envs(spec: EnvSpec) -> bool:
    """As far as can be known before making one: a vector entry point may be any function."""
    made_by = spec.vector_entry_point
    made_by = load_env_creator(made_by) if isinstance(made_by, str) else made_by
    return made_by is not None and not (isinstance(made_by, type) and not issubclass(made_by, GlimpseVectorEnv))


def _column(value: Any, num_envs: int) -> NDArray[Any]:
    """[N, ...] values; a dict of arrays, which wrappers such as RecordEpisodeStatistics add, becomes [N] dicts."""
    if not isinstance(value, dict):
        return np.asarray(value)
    column = np.empty(num_envs, dtype=object)
    column[:] = _rows(value, num_envs)
    return column


def _rows(info: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Gymnasium's dict of arrays with `_key` masks -> one dict per environment."""
    columns = {key: _column(value, num_envs) for key, value in info.items() if not key.startswith("_")}
    held_by = {key: info.get(f"_{key}", np.ones(num_envs, dtype=np.bool_)) for key in columns}
    if all(held.all() for held in held_by.values()):
        lists = [value.tolist() if value.ndim == 1 else list(value) for value in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, value in columns.items():
        held = np.flatnonzero(held_by[key])
        for row, entry in zip(held, value[held].tolist() if value.ndim == 1 else value[held], strict=True):
            rows[row][key] = entry
    return rows


class GlimpseVecEnv(VecEnv):
    """A GlimpseVectorEnv in SAME_STEP mode, wrapped or not, as an SB3 VecEnv.

    The environments are one object: `get_attr` returns the same value for every index, and `set_attr` and
    `env_method` act on all of them, through the outermost wrapper that has the attribute, or else on the environments
    themselves. `seed(s)` seeds the whole batch with s at the next reset.
    """

    actions: NDArray[Any]

    def __init__(self, envs: VectorEnv[Any, Any, Any], *, tensors: TensorPrecision | None = None) -> None:
        inner = envs.unwrapped
        if not isinstance(inner, GlimpseVectorEnv):
            raise TypeError(f"GlimpseVecEnv adapts a GlimpseVectorEnv, got {type(inner).__name__}")
        if inner.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                "SB3 needs an environment whose ended episodes are replaced within the step, but autoreset_mode is "
                f'{inner.autoreset_mode}: make it with autoreset_mode="same_step", or use make_sb3_env'
            )
        if tensors is not None and envs is not inner:
            raise ValueError("Gymnasium's wrappers work on arrays: leave tensors out, or the wrappers")
        if tensors not in (None, "float32", "float16"):
            raise ValueError(f"tensors must be None, 'float32' or 'float16', got {tensors!r}")
        if tensors is not None and inner.max_episode_steps is not None:
            raise ValueError(
                f"max_episode_steps={inner.max_episode_steps} truncates episodes, and learners need the observation "
                "where one was truncated, which tensors leave out: leave out one of the two, or use a smaller budget"
            )
        self.envs = envs
        self.glimpse_envs = inner
        self.tensors: TensorPrecision | None = tensors
        inner.on_device = tensors is not None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = {**inner.metadata, **self.metadata}  # with the frames per second of videos

    def reset(self) -> Observation:  # type: ignore[override]
        """New scenes everywhere, with the seed and options set by seed() and set_options()."""
        try:
            observation, info = self.envs.reset(seed=self._seeds[0], options=self._merged_options())
        finally:  # those that are refused as well, which the next reset would otherwise refuse again
            self._reset_seeds()
            self._reset_options()
        self.reset_infos = _rows(info, self.num_envs)
        return self._stored(observation)

    def _stored(self, observation: Any) -> Any:
        """With `tensors`, maps are converted to that precision; otherwise the observation is returned unchanged."""
        if self.tensors is None:
            return observation
        dtype = getattr(torch, self.tensors)
        return {
            key: value.to(dtype) if value.is_floating_point() and value.ndim == _MAP_DIMENSIONS else value
            for key, value in observation.items()
        }

    def _merged_options(self) -> dict[str, Any] | None:
        """SB3 keeps options per environment; the vector env takes one dict, with a list of scenes or of goals."""
        given = {key for options in self._options for key in options}
        if bad := sorted(str(key) for key in given - set(_RESET_OPTIONS)):
            raise ValueError(
                f"unknown reset option {', '.join(bad)}; through SB3 there are: {', '.join(_RESET_OPTIONS)}"
            )
        for key in sorted(given):
            if missing := [i for i, options in enumerate(self._options) if key not in options]:
                raise ValueError(f"environments {missing} have no {key} in their options: give every environment one")
        return {key: [options[key] for options in self._options] for key in sorted(given)} or None

    def step_async(self, actions: NDArray[Any]) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, terminated, truncated, info = self.envs.step(self.actions)
        dones = terminated | truncated
        final_obs, final_info = info.pop("final_obs", None), info.pop("final_info", None)
        if self.tensors is not None:
            if not dones.any():
                infos = self._no_infos()
            else:
                infos = _rows(cast(dict[str, Any], final_info), self.num_envs)
                ended = np.flatnonzero(dones)
                fresh = {key: value[ended] for key, value in info.items() if not key.startswith("_")}
                for row, begun in zip(ended, _rows(fresh, len(ended)), strict=True):
                    self.reset_infos[row] = begun
            return self._stored(observation), rewards.astype(np.float32), dones, infos
        infos = _rows({k: v for k, v in info.items() if not k.startswith("_final")}, self.num_envs)
        if dones.any():
            ended = _rows(cast(dict[str, Any], final_info), self.num_envs)
            for row in np.flatnonzero(dones):
                self.reset_infos[row] = infos[row]
                # Gymnasium puts the ended episode's statistics (RecordEpisodeStatistics) into the next one's info.
                statistics = {key: infos[row].pop(key) for key in ("episode",) if key in infos[row]}
                infos[row] = statistics | ended[row] | {"terminal_observation": cast(Any, final_obs)[row]}
        for row_info, cut in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            row_info["TimeLimit.truncated"] = cut  # by max_episode_steps; the budget is part of the task
        return observation, rewards.astype(np.float32), dones, infos

    def _no_infos(self) -> list[dict[str, Any]]:
        return [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One RGB frame per environment; needs render_mode="rgb_array"."""
        return cast(Sequence[NDArray[np.uint8]], self.envs.render())

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if attr_name in _SINGLE:
            value = getattr(self.envs, _SINGLE[attr_name])
        else:
            value = getattr(self._holding(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._require_all(f"set_attr({attr_name!r})", indices)
        setattr(self._holding(attr_name), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """`render` and `action_masks` return each index its own row; any other method runs once, for all indices."""
        if method_name in _WHOLE_BATCH_METHODS:
            raise ValueError(
                f"env_method({method_name!r}) would {method_name} single environments, but these advance together: "
                f"call {method_name}() of the VecEnv"
            )
        result = getattr(self._holding(method_name), method_name)(*method_args, **method_kwargs)
        if method_name in _METHODS_BY_ROW and result is not None:  # None: a window shows the frames
            return [result[i] for i in self._get_indices(indices)]
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the environments are wrapped in a Gymnasium vector wrapper of that class."""
        found, envs = False, self.envs
        while isinstance(envs, VectorWrapper):
            found = found or isinstance(envs, cast(type, wrapper_class))
            envs = envs.env
        return [found for _ in self._get_indices(indices)]

    def _holding(self, name: str) -> VectorEnv[Any, Any, Any]:
        """The outermost wrapper that defines an attribute of this name; the environments if none does."""
        envs = self.envs
        while isinstance(envs, VectorWrapper):
            own = set(type(envs).__mro__) - set(VectorWrapper.__mro__)
            if name in vars(envs) or any(name in vars(layer) for layer in own):
                return envs
            envs = envs.env
        return envs

    def _require_all(self, what: str, indices: VecEnvIndices) -> None:
        if len(set(self._get_indices(indices))) < self.num_envs:
            raise ValueError(
                f"{what} for environments {list(self._get_indices(indices))} only: the {self.num_envs} environments "
                "are one object, so leave indices out"
            )
