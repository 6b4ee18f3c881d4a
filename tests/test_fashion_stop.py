"""FashionStop: every glimpse has a price, and the agent may stop."""

import numpy as np
import pytest

import canvit_gym
from canvit_gym.vector_env import GlimpseVectorEnv

STOP = "CanViT/FashionStop-v0"


def test_a_glimpse_costs_and_stopping_is_free() -> None:
    kwargs = {**canvit_gym.ENVIRONMENTS[STOP], "num_scenes": 16, "device": "cpu", "autoreset_mode": "disabled"}
    paid = {}
    for price in (0.0, 0.02):
        envs = GlimpseVectorEnv(3, **{**kwargs, "glimpse_cost": price})
        envs.reset(seed=0)
        look, stop = np.zeros(3, dtype=np.int64), np.full(3, envs.single_action_space.n - 1)  # type: ignore[attr-defined]
        _, one, _, _, _ = envs.step(look)
        _, last, terminated, _, info = envs.step(stop)
        assert terminated.all() and np.asarray(info["glimpses"]).tolist() == [2, 2, 2]
        paid[price] = (one, last)
        envs.close()
    assert paid[0.0][0] - paid[0.02][0] == pytest.approx(0.02) and np.array_equal(paid[0.02][1], np.zeros(3))
