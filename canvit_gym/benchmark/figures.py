"""The figures of a benchmark's report, and their captions."""

from dataclasses import dataclass
from typing import Any

from canvit_gym.benchmark.plots import (
    curves_figure,
    density_figure,
    differences_figure,
    intervals_figure,
    marks,
    scales_figure,
)
from canvit_gym.benchmark.records import FEW_SCALES, Benchmark
from canvit_gym.benchmark.words import Estimate, at, by_score, interval_text, oracle_scope
from canvit_gym.tasks import metric_named


@dataclass(frozen=True)
class Picture:
    """A figure: its file name, a caption, and a description of what it shows."""

    name: str
    svg: str
    alt: str
    caption: str


def _text_alternative(numbers: dict[str, Any], what: str) -> str:
    order = by_score(numbers)
    ends = ", ".join(f"{label} {100 * numbers['policies'][label]['score']['value'][-1]:.1f}" for label in order)
    return f"{what}. After the last glimpse, in %: {ends}."


def figures(benchmark: Benchmark, numbers: dict[str, Any]) -> dict[str, Picture]:
    """By name."""
    metric, budget, policies, reference = (numbers[k] for k in ("metric", "budget", "policies", "reference"))
    loss = metric_named(metric).loss
    drawn = marks(benchmark.entries, reference=reference)
    whole = by_score(numbers)
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
            "differ in difficulty, which affects all policies alike; the next figure removes this.",
        ),
        Picture(
            name="score_by_gflops",
            svg=curves_figure(
                {label: policies[label]["score"] for label in whole}, drawn, y_label=label_y,
                title=f"{metric} of the data set against computation",
                gflops={label: policies[label]["gflops"] for label in whole},
            ),
            alt=_text_alternative(numbers, f"Curves of {metric} against cumulative GFLOPs, one per policy"),
            caption="One mark per glimpse. Policies that compute more than one forward per glimpse are further right.",
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
                    f"{label} {interval_text(policies[label]['minus_reference']['score'], -1, signed=True)}"
                    for label in others
                ),
                caption=f"{metric} minus {reference}'s on the same scenes, with 95% bands; in grey, the "
                "others. Where a band does not touch the line, the difference is beyond noise.",
            )
        )
        panels = [
            (f"{metric}, points", {label: _scaled(policies[label]["minus_reference"]["score"]) for label in others}, 0),
            (
                f"{loss.label}\n(less is better)",
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
                caption=f"After {budget} glimpses, minus {reference}. Filled: the interval does not touch the line. "
                "Open: within noise.",
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
                    (f"share of the {loss.name} headroom, %", "share_cross_entropy"),
                )
            ]  # fmt: skip
            made.append(
                Picture(
                    name="headroom",
                    svg=intervals_figure(panels, drawn, order),
                    alt="Dots with 95% intervals: the share of the oracle's headroom that each policy captures, as in "
                    "the table.",
                    caption=f"0 is {oracle['baseline']}, 100 the {oracle['label']}, on "
                    f"{oracle_scope(numbers)}, after {budget} glimpses.",
                )
            )
        if oracle["label"] not in whole:
            wanted = {oracle["label"], oracle["baseline"], reference, numbers["best"], numbers["fixed"]}
            wanted |= {label for label, p in policies.items() if p["learned"]}
            curves = {label: p["score"] for label, p in oracle["policies"].items() if label in wanted}
            made.append(
                Picture(
                    name="oracle_scenes",
                    svg=curves_figure(
                        curves, drawn, y_label=label_y,
                        title=f"{metric} against glimpses, on the oracle's {oracle['num_scenes']:,} scenes",
                    ),
                    alt=f"Curves of {metric} against glimpses on the oracle's scenes, one per policy.",
                    caption="Like the first figure, for some of the policies, on the oracle's scenes.",
                )
            )  # fmt: skip
    if budget > 1 and benchmark.numbers is None:
        made += [
            Picture(
                name="fixations",
                svg=density_figure(benchmark),
                alt="Maps of where each policy's glimpses are centered, one line per policy and one map per glimpse.",
                caption="Where glimpses are centered in the scene, from dark (never) to bright. Each map is scaled "
                "to its own maximum and shows square roots, so that rare places are visible. A glimpse of scale s has "
                "its center within the middle share 1 − s.",
            ),
            Picture(
                name="scales",
                svg=scales_figure(benchmark),
                alt="Stacked bars: the shares of scales among each policy's glimpses after the first.",
                caption="How large the crops are: scale 1 is the whole scene, 1/2 a quarter of its area. For policies "
                f"with at most {FEW_SCALES} scales the bars show their scales; those of other policies are rounded to "
                "the nearest of 1, 1/2, 1/4, … (in octaves).",
            ),
        ]
    return {picture.name: picture for picture in made}


def _scaled(estimate: Estimate, scale: float = 100, place: int | None = -1) -> Estimate:
    value, low, high = (scale * v for v in at(estimate, place))
    return {"value": value, "interval": [low, high]}
