"""The single environments, thin views of a vector env of one; the docstring of each is its documentation page."""

from typing import Any

import gymnasium as gym
import numpy as np
from canvit_pytorch import RecurrentState
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from canvit_gym.vector_env import RENDER_MODES, GlimpseVectorEnv, Info, Observation


def _first(values: dict[str, Any]) -> dict[str, Any]:
    """Environment 0's share of a vector info."""
    return {k: v[0] for k, v in values.items() if not k.startswith("_") and values[f"_{k}"][0]}


class GlimpseEnv(gym.Env[Observation, Any]):
    """One scene at a time. Actions, observations, rewards and arguments are those of GlimpseVectorEnv."""

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 2}

    def __init__(self, *, render_mode: str | None = None, **kwargs: Any) -> None:
        if vector_only := sorted({"num_envs", "autoreset_mode"} & set(kwargs)):
            raise TypeError(f"{', '.join(vector_only)}: for vector environments only; use gymnasium.make_vec instead")
        self.envs = GlimpseVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode, **kwargs)
        self.render_mode = render_mode
        self.action_space = self.envs.single_action_space
        self.observation_space = self.envs.single_observation_space
        self._ended = False

    @property
    def state(self) -> RecurrentState:
        """The backbone's state, batch of one. Valid until the next step or reset; clone to keep it."""
        return self.envs.state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin a new episode; `options={"scene": index}` picks the scene."""
        if isinstance(options, dict) and "reset_mask" in options:
            raise ValueError("options['reset_mask'] is for vector environments; a single one resets whole")
        observation, info = self.envs.reset(seed=seed, options=options)
        super().reset(seed=seed)
        self._ended = False
        return {k: v[0] for k, v in observation.items()}, _first(info)

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
        self._ended = bool(terminated[0])
        return (
            {k: v[0] for k, v in observation.items()},
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _first(info),
        )

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """An RGB frame where render_mode is "rgb_array"; None in "human" mode, whose window follows every step."""
        frames = self.envs.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self.envs.close()


class FashionSegmentationEnv(GlimpseEnv):
    """Find out which pixels of a scene belong to which garment.

    ## Description
    A scene of 128 x 128 px holds three to five (rarely two) Fashion-MNIST items of 26 to 44 px, tinted, none
    overlapping, over textured clutter with fragments of other items. At the first glimpse of the full scene
    an item is 6 to 11 px wide: where it is can be seen, what it is can hardly.

    The scene is seen through a sequence of glimpses of 32 x 32 px by a frozen CanViT, which remembers what
    it saw on a canvas of 16 x 16 cells. After every glimpse a frozen linear probe reads eleven classes
    (background and ten garments) from every cell; the agent decides where the next glimpse is taken, and is
    paid for reading better.

    >>> import gymnasium as gym
    >>> import canvit_gym
    >>> env = gym.make("CanViT/FashionSegmentation-v0", num_scenes=16)
    >>> observation, info = env.reset(seed=0)
    >>> terminated = False
    >>> while not terminated:
    ...     observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    >>> int(info["glimpses"]), truncated
    (5, False)

    ## Action Space
    A viewpoint (row, col, scale): a square crop whose center lies in [-1, 1] x [-1, 1], (-1, -1) being the
    scene's top left corner, and whose side is `scale` times the scene's. All actions stay inside the scene:
    abs(row) and abs(col) at most 1 - scale.

    | `action` | space | meaning |
    | --- | --- | --- |
    | "grid" | Discrete(512) | scales x rows x cols: `grid_scales` x `grid_centers` x `grid_centers` |
    | "continuous" | Box(-1, 1, (3,)) | center by (1 - scale), then zoom: `min_scale` at -1, 1 at +1 |
    | "quadtree" | Discrete(21) | the tiles of levels 0..`quadtree_levels`: 1 + 4 + 16 |

    With `allow_stop` one more action, or a fourth number above 0, ends the episode without a glimpse.
    `envs.actions` of the vector environment decodes actions to viewpoints and encodes viewpoints to the
    nearest actions.

    >>> env.action_space
    Discrete(512)
    >>> continuous = {"action": "continuous", "allow_stop": True}
    >>> gym.make("CanViT/FashionSegmentation-v0", num_scenes=16, **continuous).action_space
    Box(-1.0, 1.0, (4,), float32)

    ## Observation Space
    A Dict of the keys asked for in `observations`, never with the label, the score or pixels that no glimpse
    has seen. The first five are the default.

    | key | shape | range | meaning |
    | --- | --- | --- | --- |
    | "canvas" | (128, 8, 8) | [-12, 12] | canvas tokens, layer-normalized, pooled to `canvas_size` |
    | "uncertainty" | (1, 16, 16) | [0, 1] | the probe's predictive entropy, as a share of its maximum |
    | "acuity" | (1, 16, 16) | [0, 1] | the finest scale at which each cell has been seen, 0 where never |
    | "viewpoint" | (3,) | [-1, 1] | the last (row, col, scale); zeros before the first glimpse |
    | "time" | (1,) | [0, 1] | share of the budget left |
    | "cls" | (128,) | [-12, 12] | the recurrent CLS token, layer-normalized |
    | "glimpse" | (3, 32, 32), uint8 | [0, 255] | what the backbone saw last; zeros before the first glimpse |

    >>> {key: space.shape for key, space in env.observation_space.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'acuity': (1, 16, 16), 'canvas': (128, 8, 8), 'time': (1,),
     'uncertainty': (1, 16, 16), 'viewpoint': (3,)}

    ## Rewards
    With the loss L (cross-entropy between the probe's reading of each cell and its class shares, nats) and
    the score S (mIoU of the scene) before and after a glimpse:

    | `reward` | per glimpse |
    | --- | --- |
    | "loss_reduction" | L before minus L after |
    | "relative_loss_reduction" | the same, divided by L before (at least 0.05) |
    | "score_gain" | S after minus S before |
    | "final_score" | S at the end of the episode, 0 before |

    minus `glimpse_cost`. The first and third are differences of a potential: the return is the whole
    episode's gain.

    >>> env = gym.make("CanViT/FashionSegmentation-v0", num_scenes=16, reward="score_gain")
    >>> _, first = env.reset(seed=0)
    >>> rewards, terminated = [], False
    >>> while not terminated:
    ...     _, reward, terminated, _, info = env.step(env.action_space.sample())
    ...     rewards.append(reward)
    >>> bool(abs(sum(rewards) - (info["score"] - first["score"])) < 1e-6)
    True

    ## Starting State
    A scene, an empty canvas, and the first glimpse: the full scene, unless `first_glimpse` says otherwise.
    Training scenes come in shuffled passes without replacement; `reset(options={"scene": 3})` picks one.

    >>> observation, info = env.reset(options={"scene": 3})
    >>> int(info["scene"]), info["viewpoint"].tolist(), int(info["glimpses"])
    (3, [0.0, 0.0, 1.0], 1)

    ## Episode End
    Terminated when the budget is spent or the agent stops. Never truncated: the budget is part of the task,
    and "time" shows it. `info` holds "scene", "viewpoint", "glimpses" and "loss", "score" where it is
    tracked, and at the end "loss_curve" (and "score_curve"): [budget], after each glimpse; an episode
    stopped early keeps its last value.

    >>> sorted(info)
    ['glimpses', 'loss', 'scene', 'score', 'viewpoint']

    ## Arguments
    - `dataset`: "fashion-segmentation"; set by the id.
    - `split`: "training" (default; shuffled passes without replacement), "validation" or "test" (in order).
    - `num_scenes`: how many of the split's scenes; None (default) is 8192, 512 or 1000. `shard`: (i, n)
      takes every n-th of them from the i-th, so that n processes see disjoint scenes; default (0, 1), all of
      them.
    - `checkpoint`: "nano" (default), "flagship", a Hub id or a directory. `probe`: a directory, or None
      (default) for the checkpoint's own.
    - `device`: "auto" (default: CUDA where there is one), "cpu", "cuda". `precision`: "float32" (default) or
      "bfloat16" (autocast).
    - `budget`: glimpses per episode, the first one included; default 5. `first_glimpse`: "full" (default),
      "random", (row, col, scale), or None (the agent takes it).
    - `action`: "grid" (default), "continuous" or "quadtree". `min_scale`: of continuous actions, default
      0.125. `grid_scales`, `grid_centers`: default (0.5, 0.25) and 16. `quadtree_levels`: default 2.
    - `allow_stop`: whether the agent may end an episode early; default False. `glimpse_cost`: taken off the
      reward for every glimpse; default 0.0.
    - `reward`: "loss_reduction" (default), "relative_loss_reduction", "score_gain" or "final_score".
    - `observations`: the keys, default ("canvas", "uncertainty", "acuity", "viewpoint", "time").
      `canvas_size`: default 8. `map_size`: default None, the canvas grid. `observation_dtype`: "float32"
      (default) or "float16".
    - `track_score`: whether every info holds the score; default False. A segmentation's score costs an
      upsampling to scene size.
    - `render_mode`: None (default), "rgb_array", or "human" where there is a display.

    Every argument is plain JSON, so that `env.spec.to_json()` works.

    ## Vectorized environment
    `gymnasium.make_vec` gives the native one, GlimpseVectorEnv: all scenes advance in one batched forward.
    It takes `autoreset_mode` too: "next_step" (default), "same_step" or "disabled".

    >>> envs = gym.make_vec("CanViT/FashionSegmentation-v0", num_envs=4, num_scenes=16)
    >>> observation, info = envs.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    >>> observation["canvas"].shape, reward.shape
    ((4, 128, 8, 8), (4,))
    >>> envs.close()

    ## Version History
    - v0: first release.
    """

    def __init__(self, *, dataset: str = "fashion-segmentation", **kwargs: Any) -> None:
        super().__init__(dataset=dataset, **kwargs)


class FashionClassificationEnv(GlimpseEnv):
    """Find the one whole garment of a scene and name it.

    ## Description
    A scene of 128 x 128 px holds one whole Fashion-MNIST item of 26 to 44 px among eight to twelve fragments
    of others, over textured clutter. Its class, one of ten, is the label.

    The scene is seen through a sequence of glimpses of 32 x 32 px by a frozen CanViT, which remembers what
    it saw on a canvas of 16 x 16 cells. After every glimpse a frozen linear probe reads the class from the
    recurrent CLS token; the agent decides where the next glimpse is taken, and is paid for reading better.

    >>> import gymnasium as gym
    >>> import canvit_gym
    >>> env = gym.make("CanViT/FashionClassification-v0", num_scenes=16)
    >>> observation, info = env.reset(seed=0)
    >>> terminated = False
    >>> while not terminated:
    ...     observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    >>> int(info["glimpses"]), truncated
    (5, False)

    ## Action Space
    A viewpoint (row, col, scale): a square crop whose center lies in [-1, 1] x [-1, 1], (-1, -1) being the
    scene's top left corner, and whose side is `scale` times the scene's. All actions stay inside the scene:
    abs(row) and abs(col) at most 1 - scale.

    | `action` | space | meaning |
    | --- | --- | --- |
    | "grid" | Discrete(512) | scales x rows x cols: `grid_scales` x `grid_centers` x `grid_centers` |
    | "continuous" | Box(-1, 1, (3,)) | center by (1 - scale), then zoom: `min_scale` at -1, 1 at +1 |
    | "quadtree" | Discrete(21) | the tiles of levels 0..`quadtree_levels`: 1 + 4 + 16 |

    With `allow_stop` one more action, or a fourth number above 0, ends the episode without a glimpse.
    `envs.actions` of the vector environment decodes actions to viewpoints and encodes viewpoints to the
    nearest actions.

    >>> env.action_space
    Discrete(512)
    >>> continuous = {"action": "continuous", "allow_stop": True}
    >>> gym.make("CanViT/FashionClassification-v0", num_scenes=16, **continuous).action_space
    Box(-1.0, 1.0, (4,), float32)

    ## Observation Space
    A Dict of the keys asked for in `observations`, never with the label, the score or pixels that no glimpse
    has seen. The first five are the default.

    | key | shape | range | meaning |
    | --- | --- | --- | --- |
    | "canvas" | (128, 8, 8) | [-12, 12] | canvas tokens, layer-normalized, pooled to `canvas_size` |
    | "uncertainty" | (1,) | [0, 1] | the probe's predictive entropy, as a share of its maximum |
    | "acuity" | (1, 16, 16) | [0, 1] | the finest scale at which each cell has been seen, 0 where never |
    | "viewpoint" | (3,) | [-1, 1] | the last (row, col, scale); zeros before the first glimpse |
    | "time" | (1,) | [0, 1] | share of the budget left |
    | "cls" | (128,) | [-12, 12] | the recurrent CLS token, layer-normalized |
    | "glimpse" | (3, 32, 32), uint8 | [0, 255] | what the backbone saw last; zeros before the first glimpse |

    >>> {key: space.shape for key, space in env.observation_space.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'acuity': (1, 16, 16), 'canvas': (128, 8, 8), 'time': (1,),
     'uncertainty': (1,), 'viewpoint': (3,)}

    ## Rewards
    With the loss L (cross-entropy of the class, nats) and the score S (1 where the most likely class is the
    item's, else 0) before and after a glimpse:

    | `reward` | per glimpse |
    | --- | --- |
    | "loss_reduction" | L before minus L after |
    | "relative_loss_reduction" | the same, divided by L before (at least 0.05) |
    | "score_gain" | S after minus S before |
    | "final_score" | S at the end of the episode, 0 before |

    minus `glimpse_cost`. The first and third are differences of a potential: the return is the whole
    episode's gain.

    >>> env = gym.make("CanViT/FashionClassification-v0", num_scenes=16, reward="score_gain")
    >>> _, first = env.reset(seed=0)
    >>> rewards, terminated = [], False
    >>> while not terminated:
    ...     _, reward, terminated, _, info = env.step(env.action_space.sample())
    ...     rewards.append(reward)
    >>> bool(abs(sum(rewards) - (info["score"] - first["score"])) < 1e-6)
    True

    ## Starting State
    A scene, an empty canvas, and the first glimpse: the full scene, unless `first_glimpse` says otherwise.
    Training scenes come in shuffled passes without replacement; `reset(options={"scene": 3})` picks one.

    >>> observation, info = env.reset(options={"scene": 3})
    >>> int(info["scene"]), info["viewpoint"].tolist(), int(info["glimpses"])
    (3, [0.0, 0.0, 1.0], 1)

    ## Episode End
    Terminated when the budget is spent or the agent stops. Never truncated: the budget is part of the task,
    and "time" shows it. `info` holds "scene", "viewpoint", "glimpses" and "loss", "score" where it is
    tracked, and at the end "loss_curve" (and "score_curve"): [budget], after each glimpse; an episode
    stopped early keeps its last value.

    >>> sorted(info)
    ['glimpses', 'loss', 'scene', 'score', 'viewpoint']

    ## Arguments
    - `dataset`: "fashion-classification"; set by the id.
    - `split`: "training" (default; shuffled passes without replacement), "validation" or "test" (in order).
    - `num_scenes`: how many of the split's scenes; None (default) is 8192, 512 or 1000. `shard`: (i, n)
      takes every n-th of them from the i-th, so that n processes see disjoint scenes; default (0, 1), all of
      them.
    - `checkpoint`: "nano" (default), "flagship", a Hub id or a directory. `probe`: a directory, or None
      (default) for the checkpoint's own.
    - `device`: "auto" (default: CUDA where there is one), "cpu", "cuda". `precision`: "float32" (default) or
      "bfloat16" (autocast).
    - `budget`: glimpses per episode, the first one included; default 5. `first_glimpse`: "full" (default),
      "random", (row, col, scale), or None (the agent takes it).
    - `action`: "grid" (default), "continuous" or "quadtree". `min_scale`: of continuous actions, default
      0.125. `grid_scales`, `grid_centers`: default (0.5, 0.25) and 16. `quadtree_levels`: default 2.
    - `allow_stop`: whether the agent may end an episode early; default False. `glimpse_cost`: taken off the
      reward for every glimpse; default 0.0.
    - `reward`: "loss_reduction" (default), "relative_loss_reduction", "score_gain" or "final_score".
    - `observations`: the keys, default ("canvas", "uncertainty", "acuity", "viewpoint", "time").
      `canvas_size`: default 8. `map_size`: default None, the canvas grid. `observation_dtype`: "float32"
      (default) or "float16".
    - `track_score`: whether every info holds the score; default False. A classification's always does, at no
      cost.
    - `render_mode`: None (default), "rgb_array", or "human" where there is a display.

    Every argument is plain JSON, so that `env.spec.to_json()` works.

    ## Vectorized environment
    `gymnasium.make_vec` gives the native one, GlimpseVectorEnv: all scenes advance in one batched forward.
    It takes `autoreset_mode` too: "next_step" (default), "same_step" or "disabled".

    >>> envs = gym.make_vec("CanViT/FashionClassification-v0", num_envs=4, num_scenes=16)
    >>> observation, info = envs.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    >>> observation["canvas"].shape, reward.shape
    ((4, 128, 8, 8), (4,))
    >>> envs.close()

    ## Version History
    - v0: first release.
    """

    def __init__(self, *, dataset: str = "fashion-classification", **kwargs: Any) -> None:
        super().__init__(dataset=dataset, **kwargs)
