"""The tables of a benchmark's report, as Markdown and as HTML."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from canvit_gym import escaping
from canvit_gym.benchmark.plots import COLUMNS
from canvit_gym.benchmark.records import Benchmark
from canvit_gym.benchmark.words import Estimate, by_score, interval_text, number, oracle_scope, verdict
from canvit_gym.tasks import metric_named
from canvit_gym.tasks.metric import SceneMeasure

FEW_SCENES = 20
"""Below this number of scenes, a resample of scenes hardly differs from the scenes: of one, it never does."""


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the first column is the policy."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    of_words: bool = False
    """Whether cells are sentences."""

    def markdown(self) -> str:
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        text = "\n".join("| " + " | ".join(escaping.markdown(cell) for cell in line) + " |" for line in lines)
        return f"{text}\n\n{escaping.markdown(self.note)}" if self.note else text

    def html(self) -> str:
        head = "".join(f"<th scope=col>{escaping.html(cell)}</th>" for cell in self.header)
        body = "".join(
            f"<tr><th scope=row>{escaping.html(row[0])}</th>"
            + "".join(f"<td>{_cell(c)}</td>" for c in row[1:])
            + "</tr>"
            for row in self.rows
        )
        note = f"<p class=note>{escaping.html(self.note)}</p>" if self.note else ""
        table = f"<table class={'words' if self.of_words else 'numbers'}><thead><tr>{head}</tr></thead>"
        return f"<div class=scroll>{table}<tbody>{body}</tbody></table></div>{note}"


def _cell(text: str) -> str:
    """Show intervals in brackets less prominently than their value."""
    return re.sub(r" (\[[^\]]*\])", r" <span class=interval>\1</span>", escaping.html(text))


def _columns(budget: int) -> list[int]:
    """Glimpses (from 1) that have a column."""
    if budget <= COLUMNS:
        return list(range(1, budget + 1))
    return sorted({round(t) for t in np.geomspace(1, budget, COLUMNS)})


def scores_table(numbers: dict[str, Any]) -> Table:
    metric, shown, policies = numbers["metric"], _columns(numbers["budget"]), numbers["policies"]
    loss, shares, measure = metric_named(metric).loss, metric_named(metric).shares, metric_named(metric).scene_measure
    rows = []
    for label in by_score(numbers):
        p = policies[label]
        curve = p["score"]["value"]
        row = [label, *(number(100 * curve[t - 1], digits=1) for t in shown[:-1])]
        row += [interval_text(p["score"], -1), interval_text(p["score_area"])]
        row += [interval_text(p[name], -1) for name in shares]
        row += [interval_text(p["cross_entropy"], -1, scale=1, digits=3)]
        row += [_per_scene(p["interquartile_mean"], measure)]
        rows.append(tuple(row))
    header = ["policy", *(f"after {t}" for t in shown[:-1]), f"{metric}, % after {shown[-1]}", "area, %"]
    header += [f"{name} %" for name in shares]
    header += [loss.label, f"IQM of scenes, {measure.display.unit}"]
    return Table(
        header=tuple(header),
        rows=rows,
        note=f"{metric} in % after each number of glimpses, with 95% intervals in brackets. Area: under the curve "
        "over glimpses, as a mean. IQM: interquartile mean, the mean of the middle half, of the "
        f"{measure.name} after the last glimpse.",
    )


def _per_scene(estimate: Estimate, measure: SceneMeasure) -> str:
    """Format an estimate, where more is better, like the measure."""
    value, (low, high) = estimate["value"], estimate["interval"]
    if measure.of == "loss":
        value, low, high = -value, -high, -low
    shown = measure.display
    return interval_text({"value": value, "interval": [low, high]}, scale=shown.factor, digits=shown.digits)


def differences_table(numbers: dict[str, Any]) -> Table:
    metric, reference = numbers["metric"], numbers["reference"]
    loss = metric_named(metric).loss
    rows = []
    for label in by_score(numbers):
        if (d := numbers["policies"][label].get("minus_reference")) is not None:
            rows.append(
                (
                    label,
                    interval_text(d["score"], -1, digits=2, signed=True),
                    interval_text(d["score_area"], digits=2, signed=True),
                    interval_text(d["cross_entropy"], -1, scale=1, digits=4, signed=True),
                    interval_text(d["probability_of_improvement"], scale=1, digits=2),
                    verdict(d["score"], -1),
                )
            )
    return Table(
        header=(
            f"policy minus {reference}",
            f"{metric}, points",
            "area, points",
            loss.label,
            "P(improvement)",
            f"by {metric}",
        ),
        rows=rows,
        note=f"After the last glimpse, on the same scenes, with 95% intervals. Less {loss.name} is better. "
        "P(improvement): the probability that the policy reads a random scene better than the reference, ties "
        "one half. 'Within noise': the interval includes zero. Intervals are of single comparisons, not corrected for "
        "their number.",
    )


def headroom_table(numbers: dict[str, Any]) -> Table:
    oracle, metric = numbers["oracle"], numbers["metric"]
    loss = metric_named(metric).loss
    order = sorted(oracle["policies"], key=lambda label: -oracle["policies"][label]["score"]["value"][-1])
    rows = []
    for label in order:
        p = oracle["policies"][label]
        ends = {oracle["label"]: "100 (by definition)", oracle["baseline"]: "0 (by definition)"}
        shares = (
            [ends[label]] * 2
            if label in ends
            else [
                "not defined" if p[name] is None else interval_text(p[name], digits=0)
                for name in ("share_score", "share_cross_entropy")
            ]
        )
        rows.append(
            (
                label,
                interval_text(p["score"], -1),
                shares[0],
                interval_text(p["cross_entropy"], -1, scale=1, digits=3),
                shares[1],
            )
        )
    return Table(
        header=(
            "policy",
            f"{metric} %",
            f"share of {metric} headroom, %",
            loss.label,
            f"share of {loss.name} headroom, %",
        ),
        rows=rows,
        note=f"On {oracle_scope(numbers)}, which {oracle['label']} was evaluated on, for every policy. "
        f"Share: (policy − {oracle['baseline']}) / ({oracle['label']} − {oracle['baseline']}) after the last glimpse; "
        "undefined if the interval of the oracle's lead comes closer to zero than a fifth of its far end, or "
        "if the oracle does not lead in some resample of the scenes.",
    )


def people_table(people: dict[str, Any], *, metric: str) -> Table:
    """People and policies on the scenes that people played."""
    rows = {people["label"]: people, **people["policies"]}
    few = ", which are too narrow with so few" if people["num_scenes"] < FEW_SCENES else ""

    def difference(label: str) -> str:
        found = rows[label].get("people_minus")
        return "" if found is None else interval_text(found["score"], -1, digits=1, signed=True)

    return Table(
        header=(
            "on these scenes",
            f"{metric} %",
            metric_named(metric).loss.label,
            f"{people['label']} minus it, {metric} points",
        ),
        rows=[
            (
                label,
                interval_text(rows[label]["score"], -1),
                interval_text(rows[label]["cross_entropy"], -1, scale=1, digits=3),
                difference(label),
            )
            for label in sorted(rows, key=lambda label: -rows[label]["score"]["value"][-1])
        ],
        note=f"After the last glimpse, on the scenes that were played ({people['num_scenes']:,}), at the first "
        f"attempt; with 95% intervals over scenes{few}. Policies that were not evaluated on all of them are left out.",
    )


def policies_table(benchmark: Benchmark, numbers: dict[str, Any]) -> Table:
    rows = []
    for entry in benchmark.entries:
        p = numbers["policies"][entry.label]
        runs = f"{len(entry.runs)} training run{'s' * (len(entry.runs) > 1)}, " if entry.learned else ""
        seeds = len(entry.runs[0].seeds)
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
        note="GFLOPs per scene for all glimpses, of backbone and policy; a multiply-accumulate counts as two. A "
        "decision of the policy is charged for every glimpse, also for the first one, whose place may be fixed.",
    )
