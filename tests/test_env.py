"""The single environments, every registered id: Gymnasium's and SB3's checkers, seeds, specs, imports."""

import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from conftest import ALL_ENV_IDS, ENV_IDS, SMALL, TASK_IDS, small
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from stable_baselines3.common import env_checker

import canvit_gym
from canvit_gym.env import GlimpseEnv
from canvit_gym.vector_env import GlimpseVectorEnv

MakeOne = Callable[..., gym.Env[Any, Any]]
ACTION_KINDS: list[dict[str, Any]] = [
    {},
    {"action": "continuous"},
    {"action": "continuous", "allow_stop": True},
    {"action": "quadtree", "allow_stop": True, "first_glimpse": None},
    {"budget": 2, "track_score": True},
]
KIND_IDS = ["grid", "continuous", "continuous-stop", "quadtree-stop", "one-action"]
CHECKED = [
    pytest.param(env_id, kwargs, id=f"{env_id}-{name}")
    for env_id in ALL_ENV_IDS
    for name, kwargs in zip(KIND_IDS, ACTION_KINDS, strict=True)
    if env_id in TASK_IDS or name == "grid"  # actions do not depend on the data set
]


@pytest.mark.parametrize(("env_id", "kwargs"), CHECKED)
def test_gymnasiums_checker_is_silent(make_one: MakeOne, env_id: str, kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make_one(env_id, **kwargs).unwrapped)


@pytest.mark.parametrize(("env_id", "kwargs"), CHECKED)
def test_stable_baselines3s_checker_passes(make_one: MakeOne, env_id: str, kwargs: dict[str, Any]) -> None:
    """It takes three-dimensional float maps for images that are not uint8, and says so; that is all it says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env_checker.check_env(make_one(env_id, **kwargs).unwrapped, warn=True, skip_render_check=True)
    unexpected = [str(w.message) for w in caught if "image" not in str(w.message)]
    assert not unexpected


def rollout(env: gym.Env[Any, Any], seed: int, steps: int = 12) -> list[Any]:
    env.action_space.seed(seed)
    results: list[Any] = [env.reset(seed=seed)]
    for _ in range(steps):
        results.append(env.step(env.action_space.sample()))
        if results[-1][2]:
            results.append(env.reset())
    return results


@pytest.mark.parametrize("first_glimpse", ["full", "random"])
@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_twins_with_one_seed_do_the_same(make_one: MakeOne, env_id: str, first_glimpse: str) -> None:
    twins = [rollout(make_one(env_id, first_glimpse=first_glimpse, action="continuous"), seed=3) for _ in range(2)]
    assert len(twins[0]) == len(twins[1])
    assert all(data_equivalence(one, other) for one, other in zip(*twins, strict=True))
    other_seed = rollout(make_one(env_id, first_glimpse=first_glimpse, action="continuous"), seed=4)
    assert not all(data_equivalence(one, other) for one, other in zip(twins[0], other_seed, strict=True))


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_single_and_vector_environments_agree(
    make_one: MakeOne, make_vec: Callable[..., GlimpseVectorEnv], env_id: str
) -> None:
    """Step for step on the same seed and actions; the vector env replaces its scene where the single one is reset."""
    env, envs = make_one(env_id), make_vec(1, env_id)
    env.action_space.seed(0)
    one, many = env.reset(seed=5), envs.reset(seed=5)
    for _ in range(11):
        for key, value in one[0].items():
            assert np.array_equal(value, many[0][key][0]), key
        for key, value in one[-1].items():
            if key in many[-1] or not key.endswith("_curve"):  # a vector environment's only where an episode ends
                assert np.array_equal(value, many[-1][key][0], equal_nan=True), key
        action = env.action_space.sample()
        if len(one) == 5 and one[2]:
            one = env.reset()
            many = envs.step(np.array([action]))
            assert many[1][0] == 0 and not many[2][0]
            continue
        one, many = env.step(action), envs.step(np.array([action]))
        assert one[1] == many[1][0] and one[2] == many[2][0] and one[3] == many[3][0]


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_an_episode_is_budget_minus_one_actions(make_one: MakeOne, env_id: str) -> None:
    for budget, first, expected in ((5, "full", 4), (2, "full", 1), (3, None, 3), (1, None, 1)):
        env = make_one(env_id, budget=budget, first_glimpse=first)
        _, info = env.reset(seed=0)
        assert info["glimpses"] == budget - expected
        ends = [env.step(env.action_space.sample())[2:4] for _ in range(expected)]
        assert ends == [(False, False)] * (expected - 1) + [(True, False)]


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_every_id_is_drawn(make_one: MakeOne, env_id: str) -> None:
    env = make_one(env_id, render_mode="rgb_array", action="quadtree")
    env.reset(seed=0)
    frames = [np.asarray(env.render())]
    for action in (2, 3):
        env.step(action)
        frames.append(np.asarray(env.render()))
    assert {(frame.dtype.name, frame.shape) for frame in frames} == {("uint8", frames[0].shape)}
    assert all((one != other).any() for one, other in itertools.pairwise(frames))


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_specs_survive_json(env_id: str) -> None:
    kwargs = {
        "action": "continuous",
        "observations": ["cls", "time"],
        "shard": [1, 2],
        "first_glimpse": [0, 0, 0.5],
        **small(env_id),
    }
    env = gym.make(env_id, **kwargs)
    assert env.spec is not None
    text = env.spec.to_json()
    assert "torch" not in text and json.loads(text)["kwargs"]["action"] == "continuous"
    again = gym.make(EnvSpec.from_json(text))
    assert again.spec == env.spec
    one, other = rollout(env, 0), rollout(again, 0)
    assert all(data_equivalence(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("mode", ["same_step", AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_vector_specs_survive_json(env_id: str, mode: str | AutoresetMode) -> None:
    envs = gym.make_vec(env_id, num_envs=3, autoreset_mode=mode, **{**small(env_id), "budget": 3})
    assert envs.spec is not None and isinstance(envs.unwrapped, GlimpseVectorEnv)
    spec = EnvSpec.from_json(envs.spec.to_json())
    kwargs = dict(spec.kwargs)
    assert kwargs["autoreset_mode"] == "same_step"
    num_envs, vectorization = kwargs.pop("num_envs"), kwargs.pop("vectorization_mode")
    again = gym.make_vec(spec.id, num_envs=num_envs, vectorization_mode=vectorization, **kwargs)
    assert again.unwrapped.config == envs.unwrapped.config  # pyright: ignore[reportAttributeAccessIssue]
    assert again.metadata["autoreset_mode"] == envs.metadata["autoreset_mode"]
    envs.close()
    again.close()


@pytest.mark.parametrize("make", [gym.make, partial(gym.make_vec, num_envs=cast(int, np.int64(2)))])
def test_numbers_of_numpy_become_json(make: Callable[..., Any]) -> None:
    quarter = np.float32(0.25)
    given = {"budget": np.int64(3), "grid_scales": [quarter], "first_glimpse": np.array([0, 0.5, quarter])}
    env = make(ENV_IDS[0], **{**small(ENV_IDS[0]), **given})
    kwargs = EnvSpec.from_json(env.spec.to_json()).kwargs
    assert (kwargs["budget"], kwargs["grid_scales"], kwargs["first_glimpse"]) == (3, [0.25], [0, 0.5, 0.25])
    env.close()


def test_config_survives_json() -> None:
    from canvit_gym.config import EnvConfig

    config = EnvConfig(shard=(1, 3), first_glimpse=(0.0, 0.5, 0.25), observations=("cls",), num_scenes=9)
    assert EnvConfig(**json.loads(json.dumps(config.to_json()))) == config


def test_naming_the_module_registers_the_ids() -> None:
    """In a process that has not imported canvit_gym."""
    program = "import gymnasium as gym\n" + "".join(
        f"env = gym.make('canvit_gym:{env_id}', **{small(env_id)})\n"
        "env.reset(seed=0); env.step(env.action_space.sample())\n"
        f"print(type(gym.make_vec('canvit_gym:{env_id}', num_envs=2, **{small(env_id)})).__name__)\n"
        for env_id in ALL_ENV_IDS
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["GlimpseVectorEnv"] * len(ALL_ENV_IDS)


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import canvit_gym", ("torch", "canvit_pytorch", "stable_baselines3")),
        ("import canvit_gym.env, canvit_gym.testing", ("stable_baselines3", "matplotlib")),
    ],
)
def test_imports_stay_light(program: str, absent: tuple[str, ...]) -> None:
    check = f"{program}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_making_an_environment_leaves_no_trace(make_one: MakeOne, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither output nor a draw from PyTorch's global generator."""
    import torch

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    env = make_one(first_glimpse="random")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert torch.equal(torch.rand(3), expected)
    assert capfd.readouterr() == ("", "")


