"""Pictures of episodes: frames of one size that follow the glimpses, steady colours, errors with a cure."""

import io
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import gymnasium as gym
import numpy as np
import pytest
from conftest import each_id_with, small
from PIL import Image, ImageDraw

from canvit_gym.benchmark.gaze_picture import draw_gaze
from canvit_gym.drawing import BACKGROUND, UNLABELLED, draw_box, palette, viewpoint_box
from canvit_gym.episodes import EpisodeView
from canvit_gym.rendering import (
    CanvasColours,
    Window,
    canvas_colours,
    display_exists,
    draw_frame,
    glimpse_colour,
    tile_frames,
)
from canvit_gym.scenes.fashion import SEGMENTATION_CLASSES
from canvit_gym.tasks.classification import ClassificationTask
from canvit_gym.tasks.segmentation import SegmentationTask
from canvit_gym.vector_env import GlimpseVectorEnv
from experiments.nano.contact_sheet import ContactSheetConfig
from experiments.nano.contact_sheet import main as draw_contact_sheet

KWARGS = {"split": "validation", "num_scenes": 8, "budget": 3, "device": "cpu"}
ROOT = Path(__file__).parents[1]


def view_of(*, dense: bool, taken: int = 2, budget: int = 5, seed: int = 0) -> EpisodeView:
    """An episode made by hand: noise for pixels and canvas, curves with gaps."""
    rng = np.random.default_rng(seed)
    classes = SEGMENTATION_CLASSES if dense else SEGMENTATION_CLASSES[1:]
    labels = rng.integers(0, len(classes), size=(8, 8)).repeat(8, 0).repeat(8, 1)
    loss_curve = np.full(budget + 1, np.nan, dtype=np.float32)
    loss_curve[1 : taken + 1] = 1 / np.arange(1, taken + 1)
    score_curve = np.full(budget + 1, np.nan, dtype=np.float32)
    score_curve[taken] = 0.5
    centers = np.linspace(-0.5, 0.5, max(taken, 1))[:taken]
    viewpoints = np.stack([centers, -centers, np.full(taken, 0.4)], axis=1)
    prediction: Any = labels[::-1].copy() if dense else rng.dirichlet(np.ones(10)).astype(np.float32)
    return EpisodeView(
        image=rng.integers(0, 256, size=(64, 64, 3), dtype=np.uint8),
        glimpse=rng.integers(0, 256, size=(16, 16, 3), dtype=np.uint8),
        viewpoints=viewpoints.astype(np.float32),
        canvas=rng.standard_normal((8, 8, 12)).astype(np.float32),
        prediction=prediction,
        truth=labels if dense else np.array(3),
        classes=classes,
        budget=budget,
        loss_curve=loss_curve,
        score_curve=score_curve,
        metric=(SegmentationTask if dense else ClassificationTask).metric,
        picture=(SegmentationTask if dense else ClassificationTask).picture,
    )


@pytest.mark.parametrize(("env_id", "action"), each_id_with(["grid", "continuous", "quadtree"]))
def test_single_frames_follow_the_glimpses(env_id: str, action: str) -> None:
    env = gym.make(env_id, **{**small(env_id), "action": action, "render_mode": "rgb_array", **KWARGS})
    env.reset(seed=0)
    env.action_space.seed(0)
    frames = [np.asarray(env.render())]
    for _ in range(2):
        env.step(env.action_space.sample())
        frames.append(np.asarray(env.render()))
    assert {(frame.dtype.name, frame.shape) for frame in frames} == {("uint8", frames[0].shape)}
    assert frames[0].ndim == 3 and frames[0].shape[2] == 3
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0, "video codecs want even sides"
    assert all((a != b).any() for a, b in pairwise(frames))
    assert (np.asarray(env.render()) == frames[-1]).all(), "drawing changes nothing"
    env.close()


@pytest.mark.parametrize(("env_id", "action"), each_id_with(["grid", "continuous", "quadtree"]))
def test_vector_frames_are_those_of_single_environments(env_id: str, action: str) -> None:
    kwargs = {**small(env_id), "action": action, "render_mode": "rgb_array", "first_glimpse": None, **KWARGS}
    envs = gym.make_vec(env_id, 2, **kwargs)
    _, info = envs.reset(options={"scene": np.array([5, 2])})
    before: Any = envs.render()
    envs.action_space.seed(0)
    actions = envs.action_space.sample()
    envs.step(actions)
    frames: Any = envs.render()
    assert len(before) == len(frames) == 2
    assert {(f.dtype.name, f.shape) for f in (*before, *frames)} == {("uint8", frames[0].shape)}
    assert all((a != b).any() for a, b in zip(before, frames, strict=True))

    env = gym.make(env_id, **kwargs)
    asked = {"goal": int(info["goal"][1])} if "goal" in info else {}
    env.reset(options={"scene": 2, **asked})
    env.step(actions[1])
    assert np.abs(np.asarray(env.render()).astype(int) - frames[1]).mean() < 0.1, "the second one's frame"
    env.close()
    envs.close()


