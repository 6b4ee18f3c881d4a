"""One player in one environment: what the page shows during an episode, and after it.

Everything goes through the environment that Gymnasium makes: reset, step, observations and infos. Until the episode
ends, players see only what an agent could see: the glimpses taken, the probe's reading of the canvas, its uncertainty,
the goal, and the number of glimpses left. Messages are JSON values for the page.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from canvit_gym.actions import DiscreteActions
from canvit_gym.assembly import task_kind
from canvit_gym.command_line import env_config
from canvit_gym.env import GlimpseEnv
from canvit_gym.play.messages import (
    Message,
    actions_message,
    allowed_actions,
    reading_message,
    truth_message,
    uncertainty_message,
)
from canvit_gym.play.pictures import class_colours, numbers, picture_uri, seen_picture
from canvit_gym.play.recording import Played
from canvit_gym.play.rivals import Rivals
from canvit_gym.rendering import Frame
from canvit_gym.scenes.decoding import UnreadableSceneError
from canvit_gym.tasks import TASKS
from canvit_gym.tasks.goals import choose_goals, goal_uniforms

log = logging.getLogger(__name__)

STAGE_PX = 384
"""Side of the picture of what has been seen."""


def make_game_env(env_id: str, **kwargs: Any) -> GlimpseEnv:
    """The environment of a player: made by `gym.make`, with the observations that the page shows.

    Raises:
        ValueError, TypeError: an unknown environment or keyword, or an invalid value. OSError: no data.
    """
    config = env_config(env_id, kwargs)
    kind = TASKS[task_kind(config.dataset)].kind
    shown = ("glimpse",) if kind.uncertainty_shape(1) is None else ("glimpse", "uncertainty")
    keys = tuple(dict.fromkeys((*config.observations, *shown)))
    # All fields, since an observation_preset, which sets the observations, cannot be passed along with them.
    config = replace(config.with_observations(keys), track_score=True)
    env = gym.make(env_id, **config.to_json()).unwrapped
    assert isinstance(env, GlimpseEnv), env
    return env


def stop_action(env: GlimpseEnv) -> Any:
    """The action that ends the episode."""
    if not env.actions.allow_stop:
        raise ValueError("this environment does not let one stop early")
    if isinstance(env.actions, DiscreteActions):
        return int(env.actions.space.n) - 1
    action = np.zeros(env.action_space.shape or (), dtype=np.float32)
    action[-1] = 1
    return action


@dataclass
class Tally:
    """Scores over the scenes of a session, first tries only, since later ones are played with the truth known."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    ceiling: list[float] = field(default_factory=list)

    def add(self, *, first: float, last: float, ceiling: float) -> None:
        self.first.append(first)
        self.last.append(last)
        self.ceiling.append(ceiling)

    def message(self) -> Message:
        """`share`: the player's gain after the first glimpse as a fraction of the ceiling's; null if the ceiling gains
        nothing."""
        if not self.last:
            return {"scenes": 0, "share": None}
        first, last, ceiling = (float(np.mean(v)) for v in (self.first, self.last, self.ceiling))
        gap = ceiling - first
        share = (last - first) / gap if np.isfinite(gap) and gap > 1e-6 else None
        return {
            "scenes": len(self.last),
            "score": last,
            "ceiling": ceiling if np.isfinite(ceiling) else None,
            "share": share,
        }


