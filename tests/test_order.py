"""FashionOrder: sixteen tiles, each once, and the area under the score's curve as return."""

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest

import canvit_gym
from canvit_gym.statistics import area_under_curve
from canvit_gym.vector_env import GlimpseVectorEnv

ORDER = "CanViT/FashionOrder-v0"
SMALL = {"num_scenes": 16, "device": "cpu", "split": "validation"}


@pytest.fixture
def envs() -> GlimpseVectorEnv:
    return GlimpseVectorEnv(4, **{**canvit_gym.ENVIRONMENTS[ORDER], **SMALL, "autoreset_mode": "disabled"})


def first_allowed(mask: np.ndarray) -> np.ndarray:
    return mask.argmax(axis=1)


@pytest.mark.parametrize("choose", [first_allowed, lambda mask: mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)])
def test_the_return_is_the_area_under_the_score(
    envs: GlimpseVectorEnv, choose: Callable[[np.ndarray], np.ndarray]
) -> None:
    _, info = envs.reset(seed=0)
    total, terminated = np.zeros(4), np.zeros(4, dtype=bool)
    for _ in range(4):
        _, reward, terminated, _, info = envs.step(choose(np.asarray(info["action_mask"])))
        total += reward
    assert terminated.all()
    assert total == pytest.approx(area_under_curve(np.asarray(info["score_curve"], dtype=float)), abs=1e-5)


def test_a_tile_is_looked_at_once(envs: GlimpseVectorEnv) -> None:
    _, info = envs.reset(seed=0)
    assert np.asarray(info["action_mask"]).shape == (4, 16) and np.asarray(info["action_mask"]).all()
    _, _, _, _, info = envs.step(np.full(4, 5))
    assert not np.asarray(info["action_mask"])[:, 5].any() and np.asarray(info["action_mask"]).sum() == 4 * 15
    with pytest.raises(ValueError, match="revisit=False allows each only once"):
        envs.step(np.full(4, 5))


def test_an_order_longer_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="use a budget of at most 17"):
        gym.make(ORDER, **SMALL, budget=18)
