"""Playing in a real browser, as a person does: by mouse, by keys, by touch."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from browser import chromium, needs_browser, open_page, serve
from conftest import SMALL
from datasets import segmentation_probe, write_segmentation_folder
from playwright.sync_api import Browser, Page

from canvit_gym import cli
from canvit_gym.evaluation import Evaluation
from canvit_gym.play.command import PageServer, PlayConfig

pytestmark = needs_browser

ENV_ID = "CanViT/FashionSegmentation-v0"
EVIL = ("<script>alert(1)</script>", "a \"quoted\" 'name' &amp;\nof two lines", "square")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    config = PlayConfig(env=ENV_ID, env_kwargs=json.dumps(SMALL), policies=("coarse_to_fine", "greedy_oracle"))
    with serve(config) as page:
        yield page


def wait(page: Page, *, glimpses: int, state: str = "playing") -> None:
    page.wait_for_selector(f"body[data-glimpses='{glimpses}'][data-state={state}]")


def point(page: Page, row: float, col: float) -> None:
    box = page.locator("#stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + (1 + col) / 2 * box["width"], box["y"] + (1 + row) / 2 * box["height"])


def directly(env_id: str, scene: int, viewpoints: list[list[float]], **kwargs: Any) -> np.ndarray:
    """The score curve of the environment stepped without a page."""
    env: Any = gym.make(env_id, split="test", track_score=True, **SMALL, **kwargs).unwrapped
    env.reset(options={"scene": scene})
    info: dict[str, Any] = {}
    for viewpoint in viewpoints:
        info = env.step(env.actions.encode(np.array([viewpoint], dtype=np.float32))[0])[-1]
    return info["score_curve"]


def test_by_mouse_to_the_end(browser: Browser, server: PageServer) -> None:
    with open_page(browser) as page:
        page.goto(server.address)
        wait(page, glimpses=1)
        assert page.locator("#results").is_hidden() and page.locator("#truth-panel").is_hidden()
        for count, (row, col) in enumerate([(-0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (0.5, -0.5)], start=2):
            point(page, row, col)
            if count == 3:
                page.mouse.wheel(0, -100)  # a smaller box
            page.mouse.down()
            page.mouse.up()
            wait(page, glimpses=count, state="ended" if count == 5 else "playing")
        viewpoints = page.evaluate("view.viewpoints")
        assert [round(v[2], 2) for v in viewpoints] == [1, 0.5, 0.25, 0.25, 0.25]
        page.wait_for_selector("#session:not(:empty)")
        score = float(page.locator("#policies tr").first.locator("td").nth(1).inner_text())
        assert score == pytest.approx(directly(ENV_ID, 0, viewpoints[1:])[-1], abs=5e-4)
        assert page.locator("#policies tr").count() == 3
        assert "of the way" in page.locator("#session").inner_text()

        # A policy's gaze, step by step.
        page.get_by_label("C2F", exact=True).check()
        assert page.locator("#boxes text").all_text_contents() == ["1", "2", "3", "4", "5"]
        page.get_by_role("button", name="Previous glimpse").click()
        assert page.locator("#shown").inner_text() == "Glimpse 4 of 5"
        assert page.locator("#boxes text").count() == 4
        scene = page.locator("#seen").get_attribute("src")
        page.get_by_label("as it was seen").check()
        assert page.locator("#seen").get_attribute("src") != scene

        page.get_by_role("button", name="Next scene").click()
        wait(page, glimpses=1)
        assert page.evaluate("view.scene") == 1 and page.locator("#results").is_hidden()


def test_by_keyboard_alone(browser: Browser, server: PageServer) -> None:
    with open_page(browser) as page:
        page.goto(server.address)
        wait(page, glimpses=1)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "stage"
        for key in ("ArrowLeft", "ArrowUp", "Enter"):
            page.keyboard.press(key)
        wait(page, glimpses=2)
        for key in ("+", "-", "-", "ArrowRight", "ArrowRight", "ArrowDown", " "):
            page.keyboard.press(key)
        wait(page, glimpses=3)
        assert "scale 0.25" in page.locator("#where").inner_text()
        page.keyboard.press("PageUp")
        page.keyboard.press("Enter")
        wait(page, glimpses=4)
        page.keyboard.press("Enter")
        wait(page, glimpses=5, state="ended")
        page.wait_for_selector("#session:not(:empty)")
        viewpoints = page.evaluate("view.viewpoints")
        assert [round(v[2], 2) for v in viewpoints] == [1, 0.5, 0.25, 0.5, 0.5]
        assert page.evaluate("outcome.curve") == pytest.approx(directly(ENV_ID, 0, viewpoints[1:]), abs=1e-5)
        # What is hidden takes no focus, and the way on is among the next things.
        reached = []
        for _ in range(6):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        assert "next" in reached and "look" not in reached
        page.locator("#restart").press("Enter")
        wait(page, glimpses=1)
        assert "practice" in page.locator("#stage-title").inner_text()


def test_on_a_phone_by_touch(browser: Browser, server: PageServer) -> None:
    with open_page(browser, width=390, height=844, touch=True) as page:
        page.goto(server.address)
        wait(page, glimpses=1)
        page.locator("#stage").tap(position={"x": 60, "y": 60})
        assert page.evaluate("box.slice(0, 2).every((centre) => centre < -0.3)")
        assert page.evaluate("view.viewpoints.length") == 1  # a finger hides what it points at
        for count in range(2, 6):
            page.get_by_role("button", name="Look here").tap()
            wait(page, glimpses=count, state="ended" if count == 5 else "playing")
        page.wait_for_selector("#session:not(:empty)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_from_playing_to_the_report_and_the_explorer(browser: Browser, tmp_path: Path) -> None:
    record, output = tmp_path / "human.npz", tmp_path / "benchmark"
    config = PlayConfig(env=ENV_ID, env_kwargs=json.dumps(SMALL), policies=("center",), record=record)
    with serve(config) as server, open_page(browser) as page:
        page.goto(server.address)
        for _ in range(2):
            wait(page, glimpses=1)
            for count in range(2, 6):
                page.locator("#stage").press("ArrowRight")
                page.locator("#stage").press("Enter")
                wait(page, glimpses=count, state="ended" if count == 5 else "playing")
            page.wait_for_selector("#results")  # in sight once this scene's outcome is here
            played = page.evaluate("final(outcome.curve)")
            page.get_by_role("button", name="Next scene").click()
    assert Evaluation.load(record).scene_score()[-1, -1] == pytest.approx(played, abs=1e-5)

    kwargs = ["--env", ENV_ID, "--num-scenes", "6", "--device", "cpu", "--no-progress", "--output", str(output)]
    cli.main(["benchmark", *kwargs, "--policies", "coarse_to_fine", "center", "--also", f"human={record}"])
    cli.main(["explore", str(output), str(record), "--output", str(tmp_path / "explorer.html")])
    with open_page(browser) as page:
        page.goto((output / "report.html").as_uri())
        assert "human minus it" in page.locator("body").inner_text()
        page.goto((tmp_path / "explorer.html").as_uri() + "#scene=1&glimpse=5&policies=2")
        page.wait_for_selector("body[data-shown='1/5']")
        names = page.locator("#policies tr").all_inner_texts()
        assert "human" in names[2] and f"{played:.3f}" in names[2]
        page.goto((tmp_path / "explorer.html").as_uri() + "#scene=5&glimpse=5&policies=2")
        page.wait_for_selector("body[data-shown='5/5']")
        assert "not evaluated" in page.locator("#policies tr").nth(2).inner_text()


def test_names_from_data_are_text(browser: Browser, tmp_path: Path) -> None:
    root = write_segmentation_folder(tmp_path / "<b>data", per_split=3)
    (root / "classes.txt").unlink()
    (root / "classes.json").write_text(json.dumps(EVIL))
    kwargs = {"root": str(root), "checkpoint": "nano", "probe": str(segmentation_probe(3)), "workers": 0, "budget": 2}
    config = PlayConfig(env="CanViT/SegmentationFolder-v0", env_kwargs=json.dumps(kwargs), policies=("center",))
    with serve(config) as server, open_page(browser) as page:
        page.goto(server.address)
        wait(page, glimpses=1)
        page.get_by_role("button", name="Look here").click()
        wait(page, glimpses=2, state="ended")
        page.wait_for_selector("#session:not(:empty)")
        shown = " ".join(page.locator("#legend").all_text_contents())
        assert all(name in shown for name in EVIL)
        assert page.locator("main script").count() == 0


def test_a_glimpse_answers_fast(browser: Browser, server: PageServer) -> None:
    """150 ms on idle cores is what is promised; a busy machine gets more."""
    with open_page(browser) as page:
        page.goto(server.address)
        wait(page, glimpses=1)
        times = []
        for count in range(2, 5):
            began = time.perf_counter()
            page.locator("#stage").press("Enter")
            wait(page, glimpses=count)
            times.append(time.perf_counter() - began)
        assert min(times) < 0.6, times


def test_a_closed_tab_frees_its_game(browser: Browser, server: PageServer) -> None:
    with open_page(browser) as page:
        page.goto(server.address)
        wait(page, glimpses=1)
        assert server.games.num_games == 1
    deadline = time.monotonic() + 5
    while server.games.num_games and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.games.num_games == 0
