"""Minari records the ids. Run by scripts/test_libraries.sh, in an environment that has it."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("minari")

import minari

from canvit_gym import ENVIRONMENTS

SMALL = {"num_scenes": 16, "device": "cpu"}
ENV_ID = "CanViT/FashionSegmentation-v0"
EXAMPLE = Path(__file__).parents[2] / "examples" / "minari_dataset.py"


@pytest.fixture(autouse=True)
def kept_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


@pytest.mark.parametrize("kwargs", [{}, {"action": "continuous", "observation_preset": "compact"}])
def test_what_was_recorded_is_read_back(kwargs: dict[str, object]) -> None:
    env = minari.DataCollector(gym.make(ENV_ID, **SMALL, **kwargs), record_infos=True)
    env.action_space.seed(0)
    seen, rewards, actions, scenes = [], [], [], []
    for episode in range(3):
        observation, info = env.reset(seed=episode)
        scenes.append(info["scene"])
        seen.append(observation)
        ended = False
        while not ended:
            actions.append(env.action_space.sample())
            observation, reward, terminated, truncated, info = env.step(actions[-1])
            seen.append(observation)
            rewards.append(reward)
            ended = terminated or truncated
    env.create_dataset("canvit/test-v0", algorithm_name="random")
    env.close()

    dataset = minari.load_dataset("canvit/test-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 12)
    episodes = list(dataset.iterate_episodes())
    for key in dataset.observation_space:
        recorded = np.concatenate([episode.observations[key] for episode in episodes])
        np.testing.assert_array_equal(recorded, np.stack([one[key] for one in seen]), strict=True)
    np.testing.assert_allclose(np.concatenate([episode.rewards for episode in episodes]), rewards)
    np.testing.assert_array_equal(np.concatenate([episode.actions for episode in episodes]), actions)
    for episode, scene in zip(episodes, scenes, strict=True):
        assert episode.terminations.tolist() == [False, False, False, True] and not episode.truncations.any()
        assert (episode.infos["scene"] == scene).all() and episode.infos["loss"].shape == (5,)
        assert episode.rewards.sum() == pytest.approx(episode.infos["loss"][0] - episode.infos["loss"][-1], abs=1e-5)


def test_the_environment_is_recovered() -> None:
    env = minari.DataCollector(gym.make(f"canvit_gym:{ENV_ID}", **SMALL, budget=3))
    env.reset(seed=0)
    for _ in range(2):
        env.step(env.action_space.sample())
    env.create_dataset("canvit/test-v0", algorithm_name="random")
    env.close()
    again = minari.load_dataset("canvit/test-v0").recover_environment()
    assert again.spec is not None and again.spec.kwargs == {**ENVIRONMENTS[ENV_ID], **SMALL, "budget": 3}
    again.close()


def test_the_example() -> None:
    command = [sys.executable, str(EXAMPLE), "--episodes", "2", "--env-kwargs"]
    command += ['{"num_scenes": 16, "device": "cpu", "observation_preset": "compact"}']
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=os.environ.copy())
    assert "2 episodes, 8 steps" in done.stdout
