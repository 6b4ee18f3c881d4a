"""compile=True: the same numbers to rounding, one compilation for any batch, and eager steps where there is none."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from canvit_pytorch import RecurrentState, Viewpoint
from canvit_pytorch.policies.random import random_viewpoints

from canvit_gym.backbone import compilation
from canvit_gym.backbone.compilation import CompiledFunction, GraphedFunction, Ran
from canvit_gym.backbone.load import Backbone, load_backbone
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
    device = backbone.device
    images = torch.randn(num, 3, backbone.scene_size_px, backbone.scene_size_px).to(device)
    state = backbone.init_state(num)
    with torch.inference_mode():
        for t in range(STEPS):
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
        seconds.append(compiled._compiled_step.function.seconds)
    assert seconds[0] > 0 and len(set(seconds)) == 1
    one, other = rollout(compiled, 1), rollout(eager, 1)
    assert relative_error(one.canvas, other.canvas) < 1e-5
    assert set(compiled.ran) == {Ran("compiled", "float32")}, "what ran is what was asked for"
    assert set(eager.ran) == {Ran("eager", "float32")}


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
assert envs.backbone.compile and {ran.how for ran in envs.backbone.ran} == {"eager"}, envs.backbone.ran
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


def test_a_step_is_one_graph(compiled: Backbone) -> None:
    """Nothing in it sends the compiler back to Python."""
    state = compiled.init_state(2)
    viewpoint = Viewpoint.full_scene(batch_size=2, device=torch.device("cpu"))
    arguments = (torch.randn(2, 3, 32, 32), state.canvas, state.recurrent_cls, viewpoint.centers, viewpoint.scales)
    torch.compiler.reset()
    with torch.no_grad():
        explained = torch._dynamo.explain(compiled.fast_step.__call__)(*arguments)
    assert explained.graph_break_count == 0 and explained.graph_count == 1, explained.break_reasons


def test_what_cannot_be_compiled_never_counts_as_compiled() -> None:
    def with_a_print(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        print("this breaks the graph")
        return (x + 1,)

    function = CompiledFunction(with_a_print, name="it", any_number=True)
    with pytest.warns(UserWarning, match="it cannot be compiled and runs eagerly"):
        function(torch.zeros(2))
    assert function.how == "eager" and function.seconds == 0
    function(torch.zeros(2))  # without another warning
    assert function.how == "eager"


def test_what_is_differentiated_is_not_compiled() -> None:
    function = CompiledFunction(lambda x: (x * 2,), name="it", any_number=True)
    x = torch.ones(2, requires_grad=True)
    function(x)[0].sum().backward()
    assert function.how == "eager" and x.grad is not None and x.grad.tolist() == [2, 2]


def test_few_numbers_of_scenes_get_code_of_their_own_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it shows on a CPU: which case a number of scenes is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)

    def cases(device: str, *, any_number: bool, nums: list[int]) -> list[int | None]:
        function = CompiledFunction(lambda x: (x,), name="it", any_number=any_number)
        found = []
        for num in nums:
            case = function._case(torch.zeros(num, device=device))
            function._compiled[case] = lambda x: (x,)
            found.append(case)
        return found

    nums = [1, 64, 3, 7, 64, 5, 1]
    assert cases("cpu", any_number=True, nums=nums) == [1, None, None, None, None, None, 1]
    assert cases("meta", any_number=True, nums=nums) == [1, 64, 3, 7, 64, None, 1]
    assert cases("cpu", any_number=False, nums=nums) == nums


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_give_the_compiled_numbers(precision: str) -> None:
    eager, compiled = (
        load_backbone("nano", device="cuda", precision=precision, compile=value)  # pyright: ignore[reportArgumentType]
        for value in (False, True)
    )
    compiled.ran.clear()
    for num in (8, 1, 8, 32):
        one, other = rollout(compiled, num, seed=num), rollout(eager, num, seed=num)
        assert relative_error(one.canvas, other.canvas) < (1e-3 if precision == "float32" else 5e-2)
    assert compiled.ran == {
        Ran("cuda graph", precision): 3 * STEPS - 2,  # pyright: ignore[reportArgumentType]
        Ran("compiled", precision): STEPS + 2,  # pyright: ignore[reportArgumentType]
    }, "32 scenes are launched kernel by kernel, and the first steps of 8 and of 1 were compiled"


@pytest.mark.gpu
def test_graphs_are_few_and_what_they_return_stays() -> None:
    function = GraphedFunction(CompiledFunction(lambda x: (x + 1,), name="it", any_number=True), up_to=99)
    kept = []
    for num in range(2, 2 * compilation.MAX_GRAPHS):
        for value, how in ((1.0, "compiled"), (float(num), "cuda graph")):  # recorded once it has been compiled
            result = function(torch.full((num,), value, device="cuda"))[0]
            assert function.how == (how if num < 2 + compilation.MAX_GRAPHS else "compiled")
        kept.append((num, result))
    for num, result in kept:
        assert result.tolist() == [num + 1] * num


@pytest.mark.gpu
def test_graphs_are_recorded_after_all_earlier_ones_were_freed() -> None:
    """PyTorch 2.11 fails if the pool of freed graphs is used again, and leaves its random generator unusable."""

    def recorded() -> GraphedFunction:
        function = GraphedFunction(CompiledFunction(lambda x: (x * 2,), name="it", any_number=True), up_to=9)
        for _ in range(3):
            function(torch.ones(4, device="cuda"))
        return function

    for _ in range(3):
        assert recorded().how == "cuda graph"
        gc.collect()
    assert torch.rand(3, device="cuda").isfinite().all()


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
