"""The suite's numbers for readers: one page in Markdown and one in HTML, a single file that loads nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from canvit_gym.atomic import write_text
from canvit_gym.benchmark.report import figure_html, html_document, origin_rows, provenance_html
from canvit_gym.benchmark.tables import Table
from canvit_gym.benchmark.words import interval_text, listed, number
from canvit_gym.escaping import html, markdown, markdown_code
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.suite.radar import radar_figure
from canvit_gym.tasks import metric_named

TITLE = "The suite: one skill per environment"
MARKDOWN, HTML, RADAR = "suite.md", "suite.html", "radar.svg"

Numbers = dict[str, Any]
_TRANSFER = "transfer"
_ROLES = {"baseline": "baseline", "opponent": "hand-coded", "ceiling": "ceiling", "trained": "trained here"}


def _share_text(share: dict[str, Any] | None, *, interval: bool = True) -> str:
    if share is None:
        return "none"
    if share["interval"][0] == share["interval"][1] or not interval:
        return number(100 * share["value"], digits=0)
    return interval_text(share, digits=0)


def overview_table(numbers: Numbers) -> Table:
    """Shares at a glance: policies by skills."""
    environments = numbers["environments"]
    skills = [environment["skill"] for environment in environments.values()]
    rows = []
    for family, shares in numbers["radar"].items():
        cells = [number(100 * shares[skill], digits=0) if skill in shares else "" for skill in skills]
        rows.append((family, *cells))
    return Table(
        header=("policy", *skills),
        rows=rows,
        note="Share of the way from the baseline (0) to the ceiling (100), in %. A hand-coded policy has one "
        'row for all of its scales. "Best hand-coded" is the policy that was best on the environment\'s training '
        "scenes; trained ones are shown where they were trained. Empty: not used there, or the ceiling's lead is not "
        "clear of zero.",
    )


def environment_table(environment: Numbers) -> Table:
    policies = environment["policies"]
    metric = environment["metric"]
    ordered = sorted(
        (label for label, p in policies.items() if p["role"] != _TRANSFER),
        key=lambda label: -policies[label]["score"]["value"],
    )
    no_share = " No share: the ceiling's lead over the baseline is not clear of zero on these scenes."
    return Table(
        header=("policy", "", f"{metric}, %", "share, %", "glimpses", "seeds"),
        rows=[
            (
                label,
                _ROLES[(p := policies[label])["role"]],
                interval_text(p["score"]),
                _share_text(p["share"]),
                number(p["glimpses"], digits=1),
                str(len(p["seeds"])),
            )
            for label in ordered
        ],
        note=f"{metric}: {environment['pays']}, on {environment['num_scenes']:,} scenes, {environment['budget']} "
        "glimpses at most; 95% intervals over scenes and seeds in brackets."
        + (no_share if any(policies[label]["share"] is None for label in ordered) else ""),
    )


def robustness_table(environment: Numbers, perturbations: Sequence[str]) -> Table | None:
    rows = []
    scenes = 0
    for label, policy in environment["policies"].items():
        if found := policy["perturbed"]:
            cells = [interval_text(found[n]["difference"], signed=True) if n in found else "" for n in perturbations]
            rows.append((label, *cells))
            scenes = next(iter(found.values()))["num_scenes"]
    if not rows:
        return None
    return Table(
        header=("policy", *perturbations),
        rows=rows,
        note=f"Points of {environment['metric']} ({environment['pays']}): under the perturbation minus without it, the "
        f"same policy on the same {scenes:,} scenes.",
    )


def transfer_table(numbers: Numbers) -> Table | None:
    """Trained policies by environments: their shares, where they were trained and elsewhere."""
    environments = numbers["environments"]
    found: dict[str, dict[str, str]] = {}
    for env_id, environment in environments.items():
        for policy in environment["policies"].values():
            if policy["role"] in ("trained", _TRANSFER):
                text = f"{interval_text(policy['score'])}; {_share_text(policy['share'], interval=False)}"
                text += " (home)" if policy["role"] == "trained" else ""
                found.setdefault(policy["source"], {})[env_id] = text
        for source in environment["misfits"]:
            found.setdefault(source, {})[env_id] = "does not fit"
    if not found:
        return None
    return Table(
        header=("policy", *map(without_namespace, environments)),
        rows=[(source, *(of_policy.get(env_id, "") for env_id in environments)) for source, of_policy in found.items()],
        note="What each environment pays, in %, and after the semicolon the share of the way from its baseline to its "
        "ceiling.",
    )


def misfit_lines(numbers: Numbers) -> list[str]:
    """The policies that do not fit, by reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for env_id, environment in numbers["environments"].items():
        for source, reason in environment["misfits"].items():
            by_reason.setdefault((source, reason), []).append(without_namespace(env_id))
    return [f"{source} does not fit {listed(envs)}: {reason}." for (source, reason), envs in by_reason.items()]


def notes(numbers: Numbers) -> list[str]:
    """What a reader must know before the tables."""
    without = [
        without_namespace(env_id)
        for env_id, environment in numbers["environments"].items()
        if all(p["share"] is None for p in environment["policies"].values())
    ]
    lines = [f"Left out: {text}" for text in numbers["left_out"]]
    if without:
        lines.append(
            f"No shares in {listed(without)}: the ceiling's lead over the baseline is not clear of zero on these "
            "scenes."
        )
    return lines


