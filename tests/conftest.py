"""Shared by all tests: one CPU thread (results do not depend on the machine's cores) and small environments."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

import canvit_gym
from canvit_gym.config import EnvConfig, build_backbone
from canvit_gym.vector_env import GlimpseVectorEnv

os.environ.setdefault("CANVIT_GYM_CACHE", str(Path(__file__).parents[1] / ".cache"))  # not the user's own

ENV_IDS = list(canvit_gym.ENVIRONMENTS)

SMALL: dict[str, Any] = {"num_scenes": 16, "device": "cpu"}
"""Sixteen scenes are prepared in a few hundredths of a second."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_vec() -> Iterator[Callable[..., GlimpseVectorEnv]]:
    """GlimpseVectorEnv of an id (default: segmentation) on few scenes; closed after the test."""
    made: list[GlimpseVectorEnv] = []

    def make(num_envs: int = 4, env_id: str = ENV_IDS[0], **kwargs: Any) -> GlimpseVectorEnv:
        merged = {**SMALL, **canvit_gym.ENVIRONMENTS[env_id], **kwargs}
        made.append(GlimpseVectorEnv(num_envs, **merged))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


@pytest.fixture
def make_one() -> Iterator[Callable[..., gym.Env[Any, Any]]]:
    """gym.make of an id on few scenes; closed after the test."""
    made: list[gym.Env[Any, Any]] = []

    def make(env_id: str = ENV_IDS[0], **kwargs: Any) -> gym.Env[Any, Any]:
        made.append(gym.make(env_id, **{**SMALL, **kwargs}))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture(scope="session")
def backbone():
    return build_backbone(EnvConfig(device="cpu"))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scene cache with nothing in it."""
    monkeypatch.setenv("CANVIT_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
