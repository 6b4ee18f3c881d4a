"""canvit_gym's forward is canvit-pytorch's: to the bit on a CPU, and runs only where that is known."""

from typing import cast

import pytest
import torch
from canvit_core.config import CanViTConfig
from canvit_pytorch import CanViT, RecurrentState, Viewpoint, sample_at_viewpoint
from canvit_pytorch.policies.random import random_viewpoints

from canvit_gym.backbone import step as step_module
from canvit_gym.backbone.compilation import Precision, Ran
from canvit_gym.backbone.fast_step import FastStep
from canvit_gym.backbone.load import Backbone, load_backbone
from canvit_gym.backbone.nano import nano_config
from canvit_gym.backbone.step import ReferenceStep, step_of

CPU = torch.device("cpu")


def states(backbone: Backbone, *, num: int, steps: int) -> list[tuple[RecurrentState, RecurrentState]]:
    """(ours, canvit-pytorch's) after each of some random glimpses of noise, each going on from its own state."""
    torch.manual_seed(0)
    images = torch.randn(num, 3, backbone.scene_size_px, backbone.scene_size_px).to(backbone.device)
    ours = theirs = backbone.init_state(num)
    found = []
    with torch.no_grad():
        for _ in range(steps):
            viewpoint = random_viewpoints(batch_size=num, device=backbone.device)
            glimpse = backbone.glimpse(images, viewpoint)
            sampled = sample_at_viewpoint(spatial=images, viewpoint=viewpoint, glimpse_size_px=backbone.glimpse_size_px)
            assert torch.equal(glimpse, sampled)
            ours = backbone.step(glimpse, ours, viewpoint)
            with backbone.autocast():
                theirs = backbone.canvit(glimpse=glimpse, state=theirs, viewpoint=viewpoint).state
            found.append((ours, theirs))
    return found


def assert_equal(pairs: list[tuple[RecurrentState, RecurrentState]]) -> None:
    for ours, theirs in pairs:
        assert torch.equal(ours.canvas, theirs.canvas)
        assert torch.equal(ours.recurrent_cls, theirs.recurrent_cls)


def test_it_is_canvit_pytorchs_forward_to_the_bit(backbone: Backbone) -> None:
    assert isinstance(backbone.fast_step, FastStep), "canvit-pytorch's own forward runs: nothing is compared"
    assert backbone.fast_step.canvit is backbone.canvit, "the weights are in memory twice"
    assert_equal(states(backbone, num=5, steps=3))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("grid", [12, 32])
def test_other_canvases_and_autocast_too(precision: Precision, grid: int) -> None:
    backbone = load_backbone("nano", device="cpu", canvas_grid=grid, precision=precision)
    assert_equal(states(backbone, num=3, steps=2))
    assert set(backbone.ran) == {Ran("eager", precision)}


@pytest.mark.parametrize(
    "changes",
    [{"canvas_projections": "qkvo"}, {"enable_vpe": False}, {"enable_reads": False}, {"rw_stride": 1}],
    ids=str,
)
def test_other_architectures_too(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    config = CanViTConfig(**{**vars(nano_config()), **changes})  # pyright: ignore[reportArgumentType]
    canvit = CanViT(config).eval().requires_grad_(False)
    fast = FastStep(canvit, canvas_grid=8, glimpse_size_px=32, bfloat16=False)
    state, glimpse = canvit.init_state(batch_size=3, canvas_grid_size=8), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for _ in range(2):
            viewpoint = random_viewpoints(batch_size=3, device=CPU)
            canvas, cls = fast(glimpse, state.canvas, state.recurrent_cls, viewpoint.centers, viewpoint.scales)
            state = canvit(glimpse=glimpse, state=state, viewpoint=viewpoint).state
            assert torch.equal(canvas, state.canvas) and torch.equal(cls, state.recurrent_cls)


def relative_error(one: torch.Tensor, exact: torch.Tensor) -> float:
    return ((one - exact).norm() / exact.norm()).item()


def test_bfloat16_is_as_near_to_float32_as_canvit_pytorchs() -> None:
    exact = states(load_backbone("nano", device="cpu"), num=4, steps=3)[-1][1]
    ours, theirs = states(load_backbone("nano", device="cpu", precision="bfloat16"), num=4, steps=3)[-1]
    error = relative_error(ours.canvas, exact.canvas)
    assert 0 < error < 1e-2 and error <= relative_error(theirs.canvas, exact.canvas)


@pytest.mark.gpu
@pytest.mark.parametrize("compiles", [False, True])
def test_bfloat16_on_a_gpu_is_as_near_to_float32(compiles: bool) -> None:
    exact = states(load_backbone("nano", device="cuda"), num=4, steps=3)[-1][1]
    fast = load_backbone("nano", device="cuda", precision="bfloat16", compile=compiles)
    ours, theirs = states(fast, num=4, steps=3)[-1]
    error = relative_error(ours.canvas, exact.canvas)
    assert 0 < error < 1e-2 and error < 1.1 * relative_error(theirs.canvas, exact.canvas)


def test_weights_in_bfloat16_are_the_only_ones_held_twice() -> None:
    backbone = load_backbone("nano", device="cpu", precision="bfloat16")
    ours = dict(cast(FastStep, backbone.fast_step).canvit.named_parameters())
    for name, parameter in backbone.canvit.named_parameters():
        assert parameter.dtype == torch.float32
        assert ours[name].dtype == torch.bfloat16 or ours[name] is parameter
    assert sum(parameter.dtype == torch.bfloat16 for parameter in ours.values()) > 20


@pytest.mark.parametrize("version", ["0.2.2", None])
def test_another_version_of_canvit_pytorch_runs_its_own_forward(
    version: str | None, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def installed(name: str) -> str:
        assert name == "canvit-pytorch"
        if version is None:
            raise step_module.PackageNotFoundError
        return version

    monkeypatch.setattr(step_module, "version", installed)
    made = step_of(backbone.canvit, canvas_grid=16, glimpse_size_px=32, bfloat16=False)
    assert isinstance(made, ReferenceStep) and "its own forward runs" in caplog.text
    viewpoint = Viewpoint.full_scene(batch_size=2, device=CPU)
    glimpse = made.sample(torch.randn(2, 3, 128, 128), viewpoint.centers, viewpoint.scales)
    state = backbone.init_state(2)
    canvas, _ = made(glimpse, state.canvas, state.recurrent_cls, viewpoint.centers, viewpoint.scales)
    assert torch.equal(canvas, backbone.step(glimpse, state, viewpoint).canvas)