def methods(numbers: Numbers) -> list[str]:
    metrics = {environment["metric"]: None for environment in numbers["environments"].values()}
    return [
        "Every policy sees every scene once, and takes as many glimpses as the environment's budget has. Baselines and "
        "ceilings are those of canvit_gym.scenes.datasets.Skill, as are the scales of hand-coded policies, which "
        "experiments/studies/suite_headroom.py chose on training scenes.",
        "Share: (policy − baseline) / (ceiling − baseline) of what the environment pays, within each resample.",
        "Where glimpses have a price, hand-coded policies stop as soon as their reading is confident, at a threshold "
        "that was tuned on training scenes; the baseline stops at random; trained policies by their own stop action.",
        *(metric_named(metric).doc for metric in metrics),
        f"Intervals are 95% percentile intervals over {numbers['resamples']:,} bootstrap resamples of scenes, the same "
        "for all policies of an environment, and of seeds.",
        *(f"{name}: {effect}." for name, effect in numbers["perturbations"].items()),
    ]


def _scope(results: Numbers) -> str:
    identity = results["identity"]
    return f"{identity['num_scenes']:,} {identity['split']} scenes; {results['provenance']['time'][:10]}"


def html_page(results: Numbers, radar: str | None) -> str:
    parts = [f"<h1>{html(TITLE)}</h1><p class=scope>{html(_scope(results))}</p>"]
    if remarks := notes(results):
        parts.append("<div class=warning>" + "".join(f"<p>{html(line)}</p>" for line in remarks) + "</div>")
    parts += [
        "<h2>Shares at a glance</h2>",
        overview_table(results).html() if results["radar"] else f"<p>{NO_SHARES}</p>",
    ]
    if radar is not None:
        parts.append(figure_html(radar.encode(), "svg+xml", alt=_radar_alt(results), caption=_RADAR_CAPTION))
    perturbations = list(results["perturbations"])
    for env_id, environment in results["environments"].items():
        parts.append(f"<h2>{html(without_namespace(env_id))}: {html(environment['skill'])}</h2>")
        parts.append(environment_table(environment).html())
        if (robustness := robustness_table(environment, perturbations)) is not None:
            parts += ["<h3>Under perturbations</h3>", robustness.html()]
    if (transfer := transfer_table(results)) is not None:
        parts += ["<h2>Trained policies elsewhere</h2>", transfer.html()]
        parts.append("<ul>" + "".join(f"<li>{html(line)}</li>" for line in misfit_lines(results)) + "</ul>")
    parts.append("<h2>How it was measured</h2><ul>")
    parts += [f"<li>{html(line)}</li>" for line in methods(results)]
    parts.append(f"</ul><h2>Provenance</h2>{provenance_html(origin_rows(results['provenance']))}")
    return html_document(TITLE, parts)


NO_SHARES = "No policy has a share: no ceiling's lead over its baseline is clear of zero on these scenes."

_RADAR_CAPTION = (
    "One plot per policy, one axis per skill: the inner ring is the baseline (0), the black rim the ceiling (1). What "
    "lies beyond is drawn at the edge."
)


def _radar_alt(results: Numbers) -> str:
    return "Radar plots of the shares in the table above, one per policy: " + ", ".join(results["radar"])


def markdown_page(results: Numbers, *, has_radar: bool) -> str:
    parts = [f"# {TITLE}", markdown(_scope(results))]
    parts += [f"> {markdown(line)}" for line in notes(results)]
    parts += ["## Shares at a glance", overview_table(results).markdown() if results["radar"] else NO_SHARES]
    if has_radar:
        parts += [f"![{markdown(_radar_alt(results))}]({RADAR})", _RADAR_CAPTION]
    perturbations = list(results["perturbations"])
    for env_id, environment in results["environments"].items():
        parts.append(f"## {markdown(without_namespace(env_id))}: {markdown(environment['skill'])}")
        parts.append(environment_table(environment).markdown())
        if (robustness := robustness_table(environment, perturbations)) is not None:
            parts += ["### Under perturbations", robustness.markdown()]
    if (transfer := transfer_table(results)) is not None:
        parts += ["## Trained policies elsewhere", transfer.markdown()]
        if lines := misfit_lines(results):
            parts.append("\n".join(f"- {markdown(line)}" for line in lines))
    parts += ["## How it was measured", "\n".join(f"- {markdown(line)}" for line in methods(results))]
    rows = [f"- {markdown(name)}: {markdown_code(value)}" for name, value in origin_rows(results["provenance"])]
    parts += ["## Provenance", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def write_pages(results: Numbers, directory: Path) -> Path:
    """All files for readers; returns the path of the HTML page."""
    skills = [environment["skill"] for environment in results["environments"].values()]
    radar = radar_figure(results["radar"], skills) if results["radar"] else None
    if radar is not None:
        write_text(directory / RADAR, radar)
    write_text(directory / MARKDOWN, markdown_page(results, has_radar=radar is not None))
    write_text(directory / HTML, html_page(results, radar))
    return directory / HTML
