"""The documentation pages of the environments, with Gymnasium's sections. They are generated from the specs of the data
sets, the fields of EnvConfig and the tables of tasks, rewards and observations.

`help(canvit_gym.env.ADE20KEnv)`, or the docstring of any environment, shows one. The tests run their examples. Those of
data sets on disk expect the data in the directory that the example names.
"""

from dataclasses import Field, fields, replace
from string import Template
from textwrap import dedent, fill
from typing import Any

import numpy as np
from gymnasium import spaces

from canvit_gym.actions import ActionKind, DiscreteActions, make_actions
from canvit_gym.config import GROUPS, EnvConfig
from canvit_gym.observations import DEFAULT_KEYS, OBSERVATIONS, ObservationLayout
from canvit_gym.rewards import REWARDS
from canvit_gym.scenes.datasets import DatasetSpec
from canvit_gym.tasks import TASKS, TaskSpec

_TEMPLATE = Template("""$headline

## Description
$scenes

A frozen CanViT sees the scene through a sequence of glimpses of $glimpse_px x $glimpse_px px and keeps what it saw on
a canvas of $grid x $grid cells. After every glimpse a frozen linear probe reads $reading. The agent decides where to
take the next glimpse and is paid for better readings.

>>> import gymnasium as gym
>>> import canvit_gym
>>> env = gym.make("$id"$example)
>>> observation, info = env.reset(seed=0)
>>> terminated = False
>>> while not terminated:
...     observation, reward, terminated, truncated, info = env.step($sample)
>>> int(info["glimpses"])$most, truncated
$ended

## Action Space
An action is a viewpoint (row, col, scale): a square crop whose side is `scale` times the scene's. The center lies in
[-1, 1] x [-1, 1], where (-1, -1) is the top left corner of the scene. All crops stay inside the scene: abs(row) and
abs(col) are at most 1 - scale.

| `action` | space | meaning |
| --- | --- | --- |
$actions

$stopping `env.unwrapped.actions` decodes actions into viewpoints and encodes viewpoints as the nearest actions.

$spaces

## Observation Space
A Dict of the keys in `observations` (default: $default_keys). It never contains the label, the score, or pixels that
no glimpse has seen.

| key | shape | range | meaning |
| --- | --- | --- | --- |
$observations

>>> sorted(env.observation_space.spaces)
$sorted_keys

## Rewards
Rewards are computed from a potential of the reading before and after a glimpse:

| potential | symbol | meaning |
| --- | --- | --- |
$potentials

| `reward` | per glimpse |
| --- | --- |
$rewards

minus `glimpse_cost`. Where the reward is a difference of a potential, the undiscounted return is the gain of the whole
episode.

>>> env = gym.make("$id"$example, reward="score_gain")
>>> _, first = env.reset(seed=0)
>>> rewards, terminated = [], False
>>> while not terminated:
...     _, reward, terminated, _, info = env.step($sample)
...     rewards.append(reward)
>>> gain = info["score"] - first["score"]$costs
>>> bool(abs(sum(rewards) - gain) < 1e-6)
True

## Starting State
A new scene and an empty canvas, after the first glimpse: of the full scene, unless `first_glimpse` says otherwise.
Training scenes are sampled in shuffled passes without replacement; `reset(options={"scene": 3})` chooses one.

>>> observation, info = env.reset(options={"scene": 3})
>>> int(info["scene"]), info["viewpoint"].tolist(), int(info["glimpses"])
(3, [0.0, 0.0, 1.0], 1)

## Episode End
An episode terminates when the budget is spent or the agent stops. The budget is part of the task and "time" shows what
is left of it, so that nothing is truncated.

>>> env = gym.make("$id"$example, budget=2)
>>> observation, info = env.reset(seed=0)
>>> observation, reward, terminated, truncated, info = env.step($sample)
>>> terminated, truncated
(True, False)

## Information
`reset` and `step` return an `info` with these keys:

| key | value |
| --- | --- |
$info

A `reward` adds the potential that it is computed from, and `track_score` adds the score, each with its curve. Infos of
vector environments contain curves only when an episode ends.

$keys

## Rendering
`render_mode="rgb_array"`: `render()` returns an RGB frame. It shows the scene with its glimpses, the last glimpse, the
canvas, the reading, the truth, and the curves of loss and score. `render_mode="human"` shows the frames in a window,
which is updated at every step; it needs a display.

>>> env = gym.make("$id"$example, render_mode="rgb_array")
>>> observation, info = env.reset(seed=0)
>>> height, width, channels = env.render().shape
>>> channels
3
>>> env.close()

## Arguments
$arguments

Every argument is plain JSON, so `env.spec.to_json()` works.

## Vectorized environment
`gymnasium.make_vec` makes the native GlimpseVectorEnv, which advances all scenes in one batched forward. It also takes
`autoreset_mode`: "next_step" (default), "same_step" or "disabled".

>>> envs = gym.make_vec("$id", num_envs=3$example)
>>> observation, info = envs.reset(seed=0)
>>> observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
>>> observation["canvas"].shape == (3, *env.observation_space["canvas"].shape), reward.shape
(True, (3,))
>>> envs.close()

## Version History
- v0: first release.$history
""")


