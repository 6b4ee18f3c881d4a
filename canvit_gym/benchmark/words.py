"""A benchmark's numbers in words: estimates as text, verdicts, and the summary of a report."""

import math
from typing import Any

from canvit_gym.tasks import metric_named

Estimate = dict[str, Any]
"""{"value", "interval"}: a number and (low, high), or curves over glimpses."""


def number(value: float, *, digits: int, signed: bool = False) -> str:
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def at(estimate: Estimate, place: int | None = None) -> tuple[float, float, float]:
    """(value, low, high) of a curve at one glimpse."""
    value, (low, high) = estimate["value"], estimate["interval"]
    return (value, low, high) if place is None else (value[place], low[place], high[place])


def interval_text(
    estimate: Estimate, place: int | None = None, *, scale: float = 100, digits: int = 1, signed: bool = False
) -> str:
    value, low, high = (number(scale * v, digits=digits, signed=signed) for v in at(estimate, place))
    return f"{value} [{low}, {high}]"


def verdict(estimate: Estimate, place: int | None = None) -> str:
    _, low, high = at(estimate, place)
    return "better" if low > 0 else "worse" if high < 0 else "within noise"


def oracle_scope(numbers: dict[str, Any]) -> str:
    count = numbers["oracle"]["num_scenes"]
    return "all scenes" if count == numbers["num_scenes"] else f"{count:,} of the {numbers['num_scenes']:,} scenes"


def listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def scale_text(scale: float) -> str:
    """1, 1/2, 1/4, ... if it is one of these, else two digits."""
    halvings = round(-math.log2(scale))
    if not math.isclose(scale, 2.0**-halvings, rel_tol=1e-3):
        return f"{scale:.2g}"
    return f"1/{2**halvings}" if halvings else "1"


def scales_text(scales: list[float] | None) -> str:
    return f"scale {listed([scale_text(scale) for scale in scales])}" if scales else "many scales"


def _against_fixed(numbers: dict[str, Any], label: str) -> str:
    """What the difference to the fixed sequence, whose windows may have other scales, says about a policy."""
    fixed, policies = numbers["fixed"], numbers["policies"]
    difference = policies[label]["minus_fixed"]["score"]
    own, theirs = policies[label]["scales"], policies[fixed]["scales"]
    meaning = {
        "better": "it gains more than this sequence",
        "within noise": "its gain over other policies may be a prior over places",
        "worse": "a prior over places is better",
    }[found := verdict(difference, -1)]
    if found == "better" and theirs and (own is None or set(own) - set(theirs)):
        meaning += f", but its own windows have {scales_text(own)}, which may be the reason"
    windows = f" and takes windows of {scales_text(theirs)}" if theirs else ""
    amount = interval_text(difference, -1, signed=True)
    return f"{label} against the {fixed}, which ignores the scene{windows}: {amount} points; {meaning}."


def by_score(numbers: dict[str, Any]) -> list[str]:
    """Labels of policies evaluated on all scenes, best first."""
    policies = numbers["policies"]
    labels = [label for label, p in policies.items() if "score" in p]
    return sorted(labels, key=lambda label: -policies[label]["score"]["value"][-1])


def summary(numbers: dict[str, Any]) -> list[str]:
    """What the numbers say, in sentences. They begin the report."""
    policies, metric, budget = numbers["policies"], numbers["metric"], numbers["budget"]
    best, reference, fixed = numbers["best"], numbers["reference"], numbers["fixed"]
    ranked = [label for label, p in policies.items() if "score" in p and not p["uses_labels"]]
    score = interval_text(policies[best]["score"], -1)
    lines = [
        f"{best} is the best of the {len(ranked)} policies that use no labels: {metric} {score} % after {budget} "
        f"glimpses"
        + (
            ", the reference."
            if best == reference
            else f", {interval_text(policies[best]['minus_reference']['score'], -1, signed=True)} points against "
            f"{reference}, the reference."
        )
    ]
    near = [
        f"{label} ({interval_text(policies[label]['minus_best']['score'], -1, signed=True)})"
        for label in ranked
        if label != best and verdict(policies[label]["minus_best"]["score"], -1) == "within noise"
    ]
    if near:
        lines.append(f"Not distinguishable from {best} on these scenes: {listed(near)}.")
    elif len(ranked) > 1:
        lines.append(f"The interval of {best}'s lead over every other policy excludes zero.")
    against: dict[str, list[str]] = {"better": [], "within noise": [], "worse": []}
    for label in ranked:
        if label != reference:
            against[verdict(policies[label]["minus_reference"]["score"], -1)].append(label)
    parts = [f"{kind}: {listed(labels)}" for kind, labels in against.items() if labels]
    if parts:
        lines.append(f"Against {reference} by {metric} after {budget} glimpses: {'; '.join(parts)}.")
    lowest = min(ranked, key=lambda label: policies[label]["cross_entropy"]["value"][-1])
    if lowest != best:
        loss = metric_named(metric).loss
        least = interval_text(policies[lowest]["cross_entropy"], -1, scale=1, digits=3)
        text = f"By {loss.name} {lowest} is the best: {least} {loss.unit}".rstrip()
        if lowest != reference:
            change = interval_text(
                policies[lowest]["minus_reference"]["cross_entropy"], -1, scale=1, digits=4, signed=True
            )
            text += f", {change} against {reference}"
        lines.append(text + ".")
    for label in ranked:
        if fixed and "minus_fixed" in policies[label]:
            lines.append(_against_fixed(numbers, label))
    if oracle := numbers["oracle"]:
        lead = interval_text(oracle["lead"]["score"], signed=True)
        leads = "leads" if verdict(oracle["lead"]["score"]) == "better" else "does not lead"
        shares = {
            label: p["share_score"]
            for label, p in oracle["policies"].items()
            if label in ranked and p.get("share_score") is not None
        }
        text = f"{oracle['label']} {leads} {oracle['baseline']} in {metric} on {oracle_scope(numbers)}: {lead} points."
        if shares:
            top = max(shares, key=lambda label: shares[label]["value"])
            text += f" The largest share of that lead: {top}, {interval_text(shares[top], digits=0)} %"
            text += ", not distinguishable from none." if verdict(shares[top]) != "better" else "."
        lines.append(text)
    return lines
