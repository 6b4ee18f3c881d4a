"""The report of a benchmark, from its stored records alone: no model is loaded and nothing is evaluated.

    python -m experiments.report --results experiments/results/benchmark/fashion_segmentation_b5

Writes into the directory: report.html (one file, nothing is fetched), results.md, results.json (every number, with
provenance), scenes.csv (a line per scene: score and cross-entropy of each policy after the last glimpse) and figures/.
The gallery's pictures are those that the benchmark drew.
"""

import base64
import csv
import io
import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command_line import run_command
from experiments.comparison import compare, run_warnings, trained_policies
from experiments.gallery import GALLERY, INDEX, picture_size
from experiments.records import Benchmark, load_benchmark, write_json, write_text
from experiments.report_figures import (
    COLUMNS,
    curves_figure,
    density_figure,
    differences_figure,
    inline,
    intervals_figure,
    marks,
    scales_figure,
)
from experiments.report_style import CSS

REPORT, MARKDOWN, RESULTS, SCENES, FIGURES = "report.html", "results.md", "results.json", "scenes.csv", "figures"

Estimate = dict[str, Any]


@dataclass(frozen=True)
class ReportConfig:
    results: Path
    """Directory that python -m experiments.benchmark --output wrote."""


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the first column names a policy."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    of_words: bool = False
    """Whether cells are sentences."""

    def markdown(self) -> str:
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"{text}\n\n{self.note}" if self.note else text

    def html(self) -> str:
        head = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in self.header)
        body = "".join(
            f"<tr><th scope=row>{escape(row[0])}</th>" + "".join(f"<td>{_cell(c)}</td>" for c in row[1:]) + "</tr>"
            for row in self.rows
        )
        note = f"<p class=note>{escape(self.note)}</p>" if self.note else ""
        table = f"<table class={'words' if self.of_words else 'numbers'}><thead><tr>{head}</tr></thead>"
        return f"<div class=scroll>{table}<tbody>{body}</tbody></table></div>{note}"


def _cell(text: str) -> str:
    """An interval in brackets steps back behind its value."""
    return re.sub(r" (\[[^\]]*\])", r" <span class=interval>\1</span>", escape(text))


@dataclass(frozen=True)
class Picture:
    """A figure: its name as a file, what it shows in a sentence, and what one reads off it."""

    name: str
    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


# Numbers in words


def _number(value: float, *, digits: int, signed: bool = False) -> str:
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def _at(estimate: Estimate, place: int | None = None) -> tuple[float, float, float]:
    """(value, low, high), of a curve at one glimpse."""
    value, (low, high) = estimate["value"], estimate["interval"]
    return (value, low, high) if place is None else (value[place], low[place], high[place])


def _with_interval(
    estimate: Estimate, place: int | None = None, *, scale: float = 100, digits: int = 1, signed: bool = False
) -> str:
    value, low, high = (_number(scale * v, digits=digits, signed=signed) for v in _at(estimate, place))
    return f"{value} [{low}, {high}]"


def _verdict(estimate: Estimate, place: int | None = None) -> str:
    _, low, high = _at(estimate, place)
    return "better" if low > 0 else "worse" if high < 0 else "within noise"


