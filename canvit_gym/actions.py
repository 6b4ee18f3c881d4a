"""Actions: how an action encodes a viewpoint.

Every kind of action maps one to one onto viewpoints whose crop stays inside the scene: centers lie in the
safe box |center| <= 1 - scale. Viewpoints are rows (row, col, scale) in scene coordinates: centers in
[-1, 1] with (-1, -1) the top-left corner, scale in (0, 1], the crop's half side.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from canvit_pytorch.policies.quadtree import quadtree_level
from gymnasium import spaces
from numpy.typing import NDArray

from canvit_gym.viewpoints import MIN_SCALE

ActionKind = Literal["grid", "continuous", "quadtree"]

MOST_CENTERS = 512
"""Along each axis: one for every pixel of a scene of the released checkpoints."""


class Actions(Protocol):
    """A single environment's actions; arrays carry a leading batch dimension [N, ...]."""

    @property
    def allow_stop(self) -> bool:
        """Whether an action may end the episode."""
        ...

    @property
    def space(self) -> spaces.Space[Any]: ...

    def decode(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """[N, ...] valid actions -> (viewpoints [N, 3], stop [N]). The viewpoint of a stop is not used."""
        ...

    def encode(self, viewpoints: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """[N, 3] viewpoints -> the nearest actions [N, ...]; exact for viewpoints that `decode` returns."""
        ...


def validated(space: spaces.Space[Any], actions: Any, *, num_envs: int, ignored: NDArray[np.bool_]) -> NDArray[Any]:
    """The actions as an array [num_envs, ...].

    `ignored` rows (environments that reset in this step) may contain anything.

    Raises:
        ValueError: wrong shape, NaN, or a value outside the space; the message names the first bad action.
        TypeError: a dtype that cannot be an action of this space.
    """
    shape = (num_envs, *(space.shape or ()))
    try:
        array = np.asarray(actions)
    except ValueError as error:  # a ragged list
        raise ValueError(f"actions must be one array of shape {shape}, got {actions!r}") from error
    if array.shape != shape:
        raise ValueError(
            f"actions must have shape {shape} ({num_envs} environments of {space}), got {array.shape}. "
            "Sample valid ones with envs.action_space.sample()."
        )
    if isinstance(space, spaces.Discrete):
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"actions of {space} must be integers, got dtype {array.dtype}: {array!r}")
        bad = (array < 0) | (array >= space.n)
        what = f"an integer in [0, {space.n - 1}]"
    else:
        if not np.issubdtype(array.dtype, np.floating) and not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"actions of {space} must be numbers, got dtype {array.dtype}")
        # Every comparison with NaN is false, so that this form rejects it.
        bad = ~((array >= -1) & (array <= 1)).all(axis=-1)
        what = "finite and in [-1, 1]; clip or squash (tanh) the policy's output first"
    bad = bad & ~ignored
    if bad.any():
        index = int(bad.argmax())
        raise ValueError(f"the action of environment {index} is {array[index]}, but must be {what}")
    return np.where(ignored.reshape(-1, *[1] * (array.ndim - 1)), np.zeros_like(array), array)


def require_allowed(actions: NDArray[Any], mask: NDArray[np.bool_], *, ignored: NDArray[np.bool_]) -> None:
    """Raise ValueError if the mask [N, A] forbids an action [N]; `ignored` rows reset in this step."""
    if (bad := np.flatnonzero(~mask[np.arange(len(actions)), actions] & ~ignored)).size:
        raise ValueError(
            f"the action of environment {bad[0]} is {actions[bad[0]]}, whose viewpoint was already taken in this "
            "episode, and revisit=False allows each only once: choose an action that info['action_mask'] (or "
            "action_masks()) allows, for example with single_action_space.sample(mask) of one environment's mask"
        )


