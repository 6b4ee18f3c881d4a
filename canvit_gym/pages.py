"""The documentation pages of the environments, in Gymnasium's order of sections: what differs by id, and what does not.

`help(canvit_gym.env.ADE20KEnv)`, or the docstring of any environment, shows one. Their examples are run by the
tests as they stand; those of data sets on disk want them where the example says.
"""

from dataclasses import dataclass
from string import Template
from textwrap import dedent, fill

from canvit_gym.observations import bound
from canvit_gym.registration import ENVIRONMENTS


@dataclass(frozen=True)
class _Geometry:
    """Sizes that a page tells, of the checkpoint that the id has by default."""

    scene_px: int
    glimpse_px: int
    grid: int
    canvas_dim: int
    cls_dim: int


_NANO = _Geometry(scene_px=128, glimpse_px=32, grid=16, canvas_dim=128, cls_dim=128)
_CANVIT_B = _Geometry(scene_px=512, glimpse_px=128, grid=32, canvas_dim=1024, cls_dim=768)


@dataclass(frozen=True)
class _Page:
    """What an id's page says of its own."""

    headline: str
    scenes: str
    classes: str
    dense: bool
    geometry: _Geometry
    splits: str
    example: str
    """Keyword arguments of the examples, as they are written in a call, with a comma before them."""
    num_scenes: str = "at most so many of the split's scenes, evenly spread over it; None (default) is all of them"
    root: str = ""


_FASHION_SPLITS = '"training" (default; shuffled passes without replacement), "validation" or "test" (in order)'
_FASHION_COUNT = "how many of the split's scenes; None (default) is 8192, 512 or 1000"
_BENCHMARK_SPLITS = (
    '"training" (default; shuffled passes without replacement), "validation" (in order) or "tuning" (in order: see '
    "`tuning_scenes`)"
)
_FOLDER_SPLITS = (
    '"training" (default; shuffled passes without replacement), "validation", "test" or "tuning" (in order)'
)

