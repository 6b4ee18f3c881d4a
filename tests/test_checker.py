"""check_vector_env passes sound environments, Gymnasium's own included, and catches planted defects."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from canvit_gym.testing import check_vector_env

MODES = list(AutoresetMode)
NEXT, SAME, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


class Walk(VectorEnv[Any, Any, Any]):
    """A sound environment, as small as can be: each of three walks ends when its length, drawn at reset, is spent.

    Hooks (`observe`, `rewards_of`, ...) are what a defect overrides.
    """

    def __init__(self, mode: AutoresetMode) -> None:
        self.num_envs = 3
        self.metadata = {"autoreset_mode": mode, "render_modes": []}
        self.mode = mode
        self.single_observation_space = spaces.Dict(
            {"place": spaces.Box(-100, 100, (2,), np.float32), "left": spaces.Box(0, 10, (1,), np.int64)}
        )
        self.single_action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, 3)
        self.action_space = batch_space(self.single_action_space, 3)
        self.place = np.zeros((3, 2), dtype=np.float32)
        self.left = np.zeros((3, 1), dtype=np.int64)
        self.ended = np.zeros(3, dtype=np.bool_)

    def begin(self, rows: np.ndarray) -> None:
        self.place[rows] = self.np_random.uniform(-1, 1, size=(rows.sum(), 2))
        self.left[rows] = self.np_random.integers(2, 6, size=(rows.sum(), 1))

    def observe(self) -> Any:
        return {"place": self.place.copy(), "left": self.left.copy()}

    def info_of(self, rows: np.ndarray) -> dict[str, Any]:
        return {"length": self.left[:, 0].copy(), "_length": rows.copy()}

    def rewards_of(self, actions: np.ndarray, fresh: np.ndarray) -> Any:
        return np.where(fresh, 0.0, actions.sum(axis=1, dtype=np.float64))

    def ignored(self, fresh: np.ndarray) -> np.ndarray:
        return fresh

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.closed:
            raise RuntimeError("closed")
        super().reset(seed=seed)
        rows = np.ones(3, dtype=np.bool_)
        if options is not None:
            rows = options["reset_mask"]
            if rows.shape != (3,) or not rows.any():
                raise ValueError(f"bad mask {rows}")
        self.begin(rows)
        self.ended[rows] = False
        return self.observe(), self.info_of(rows)

    def step(self, actions: Any) -> Any:
        if self.closed:
            raise RuntimeError("closed")
        if self.mode == DISABLED and self.ended.any():
            raise RuntimeError("reset first")
        fresh = self.ended.copy()
        if fresh.any():
            self.begin(fresh)
        moving = ~self.ignored(fresh)
        self.place[moving] += actions[moving]
        self.left[~fresh] -= 1
        terminated = (self.left[:, 0] <= 0) & ~fresh
        rewards = self.rewards_of(actions, fresh)
        self.ended = terminated.copy()
        info = self.info_of(np.ones(3, dtype=np.bool_))
        if self.mode == SAME and terminated.any():
            info |= self.replace(terminated)
        return self.observe(), rewards, terminated, np.zeros(3, dtype=np.bool_), info

    def replace(self, ended: np.ndarray) -> dict[str, Any]:
        last = self.observe()
        final_obs = np.full(3, None, dtype=object)
        for row in np.flatnonzero(ended):
            final_obs[row] = {key: value[row] for key, value in last.items()}
        final_info = self.info_of(ended)
        self.begin(ended)
        self.ended[:] = False
        return {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": final_info,
            "_final_info": ended.copy(),
        }


@pytest.mark.parametrize("mode", MODES)
def test_a_sound_environment_passes(mode: AutoresetMode) -> None:
    check_vector_env(Walk(mode))


def cart_poles(mode: AutoresetMode) -> VectorEnv[Any, Any, Any]:
    return gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})


@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_own_pass(mode: AutoresetMode) -> None:
    """SyncVectorEnv steps on after close; all else holds."""
    check_vector_env(cart_poles(mode), raises_when_closed=False)


@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_wrappers_pass(mode: AutoresetMode) -> None:
    check_vector_env(RecordEpisodeStatistics(cart_poles(mode)), raises_when_closed=False)


def test_an_asynchronous_environment_passes() -> None:
    # Spawned, for forking a process in which PyTorch has threads may lock up.
    envs = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"})
    check_vector_env(envs)


def test_not_ending_is_told() -> None:
    class Endless(Walk):
        def begin(self, rows: np.ndarray) -> None:
            super().begin(rows)
            self.left[rows] = 10

    with pytest.raises(AssertionError, match=r"no episode ended in 5 steps.*raise max_steps"):
        check_vector_env(Endless(NEXT), max_steps=5)


# Planted defects -----------------------------------------------------------------------------------------------------


class WrongDtype(Walk):
    def observe(self) -> Any:
        return {"place": self.place.astype(np.float64), "left": self.left.copy()}


class WrongShape(Walk):
    def observe(self) -> Any:
        return {"place": self.place.copy(), "left": self.left[:, 0].copy()}


class OutOfRange(Walk):
    def observe(self) -> Any:
        return {"place": self.place + np.float32(1000), "left": self.left.copy()}


class NotANumber(Walk):
    def observe(self) -> Any:
        return {"place": self.place * np.float32("nan"), "left": self.left.copy()}


class MissingKey(Walk):
    def observe(self) -> Any:
        return {"place": self.place.copy()}


class ChangesReturned(Walk):
    """Returns its own arrays, and steps them in place."""

    def observe(self) -> Any:
        return {"place": self.place, "left": self.left.copy()}


class ReturnsOneBuffer(Walk):
    """Copies into the same memory every time, as SyncVectorEnv(copy=False) does."""

    buffer: np.ndarray | None = None

    def observe(self) -> Any:
        if self.buffer is None:
            self.buffer = np.empty_like(self.place)
        self.buffer[:] = self.place
        return {"place": self.buffer, "left": self.left.copy()}


class ReadsReturned(Walk):
    """Keeps what it returned and goes on from there."""

    def observe(self) -> Any:
        self.place = self.place.copy()
        return {"place": self.place, "left": self.left.copy()}

    def step(self, actions: Any) -> Any:
        kept = self.place
        self.place = kept.copy()  # so that nothing returned is changed, only read
        return super().step(actions)


class SharesInfo(Walk):
    """The info's array is the environment's own."""

    def info_of(self, rows: np.ndarray) -> dict[str, Any]:
        return {"length": self.left[:, 0], "_length": rows.copy()}


class ChangesActions(Walk):
    def step(self, actions: Any) -> Any:
        actions *= 0.5
        return super().step(actions)


class KeepsActions(Walk):
    """Moves by the last step's actions too, without having copied them."""

    last: np.ndarray | None = None

    def step(self, actions: Any) -> Any:
        if self.last is not None:
            self.place += np.clip(self.last, -1, 1) * np.float32(0.1)
        self.last = actions
        return super().step(actions)

    def reset(self, **kwargs: Any) -> Any:
        self.last = None
        return super().reset(**kwargs)


