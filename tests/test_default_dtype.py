"""Another part of the program has set PyTorch's default dtype: the numbers are the same to the bit."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL

from canvit_gym.config import EnvConfig
from canvit_gym.dtypes import float32_by_default
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import load_policy, make_policy
from canvit_gym.vector_env import GlimpseVectorEnv

SETTINGS: list[dict[str, Any]] = [
    {"dataset": "fashion-segmentation", "first_glimpse": "random", "track_score": True},
    {"dataset": "fashion-segmentation", "reward": "score_gain", "observation_dtype": "float16"},
    {"dataset": "fashion-classification", "action": "continuous", "observations": ("canvas", "cls", "glimpse")},
    {"dataset": "fashion-odd", "render_mode": "rgb_array"},
]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def rollout(kwargs: dict[str, Any], dtype: torch.dtype, *, before: bool) -> list[Any]:
    if before:
        torch.set_default_dtype(dtype)
    envs = GlimpseVectorEnv(3, split="test", **{**SMALL, **kwargs})
    torch.set_default_dtype(dtype)
    envs.action_space.seed(0)
    observation, info = envs.reset(seed=0)
    found: list[Any] = [info["loss"].tolist(), *(value.tobytes() for value in observation.values())]
    for _ in range(5):
        observation, rewards, *_, info = envs.step(envs.action_space.sample())
        found += [rewards.tolist(), info["loss"].tolist(), *(value.tobytes() for value in observation.values())]
    if envs.render_mode is not None:
        found += [frame.tobytes() for frame in envs.render() or ()]
    envs.close()
    assert torch.get_default_dtype() == dtype, "it is left as it was"
    torch.set_default_dtype(torch.float32)
    return found


@pytest.mark.parametrize("kwargs", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_environments(kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    expected = rollout(kwargs, torch.float32, before=True)
    for before in (True, False):
        assert rollout(kwargs, dtype, before=before) == expected


@pytest.mark.parametrize("name", ["coarse_to_fine", "entropy_coarse_to_fine", "random"])
def test_evaluation(name: str) -> None:
    config = EnvConfig(split="test", num_scenes=4, device="cpu")
    losses = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        policy = make_policy(name, config=config, num_glimpses=3)
        losses.append(evaluate(policy, config=config, num_glimpses=3).loss)
    assert np.array_equal(*losses)


@pytest.mark.parametrize("first", ["checkpoint", "probe"])
def test_weights_stay_float32(first: str) -> None:
    torch.set_default_dtype(torch.float64)
    envs = GlimpseVectorEnv(1, **SMALL, canvas_grid=16)
    model = envs.backbone.model if first == "checkpoint" else envs.task.model
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    envs.close()


def test_trained_policies() -> None:
    losses = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        policy = load_policy("FashionOdd-v0/ppo")
        config = replace(policy.record.env, split="test", num_scenes=4, device="cpu")
        losses.append(evaluate(policy, config=config).loss)
    assert np.array_equal(*losses)


def test_blocks_of_several_threads() -> None:
    """The first to begin is not the last to end."""
    torch.set_default_dtype(torch.float64)
    begun, ends = threading.Event(), threading.Event()

    def first() -> None:
        with float32_by_default():
            begun.set()
            ends.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait(10)
    with float32_by_default():
        ends.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_dtype() == torch.float64


def test_the_autocast_of_the_caller_changes_nothing() -> None:
    rewards = []
    for enabled in (False, True):
        envs = GlimpseVectorEnv(3, split="test", **SMALL)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            envs.reset(seed=0)
            rewards.append([envs.step(np.array([1, 2, 3]))[1].tolist() for _ in range(3)])
        envs.close()
    assert rewards[0] == rewards[1]
