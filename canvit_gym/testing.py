"""A checker of vector environments, which Gymnasium lacks: does an environment follow Gymnasium 1.4's API?

`check_vector_env(envs)` runs a few rollouts and raises AssertionError, which says what is wrong, where, and what was
expected. It works on any `gymnasium.vector.VectorEnv` with numpy observations, not only on those of this package.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

Info = dict[str, Any]


@dataclass(frozen=True)
class _Step:
    """A copy of what one call returned. A reset has neither actions nor rewards."""

    observation: Any
    info: Info
    actions: Any = None
    rewards: Any = None
    terminated: Any = None
    truncated: Any = None

    @property
    def ended(self) -> np.ndarray:
        return np.logical_or(self.terminated, self.truncated)


def check_vector_env(
    envs: VectorEnv[Any, Any, Any], *, seed: int = 123, max_steps: int = 500, raises_when_closed: bool = True
) -> None:
    """Raise AssertionError if `envs` does not follow the API; closes it at the end.

    It checks the spaces; dtypes, shapes and ranges of everything returned; infos and their masks; that returned
    arrays are fresh (the environment neither changes them later nor reads them again); seeding; the autoreset mode
    that `metadata` declares; closing.

    Args:
        seed: rollouts are seeded with it and the number after it.
        max_steps: the longest rollout, which otherwise lasts until an episode has ended.
        raises_when_closed: whether step and reset must raise after close. Gymnasium's SyncVectorEnv does not.

    >>> import gymnasium as gym
    >>> import canvit_gym
    >>> from canvit_gym.testing import check_vector_env
    >>> envs = gym.make_vec("CanViT/FashionClassification-v0", num_envs=2, num_scenes=16, observations=("cls",))
    >>> check_vector_env(envs)
    """
    mode = _check_attributes(envs)
    first = _rollout(envs, mode, seed=seed, max_steps=max_steps)
    _check_autoreset(envs, mode, first)
    again = _rollout(envs, mode, seed=seed, max_steps=max_steps, like=first)
    _check_same(first, again, "reset(seed={seed}) twice and the same actions gave different {what}", seed)
    try:
        spoiled = _rollout(envs, mode, seed=seed, max_steps=max_steps, like=first, spoil=True)
        _check_same(first, spoiled, "different {what}", seed)
    except Exception as error:
        raise AssertionError(
            f"seed {seed}: overwriting returned observations and infos, or actions once they were used, changed what "
            f"came later: return copies, and keep copies ({error})"
        ) from error
    if mode == AutoresetMode.NEXT_STEP:
        other = _rollout(envs, mode, seed=seed, max_steps=max_steps, like=first, other_actions_on_reset=True)
        _check_same(
            first,
            other,
            "seed {seed}: another action on the step that only resets an environment changed {what}",
            seed,
        )
    if mode == AutoresetMode.DISABLED:
        _check_reset_mask(envs, seed)
    _rollout(envs, mode, seed=None, max_steps=min(max_steps, 10), until_end=False)
    _check_close(envs, raises_when_closed)


def _check_attributes(envs: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    assert isinstance(envs, VectorEnv), f"expected a gymnasium.vector.VectorEnv, got {type(envs)}"
    n = envs.num_envs
    assert isinstance(n, int) and n >= 1, f"num_envs must be a whole number >= 1, got {n!r}"
    for kind in ("observation", "action"):
        single, batched = getattr(envs, f"single_{kind}_space"), getattr(envs, f"{kind}_space")
        assert isinstance(single, spaces.Space), f"single_{kind}_space must be a gymnasium space, got {single!r}"
        expected = batch_space(single, n)
        assert batched == expected, (
            f"{kind}_space must be batch_space(single_{kind}_space, {n}) = {expected}, got {batched}"
        )
    mode = envs.metadata.get("autoreset_mode")
    assert isinstance(mode, AutoresetMode), (
        f"metadata['autoreset_mode'] must be a gymnasium.vector.AutoresetMode, got {mode!r}"
    )
    known = envs.metadata.get("render_modes", [])
    assert envs.render_mode is None or envs.render_mode in known, (
        f"render_mode {envs.render_mode!r} is not in metadata['render_modes'] = {known}"
    )
    return mode


def _rollout(
    envs: VectorEnv[Any, Any, Any],
    mode: AutoresetMode,
    *,
    seed: int | None,
    max_steps: int,
    like: list[_Step] | None = None,
    spoil: bool = False,
    other_actions_on_reset: bool = False,
    until_end: bool = True,
) -> list[_Step]:
    """Reset and step until some episodes have ended and been reset, checking each result and that it is fresh.

    `like` repeats another rollout's actions. `spoil` overwrites returned arrays and used actions right away.
    """
    n = envs.num_envs
    if seed is not None:
        envs.action_space.seed(seed)
        other_space = copy.deepcopy(envs.action_space)
        other_space.seed(seed + 1)
    else:
        other_space = envs.action_space
    result = envs.reset(seed=seed)
    assert isinstance(result, tuple) and len(result) == 2, (
        f"reset must return (observation, info), got {_brief(result)}"
    )
    observation, info = result
    where = f"reset(seed={seed})"
    _check_observation(envs, observation, where)
    _check_info(info, n, where)
    if seed is not None:
        _check_seed_kept(envs, seed)
    steps = [_Step(copy.deepcopy(observation), copy.deepcopy(info))]
    held = (observation, info)

    ended = np.zeros(n, dtype=np.bool_)
    steps_after_end: int | None = None
    while len(steps) <= (max_steps if like is None else len(like) - 1):
        where = f"step {len(steps)}"
        if mode == AutoresetMode.DISABLED and ended.any():
            where_reset = f"reset(options={{'reset_mask': {ended}}}) after step {len(steps) - 1}"
            before = None if spoil else copy.deepcopy(held)
            observation, info = envs.reset(options={"reset_mask": ended.copy()})
            if before is not None:
                _check_fresh(held, before, (observation, info), where_reset)
            _check_observation(envs, observation, where_reset)
            _check_info(info, n, where_reset)
            held = (observation, info)
        actions = _sampled(envs, info) if like is None else copy.deepcopy(like[len(steps)].actions)
        if other_actions_on_reset and ended.any():
            actions = _mixed(envs.single_action_space, actions, other_space.sample(), ended)
        asked = copy.deepcopy(actions)
        if spoil:
            _spoil(held)
        before = None if spoil else copy.deepcopy(held)
        result = envs.step(actions)
        assert isinstance(result, tuple) and len(result) == 5, (
            f"{where} must return (observation, rewards, terminations, truncations, info), got {_brief(result)}"
        )
        observation, rewards, terminated, truncated, info = result
        assert _equal(actions, asked), f"{where} changed the actions it was given: {_brief(asked)} -> {_brief(actions)}"
        if before is not None:
            _check_fresh(held, before, (observation, info), where)
        _check_observation(envs, observation, where)
        _check_rewards(rewards, n, where)
        for name, flags in (("terminations", terminated), ("truncations", truncated)):
            _check_array(flags, f"{where}: {name}", (n,), np.bool_)
        _check_info(info, n, where)
        step = _Step(*copy.deepcopy((observation, info, asked, rewards, terminated, truncated)))
        steps.append(step)
        if spoil:
            _spoil((actions,))
        held = (observation, info)
        ended = step.ended
        if like is None:
            if steps_after_end is not None:
                steps_after_end += 1
            elif ended.any():
                steps_after_end = 0
            if len(steps) > 10 and (steps_after_end or 0) >= 3:
                break
    else:
        assert like is not None or not until_end or any(step.ended.any() for step in steps[1:]), (
            f"no episode ended in {max_steps} steps of random actions, so how environments reset is unknown: "
            "raise max_steps, or check a version with shorter episodes"
        )
    return steps


def _sampled(envs: VectorEnv[Any, Any, Any], info: Info) -> Any:
    """Random actions; discrete ones respect info["action_mask"], if there is one."""
    mask = info.get("action_mask")
    if mask is None or np.all(mask):
        return envs.action_space.sample()
    return envs.action_space.sample(tuple(np.asarray(mask, dtype=np.int8)))


def _check_fresh(held: Any, before: Any, returned: Any, where: str) -> None:
    """Check that `held`, returned by an earlier call, is unchanged and shares no memory with `returned`."""
    assert _equal(held, before), (
        f"{where} changed what an earlier call returned: return fresh arrays ({_difference(before, held)})"
    )
    assert not _share_memory(held, returned), (
        f"{where} returned memory that an earlier call returned already: return fresh arrays"
    )


def _check_seed_kept(envs: VectorEnv[Any, Any, Any], seed: int) -> None:
    """Check the seed that `super().reset(seed=seed)` keeps; vectors of environments keep one each, counting up."""
    kept = envs.np_random_seed
    first = kept[0] if isinstance(kept, tuple | list) else kept
    assert first == seed, (
        f"reset(seed={seed}) left np_random_seed at {kept}: pass the seed on with super().reset(seed=seed)"
    )


def _check_observation(envs: VectorEnv[Any, Any, Any], observation: Any, where: str) -> None:
    _check_element(envs.observation_space, observation, f"{where}: observation")


def _check_element(space: spaces.Space[Any], value: Any, where: str) -> None:
    """Check `space.contains(value)`; the error names the part that is wrong."""
    if isinstance(space, spaces.Dict):
        assert isinstance(value, dict) and set(value) == set(space.spaces), (
            f"{where} must be a dict with keys {sorted(space.spaces)}, got {_brief(value)}"
        )
        for key, part in space.spaces.items():
            _check_element(part, value[key], f"{where}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        assert isinstance(value, tuple) and len(value) == len(space.spaces), (
            f"{where} must be a tuple of {len(space.spaces)}, got {_brief(value)}"
        )
        for i, part in enumerate(space.spaces):
            _check_element(part, value[i], f"{where}[{i}]")
    elif isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        _check_array(value, where, space.shape, space.dtype)
        if isinstance(space, spaces.Box):
            assert not np.isnan(value).any(), f"{where} contains NaN"
            outside = (value < space.low) | (value > space.high)
            assert not outside.any(), (
                f"{where} leaves the space's bounds: {value[outside][0]} at {np.argwhere(outside)[0]}"
            )
        assert space.contains(value), f"{where} is not in {space}: {_brief(value)}"
    else:
        assert space.contains(value), f"{where} is not in {space}: {_brief(value)}"


def _check_array(value: Any, where: str, shape: tuple[int, ...] | None, dtype: Any) -> None:
    assert isinstance(value, np.ndarray), f"{where} must be a numpy array, got {type(value)}"
    assert value.shape == shape, f"{where} must have shape {shape}, got {value.shape}"
    assert value.dtype == dtype, f"{where} must have dtype {np.dtype(dtype)}, got {value.dtype}"


def _check_rewards(rewards: Any, n: int, where: str) -> None:
    assert isinstance(rewards, np.ndarray) and np.issubdtype(rewards.dtype, np.floating), (
        f"{where}: rewards must be a numpy array of floats, got {_brief(rewards)}"
    )
    assert rewards.shape == (n,), f"{where}: rewards must have shape ({n},), got {rewards.shape}"
    assert np.isfinite(rewards).all(), f"{where}: rewards must be finite, got {rewards}"


def _check_info(info: Any, n: int, where: str, *, masked: bool = False) -> None:
    """Check that each key has num_envs values and a mask `_key` of where they are valid; dicts are infos in turn.

    Values inside another key's dict are already `masked` by that key (RecordEpisodeStatistics' `episode`).
    """
    assert isinstance(info, dict), f"{where}: info must be a dict, got {type(info)}"
    for key, value in info.items():
        assert isinstance(key, str), f"{where}: info keys must be strings, got {key!r}"
        if key.startswith("_"):
            assert key[1:] in info, f"{where}: info has the mask {key!r}, but no {key[1:]!r}"
            continue
        assert masked or f"_{key}" in info, (
            f"{where}: info[{key!r}] lacks its mask: add info['_{key}'], [{n}] booleans of where it holds"
        )
        if f"_{key}" in info:
            _check_array(info[f"_{key}"], f"{where}: info['_{key}']", (n,), np.bool_)
        if isinstance(value, dict):
            _check_info(value, n, f"{where}: info[{key!r}]", masked=key != "final_info")
        else:
            assert isinstance(value, np.ndarray) and value.shape[:1] == (n,), (
                f"{where}: info[{key!r}] must be an array with one row for each of {n} environments, "
                f"got {_brief(value)}"
            )


def _check_autoreset(envs: VectorEnv[Any, Any, Any], mode: AutoresetMode, steps: list[_Step]) -> None:
    for index in range(1, len(steps)):
        step, before = steps[index], steps[index - 1]
        if mode == AutoresetMode.NEXT_STEP and before.terminated is not None:
            for env in np.flatnonzero(before.ended):
                where = f"step {index} only resets environment {env}, whose episode ended in step {index - 1}"
                assert step.rewards[env] == 0, f"{where}: its reward must be 0, got {step.rewards[env]}"
                assert not step.ended[env], f"{where}: it can be neither terminated nor truncated"
        if mode == AutoresetMode.SAME_STEP:
            _check_final(envs, step, f"step {index}")
        else:
            for key in ("final_obs", "final_info"):
                assert key not in step.info, (
                    f"step {index}: info[{key!r}] belongs to SAME_STEP, but metadata['autoreset_mode'] is {mode}"
                )
    if mode == AutoresetMode.SAME_STEP:
        _check_replaced(envs, steps)


def _check_final(envs: VectorEnv[Any, Any, Any], step: _Step, where: str) -> None:
    ended = step.ended
    for key in ("final_obs", "final_info"):
        mask = step.info.get(f"_{key}", np.zeros(envs.num_envs, dtype=np.bool_))
        assert np.array_equal(mask, ended), (
            f"{where}: SAME_STEP needs info[{key!r}] of the environments that ended, {ended}; info['_{key}'] is {mask}"
        )
    if not ended.any():
        return
    final = step.info["final_obs"]
    for env in range(envs.num_envs):
        if ended[env]:
            _check_element(envs.single_observation_space, final[env], f"{where}: info['final_obs'][{env}]")
        else:
            assert final[env] is None, (
                f"{where}: info['final_obs'][{env}] must be None: environment {env} has not ended"
            )
    assert isinstance(step.info["final_info"], dict), (
        f"{where}: info['final_info'] must be a dict of arrays, got {type(step.info['final_info'])}"
    )
    for key, mask in step.info["final_info"].items():
        if key.startswith("_"):
            assert not (mask & ~ended).any(), (
                f"{where}: info['final_info'][{key!r}] is true where no episode ended: {mask} against {ended}"
            )


def _check_replaced(envs: VectorEnv[Any, Any, Any], steps: list[_Step]) -> None:
    """Check that an ended environment returns the new episode's observation, not its last one, at least once."""
    pairs = [
        (row, step.info["final_obs"][env])
        for step in steps[1:]
        for env, row in enumerate(iterate(envs.observation_space, step.observation))
        if step.ended[env]
    ]
    constant = all(_equal(steps[0].observation, step.observation) for step in steps[1:])
    assert not pairs or constant or any(not _equal(row, final) for row, final in pairs), (
        "where an episode ends, SAME_STEP must return the next episode's first observation and keep the last one in "
        "info['final_obs']; here the two are always equal"
    )