class IntegerRewards(Walk):
    def rewards_of(self, actions: np.ndarray, fresh: np.ndarray) -> Any:
        return np.zeros(3, dtype=np.int64)


class ColumnRewards(Walk):
    def rewards_of(self, actions: np.ndarray, fresh: np.ndarray) -> Any:
        return super().rewards_of(actions, fresh)[:, None]


class ListRewards(Walk):
    def rewards_of(self, actions: np.ndarray, fresh: np.ndarray) -> Any:
        return super().rewards_of(actions, fresh).tolist()


class NaNRewards(Walk):
    def rewards_of(self, actions: np.ndarray, fresh: np.ndarray) -> Any:
        return np.full(3, np.nan)


class IntegerFlags(Walk):
    def step(self, actions: Any) -> Any:
        observation, rewards, terminated, truncated, info = super().step(actions)
        return observation, rewards, terminated.astype(np.int64), truncated, info


class FourResults(Walk):
    def step(self, actions: Any) -> Any:
        return super().step(actions)[:4]


class BareReset(Walk):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class PaysOnReset(Walk):
    def rewards_of(self, actions: np.ndarray, fresh: np.ndarray) -> Any:
        return actions.sum(axis=1, dtype=np.float64)


class ActsOnReset(Walk):
    def ignored(self, fresh: np.ndarray) -> np.ndarray:
        return np.zeros_like(fresh)


class EndsOnReset(Walk):
    def step(self, actions: Any) -> Any:
        fresh = self.ended.copy()
        observation, rewards, terminated, truncated, info = super().step(actions)
        return observation, rewards, terminated | fresh, truncated, info


class TruncatesOnReset(Walk):
    def step(self, actions: Any) -> Any:
        fresh = self.ended.copy()
        observation, rewards, terminated, _, info = super().step(actions)
        return observation, rewards, terminated, fresh, info


class FinalObsInNextStep(Walk):
    def info_of(self, rows: np.ndarray) -> dict[str, Any]:
        return super().info_of(rows) | {"final_obs": np.full(3, None, dtype=object), "_final_obs": rows.copy()}


class NoFinalObs(Walk):
    def replace(self, ended: np.ndarray) -> dict[str, Any]:
        return {k: v for k, v in super().replace(ended).items() if not k.endswith("final_obs")}


class NoFinalInfo(Walk):
    def replace(self, ended: np.ndarray) -> dict[str, Any]:
        return {k: v for k, v in super().replace(ended).items() if not k.endswith("final_info")}


