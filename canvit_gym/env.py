"""The single environments: thin views of a vector env of one. Each class's docstring is its documentation page."""

from functools import cache
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
from canvit_pytorch import RecurrentState
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from canvit_gym.actions import Actions
from canvit_gym.pages import page
from canvit_gym.registration import require_own_dataset
from canvit_gym.scenes.datasets import DATASETS, DatasetSpec
from canvit_gym.sharding import note_walk
from canvit_gym.vector_env import (
    RENDER_MODES,
    GlimpseVectorEnv,
    Info,
    Observation,
    after_each_glimpse,
    plain_spec,
    with_shard,
)


class GlimpseEnv(gym.Env[Observation, Any]):
    """One scene at a time. Actions, observations, rewards and arguments are those of GlimpseVectorEnv."""

    _spec: EnvSpec | None = None
    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 2}
    defaults: ClassVar[dict[str, Any]] = {}
    """Default keyword arguments of this class's id."""

    def __init__(self, *, render_mode: str | None = None, **kwargs: Any) -> None:
        if own := self.defaults.get("dataset"):
            require_own_dataset(own, kwargs.get("dataset", own))
        kwargs = {**self.defaults, **kwargs}
        if vector_only := sorted({"num_envs", "autoreset_mode"} & set(kwargs)):
            raise TypeError(f"{', '.join(vector_only)}: only for vector environments; use gymnasium.make_vec instead")
        self.envs = GlimpseVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode, **kwargs)
        self.render_mode = render_mode
        self.action_space = self.envs.single_action_space
        self.observation_space = self.envs.single_observation_space
        self._ended = False

    @property
    def spec(self) -> EnvSpec | None:
        """The spec that gymnasium.make sets, in plain JSON values."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._spec = None if spec is None else plain_spec(spec, self.envs.config)

    @property
    def actions(self) -> Actions:
        """How actions are decoded into viewpoints: see GlimpseVectorEnv.actions."""
        return self.envs.actions

    @property
    def shard(self) -> tuple[int, int]:
        """The share of the scenes: see GlimpseVectorEnv.shard."""
        return self.envs.shard

    @shard.setter
    def shard(self, shard: tuple[int, int]) -> None:
        self.envs.shard = shard
        self._spec = None if self._spec is None else with_shard(self._spec, self.envs.config)

    @property
    def state(self) -> RecurrentState:
        """The backbone's state, a batch of one. Valid until the next step or reset: clone it to keep it."""
        return self.envs.state

    @property
    def np_random(self) -> np.random.Generator:
        """The generator that draws scenes and random first glimpses."""
        return self.envs.np_random

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self.envs.np_random = value

    @property
    def np_random_seed(self) -> int:
        """The seed of np_random; -1 where it was set."""
        return cast(int, self.envs.np_random_seed)

    @property
    def _np_random(self) -> np.random.Generator | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Gymnasium's checker reads this attribute."""
        return self.envs._np_random

    @property
    def provenance(self) -> dict[str, Any]:
        """Where checkpoint, probe and scenes come from: see GlimpseVectorEnv.provenance."""
        return self.envs.provenance

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin a new episode. `options={"scene": index}` chooses the scene, `{"goal": number}` the goal."""
        if isinstance(options, dict) and "reset_mask" in options:
            raise ValueError("options['reset_mask'] only exists in vector environments: leave it out")
        observation, info = self.envs.reset(seed=seed, options=options)
        self._ended = False
        if not options:
            note_walk(self)
        return {k: v[0] for k, v in observation.items()}, self._info(info)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Take one glimpse."""
        if self._ended:
            raise RuntimeError("the episode has ended: call reset() to begin the next one")
        try:
            batch = np.asarray(action)[None]
        except ValueError as error:  # a ragged list
            raise ValueError(f"an action of {self.action_space} must be one array, got {action!r}") from error
        if batch.shape[1:] != self.action_space.shape:
            raise ValueError(
                f"an action of {self.action_space} has shape {self.action_space.shape}, "
                f"got {batch.shape[1:]}: {action!r}"
            )
        observation, rewards, terminated, truncated, info = self.envs.step(batch)
        self._ended = bool(terminated[0] or truncated[0])
        return (
            {k: v[0] for k, v in observation.items()},
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            self._info(info),
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """[number of actions]: which actions are allowed now; see GlimpseVectorEnv.action_masks."""
        return self.envs.action_masks()[0]

    def _info(self, values: Info) -> Info:
        """The info of environment 0, with the same keys at every step, as recorders of data sets require. Curves repeat
        the last value where no glimpse was taken yet.
        """
        info = {k: v[0] for k, v in values.items() if not k.startswith("_") and values[f"_{k}"][0]}
        episodes = self.envs.episodes
        for name in self.envs.tracked:
            curve = after_each_glimpse(episodes.curves[name], episodes.glimpses, np.ones(1, dtype=np.bool_))
            info.setdefault(f"{name}_curve", curve[0])
        return info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """An RGB frame with render_mode="rgb_array". None in "human" mode, where a window is updated at every step."""
        frames = self.envs.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self.envs.close()


def environment_class(spec: DatasetSpec) -> type[GlimpseEnv]:
    """The environment class of a data set, with its id's defaults and its documentation page as docstring."""
    return type(
        spec.class_name, (GlimpseEnv,), {"__doc__": page(spec), "__module__": __name__, "defaults": spec.kwargs}
    )


@cache
def _class_of(dataset: str) -> type[GlimpseEnv]:
    return environment_class(DATASETS[dataset])


def __getattr__(name: str) -> type[GlimpseEnv]:
    """FashionSegmentationEnv and the like, one class per data set: the entry points of the ids."""
    for dataset, spec in DATASETS.items():
        if spec.class_name == name:
            return _class_of(dataset)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