def _check_reset_mask(envs: VectorEnv[Any, Any, Any], seed: int) -> None:
    """With DISABLED, a partial reset leaves the other environments unchanged, and ended ones cannot be stepped."""
    n = envs.num_envs
    envs.action_space.seed(seed)
    observation, info = envs.reset(seed=seed)
    for _ in range(500):
        observation, _, terminated, truncated, info = envs.step(_sampled(envs, info))
        ended = np.logical_or(terminated, truncated)
        if ended.any():
            break
    else:
        raise AssertionError("no episode ended in 500 steps of random actions; check a version with shorter episodes")
    before = copy.deepcopy(observation)
    _must_raise(
        lambda: envs.step(envs.action_space.sample()),
        "step() with an ended environment (autoreset is DISABLED)",
    )
    mask = ended.copy()
    if mask.all() and n > 1:
        mask[0] = False
    observation, info = envs.reset(options={"reset_mask": mask.copy()})
    rows = zip(iterate(envs.observation_space, before), iterate(envs.observation_space, observation), strict=True)
    for env, (old, new) in enumerate(rows):
        if not mask[env]:
            assert _equal(old, new), (
                f"reset(options={{'reset_mask': {mask}}}) changed environment {env}, which the mask leaves out"
            )
    for key, held in info.items():
        if key.startswith("_"):
            assert not (held & ~mask).any(), (
                f"reset(options={{'reset_mask': {mask}}}): info[{key!r}] is {held}, true where nothing was reset"
            )
    for bad in (np.zeros(n, dtype=np.bool_), np.ones(n + 1, dtype=np.bool_)):
        _must_raise(lambda bad=bad: envs.reset(options={"reset_mask": bad}), f"reset(options={{'reset_mask': {bad}}})")