_MAY_STOP = "With `allow_stop`, one more action, or a fourth number above 0, ends the episode without a glimpse."
_STOPS = (
    "With `allow_stop`, the default here, the last action, or a fourth number above 0, ends the episode without a "
    "glimpse."
)
_MASKED_SAMPLE = 'env.action_space.sample(info["action_mask"])'


def page(spec: DatasetSpec) -> str:
    """The documentation page of a data set's environment."""
    own, geometry, task = spec.page, spec.page.geometry, TASKS[spec.task]
    config = EnvConfig(**spec.kwargs)
    info = _info_keys(config, task)
    symbols = {symbol: symbol for symbol, _ in task.potentials.values()}
    example = "".join(f", {name}={_written(value)}" for name, value in own.example.items())
    text = _TEMPLATE.substitute(
        id=spec.env_id,
        headline=own.headline,
        history=own.history and f" {own.history}",
        scenes=dedent(own.scenes).strip(),
        example=example,
        arguments=arguments(spec),
        glimpse_px=geometry.glimpse_px,
        grid=geometry.grid,
        # A random agent may stop at any time where it can.
        most=f" <= {config.budget}" if config.allow_stop else "",
        ended=(True if config.allow_stop else config.budget, False),
        sample="env.action_space.sample()" if config.revisit else _MASKED_SAMPLE,
        actions="\n".join(_action_rows(config)),
        stopping=_STOPS if config.allow_stop else _MAY_STOP,
        spaces=_space_examples(spec.env_id, example, config),
        costs=f' - {config.glimpse_cost} * (info["glimpses"] - first["glimpses"])' if config.glimpse_cost else "",
        info="\n".join(f'| "{key}" | {meaning} |' for key, meaning in info.items()),
        keys=f">>> sorted(info)\n{fill(str(sorted(info)), 112)}",
        reading=f"{own.classes} from {task.source}",
        default_keys=", ".join(config.observations),
        sorted_keys=sorted(config.observations),
        observations="\n".join(_observation_rows(spec)),
        potentials="\n".join(f"| {name} | {symbol} | {doc} |" for name, (symbol, doc) in task.potentials.items()),
        rewards="\n".join(
            f'| "{name}" | {reward.doc.format(**symbols)} |'
            for name, reward in REWARDS.items()
            if reward.potential in task.potentials
        ),
    )
    return "\n\n".join(_filled(block) for block in text.split("\n\n"))


