"""The documentation pages of the environments, in Gymnasium's order of sections, made from the specs of the data sets,
the fields of EnvConfig and the tables of tasks, rewards and observations.

`help(canvit_gym.env.ADE20KEnv)`, or the docstring of any environment, shows one. Their examples are run by the
tests as they stand; those of data sets on disk want them where the example says.
"""

from dataclasses import Field, fields
from string import Template
from textwrap import dedent, fill
from typing import Any

import numpy as np

from canvit_gym.config import GROUPS, EnvConfig
from canvit_gym.observations import DEFAULT_KEYS, OBSERVATIONS, ObservationLayout
from canvit_gym.rewards import REWARDS
from canvit_gym.scenes.datasets import DatasetSpec
from canvit_gym.tasks import TASKS

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
...     observation, reward, terminated, truncated, info = env.step($sample)
>>> int(info["glimpses"]), truncated
($budget, False)

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
Default: $default_keys.

| key | shape | range | meaning |
| --- | --- | --- | --- |
$observations

>>> sorted(env.observation_space.spaces)
$sorted_keys

## Rewards
With these potentials of a reading, before and after a glimpse:

| potential | | what it is |
| --- | --- | --- |
$potentials

| `reward` | per glimpse |
| --- | --- |
$rewards

minus `glimpse_cost`. Of differences of a potential the return is the whole episode's gain.

>>> env = gym.make("$id"$example, reward="score_gain")
>>> _, first = env.reset(seed=0)
>>> rewards, terminated = [], False
>>> while not terminated:
...     _, reward, terminated, _, info = env.step($sample)
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
Terminated when the budget is spent or the agent stops. The budget is part of the task, and "time" shows it: nothing is
truncated. `info` holds "scene", "viewpoint", "glimpses" and "loss", "score" where it is tracked, and "loss_curve" (and
"score_curve"): [budget], after each glimpse; where no glimpse was taken (yet) it keeps the last value. Vector
environments hold curves where an episode ends.

>>> {"glimpses", "loss", "loss_curve", "scene", "viewpoint"} <= set(info)
True

## Arguments
$arguments

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


_MASKED_SAMPLE = 'env.action_space.sample(info["action_mask"])'


def page(spec: DatasetSpec) -> str:
    """The page of a data set's environment."""
    own, geometry, task = spec.page, spec.page.geometry, TASKS[spec.task]
    symbols = {symbol: symbol for symbol, _ in task.potentials.values()}
    example = "".join(f", {name}={_written(value)}" for name, value in own.example.items())
    text = _TEMPLATE.substitute(
        id=spec.env_id,
        headline=own.headline,
        scenes=dedent(own.scenes).strip(),
        example=example,
        arguments=arguments(spec),
        glimpse_px=geometry.glimpse_px,
        grid=geometry.grid,
        budget=spec.kwargs.get("budget", EnvConfig.budget),
        sample="env.action_space.sample()" if spec.kwargs.get("revisit", True) else _MASKED_SAMPLE,
        reading=f"{own.classes} from {task.source}",
        default_keys=", ".join(spec.env_defaults.get("observations", DEFAULT_KEYS)),
        sorted_keys=sorted(spec.env_defaults.get("observations", DEFAULT_KEYS)),
        observations="\n".join(_observation_rows(spec)),
        potentials="\n".join(f"| {name} | {symbol} | {doc} |" for name, (symbol, doc) in task.potentials.items()),
        rewards="\n".join(
            f'| "{name}" | {reward.doc.format(**symbols)} |'
            for name, reward in REWARDS.items()
            if reward.potential in task.potentials
        ),
    )
    return "\n\n".join(_filled(block) for block in text.split("\n\n"))


def _observation_rows(spec: DatasetSpec) -> list[str]:
    """A row of the table for every key that the environment can show, with the shapes of its default sizes."""
    geometry, kind = spec.page.geometry, TASKS[spec.task].kind
    shown = spec.env_defaults.get("observations", DEFAULT_KEYS)
    layout = ObservationLayout(
        keys=("time",),
        canvas_size=EnvConfig.canvas_size,
        map_size=geometry.grid,
        dtype="float32",
        canvas_dim=geometry.canvas_dim,
        backbone_dim=geometry.cls_dim,
        canvas_grid=geometry.grid,
        glimpse_size_px=geometry.glimpse_px,
        uncertainty_shape=kind.uncertainty_shape(geometry.grid),
    )
    rows = []
    for name, key in OBSERVATIONS.items():
        # Sizes of these two follow from the classes, which are not known before there are scenes.
        if name == "goal":
            rows += [f'| "goal" | {key.shape} | {key.range} | {key.meaning} |'] if name in shown else []
            continue
        try:
            key.require_possible(layout)
        except ValueError:
            continue
        if name == "reading":
            rows.append(f'| "reading" | {key.shape} | {key.range} | {key.meaning} |')
            continue
        box = key.space(layout)
        dtype = "" if box.dtype == np.float32 else f", {box.dtype}"
        limits = f"[{box.low.min():g}, {box.high.max():g}]"
        rows.append(f'| "{name}" | {box.shape}{dtype} | {limits} | {key.meaning} |')
    return rows


def arguments(spec: DatasetSpec | None = None) -> str:
    """The keyword arguments with their defaults, from EnvConfig's fields: of a data set's environment, or of all."""
    blocks = []
    for group in GROUPS:
        assert group.__doc__ is not None
        title, _, about = group.__doc__.partition(":")
        items = [_item(f, spec) for f in fields(group) if not (f.metadata["on_disk"] and spec and not spec.on_disk)]
        blocks.append(f"**{title}**: {' '.join(about.split())}\n" + "\n".join(items))
    if spec is not None and spec.on_disk is None:
        names = [f"`{f.name}` (default {_written(f.default)})" for f in fields(EnvConfig) if f.metadata["on_disk"]]
        blocks.append(f"{', '.join(names)} are of data sets on disk: nothing to set here.")
    return "\n\n".join(blocks)


def _item(f: "Field[Any]", spec: DatasetSpec | None) -> str:
    default, doc = f.default, f.metadata["doc"]
    if spec is not None:
        default = spec.kwargs.get(f.name, default)
        doc = spec.page.arguments.get(f.name, doc)
        if f.name == "split":
            doc = f"{doc}. There are {', '.join(_written(split) for split in spec.splits)}"
    return f"- `{f.name}` (default {_written(default)}): {doc}."


def _written(value: Any) -> str:
    """A value as in a call, strings in double quotes."""
    return repr(value).replace("'", '"')


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