def _check_close(envs: VectorEnv[Any, Any, Any], raises_when_closed: bool) -> None:
    actions = envs.action_space.sample()
    envs.close()
    assert envs.unwrapped.closed, "close() must set `closed`: override close_extras, not close"
    envs.close()
    if raises_when_closed:
        _must_raise(lambda: envs.step(actions), "step() after close()")
        _must_raise(lambda: envs.reset(), "reset() after close()")


def _must_raise(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except Exception:
        return
    raise AssertionError(f"{what} must raise an error, but it returned")


def _check_same(first: list[_Step], second: list[_Step], message: str, seed: int) -> None:
    """Compare everything but the infos, which may hold times."""
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        for what in ("observation", "rewards", "terminated", "truncated"):
            one, other = getattr(a, what), getattr(b, what)
            assert _equal(one, other), (
                f"{message.format(seed=seed, what=what)} (call {index}, {_difference(one, other)})"
            )


def _mixed(space: spaces.Space[Any], actions: Any, others: Any, take_other: np.ndarray) -> Any:
    """A batch of actions with the rows of `take_other` from `others`."""
    n = len(take_other)
    pairs = zip(_rows(space, actions, n), _rows(space, others, n), take_other, strict=True)
    rows = [other if take else own for own, other, take in pairs]
    return concatenate(space, rows, create_empty_array(space, n=n, fn=np.zeros))


def _rows(space: spaces.Space[Any], batch: Any, n: int) -> list[Any]:
    return list(iterate(batch_space(space, n), batch))


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """Every array in nested dicts, lists, tuples and object arrays."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _arrays(part)
    elif isinstance(value, list | tuple | np.ndarray):
        for part in value:
            yield from _arrays(part)


def _spoil(value: Any) -> None:
    """Overwrite every array in place with unlikely values."""
    for array in _arrays(value):
        if array.flags.writeable and array.dtype.kind in "fiub":
            array[...] = ~array if array.dtype == np.bool_ else array + 77 if array.dtype.kind in "iu" else np.nan


def _share_memory(one: Any, other: Any) -> bool:
    kept = [array for array in _arrays(one) if array.size]
    return any(np.may_share_memory(a, b) and np.shares_memory(a, b) for a in kept for b in _arrays(other) if b.size)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and set(one) == set(other) and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray) and one.dtype == object:
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray | np.generic):
        floating = np.issubdtype(one.dtype, np.inexact)
        return bool(np.array_equal(one, other, equal_nan=floating))
    return bool(one == other)


def _difference(one: Any, other: Any) -> str:
    """Where two results differ, in a few words."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one:
            if not _equal(one[key], other.get(key)):
                return f"{key!r}: {_difference(one[key], other.get(key))}"
    if isinstance(one, tuple) and isinstance(other, tuple):
        for a, b in zip(one, other, strict=False):
            if not _equal(a, b):
                return _difference(a, b)
    return f"{_brief(one)} against {_brief(other)}"


def _brief(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 160 else f"{text[:157]}..."