class FinalMaskOfAll(Walk):
    def replace(self, ended: np.ndarray) -> dict[str, Any]:
        return super().replace(ended) | {"_final_obs": np.ones(3, dtype=np.bool_)}


class FinalObsOfAll(Walk):
    def replace(self, ended: np.ndarray) -> dict[str, Any]:
        result = super().replace(ended)
        for row in range(3):
            if result["final_obs"][row] is None:
                result["final_obs"][row] = {"place": self.place[row].copy(), "left": self.left[row].copy()}
        return result


class FinalObsOfWrongDtype(Walk):
    def replace(self, ended: np.ndarray) -> dict[str, Any]:
        result = super().replace(ended)
        for row in np.flatnonzero(ended):
            result["final_obs"][row]["place"] = result["final_obs"][row]["place"].astype(np.float64)
        return result


class FinalInfoOfAll(Walk):
    def replace(self, ended: np.ndarray) -> dict[str, Any]:
        result = super().replace(ended)
        result["final_info"]["_length"] = np.ones(3, dtype=np.bool_)
        return result


class SameStepNotReset(Walk):
    """Returns the ended episode's last observation instead of the next one's first."""

    def step(self, actions: Any) -> Any:
        observation, rewards, terminated, truncated, info = super().step(actions)
        for row in np.flatnonzero(terminated):
            for key in observation:
                observation[key][row] = info["final_obs"][row][key]
        return observation, rewards, terminated, truncated, info


class IgnoresSeed(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=None, options=options)


class KeepsSeedOnly(Walk):
    """Takes note of the seed, but draws from a generator of its own."""

    own = np.random.default_rng(0)

    def begin(self, rows: np.ndarray) -> None:
        super().begin(rows)
        self.place[rows] = self.own.uniform(-1, 1, size=(rows.sum(), 2))


class DrawsGlobally(Walk):
    """Rewards from a generator that no seed reaches."""

    own = np.random.default_rng(0)

    def rewards_of(self, actions: np.ndarray, fresh: np.ndarray) -> Any:
        return np.where(fresh, 0.0, self.own.uniform(size=3))


class NoInfoMask(Walk):
    def info_of(self, rows: np.ndarray) -> dict[str, Any]:
        return {"length": self.left[:, 0].copy()}


class ShortInfoMask(Walk):
    def info_of(self, rows: np.ndarray) -> dict[str, Any]:
        return {"length": self.left[:, 0].copy(), "_length": rows[:2].copy()}


class IntegerInfoMask(Walk):
    def info_of(self, rows: np.ndarray) -> dict[str, Any]:
        return {"length": self.left[:, 0].copy(), "_length": rows.astype(np.int64)}


class MaskOfNothing(Walk):
    def info_of(self, rows: np.ndarray) -> dict[str, Any]:
        return super().info_of(rows) | {"_other": rows.copy()}


class ScalarInfo(Walk):
    def info_of(self, rows: np.ndarray) -> dict[str, Any]:
        return {"length": 5, "_length": rows.copy()}


class ListOfInfos(Walk):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], [{}, {}, {}]


class StepsWhenClosed(Walk):
    def close(self, **kwargs: Any) -> None:
        pass


class StepsAfterClose(Walk):
    def step(self, actions: Any) -> Any:
        was, self.closed = self.closed, False
        result = super().step(actions)
        self.closed = was
        return result


class ResetsAfterClose(Walk):
    def reset(self, **kwargs: Any) -> Any:
        was, self.closed = self.closed, False
        result = super().reset(**kwargs)
        self.closed = was
        return result


class NoModeInMetadata(Walk):
    def __init__(self, mode: AutoresetMode) -> None:
        super().__init__(mode)
        self.metadata = {}


class ModeIsAString(Walk):
    def __init__(self, mode: AutoresetMode) -> None:
        super().__init__(mode)
        self.metadata = {"autoreset_mode": mode.value}


class SingleActionSpace(Walk):
    def __init__(self, mode: AutoresetMode) -> None:
        super().__init__(mode)
        self.action_space = self.single_action_space


class UnknownRenderMode(Walk):
    def __init__(self, mode: AutoresetMode) -> None:
        super().__init__(mode)
        self.render_mode = "hologram"


class StepsEndedEpisodes(Walk):
    """DISABLED, and yet an episode that has ended is stepped on."""

    def step(self, actions: Any) -> Any:
        self.ended[:] = False
        return super().step(actions)