_PAGES = {
    "CanViT/FashionSegmentation-v0": _Page(
        headline="Find out which pixels of a scene belong to which garment.",
        scenes="""
            A scene of 128 x 128 px holds three to five (rarely two) Fashion-MNIST items of 26 to 44 px, tinted, none
            overlapping, over textured clutter with fragments of other items. At the first glimpse of the full scene
            an item is 6 to 11 px wide: where it is can be seen, what it is can hardly.
            """,
        classes="eleven classes (background and ten garments)",
        dense=True,
        geometry=_NANO,
        splits=_FASHION_SPLITS,
        num_scenes=_FASHION_COUNT,
        example=", num_scenes=16",
    ),
    "CanViT/FashionClassification-v0": _Page(
        headline="Find the one whole garment of a scene and name it.",
        scenes="""
            A scene of 128 x 128 px holds one whole Fashion-MNIST item of 26 to 44 px among eight to twelve fragments
            of others, over textured clutter. Its class, one of ten, is the label.
            """,
        classes="one of ten classes",
        dense=False,
        geometry=_NANO,
        splits=_FASHION_SPLITS,
        num_scenes=_FASHION_COUNT,
        example=", num_scenes=16",
    ),
    "CanViT/ADE20K-v0": _Page(
        headline="Name every pixel of a photograph: ADE20K's 150 classes, read by the released CanViT-B and its probe.",
        scenes="""
            A scene is an image of ADEChallengeData2016 squeezed to the checkpoint's scene size, 512 x 512 px, without
            cropping, as the CanViT paper evaluates. Unlabeled pixels count neither in the loss nor in the score.
            Images are read and resized by canvit-pytorch's own transforms, to the same pixels.
            """,
        classes="150 classes",
        dense=True,
        geometry=_CANVIT_B,
        splits=_BENCHMARK_SPLITS,
        root=("the ADEChallengeData2016 directory, with images/ and annotations/; None (default) is $ADE20K_ROOT"),
        example=', split="validation"',
    ),
    "CanViT/ImageNet1k-v0": _Page(
        headline="Name what a photograph shows: one of ImageNet-1k's thousand classes, read by the released CanViT-B.",
        scenes="""
            A scene is an image of ImageNet-1k, its short side resized to the checkpoint's scene size, 512 px, and
            center-cropped, as the CanViT paper evaluates. Classes are in the order of the sorted WordNet ids. Images
            are read and resized by canvit-pytorch's own transforms, to the same pixels. By default the pretrained
            CanViT-B stays frozen and its teacher's released probe reads it; checkpoint="finetuned-in1k" is the one
            fine-tuned on ImageNet-1k, which needs no probe.
            """,
        classes="one of 1,000 classes",
        dense=False,
        geometry=_CANVIT_B,
        splits=_BENCHMARK_SPLITS,
        root="the directory with train/ and val/, each with a folder per class; None (default) is $IMAGENET_ROOT",
        example=', split="validation", num_scenes=8',
    ),
    "CanViT/ImageFolder-v0": _Page(
        headline="Name what an image of your own shows.",
        scenes="""
            The data set is a folder of images with a folder per class:

                pets/train/cat/1.jpg   pets/val/cat/7.jpg   pets/test/cat/9.jpg     or     pets/cat/1.jpg
                pets/train/dog/2.jpg   pets/val/dog/8.jpg   pets/test/dog/10.jpg           pets/dog/2.jpg

            Folders train/, val/ (also valid/, validation/) and test/ are the splits. Without them an image's split is
            that of a hash of its path below the root: 80 % training, 10 % validation, 10 % test, the same on every
            machine, whatever other images there are. Images are resized on the short side and center-cropped to the
            checkpoint's scene size; grey, palette, CMYK and transparent ones become RGB, and an EXIF orientation is
            not applied, as in canvit-pytorch and torchvision.

            A probe for your classes is fitted with `python -m experiments.fit_probe`.
            """,
        classes="the class",
        dense=False,
        geometry=_NANO,
        splits=_FOLDER_SPLITS,
        root="the folder; default None, but there has to be one",
        example=', root="pets", probe="pets_probe"',
    ),
    "CanViT/SegmentationFolder-v0": _Page(
        headline="Name every pixel of images of your own.",
        scenes="""
            The data set is a folder of images with a mask for each, and a list of the classes:

                land/images/train/1.jpg   land/images/val/7.jpg   land/images/test/9.jpg   land/classes.txt
                land/masks/train/1.png    land/masks/val/7.png    land/masks/test/9.png

            Masks are PNGs of one class index a pixel, as large as their image; 255 is ignored. classes.txt names a
            class per line, in the order of the indices; classes.json, a list of names, does as well. Without train/,
            val/ and test/ an image's split is that of a hash of its path: 80 % training, 10 % validation, 10 % test.
            Image and mask are squeezed to the checkpoint's scene size, as in the protocol of ADE20K; the mask by its
            nearest pixels. Images of any mode are read, but for grey ones of 16 or 32 bits, which are
            refused; an EXIF orientation is not applied.

            A probe for your classes is fitted with `python -m experiments.fit_probe`.
            """,
        classes="the classes of your list",
        dense=True,
        geometry=_NANO,
        splits=_FOLDER_SPLITS,
        root="the folder; default None, but there has to be one",
        example=', root="land", probe="land_probe"',
    ),
}