def _oracle_scope(numbers: dict[str, Any]) -> str:
    count = numbers["oracle"]["num_scenes"]
    return "all scenes" if count == numbers["num_scenes"] else f"the first {count:,} scenes"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def summary(numbers: dict[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    policies, metric, budget = numbers["policies"], numbers["metric"], numbers["budget"]
    best, reference, fixed = numbers["best"], numbers["reference"], numbers["fixed"]
    ranked = [label for label, p in policies.items() if "score" in p and not p["uses_labels"]]
    score = _with_interval(policies[best]["score"], -1)
    lines = [
        f"{best} reads best of the {len(ranked)} policies that use no labels: {metric} {score} % after {budget} "
        f"glimpses"
        + (
            ", the reference."
            if best == reference
            else f", {_with_interval(policies[best]['minus_reference']['score'], -1, signed=True)} points against "
            f"{reference}, the reference."
        )
    ]
    near = [
        f"{label} ({_with_interval(policies[label]['minus_best']['score'], -1, signed=True)})"
        for label in ranked
        if label != best and _verdict(policies[label]["minus_best"]["score"], -1) == "within noise"
    ]
    if near:
        lines.append(f"Not told apart from {best} on these scenes: {_listed(near)}.")
    elif len(ranked) > 1:
        lines.append(f"The lead of {best} over every other policy is clear of zero.")
    against: dict[str, list[str]] = {"better": [], "within noise": [], "worse": []}
    for label in ranked:
        if label != reference:
            against[_verdict(policies[label]["minus_reference"]["score"], -1)].append(label)
    parts = [f"{kind}: {_listed(labels)}" for kind, labels in against.items() if labels]
    if parts:
        lines.append(f"Against {reference} by {metric} after {budget} glimpses: {'; '.join(parts)}.")
    lowest = min(ranked, key=lambda label: policies[label]["cross_entropy"]["value"][-1])
    if lowest != best:
        loss = _with_interval(policies[lowest]["cross_entropy"], -1, scale=1, digits=3)
        text = f"By cross-entropy {lowest} reads best: {loss} nats"
        if lowest != reference:
            change = _with_interval(
                policies[lowest]["minus_reference"]["cross_entropy"], -1, scale=1, digits=4, signed=True
            )
            text += f", {change} against {reference}"
        lines.append(text + ".")
    for label in ranked:
        if fixed and (difference := policies[label].get("minus_fixed")):
            amount = _with_interval(difference["score"], -1, signed=True)
            meaning = {
                "better": "what it gains is more than a prior over places.",
                "within noise": "what it gains over other policies may be a prior over places.",
                "worse": "a prior over places does better.",
            }[_verdict(difference["score"], -1)]
            lines.append(f"{label} against the {fixed}, which sees no image: {amount} points; {meaning}")
    if oracle := numbers["oracle"]:
        lead = _with_interval(oracle["lead"]["score"], signed=True)
        leads = "leads" if _verdict(oracle["lead"]["score"]) == "better" else "does not lead"
        shares = {
            label: p["share_score"]
            for label, p in oracle["policies"].items()
            if label in ranked and p.get("share_score") is not None
        }
        text = f"{oracle['label']} {leads} {oracle['baseline']} in {metric} on {_oracle_scope(numbers)}: {lead} points."
        if shares:
            top = max(shares, key=lambda label: shares[label]["value"])
            text += f" The largest share of that lead: {top}, {_with_interval(shares[top], digits=0)} %"
            text += ", not told apart from none." if _verdict(shares[top]) != "better" else "."
        lines.append(text)
    return lines


# Tables


def _columns(budget: int) -> list[int]:
    """Glimpses (from 1) that get a column."""
    if budget <= COLUMNS:
        return list(range(1, budget + 1))
    return sorted({round(t) for t in np.geomspace(1, budget, COLUMNS)})


def _by_score(numbers: dict[str, Any]) -> list[str]:
    """Labels on all scenes, best first."""
    policies = numbers["policies"]
    labels = [label for label, p in policies.items() if "score" in p]
    return sorted(labels, key=lambda label: -policies[label]["score"]["value"][-1])


def scores_table(numbers: dict[str, Any]) -> Table:
    metric, shown, policies = numbers["metric"], _columns(numbers["budget"]), numbers["policies"]
    has_top5 = any("top5" in p for p in policies.values())
    rows = []
    for label in _by_score(numbers):
        p = policies[label]
        curve = p["score"]["value"]
        row = [label, *(_number(100 * curve[t - 1], digits=1) for t in shown[:-1])]
        row += [_with_interval(p["score"], -1), _with_interval(p["score_area"])]
        row += [_with_interval(p["top5"], -1)] if has_top5 else []
        row += [_with_interval(p["cross_entropy"], -1, scale=1, digits=3)]
        row += [_per_scene(p["interquartile_mean"], metric)]
        rows.append(tuple(row))
    header = ["policy", *(f"after {t}" for t in shown[:-1]), f"{metric}, % after {shown[-1]}", "area, %"]
    header += ["top-5 %"] if has_top5 else []
    header += ["cross-entropy, nats", "IQM of scenes" + (", %" if metric == "mIoU" else ", nats")]
    return Table(
        header=tuple(header),
        rows=rows,
        note=f"{metric} in % after each number of glimpses; with 95% intervals in brackets. Area: under the curve over "
        "glimpses, as a mean. IQM: interquartile mean, the mean of the middle half, of the "
        f"{'mIoU' if metric == 'mIoU' else 'cross-entropy'} of single scenes after the last glimpse.",
    )


def _per_scene(estimate: Estimate, metric: str) -> str:
    if metric == "mIoU":
        return _with_interval(estimate)
    value, (low, high) = estimate["value"], estimate["interval"]
    return _with_interval({"value": -value, "interval": [-high, -low]}, scale=1, digits=3)


def differences_table(numbers: dict[str, Any]) -> Table:
    metric, reference = numbers["metric"], numbers["reference"]
    rows = []
    for label in _by_score(numbers):
        if (d := numbers["policies"][label].get("minus_reference")) is not None:
            rows.append(
                (
                    label,
                    _with_interval(d["score"], -1, digits=2, signed=True),
                    _with_interval(d["score_area"], digits=2, signed=True),
                    _with_interval(d["cross_entropy"], -1, scale=1, digits=4, signed=True),
                    _with_interval(d["probability_of_improvement"], scale=1, digits=2),
                    _verdict(d["score"], -1),
                )
            )
    return Table(
        header=(
            f"policy minus {reference}",
            f"{metric}, points",
            "area, points",
            "cross-entropy, nats",
            "P(improvement)",
            f"by {metric}",
        ),
        rows=rows,
        note="After the last glimpse, on the same scenes, with 95% intervals; less cross-entropy is better. "
        "P(improvement): the probability that the policy reads a random scene better than the reference does, ties "
        "one half. 'Within noise': the interval holds zero. Intervals are of single comparisons, not corrected for "
        "their number.",
    )


def headroom_table(numbers: dict[str, Any]) -> Table:
    oracle, metric = numbers["oracle"], numbers["metric"]
    order = sorted(oracle["policies"], key=lambda label: -oracle["policies"][label]["score"]["value"][-1])
    rows = []
    for label in order:
        p = oracle["policies"][label]
        ends = {oracle["label"]: "100 (by definition)", oracle["baseline"]: "0 (by definition)"}
        shares = (
            [ends[label]] * 2
            if label in ends
            else [
                "not defined" if p[name] is None else _with_interval(p[name], digits=0)
                for name in ("share_score", "share_cross_entropy")
            ]
        )
        rows.append(
            (
                label,
                _with_interval(p["score"], -1),
                shares[0],
                _with_interval(p["cross_entropy"], -1, scale=1, digits=3),
                shares[1],
            )
        )
    return Table(
        header=(
            "policy",
            f"{metric} %",
            f"share of {metric} headroom, %",
            "cross-entropy, nats",
            "share of cross-entropy headroom, %",
        ),
        rows=rows,
        note=f"On {_oracle_scope(numbers)}, those that {oracle['label']} has seen, for every policy. "
        f"Share: (policy − {oracle['baseline']}) / ({oracle['label']} − {oracle['baseline']}) after the last glimpse; "
        "not defined where the oracle's own lead is not clear of zero.",
    )


def policies_table(benchmark: Benchmark, numbers: dict[str, Any]) -> Table:
    rows = []
    for entry in benchmark.entries:
        p = numbers["policies"][entry.label]
        runs = f"{len(entry.runs)} training run{'s' * (len(entry.runs) > 1)}, " if entry.learned else ""
        seeds = len(entry.runs[0].evaluations)
        how = "deterministic" if entry.deterministic else f"{seeds} seed{'s' * (seeds > 1)}"
        rows.append(
            (
                entry.label,
                entry.spec,
                entry.description,
                runs + how,
                f"{p['num_scenes']:,}",
                f"{p['gflops'][-1]:.3g}",
            )
        )
    return Table(
        header=("policy", "spec", "what it does", "runs", "scenes", "GFLOPs"),
        rows=rows,
        of_words=True,
        note="GFLOPs per scene for all glimpses: the backbone's and the policy's own, one multiply-accumulate as two.",
    )


# Figures


def _text_alternative(numbers: dict[str, Any], what: str) -> str:
    order = _by_score(numbers)
    ends = ", ".join(f"{label} {100 * numbers['policies'][label]['score']['value'][-1]:.1f}" for label in order)
    return f"{what}. After the last glimpse, in %: {ends}."


def figures(benchmark: Benchmark, numbers: dict[str, Any]) -> dict[str, Picture]:
    """By name."""
    metric, budget, policies, reference = (numbers[k] for k in ("metric", "budget", "policies", "reference"))
    drawn = marks(benchmark.entries, reference=reference)
    whole = _by_score(numbers)
    label_y = f"{metric}, %"
    made = [
        Picture(
            name="score_by_glimpses",
            svg=curves_figure(
                {label: policies[label]["score"] for label in whole}, drawn, y_label=label_y,
                title=f"{metric} of the data set against glimpses",
            ),
            alt=_text_alternative(numbers, f"Curves of {metric} against glimpses, one per policy"),
            caption=f"{metric} on {numbers['num_scenes']:,} scenes. Bands: 95% intervals. They are wide because scenes "
            "differ, which all policies share; the next figure leaves that out.",
        ),
        Picture(
            name="score_by_gflops",
            svg=curves_figure(
                {label: policies[label]["score"] for label in whole}, drawn, y_label=label_y,
                title=f"{metric} of the data set against computation",
                gflops={label: policies[label]["gflops"] for label in whole},
            ),
            alt=_text_alternative(numbers, f"Curves of {metric} against cumulative GFLOPs, one per policy"),
            caption="One mark per glimpse. A policy that computes more than a forward per glimpse lies further right.",
        ),
    ]  # fmt: skip
    others = [label for label in whole if label != reference and not policies[label]["uses_labels"]]
    if others:
        made.append(
            Picture(
                name="difference_by_glimpses",
                svg=differences_figure(
                    {label: policies[label]["minus_reference"]["score"] for label in others},
                    drawn,
                    y_label=f"{metric} minus {reference}'s, points",
                    zero=reference,
                ),
                alt=f"A panel per policy: the difference in {metric} to {reference} against glimpses. After the last, "
                "in points: "
                + "; ".join(
                    f"{label} {_with_interval(policies[label]['minus_reference']['score'], -1, signed=True)}"
                    for label in others
                ),
                caption=f"{metric} minus {reference}'s on the same scenes, with 95% bands; in grey, the "
                "others. Where a band is off the line, the difference is beyond noise.",
            )
        )  # fmt: skip
        panels = [
            (f"{metric}, points", {label: _scaled(policies[label]["minus_reference"]["score"]) for label in others}, 0),
            (
                "cross-entropy, nats\n(less is better)",
                {label: _scaled(policies[label]["minus_reference"]["cross_entropy"], 1) for label in others},
                0,
            ),
            (
                "P(improvement)\non a scene",
                {label: policies[label]["minus_reference"]["probability_of_improvement"] for label in others},
                0.5,
            ),
        ]
        made.append(
            Picture(
                name="differences",
                svg=intervals_figure(panels, drawn, others),
                alt=f"Dots with 95% intervals: differences to {reference} after {budget} glimpses, as in the table.",
                caption=f"After {budget} glimpses, minus {reference}. Filled: the interval is off the line. Open: "
                "within noise.",
            )
        )
    if oracle := numbers["oracle"]:
        order = sorted(
            (label for label, p in oracle["policies"].items() if p.get("share_score") is not None),
            key=lambda label: -oracle["policies"][label]["share_score"]["value"],
        )
        if order:
            panels = [
                (
                    title,
                    {
                        label: None if oracle["policies"][label][name] is None
                        else _scaled(oracle["policies"][label][name], place=None)
                        for label in order
                    },
                    0,
                )
                for title, name in (
                    (f"share of the {metric} headroom, %", "share_score"),
                    ("share of the cross-entropy headroom, %", "share_cross_entropy"),
                )
            ]  # fmt: skip
            made.append(
                Picture(
                    name="headroom",
                    svg=intervals_figure(panels, drawn, order),
                    alt="Dots with 95% intervals: the share of the oracle's headroom that each policy captures, as in "
                    "the table.",
                    caption=f"0 is {oracle['baseline']}, 100 the {oracle['label']}, on "
                    f"{_oracle_scope(numbers)}, after {budget} glimpses.",
                )
            )
        if oracle["label"] not in whole:
            told = {oracle["label"], oracle["baseline"], reference, numbers["best"], numbers["fixed"]}
            told |= {label for label, p in policies.items() if p["learned"]}
            curves = {label: p["score"] for label, p in oracle["policies"].items() if label in told}
            made.append(
                Picture(
                    name="oracle_scenes",
                    svg=curves_figure(
                        curves, drawn, y_label=label_y,
                        title=f"{metric} against glimpses, on the oracle's {oracle['num_scenes']:,} scenes",
                    ),
                    alt=f"Curves of {metric} against glimpses on the oracle's scenes, one per policy.",
                    caption="As the first figure, on the scenes that the oracle has seen, for some of the policies.",
                )
            )  # fmt: skip
    if budget > 1:
        made += [
            Picture(
                name="fixations",
                svg=density_figure(benchmark),
                alt="Maps of where each policy's glimpses are centered, one line per policy and one map per glimpse.",
                caption="Where glimpses are centered, over the scene, from dark (never) to bright; each map is scaled "
                "to its own maximum, and shows square roots, so that rare places are seen. A glimpse of scale s has "
                "its center within the middle share 1 − s.",
            ),
            Picture(
                name="scales",
                svg=scales_figure(benchmark),
                alt="Stacked bars: the shares of scales among each policy's glimpses after the first.",
                caption="How large the crops are: scale 1 is the whole scene, 1/2 a quarter of its area.",
            ),
        ]
    return {picture.name: picture for picture in made}


def _scaled(estimate: Estimate, scale: float = 100, place: int | None = -1) -> Estimate:
    value, low, high = (scale * v for v in _at(estimate, place))
    return {"value": value, "interval": [low, high]}


# Pages


def _title(benchmark: Benchmark) -> str:
    return f"{benchmark.manifest['identity']['environment']}, {benchmark.budget} glimpses"


def _scope(benchmark: Benchmark) -> str:
    identity = benchmark.manifest["identity"]
    config = identity["config"]
    return (
        f"{benchmark.num_scenes:,} {config['split']} scenes; backbone {config['checkpoint']} "
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
        text = "No share of headroom is given: it takes both greedy_oracle and coarse_to_fine among the policies."
        made.append(Section("Headroom", text=(text,)))
    made.append(Section("Where policies look", pictures=some("fixations", "scales")))
    return made


def _methods(benchmark: Benchmark, numbers: dict[str, Any]) -> list[str]:
    seeds = {len(run.evaluations) for e in benchmark.entries if not e.deterministic for run in e.runs}
    lines = [
        f"Every policy sees every scene once, in the same order, and takes {numbers['budget']} glimpses; after each "
        "of them the probe's reading is compared with the truth.",
        (
            "mIoU is the data set's: intersections and unions are summed over scenes, then divided, then averaged "
            "over classes. The logits are upsampled to the scene before the argmax."
            if numbers["metric"] == "mIoU"
            else "Top-1 and top-5 are shares of scenes. Comparisons scene by scene (IQM, P(improvement), the gallery) "
            "use the cross-entropy, since right or wrong says little about one scene."
        ),
        f"Intervals are 95% percentile intervals over {numbers['resamples']:,} bootstrap resamples: of scenes, the "
        "same for all policies, so that differences are paired; and, where a policy has several runs (seeds of a "
        "random policy, training runs of a learned one), of runs too. With few runs they are too narrow.",
        "Interquartile mean and probability of improvement are rliable's (Agarwal et al., 2021), with scenes as tasks.",
    ]
    if seeds:
        lines.append(
            f"Policies that draw random numbers are evaluated with {_listed([str(s) for s in sorted(seeds)])} "
            f"seed{'s' * (seeds != {1})} per run."
        )
    return lines


def _image(path: Path, alt: str) -> str:
    width, height = picture_size(path)
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" width={width} height={height} loading=lazy src="data:image/webp;base64,{data}">'


def _gain_text(gain: float, metric: str) -> str:
    if metric == "mIoU":
        return f"{_number(100 * gain, digits=1, signed=True)} points of the scene's mIoU"
    return f"cross-entropy {'lower' if gain > 0 else 'higher'} by {_number(abs(gain), digits=2)} nats"


def _gallery(benchmark: Benchmark, numbers: dict[str, Any]) -> list[tuple[Path, str]]:
    """(picture, caption)."""
    path = benchmark.directory / GALLERY / INDEX
    if not path.is_file():
        return []
    index = json.loads(path.read_text())
    return [
        (
            benchmark.directory / GALLERY / shown["file"],
            f"{shown['kind'].capitalize()} for {index['policy']} against {index['reference']}: scene {shown['scene']}, "
            f"{_gain_text(shown['gain'], numbers['metric'])}.",
        )
        for shown in index["pictures"]
    ]


def _gallery_text(benchmark: Benchmark) -> str:
    index = json.loads((benchmark.directory / GALLERY / INDEX).read_text())
    dense = benchmark.metric == "mIoU"
    return (
        f"The same scenes under {_listed(index['lines'])}, first run and seed of each. Scenes are chosen by the "
        f"difference between {index['policy']} and {index['reference']} after the last glimpse: its best, its median "
        f"and its worst of {index['num_scenes']:,}. Boxes are numbered in the order of the glimpses, blue to red; "
        f"under each reading, {'its score and the change to the one before' if dense else 'whether it is right'}."
    )


def _provenance_rows(benchmark: Benchmark) -> list[tuple[str, str]]:
    manifest = benchmark.manifest
    identity, where = manifest["identity"], manifest["provenance"]
    rows = [
        ("command", where["command"]),
        ("git", json.dumps(where["git"])),
        ("versions", ", ".join(f"{k} {v}" for k, v in where["versions"].items())),
        ("machine", ", ".join(f"{k} {v}" for k, v in where["machine"].items())),
        ("time", where["time"]),
        ("scenes", identity["scenes"]),
        ("backbone", f"{identity['config']['checkpoint']}, sha256 {identity['backbone_sha256']}"),
        ("probe", f"sha256 {identity['probe_sha256']}"),
    ]
    for entry in benchmark.entries:
        if entry.learned and entry.deterministic:
            for run in entry.runs:
                assert run.training is not None
                rows.append(
                    (
                        entry.label,
                        f"{run.training['directory']}, sha256 {run.training['weights_sha256']}, trained on "
                        f"{run.training['env_id']} at budget {run.training['budget']}",
                    )
                )
    return rows


def _budget_notes(benchmark: Benchmark) -> list[str]:
    """Where a learned policy is used at another budget than it was trained at."""
    notes = []
    for label, trainings in trained_policies(benchmark.entries):
        if other := sorted({training["budget"] for training in trainings} - {benchmark.budget}):
            notes.append(
                f"{label}: trained at a budget of {_listed([str(b) for b in other])} glimpses, evaluated at "
                f"{benchmark.budget}."
            )
    return notes


def warnings(benchmark: Benchmark) -> list[str]:
    return [*run_warnings(benchmark.entries), *_budget_notes(benchmark)]


def html_page(benchmark: Benchmark, numbers: dict[str, Any], made: list[Section]) -> str:
    parts = [f"<h1>{escape(_title(benchmark))}</h1><p class=scope>{escape(_scope(benchmark))}</p>"]
    told = [*(("Warning: " + w) for w in warnings(benchmark)), *benchmark.manifest["left_out"]]
    if told:
        parts.append("<div class=warning>" + "".join(f"<p>{escape(w)}</p>" for w in told) + "</div>")
    parts.append("<ul class=summary>" + "".join(f"<li>{escape(s)}</li>" for s in summary(numbers)) + "</ul>")
    for section in made:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f"<p>{escape(text)}</p>" for text in section.text]
        parts += [table.html() for table in section.tables]
        for picture in section.pictures:
            drawn = inline(picture.svg, prefix=picture.name, alt=escape(picture.alt))
            parts.append(f"<figure>{drawn}<figcaption>{escape(picture.caption)}</figcaption></figure>")
    if gallery := _gallery(benchmark, numbers):
        parts.append(f"<h2>Gallery</h2><p>{escape(_gallery_text(benchmark))}</p>")
        parts += [
            f"<figure class=picture>{_image(path, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
            for path, caption in gallery
        ]
    parts.append(f"<h2>Policies</h2>{policies_table(benchmark, numbers).html()}")
    parts.append("<h2>How it was measured</h2><ul>")
    parts += [f"<li>{escape(line)}</li>" for line in _methods(benchmark, numbers)]
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in _provenance_rows(benchmark)
    )
    parts.append(f"</ul><h2>Provenance</h2><div class=scroll><table class=provenance>{rows}</table></div>")
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(benchmark))}</title><style>{CSS}</style></head><body><main>"
        + "\n".join(parts)
        + "</main></body></html>\n"
    )