def test_render_needs_a_mode_and_a_scene() -> None:
    env = gym.make("CanViT/FashionSegmentation-v0", **KWARGS).unwrapped
    env.reset()
    with pytest.raises(ValueError, match='render_mode="rgb_array"'):
        env.render()
    with pytest.raises(ValueError, match=r"'holograms'.*rgb_array"):
        GlimpseVectorEnv(1, render_mode="holograms", **KWARGS)
    with pytest.raises(RuntimeError, match="reset"):
        GlimpseVectorEnv(1, render_mode="rgb_array", **KWARGS).render()


def test_canvas_colours_do_not_depend_on_the_frame() -> None:
    envs = GlimpseVectorEnv(2, first_glimpse="full", **KWARGS)
    envs.reset(seed=0)
    colours = canvas_colours(envs.backbone, envs.scenes)
    assert canvas_colours(envs.backbone, envs.scenes) is colours, "fitted once"
    np.testing.assert_allclose(colours.components.T @ colours.components, np.eye(3), atol=1e-5)

    canvas = envs.view(0).canvas
    changed = canvas.copy()
    changed[:8] = envs.view(1).canvas[:8] + 3  # half of the cells: any basis fitted to the frame would turn
    assert (colours(changed)[8:] == colours(canvas)[8:]).all()
    assert (colours(changed)[:8] != colours(canvas)[:8]).any()


def test_fitted_colours_are_principal_and_deterministic() -> None:
    rng = np.random.default_rng(0)
    spread = np.array([9, 6, 3, *[0.1] * 13])
    canvases = (rng.standard_normal((4, 8, 8, 16)) * spread).astype(np.float32)
    canvases += 100 * rng.standard_normal((4, 1, 1, 16)).astype(np.float32)  # what a canvas' cells share
    colours = CanvasColours.fit(canvases)
    np.testing.assert_allclose(colours.components, np.eye(16, 3), atol=0.1)
    again = CanvasColours.fit(canvases[::-1])
    np.testing.assert_allclose(again.components, colours.components, atol=1e-4)
    assert colours(canvases[0]).std() > 20, "uses the range"
    with pytest.raises(ValueError, match=r"16 wide.* 12 wide"):
        colours(canvases[0, :, :, :12])


@pytest.mark.parametrize("dense", [True, False])
def test_frames_of_one_episode_have_one_size(dense: bool) -> None:
    views = [view_of(dense=dense, taken=taken) for taken in range(6)]
    shapes = {draw_frame(view).shape for view in views}
    empty = np.full(6, np.nan, dtype=np.float32)
    shapes |= {draw_frame(replace(views[0], loss_curve=empty, score_curve=empty)).shape}
    shapes |= {draw_frame(replace(views[1], loss_curve=np.zeros(6, np.float32))).shape}
    assert len(shapes) == 1
    for size, columns in ((96, 2), (131, 6), (400, 3)):
        height, width, _ = draw_frame(views[2], size=size, columns=columns).shape
        assert width >= columns * size and height >= 6 // columns * size


def test_a_long_budget_and_many_classes_fit() -> None:
    view = view_of(dense=True, taken=60, budget=64)
    classes = tuple(f"a class with a long name {k}" for k in range(150))
    labels = np.arange(64 * 64).reshape(64, 64) % 150
    labels[:4] = 255
    frame = draw_frame(replace(view, classes=classes, truth=labels, prediction=labels % 100))
    assert frame.shape == draw_frame(view).shape
    assert (frame == np.array(UNLABELLED, dtype=np.uint8)).all(axis=-1).any(), "pixels without a label are dark"


def test_the_truth_is_marked_even_when_it_is_unlikely() -> None:
    probabilities = np.array([0.0, *[0.02] * 48, 0.04], dtype=np.float32)
    classes = tuple(f"class {k}" for k in range(50))
    view = replace(view_of(dense=False), classes=classes, prediction=probabilities, truth=np.array(0))
    likely, unlikely = draw_frame(replace(view, truth=np.array(49))), draw_frame(view)
    green = [((f[..., 1] > 120) & (f[..., 0] < 60) & (f[..., 2] < 100)).sum() for f in (likely, unlikely)]
    assert min(green) > 200


