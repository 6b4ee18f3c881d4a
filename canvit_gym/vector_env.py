"""GlimpseVectorEnv: N scenes stepped through one batched CanViT forward. Everything happens here."""

from dataclasses import replace
from inspect import cleandoc
from typing import Any, cast

import numpy as np
import torch
from canvit_pytorch import RecurrentState
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from canvit_gym.actions import DiscreteActions, require_allowed, validated
from canvit_gym.assembly import (
    build_actions,
    build_backbone,
    build_layout,
    build_scenes,
    build_task,
    require_scene_size,
)
from canvit_gym.checks import integer, optional
from canvit_gym.config import EnvConfig, config_from_kwargs
from canvit_gym.episodes import EpisodeBatch, EpisodeView, Rows, to_host
from canvit_gym.pages import arguments
from canvit_gym.rendering import Window, canvas_colours, display_exists, draw_frame, tile_frames
from canvit_gym.rewards import REWARDS, step_reward
from canvit_gym.scenes.sampler import SceneSampler, next_scenes
from canvit_gym.scenes.source import StreamedSource
from canvit_gym.seeding import seeded
from canvit_gym.sharding import warn_in_worker
from canvit_gym.tasks.goals import checked_goals
from canvit_gym.viewpoints import first_viewpoints

Observation = dict[str, NDArray[Any]]
Info = dict[str, Any]

_AUTORESET = {mode.name.lower(): mode for mode in AutoresetMode}
_OPTIONS = ("scene", "goal", "reset_mask")
_RENDER_MODES = ("rgb_array", "human")
SCENES_AHEAD = 2
"""Scenes made ready ahead of need, for every environment: those of the next episode, and of the one after it."""
RENDER_MODES = list(_RENDER_MODES if display_exists() else _RENDER_MODES[:1])
"""What this machine can do: "human" opens a window where one exists."""


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    if not isinstance(mode, str) or mode not in _AUTORESET:
        raise ValueError(f"unknown autoreset_mode {mode!r}; choose one of {', '.join(_AUTORESET)}")
    return _AUTORESET[mode]