class ResetsAll(Walk):
    """DISABLED: the mask is read and not minded."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        if options is not None:
            self.begin(np.ones(3, dtype=np.bool_))
            return self.observe(), info
        return observation, info


class InfosOfAll(Walk):
    def info_of(self, rows: np.ndarray) -> dict[str, Any]:
        return super().info_of(np.ones(3, dtype=np.bool_))


class TakesAnyMask(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if options is not None and (options["reset_mask"].shape != (3,) or not options["reset_mask"].any()):
            options = None
        return super().reset(seed=seed, options=options)


DEFECTS: list[tuple[type[Walk], AutoresetMode, str]] = [
    (WrongDtype, NEXT, r"observation\['place'\] must have dtype float32, got float64"),
    (WrongShape, NEXT, r"observation\['left'\] must have shape \(3, 1\), got \(3,\)"),
    (OutOfRange, NEXT, "leaves the space's bounds"),
    (NotANumber, NEXT, "contains NaN"),
    (MissingKey, NEXT, "must be a dict with keys"),
    (ChangesReturned, NEXT, "changed what an earlier call returned: return fresh arrays .'place'"),
    (ReturnsOneBuffer, NEXT, "fresh arrays"),
    (ReadsReturned, NEXT, "overwriting returned observations"),
    (SharesInfo, NEXT, "fresh arrays .'length'"),
    (ChangesActions, NEXT, "changed the actions it was given"),
    (KeepsActions, NEXT, "or actions once they were used"),
    (IntegerRewards, NEXT, "rewards must be a numpy array of floats"),
    (ColumnRewards, NEXT, r"rewards must have shape \(3,\), got \(3, 1\)"),
    (ListRewards, NEXT, "rewards must be a numpy array of floats"),
    (NaNRewards, NEXT, "rewards must be finite"),
    (IntegerFlags, NEXT, "terminations must have dtype bool, got int64"),
    (FourResults, NEXT, "must return .observation, rewards, terminations, truncations, info."),
    (BareReset, NEXT, "reset must return .observation, info."),
    (PaysOnReset, NEXT, "only resets environment .* its reward must be 0"),
    (ActsOnReset, NEXT, "another action on the step that only resets an environment changed observation"),
    (EndsOnReset, NEXT, "can be neither terminated nor truncated"),
    (TruncatesOnReset, NEXT, "can be neither terminated nor truncated"),
    (FinalObsInNextStep, NEXT, "belongs to SAME_STEP"),
    (NoFinalObs, SAME, r"needs info\['final_obs'\] of the environments that ended"),
    (NoFinalInfo, SAME, r"needs info\['final_info'\] of the environments that ended"),
    (FinalMaskOfAll, SAME, r"info\['_final_obs'\] is \[ True  True  True\]"),
    (FinalObsOfAll, SAME, "has not ended"),
    (FinalObsOfWrongDtype, SAME, r"final_obs'\]\[\d\]\['place'\] must have dtype float32"),
    (FinalInfoOfAll, SAME, "is true where no episode ended"),
    (SameStepNotReset, SAME, "must return the next episode's first observation"),
    (IgnoresSeed, NEXT, r"np_random_seed.*pass the seed on"),
    (KeepsSeedOnly, NEXT, "twice and the same actions gave different observation"),
    (DrawsGlobally, SAME, "twice and the same actions gave different rewards"),
    (NoInfoMask, NEXT, r"info\['length'\] lacks its mask: add info\['_length'\]"),
    (ShortInfoMask, SAME, r"info\['_length'\] must have shape \(3,\), got \(2,\)"),
    (IntegerInfoMask, DISABLED, r"info\['_length'\] must have dtype bool"),
    (MaskOfNothing, NEXT, "has the mask '_other', but no 'other'"),
    (ScalarInfo, NEXT, "one row for each of 3 environments, got 5"),
    (ListOfInfos, NEXT, "info must be a dict"),
    (StepsWhenClosed, NEXT, "must set `closed`"),
    (StepsAfterClose, SAME, r"step\(\) after close\(\) must raise"),
    (ResetsAfterClose, DISABLED, r"reset\(\) after close\(\) must raise"),
    (NoModeInMetadata, NEXT, r"must be a gymnasium.vector.AutoresetMode, got None"),
    (ModeIsAString, NEXT, r"must be a gymnasium.vector.AutoresetMode, got 'NextStep'"),
    (SingleActionSpace, NEXT, "action_space must be batch_space"),
    (UnknownRenderMode, NEXT, "'hologram' is not in metadata"),
    (StepsEndedEpisodes, DISABLED, r"step\(\) with an ended environment .* must raise"),
    (ResetsAll, DISABLED, "changed environment ., which the mask leaves out"),
    (InfosOfAll, DISABLED, "true where nothing was reset"),
    (TakesAnyMask, DISABLED, "must raise"),
]


@pytest.mark.parametrize(("defect", "mode", "message"), DEFECTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_defect_is_caught(defect: type[Walk], mode: AutoresetMode, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_vector_env(defect(mode))


def test_something_else_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"expected a gymnasium.vector.VectorEnv"):
        check_vector_env(gym.make("CartPole-v1"))  # pyright: ignore[reportArgumentType]
