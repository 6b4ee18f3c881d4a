"""Actions name viewpoints inside the scene, one to one."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from gymnasium import spaces

from canvit_gym.actions import (
    ActionKind,
    ContinuousActions,
    DiscreteActions,
    grid_viewpoints,
    make_actions,
    quadtree_viewpoints,
    validated,
)
from canvit_gym.config import EnvConfig

DEFAULTS: dict[str, Any] = {
    "min_scale": 0.125,
    "grid_scales": (0.5, 0.25),
    "grid_centers": 16,
    "quadtree_levels": 2,
}
KINDS = get_args(ActionKind)


def every_action(space: spaces.Space[Any]) -> np.ndarray:
    """All of a Discrete space, a lattice of a Box."""
    if isinstance(space, spaces.Discrete):
        return np.arange(space.n)
    axis = np.linspace(-1, 1, 7, dtype=np.float32)
    return np.stack(np.meshgrid(*[axis] * space.shape[0]), axis=-1).reshape(-1, space.shape[0])  # type: ignore[index]


@pytest.mark.parametrize("allow_stop", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_action_lies_inside_the_scene(kind: ActionKind, allow_stop: bool) -> None:
    actions = make_actions(kind, allow_stop=allow_stop, **DEFAULTS)
    viewpoints, stop = actions.decode(every_action(actions.space))
    assert viewpoints.dtype == np.float32 and stop.dtype == np.bool_
    assert (np.abs(viewpoints[:, :2]).max(axis=1) <= 1 - viewpoints[:, 2] + 1e-6).all()
    assert ((viewpoints[:, 2] > 0) & (viewpoints[:, 2] <= 1)).all()
    assert stop.any() == allow_stop


@pytest.mark.parametrize("allow_stop", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_encode_inverts_decode(kind: ActionKind, allow_stop: bool) -> None:
    actions = make_actions(kind, allow_stop=allow_stop, **DEFAULTS)
    every = every_action(actions.space)
    viewpoints, stop = actions.decode(every)
    again = actions.encode(viewpoints)
    assert actions.space.contains(again[0])
    np.testing.assert_allclose(actions.decode(again)[0][~stop], viewpoints[~stop], atol=1e-6)
    if kind != "continuous":
        assert np.array_equal(again[~stop], every[~stop])
    else:
        # At scale 1 there is one center, whatever the first two numbers.
        inside = viewpoints[:, 2] < 1
        np.testing.assert_allclose(again[inside][:, :3], every[inside][:, :3], atol=1e-5)


@pytest.mark.parametrize("kind", ["grid", "quadtree"])
def test_encode_takes_the_nearest(kind: ActionKind) -> None:
    actions = make_actions(kind, allow_stop=False, **DEFAULTS)
    assert isinstance(actions, DiscreteActions)
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.2, 1, size=(50, 1))
    wanted = np.concatenate([rng.uniform(-1, 1, size=(50, 2)) * (1 - scale), scale], axis=1)
    for viewpoint, action in zip(wanted, actions.encode(wanted), strict=True):
        offset = actions.viewpoints.astype(np.float64) - viewpoint
        offset[:, 2] = np.log(actions.viewpoints[:, 2]) - np.log(viewpoint[2])
        assert action == (offset**2).sum(axis=1).argmin()


def test_continuous_scale_is_log_uniform() -> None:
    zooms = np.array([[0, 0, z] for z in (-1, -0.5, 0, 0.5, 1)], dtype=np.float32)
    scales = ContinuousActions(min_scale=0.0625).decode(zooms)[0][:, 2]
    np.testing.assert_allclose(scales, [2**-4, 2**-3, 2**-2, 2**-1, 1], rtol=1e-6)


def test_continuous_centers_fill_the_safe_box() -> None:
    corner = np.array([[-1, 1, 0]], dtype=np.float32)
    np.testing.assert_allclose(ContinuousActions(min_scale=0.25).decode(corner)[0], [[-0.5, 0.5, 0.5]], atol=1e-7)


def test_a_scale_below_min_scale_is_clipped_to_it() -> None:
    actions = ContinuousActions(min_scale=0.25)
    decoded, _ = actions.decode(actions.encode(np.array([[0.9, 0.0, 0.1]])))
    np.testing.assert_allclose(decoded, [[0.75, 0, 0.25]], atol=1e-6)


def test_grid_counts_and_order() -> None:
    table = grid_viewpoints(scales=(1.0, 0.5), centers=3)
    assert len(table) == 1 + 9
    assert table[0].tolist() == [0, 0, 1]
    assert table[1].tolist() == [-0.5, -0.5, 0.5]
    assert table[2].tolist() == [-0.5, 0, 0.5]
    assert table[-1].tolist() == [0.5, 0.5, 0.5]


def test_one_grid_center_is_the_middle() -> None:
    assert grid_viewpoints(scales=(0.5,), centers=1).tolist() == [[0, 0, 0.5]]


@pytest.mark.parametrize(("levels", "count"), [(0, 1), (1, 5), (2, 21), (3, 85)])
def test_quadtree_tiles_the_scene(levels: int, count: int) -> None:
    table = quadtree_viewpoints(levels=levels)
    assert len(table) == count
    finest = table[table[:, 2] == 2.0**-levels]
    assert (4 * finest[:, 2] ** 2).sum() == 4  # areas of the tiles, in scene units
    assert len(np.unique(finest, axis=0)) == 4**levels


@pytest.mark.parametrize("kind", KINDS)
def test_stop_is_decoded(kind: ActionKind) -> None:
    actions = make_actions(kind, allow_stop=True, **DEFAULTS)
    if isinstance(actions.space, spaces.Discrete):
        batch = np.array([0, actions.space.n - 1])
    else:
        batch = np.array([[0, 0, 0, 0], [0, 0, 0, 0.01]], dtype=np.float32)
    assert actions.decode(batch)[1].tolist() == [False, True]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint16])
def test_integers_of_any_width_are_actions(dtype: type) -> None:
    space = spaces.Discrete(21)
    batch = np.array([0, 20], dtype=dtype)
    assert validated(space, batch, num_envs=2, ignored=np.zeros(2, dtype=bool)).tolist() == [0, 20]


def test_lists_are_actions() -> None:
    ignored = np.zeros(2, dtype=bool)
    assert validated(spaces.Discrete(5), [1, 2], num_envs=2, ignored=ignored).tolist() == [1, 2]


def test_ignored_rows_may_hold_anything() -> None:
    box = spaces.Box(-1, 1, (3,))
    batch = np.array([[np.nan, 5, -7], [0.5, 0.5, 0.5]])
    checked = validated(box, batch, num_envs=2, ignored=np.array([True, False]))
    assert checked.tolist() == [[0, 0, 0], [0.5, 0.5, 0.5]]


def test_without_revisit_every_viewpoint_is_allowed_once() -> None:
    actions = DiscreteActions(quadtree_viewpoints(levels=1), revisit=False)
    viewpoints = np.zeros((3, 4, 3), dtype=np.float32)
    viewpoints[0, :2] = actions.viewpoints[[0, 3]]
    viewpoints[1, 0] = (0.1, 0, 0.5)  # near a tile is not the tile
    viewpoints[2] = actions.viewpoints[[1, 2, 3, 4]]
    allowed = actions.allowed(viewpoints, np.array([2, 1, 4]))
    assert allowed.tolist() == [[False, True, True, False, True], [True] * 5, [True, False, False, False, False]]
    assert not actions.allowed(viewpoints, np.array([1, 1, 1]))[0, 0]
    assert actions.allowed(viewpoints, np.array([1, 1, 1]))[0, 3]  # what is beyond the glimpses taken does not count
    assert replace(actions, revisit=True).allowed(viewpoints, np.array([2, 1, 4])).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"action": "continuous"}, "needs a table of viewpoints, but the actions are 'continuous'"),
        (
            {"action": "quadtree", "quadtree_levels": 1, "budget": 6},
            "budget=6 asks for 5 viewpoints, but with revisit=False there are only 4: use a budget of at most 5",
        ),
        (
            {"grid_scales": (0.25,), "grid_centers": 2, "budget": 5, "first_glimpse": None},
            "asks for 5 viewpoints, but with revisit=False there are only 4: use a budget of at most 4",
        ),
        (  # float32 of 0.3 is not 0.3
            {"grid_scales": (0.3,), "grid_centers": 1, "budget": 2, "first_glimpse": (0.0, 0.0, 0.3)},
            "asks for 1 viewpoints, but with revisit=False there are only 0: use a budget of at most 1",
        ),
        ({"revisit": "no"}, "revisit must be True or False, got 'no'"),
    ],
)
def test_an_episode_without_revisit_is_no_longer_than_the_table(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvConfig(**{"revisit": False, **kwargs})