def test_boxes_lie_where_the_viewpoints_are() -> None:
    assert viewpoint_box(np.array([0, 0, 1], np.float32), 100) == (0, 0, 99, 99)
    assert viewpoint_box(np.array([0.5, -0.5, 0.5], np.float32), 100) == (0, 50, 49, 99), "row 0.5 is below"
    view = replace(view_of(dense=True, taken=1, budget=2), viewpoints=np.array([[0.5, -0.5, 0.5]], np.float32))
    frame = draw_frame(replace(view, image=np.zeros((64, 64, 3), np.uint8)), size=256)
    scene = frame[: frame.shape[0] // 2, : 256 + 16]
    blue = (scene == np.array(glimpse_colour(0, 2), np.uint8)).all(axis=-1)
    rows, cols = np.nonzero(blue)
    assert cols.max() < 16 + 128 and rows.min() > 128, "the lower left quarter"
    assert blue.sum() > 4 * 120


def test_palette_tells_classes_apart() -> None:
    colours = palette(SEGMENTATION_CLASSES)
    assert tuple(colours[0]) == BACKGROUND and tuple(colours[255]) == UNLABELLED
    assert len(np.unique(palette([f"class {k}" for k in range(150)])[:150], axis=0)) == 150
    view = view_of(dense=True)
    legend = view.picture.legend([replace(view, truth=np.full((8, 8), 3), prediction=np.full((8, 8), 1))])
    names = [SEGMENTATION_CLASSES[k] for k in (3, 1)]
    assert [name for name, _ in legend] == names, "the truth first"


def test_tiles_keep_every_frame() -> None:
    frames = [np.full((4, 6, 3), value, dtype=np.uint8) for value in range(5)]
    tiled = tile_frames(frames)
    assert tiled.shape == (8, 18, 3)
    assert [int(tiled[4 * (k // 3), 6 * (k % 3), 0]) for k in range(5)] == [0, 1, 2, 3, 4]
    assert (tiled[4:, 12:] == 255).all()
    with pytest.raises(ValueError, match=r"one shape.*\(2, 6, 3\)"):
        tile_frames([frames[0], frames[0][:2]])


@pytest.mark.parametrize("layout", [{"size": 40}, {"columns": 4}])
def test_bad_layouts_are_refused(layout: dict[str, Any]) -> None:
    ((argument, value),) = layout.items()
    with pytest.raises(ValueError, match=f"{argument} must be .*{value}"):
        draw_frame(view_of(dense=True), **layout)


def test_without_a_display_the_window_names_the_cure() -> None:
    """In a process of its own, so that a machine with a display has none either."""
    script = "from canvit_gym.rendering import Window; Window('test', fps=2)"
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    if sys.platform in ("win32", "darwin"):
        pytest.skip("these platforms always have a display")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "RuntimeError" in done.stderr and 'render_mode="rgb_array"' in done.stderr


def test_a_window_shows_whole_frames_for_their_time_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a display: what tkinter is asked to draw."""
    tkinter = MagicMock()
    monkeypatch.setitem(sys.modules, "tkinter", tkinter)
    draw, root = tkinter.PhotoImage.return_value.configure, tkinter.Tk.return_value
    window = Window("test", fps=20)
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    began = time.monotonic()
    for frame in frames:
        window.show(frame)
    assert time.monotonic() - began >= 2 / 20
    drawn = [np.asarray(Image.open(io.BytesIO(call.kwargs["data"]))) for call in draw.call_args_list]
    np.testing.assert_array_equal(drawn, frames)
    assert root.update.call_count > 3, "attended to while it waits"
    close = root.protocol.call_args.args[1]
    close()
    close()
    root.destroy.assert_called_once_with()
    window.show(frames[0])
    assert not window.is_open and draw.call_count == 3


@pytest.mark.skipif(not display_exists(), reason="no display: a window cannot be opened")
def test_the_window_shows_frames_and_may_be_closed() -> None:
    window = Window("test", fps=50)
    began = time.monotonic()
    for value in (0, 100, 200):
        window.show(np.full((40, 60, 3), value, dtype=np.uint8))
    assert time.monotonic() - began > 0.03, "frames stay for their time"
    window.close()
    window.close()
    window.show(np.zeros((40, 60, 3), dtype=np.uint8))
    assert not window.is_open


@pytest.mark.parametrize("dense", [True, False])
def test_gaze_picture(dense: bool, tmp_path: Path) -> None:
    whole = [[view_of(dense=dense, taken=taken, seed=scene) for taken in (1, 2, 3)] for scene in range(3)]
    path = tmp_path / "new" / "gaze.png"
    draw_gaze(whole, path)
    with Image.open(path) as picture:
        size = picture.size
    draw_gaze([*whole[:2], whole[2][:1]], path)  # an episode that ended early leaves its place empty
    with Image.open(path) as picture:
        assert picture.size == size
    with pytest.raises(ValueError, match="at least one scene"):
        draw_gaze([], path)


def test_contact_sheet(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    draw_contact_sheet(ContactSheetConfig(output=path, split="validation", lines=1, columns=2))
    with Image.open(path) as picture:
        assert picture.width > 2 * 3 * 128 and picture.height > 2 * 128


@pytest.mark.parametrize("size", [96, 256])
def test_glimpses_of_any_size_can_be_drawn(size: int) -> None:
    picture = Image.new("RGB", (size, size))
    for scale in np.geomspace(1e-3, 1, 40):
        for width in (1, 2, 4):
            draw_box(ImageDraw.Draw(picture), viewpoint_box(np.array([0.0, 0.0, scale]), size), (255, 0, 0), width)
    assert picture.getbbox() == (0, 0, size, size)