_TEMPLATE = Template("""$headline

## Description
$scenes

The scene is seen through a sequence of glimpses of $glimpse_px x $glimpse_px px by a frozen CanViT, which remembers
what it saw on a canvas of $grid x $grid cells. After every glimpse a frozen linear probe reads $reading; the agent
decides where the next glimpse is taken, and is paid for reading better.

>>> import gymnasium as gym
>>> import canvit_gym
>>> env = gym.make("$id"$example)
>>> observation, info = env.reset(seed=0)
>>> terminated = False
>>> while not terminated:
...     observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
>>> int(info["glimpses"]), truncated
(5, False)

## Action Space
A viewpoint (row, col, scale): a square crop whose center lies in [-1, 1] x [-1, 1], (-1, -1) being the scene's top
left corner, and whose side is `scale` times the scene's. All actions stay inside the scene: abs(row) and abs(col) at
most 1 - scale.

| `action` | space | meaning |
| --- | --- | --- |
| "grid" | Discrete(512) | scales x rows x cols: `grid_scales` x `grid_centers` x `grid_centers` |
| "continuous" | Box(-1, 1, (3,)) | center by (1 - scale), then zoom: `min_scale` at -1, 1 at +1 |
| "quadtree" | Discrete(21) | the tiles of levels 0..`quadtree_levels`: 1 + 4 + 16 |

With `allow_stop` one more action, or a fourth number above 0, ends the episode without a glimpse. `envs.actions` of
the vector environment decodes actions to viewpoints and encodes viewpoints to the nearest actions.

>>> env.action_space
Discrete(512)
>>> gym.make("$id"$example, action="continuous", allow_stop=True).action_space
Box(-1.0, 1.0, (4,), float32)

## Observation Space
A Dict of the keys asked for in `observations`, never with the label, the score or pixels that no glimpse has seen.
The first five are the default.

| key | shape | range | meaning |
| --- | --- | --- | --- |
| "canvas" | ($canvas_dim, 8, 8) | [-$canvas_bound, $canvas_bound] | canvas tokens, layer-normalized, pooled |
| "uncertainty" | $uncertainty | [0, 1] | the probe's predictive entropy, as a share of its maximum |
| "acuity" | (1, $grid, $grid) | [0, 1] | the finest scale at which each cell has been seen, 0 where never |
| "viewpoint" | (3,) | [-1, 1] | the last (row, col, scale); zeros before the first glimpse |
| "gaze" | (24,) | [-1, 1] | the last eight of these, newest first; zeros where there was none |
| "time" | (1,) | [0, 1] | share of the budget left |
| "cls" | ($cls_dim,) | [-$cls_bound, $cls_bound] | the recurrent CLS token, layer-normalized |
| "glimpse" | (3, $glimpse_px, $glimpse_px), uint8 | [0, 255] | what the backbone saw last; zeros before the first |

>>> sorted(env.observation_space.spaces)
['acuity', 'canvas', 'time', 'uncertainty', 'viewpoint']

## Rewards
With $measures before and after a glimpse:

| `reward` | per glimpse |
| --- | --- |
| "loss_reduction" | L before minus L after |
| "relative_loss_reduction" | the same, divided by L before (at least 0.05) |
| "score_gain" | S after minus S before |
| "soft_score_gain" | P after minus P before, P being $soft_score |
| "final_score" | S at the end of the episode, 0 before |

minus `glimpse_cost`. The first, third and fourth are differences of a potential: the return is the whole episode's
gain.

>>> env = gym.make("$id"$example, reward="score_gain")
>>> _, first = env.reset(seed=0)
>>> rewards, terminated = [], False
>>> while not terminated:
...     _, reward, terminated, _, info = env.step(env.action_space.sample())
...     rewards.append(reward)
>>> bool(abs(sum(rewards) - (info["score"] - first["score"])) < 1e-6)
True

## Starting State
A scene, an empty canvas, and the first glimpse: the full scene, unless `first_glimpse` says otherwise. Training scenes
come in shuffled passes without replacement; `reset(options={"scene": 3})` picks one.

>>> observation, info = env.reset(options={"scene": 3})
>>> int(info["scene"]), info["viewpoint"].tolist(), int(info["glimpses"])
(3, [0.0, 0.0, 1.0], 1)

## Episode End
Terminated when the budget is spent or the agent stops. Never truncated: the budget is part of the task, and "time"
shows it. `info` holds "scene", "viewpoint", "glimpses" and "loss", "score" where it is tracked, and at the end
"loss_curve" (and "score_curve"): [budget], after each glimpse; an episode stopped early keeps its last value.

>>> sorted(info)
['glimpses', 'loss', 'scene', 'score', 'viewpoint']

## Arguments
- `dataset`: "$dataset"; set by the id.
- `split`: $splits.
- `num_scenes`: $num_scenes. `shard`: (i, n) takes every n-th of them from the i-th, so that n processes see disjoint
  scenes; default (0, 1), all of them.
$disk
- `checkpoint`: $checkpoints. `revision`: of a Hub id; default None, the newest. `probe`: a directory, or None
  (default) for the checkpoint's own for this data set.
- `canvas_grid`, `scene_size_px`: cells of the canvas and pixels of the scene on a side; default None, those of the
  pretraining, for both of them.
- `device`: "auto" (default: CUDA where there is one), "cpu", "cuda". `precision`: "float32" (default) or "bfloat16"
  (autocast). `compile`: whether steps go through torch.compile; default False. It takes about half a minute at the
  first step, once per process, and a C++ compiler on a CPU.
- `budget`: glimpses per episode, the first one included; default 5. `first_glimpse`: "full" (default), "random",
  (row, col, scale), or None (the agent takes it).
- `first_glimpse_cache_mb`: megabytes for a cache of the states after the first glimpse, which saves the forward of
  a scene that comes back; default 0, none. `first_glimpse_cache_dtype`: "float16" (default) or "bfloat16", to which
  every first state is rounded where there is a cache. `first_glimpse_cache_on`: "host" (default) or "device".
- `action`: "grid" (default), "continuous" or "quadtree". `min_scale`: of continuous actions, default 0.125.
  `grid_scales`, `grid_centers`: default (0.5, 0.25) and 16. `quadtree_levels`: default 2.
- `allow_stop`: whether the agent may end an episode early; default False. `glimpse_cost`: taken off the reward for
  every glimpse; default 0.0.
- `reward`: "loss_reduction" (default), "relative_loss_reduction", "score_gain", "soft_score_gain" or "final_score".
- `observations`: the keys, default ("canvas", "uncertainty", "acuity", "viewpoint", "time"). `canvas_size`: default 8.
  `map_size`: default None, the canvas grid. `observation_dtype`: "float32" (default) or "float16".
- `track_score`: whether every info holds the score; default False. $score_cost
- `render_mode`: None (default), "rgb_array", or "human" where there is a display.

Every argument is plain JSON, so that `env.spec.to_json()` works.

## Vectorized environment
`gymnasium.make_vec` gives the native one, GlimpseVectorEnv: all scenes advance in one batched forward. It takes
`autoreset_mode` too: "next_step" (default), "same_step" or "disabled".

>>> envs = gym.make_vec("$id", num_envs=3$example)
>>> observation, info = envs.reset(seed=0)
>>> observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
>>> observation["canvas"].shape == (3, *env.observation_space["canvas"].shape), reward.shape
(True, (3,))
>>> envs.close()

## Version History
- v0: first release.
""")