def markdown_page(benchmark: Benchmark, numbers: dict[str, Any], made: list[Section]) -> str:
    parts = [f"# {_title(benchmark)}", _scope(benchmark)]
    parts += [f"> Warning: {text}" for text in warnings(benchmark)]
    parts += [f"> {text}" for text in benchmark.manifest["left_out"]]
    parts.append("\n".join(f"- {line}" for line in summary(numbers)))
    for section in made:
        parts += [f"## {section.title}", *section.text, *(table.markdown() for table in section.tables)]
        parts += [f"![{p.alt}]({FIGURES}/{p.name}.svg)\n\n*{p.caption}*" for p in section.pictures]
    if gallery := _gallery(benchmark, numbers):
        parts += ["## Gallery", _gallery_text(benchmark)]
        parts += [f"![{caption}]({GALLERY}/{path.name})\n\n*{caption}*" for path, caption in gallery]
    parts += ["## Policies", policies_table(benchmark, numbers).markdown()]
    parts += ["## How it was measured", "\n".join(f"- {line}" for line in _methods(benchmark, numbers))]
    parts += ["## Provenance", "\n".join(f"- {name}: `{value}`" for name, value in _provenance_rows(benchmark))]
    return "\n\n".join(parts) + "\n"


def scenes_csv(benchmark: Benchmark) -> str:
    """A line per scene: of every policy, its score and cross-entropy after the last glimpse, averaged over runs."""
    columns: dict[str, Any] = {"scene": benchmark.reference.first.scene.astype(int)}
    for entry in benchmark.entries:
        for name, values in (
            ("score", lambda e: e.scene_score()[:, -1]),
            ("cross-entropy", lambda e: e.loss[:, -1]),
        ):
            mean = np.mean([np.mean([values(e) for e in run.evaluations], axis=0) for run in entry.runs], axis=0)
            missing = [""] * (benchmark.num_scenes - len(mean))
            columns[f"{entry.label} {name}"] = [f"{v:.3f}" for v in mean] + missing
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def write_report(benchmark: Benchmark) -> Path:
    """All of the report's files; returns the path of report.html."""
    numbers = compare(benchmark)
    made = sections(benchmark, numbers)
    directory = benchmark.directory
    manifest = benchmark.manifest
    record = {
        "summary": summary(numbers),
        "warnings": warnings(benchmark),
        **numbers,
        "identity": manifest["identity"],
        "left_out": manifest["left_out"],
        "seeds": {
            entry.label: [[e.seed for e in run.evaluations] for run in entry.runs] for entry in benchmark.entries
        },
        "training": {
            entry.label: [run.training for run in entry.runs] for entry in benchmark.entries if entry.learned
        },
        "provenance": manifest["provenance"],
    }  # fmt: skip
    write_json(directory / RESULTS, record)
    write_text(directory / MARKDOWN, markdown_page(benchmark, numbers, made))
    write_text(directory / SCENES, scenes_csv(benchmark))
    kept = {f"{picture.name}.svg" for section in made for picture in section.pictures}
    for section in made:
        for picture in section.pictures:
            write_text(directory / FIGURES / f"{picture.name}.svg", picture.svg)
    for stale in (directory / FIGURES).glob("*.svg"):
        if stale.name not in kept:
            stale.unlink()
    write_text(directory / REPORT, html_page(benchmark, numbers, made))
    return directory / REPORT


def main(config: ReportConfig) -> Path:
    report = write_report(load_benchmark(config.results))
    print(f"Report: {report}")
    return report


if __name__ == "__main__":
    run_command(main, ReportConfig, description=__doc__)
