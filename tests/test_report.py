"""The report says what the records say: on evaluations made up so that every number is known."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from canvit_gym.atomic import write_json
from canvit_gym.benchmark import report
from canvit_gym.benchmark.comparison import clearly_ahead, compare, per_scene, run_warnings, share_of_lead
from canvit_gym.benchmark.gallery import choose_scenes, shown_glimpses
from canvit_gym.benchmark.plots import (
    TITLE_CHARS,
    _spread,
    fixation_density,
    glimpse_groups,
    marks,
    panel_title,
    scale_bars,
    scale_shares,
    scales_figure,
)
from canvit_gym.benchmark.records import MANIFEST, RECORDS, RESULTS, Entry, Run, load_benchmark
from canvit_gym.benchmark.words import scale_text, summary
from canvit_gym.escaping import html, markdown, markdown_code, visible
from canvit_gym.evaluation import Evaluation

NUM_SCENES, BUDGET, NUM_CLASSES, ORACLE_SCENES = 24, 4, 3, 16
UNION = 1000


def evaluation(
    share: float, *, seed: int = 0, num_scenes: int = NUM_SCENES, dense: bool = True, scale: float = 0.5
) -> Evaluation:
    """Every class of every scene is read with this intersection over union, after the first glimpse."""
    rng = np.random.default_rng(7)
    classes = NUM_CLASSES if dense else 1
    intersection = np.full((num_scenes, BUDGET, classes), round(share * UNION))
    union = np.full_like(intersection, UNION)
    rank = (np.arange(num_scenes)[:, None] >= share * num_scenes).astype(np.uint16).repeat(BUDGET, axis=1)
    viewpoints = np.tile(np.array([0.5, -0.5, scale], np.float32), (num_scenes, BUDGET, 1))
    viewpoints[:, 0] = (0, 0, 1)
    scene_loss = rng.uniform(1, 3, (num_scenes, 1))
    return Evaluation(
        scene=np.arange(num_scenes),
        viewpoints=viewpoints,
        loss=(scene_loss - share * np.ones((1, BUDGET))).astype(np.float32),
        counts={"intersection": intersection, "union": union} if dense else {"rank": rank},
        gflops=np.arange(1, BUDGET + 1, dtype=np.float64),
        metric="mIoU" if dense else "top-1",
        seed=seed,
        record={"scenes": "made up"},
    )


Line = tuple[str, str, list[list[Evaluation]]]  # label, spec, [runs][seeds]


def save_benchmark(
    directory: Path,
    lines: list[Line],
    *,
    learned: tuple[str, ...] = (),
    random: tuple[str, ...] = (),
    reference: str = "C2F",
) -> Path:
    plan: list[dict[str, Any]] = []
    for label, spec, runs in lines:
        described = []
        for place, evaluations in enumerate(runs):
            files = []
            for one in evaluations:
                file = f"{label}-{place}-{one.seed}.npz".replace(" ", "_")
                one.save(directory / RECORDS / file)
                files.append({"file": file, "seed": one.seed})
            training = {"directory": f"runs/{place}", "weights_sha256": str(place), "env_id": "E", "budget": 9}
            described.append({"training": training if label in learned else None, "records": files})
        plan.append(
            {
                "label": label, "spec": spec, "description": f"what {label} does", "deterministic": label not in random,
                "uses_labels": "oracle" in spec, "learned": label in learned, "runs": described,
            }
        )  # fmt: skip
    manifest = {
        "identity": {
            "environment": "CanViT/Some-v0", "config": {"budget": BUDGET, "split": "test", "checkpoint": "nano"},
            "scenes": "made up", "task": "segmentation", "backbone_sha256": "a" * 64, "probe_sha256": "b" * 64,
        },
        "reference": reference,
        "left_out": ["Left out (it does not fit): entropy_greedy."],
        "plan": plan,
        "provenance": {
            "command": "canvit-gym benchmark --output here", "git": None, "versions": {"torch": "2"},
            "machine": {"cpu": "<some & cpu>"}, "time": "2026-01-02T03:04:05",
        },
    }  # fmt: skip
    write_json(directory / MANIFEST, manifest)
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """C2F reads 40 %, ppo 45 % in two training runs, the oracle 60 % on fewer scenes."""
    return save_benchmark(
        tmp_path,
        [
            ("C2F", "coarse_to_fine", [[evaluation(0.4, seed=0), evaluation(0.4, seed=1)]]),
            ("fixed", "best_fixed_sequence", [[evaluation(0.42)]]),
            ("ppo", "ppo", [[evaluation(0.44)], [evaluation(0.46)]]),
            ("greedy oracle", "greedy_oracle", [[evaluation(0.6, num_scenes=ORACLE_SCENES)]]),
        ],
        learned=("ppo",),
    )


def test_numbers_are_those_of_the_records(directory: Path) -> None:
    numbers = compare(load_benchmark(directory))
    ppo = numbers["policies"]["ppo"]
    assert np.allclose(ppo["score"]["value"], 0.45) and np.isclose(ppo["score_area"]["value"], 0.45)
    assert np.allclose(ppo["score_of_each_run"], [0.44, 0.46])
    assert np.isclose(ppo["interquartile_mean"]["value"], 0.45)
    low, high = (bound[-1] for bound in ppo["score"]["interval"])
    assert np.isclose(low, 0.44) and np.isclose(high, 0.46), "two runs are resampled"
    difference = ppo["minus_reference"]
    assert np.isclose(difference["score"]["value"][-1], 0.05)
    assert np.isclose(difference["cross_entropy"]["value"][-1], -0.05, atol=1e-6)
    assert difference["probability_of_improvement"]["value"] == 1
    assert np.isclose(ppo["minus_fixed"]["score"]["value"][-1], 0.03)
    assert numbers["best"] == "ppo" and "minus_reference" not in numbers["policies"]["C2F"]


def test_difference_is_paired_by_scene(directory: Path) -> None:
    """Scenes differ by up to 2 nats, policies by the same everywhere: the interval of the difference has no width."""
    fixed = compare(load_benchmark(directory))["policies"]["fixed"]
    low, high = (bound[-1] for bound in fixed["cross_entropy"]["interval"])
    assert high - low > 0.2
    low, high = (bound[-1] for bound in fixed["minus_reference"]["cross_entropy"]["interval"])
    assert np.allclose([low, high], -0.02, atol=1e-5)


def test_headroom_is_shared_on_the_oracles_scenes(directory: Path) -> None:
    numbers = compare(load_benchmark(directory))
    oracle = numbers["oracle"]
    assert oracle["num_scenes"] == ORACLE_SCENES and np.isclose(oracle["lead"]["score"]["value"], 0.2)
    assert np.isclose(oracle["policies"]["ppo"]["share_score"]["value"], 0.25)
    assert np.isclose(oracle["policies"]["ppo"]["share_cross_entropy"]["value"], 0.25, atol=1e-5)
    low, high = oracle["policies"]["ppo"]["share_score"]["interval"]
    assert np.isclose(low, 0.2) and np.isclose(high, 0.3)
    assert "score" not in numbers["policies"]["greedy oracle"], "its curve is on other scenes than the rest"


def test_entries_on_other_scenes_are_refused(tmp_path: Path) -> None:
    oracle = evaluation(0.6, num_scenes=ORACLE_SCENES)
    for record in ({"scenes": "made up, 16 of 24"}, {"scenes": "made up", "scenes_sha256": "b"}):
        reference = replace(evaluation(0.4), record={"scenes": "made up", "scenes_sha256": "a"})
        lines: list[Line] = [
            ("C2F", "coarse_to_fine", [[reference]]),
            ("greedy oracle", "greedy_oracle", [[replace(oracle, record=record)]]),
        ]
        benchmark = load_benchmark(save_benchmark(tmp_path, lines))
        with pytest.raises(ValueError, match=r"greedy oracle cannot be compared with C2F: .* not on the same scenes"):
            compare(benchmark)


def test_scenes_are_paired_by_their_indices(tmp_path: Path) -> None:
    """The oracle saw every other scene: its lead in cross-entropy is the same in each of them."""
    whole, rows = evaluation(0.4), np.arange(1, NUM_SCENES, 2)
    lines: list[Line] = [
        ("C2F", "coarse_to_fine", [[whole]]),
        ("greedy oracle", "greedy_oracle", [[evaluation(0.6).choose(rows)]]),
    ]
    oracle = compare(load_benchmark(save_benchmark(tmp_path, lines)))["oracle"]
    assert oracle["num_scenes"] == len(rows)
    lead = oracle["lead"]["cross_entropy"]
    assert np.allclose([lead["value"], *lead["interval"]], -0.2, atol=1e-5)


@pytest.mark.parametrize("ceiling", [0.4, 0.35])
def test_no_share_of_a_lead_that_is_none(tmp_path: Path, ceiling: float) -> None:
    lines: list[Line] = [
        ("C2F", "coarse_to_fine", [[evaluation(0.4)]]),
        ("random", "random", [[evaluation(0.3)]]),
        ("greedy oracle", "greedy_oracle", [[evaluation(ceiling)]]),
    ]
    benchmark = load_benchmark(save_benchmark(tmp_path, lines))
    random = compare(benchmark)["oracle"]["policies"]["random"]
    assert random["share_score"] is None and random["share_cross_entropy"] is None
    report.write_report(benchmark)
    assert "not defined" in (tmp_path / report.MARKDOWN).read_text()
    json.loads((tmp_path / RESULTS).read_text(), parse_constant=pytest.fail)


def test_no_share_where_a_resample_is_without_a_lead(tmp_path: Path) -> None:
    """The lead is clear of zero, but it is of so few scenes that a resample may hold none of those that make it."""
    lines: list[Line] = [
        (spec, spec, [[evaluation(right / ORACLE_SCENES, num_scenes=ORACLE_SCENES, dense=False)]])
        for spec, right in (("coarse_to_fine", 8), ("random", 4), ("greedy_oracle", 13))
    ]
    oracle = compare(load_benchmark(save_benchmark(tmp_path, lines, reference="coarse_to_fine")))["oracle"]
    low, high = oracle["lead"]["score"]["interval"]
    assert clearly_ahead(low, high, higher_is_better=True)
    assert oracle["policies"]["random"]["share_score"] is None
    assert oracle["policies"]["random"]["share_cross_entropy"] is not None
    report.main(report.ReportConfig(results=tmp_path))
    assert "or if the oracle does not lead in some resample of the scenes." in (tmp_path / report.MARKDOWN).read_text()


def test_no_share_where_a_ceiling_is_behind_in_a_resample(tmp_path: Path) -> None:
    """In a resample with a lead of the wrong sign a share would be finite, of the wrong sign."""
    behind = np.array([[0.5], [-0.5]])
    for sign, higher_is_better in ((1, True), (-1, False)):
        share = share_of_lead(sign * behind / 2, 0 * behind, sign * behind, higher_is_better=higher_is_better)
        assert share[0] == 0.5 and np.isnan(share[1])
        rounded = share_of_lead(sign * behind, 0 * behind, sign * 1e-12 * behind, higher_is_better=higher_is_better)
        assert np.isnan(rounded).all()
    # The ceiling reads 14 of 16 scenes better and 2 worse, of which some resample has 7.
    right, rows = evaluation(0.5, num_scenes=ORACLE_SCENES), np.arange(ORACLE_SCENES)
    gain = np.where(rows < 14, 0.4, -0.56)[:, None]
    lines: list[Line] = [
        ("C2F", "coarse_to_fine", [[right]]),
        ("random", "random", [[replace(right, loss=(right.loss - gain / 2).astype(np.float32))]]),
        ("greedy oracle", "greedy_oracle", [[replace(right, loss=(right.loss - gain).astype(np.float32))]]),
    ]
    oracle = compare(load_benchmark(save_benchmark(tmp_path, lines)))["oracle"]
    low, high = oracle["lead"]["cross_entropy"]["interval"]
    assert clearly_ahead(low, high, higher_is_better=False)
    assert oracle["policies"]["random"]["share_cross_entropy"] is None


def test_classification_reports_top5_and_compares_scenes_by_cross_entropy(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("C2F", "coarse_to_fine", [[evaluation(0.5, dense=False)]]),
        ("ppo", "ppo", [[evaluation(0.75, dense=False)]]),
    ]
    benchmark = load_benchmark(save_benchmark(tmp_path, lines, learned=("ppo",)))
    ppo = compare(benchmark)["policies"]["ppo"]
    assert ppo["score"]["value"][-1] == 0.75 and ppo["top5"]["value"][-1] == 1
    assert ppo["minus_reference"]["probability_of_improvement"]["value"] == 1
    first = benchmark.entries[0].first
    assert np.array_equal(per_scene(first), -first.loss.astype(np.float64))
    report.write_report(benchmark)
    assert "top5 %" in (tmp_path / report.MARKDOWN).read_text()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.without_alternative: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        for name in ("src", "href", "xlink:href", "action", "data"):
            if (value := given.get(name)) is not None:
                self.addresses.append(value)
        if (tag == "img" and not given.get("alt")) or (tag == "svg" and not given.get("aria-label")):
            self.without_alternative.append(tag)
        if tag in ("script", "link", "iframe"):
            self.addresses.append(f"<{tag}>")
        if "id" in given:
            self.ids.append(str(given["id"]))


def test_page_is_self_contained(directory: Path) -> None:
    report.write_report(load_benchmark(directory))
    text = (directory / report.REPORT).read_text()
    assert not re.search(r"https?:|//\w+\.\w+|@import|url\((?!#)", re.sub(r"base64,[^\"]+", "", text))
    page = _Page()
    page.feed(text)
    assert page.addresses and all(a.startswith(("#", "data:image/")) for a in page.addresses)
    assert not page.without_alternative
    assert len(text) < 3_000_000
    assert "&lt;some &amp; cpu&gt;" in text and "<some" not in text
    targets = {a[1:] for a in page.addresses if a.startswith("#")}
    assert targets <= set(page.ids), "a figure refers to something that is not there"


def test_what_is_missing_or_thin_is_said(directory: Path) -> None:
    benchmark = load_benchmark(directory)
    (warning,) = run_warnings(benchmark.entries)
    assert "ppo: 2 training runs" in warning
    report.write_report(benchmark)
    for name in (report.REPORT, report.MARKDOWN):
        text = (directory / name).read_text()
        assert "2 training runs" in text and "Left out (it does not fit): entropy_greedy." in text
        assert "ppo: trained with a budget of 9 glimpses, evaluated with 4" in text


def test_three_training_runs_need_no_warning(tmp_path: Path) -> None:
    runs = [[evaluation(share)] for share in (0.44, 0.45, 0.46)]
    lines: list[Line] = [("C2F", "coarse_to_fine", [[evaluation(0.4)]]), ("ppo", "ppo", runs)]
    assert not run_warnings(load_benchmark(save_benchmark(tmp_path, lines, learned=("ppo",))).entries)


def test_a_run_that_kept_its_warm_start_is_told(directory: Path) -> None:
    manifest = json.loads((directory / "benchmark.json").read_text())
    for entry in manifest["plan"]:
        for run, count in zip(entry["runs"], (0, 2048), strict=False):
            if run["training"] is not None:
                run["training"]["training"] = {"num_timesteps": count}
    (directory / "benchmark.json").write_text(json.dumps(manifest))
    assert "ppo: 1 of 2 training runs kept their warm start" in run_warnings(load_benchmark(directory).entries)[-1]
    report.write_report(load_benchmark(directory))
    text = (directory / report.MARKDOWN).read_text()
    assert "after 2,048 decisions" in text


def test_summary_says_who_wins_and_what_is_noise(directory: Path) -> None:
    text = " ".join(summary(compare(load_benchmark(directory))))
    assert "ppo is the best of the 3 policies that use no labels: mIoU 45.0 [44.0, 46.0] %" in text
    assert "+5.0 [+4.0, +6.0] points against C2F" in text
    assert (
        "ppo against the fixed, which ignores the scene and takes windows of scale 1/2: +3.0 [+2.0, +4.0] points; "
        "it gains more than this sequence." in text
    )
    assert (
        "greedy oracle leads C2F in mIoU on 16 of the 24 scenes: +20.0" in text
        and "The largest share of that lead: ppo, 25 [20, 30] %." in text
    )


def test_a_gain_on_the_fixed_sequence_may_be_one_of_scale(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("C2F", "coarse_to_fine", [[evaluation(0.4)]]),
        ("fixed", "best_fixed_sequence", [[evaluation(0.42)]]),
        ("ppo", "ppo", [[evaluation(0.45, scale=0.34)]]),
        ("worse", "worse", [[evaluation(0.41, scale=0.34)]]),
    ]
    numbers = compare(load_benchmark(save_benchmark(tmp_path, lines, learned=("ppo", "worse"))))
    assert numbers["policies"]["ppo"]["scales"] == [0.34] and numbers["policies"]["C2F"]["scales"] == [0.5]
    text = " ".join(summary(numbers))
    assert "more than this sequence, but its own windows have scale 0.34, which may be the reason." in text
    assert "−1.0 [−1.0, −1.0] points; a prior over places is better." in text
    numbers["policies"]["ppo"]["scales"] = None
    assert "but its own windows have many scales" in " ".join(summary(numbers))


def test_seeds_of_random_policies_are_told_by_kind(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("C2F", "coarse_to_fine", [[evaluation(0.4, seed=seed) for seed in (0, 1)]]),
        ("ppo, sampled", "ppo, sampled", [[evaluation(0.44)], [evaluation(0.46)]]),
    ]
    random = ("C2F", "ppo, sampled")
    report.write_report(load_benchmark(save_benchmark(tmp_path, lines, learned=random[1:], random=random)))
    text = (tmp_path / report.MARKDOWN).read_text()
    assert "- Hand-coded policies with random choices: 2 seeds.\n" in text
    assert "- Learned policies with sampled viewpoints: 1 seed per training run.\n" in text
    assert "here scenes are resampled too" in text


def test_scenes_are_a_table(directory: Path) -> None:
    report.write_report(load_benchmark(directory))
    header, *rows = (line.split(",") for line in (directory / report.SCENES).read_text().splitlines())
    assert len(rows) == NUM_SCENES and header[:3] == ["scene", "C2F score", "C2F cross-entropy"]
    assert float(rows[3][header.index("ppo score")]) == pytest.approx(0.45)
    assert rows[-1][header.index("greedy oracle score")] == "", "the oracle has not seen this scene"


def test_report_is_the_same_when_made_anew_and_needs_no_model(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_model(*_: Any, **__: Any) -> None:
        raise AssertionError("a report loads no model")

    for user in ("assembly.load_backbone", "evaluation.build_backbone"):
        monkeypatch.setattr(f"canvit_gym.{user}", no_model)
    monkeypatch.setattr("canvit_gym.replay.build_backbone", no_model)
    report.main(report.ReportConfig(results=directory))
    names = (report.REPORT, report.MARKDOWN, RESULTS, report.SCENES)
    before = {name: (directory / name).read_bytes() for name in names}
    (directory / report.FIGURES / "stale.svg").write_text("<svg/>")
    report.main(report.ReportConfig(results=directory))
    assert before == {name: (directory / name).read_bytes() for name in names}
    assert not (directory / report.FIGURES / "stale.svg").exists()


def test_gallery_that_was_drawn_is_in_the_report(directory: Path) -> None:
    (directory / "gallery").mkdir()
    Image.new("RGB", (40, 30)).save(directory / "gallery" / "best-scene-3.webp")
    shown = {"file": "best-scene-3.webp", "kind": "best", "scene": 3, "gain": 0.125}
    index = {"policy": "ppo", "reference": "C2F", "lines": ["C2F", "ppo"], "num_scenes": 16, "pictures": [shown]}
    write_json(directory / "gallery" / "gallery.json", index)
    report.write_report(load_benchmark(directory))
    text = (directory / report.REPORT).read_text()
    assert "data:image/webp;base64," in text
    assert "Best for ppo against C2F: scene 3, mIoU of the scene higher by 12.5 points." in text


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: (d / MANIFEST).unlink(), FileNotFoundError, "canvit-gym benchmark --output"),
        (lambda d: (d / MANIFEST).write_text("{"), ValueError, "damaged"),
        (lambda d: (d / MANIFEST).write_text("{}"), ValueError, "without identity"),
        (lambda d: next((d / RECORDS).glob("ppo*")).unlink(), FileNotFoundError, "1 of 6 records .* --output here"),
        (lambda d: next((d / RECORDS).glob("ppo*")).write_bytes(b"PK"), ValueError, "delete it and evaluate again"),
    ],
)
def test_bad_directories(directory: Path, spoil: Callable[[Path], Any], error: type[Exception], message: str) -> None:
    spoil(directory)
    with pytest.raises(error, match=message):
        report.main(report.ReportConfig(results=directory))


@pytest.mark.parametrize("budget", [2, 5, 7, 21, 100])
def test_glimpse_groups_partition_the_glimpses_after_the_first(budget: int) -> None:
    groups = glimpse_groups(budget)
    assert [t for a, b in groups for t in range(a, b + 1)] == list(range(2, budget + 1)) and len(groups) <= 6
    shown = shown_glimpses(budget)
    assert shown[0] == 1 and shown[-1] == budget and shown == sorted(set(shown)) and len(shown) <= 5


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 50])
def test_chosen_scenes_are_best_median_and_worst(count: int) -> None:
    gain = np.random.default_rng(count).permutation(count).astype(float)
    chosen = choose_scenes(gain)
    rows = [row for _, row in chosen]
    assert len(set(rows)) == len(rows) and gain[rows[0]] == gain.max()
    if count >= 6:
        assert [kind for kind, _ in chosen] == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
        assert [gain[row] for row in rows[4:]] == [0, 1] and abs(np.mean(gain[rows[2:4]]) - (count - 1) / 2) < 1


def test_where_a_policy_looks_is_counted_in_rows_and_columns() -> None:
    density = fixation_density(np.array([[-0.9, 0.9, 0.1]] * 5, dtype=np.float32))
    row, column = np.unravel_index(density.argmax(), density.shape)
    assert row < 3 and column > 20
    shares = scale_shares(np.array([[0, 0, 1], [0, 0, 0.5], [0, 0, 0.45], [0, 0, 0.02]], dtype=np.float32), 3)
    assert shares.tolist() == [0.25, 0.5, 0, 0.25]


def entry(label: str, *scales: float) -> Entry:
    """Of one scene: the full scene, then a glimpse of each scale."""
    one = evaluation(0.5, num_scenes=1)
    viewpoints = np.array([[[0, 0, scale] for scale in (1, *scales)]], dtype=np.float32)
    run = Run(training=None, seeds=(0,), evaluations=(replace(one, viewpoints=viewpoints),))
    return Entry(label, label, label, deterministic=True, uses_labels=False, learned=label == "ppo", runs=(run,))


def test_few_scales_are_shown_as_they_are() -> None:
    assert scale_bars(entry("few", 0.34, 0.34, 0.34, 0.24), 2) == [(0.34, 0.75), (0.24, 0.25)]
    many = scale_bars(entry("many", 1, 0.6, 0.5, 0.45, 0.34, 0.3, 0.25, 0.2), 2)
    assert many == [(1, 0.125), (0.5, 0.375), (0.25, 0.5)]
    assert [scale_text(scale) for scale in (1, 0.5, 0.25, 0.34, 0.24, 0.055)] == [
        "1", "1/2", "1/4", "0.34", "0.24", "0.055",
    ]  # fmt: skip
    assert entry("none").scales == []


def test_scales_are_written_into_the_figure(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("C2F", "coarse_to_fine", [[evaluation(0.4)]]),
        ("ppo", "ppo", [[evaluation(0.45, scale=0.34)]]),
    ]
    svg = scales_figure(load_benchmark(save_benchmark(tmp_path, lines, learned=("ppo",))))
    assert ">0.34</text>" in svg and svg.count(">1/2</text>") == 2, "of C2F and of the legend"


def test_colours_are_distinct() -> None:
    """As many policies as a benchmark has of all kinds, two of them learned."""
    entries = [entry(label, 0.5) for label in ("C2F", *"abcdefghijklm", "ppo", "ppo, sampled")]
    colours = [mark.colour for mark in marks(entries, reference="C2F").values()]
    assert len(set(colours)) == len(colours) == 16


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("PPO, sampled", ["PPO, sampled"]),
        ("spectral residual (Hou & Zhang 2007)", ["spectral residual", "(Hou & Zhang 2007)"]),
        (
            "entropy_greedy(scale=(0.34, 0.24), centers=12)",
            ["entropy_greedy", "(scale=(0.34, 0.24),", "centers=12)"],
        ),
        ("a_name_without_any_space_that_is_long", ["a_name_without_any_space_", "that_is_long"]),
    ],
)
def test_titles_of_panels_fit(label: str, lines: list[str]) -> None:
    assert panel_title(label).split("\n") == lines and all(len(line) <= TITLE_CHARS for line in lines)


def test_labels_are_spread_in_order() -> None:
    places = _spread(np.array([5.0, 5.0, 5.1, 1.0, 9.99]), gap=0.5, low=0, high=10)
    assert np.diff(np.sort(places)).min() >= 0.5 - 1e-6 and places.argmax() == 4 and places.argmin() == 3
    assert places.min() >= 0 and places.max() <= 10 + 1e-6


NASTY = "$a$ | 50% <script>x</script> \"q\" & 'r' #1b1f24\n\x1b[31m 0.12345 [l](x)"


def nasty_benchmark(directory: Path) -> Path:
    """A learned policy, and an oracle, whose names hold all that a place of the report might take for markup."""
    lines: list[Line] = [
        ("C2F", "coarse_to_fine", [[evaluation(0.4)]]),
        ("fixed", "best_fixed_sequence", [[evaluation(0.42)]]),
        ("ppo", "ppo", [[evaluation(0.44)], [evaluation(0.46)]]),
        ("greedy oracle", "greedy_oracle", [[evaluation(0.6, num_scenes=ORACLE_SCENES)]]),
    ]
    save_benchmark(directory, lines, learned=("ppo",))
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    for entry in manifest["plan"]:
        if entry["label"] in ("ppo", "greedy oracle"):
            entry["label"] += NASTY
    manifest["left_out"].append(f"Left out: {NASTY}")
    manifest["provenance"]["command"] = f"canvit-gym benchmark --learned `{NASTY}`"
    write_json(directory / MANIFEST, manifest)
    return directory


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    report.write_report(load_benchmark(nasty_benchmark(tmp_path)))
    page = (tmp_path / report.REPORT).read_text(encoding="utf-8")
    assert "<script" not in page and not re.search(r"[\x00-\x09\x0b-\x1f]", page)
    assert f"<th scope=row>{html('ppo' + NASTY)}</th>" in page
    seen = _Page()
    seen.feed(page)
    assert not seen.without_alternative and "<script>" not in seen.addresses
    text = (tmp_path / report.MARKDOWN).read_text(encoding="utf-8")
    command = markdown_code(f"canvit-gym benchmark --learned `{NASTY}`")
    assert command in text and not re.search(r"(?<!\\)<script", text.replace(command, ""))
    assert f"| {markdown('ppo' + NASTY)} |" in text
    for table in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    figures = list((tmp_path / report.FIGURES).glob("*.svg"))
    for path in figures:
        shown = "".join(ElementTree.fromstring(path.read_bytes()).itertext())
        if path.stem in ("score_by_glimpses", "differences", "scales", "fixations"):
            assert visible("ppo" + NASTY) in shown, path
    assert len(figures) >= 7


def test_a_report_is_made_without_records_from_the_numbers(tmp_path: Path) -> None:
    """As of a fresh clone: results.json is committed, records are not."""
    nasty_benchmark(tmp_path)
    report.write_report(load_benchmark(tmp_path))
    before = {name: (tmp_path / name).read_bytes() for name in (report.MARKDOWN, RESULTS, report.SCENES)}
    whole = (tmp_path / report.REPORT).read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / RECORDS)
    shutil.rmtree(tmp_path / report.FIGURES)
    report.main(report.ReportConfig(results=tmp_path))
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    page = (tmp_path / report.REPORT).read_text(encoding="utf-8")
    drawn = {path.stem for path in (tmp_path / report.FIGURES).iterdir()}
    assert "Where policies look" in whole and "Where policies look" not in page
    assert {"score_by_glimpses", "differences", "headroom"} <= drawn and not drawn & {"fixations", "scales"}
    next_to_none = tmp_path / "empty"
    next_to_none.mkdir()
    shutil.copy(tmp_path / MANIFEST, next_to_none)
    with pytest.raises(FileNotFoundError, match=r"records .* are missing"):
        load_benchmark(next_to_none)
    (next_to_none / RESULTS).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        load_benchmark(next_to_none)


COMMITTED = sorted((Path(__file__).parents[1] / "experiments" / "results" / "benchmark").iterdir())


@pytest.mark.parametrize("committed", COMMITTED, ids=lambda path: path.name)
def test_committed_tables_are_those_of_the_committed_numbers(committed: Path, tmp_path: Path) -> None:
    for name in (MANIFEST, RESULTS):
        shutil.copy(committed / name, tmp_path)
    report.main(report.ReportConfig(results=tmp_path))
    text = (tmp_path / report.MARKDOWN).read_text(encoding="utf-8")
    assert text == (committed / report.MARKDOWN).read_text(encoding="utf-8")
