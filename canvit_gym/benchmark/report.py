"""The report of a benchmark, from its stored records: no model is loaded and nothing is evaluated.

    canvit-gym report --results experiments/results/benchmark/fashion_segmentation_b5

Writes into the directory: report.html (a single file that needs no network), results.md (its tables), results.json
(every number, with provenance), scenes.csv (a row per scene: score and loss of each policy after the last
glimpse) and figures/. The gallery's pictures are those that the benchmark drew.

Without the records, as in a fresh clone, the report is made from benchmark.json and results.json: without scenes.csv
and without the figures of where policies look.
"""

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canvit_gym.atomic import write_json, write_text
from canvit_gym.benchmark.comparison import compare, decisions_of, run_warnings, trained_policies
from canvit_gym.benchmark.figures import Picture, figures
from canvit_gym.benchmark.gallery import GALLERY, INDEX
from canvit_gym.benchmark.records import RESULTS, Benchmark, load_benchmark
from canvit_gym.benchmark.style import CSS
from canvit_gym.benchmark.tables import (
    Table,
    differences_table,
    headroom_table,
    people_table,
    policies_table,
    scores_table,
)
from canvit_gym.benchmark.words import listed, number, summary
from canvit_gym.command_line import PROGRAM, run_command
from canvit_gym.escaping import html, markdown, markdown_code, visible
from canvit_gym.tasks import TASKS, metric_named

REPORT, MARKDOWN, SCENES, FIGURES = "report.html", "results.md", "scenes.csv", "figures"


@dataclass(frozen=True)
class ReportConfig:
    results: Path
    """Directory that canvit-gym benchmark --output wrote."""


@dataclass(frozen=True)
class Section:
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


def _title(benchmark: Benchmark) -> str:
    return f"{benchmark.manifest['identity']['environment']}, {benchmark.budget} glimpses"


def _scope(benchmark: Benchmark, numbers: dict[str, Any]) -> str:
    identity = benchmark.manifest["identity"]
    config = identity["config"]
    return (
        f"{numbers['num_scenes']:,} {config['split']} scenes; backbone {config['checkpoint']} "
        f"(sha256 {identity['backbone_sha256'][:12]}), probe {identity['probe_sha256'][:12]}; "
        f"{benchmark.manifest['provenance']['time'][:10]}"
    )


def sections(benchmark: Benchmark, numbers: dict[str, Any]) -> list[Section]:
    pictures = figures(benchmark, numbers)

    def some(*names: str) -> tuple[Picture, ...]:
        return tuple(pictures[name] for name in names if name in pictures)

    reference = numbers["reference"]
    made = [
        Section("Scores", tables=(scores_table(numbers),), pictures=some("score_by_glimpses")),
        Section(
            f"Against {reference}",
            tables=(differences_table(numbers),),
            pictures=some("difference_by_glimpses", "differences"),
        ),
        Section("Score against computation", pictures=some("score_by_gflops")),
    ]
    if numbers["oracle"]:
        made.append(Section("Headroom", tables=(headroom_table(numbers),), pictures=some("headroom", "oracle_scenes")))
    else:
        text = "There is no share of headroom: it needs both greedy_oracle and coarse_to_fine among the policies."
        made.append(Section("Headroom", text=(text,)))
    for people in numbers["people"]:
        title = f"People: {people['label']}"
        made.append(Section(title, tables=(people_table(people, metric=numbers["metric"]),)))
    if looks := some("fixations", "scales"):
        made.append(Section("Where policies look", pictures=looks))
    return made


def _methods(benchmark: Benchmark, numbers: dict[str, Any]) -> list[str]:
    lines = [
        f"Every policy sees every scene once, in the same order, and takes {numbers['budget']} glimpses. The probe's "
        "reading is compared with the truth after each of them.",
        metric_named(numbers["metric"]).doc,
        f"Intervals are 95% percentile intervals over {numbers['resamples']:,} bootstrap resamples of scenes, the same "
        "for all policies, so that differences are paired. If a policy has several runs (seeds of a random policy, "
        "training runs of a learned one), these are resampled too. With few runs intervals are too narrow.",
        "Interquartile mean and probability of improvement are those of rliable (Agarwal et al., 2021), with scenes as "
        "tasks. The intervals differ: by default rliable only resamples runs, here scenes are resampled too.",
    ]
    if seeds := _seeds(benchmark, learned=False):
        lines.append(f"Hand-coded policies with random choices: {seeds}.")
    if seeds := _seeds(benchmark, learned=True):
        lines.append(f"Learned policies with sampled viewpoints: {seeds} per training run.")
    return lines


def _seeds(benchmark: Benchmark, *, learned: bool) -> str:
    """The number of seeds per run of a random policy: "1 seed"; empty if there is no such policy."""
    random = [entry for entry in benchmark.entries if entry.learned == learned and not entry.deterministic]
    counts = sorted({len(run.seeds) for entry in random for run in entry.runs})
    return f"{listed([str(count) for count in counts])} seed{'s' * (counts != [1])}" if counts else ""