class Game:
    """A player's session: one environment, one episode at a time. Not thread-safe: one call at a time."""

    def __init__(
        self,
        env: GlimpseEnv,
        *,
        rivals: Rivals,
        scenes: Iterator[int],
        on_played: Callable[[Played], None] | None = None,
    ) -> None:
        """
        Args:
            env: from `make_game_env`; closed with the game.
            rivals: the policies that the player is compared with.
            scenes: the next scene, without end.
            on_played: called with every episode that ended, except second tries at a scene.
        """
        self._env, self._rivals, self._scenes, self._on_played = env, rivals, scenes, on_played
        self._scene: int | None = None
        self._tried: set[int] = set()
        """Scenes whose truth was shown, at the end of an episode: from then on they are practice."""
        self._first_curves: dict[int, NDArray[np.float32]] = {}
        """Of scenes that are not in the tally yet, since the policies that are its ceiling have not played them."""
        self._tally = Tally()
        self._ended = True
        self.problem: str | None = None
        """Why the episode that ended could not be handed over to `on_played`; None if it was, or has not ended."""

    def close(self) -> None:
        self._env.close()

    def hello(self) -> Message:
        """What the page needs to know before the first scene."""
        envs = self._env.envs
        return {
            "kind": "hello",
            "environment": envs.scenes.name,
            "budget": envs.config.budget,
            "actions": actions_message(self._env),
            "classes": list(envs.task.classes),
            "colours": class_colours(envs.task.classes),
            "glimpse_px": envs.backbone.glimpse_size_px,
        }

    def next(self) -> Message:
        """Begin the next scene that can be read.

        Raises:
            UnreadableSceneError: as many as the split holds cannot.
        """
        for _ in range(len(self._env.envs.scenes) - 1):
            scene = next(self._scenes)
            try:
                return self._begin(scene)
            except UnreadableSceneError as error:
                log.warning("scene %d is left out: %s", scene, error)
        return self._begin(next(self._scenes))

    def restart(self) -> Message:
        """Begin the same scene again."""
        if self._scene is None:
            raise ValueError("there is no scene to begin again yet")
        return self._begin(self._scene)

    def look(self, viewpoint: Sequence[float]) -> Message:
        """Take the glimpse nearest to (row, col, scale) that the environment allows."""
        self._require_begun()
        actions, wanted = self._env.actions, np.array([viewpoint], dtype=np.float32)
        if not isinstance(actions, DiscreteActions):
            return self._step(actions.encode(wanted)[0])
        allowed = self._info["action_mask"][None, : len(actions.viewpoints)].astype(np.bool_)
        return self._step(actions.encode(wanted, allowed=allowed)[0])

    def stop(self) -> Message:
        self._require_begun()
        return self._step(stop_action(self._env))

    def _require_begun(self) -> None:
        if self._ended:
            raise ValueError("the episode has ended: go on to the next scene, or play this one again")

    @property
    def ended(self) -> bool:
        return self._ended

    def _begin(self, scene: int) -> Message:
        observation, info = self._env.reset(options={"scene": int(scene), **self._goal(scene)})
        self._scene, self._ended, self.problem = int(scene), False, None
        self._viewpoints: list[NDArray[np.float32]] = []
        self._glimpses: list[Frame] = []
        self._seconds: list[float] = []
        self._shown_at = time.monotonic()
        self._practice = self._scene in self._tried
        return self._after(observation, info, begins=True)

    def _goal(self, scene: int) -> dict[str, int]:
        """The option that sets the goal that evaluations use for this scene, so that policies get the same one."""
        envs = self._env.envs
        if envs.task.goals is None:
            return {}
        index = np.array([scene])
        available = envs.task.goals.available(envs.scenes.load(index))
        return {"goal": int(choose_goals(available, goal_uniforms(index))[0])}

    def _step(self, action: Any) -> Message:
        observation, _, terminated, _, info = self._env.step(action)
        self._ended = terminated
        return self._after(observation, info)

    def _after(self, observation: dict[str, NDArray[Any]], info: dict[str, Any], *, begins: bool = False) -> Message:
        if info["glimpses"] > len(self._glimpses):
            self._viewpoints.append(np.asarray(info["viewpoint"]).copy())
            self._glimpses.append(observation["glimpse"].transpose(1, 2, 0).copy())
            self._seconds.append(0.0 if begins else time.monotonic() - self._shown_at)
        view = self._env.envs.view(0)
        self._info = info
        if self._ended and not self._practice:
            assert self._scene is not None
            self._tried.add(self._scene)
            self._first_curves[self._scene] = np.array(info["score_curve"])
            self._hand_over()
        self._shown_at = time.monotonic()
        return {
            "kind": "view",
            "begins": begins,
            "scene": self._scene,
            "practice": self._practice,
            "ended": self._ended,
            "viewpoints": [numbers(v) for v in self._viewpoints],
            "seen": picture_uri(seen_picture(self._viewpoints, self._glimpses, size=STAGE_PX)),
            "reading": reading_message(view),
            "uncertainty": uncertainty_message(observation.get("uncertainty")),
            "goal": view.goal,
            "allowed": allowed_actions(info),
        }

    def _hand_over(self) -> None:
        if self._on_played is None or not self._viewpoints:
            return
        assert self._scene is not None
        try:
            self._on_played(Played(self._scene, np.stack(self._viewpoints), tuple(self._seconds)))
        except (OSError, ValueError) as error:  # a full disk, or a scene without a label: the player goes on
            self.problem = f"this episode was not recorded: {error}"

    def outcome(self) -> Message:
        """After the end: the scene, the truth, and the player's curve."""
        if not self._ended:
            raise ValueError("the truth is told at the end of an episode")
        view = self._env.envs.view(0)
        return {
            "kind": "outcome",
            "scene": self._scene,
            "picture": picture_uri(view.image),
            "truth": truth_message(view),
            "metric": view.metric.name,
            "curve": numbers(self._info["score_curve"]),
        }

    def rivals(self) -> Sequence[str]:
        return self._rivals.names

    def rival(self, name: str) -> Message:
        """A policy's glimpses of the scene that was just played."""
        assert self._scene is not None
        return self._rivals.episode(name, self._scene)

    def settle(self) -> Message:
        """Count the first try at the scene, with the scene's ceiling; returns the session so far."""
        assert self._scene is not None
        if (curve := self._first_curves.get(self._scene)) is not None:
            ceiling = self._rivals.ceiling(self._scene)
            self._tally.add(first=float(curve[0]), last=float(curve[-1]), ceiling=ceiling)
            del self._first_curves[self._scene]
        return {"kind": "session", **self._tally.message()}