def _action_rows(config: EnvConfig) -> list[str]:
    """A table row for every kind of action that the environment can have, with its space there."""
    tiles = " + ".join(str(4**level) for level in range(config.quadtree_levels + 1))
    meanings: dict[ActionKind, str] = {
        "grid": "scales x rows x cols: `grid_scales` x `grid_centers` x `grid_centers`",
        "continuous": "center divided by (1 - scale), then zoom: scale `min_scale` at -1, 1 at +1",
        "quadtree": f"the tiles of levels 0..`quadtree_levels`: {tiles}",
    }
    rows = []
    for kind, meaning in meanings.items():
        actions = make_actions(kind, **config.action_parameters)
        if config.revisit or isinstance(actions, DiscreteActions):
            space = actions.space
            written = f"Box(-1, 1, {space.shape})" if isinstance(space, spaces.Box) else str(space)
            rows.append(f'| "{kind}" | {written} | {meaning}{"; and stopping" if config.allow_stop else ""} |')
    return rows


def _space_examples(env_id: str, example: str, config: EnvConfig) -> str:
    """The environment's action space and, where actions need no table, that of another kind."""
    space = make_actions(config.action, **config.action_parameters).space
    lines = [">>> env.action_space", str(space)]
    if config.revisit:
        other = make_actions("continuous", **replace(config, allow_stop=True).action_parameters).space
        lines += [f'>>> gym.make("{env_id}"{example}, action="continuous", allow_stop=True).action_space', str(other)]
    return "\n".join(lines)


def _info_keys(config: EnvConfig, task: TaskSpec) -> dict[str, str]:
    """Key -> meaning of what the infos of single environments contain."""
    keys = {
        "scene": "index of the scene",
        "viewpoint": "(3,): the last (row, col, scale)",
        "glimpses": "number of glimpses taken",
    }
    if "goal" in config.observations:
        keys["goal"] = "number of the goal"
    if isinstance(make_actions(config.action, **config.action_parameters), DiscreteActions):
        all_ones = "; all ones unless `revisit=False`" if config.revisit else ""
        keys["action_mask"] = (
            f"(number of actions,), int8: 1 where an action may be chosen, for `action_space.sample(mask)`{all_ones}"
        )
    tracked = {*task.kind.in_every_info, REWARDS[config.reward].potential, *(["score"] if config.track_score else [])}
    named = [name for name in task.potentials if name in tracked]
    curve = "(budget,): its values after each glimpse; the last one is repeated for glimpses that are not taken"
    keys |= {name: f"the potential {task.potentials[name][0]}: see Rewards" for name in named}
    return keys | {f"{name}_curve": curve if name == "loss" else f"the same of {name}" for name in named}


def _observation_rows(spec: DatasetSpec) -> list[str]:
    """A table row for every key that the environment can show, with the shapes of its default sizes."""
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
        # The sizes of these two follow from the classes, which are unknown before there are scenes.
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
    """The keyword arguments and their defaults, from the fields of EnvConfig. spec: None lists all of them."""
    blocks = []
    for group in GROUPS:
        assert group.__doc__ is not None
        title, _, about = group.__doc__.partition(":")
        items = [_item(f, spec) for f in fields(group) if not (f.metadata["on_disk"] and spec and not spec.on_disk)]
        blocks.append(f"**{title}**: {' '.join(about.split())}\n" + "\n".join(items))
    if spec is not None and spec.on_disk is None:
        names = [f"`{f.name}` (default {_written(f.default)})" for f in fields(EnvConfig) if f.metadata["on_disk"]]
        blocks.append(f"{', '.join(names)} only apply to data sets on disk.")
    return "\n\n".join(blocks)


def _item(f: "Field[Any]", spec: DatasetSpec | None) -> str:
    default, doc = f.default, f.metadata["doc"]
    if spec is not None:
        default = spec.kwargs.get(f.name, default)
        doc = spec.page.arguments.get(f.name, doc)
        if f.name == "split":
            doc = f"{doc}. Splits: {', '.join(_written(split) for split in spec.splits)}"
    return f"- `{f.name}` (default {_written(default)}): {doc}."


def _written(value: Any) -> str:
    """A value as one writes it in a call, strings in double quotes."""
    return repr(value).replace("'", '"')


def _filled(block: str) -> str:
    """Wrap prose and lists; leave tables, titles and examples as they are."""
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
