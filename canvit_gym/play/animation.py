"""`canvit_gym.show`: an episode as an animation, in a notebook or as a file.

This module imports nothing heavy: `import canvit_gym` imports it.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gymnasium import Env
    from gymnasium.vector import VectorEnv
    from numpy.typing import NDArray

    from canvit_gym.config import EnvConfig
    from canvit_gym.evaluation import Evaluation
    from canvit_gym.perturbations import Perturbation

PANEL_PX = 176
LAST_FRAME_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class Animation:
    """Pictures of an episode after each glimpse. A notebook displays it if it is the last value of a cell."""

    frames: tuple[Any, ...]
    """uint8 RGB [H, W, 3] each."""
    title: str
    seconds_per_frame: float = 0.8

    def encoded(self, format: str = "webp") -> bytes:
        """The bytes of an animated "webp", "gif" or "png" that loops."""
        from PIL import Image

        pictures = [Image.fromarray(frame) for frame in self.frames]
        milliseconds = [round(1000 * self.seconds_per_frame)] * len(pictures)
        milliseconds[-1] = round(1000 * max(LAST_FRAME_SECONDS, self.seconds_per_frame))
        buffer = io.BytesIO()
        options: dict[str, Any] = {"quality": 80} if format == "webp" else {}
        pictures[0].save(
            buffer, format, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, **options
        )
        return buffer.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write a .webp, .gif or .png, depending on the suffix.

        Raises:
            ValueError: another suffix.
        """
        path = Path(path)
        format = path.suffix.lower().removeprefix(".")
        if format not in ("webp", "gif", "png"):
            raise ValueError(f"animations can be saved as .webp, .gif or .png, not as {path.name!r}")
        path.write_bytes(self.encoded(format))
        return path

    def _repr_html_(self) -> str:
        height, width = self.frames[0].shape[:2]
        data = base64.b64encode(self.encoded()).decode()
        text = html.escape(self.title, quote=True)
        size = f'width="{width}" height="{height}" style="max-width: 100%; height: auto"'
        return f'<img alt="{text}" {size} src="data:image/webp;base64,{data}">'


def show(
    what: "Env[Any, Any] | VectorEnv[Any, Any, Any] | Evaluation | str | Path",
    *,
    scene: int | None = None,
    row: int = 0,
) -> Animation:
    """An episode as an animation: the glimpses, the canvas, the probe's reading and the truth, glimpse by glimpse.

    Args:
        what: an environment, whose current episode is shown; or an evaluation, or the file of one.
        scene: the scene of an evaluation; None: its first one.
        row: the index of an environment in a vector environment.

    Raises:
        TypeError: anything else. ValueError: no glimpse yet, or no such scene. FileNotFoundError: no such file.

    >>> import gymnasium as gym, canvit_gym
    >>> env = gym.make("CanViT/FashionSegmentation-v0", split="test", num_scenes=4)
    >>> observation, info = env.reset(seed=0)
    >>> for _ in range(4):
    ...     _ = env.step(env.action_space.sample())
    >>> animation = canvit_gym.show(env)  # the last value of a cell is displayed
    >>> len(animation.frames)
    5
    """
    from canvit_gym.env import GlimpseEnv
    from canvit_gym.evaluation import Evaluation
    from canvit_gym.perturbations import PerturbedEpisodes
    from canvit_gym.vector_env import GlimpseVectorEnv

    if isinstance(what, str | Path):
        what = Evaluation.load(Path(what))
    if isinstance(what, Evaluation):
        return _of_evaluation(what, scene)
    unwrapped = getattr(what, "unwrapped", None)
    envs = unwrapped.envs if isinstance(unwrapped, GlimpseEnv) else unwrapped
    if not isinstance(envs, GlimpseVectorEnv):
        raise TypeError(f"show takes an environment of canvit_gym, an Evaluation or the file of one, got {what!r}")
    if scene is not None:
        raise ValueError("scene= is for evaluations; an environment shows the scene of its episode: leave it out")
    if not 0 <= row < envs.num_envs:
        raise ValueError(f"row must lie in [0, {envs.num_envs - 1}], got {row}")
    viewpoints = envs.view(row).viewpoints
    if not len(viewpoints):
        raise ValueError("no glimpse was taken yet: call step() first")
    goal = None if envs.episodes.goal is None else int(envs.episodes.goal[row])
    perturbations = envs.episodes.perturbations if isinstance(envs.episodes, PerturbedEpisodes) else ()
    scene = int(envs.episodes.scene[row])
    return _animation(viewpoints, scene, envs.config, goal=goal, perturbations=perturbations)


def _of_evaluation(evaluation: "Evaluation", scene: int | None) -> Animation:
    from canvit_gym.evaluation import recorded_config, recorded_perturbations
    from canvit_gym.play.recording import taken_glimpses

    scenes: list[int] = evaluation.scene.tolist()
    chosen = scenes[0] if scene is None else scene
    if chosen not in scenes:
        raise ValueError(
            f"this evaluation has no scene {chosen}; it has {len(scenes)} scenes, beginning with {scenes[0]}"
        )
    row = scenes.index(chosen)
    goal = None if evaluation.goal is None else int(evaluation.goal[row])
    perturbations = recorded_perturbations(evaluation)
    viewpoints = evaluation.viewpoints[row, : taken_glimpses(evaluation)[row]]
    return _animation(viewpoints, chosen, recorded_config(evaluation), goal=goal, perturbations=perturbations)


def _animation(
    viewpoints: "NDArray[np.float32]",
    scene: int,
    config: "EnvConfig",
    *,
    goal: int | None,
    perturbations: "Sequence[Perturbation]",
) -> Animation:
    import numpy as np

    from canvit_gym.assembly import build_backbone, build_scenes
    from canvit_gym.rendering import canvas_colours, draw_frame
    from canvit_gym.replay import replay

    asked = None if goal is None else np.array([goal])
    scenes = np.array([scene])
    (moments,) = replay(viewpoints[None], scenes, config=config, goal=asked, perturbations=perturbations)
    colours = canvas_colours(build_backbone(config), build_scenes(config))
    frames = tuple(draw_frame(moment.view, colours=colours, size=PANEL_PX) for moment in moments)
    score = float(moments[-1].view.score_curve[len(moments)])
    return Animation(
        frames=frames, title=f"Scene {scene} through {len(moments)} glimpses; score after the last: {score:.3f}"
    )
