"""Scenes that a thread loads in advance are the scenes that are loaded when they are needed."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from canvit_core.preprocess import IMAGENET_MEAN, IMAGENET_STD
from canvit_pytorch.preprocess import imagenet_normalize
from numpy.typing import NDArray

import canvit_gym
from canvit_gym import episodes as episodes_module
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import normalize
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.scenes.ahead import SceneLoader
from canvit_gym.scenes.prepared import FashionScenes
from canvit_gym.scenes.source import SceneBatch, SceneSource
from canvit_gym.vector_env import GlimpseVectorEnv

CPU = torch.device("cpu")


class Watched:
    """FashionScenes; notes which thread loaded what, and fails once at `fails_at`."""

    loads_in_threads = True
    name, fingerprint, classes = "watched", "watched", ()

    def __init__(self) -> None:
        self._scenes = FashionScenes("segmentation", "validation", 16)
        self.scene_size_px = self._scenes.scene_size_px
        self.loaded: list[tuple[bool, list[int]]] = []
        self.fails_at: int | None = None

    def __len__(self) -> int:
        return len(self._scenes)

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        self.loaded.append((threading.current_thread() is threading.main_thread(), indices.tolist()))
        if self.fails_at in indices:
            raise OSError(f"scene {self.fails_at} is gone")
        return self._scenes.load(indices)


def assert_same(found: SceneBatch, scenes: SceneSource, indices: list[int]) -> None:
    expected = scenes.load(np.array(indices))
    assert torch.equal(found.images, expected.images) and torch.equal(found.labels, expected.labels)


def test_expected_scenes_are_loaded_once_by_the_thread() -> None:
    source, plain = Watched(), FashionScenes("segmentation", "validation", 16)
    loader = SceneLoader(source, CPU, ahead=True)
    loader.expect(np.array([3, 1, 4]))
    loader.expect(np.array([1, 4, 5, 9]))  # 1 and 4 are kept
    for indices in ([4], [9, 1, 5]):
        loaded = loader.load(np.array(indices))
        assert_same(loaded.batch, plain, indices)
        assert_same(loaded.on_host(), plain, indices)
    assert source.loaded == [(False, [3, 1, 4]), (False, [5, 9])]
    assert_same(loader.load(np.array([1])).batch, plain, [1])  # handed out before: its memory is the caller's
    assert source.loaded[2:] == [(True, [1])]
    loader.close()


def test_scenes_that_were_not_all_expected() -> None:
    plain = FashionScenes("segmentation", "validation", 16)
    loader = SceneLoader(plain, CPU, ahead=True)
    loader.expect(np.array([0, 1]))
    for indices in ([1, 2], [0, 0, 7], [5]):
        assert_same(loader.load(np.array(indices)).batch, plain, indices)
    loader.close()
    loader.expect(np.array([1]))
    assert_same(loader.load(np.array([1])).batch, plain, [1])


def test_an_error_is_raised_where_the_scene_is_needed() -> None:
    source = Watched()
    loader = SceneLoader(source, CPU, ahead=True)
    source.fails_at = 2
    loader.expect(np.array([2, 3]))
    with pytest.raises(OSError, match="scene 2 is gone"):
        loader.load(np.array([2, 3]))
    loader.expect(np.array([2, 3]))
    assert_same(loader.load(np.array([3])).batch, FashionScenes("segmentation", "validation", 16), [3])
    loader.close()


@pytest.mark.parametrize("ahead", [False, True])
def test_only_sources_that_allow_it_are_loaded_by_a_thread(ahead: bool) -> None:
    source: Any = Watched()
    source.loads_in_threads = not ahead
    loader = SceneLoader(source, CPU, ahead=ahead)
    loader.expect(np.array([1]))
    assert not source.loaded
    loader.load(np.array([1]))
    assert source.loaded == [(True, [1])]


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_environments_are_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments that stop early, so that scenes are taken one by one; over the end of a pass."""

    def rollout() -> list[Any]:
        settings = {**canvit_gym.ENVIRONMENTS["CanViT/FashionSearch-v0"], "allow_stop": True, "budget": 3}
        envs = GlimpseVectorEnv(4, num_scenes=10, device="cpu", autoreset_mode=mode, **settings)
        envs.action_space.seed(0)
        envs.reset(seed=0)
        steps = []
        for _ in range(12):
            _, reward, _, _, info = envs.step(envs.action_space.sample())
            steps.append((reward, info["scene"], info["goal"], info["loss"]))
        envs.close()
        return steps

    plain = rollout()
    monkeypatch.setattr(episodes_module, "loads_ahead", lambda device: True)
    for one, other in zip(plain, rollout(), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_evaluations_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EnvConfig(split="validation", num_scenes=11, device="cpu", budget=2)

    def found() -> Any:
        policy = make_policy("coarse_to_fine", config=config, num_glimpses=2)
        return evaluate(policy, config=config, num_glimpses=2, batch_size=4)

    plain = found()
    monkeypatch.setattr(episodes_module, "loads_ahead", lambda device: True)
    again = found()
    np.testing.assert_array_equal(plain.loss, again.loss)
    np.testing.assert_array_equal(plain.scene, again.scene)
    assert not [t for t in threading.enumerate() if t.name.startswith("scenes-ahead")]


def test_pixels_are_normalized_as_by_canvit_pytorch() -> None:
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = imagenet_normalize(images.float() / 255)
    out = torch.empty_like(expected)
    for target in (None, out):
        torch.testing.assert_close(normalize(images, mean=mean, std=std, out=target), expected, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-6)