def after_each_glimpse(
    curve: NDArray[np.float32], glimpses: NDArray[np.int64], ended: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """[N, budget + 1] by glimpses taken -> [N, budget] after each; an episode stopped early keeps its last value.

    No NaN: two infos that hold the same must compare equal, as Gymnasium's checkers do. Rows not ended are zero.
    """
    taken = np.minimum(np.arange(1, curve.shape[1]), glimpses[:, None])
    return np.where(ended[:, None], np.take_along_axis(curve, taken, axis=1), 0)


def _make_sampler(config: EnvConfig, num_scenes: int) -> SceneSampler:
    return SceneSampler(num_scenes=num_scenes, shard=config.shard, shuffle=config.split == "training")


class GlimpseVectorEnv(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """Active vision on `num_envs` scenes at a time: an action is a viewpoint, an observation what the canvas holds.

    ## Description
    Each scene is seen through a sequence of glimpses by a frozen CanViT, which remembers what it saw on a
    scene-wide canvas. After each glimpse a frozen linear probe reads the canvas; the reward is how much better
    it reads. The agent decides where the next glimpse is taken. Stable-Baselines3 takes it through
    `canvit_gym.sb3.make_sb3_env`.

    The pages of the single environments have what this one leaves out: the keys of observations with shapes and
    ranges, the rewards, and the default of every argument. For one of them:
    `from canvit_gym.env import FashionSegmentationEnv; print(FashionSegmentationEnv.__doc__)`.

    ## Action Space
    See canvit_gym.actions. `grid`: Discrete over grid_scales x grid_centers x grid_centers; `continuous`:
    Box(-1, 1, (3,)); `quadtree`: Discrete over the tiles of levels 0..quadtree_levels. With allow_stop, one
    more action (or number) ends the episode at no cost.

    ## Observation Space
    A Dict of the keys asked for: see canvit_gym.observations.

    ## Rewards
    See canvit_gym.rewards.

    ## Starting State
    A scene with an empty canvas, then the first glimpse (the full scene by default) taken before the agent acts.

    ## Episode End
    Terminated when the budget is spent (the first glimpse counts) or the agent stops. The budget is part of the task,
    and `time` shows it: nothing is truncated, unless `max_episode_steps` (Gymnasium's own keyword) asks for it.

    ## Arguments
    $arguments

    `autoreset_mode`: "next_step" (Gymnasium's default), "same_step" or "disabled". Without `track_score` a segmentation
    counts its score, at scene size, only where the reward needs it; a classification's is always there.

    ## Info
    `scene` (index), `viewpoint` (row, col, scale), `glimpses` (taken), `loss`, `score` (where tracked); when an
    episode ends also `loss_curve` and `score_curve`, [budget] after each glimpse (an episode that was stopped
    early keeps its last value to the end of the curve). Of discrete actions `action_mask`, [number of actions] int8: 1
    where an action may be chosen, which is everywhere unless revisit=False. Of goal-conditioned tasks `goal`, the
    number of what is asked for. A scene without any label has loss 0 and score 0.

    ## Determinism
    The same seed, actions and number of environments give the same numbers to the bit on one machine. A scene
    in a batch of 64 and the scene alone agree to float32 rounding only (1e-3 on the canvas): matrix products of
    other shapes add in another order. Nothing else couples the scenes of a batch.

    ## Reset options
    `{"scene": index or [num_envs] indices}` picks scenes; `{"reset_mask": [num_envs] booleans}` resets some.
    `{"goal": number or [num_envs] numbers}` asks for something, in goal-conditioned tasks. A goal that is not in the
    scene is refused.

    ## Examples
    >>> import gymnasium as gym
    >>> import canvit_gym
    >>> envs = gym.make_vec("CanViT/FashionSegmentation-v0", num_envs=3, num_scenes=16, split="test", budget=2)
    >>> observation, info = envs.reset(seed=0)
    >>> info["scene"].tolist(), info["glimpses"].tolist()
    ([0, 1, 2], [1, 1, 1])

    NEXT_STEP: episodes end, and the step after that only begins the next scenes.

    >>> observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    >>> terminated.tolist(), info["_loss_curve"].tolist()
    ([True, True, True], [True, True, True])
    >>> observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    >>> reward.tolist(), terminated.tolist(), info["scene"].tolist()
    ([0.0, 0.0, 0.0], [False, False, False], [3, 4, 5])

    An action is a viewpoint, and back.

    >>> viewpoints, stop = envs.unwrapped.actions.decode(envs.action_space.sample())
    >>> viewpoints.shape, stop.tolist()
    ((3, 3), [False, False, False])
    >>> top_left_quarter = envs.unwrapped.actions.encode(np.array([[-0.5, -0.5, 0.5]]))
    >>> envs.unwrapped.actions.decode(top_left_quarter)[0].tolist()
    [[-0.5, -0.5, 0.5]]

    Choose scenes, and reset some environments only.

    >>> observation, info = envs.reset(options={"scene": 7})
    >>> info["scene"].tolist()
    [7, 7, 7]
    >>> mask = np.array([False, True, False])
    >>> observation, info = envs.reset(options={"scene": [7, 9, 7], "reset_mask": mask})
    >>> info["scene"].tolist(), info["_scene"].tolist()
    ([7, 9, 7], [False, True, False])
    >>> envs.close()

    ## Version History
    v0: first release.
    """

    _spec: EnvSpec | None = None
    metadata: dict[str, Any] = {
        "render_modes": RENDER_MODES,
        "render_fps": 2,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_envs = num_envs = integer(1)("num_envs", num_envs)
        self.max_episode_steps = optional(integer(1))("max_episode_steps", max_episode_steps)
        if render_mode is not None and render_mode not in _RENDER_MODES:
            raise ValueError(f"unknown render_mode {render_mode!r}; choose one of {', '.join(_RENDER_MODES)}")
        self.config: EnvConfig = config_from_kwargs(kwargs)
        self.render_mode = render_mode
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}

        # Scenes first: a wrong root is told at once, not after a download of the checkpoint.
        self.scenes = build_scenes(self.config, batched=num_envs > 1)
        self.backbone = build_backbone(self.config)
        require_scene_size(self.config, self.backbone, self.scenes)
        self.task = build_task(self.config, self.backbone, self.scenes.classes)
        self.actions = build_actions(self.config)
        self.layout = build_layout(self.config, self.backbone, self.task)
        self._potential = REWARDS[self.config.reward].potential
        asked = {*self.task.in_every_info, self._potential, *(["score"] if self.config.track_score else [])}
        self.tracked = tuple(name for name in self.task.potentials if name in asked)
        """Potentials that every info holds: those asked for, and those that cost nothing. No others are measured."""
        drawn = {"score"} if render_mode is not None else set()  # for the curve
        self.episodes = EpisodeBatch(
            num=num_envs,
            backbone=self.backbone,
            task=self.task,
            layout=self.layout,
            scenes=self.scenes,
            budget=self.config.budget,
            potentials=tuple(name for name in self.task.potentials if name in {*self.tracked, *drawn}),
        )
        self._sampler = _make_sampler(self.config, len(self.scenes))
        self.single_action_space = self.actions.space
        self.single_observation_space = self.layout.space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.on_device = False
        """For learners in this process (see canvit_gym.sb3): observations are the tensors of observation_tensors(), and
        final observations are left out, since an episode that terminates has no use for its last one."""
        self._started = False
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        """Of the agent, in the episodes as they stand."""
        self._window = None
        if render_mode == "human":
            self._window = Window(self.scenes.name, fps=self.metadata["render_fps"])

    @property
    def spec(self) -> EnvSpec | None:
        """As make_vec notes it, in what JSON holds: no enum and none of numpy's numbers."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if spec is not None:
            plain = {**self.config.to_json(), "num_envs": self.num_envs}
            kwargs = {
                k: plain.get(k, v) if isinstance(v, np.generic | np.ndarray) else v for k, v in spec.kwargs.items()
            }
            if "autoreset_mode" in kwargs:
                kwargs["autoreset_mode"] = self.autoreset_mode.name.lower()
            spec = replace(spec, kwargs=kwargs)
        self._spec = spec

    @property
    def shard(self) -> tuple[int, int]:
        """The share of the scenes: (i, n) is every n-th one from the i-th. Another one begins with the next scenes."""
        return self.config.shard

    @shard.setter
    def shard(self, shard: tuple[int, int]) -> None:
        config = replace(self.config, shard=shard)
        self._sampler = _make_sampler(config, len(self.scenes))
        self.config = config

    @property
    def state(self) -> RecurrentState:
        """The backbone's state of every scene. Valid until the next step or reset; clone to keep it, to
        change it, or to train on it."""
        self._require_open()
        self._require_started()
        return cast(RecurrentState, self.episodes.state)

    @property
    def provenance(self) -> dict[str, Any]:
        """What was loaded, as JSON values: checkpoint and probe (name, repo, revision, sha256), geometry, scenes."""
        return {"checkpoint": self.backbone.record, "probe": self.task.record, "scenes": self.scenes.name}

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin new episodes in every environment, or in those of `options["reset_mask"]`.

        The same seed gives the same scenes, observations and rewards.
        """
        self._require_open()
        if not options:
            warn_in_worker(self.config, len(self.scenes))
        rows, scene, goal = self._reset_options({} if options is None else options)
        super().reset(seed=seed)
        if seed is not None:
            self._sampler.restart()
        self._begin(rows, scene, goal)
        look = self._first_viewpoints(len(rows))
        if look is not None:
            self.episodes.step_rows(rows, look)
        self._started = True
        self._ended[rows] = False
        self._steps[rows] = 0
        self._show()
        return self._observation(), self._infos(np.isin(self.episodes.all_rows, rows), ended=None)

    def step(self, actions: NDArray[Any]) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], Info]:
        """Take one glimpse in every environment, all in one forward; see autoreset_mode for those that ended."""
        self._require_open()
        self._require_started()
        if self.autoreset_mode == AutoresetMode.DISABLED and self._ended.any():
            raise RuntimeError(
                f"environments {np.flatnonzero(self._ended).tolist()} have ended: call "
                'reset(options={"reset_mask": terminations | truncations}) before step, or use another autoreset_mode'
            )
        # Ended environments are left only in NEXT_STEP mode: their scene is replaced in this step, whatever the action,
        # which comes back as zeros (never a stop).
        fresh = self._ended.copy()
        chosen = validated(self.single_action_space, actions, num_envs=self.num_envs, ignored=fresh)
        if not self.config.revisit:
            require_allowed(chosen, self.action_masks(), ignored=fresh)
        viewpoints, stop = self.actions.decode(chosen)
        looking = ~stop
        if fresh.any():
            rows = np.flatnonzero(fresh)
            self._begin(rows)
            first = self._first_viewpoints(len(rows))
            if first is None:
                looking &= ~fresh
            else:
                viewpoints[rows] = first

        episodes = self.episodes
        before = episodes.potentials[self._potential].copy()
        if looking.any():
            rows = np.flatnonzero(looking)
            episodes.step_rows(rows, viewpoints if len(rows) == self.num_envs else viewpoints[rows])
        terminated = ((episodes.glimpses >= self.config.budget) | stop) & ~fresh
        self._steps = np.where(fresh, 0, self._steps + 1)
        truncated = np.zeros_like(terminated)
        if self.max_episode_steps is not None:
            truncated = (self._steps >= self.max_episode_steps) & ~terminated
        ended = terminated | truncated
        replaces = self.autoreset_mode == AutoresetMode.SAME_STEP and bool(ended.any())
        # Before anything reads the losses: a GPU's observation and potentials come to the host together.
        observation = None if replaces else self._observation()
        rewards = step_reward(
            self.config.reward,
            before,
            episodes.potentials[self._potential],
            ended=ended,
            stopped=stop,
            glimpses=episodes.glimpses,
            budget=self.config.budget,
        )
        rewards -= self.config.glimpse_cost * looking
        rewards[fresh] = 0

        self._ended = ended.copy()
        if replaces:
            info = self._replace_ended(ended)
            observation = self._observation()
        else:
            info = self._infos(np.ones(self.num_envs, dtype=np.bool_), ended=ended)
        self._show()
        assert observation is not None
        return observation, rewards, terminated, truncated, info

    def replace_episodes(self, episodes: EpisodeBatch) -> None:
        """Go on with another batch of as many episodes, in which none has begun: reset() comes next."""
        self._require_open()
        assert episodes.num == self.num_envs, (episodes.num, self.num_envs)
        self.episodes = episodes
        self._started = False

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:  # type: ignore[override]
        """One RGB frame per environment for "rgb_array"; "human" shows them at every reset and step."""
        if self.render_mode is None:
            raise ValueError('render() needs a render mode: make the environment with render_mode="rgb_array"')
        self._require_open()
        self._require_started()
        return None if self.render_mode == "human" else self._frames()

    def _frames(self) -> tuple[NDArray[np.uint8], ...]:
        colours = canvas_colours(self.backbone, self.scenes)
        return tuple(draw_frame(self.view(row), colours=colours) for row in range(self.num_envs))

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(tile_frames(self._frames()))

    def view(self, row: int) -> EpisodeView:
        """What a picture of environment `row` shows; holds the truth."""
        self._require_open()
        self._require_started()
        return self.episodes.view(row)

    def observation_tensors(self) -> dict[str, torch.Tensor]:
        """The current observation as fresh tensors where they were made, without a copy to the host."""
        self._require_open()
        self._require_started()
        return self.episodes.observe()

    def close_extras(self, **kwargs: Any) -> None:
        if self._window is not None:
            self._window.close()
        if isinstance(self.scenes, StreamedSource):
            self.scenes.close()
        del self.episodes

    def _require_open(self) -> None:
        if self.closed:
            raise RuntimeError("this environment is closed; make a new one")

    def _require_started(self) -> None:
        if not self._started:
            raise RuntimeError("the environment has no scene yet: call reset() first")

    def action_masks(self) -> NDArray[np.bool_]:
        """[num_envs, number of actions]: which actions may be chosen now; sb3-contrib asks for them by this name.

        All of them, unless revisit=False: then no viewpoint that was taken in the episode. Stopping is always allowed.

        Raises:
            TypeError: the actions are not discrete.
        """
        self._require_open()
        self._require_started()
        if not isinstance(self.actions, DiscreteActions):
            raise TypeError(
                f"action masks are of discrete actions, and these are {self.config.action!r}: use action='grid' or "
                "'quadtree'"
            )
        return self.actions.mask(self.episodes.targets, self.episodes.glimpses)

    def _reset_options(
        self, options: dict[str, Any]
    ) -> tuple[Rows, NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """(rows to reset, their scenes or None, their goals or None)."""
        if not isinstance(options, dict):
            raise TypeError(f"options must be a dict with keys out of {', '.join(_OPTIONS)}, got {options!r}")
        if unknown := sorted(str(key) for key in options if key not in _OPTIONS):
            raise ValueError(f"unknown reset option {', '.join(unknown)}; there are: {', '.join(_OPTIONS)}")
        rows = self.episodes.all_rows
        if "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
                raise ValueError(
                    f"options['reset_mask'] must be {self.num_envs} booleans, at least one true; "
                    f"got {mask.dtype} of shape {mask.shape}: {mask}"
                )
            rows = np.flatnonzero(mask)
            if not self._started and len(rows) < self.num_envs:
                raise RuntimeError(
                    f"options['reset_mask'] leaves out environments {np.flatnonzero(~mask).tolist()}, which have no "
                    "scene yet: call reset() without it first"
                )
        goal = None
        if "goal" in options:
            if self.task.goals is None:
                raise ValueError(
                    f"options['goal'] is of goal-conditioned tasks, and {self.task.name} is none: leave it out"
                )
            goal = checked_goals(options["goal"], num=self.num_envs, goals=self.task.goals)[rows]
        if "scene" not in options:
            return rows, None, goal
        try:
            scene = np.asarray(options["scene"])
        except ValueError:  # a ragged list, refused below
            scene = np.zeros(0)
        if not np.issubdtype(scene.dtype, np.integer) or scene.shape not in ((), (self.num_envs,)):
            raise ValueError(
                f"options['scene'] must be one scene index or {self.num_envs} of them, got {options['scene']!r}"
            )
        scene = np.broadcast_to(scene, (self.num_envs,)).astype(np.int64)[rows]
        if ((scene < 0) | (scene >= len(self.scenes))).any():
            raise ValueError(f"options['scene'] must lie in [0, {len(self.scenes) - 1}], got {options['scene']!r}")
        return rows, scene, goal

    def _begin(self, rows: Rows, scene: NDArray[np.int64] | None = None, goal: NDArray[np.int64] | None = None) -> None:
        """Put scenes into rows, [len(rows)]; those not given are drawn, and so are goals."""
        ahead = SCENES_AHEAD * self.num_envs
        if scene is None:
            scene = next_scenes(self._sampler, self.scenes, count=len(rows), ahead=ahead, rng=self.np_random)
        elif isinstance(self.scenes, StreamedSource):
            self.scenes.prefetch(np.concatenate([scene, self._sampler.drawn(ahead)]))
        uniform = None if self.task.goals is None or goal is not None else self.np_random.random(len(rows))
        self.episodes.reset_rows(rows, scene, read=self.config.first_glimpse is None, goal=goal, uniform=uniform)

    def _first_viewpoints(self, count: int) -> NDArray[np.float32] | None:
        first = self.config.first_glimpse
        if first is None:
            return None
        if first == "random":
            with seeded(int(self.np_random.integers(2**63)), torch.device("cpu")):
                return first_viewpoints(first, count)
        return first_viewpoints(first, count)

    def _observation(self, rows: Rows | None = None) -> Observation:
        observation = self.episodes.observe(rows)
        if self.on_device:
            return cast(Observation, observation)
        return to_host(observation)

    def _infos(self, mask: NDArray[np.bool_], *, ended: NDArray[np.bool_] | None) -> Info:
        """Gymnasium's vector infos: arrays over environments, each with the mask `_key` of where it holds."""
        episodes = self.episodes
        last = np.maximum(episodes.glimpses - 1, 0)
        values: Info = {
            "scene": episodes.scene.copy(),
            "viewpoint": episodes.viewpoints[episodes.all_rows, last],
            "glimpses": episodes.glimpses.copy(),
            **{name: episodes.potentials[name].copy() for name in self.tracked},
        }
        if episodes.goal is not None:
            values["goal"] = episodes.goal.copy()
        if isinstance(self.actions, DiscreteActions):
            # int8, as Gymnasium's action_space.sample(mask) wants it.
            values["action_mask"] = self.actions.mask(episodes.targets, episodes.glimpses).astype(np.int8)
        masks = dict.fromkeys(values, mask)
        if ended is not None and ended.any():
            for name in self.tracked:
                values[f"{name}_curve"] = after_each_glimpse(episodes.curves[name], episodes.glimpses, ended)
                masks[f"{name}_curve"] = ended
        return values | {f"_{key}": held.copy() for key, held in masks.items()}

    def _replace_ended(self, ended: NDArray[np.bool_]) -> Info:
        """SAME_STEP: keep the last observation and info of ended episodes, then begin new ones in their place."""
        rows = np.flatnonzero(ended)
        final_obs = np.full(self.num_envs, None, dtype=object)
        if not self.on_device:
            last = self._observation(rows)
            for i, row in enumerate(rows):
                final_obs[row] = {key: value[i] for key, value in last.items()}
        final_info = self._infos(ended, ended=ended)
        self._begin(rows)
        first = self._first_viewpoints(len(rows))
        if first is not None:
            self.episodes.step_rows(rows, first)
        self._ended[rows] = False
        self._steps[rows] = 0
        info = self._infos(np.ones(self.num_envs, dtype=np.bool_), ended=None)
        return info | {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": final_info,
            "_final_info": ended.copy(),
        }


if GlimpseVectorEnv.__doc__ is not None:  # python -OO strips it
    GlimpseVectorEnv.__doc__ = cleandoc(GlimpseVectorEnv.__doc__).replace("$arguments", arguments())
