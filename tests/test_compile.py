"""compile=True: the same numbers to rounding, one compilation for any batch, and eager steps where there is none."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import canvit_pytorch
import numpy as np
import pytest
import torch
from canvit_pytorch import CanViT, RecurrentState, Viewpoint, sample_at_viewpoint
from canvit_pytorch.policies.random import random_viewpoints
from canvit_pytorch.viewpoint import viewpoint_grid_coords

from canvit_gym.backbone import twin as twin_module
from canvit_gym.backbone.compilation import CUDA_GRAPH_OPTIONS
from canvit_gym.backbone.load import Backbone, load_backbone
from canvit_gym.backbone.twin import UnknownCodeError, rebound, twin_of
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.vector_env import GlimpseVectorEnv

MakeVec = Callable[..., GlimpseVectorEnv]
STEPS = 4
CONFIG = EnvConfig(split="validation", num_scenes=32, device="cpu", budget=STEPS)


def rollout(backbone: Backbone, num: int, *, seed: int = 0) -> RecurrentState:
    """The state after a full-scene glimpse and random ones of noise."""
    torch.manual_seed(seed)
    images = torch.randn(num, 3, backbone.scene_size_px, backbone.scene_size_px)
    state = backbone.init_state(num)
    with torch.inference_mode():
        for t in range(STEPS):
            device = torch.device("cpu")
            viewpoint = (
                random_viewpoints(batch_size=num, device=device)
                if t
                else Viewpoint.full_scene(batch_size=num, device=device)
            )
            state = backbone.step(backbone.glimpse(images, viewpoint), state, viewpoint)
    return state


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.fixture(scope="module")
def compiled() -> Backbone:
    return load_backbone("nano", device="cpu", compile=True)


@pytest.mark.slow
def test_states_are_the_eager_ones(compiled: Backbone) -> None:
    """And one compilation serves every number of scenes above one."""
    eager = load_backbone("nano", device="cpu")
    seconds = []
    for num in (8, 5, 3, 7):
        one, other = rollout(compiled, num), rollout(eager, num)
        assert relative_error(one.canvas, other.canvas) < 1e-5
        assert relative_error(one.recurrent_cls, other.recurrent_cls) < 1e-5
        assert not torch.equal(one.canvas, other.canvas), "this is the eager step"
        seconds.append(compiled._step.seconds)  # pyright: ignore[reportFunctionMemberAccess]
    assert seconds[0] > 0 and len(set(seconds)) == 1
    one, other = rollout(compiled, 1), rollout(eager, 1)
    assert relative_error(one.canvas, other.canvas) < 1e-5


@pytest.mark.slow
def test_recompilations_are_few(compiled: Backbone) -> None:
    rollout(compiled, 4)
    with torch.compiler.set_stance("fail_on_recompile"):
        for num in (2, 6, 9, 4):
            rollout(compiled, num)


@pytest.mark.slow
def test_policies_and_scores_are_unchanged(compiled: Backbone) -> None:
    """What EG-C2F looks at, and what is read then. 32 scenes: the experiment measures the whole split."""
    del compiled  # what it compiled is used
    results = []
    for config in (CONFIG, EnvConfig(**{**CONFIG.to_json(), "compile": True})):
        policy = make_policy("entropy_coarse_to_fine", config=config, num_glimpses=STEPS)
        results.append(evaluate(policy, config=config, batch_size=16))
    eager, compiled_ = results
    assert (eager.viewpoints == compiled_.viewpoints).all(axis=2).mean() > 0.99
    np.testing.assert_allclose(eager.score(), compiled_.score(), atol=1e-3)


@pytest.mark.slow
def test_environments_take_it(make_vec: MakeVec) -> None:
    eager, compiled = (make_vec(4, budget=3, compile=value) for value in (False, True))
    rewards = []
    for envs in (eager, compiled):
        envs.action_space.seed(0)
        envs.reset(seed=0)
        rewards.append([envs.step(envs.action_space.sample())[1] for _ in range(5)])
    np.testing.assert_allclose(*rewards, atol=1e-4)
    assert compiled.backbone is not eager.backbone and compiled.backbone.record["compile"]


WITHOUT_COMPILER = """
import warnings
import torch
from canvit_gym.vector_env import GlimpseVectorEnv

