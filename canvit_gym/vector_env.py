"""GlimpseVectorEnv: steps N scenes through one batched CanViT forward. All other environments wrap it."""

from collections.abc import Callable
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
from canvit_gym.episodes import EpisodeBatch, EpisodeView, Rows
from canvit_gym.pages import arguments
from canvit_gym.registration import ENVIRONMENTS, require_own_dataset
from canvit_gym.rendering import Window, canvas_colours, display_exists, draw_frame, tile_frames
from canvit_gym.rewards import REWARDS, step_reward
from canvit_gym.scenes.sampler import SceneSampler, next_scenes
from canvit_gym.scenes.source import StreamedSource, close_source, load_scenes
from canvit_gym.seeding import seeded
from canvit_gym.sharding import warn_in_worker
from canvit_gym.tasks.goals import Goals, checked_goals
from canvit_gym.viewpoints import first_viewpoints

Observation = dict[str, NDArray[Any]]
Info = dict[str, Any]

_AUTORESET = {mode.name.lower(): mode for mode in AutoresetMode}
_OPTIONS = ("scene", "goal", "reset_mask")
_RENDER_MODES = ("rgb_array", "human")
SCENES_AHEAD = 2
"""Scenes per environment that are prepared in advance: those of the next two episodes."""
RENDER_MODES = list(_RENDER_MODES if display_exists() else _RENDER_MODES[:1])
"""Render modes of this machine: "human" needs a display."""


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

    Rows that have not ended are zero, not NaN, because Gymnasium's checkers compare infos for equality.
    """
    taken = np.minimum(np.arange(1, curve.shape[1]), glimpses[:, None])
    return np.where(ended[:, None], np.take_along_axis(curve, taken, axis=1), 0)


def _make_sampler(config: EnvConfig, num_scenes: int) -> SceneSampler:
    return SceneSampler(num_scenes=num_scenes, shard=config.shard, shuffle=config.split == "training")


def plain_spec(spec: EnvSpec, config: EnvConfig, **others: Any) -> EnvSpec:
    """The spec with the values of the configuration, and `others`, as its keyword arguments: JSON, whatever was passed
    for them (numpy's numbers, enums)."""
    plain = {**config.to_json(), **others}
    return replace(spec, kwargs={name: plain.get(name, value) for name, value in spec.kwargs.items()})


def _array(option: Any) -> NDArray[Any]:
    """The value of a reset option, whose dtype and shape are yet to be checked. A ragged list is an empty array."""
    try:
        return np.asarray(option)
    except ValueError:
        return np.zeros(0)


def with_shard(spec: EnvSpec, config: EnvConfig) -> EnvSpec:
    """The spec with the configuration's shard, of which environments may be given another one."""
    return replace(spec, kwargs={**spec.kwargs, "shard": config.to_json()["shard"]})


class GlimpseVectorEnv(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """Active vision on `num_envs` scenes at a time: actions are viewpoints, observations show the canvas.

    ## Description
    A frozen CanViT sees each scene through a sequence of glimpses and keeps what it saw on a scene-wide canvas.
    After each glimpse a frozen linear probe reads the canvas, and the reward is how much its reading improved. The
    agent decides where to take the next glimpse. For Stable-Baselines3 use `canvit_gym.sb3.make_sb3_env`.

    The pages of the single environments list the observation keys with shapes and ranges, the rewards, and the
    default of every argument. To print one:
    `from canvit_gym.env import FashionSegmentationEnv; print(FashionSegmentationEnv.__doc__)`.

    ## Action Space
    See canvit_gym.actions. `grid`: Discrete over grid_scales x grid_centers x grid_centers; `continuous`:
    Box(-1, 1, (3,)); `quadtree`: Discrete over the tiles of levels 0..quadtree_levels. With allow_stop, one
    more action (or number) ends the episode at no cost.

    ## Observation Space
    A Dict of the keys in `observations`: see canvit_gym.observations.

    ## Rewards
    See canvit_gym.rewards.

    ## Starting State
    A new scene and an empty canvas. The first glimpse, of the full scene by default, precedes the agent's first
    action.

    ## Episode End
    An episode terminates when the budget is spent (the first glimpse counts) or the agent stops. The budget is part
    of the task, and `time` shows what is left of it. Episodes are truncated only if `max_episode_steps`
    (Gymnasium's own keyword) is passed.

    ## Arguments
    $arguments

    `autoreset_mode`: "next_step" (Gymnasium's default), "same_step" or "disabled". The score of a segmentation
    is computed at scene size, so infos contain it only with `track_score` or a reward that needs it; that of a
    classification is always there.

    ## Info
    - `scene`: index of the scene
    - `viewpoint`: the last (row, col, scale)
    - `glimpses`: number of glimpses taken
    - `loss`, and `score` if it is tracked
    - `loss_curve` and `score_curve` when an episode ends: [budget], the values after each glimpse. After an early
      stop the last value is repeated.
    - `action_mask` (discrete actions): [number of actions] int8, 1 where an action may be chosen. All ones unless
      revisit=False.
    - `goal` (goal-conditioned tasks): number of the goal

    A scene without any label has loss 0 and score 0.

    ## Determinism
    With the same seed, actions and number of environments, results are bitwise identical on the same machine. A
    scene in a batch of 64 and the same scene alone agree only up to float32 rounding (1e-3 on the canvas), because
    matrix products of different shapes sum in a different order. Otherwise the scenes of a batch do not affect each
    other.

    ## Reset options
    - `{"scene": index or [num_envs] indices}` chooses the scenes.
    - `{"reset_mask": [num_envs] booleans}` resets only some environments.
    - `{"goal": number or [num_envs] numbers}` chooses the goals of a goal-conditioned task. A goal that does not
      occur in the scene is an error.

    ## Examples
    >>> import gymnasium as gym
    >>> import canvit_gym
    >>> envs = gym.make_vec("CanViT/FashionSegmentation-v0", num_envs=3, num_scenes=16, split="test", budget=2)
    >>> observation, info = envs.reset(seed=0)
    >>> info["scene"].tolist(), info["glimpses"].tolist()
    ([0, 1, 2], [1, 1, 1])

    With NEXT_STEP autoreset, the step after an episode's end only begins the next scene.

    >>> observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    >>> terminated.tolist(), info["_loss_curve"].tolist()
    ([True, True, True], [True, True, True])
    >>> observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    >>> reward.tolist(), terminated.tolist(), info["scene"].tolist()
    ([0.0, 0.0, 0.0], [False, False, False], [3, 4, 5])

    Convert actions to viewpoints and back.

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

        # Scenes first: raise on a bad root before downloading a checkpoint.
        self.scenes = build_scenes(self.config, batched=num_envs > 1)
        try:
            self._assemble()
        except BaseException:
            self.close()
            raise

    def _assemble(self) -> None:
        """Make everything that reads the scenes."""
        num_envs = self.num_envs
        self.backbone = build_backbone(self.config)
        require_scene_size(self.config, self.backbone, self.scenes)
        self.task = build_task(self.config, self.backbone, self.scenes.classes)
        self.actions = build_actions(self.config)
        self.layout = build_layout(self.config, self.backbone, self.task)
        self._potential = REWARDS[self.config.reward].potential
        asked = {*self.task.in_every_info, self._potential, *(["score"] if self.config.track_score else [])}
        self.tracked = tuple(name for name in self.task.potentials if name in asked)
        """Potentials that every info contains: those that were requested, and those that cost nothing."""
        drawn = {"score"} if self.render_mode is not None else set()  # for the curve
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
        """For learners in this process (see canvit_gym.sb3): return observations as tensors on the device, and leave
        out final observations, which nobody needs after a termination."""
        self._started = False
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        """Steps that the agent has taken in the current episodes."""
        self._window = None
        if self.render_mode == "human":
            self._window = Window(self.scenes.name, fps=self.metadata["render_fps"])

    @property
    def spec(self) -> EnvSpec | None:
        """The spec that make_vec sets, in plain JSON values."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if spec is not None:
            own = ENVIRONMENTS.get(spec.id, {}).get("dataset", self.config.dataset)
            try:
                require_own_dataset(own, self.config.dataset)
            except ValueError:
                self.close()
                raise
            spec = plain_spec(
                spec,
                self.config,
                num_envs=self.num_envs,
                max_episode_steps=self.max_episode_steps,
                autoreset_mode=self.autoreset_mode.name.lower(),
            )
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
        self._spec = None if self._spec is None else with_shard(self._spec, config)

    @property
    def state(self) -> RecurrentState:
        """The backbone's state for every scene. Valid until the next step or reset: clone it before you keep it, change
        it or train on it."""
        self._require_open()
        self._require_started()
        return cast(RecurrentState, self.episodes.state)

    @property
    def upcoming(self) -> dict[str, Any]:
        """What decides the scenes, goals and random first glimpses of later episodes: the state of the random
        "generator" (JSON values) and the "scenes" that are left of the pass [n].

        Assign it to another environment of the same configuration, after its reset, and its later episodes are those
        of this one. To begin the current episodes again as well, reset with their scenes and goals (`episodes.scene`,
        `episodes.goal`) as options first.
        """
        return {"generator": self.np_random.bit_generator.state, "scenes": self._sampler.left}

    @upcoming.setter
    def upcoming(self, upcoming: dict[str, Any]) -> None:
        self.np_random.bit_generator.state = upcoming["generator"]
        self._sampler.left = upcoming["scenes"]

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the checkpoint, the probe (name, repo, revision, sha256) and the scenes come from, as JSON values."""
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
        if isinstance(seed, np.integer):
            seed = int(seed)  # Gymnasium refuses NumPy's
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
        # Only in NEXT_STEP mode can environments have ended here. Their scene is replaced in this step and their action
        # is ignored (validated() returns zeros, never a stop).
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
        # What needs no reading comes first: a GPU is still at work, and copies observations and potentials together.
        arriving = None if replaces else self._begin_observation()
        known = None if replaces else self._known_infos()
        rewards = step_reward(
            self.config.reward,
            before,
            episodes.potentials[self._potential],
            ended=terminated,  # whoever bootstraps at a truncation must not be paid for the rest of the episode
            stopped=stop,
            glimpses=episodes.glimpses,
            budget=self.config.budget,
        )
        rewards -= self.config.glimpse_cost * looking
        rewards[fresh] = 0

        self._ended = ended.copy()
        if arriving is None or known is None:
            info = self._replace_ended(ended)
            observation = self._observation()
        else:
            info = self._with_potentials(known, np.ones(self.num_envs, dtype=np.bool_), ended=ended)
            observation = arriving()
        self._show()
        return observation, rewards, terminated, truncated, info

    def replace_episodes(self, episodes: EpisodeBatch) -> None:
        """Use another batch of `num_envs` episodes, none of which has begun. Call reset() next."""
        self._require_open()
        assert episodes.num == self.num_envs, (episodes.num, self.num_envs)
        self.episodes.close()
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
        if self._window is not None and self._window.is_open:
            self._window.show(tile_frames(self._frames()))

    def view(self, row: int) -> EpisodeView:
        """Everything a picture of environment `row` needs, including the truth."""
        self._require_open()
        self._require_started()
        return self.episodes.view(row)

    def observation_tensors(self) -> dict[str, torch.Tensor]:
        """The current observation as fresh tensors on the device."""
        self._require_open()
        self._require_started()
        return self.episodes.observe()

    def close_extras(self, **kwargs: Any) -> None:
        parts = vars(self)  # some of which are missing if the constructor raised
        if (window := parts.get("_window")) is not None:
            window.close()
        if (episodes := parts.pop("episodes", None)) is not None:
            episodes.close()
        if (scenes := parts.get("scenes")) is not None:
            close_source(scenes)

    def _require_open(self) -> None:
        if self.closed:
            raise RuntimeError("this environment is closed; make a new one")

    def _require_started(self) -> None:
        if not self._started:
            raise RuntimeError("the environment has no scene yet: call reset() first")

    def action_masks(self) -> NDArray[np.bool_]:
        """[num_envs, number of actions]: which actions are allowed now. sb3-contrib calls this method.

        All of them, unless revisit=False: then a viewpoint is allowed once per episode. Stopping is always allowed.

        Raises:
            TypeError: the actions are not discrete.
        """
        self._require_open()
        self._require_started()
        if not isinstance(self.actions, DiscreteActions):
            raise TypeError(
                f"only discrete actions have masks, but action={self.config.action!r}: use action='grid' or 'quadtree'"
            )
        return self.actions.mask(self.episodes.targets, self.episodes.glimpses)

    def _reset_options(
        self, options: dict[str, Any]
    ) -> tuple[Rows, NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """(rows to reset, their scenes or None, their goals or None)."""
        if not isinstance(options, dict):
            raise TypeError(f"options must be a dict with keys among {', '.join(_OPTIONS)}, got {options!r}")
        if unknown := sorted(str(key) for key in options if key not in _OPTIONS):
            raise ValueError(f"unknown reset option {', '.join(unknown)}; there are: {', '.join(_OPTIONS)}")
        rows = self.episodes.all_rows
        if "reset_mask" in options:
            mask = _array(options["reset_mask"])
            if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
                raise ValueError(
                    f"options['reset_mask'] must be {self.num_envs} booleans, at least one true; "
                    f"got {mask.dtype} of shape {mask.shape}: {options['reset_mask']}"
                )
            rows = np.flatnonzero(mask)
            if not self._started and len(rows) < self.num_envs:
                raise RuntimeError(
                    f"options['reset_mask'] leaves out environments {np.flatnonzero(~mask).tolist()}, which have not "
                    "been reset yet: call reset() without it first"
                )
        goal = None
        if "goal" in options:
            if self.task.goals is None:
                raise ValueError(
                    f"options['goal'] is for goal-conditioned tasks, which {self.task.name} is not: leave it out"
                )
            goal = checked_goals(options["goal"], num=self.num_envs, goals=self.task.goals)[rows]
        if "scene" not in options:
            return rows, None, goal
        scene = _array(options["scene"])
        if not np.issubdtype(scene.dtype, np.integer) or scene.shape not in ((), (self.num_envs,)):
            raise ValueError(
                f"options['scene'] must be one scene index or {self.num_envs} of them, got {options['scene']!r}"
            )
        scene = np.broadcast_to(scene, (self.num_envs,)).astype(np.int64)[rows]
        if ((scene < 0) | (scene >= len(self.scenes))).any():
            raise ValueError(f"options['scene'] must lie in [0, {len(self.scenes) - 1}], got {options['scene']!r}")
        return rows, scene, goal

    def _begin(self, rows: Rows, scene: NDArray[np.int64] | None = None, goal: NDArray[np.int64] | None = None) -> None:
        """Begin episodes in `rows`. Scenes and goals [len(rows)] that are not given are drawn."""
        if scene is None:
            scene = self._next_scenes(len(rows)) if goal is None else self._next_scenes_with(goal)
        elif isinstance(self.scenes, StreamedSource):
            self.scenes.prefetch(np.concatenate([scene, self._sampler.drawn(self._ahead)]))
        uniform = None if self.task.goals is None or goal is not None else self.np_random.random(len(rows))
        self.episodes.reset_rows(rows, scene, read=self.config.first_glimpse is None, goal=goal, uniform=uniform)
        self.episodes.expect(self._sampler.drawn(self.num_envs))

    @property
    def _ahead(self) -> int:
        """How many scenes are prefetched."""
        return SCENES_AHEAD * self.num_envs

    def _next_scenes(self, count: int) -> NDArray[np.int64]:
        return next_scenes(self._sampler, self.scenes, count=count, ahead=self._ahead, rng=self.np_random)

    def _next_scenes_with(self, goal: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] the next scenes that hold the goals [n]; those between them are passed over.

        Raises:
            ValueError: two passes over the scenes held none with a goal.
        """
        goals = cast(Goals, self.task.goals)
        found = np.full(len(goal), -1)
        passed_over = 0
        while (missing := np.flatnonzero(found < 0)).size:
            scene = self._next_scenes(len(missing))
            holds = goals.available(load_scenes(self.scenes, scene))[np.arange(len(missing)), goal[missing]]
            found[missing[holds]] = scene[holds]
            passed_over = 0 if holds.any() else passed_over + len(scene)
            if passed_over >= 2 * len(self._sampler):
                names = sorted({goals.names[int(number)] for number in goal[missing]})
                raise ValueError(f"no scene of {self.scenes.name} holds {', '.join(names)}: ask for another goal")
        return found

    def _first_viewpoints(self, count: int) -> NDArray[np.float32] | None:
        first = self.config.first_glimpse
        if first is None:
            return None
        if first == "random":
            with seeded(int(self.np_random.integers(2**63)), torch.device("cpu")):
                return first_viewpoints(first, count)
        return first_viewpoints(first, count)

    def _observation(self, rows: Rows | None = None) -> Observation:
        return self._begin_observation(rows)()

    def _begin_observation(self, rows: Rows | None = None) -> Callable[[], Observation]:
        """Begin to compute and copy the observation; the returned function waits for it."""
        if self.on_device:
            observation = self.episodes.observe(rows)
            return lambda: cast(Observation, observation)
        return self.episodes.begin_observation(rows)

    def _infos(self, mask: NDArray[np.bool_], *, ended: NDArray[np.bool_] | None) -> Info:
        """Gymnasium's vector infos: arrays over environments, each with a mask `_key` of the environments that have
        it."""
        return self._with_potentials(self._known_infos(), mask, ended=ended)

    def _known_infos(self) -> Info:
        """The values of infos that need no reading."""
        episodes = self.episodes
        last = np.maximum(episodes.glimpses - 1, 0)
        values: Info = {
            "scene": episodes.scene.copy(),
            "viewpoint": episodes.viewpoints[episodes.all_rows, last],
            "glimpses": episodes.glimpses.copy(),
        }
        if episodes.goal is not None:
            values["goal"] = episodes.goal.copy()
        if isinstance(self.actions, DiscreteActions):
            # int8, as Gymnasium's action_space.sample(mask) requires (of a vector environment: sample(tuple(mask))).
            values["action_mask"] = self.actions.mask(episodes.targets, episodes.glimpses).astype(np.int8)
        return values

    def _with_potentials(self, values: Info, mask: NDArray[np.bool_], *, ended: NDArray[np.bool_] | None) -> Info:
        """Infos with the current readings and, of ended episodes, with all of them."""
        episodes = self.episodes
        values = values | {name: episodes.potentials[name].copy() for name in self.tracked}
        masks = dict.fromkeys(values, mask)
        if ended is not None and ended.any():
            for name in self.tracked:
                values[f"{name}_curve"] = after_each_glimpse(episodes.curves[name], episodes.glimpses, ended)
                masks[f"{name}_curve"] = ended
        return values | {f"_{key}": held.copy() for key, held in masks.items()}

    def _replace_ended(self, ended: NDArray[np.bool_]) -> Info:
        """SAME_STEP: record the last observation and info of ended episodes, then begin new ones in their place."""
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