def figure_html(content: bytes, kind: str, *, alt: str, caption: str) -> str:
    """A picture file, embedded in the page."""
    data = base64.b64encode(content).decode()
    image = f'<img alt="{html(alt)}" src="data:image/{kind};base64,{data}">'
    return f"<figure>{image}<figcaption>{html(caption)}</figcaption></figure>"


def html_document(title: str, parts: Sequence[str]) -> str:
    """A page in one file that loads nothing; parts are HTML."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{html(title)}</title><style>{CSS}</style></head><body><main>"
        + "\n".join(parts)
        + "</main></body></html>\n"
    )


def _gain_text(gain: float, metric: str) -> str:
    """By how much better a scene is read, in words."""
    measure = metric_named(metric).scene_measure
    if measure.of == "loss":
        gain = -gain
    shown = measure.display
    amount = f"{number(shown.factor * abs(gain), digits=shown.digits)} {shown.difference_unit}"
    return f"{measure.name} {'higher' if gain > 0 else 'lower'} by {amount}"


def _gallery(benchmark: Benchmark, numbers: dict[str, Any]) -> list[tuple[Path, str]]:
    """(picture, caption)."""
    path = benchmark.directory / GALLERY / INDEX
    if not path.is_file():
        return []
    index = json.loads(path.read_text(encoding="utf-8"))
    return [
        (
            benchmark.directory / GALLERY / shown["file"],
            f"{shown['kind'].capitalize()} for {index['policy']} against {index['reference']}: scene {shown['scene']}, "
            f"{_gain_text(shown['gain'], numbers['metric'])}.",
        )
        for shown in index["pictures"]
    ]


def _gallery_text(benchmark: Benchmark, numbers: dict[str, Any]) -> str:
    index = json.loads((benchmark.directory / GALLERY / INDEX).read_text(encoding="utf-8"))
    picture = TASKS[benchmark.manifest["identity"]["task"]].kind.picture
    return (
        f"The same scenes under {listed(index['lines'])}, first run and seed of each. Scenes are chosen by the "
        f"difference between {index['policy']} and {index['reference']} after the last glimpse: its best, its median "
        f"and its worst of {index['num_scenes']:,}. Boxes are numbered in the order of the glimpses, blue to red; "
        f"under each reading, {picture.verdict_doc}."
    )


def origin_rows(origin: dict[str, Any]) -> list[tuple[str, str]]:
    """What canvit_gym.provenance tells, for a table."""
    return [
        ("command", origin["command"]),
        ("git", json.dumps(origin["git"])),
        ("versions", ", ".join(f"{k} {v}" for k, v in origin["versions"].items())),
        ("machine", ", ".join(f"{k} {v}" for k, v in origin["machine"].items())),
        ("time", origin["time"]),
    ]


def provenance_html(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th scope=row>{html(name)}</th><td>{html(value)}</td></tr>" for name, value in rows)
    return f"<div class=scroll><table class=provenance>{cells}</table></div>"


def _provenance_rows(benchmark: Benchmark) -> list[tuple[str, str]]:
    manifest = benchmark.manifest
    identity = manifest["identity"]
    rows = [
        *origin_rows(manifest["provenance"]),
        ("scenes", identity["scenes"]),
        ("backbone", f"{identity['config']['checkpoint']}, sha256 {identity['backbone_sha256']}"),
        ("probe", f"sha256 {identity['probe_sha256']}"),
    ]
    for entry in benchmark.entries:
        if entry.learned and entry.deterministic:
            for run in entry.runs:
                training = run.training
                assert training is not None
                what = f"{training['directory']}, sha256 {training['weights_sha256']}, {_origin(training)}"
                rows.append((entry.label, what))
    return rows


def _origin(training: dict[str, Any]) -> str:
    """What a policy was trained on, and with how many decisions, as far as it is known."""
    if training["env_id"] is None:
        return "released by CanViT's authors"
    count = decisions_of(training)
    decisions = "" if count is None else f", after {count:,} decisions"
    return f"trained on {training['env_id']} at budget {training['budget']}{decisions}"


def _budget_notes(benchmark: Benchmark) -> list[str]:
    """Notes on learned policies that are used with another budget than in training."""
    notes = []
    for label, trainings in trained_policies(benchmark.entries):
        if other := sorted({training["budget"] for training in trainings} - {benchmark.budget, None}):
            notes.append(
                f"{label}: trained with a budget of {listed([str(b) for b in other])} glimpses, evaluated with "
                f"{benchmark.budget}."
            )
    return notes


def warnings(benchmark: Benchmark) -> list[str]:
    return [*run_warnings(benchmark.entries), *_budget_notes(benchmark)]


def html_page(benchmark: Benchmark, numbers: dict[str, Any], made: list[Section]) -> str:
    parts = [f"<h1>{html(_title(benchmark))}</h1><p class=scope>{html(_scope(benchmark, numbers))}</p>"]
    remarks = [*(("Warning: " + w) for w in warnings(benchmark)), *benchmark.manifest["left_out"]]
    if remarks:
        parts.append("<div class=warning>" + "".join(f"<p>{html(w)}</p>" for w in remarks) + "</div>")
    parts.append("<ul class=summary>" + "".join(f"<li>{html(s)}</li>" for s in summary(numbers)) + "</ul>")
    for section in made:
        parts.append(f"<h2>{html(section.title)}</h2>")
        parts += [f"<p>{html(text)}</p>" for text in section.text]
        parts += [table.html() for table in section.tables]
        parts += [
            figure_html(picture.svg.encode(), "svg+xml", alt=picture.alt, caption=picture.caption)
            for picture in section.pictures
        ]
    if gallery := _gallery(benchmark, numbers):
        parts.append(f"<h2>Gallery</h2><p>{html(_gallery_text(benchmark, numbers))}</p>")
        parts += [figure_html(path.read_bytes(), "webp", alt=caption, caption=caption) for path, caption in gallery]
    parts.append(f"<h2>Policies</h2>{policies_table(benchmark, numbers).html()}")
    parts.append("<h2>How it was measured</h2><ul>")
    parts += [f"<li>{html(line)}</li>" for line in _methods(benchmark, numbers)]
    parts.append(f"</ul><h2>Provenance</h2>{provenance_html(_provenance_rows(benchmark))}")
    return html_document(_title(benchmark), parts)


def markdown_page(benchmark: Benchmark, numbers: dict[str, Any], made: list[Section]) -> str:
    """The tables. Only the HTML page has figures and a gallery."""
    parts = [f"# {markdown(_title(benchmark))}", markdown(_scope(benchmark, numbers))]
    parts += [f"> Warning: {markdown(text)}" for text in warnings(benchmark)]
    parts += [f"> {markdown(text)}" for text in benchmark.manifest["left_out"]]
    parts.append("\n".join(f"- {markdown(line)}" for line in summary(numbers)))
    for section in made:
        if section.text or section.tables:
            parts += [f"## {markdown(section.title)}", *map(markdown, section.text)]
            parts += [table.markdown() for table in section.tables]
    parts += ["## Policies", policies_table(benchmark, numbers).markdown()]
    parts += ["## How it was measured", "\n".join(f"- {markdown(line)}" for line in _methods(benchmark, numbers))]
    rows = [f"- {markdown(name)}: {markdown_code(value)}" for name, value in _provenance_rows(benchmark)]
    parts += ["## Provenance", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def scenes_csv(benchmark: Benchmark) -> str:
    """A row per scene: score and loss of every policy after the last glimpse, averaged over runs; empty where
    it was not evaluated."""
    scenes = benchmark.reference.first.scene.tolist()
    loss = metric_named(benchmark.reference.first.metric).loss.name
    columns: dict[str, list[Any]] = {"scene": scenes}
    for entry in benchmark.entries:
        for name, values in (
            ("score", lambda e: e.scene_score()[:, -1]),
            (loss, lambda e: e.loss[:, -1]),
        ):
            mean = np.mean([np.mean([values(e) for e in run.evaluations], axis=0) for run in entry.runs], axis=0)
            of_scene = {scene: f"{v:.3f}" for scene, v in zip(entry.first.scene.tolist(), mean, strict=True)}
            columns[f"{entry.label} {name}"] = [of_scene.get(scene, "") for scene in scenes]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def write_report(benchmark: Benchmark) -> Path:
    """Write all files of the report that the stored data allows. Returns the path of report.html."""
    numbers = compare(benchmark) if benchmark.numbers is None else benchmark.numbers
    made = sections(benchmark, numbers)
    directory = benchmark.directory
    if benchmark.numbers is None:
        write_json(directory / RESULTS, _results(benchmark, numbers))
        write_text(directory / SCENES, scenes_csv(benchmark))
    write_text(directory / MARKDOWN, markdown_page(benchmark, numbers, made))
    pictures = [picture for section in made for picture in section.pictures]
    for picture in pictures:
        write_text(directory / FIGURES / f"{picture.name}.svg", picture.svg)
    for stale in (directory / FIGURES).glob("*.svg"):
        if stale.stem not in {picture.name for picture in pictures}:
            stale.unlink()
    write_text(directory / REPORT, html_page(benchmark, numbers, made))
    return directory / REPORT


def _results(benchmark: Benchmark, numbers: dict[str, Any]) -> dict[str, Any]:
    """Every number, with identity and provenance."""
    manifest = benchmark.manifest
    return {
        "summary": summary(numbers),
        "warnings": warnings(benchmark),
        **numbers,
        "identity": manifest["identity"],
        "left_out": manifest["left_out"],
        "seeds": {entry.label: [list(run.seeds) for run in entry.runs] for entry in benchmark.entries},
        "training": {
            entry.label: [run.training for run in entry.runs] for entry in benchmark.entries if entry.learned
        },
        "provenance": manifest["provenance"],
    }  # fmt: skip


def main(config: ReportConfig) -> Path:
    report = write_report(load_benchmark(config.results.expanduser()))
    print(f"Report: {visible(str(report))}")
    return report


def command_line(arguments: Sequence[str]) -> None:
    """`canvit-gym report`."""
    run_command(main, ReportConfig, description=__doc__, arguments=arguments, prog=f"{PROGRAM} report")