def test_registering_twice_is_harmless() -> None:
    before = {env_id: gym.spec(env_id) for env_id in ALL_ENV_IDS}
    canvit_gym.register_environments()
    assert {env_id: gym.spec(env_id) for env_id in ALL_ENV_IDS} == before


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_classes_stand_without_gym_make(env_id: str) -> None:
    """Each class is the environment of its page, its dataset included."""
    cls = type(gym.make(env_id, **small(env_id)).unwrapped)
    env = cls(**small(env_id))
    assert isinstance(env, GlimpseEnv)
    assert env.envs.config.dataset == canvit_gym.ENVIRONMENTS[env_id]["dataset"]
    env.close()


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_both_vectorization_modes(mode: str) -> None:
    envs = gym.make_vec(ENV_IDS[0], num_envs=2, vectorization_mode=mode, **SMALL)
    observation, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observation)
    for _ in range(6):
        observation, *_ = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(observation)
    envs.close()


def test_the_generator_of_a_single_environment_is_the_one_that_draws_scenes(make_one: MakeOne) -> None:
    one, other = (make_one(split="training").unwrapped for _ in range(2))
    scenes: list[list[int]] = []
    for env in (one, other):
        env.np_random = np.random.default_rng(11)
        assert env.np_random_seed == -1
        scenes.append([env.reset()[1]["scene"] for _ in range(8)])
    assert scenes[0] == scenes[1]
    assert isinstance(one, GlimpseEnv)
    one.reset(seed=4)
    assert one.np_random_seed == one.envs.np_random_seed == 4 and one.np_random is one.envs.np_random