torch.set_num_threads(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    rewards = []
    for compile in (False, True):
        envs = GlimpseVectorEnv(2, num_scenes=16, device="cpu", budget=2, compile=compile)
        envs.reset(seed=0)
        rewards.append([envs.step(envs.action_space.sample() * 0)[1].tolist() for _ in range(4)])
ours = [w for w in caught if "eagerly" in str(w.message)]
assert rewards[0] == rewards[1], rewards
assert len(ours) == 1, [str(w.message) for w in caught]
print(ours[0].message)
"""


def test_without_a_compiler_steps_are_eager_after_one_warning(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()  # the path has nothing in it
    env = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX")}
    env |= {
        "PATH": str(tmp_path / "bin"),
        "CXX": "/nonexistent/g++",
        "CC": "/nonexistent/gcc",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),  # or what was compiled before is found
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "nano cannot be compiled and runs eagerly" in done.stdout and "$CXX" in done.stdout


def test_the_eager_step_is_canvit_pytorchs_to_the_bit(backbone: Backbone) -> None:
    """And it is not canvit-pytorch's function that runs: this version's code is known."""
    twin = twin_of(backbone.canvit, canvas_grid=backbone.canvas_grid, device=backbone.device)
    assert twin is not backbone.canvit
    weights = dict(backbone.canvit.named_parameters())
    assert all(parameter is weights[name] for name, parameter in twin.named_parameters())
    torch.manual_seed(0)
    images = torch.randn(5, 3, backbone.scene_size_px, backbone.scene_size_px)
    state = expected = backbone.init_state(5)
    with torch.no_grad():
        for _ in range(3):
            viewpoint = random_viewpoints(batch_size=5, device=torch.device("cpu"))
            glimpse = backbone.glimpse(images, viewpoint)
            state = backbone.step(glimpse, state, viewpoint)
            expected = backbone.canvit(glimpse=glimpse, state=expected, viewpoint=viewpoint).state
            assert torch.equal(state.canvas, expected.canvas)
            assert torch.equal(state.recurrent_cls, expected.recurrent_cls)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_geometries_are_canvit_pytorchs_too(precision: str) -> None:
    backbone = load_backbone("nano", device="cpu", canvas_grid=12, precision=precision)  # pyright: ignore[reportArgumentType]
    viewpoint = random_viewpoints(batch_size=3, device=torch.device("cpu"))
    glimpse, state = torch.randn(3, 3, 32, 32), backbone.init_state(3)
    with torch.no_grad(), backbone.autocast():
        expected = backbone.canvit(glimpse=glimpse, state=state, viewpoint=viewpoint).state
        assert torch.equal(backbone.step(glimpse, state, viewpoint).canvas, expected.canvas)


def test_options_of_cuda_graphs_are_known() -> None:
    torch.compile(lambda x: x, options=CUDA_GRAPH_OPTIONS)  # raises for an unknown option


def test_names_that_a_function_does_not_use_are_refused() -> None:
    with pytest.raises(UnknownCodeError, match="nonsense"):
        rebound(random_viewpoints, nonsense=None)


@pytest.fixture
def warnings_of_unknown_code(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], int]]:
    """How often it was told that canvit-pytorch is another than the one known."""
    twin_module._tell_unknown_code.cache_clear()
    yield lambda: sum("is not the one that canvit_gym knows" in message for message in caplog.messages)
    twin_module._tell_unknown_code.cache_clear()


def test_another_sampling_of_canvit_pytorch_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, warnings_of_unknown_code: Callable[[], int]
) -> None:
    """Names are bound anew when the module is imported: that must not fail."""

    def other(*, spatial: torch.Tensor, viewpoint: Viewpoint, glimpse_size_px: int) -> torch.Tensor:
        return sample_at_viewpoint(spatial=spatial, viewpoint=viewpoint, glimpse_size_px=glimpse_size_px)

    monkeypatch.setattr(canvit_pytorch, "sample_at_viewpoint", other)
    monkeypatch.setattr(canvit_pytorch.viewpoint, "viewpoint_grid_coords", partial(viewpoint_grid_coords))
    spec = spec_from_file_location("another_twin", twin_module.__file__)
    assert spec is not None and spec.loader is not None
    again = module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.sample_glimpse is other and warnings_of_unknown_code() == 2, "two names of it, two warnings"
    viewpoint = random_viewpoints(batch_size=2, device=torch.device("cpu"))
    assert torch.equal(again.glimpse_positions(viewpoint, size=4), viewpoint_grid_coords(viewpoint, size=4))


def test_another_forward_of_canvit_pytorch_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, warnings_of_unknown_code: Callable[[], int]
) -> None:
    canvit = load_backbone("nano", device="cpu").canvit
    forward = CanViT.forward
    monkeypatch.setattr(CanViT, "forward", lambda self, **kwargs: forward(self, **kwargs))
    for _ in range(2):
        assert twin_of(canvit, canvas_grid=16, device=torch.device("cpu")) is canvit
    assert warnings_of_unknown_code() == 1


MEMORY = """
import resource
import torch
from canvit_gym.backbone.memory import keep_freed_memory

torch.set_num_threads(1)
blocks = [torch.ones(size << 18) for size in (1, 48, 2)]  # 48 MiB: above the most that glibc keeps unasked
def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(48 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
unasked = faults()
done = keep_freed_memory()
faults()
print(done, unasked, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
@pytest.mark.parametrize("own", [{}, {"MALLOC_ARENA_MAX": "4"}], ids=["unset", "the user's own"])
def test_freed_memory_is_kept(own: dict[str, str]) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | own
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    kept, unasked, after = done.stdout.split()
    assert int(unasked) > 1000
    assert kept == str(not own)
    assert (int(after) < 100) is (not own)