_NOT_ON_DISK = """\
- `root` (default None), `tuning_scenes` (default 0), `workers` (default None), `unreadable` (default "raise"), `cache`
  (default False): of data sets on disk; nothing to set here."""

_ON_DISK = Template("""\
- `root`: $root.
- `tuning_scenes`: so many training scenes, evenly spread, are left out of the training split and are the "tuning" one:
  to choose hyperparameters on; default 0.
- `workers`: processes that decode and resize scenes ahead of need; the scenes do not depend on it. None (default) is
  one per CPU core but one, at most 8, and none for a single environment.
- `unreadable`: "raise" (default) stops at a file that cannot be decoded and names it; "skip" goes on without it, warns
  once, and keeps count in `envs.scenes.unreadable`.
- `cache`: True, or a directory, decodes every scene once into a memory-mapped file and reads from there; default False.
  True is $$CANVIT_GYM_CACHE. What changes on disk is decoded anew.""")


def page(env_id: str) -> str:
    """The page of an id."""
    own, geometry = _PAGES[env_id], _PAGES[env_id].geometry
    checkpoint = ENVIRONMENTS[env_id].get("checkpoint", "nano")
    others = '"nano", any other released name' if checkpoint == "flagship" else '"flagship", any other released name'
    text = _TEMPLATE.substitute(
        id=env_id,
        dataset=ENVIRONMENTS[env_id]["dataset"],
        headline=own.headline,
        scenes=dedent(own.scenes).strip(),
        example=own.example,
        splits=own.splits,
        num_scenes=own.num_scenes,
        disk=_ON_DISK.substitute(root=own.root) if own.root else _NOT_ON_DISK,
        checkpoints=f'"{checkpoint}" (default), {others}, a Hub id or a directory',
        glimpse_px=geometry.glimpse_px,
        grid=geometry.grid,
        canvas_dim=geometry.canvas_dim,
        canvas_bound=bound(geometry.canvas_dim),
        cls_dim=geometry.cls_dim,
        cls_bound=bound(geometry.cls_dim),
        uncertainty=f"(1, {geometry.grid}, {geometry.grid})" if own.dense else "(1,)",
        reading=f"{own.classes} from {'every cell' if own.dense else 'the recurrent CLS token'}",
        measures=(
            "the loss L (cross-entropy between the probe's reading of each cell and its class shares, nats) and the "
            "score S (mIoU of the scene)"
            if own.dense
            else "the loss L (cross-entropy of the class, nats) and the score S (1 where the most likely class is the "
            "scene's, else 0)"
        ),
        soft_score=(
            "the mean IoU of probabilities with class shares, over the scene's classes"
            if own.dense
            else "the probability of the scene's class"
        ),
        score_cost=(
            "A segmentation's score is counted at scene size, which takes time."
            if own.dense
            else "A classification's always does, at no cost."
        ),
    )
    return "\n\n".join(_filled(block) for block in text.split("\n\n"))


def _filled(block: str) -> str:
    """Prose and lists to a width; tables, titles and examples as they are."""
    if block.startswith("#"):
        title, _, rest = block.partition("\n")
        return f"{title}\n{_filled(rest)}"
    if block.startswith(("|", ">>>", " ")):
        return block
    items = ("\n" + block).replace("\n- ", "\0- ").replace("\n", " ").strip().split("\0")
    indents = ["  " if item.startswith("- ") else "" for item in items]
    prose = [" ".join(item.split()) for item in items]
    lines = [fill(item, 112, subsequent_indent=indent) for item, indent in zip(prose, indents, strict=True)]
    return "\n".join(line for line in lines if line)
