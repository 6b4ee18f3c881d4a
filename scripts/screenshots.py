"""The pictures of docs/play.md: `python scripts/screenshots.py` plays two scenes in Chromium and opens an explorer."""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import chromium, open_page, serve  # noqa: E402

from canvit_gym.config import EnvConfig  # noqa: E402
from canvit_gym.evaluation import evaluate  # noqa: E402
from canvit_gym.play.command import PlayConfig  # noqa: E402
from canvit_gym.play.explore import ExploreConfig, explore  # noqa: E402
from canvit_gym.policies import make_policy  # noqa: E402

IMAGES = ROOT / "docs" / "images"
COLOURS = 256
EXPLORED = ("coarse_to_fine", "entropy_coarse_to_fine", "entropy_greedy", "saliency", "center", "greedy_oracle")


def keep(page: Page, name: str) -> None:
    """The whole page as a small PNG."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    small = picture.quantize(palette=picture.quantize(COLOURS), dither=Image.Dither.FLOYDSTEINBERG)
    small.save(IMAGES / f"{name}.png", optimize=True)
    print(f"{name}.png: {picture.size}, {(IMAGES / f'{name}.png').stat().st_size / 1e3:.0f} kB")


def wait(page: Page, glimpses: int, state: str = "playing") -> None:
    page.wait_for_selector(f"body[data-glimpses='{glimpses}'][data-state={state}]")


def look(page: Page, row: float, col: float) -> None:
    box = page.locator("#stage").bounding_box()
    assert box is not None
    place = box["x"] + (1 + col) / 2 * box["width"], box["y"] + (1 + row) / 2 * box["height"]
    page.mouse.move(*place)
    page.mouse.click(*place)


def play(page: Page, address: str, places: list[tuple[float, float]], *, shot: str | None, budget: int = 5) -> None:
    page.goto(address)
    wait(page, 1)
    for count, (row, col) in enumerate(places, start=2):
        look(page, row, col)
        wait(page, count, "ended" if count == budget else "playing")
        if count == 3 and shot:
            page.mouse.move(700, 800)
            keep(page, shot)
    page.wait_for_selector("#session:not(:empty)")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with chromium() as browser:
        with serve(PlayConfig()) as server:
            places = [(-0.6, 0.5), (-0.5, -0.2), (0.5, -0.4), (0.4, 0.6)]
            with open_page(browser, height=760) as page:
                play(page, server.address, places, shot="play")
                page.mouse.move(700, 20)
                keep(page, "play-results")
            with open_page(browser, width=390, height=844) as page:
                play(page, server.address, places, shot="play-phone")
        with tempfile.TemporaryDirectory() as directory:
            config = EnvConfig(split="test", num_scenes=60, device="cpu")
            records = []
            for name in EXPLORED:
                few = 20 if name == "greedy_oracle" else None
                policy = make_policy(name, config=config, num_glimpses=config.budget)
                records.append(Path(directory) / f"{name}.npz")
                evaluate(policy, config=config, max_scenes=few).save(records[-1])
            path = explore(ExploreConfig(records=tuple(records), output=Path(directory) / "explorer.html"))
            with open_page(browser, width=1300, height=900) as page:
                page.goto(f"{path.as_uri()}#scene=7&glimpse=4&policies=1,2&sort=difference&a=2&b=0")
                page.wait_for_selector("body[data-shown='7/4']")
                page.wait_for_timeout(500)
                keep(page, "explorer")


if __name__ == "__main__":
    main()
