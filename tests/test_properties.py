"""What holds for all actions, batch sizes, seeds, stop patterns and options (hypothesis; bounded examples)."""

from typing import Any

import numpy as np
from conftest import ENV_IDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import canvit_gym
from canvit_gym.actions import ContinuousActions, DiscreteActions, grid_viewpoints
from canvit_gym.observations import OBSERVATIONS
from canvit_gym.rewards import REWARDS
from canvit_gym.scenes.sampler import SceneSampler
from canvit_gym.vector_env import GlimpseVectorEnv

few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=150, deadline=None)
numbers = st.floats(-1, 1, width=32)


@st.composite
def viewpoints_inside(draw: st.DrawFn) -> np.ndarray:
    """[N, 3] float64 viewpoints inside the scene, scales of 0.02 to 1."""
    count = draw(st.integers(1, 8))
    scale = draw(hnp.arrays(np.float64, (count, 1), elements=st.floats(0.02, 1)))
    center = draw(hnp.arrays(np.float64, (count, 2), elements=st.floats(-1, 1)))
    return np.concatenate([center * (1 - scale), scale], axis=1)


@many
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.just(4)), elements=numbers), st.floats(0.01, 0.9))
def test_continuous_actions_stay_inside_and_come_back(actions: np.ndarray, min_scale: float) -> None:
    kind = ContinuousActions(min_scale=min_scale, allow_stop=True)
    viewpoints, stop = kind.decode(actions)
    scale = viewpoints[:, 2]
    assert (scale >= min_scale * (1 - 1e-6)).all() and (scale <= 1).all()
    assert (np.abs(viewpoints[:, :2]).max(axis=1) <= 1 - scale + 1e-6).all()
    assert np.array_equal(stop, actions[:, 3] > 0)
    encoded = kind.encode(viewpoints)
    assert all(kind.space.contains(action) for action in encoded)
    np.testing.assert_allclose(kind.decode(encoded)[0], viewpoints, atol=1e-6)
    np.testing.assert_allclose(encoded[:, 2], actions[:, 2], atol=1e-4)


@many
@given(viewpoints_inside())
def test_continuous_actions_reach_every_viewpoint(viewpoints: np.ndarray) -> None:
    kind = ContinuousActions(min_scale=0.02)
    np.testing.assert_allclose(kind.decode(kind.encode(viewpoints))[0], viewpoints, atol=1e-6)


@many
@given(
    st.lists(st.floats(0.0625, 1, width=16), min_size=1, max_size=3, unique=True),
    st.integers(1, 6),
    viewpoints_inside(),
)
def test_grids_stay_inside_and_encode_to_themselves(scales: list[float], centers: int, wanted: np.ndarray) -> None:
    kind = DiscreteActions(grid_viewpoints(scales=tuple(scales), centers=centers))
    assert (np.abs(kind.viewpoints[:, :2]).max(axis=1) <= 1 - kind.viewpoints[:, 2] + 1e-6).all()
    assert np.array_equal(kind.encode(kind.viewpoints), np.arange(kind.space.n))
    nearest = kind.encode(wanted)
    assert np.array_equal(kind.encode(kind.decode(nearest)[0]), nearest)