def checked_viewpoints(viewpoints: Any) -> NDArray[np.floating[Any]]:
    """Viewpoints [N, 3] as an array. Raise ValueError if one does not lie inside the scene."""
    array = np.asarray(viewpoints)
    if array.ndim != 2 or array.shape[1] != 3 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"viewpoints must be floats of shape [N, 3], rows of (row, col, scale), "
            f"got {array.dtype} of shape {array.shape}"
        )
    center, scale = np.abs(array[:, :2]).max(axis=1, initial=0), array[:, 2]
    bad = ~((scale > 0) & (scale <= 1) & (center <= 1 - scale + 1e-5))
    if bad.any():
        index = int(bad.argmax())
        raise ValueError(
            f"viewpoint {index}, (row, col, scale) = {tuple(array[index].tolist())}, does not lie inside the scene: "
            "scale must be in (0, 1] and |row|, |col| at most 1 - scale"
        )
    return array


@dataclass(frozen=True)
class ContinuousActions:
    """Box(-1, 1, (3,)): (row, col, zoom), mapped one to one onto the viewpoints inside the scene.

    The scale is log-uniform: zoom -1 gives `min_scale`, +1 the full scene. The center is (row, col) times
    (1 - scale). With allow_stop a fourth number above 0 ends the episode.

    >>> actions = ContinuousActions(min_scale=0.25)
    >>> viewpoints, stop = actions.decode(np.array([[1, -1, 0]], dtype=np.float32))  # bottom left, half way in
    >>> viewpoints.tolist()
    [[0.5, -0.5, 0.5]]
    >>> actions.encode(viewpoints).tolist()
    [[1.0, -1.0, 0.0]]
    """

    min_scale: float = 0.125
    allow_stop: bool = False

    def __post_init__(self) -> None:
        if not MIN_SCALE <= self.min_scale < 1:
            raise ValueError(f"min_scale must lie in [{MIN_SCALE}, 1), got {self.min_scale}")

    @property
    def space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (4 if self.allow_stop else 3,), np.float32)

    def decode(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        actions = actions.astype(np.float64)
        scale = self.min_scale ** ((1 - actions[:, 2:3]) / 2)
        viewpoints = np.concatenate([actions[:, :2] * (1 - scale), scale], axis=1).astype(np.float32)
        stop = actions[:, 3] > 0 if self.allow_stop else np.zeros(len(actions), dtype=np.bool_)
        return viewpoints, stop

    def encode(self, viewpoints: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        viewpoints = checked_viewpoints(viewpoints).astype(np.float64)
        scale = np.clip(viewpoints[:, 2:3], self.min_scale, 1)
        zoom = 1 - 2 * np.log(scale) / np.log(self.min_scale)
        room = 1 - scale
        # At scale 1 there is only one center, which any (row, col) encodes.
        center = np.divide(viewpoints[:, :2], room, out=np.zeros_like(viewpoints[:, :2]), where=room > 1e-7)
        stop = [np.full_like(zoom, -1.0)] if self.allow_stop else []
        return np.clip(np.concatenate([center, zoom, *stop], axis=1), -1, 1).astype(np.float32)


def squared_distances(viewpoints: NDArray[np.floating[Any]], table: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    """[N, A] between viewpoints [N, 3] and the rows of a table [A, 3], in (row, col, log scale)."""
    wanted, places = (np.concatenate([v[:, :2], np.log(v[:, 2:])], axis=1) for v in (viewpoints, table))
    return ((wanted[:, None] - places) ** 2).sum(axis=2)


@dataclass(frozen=True)
class DiscreteActions:
    """Discrete(n): action i is row i of a table of viewpoints. With allow_stop, action n - 1 ends the episode.

    Without revisit, each viewpoint is allowed once per episode.

    >>> actions = DiscreteActions(grid_viewpoints(scales=(0.5,), centers=3), allow_stop=True)
    >>> actions.space
    Discrete(10)
    >>> viewpoints, stop = actions.decode(np.array([0, 9]))
    >>> viewpoints[0].tolist(), stop.tolist()
    ([-0.5, -0.5, 0.5], [False, True])
    >>> actions.encode(np.array([[0.1, 0.4, 0.6]])).tolist()
    [5]
    >>> actions = DiscreteActions(grid_viewpoints(scales=(0.5,), centers=2), revisit=False)
    >>> actions.allowed(np.array([[[0, 0, 1], [-0.5, 0.5, 0.5]]], dtype=np.float32), np.array([2])).tolist()
    [[True, False, True, True]]
    """

    viewpoints: NDArray[np.float32]  # [A, 3]
    allow_stop: bool = False
    revisit: bool = True

    @property
    def space(self) -> spaces.Discrete:
        return spaces.Discrete(len(self.viewpoints) + self.allow_stop)

    def decode(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        stop = actions == len(self.viewpoints)
        viewpoints = self.viewpoints[np.where(stop, 0, actions)]
        viewpoints[stop] = (0, 0, 1)
        return viewpoints, stop

    def encode(
        self, viewpoints: NDArray[np.floating[Any]], *, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """The nearest of those allowed [N, A] (None: all), see `squared_distances`."""
        distances = squared_distances(checked_viewpoints(viewpoints), self.viewpoints)
        return (distances if allowed is None else np.where(allowed, distances, np.inf)).argmin(axis=1)

    def allowed(self, viewpoints: NDArray[np.float32], taken: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[N, A]: which rows of the table may be looked at next, given the episodes' viewpoints [N, T, 3], of which the
        first taken [N] are glimpses. To stop is always allowed.
        """
        allowed = np.ones((len(viewpoints), len(self.viewpoints)), dtype=np.bool_)
        if self.revisit:
            return allowed
        for t in range(taken.max(initial=0)):
            same = (viewpoints[:, t, None] == self.viewpoints).all(axis=2)  # [N, A]
            allowed &= ~(same & (t < taken)[:, None])
        return allowed

    def mask(self, viewpoints: NDArray[np.float32], taken: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[N, space.n]: `allowed`, and the stop action, which is always allowed."""
        if self.revisit:
            return np.ones((len(viewpoints), int(self.space.n)), dtype=np.bool_)
        allowed = self.allowed(viewpoints, taken)
        return np.pad(allowed, ((0, 0), (0, int(self.allow_stop))), constant_values=True)


def grid_viewpoints(*, scales: tuple[float, ...], centers: int) -> NDArray[np.float32]:
    """[at most len(scales) * centers * centers, 3]: for every scale, row-major centers spread evenly over the safe box.

    With one center per axis it is the middle of the scene. At scale 1 all centers are.
    """
    if not scales or not all(MIN_SCALE <= s <= 1 for s in scales) or len(set(scales)) != len(scales):
        raise ValueError(f"grid_scales must be distinct numbers in [{MIN_SCALE}, 1], got {scales}")
    if not 1 <= centers <= MOST_CENTERS:
        raise ValueError(f"grid_centers must lie in [1, {MOST_CENTERS}], got {centers}")
    rows: list[NDArray[np.float32]] = []
    for scale in scales:
        axis = np.linspace(scale - 1, 1 - scale, centers) if centers > 1 and scale < 1 else np.zeros(1)
        row, col = np.meshgrid(axis, axis, indexing="ij")
        rows.append(np.stack([row, col, np.full_like(row, scale)], axis=-1).reshape(-1, 3).astype(np.float32))
    return np.concatenate(rows)


def quadtree_viewpoints(*, levels: int) -> NDArray[np.float32]:
    """[1 + 4 + ... + 4^levels, 3]: the tiles of canvit-pytorch's quadtree, levels 0..levels, row-major."""
    if not 0 <= levels <= 6:
        raise ValueError(f"quadtree_levels must lie in [0, 6], got {levels}")
    return np.array([tile for level in range(levels + 1) for tile in quadtree_level(level)], dtype=np.float32)


def make_actions(
    kind: ActionKind,
    *,
    allow_stop: bool,
    min_scale: float,
    grid_scales: tuple[float, ...],
    grid_centers: int,
    quadtree_levels: int,
    revisit: bool = True,
) -> Actions:
    """The actions of a kind."""
    match kind:
        case "continuous":
            return ContinuousActions(min_scale=min_scale, allow_stop=allow_stop)
        case "grid":
            return DiscreteActions(grid_viewpoints(scales=grid_scales, centers=grid_centers), allow_stop, revisit)
        case "quadtree":
            return DiscreteActions(quadtree_viewpoints(levels=quadtree_levels), allow_stop, revisit)
        case _:
            raise ValueError(f"unknown action kind {kind!r}; choose one of {', '.join(get_args(ActionKind))}")
