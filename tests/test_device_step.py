"""Compiled and recorded steps give what eager ones give, whichever rows step.

On a CPU nothing is recorded, but all else is the same code.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import canvit_gym
from canvit_gym import episodes as episodes_module
from canvit_gym.backbone.compilation import Ran
from canvit_gym.backbone.load import load_backbone
from canvit_gym.config import EnvConfig
from canvit_gym.cuda_streams import side_streams
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.states import FixedStates, States
from canvit_gym.vector_env import GlimpseVectorEnv

NUM = 4
KEYS = ("canvas", "sketch", "uncertainty", "reading", "acuity", "cls", "viewpoint", "gaze", "time", "glimpse")
SEGMENTATION, CLASSIFICATION = "CanViT/FashionSegmentation-v0", "CanViT/FashionClassification-v0"


@pytest.fixture(params=[False, True], ids=["any rows", "all rows in place"])
def in_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of taking a compiled step: a CPU's, and a GPU's."""
    monkeypatch.setattr(episodes_module, "stays_in_place", lambda device: request.param)
    return request.param


@pytest.fixture
def made() -> Iterator[list[GlimpseVectorEnv]]:
    envs: list[GlimpseVectorEnv] = []
    yield envs
    for each in envs:
        each.close()


def rollout(
    made: list[GlimpseVectorEnv], env_id: str, *, compile: bool, device: str = "cpu", num: int = NUM, **kwargs: Any
) -> list[Any]:
    """Observations, rewards and infos of steps in which environments stop early, end and begin again one by one."""
    settings = {**canvit_gym.ENVIRONMENTS[env_id], "num_scenes": 16, "budget": 3, "allow_stop": True, **kwargs}
    envs = GlimpseVectorEnv(num, device=device, compile=compile, observations=KEYS, track_score=True, **settings)
    made.append(envs)
    rng, stop = np.random.default_rng(0), int(envs.single_action_space.n) - 1  # pyright: ignore[reportAttributeAccessIssue]
    observation, info = envs.reset(seed=0)
    found: list[Any] = [(observation, np.zeros(num), info["loss"])]
    for _ in range(8):
        if envs._ended.any() and kwargs.get("autoreset_mode") == "disabled":
            envs.reset(options={"reset_mask": envs._ended.copy()})
        actions = np.where(rng.random(num) < 0.3, stop, rng.integers(stop, size=num))
        observation, reward, _, _, info = envs.step(actions)
        found.append((observation, reward, info["loss"], info["score"]))
    return found


