"""Single environments of a vectorizer share out the scenes of a split that comes in order, or are told to."""

import pickle
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import ENV_IDS, SMALL
from stable_baselines3.common.vec_env import DummyVecEnv

import canvit_gym
from canvit_gym import sharding
from canvit_gym.scenes.sampler import check_shard
from canvit_gym.vector_env import GlimpseVectorEnv

VALIDATION: dict[str, Any] = {**SMALL, "split": "validation", "budget": 2}


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "_told", set())
    sharding._walking.clear()


@pytest.mark.parametrize("env_id", ENV_IDS[:2])
def test_every_scene_is_seen_once(env_id: str) -> None:
    envs = gym.vector.SyncVectorEnv(canvit_gym.env_fns(env_id, 3, **VALIDATION))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        seen = envs.reset(seed=0)[1]["scene"].tolist()
        for _ in range(4):
            seen += envs.reset()[1]["scene"].tolist()
    assert sorted(seen) == list(range(15))
    envs.close()


def test_with_stable_baselines3() -> None:
    envs = DummyVecEnv(canvit_gym.env_fns(ENV_IDS[0], 4, **VALIDATION))  # pyright: ignore[reportArgumentType]
    envs.reset()
    assert [info["scene"] for info in envs.reset_infos] == [0, 1, 2, 3]
    envs.close()


def test_a_share_is_shared_out() -> None:
    """Every third scene from the first, in two environments: 1, 7, 13 and 4, 10."""
    scenes = []
    for make in canvit_gym.env_fns(ENV_IDS[0], 2, shard=(1, 3), **VALIDATION):
        env = make()
        scenes.append([env.reset()[1]["scene"] for _ in range(3)])
        env.close()
    assert scenes == [[1, 7, 13], [4, 10, 4]]


def test_in_a_process_that_has_imported_nothing() -> None:
    made = pickle.dumps(canvit_gym.env_fns(ENV_IDS[0], 2, **VALIDATION)[1])
    program = f"import pickle; print(pickle.loads({made!r})().reset()[1]['scene'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "1", done.stderr


def test_unsharded_environments_are_told() -> None:
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(ENV_IDS[0], **VALIDATION)] * 3)
    told = "2 single environments in this process go through the same 16 scenes of 'validation'.*canvit_gym.env_fns"
    with pytest.warns(UserWarning, match=told) as caught:
        assert envs.reset()[1]["scene"].tolist() == [0, 0, 0]
    assert sum("single environments" in str(warning.message) for warning in caught) == 1
    envs.close()


@pytest.mark.parametrize(
    ("kwargs", "options"),
    [({"split": "training"}, None), ({"split": "validation"}, {"scene": 3})],
)
def test_what_is_nothing_wrong_is_not_told(kwargs: dict[str, Any], options: dict[str, Any] | None) -> None:
    envs = [gym.make(ENV_IDS[0], **{**VALIDATION, **kwargs}) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for env in envs:
            env.reset(seed=0, options=options)
            env.close()
        for split in ("validation", "test", "validation"):  # one after the other
            env = gym.make(ENV_IDS[0], **{**VALIDATION, "split": split})
            env.reset()
            env.close()


def test_in_a_worker_process() -> None:
    program = (
        "import gymnasium as gym, canvit_gym\n"
        "if __name__ == '__main__':\n"
        f"    envs = gym.make_vec({ENV_IDS[0]!r}, 2, vectorization_mode='async', **{VALIDATION!r})\n"
        "    print(envs.reset()[1]['scene'].tolist())\n"
        "    envs.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[0, 0]" and "in a worker process: if others have one" in done.stderr, done.stderr


def test_a_native_environment_in_a_worker_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "_in_worker", lambda: True)
    envs = gym.make_vec(ENV_IDS[0], 2, **VALIDATION)
    with pytest.warns(UserWarning, match=r"in a worker process: .* same 16 scenes.*canvit_gym\.share_scenes"):
        envs.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        envs.reset()
        envs.unwrapped.shard = (1, 2)  # pyright: ignore[reportAttributeAccessIssue]
        envs.reset()
    envs.close()


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_runners_of_rllib(mode: str) -> None:
    """Two runners with two environments each, the way in which RLlib calls the callback."""
    seen = []
    for worker_index in (1, 2):
        envs = gym.make_vec(ENV_IDS[0], 2, vectorization_mode=mode, **VALIDATION)
        canvit_gym.share_scenes(
            env_runner=None, env=envs.unwrapped, env_context=SimpleNamespace(worker_index=worker_index, num_workers=2)
        )
        for _ in range(4):
            seen += envs.reset()[1]["scene"].tolist()
        envs.close()
    assert sorted(seen) == list(range(16))


def test_the_shard_of_an_environment_is_set() -> None:
    envs = gym.make_vec(ENV_IDS[0], 2, **VALIDATION).unwrapped
    assert isinstance(envs, GlimpseVectorEnv)
    envs.reset()
    envs.shard = (1, 4)
    assert envs.reset()[1]["scene"].tolist() == [1, 5]
    with pytest.raises(ValueError, match=r"shard \(16, 17\) of 16 scenes is empty"):
        envs.shard = (16, 17)
    assert envs.shard == (1, 4) and envs.reset()[1]["scene"].tolist() == [9, 13]
    assert envs.spec is not None
    again = gym.make_vec(envs.spec).unwrapped
    assert isinstance(again, GlimpseVectorEnv) and again.shard == (1, 4)
    again.close()
    envs.close()


def test_no_environment() -> None:
    with pytest.raises(ValueError, match="num_envs must be an integer >= 1, got 0"):
        canvit_gym.env_fns(ENV_IDS[0], 0)


def test_a_shard_of_numpys_integers() -> None:
    assert check_shard((np.int64(1), np.int32(3))) == (1, 3)  # pyright: ignore[reportArgumentType]
    for bad in ((True, 2), (0, 2.0), (2, 2), (-1, 2), (0,), "01", 3, None):
        with pytest.raises(ValueError, match=r"shard must be \(i, n\)"):
            check_shard(bad)  # pyright: ignore[reportArgumentType]
