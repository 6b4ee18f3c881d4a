"""The explorer of records: what its file holds, and what it does in a real browser."""

import base64
import json
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, needs_browser, open_page
from datasets import segmentation_probe, write_segmentation_folder
from playwright.sync_api import Browser, Page

from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.perturbations import Brightness, MissedTargets, Perturbation
from canvit_gym.play.explore import (
    ExploreConfig,
    command_line,
    explore,
    explorer_data,
    explorer_page,
    load_records,
    script_json,
)
from canvit_gym.policies import make_policy

EVIL = ("<script>alert(1)</script>", "a \"quoted\" 'name' &amp;\nof two lines", "</script><!-- square")
COMMITTED = Path(__file__).parents[1] / "experiments/results/benchmark/fashion_segmentation_b5"
CONFIG = EnvConfig(split="test", num_scenes=12, device="cpu", budget=3)


def record(
    path: Path,
    policy: str,
    config: EnvConfig = CONFIG,
    *,
    perturbations: Sequence[Perturbation] = (),
    **info: str,
) -> Path:
    made: Any = make_policy(policy, config=config, num_glimpses=config.budget)
    made.info = replace(made.info, **info)
    evaluate(made, config=config, perturbations=perturbations).save(path)
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("records")
    return [
        record(root / "c2f.npz", "coarse_to_fine"),
        record(root / "center.npz", "center"),
        record(root / "oracle.npz", "greedy_oracle(max_candidates=4)", replace(CONFIG, num_scenes=5)),
    ]


