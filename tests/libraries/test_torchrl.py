"""TorchRL on the ids. Run by scripts/test_libraries.sh, in an environment that has it."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

pytest.importorskip("torchrl")

from torchrl.envs import GymEnv, GymWrapper

import canvit_gym  # noqa: F401

SMALL = {"num_scenes": 16, "device": "cpu"}
ENV_ID = "CanViT/FashionSegmentation-v0"
EXAMPLE = Path(__file__).parents[2] / "examples" / "torchrl_rollout.py"


def test_an_id_in_one_line() -> None:
    env = GymEnv(ENV_ID, **SMALL)
    assert env.rollout(10).batch_size == (4,)  # an episode: the budget less the first glimpse


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_the_native_vector_environment(mode: str) -> None:
    env = GymWrapper(gym.make_vec(ENV_ID, num_envs=3, autoreset_mode=mode, **SMALL))
    assert env.rollout(6, break_when_any_done=False).batch_size == (3, 6)


def test_the_default_autoreset_mode_is_refused_in_words() -> None:
    with pytest.raises(RuntimeError, match="SAME_STEP or DISABLED"):
        GymWrapper(gym.make_vec(ENV_ID, num_envs=3, **SMALL))


def test_the_example() -> None:
    options = ["--num-envs", "4", "--steps", "8", "--env-kwargs", json.dumps(SMALL)]
    done = subprocess.run([sys.executable, EXAMPLE, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 environments: (4, 8) transitions, 8 episodes ended" in done.stdout and "canvas" in done.stdout