@many
@given(st.integers(1, 40), st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 99))
def test_passes_hold_every_scene_once(num_scenes: int, shards: int, takes: list[int], seed: int) -> None:
    """However they are taken, scenes of a shard come in whole passes."""
    shards = min(shards, num_scenes)
    for index in range(shards):
        own = list(range(index, num_scenes, shards))
        order, rng = (
            SceneSampler(num_scenes=num_scenes, shard=(index, shards), shuffle=True),
            np.random.default_rng(seed),
        )
        taken = np.concatenate([order.take(count, rng) for count in takes]).tolist()
        for start in range(0, len(taken) - len(own) + 1, len(own)):
            assert sorted(taken[start : start + len(own)]) == own


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Constructor keywords, every one of them legal."""
    budget = draw(st.integers(2, 4))
    return {
        "env_id": draw(st.sampled_from(ENV_IDS)),
        "num_envs": draw(st.integers(1, 5)),
        "budget": budget,
        "action": draw(st.sampled_from(["grid", "continuous", "quadtree"])),
        "grid_centers": draw(st.integers(1, 5)),
        "quadtree_levels": draw(st.integers(0, 2)),
        "first_glimpse": draw(st.sampled_from(["full", "random", None, (0.0, 0.5, 0.25)])),
        "reward": draw(st.sampled_from(list(REWARDS))),
        "glimpse_cost": draw(st.sampled_from([0.0, 0.125])),
        "observations": draw(
            st.lists(st.sampled_from([key for key in OBSERVATIONS if key != "goal"]), min_size=1, unique=True)
        ),
        "observation_dtype": draw(st.sampled_from(["float32", "float16"])),
        "canvas_size": draw(st.sampled_from([1, 4, 5, 16])),
        "autoreset_mode": draw(st.sampled_from(["next_step", "same_step", "disabled"])),
        "split": draw(st.sampled_from(["training", "test"])),
        "track_score": True,
    }


def build(config: dict[str, Any]) -> GlimpseVectorEnv:
    config = dict(config)
    env_id = config.pop("env_id")
    own = {"allow_stop": True, "revisit": True, "num_scenes": 16, "device": "cpu"}
    return GlimpseVectorEnv(**{**canvit_gym.ENVIRONMENTS[env_id], **config, **own})


def with_stops(envs: GlimpseVectorEnv, stops: np.ndarray) -> np.ndarray:
    actions = envs.action_space.sample()
    if actions.ndim == 2:
        actions[:, 3] = np.where(stops, 1, -1)
        return actions
    stop = envs.single_action_space.n - 1  # pyright: ignore[reportAttributeAccessIssue]
    return np.where(stops, stop, np.minimum(actions, stop - 1))


@few
@given(configs(), st.integers(0, 2**31 - 1), hnp.arrays(np.bool_, (8, 5), elements=st.booleans()))
def test_any_environment_keeps_its_word(config: dict[str, Any], seed: int, stops: np.ndarray) -> None:
    """Spaces, lengths and returns of every episode, whatever the options and whoever stops when.

    The return is what the reward's definition says: the gain of the potential, less the cost of the glimpses taken.
    """
    envs = build(config)
    n, mode, budget = envs.num_envs, config["autoreset_mode"], config["budget"]
    envs.action_space.seed(seed)
    observation, info = envs.reset(seed=seed)
    assert envs.observation_space.contains(observation)
    first = {key: info[key].copy() for key in ("loss", "score", "glimpses")}
    returns, fresh = np.zeros(n), np.zeros(n, dtype=bool)
    for row_stops in stops[:, :n]:
        observation, rewards, terminated, truncated, info = envs.step(with_stops(envs, row_stops))
        assert envs.observation_space.contains(observation) and not truncated.any()
        assert np.isfinite(rewards).all() and not rewards[fresh].any() and not terminated[fresh].any()
        assert terminated[row_stops & ~fresh].all()
        returns += rewards
        last = {**info, **info.get("final_info", {})}
        for row in np.flatnonzero(terminated):
            taken = last["glimpses"][row] - first["glimpses"][row]
            assert row_stops[row] or last["glimpses"][row] == budget
            expected = {
                "loss_reduction": first["loss"][row] - last["loss"][row],
                "score_gain": last["score"][row] - first["score"][row],
                "final_score": last["score"][row],
            }.get(config["reward"])
            if expected is not None:
                np.testing.assert_allclose(returns[row], expected - config["glimpse_cost"] * taken, atol=1e-4)
        if mode == "disabled" and terminated.any():
            _, info = envs.reset(options={"reset_mask": terminated})
        begun = fresh if mode == "next_step" else terminated
        for key in first:
            first[key] = np.where(begun, info[key], first[key])
        returns[terminated] = 0
        fresh = terminated if mode == "next_step" else np.zeros(n, dtype=bool)
    envs.close()


@few
@given(configs(), st.integers(0, 2**31 - 1))
def test_any_environment_repeats_itself(config: dict[str, Any], seed: int) -> None:
    config = {**config, "autoreset_mode": "same_step"}
    runs = []
    for _ in range(2):
        envs = build(config)
        envs.action_space.seed(seed)
        results = [envs.reset(seed=seed)[0]]
        for _ in range(4):
            observation, rewards, *_ = envs.step(envs.action_space.sample())
            results.append({**observation, "rewards": rewards})
        runs.append(results)
        envs.close()
    for one, other in zip(*runs, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)


@few
@given(st.integers(1, 6), st.data())
def test_any_mask_and_any_scenes(num_envs: int, data: st.DataObject) -> None:
    mask = data.draw(hnp.arrays(np.bool_, num_envs).filter(lambda rows: bool(rows.any())))
    scenes = data.draw(hnp.arrays(np.int64, num_envs, elements=st.integers(0, 15)))
    envs = GlimpseVectorEnv(num_envs, autoreset_mode="disabled", num_scenes=16, device="cpu", observations=["cls"])
    _, before = envs.reset(seed=0)
    observation, info = envs.reset(options={"reset_mask": mask, "scene": scenes})
    assert np.array_equal(info["scene"], np.where(mask, scenes, before["scene"]))
    assert np.array_equal(info["_scene"], mask)
    assert envs.observation_space.contains(observation)
    envs.close()