def assert_alike(one: Any, other: Any, *, tolerance: float) -> None:
    for a, b in zip(one, other, strict=True):
        for key in KEYS:
            allowed = 1 if key == "glimpse" else tolerance
            difference = np.abs(a[0][key].astype(np.float64) - b[0][key].astype(np.float64)).max()
            assert difference <= allowed, (key, difference)
        for x, y in zip(a[1:], b[1:], strict=True):
            np.testing.assert_allclose(x, y, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
def test_rows_that_stop_end_and_begin_again(mode: str, in_place: bool, made: list[GlimpseVectorEnv]) -> None:
    eager = rollout(made, SEGMENTATION, compile=False, autoreset_mode=mode)
    compiled = rollout(made, SEGMENTATION, compile=True, autoreset_mode=mode)
    assert_alike(compiled, eager, tolerance=1e-4)
    batch = made[-1].episodes
    assert isinstance(batch._states, FixedStates if in_place else States)
    compiled_functions = made[-1].backbone.compiled.items()
    [function] = [f for key, f in compiled_functions if (key[1], key[-1]) == (made[-1].layout, in_place)]  # type: ignore[index]
    assert function.how == "compiled", "this was the eager step"
    if not in_place:  # of two, either may step alone, in code for any number above one
        eager, compiled = (
            rollout(made, SEGMENTATION, compile=value, autoreset_mode=mode, num=2) for value in (False, True)
        )
        assert_alike(compiled, eager, tolerance=1e-4)


@pytest.mark.slow
def test_a_task_without_maps(monkeypatch: pytest.MonkeyPatch, made: list[GlimpseVectorEnv]) -> None:
    monkeypatch.setattr(episodes_module, "stays_in_place", lambda device: True)
    eager, compiled = (rollout(made, CLASSIFICATION, compile=value) for value in (False, True))
    assert_alike(compiled, eager, tolerance=1e-4)
    assert Ran("compiled", "float32") in made[-1].backbone.ran


@pytest.mark.slow
def test_tensors_of_a_recorded_step_never_move(monkeypatch: pytest.MonkeyPatch, made: list[GlimpseVectorEnv]) -> None:
    monkeypatch.setattr(episodes_module, "stays_in_place", lambda device: True)
    rollout(made, SEGMENTATION, compile=True)
    envs = made[-1]
    batch = envs.episodes

    def places() -> list[int]:
        state = batch._states.whole()
        tensors = [batch.images, state.canvas, state.recurrent_cls, *batch.truth.values(), *batch._kept.values()]
        return [tensor.data_ptr() for tensor in tensors if tensor is not None]

    before = places()
    envs.reset(seed=1)
    envs.step(np.zeros(NUM, dtype=np.int64))
    envs.reset(options={"scene": [3, 1, 2, 0]})
    assert places() == before


@pytest.mark.slow
def test_evaluations_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that reuse what the first one recorded, and a last one of another number of scenes."""
    monkeypatch.setattr(episodes_module, "stays_in_place", lambda device: True)
    results = []
    for compile in (False, True):
        config = EnvConfig(split="validation", num_scenes=11, device="cpu", budget=3, compile=compile)
        policy = make_policy("entropy_coarse_to_fine", config=config, num_glimpses=3)
        results.append(evaluate(policy, config=config, num_glimpses=3, batch_size=4))
    eager, compiled = results
    assert (eager.scene == compiled.scene).all() and (eager.viewpoints == compiled.viewpoints).mean() > 0.98
    np.testing.assert_allclose(eager.score(), compiled.score(), atol=1e-2)
    np.testing.assert_allclose(eager.loss, compiled.loss, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
@pytest.mark.parametrize("env_id", [SEGMENTATION, CLASSIFICATION])
def test_graphs_give_what_eager_steps_give(mode: str, env_id: str, made: list[GlimpseVectorEnv]) -> None:
    eager = rollout(made, env_id, compile=False, device="cuda", autoreset_mode=mode)
    compiled = rollout(made, env_id, compile=True, device="cuda", autoreset_mode=mode)
    assert_alike(compiled, eager, tolerance=1e-2)
    assert made[-1].episodes._recorded_step._graph is not None  # pyright: ignore[reportOptionalMemberAccess]
    assert made[-1].backbone.ran[Ran("cuda graph", "float32")] > 4


@pytest.mark.gpu
def test_two_environments_share_the_pool_and_not_their_numbers(made: list[GlimpseVectorEnv]) -> None:
    """Their graphs' outputs may lie in the same memory; steps in turns must not mix them up."""
    settings: dict[str, Any] = dict(num_scenes=16, device="cuda", budget=5, compile=True)
    alone, one, other = (GlimpseVectorEnv(NUM, **settings) for _ in range(3))
    made += [alone, one, other]
    for envs, seed in ((alone, 0), (one, 0), (other, 5)):
        envs.reset(seed=seed)
    for action in range(4):
        actions = np.full(NUM, action)
        expected, *_ = alone.step(actions)
        found, *_ = one.step(actions)
        other.step(actions + 7)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, atol=1e-5)


@pytest.mark.gpu
def test_a_step_waits_for_nothing_but_its_rewards(made: list[GlimpseVectorEnv]) -> None:
    envs = GlimpseVectorEnv(NUM, num_scenes=64, device="cuda", budget=9, compile=True)
    made.append(envs)
    envs.on_device = True
    envs.reset(seed=0)
    for action in range(3):
        envs.step(np.full(NUM, action))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for action in range(4):
            envs.step(np.full(NUM, action))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_fixed_states_are_states() -> None:
    """Any rows put, restarted and taken: the same as the ones that copy less."""
    backbone, rng = load_backbone("nano", device="cpu"), np.random.default_rng(0)
    one, other = States(5, backbone.init_state), FixedStates(5, backbone.init_state)
    one.put(np.arange(5), backbone.init_state(5))
    place = other.whole().canvas.data_ptr()
    for _ in range(20):
        rows = np.flatnonzero(rng.random(5) < 0.6)
        if not rows.size:
            continue
        if rng.random() < 0.3:
            for states in (one, other):
                states.restart(rows)
            continue
        state = one.take(rows)
        assert torch.equal(state.canvas, other.take(rows).canvas)
        moved = type(state)(canvas=state.canvas + 1, recurrent_cls=state.recurrent_cls * 2)
        for states in (one, other):
            states.put(rows, moved)
        assert torch.equal(one.whole().canvas, other.whole().canvas)
        assert torch.equal(one.whole().recurrent_cls, other.whole().recurrent_cls)
    assert other.whole().canvas.data_ptr() == place


@pytest.mark.gpu
def test_evaluations_on_a_gpu_score_what_a_cpu_scores() -> None:
    scores = []
    for device in ("cpu", "cuda"):
        config = EnvConfig(dataset="fashion-segmentation", split="test", num_scenes=24, device=device)
        policy = make_policy("entropy_greedy(scale=0.4)", config=config, num_glimpses=5)
        scores.append(evaluate(policy, config=config, num_glimpses=5, batch_size=8).score())
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-2)
    assert scores[0][-1] > scores[0][0] + 0.02


@pytest.mark.gpu
def test_scenes_are_sent_on_another_stream_than_graphs_are_recorded_on() -> None:
    """However many streams a process has asked for: PyTorch has 32 and hands them out in turn."""
    device = torch.device("cuda", 0)
    for _ in range(40):
        torch.cuda.Stream(device)
        streams = side_streams(device)
        assert streams.loading != streams.recording
