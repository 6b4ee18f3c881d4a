"""The cache of first states saves forwards and changes nothing else, whatever it holds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from canvit_pytorch import RecurrentState

from canvit_gym.backbone.load import Backbone
from canvit_gym.config import EnvConfig
from canvit_gym.first_glimpses import FirstGlimpseCache
from canvit_gym.vector_env import GlimpseVectorEnv

MakeVec = Callable[..., GlimpseVectorEnv]
CACHE: dict[str, Any] = {"first_glimpse_cache_mb": 10}
STATE_MB = (260 * 128 + 128) * 2 / 1e6


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many scenes each forward was for."""
    calls: list[int] = []
    step = Backbone.step

    def counted(self: Backbone, glimpse: torch.Tensor, *rest: Any) -> RecurrentState:
        calls.append(len(glimpse))
        return step(self, glimpse, *rest)

    monkeypatch.setattr(Backbone, "step", counted)
    return calls


def rollout(envs: GlimpseVectorEnv, steps: int, *, stops: bool = False) -> list[Any]:
    rng = np.random.default_rng(0)
    num_actions = envs.single_action_space.n - stops  # pyright: ignore[reportAttributeAccessIssue]
    out: list[Any] = [envs.reset(seed=0)]
    for _ in range(steps):
        actions = rng.integers(num_actions, size=envs.num_envs)
        if stops:
            actions[rng.random(envs.num_envs) < 0.3] = num_actions
        out.append(envs.step(actions))
    return out


def flat(value: Any) -> list[np.ndarray]:
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in flat(value[key])]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in flat(item)]
    return [np.asarray(value)]


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("first", ["full", [0.25, -0.5, 0.5]])
def test_everything_but_rounding_is_as_without(make_vec: MakeVec, mode: str, stops: bool, first: Any) -> None:
    """Over three passes, so that most scenes come back."""
    kwargs = dict(
        num_scenes=6,
        budget=3,
        autoreset_mode=mode,
        allow_stop=stops,
        first_glimpse=first,
        track_score=True,
        observations=["canvas", "uncertainty", "acuity", "cls", "viewpoint", "time", "glimpse"],
    )
    with_cache, without = (rollout(make_vec(4, **kwargs, **more), 14, stops=stops) for more in (CACHE, {}))
    for one, other in zip(flat(with_cache), flat(without), strict=True):
        assert one.dtype == other.dtype
        if one.dtype == object:
            continue
        np.testing.assert_allclose(one.astype(float), other.astype(float), atol=2e-2)


def test_what_is_known_is_not_computed(make_vec: MakeVec, forwards: list[int]) -> None:
    envs = make_vec(4, num_scenes=8, split="test", budget=2, autoreset_mode="disabled", **CACHE)
    envs.reset(options={"scene": [0, 1, 2, 3]})
    envs.reset(options={"scene": [2, 3, 4, 5]})
    envs.reset(options={"scene": [5, 4, 0, 0]})
    assert forwards == [4, 2]
    envs.step(envs.action_space.sample())
    assert forwards == [4, 2, 4], "no other glimpse is saved"


def test_the_others_go_on(make_vec: MakeVec, forwards: list[int]) -> None:
    """A step in which one scene begins again and the others act is one forward, for the others alone."""
    envs = make_vec(3, num_scenes=3, split="test", budget=5, allow_stop=True, **CACHE)
    envs.reset(seed=0)
    stop = envs.single_action_space.n - 1  # pyright: ignore[reportAttributeAccessIssue]
    envs.step(np.array([1, stop, 2]))
    _, rewards, _, _, info = envs.step(np.array([3, 0, 4]))
    assert forwards == [3, 2, 2]
    assert info["glimpses"].tolist() == [3, 1, 3] and rewards[1] == 0 and rewards[[0, 2]].all()


def test_numbers_do_not_depend_on_what_it_holds(make_vec: MakeVec) -> None:
    """A scene seen for the first time and the same scene from the cache: the same to the bit."""
    envs = make_vec(4, num_scenes=4, split="test", autoreset_mode="disabled", **CACHE)
    first, second = (envs.reset(options={"scene": [0, 1, 2, 3]}) for _ in range(2))
    for one, other in zip(flat(first), flat(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_states_are_rounded_once(make_vec: MakeVec, dtype: str, error: float) -> None:
    cached = make_vec(4, split="test", first_glimpse_cache_dtype=dtype, **CACHE)
    exact = make_vec(4, split="test")
    for envs in (cached, exact):
        envs.reset(seed=0)
    difference = (cached.state.canvas - exact.state.canvas).abs().max() / exact.state.canvas.abs().max()
    assert 0 < difference < error
    assert torch.equal(cached.state.canvas, cached.state.canvas.to(getattr(torch, dtype)).float())


def test_a_full_cache_keeps_what_it_has(make_vec: MakeVec, forwards: list[int]) -> None:
    capacity = int(1 // STATE_MB)
    assert capacity == 14
    envs = make_vec(8, num_scenes=32, split="test", budget=2, autoreset_mode="disabled", first_glimpse_cache_mb=1)
    for start in (0, 8, 16, 0, 8, 16):
        envs.reset(options={"scene": list(range(start, start + 8))})
    cache = envs.episodes.first_glimpses
    assert cache is not None and len(cache) == cache.capacity == capacity
    assert forwards == [8, 8, 8, 2, 8]


def test_no_more_is_taken_than_the_scenes_need(make_vec: MakeVec) -> None:
    envs = make_vec(2, num_scenes=5, **CACHE)
    envs.reset(seed=0)
    cache = envs.episodes.first_glimpses
    assert cache is not None and cache.capacity == 5


def test_too_little_room_is_told(backbone: Backbone) -> None:
    cache = FirstGlimpseCache(
        viewpoint=np.float32([0, 0, 1]),
        num_scenes=9,
        num_bytes=1000,
        dtype="float16",
        where="host",
        device=backbone.device,
    )
    with pytest.raises(ValueError, match=r"0\.001 MB, but the state of one scene takes 0\.066.* MB"):
        cache.keep(np.array([0]), backbone.init_state(1))


@pytest.mark.parametrize("first", [None, "random"])
def test_first_glimpses_that_differ_are_refused(first: Any) -> None:
    with pytest.raises(ValueError, match=r"first_glimpse_cache_mb=5 needs .* the same .*use first_glimpse='full'"):
        EnvConfig(first_glimpse=first, first_glimpse_cache_mb=5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"first_glimpse_cache_mb": -1}, "first_glimpse_cache_mb must be a whole number .*, got -1"),
        ({"first_glimpse_cache_mb": 1.5}, r"first_glimpse_cache_mb must be a whole number .*, got 1\.5"),
        ({"first_glimpse_cache_dtype": "float64"}, "'float64'; choose one of float16, bfloat16"),
        ({"first_glimpse_cache_on": "disk"}, "'disk'; choose one of host, device"),
        ({"compile": "yes"}, "compile must be True or False, got 'yes'"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvConfig(**kwargs)