@pytest.fixture(scope="module")
def page_file(records: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    return explore(ExploreConfig(records=tuple(records), output=path))


def test_the_file_holds_what_the_records_say(records: list[Path]) -> None:
    data = explorer_data(load_records(records), num_scenes=8)
    first = Evaluation.load(records[0])
    assert [scene["scene"] for scene in data["scenes"]] == list(range(8))
    assert [policy["ceiling"] for policy in data["policies"]] == [False, False, True]
    for i, scene in enumerate(data["scenes"]):
        assert scene["scores"][0] == pytest.approx(first.scene_score()[i], abs=1e-6)
        assert (scene["scores"][2] is None) == (i >= 5)
        seen = 2 + (i < 5)
        side = data["reading_px"], data["uncertainty_px"], data["canvas_px"]
        expected = side[0] ** 2 + seen * 3 * (side[0] ** 2 + side[1] ** 2 + 3 * side[2] ** 2)
        maps = zlib.decompress(base64.b64decode(scene["maps"]))
        assert len(maps) == expected
        truth = np.frombuffer(maps, np.uint8, side[0] ** 2)
        assert set(scene["classes"]) == set(truth.tolist())


def test_a_classification(tmp_path: Path) -> None:
    config = replace(CONFIG, dataset="fashion-classification")
    data = explorer_data(load_records([record(tmp_path / "c.npz", "center", config)]), num_scenes=3)
    assert data["form"] == "bars" and data["reading_px"] == 0
    assert all(len(scene["bars"][0]) == 3 and len(scene["classes"]) == 1 for scene in data["scenes"])
    assert all(0 <= value <= 1 for value in data["scenes"][0]["uncertainties"][0])


def test_perturbed_records_are_shown_as_they_were_scored(
    records: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The darker scene in the list, and no warning of another score; one page shows one kind of scenes."""
    perturbed = record(tmp_path / "dark.npz", "center", perturbations=(Brightness(factor=0.3), MissedTargets()))
    data = explorer_data(load_records([perturbed]), num_scenes=12)
    plain = explorer_data(load_records(records[1:2]), num_scenes=1)
    assert not capsys.readouterr().err
    assert data["scenes"][0]["picture"] != plain["scenes"][0]["picture"]
    assert "under brightness and missed targets; 12 scenes" in data["about"] and "under" not in plain["about"]
    with pytest.raises(ValueError, match=r"(?s)different environments.*not perturbed.*brightness"):
        load_records([records[1], perturbed])


def test_strings_from_data_end_no_script() -> None:
    text = script_json({"name": EVIL[0], "other": "</script><!--", "line": "a\u2028b"})
    assert "<" not in text and ">" not in text and "\u2028" not in text
    assert json.loads(text)["name"] == EVIL[0]


def test_what_is_no_record(records: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.npz"
    text.write_text("no record")
    other = record(tmp_path / "other.npz", "center", replace(CONFIG, dataset="fashion-classification"))
    evaluation = Evaluation.load(records[0])
    spread = tmp_path / "spread.npz"
    replace(evaluation, record=evaluation.record | {"scenes": "photos, 12 of 24, 12 scenes"}).save(spread)
    output = ["--output", str(tmp_path / "out.html")]
    for arguments, words in (
        ([str(text)], "or not a saved evaluation"),
        ([str(tmp_path / "nothing.npz")], "no evaluation at"),
        ([str(tmp_path)], "benchmark.json"),
        ([str(COMMITTED)], "holds the numbers of a benchmark but not its records"),
        ([str(records[0]), str(other)], "records of different environments"),
        ([str(records[0]), str(spread)], "photos, 12 of 24"),
        ([str(records[0]), "--policies", "nobody"], "no policy 'nobody'"),
        ([str(records[0]), "--num-scenes", "0"], ">= 1"),
    ):
        with pytest.raises(SystemExit) as raised:
            command_line([*arguments, *output])
        assert str(raised.value).startswith("error: ") and words in str(raised.value), raised.value
    assert not (tmp_path / "out.html").exists()


def test_a_record_of_something_else_is_told(
    records: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = Evaluation.load(records[0])
    changed = replace(changed, viewpoints=np.tile(np.float32([0.8, 0.8, 0.1]), (*changed.viewpoints.shape[:2], 1)))
    explorer_data(load_records([_saved(changed, tmp_path / "changed.npz")]), num_scenes=12)
    assert "not the recorded" in capsys.readouterr().err


def _saved(evaluation: Evaluation, path: Path) -> Path:
    evaluation.save(path)
    return path


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def wait(page: Page, shown: str) -> None:
    page.wait_for_selector(f"body[data-shown='{shown}']")


@needs_browser
def test_filter_sort_and_follow_a_link(browser: Browser, page_file: Path, records: list[Path]) -> None:
    with open_page(browser, width=1300) as page:
        page.goto(page_file.as_uri())
        wait(page, "0/3")
        assert page.locator("#scenes button").count() == 12

        score = [Evaluation.load(path).scene_score()[:, -1] for path in records[:2]]
        page.locator("#sort").select_option("difference")
        shown = [int(text.split()[1]) for text in page.locator("#scenes span:first-of-type").all_inner_texts()]
        gain = (score[0] - score[1])[shown]
        assert (np.diff(gain) <= 1e-6).all()
        page.get_by_label("lowest first").check()
        reverse = [int(text.split()[1]) for text in page.locator("#scenes span:first-of-type").all_inner_texts()]
        assert gain[-1] == pytest.approx((score[0] - score[1])[reverse[0]])

        name = page.locator("#class option").nth(2).inner_text()
        page.locator("#class").select_option(label=name)
        matching = page.locator("#scenes button").count()
        assert 0 < matching < 12 and f"{matching} of 12 scenes" in page.locator("#count").inner_text()
        page.locator("#scenes button").last.click()
        page.wait_for_timeout(100)
        assert name in page.locator("#legend").inner_text()
        page.get_by_role("button", name="Previous glimpse").click()
        link = page.url
        assert "glimpse=2" in link and "class=" in link
        title = page.locator("#detail-title").inner_text()

    with open_page(browser, width=390, height=844) as page:  # the link, on a phone
        page.goto(link)
        wait(page, f"{title.split()[1]}/2")
        assert page.locator("#scenes button").count() == matching
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("#boxes text").count() == 4  # two policies on this scene, or three
        page.evaluate("location.hash = '#scene=1&glimpse=1&policies=1'")
        wait(page, "1/1")
        assert page.locator("#rows section").count() == 1
        page.evaluate("location.hash = '#scene=999'")
        page.wait_for_selector("#error:not([hidden])")
        page.evaluate("location.hash = '#scene=4&glimpse=x&policies=7,z&a=9&sort=none'")
        wait(page, "4/3")


@needs_browser
def test_names_from_data_are_text_there_too(browser: Browser, tmp_path: Path) -> None:
    root = write_segmentation_folder(tmp_path / "data", per_split=3)
    (root / "classes.txt").unlink()
    (root / "classes.json").write_text(json.dumps(EVIL))
    config = EnvConfig(
        dataset="segmentation-folder", split="test", root=str(root), probe=str(segmentation_probe(3)), budget=2,
        workers=0, device="cpu",
    )  # fmt: skip
    policy = record(tmp_path / "evil.npz", "center", config, paper_name=EVIL[0], description=EVIL[1])
    path = explore(ExploreConfig(records=(policy,), output=tmp_path / "evil.html"))
    assert path.read_text().count("<script") == 2
    with open_page(browser) as page:
        page.goto(path.as_uri())
        wait(page, "0/2")
        assert EVIL[0] in page.locator("#policies").inner_text()
        legend = " ".join(page.locator("#legend").all_text_contents())
        assert any(name in legend for name in EVIL)
        assert page.locator("main script").count() == 0


@needs_browser
def test_two_hundred_scenes_open_fast(browser: Browser, records: list[Path], tmp_path: Path) -> None:
    """2 s on an idle machine is what is promised: 200 scenes of 6 policies, made of 12 of 3."""
    data = explorer_data(load_records(records), num_scenes=12)
    data["policies"] *= 2
    scenes = []
    for i in range(200):
        scene = dict(data["scenes"][i % 5], scene=i)
        maps = zlib.decompress(base64.b64decode(scene["maps"]))
        truth = data["reading_px"] ** 2
        packed = zlib.compress(maps + maps[truth:], 6)
        scenes.append(scene | {"maps": base64.b64encode(packed).decode()})
        scenes[-1] |= {key: scene[key] * 2 for key in ("scores", "viewpoints")}
    page_text = explorer_page(data | {"scenes": scenes})
    path = tmp_path / "large.html"
    path.write_text(page_text)
    assert path.stat().st_size < 25e6
    with open_page(browser) as page:
        began = time.perf_counter()
        page.goto(f"{path.as_uri()}#scene=150&glimpse=2")
        wait(page, "150/2")
        assert time.perf_counter() - began < 6
    assert re.search(r"https?://(?!www\.w3\.org)", page_text) is None  # asks no server
