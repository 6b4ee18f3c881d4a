"""Is there anything to learn? Per embedded environment, a ceiling minus the best hand-coded policy without labels.

    python -m experiments.studies.suite_headroom                                   # every environment
    python -m experiments.studies.suite_headroom --envs CanViT/FashionCrowd-v0

A ceiling knows something that no policy could know: where the items lie (box_locator, window_locator), where the
reading is wrong, or, for stopping, when it is right. Unlike an oracle that tries all viewpoints, it does not know how a
glimpse will be read, so its lead is not luck.

Every candidate is tried on --tuning-scenes training scenes, and the best opponent and the best ceiling are chosen.
These two, and policies for reference, are then evaluated on --num-scenes validation scenes. Headroom is the difference
there, with a 95% interval over scenes. An environment passes if the interval is above zero; the aim is 5 points.

What pays depends on the environment: the score after the last glimpse; if it pays to know more early, the area under
its curve; if glimpses have a price (allow_stop=True), the score where the episode stops minus the price of the glimpses
taken. In the last case a policy stops as soon as its confidence reaches a threshold, which is tuned on the training
scenes. The ceiling stops as soon as the reading is right, or immediately if it never is.

Evaluations are kept in --run-dir, so that an interrupted study can continue. The results are one JSON and one Markdown
file per environment, and a table of all of them.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.intervals import with_interval
from agents.outcomes import evaluation_key
from canvit_gym.atomic import write_json, write_text
from canvit_gym.benchmark.records import policy_key, slug
from canvit_gym.command_line import GOES_ON, env_config, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.policies import make_policy
from canvit_gym.provenance import plain, provenance
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.statistics import Mean, bootstrap_interval
from canvit_gym.stopping import confidence as confidence_now
from canvit_gym.stopping import first_at_least, stopped_return, stops_when_right
from canvit_gym.suite.payoff import payoff_of
from canvit_gym.tuning import WINDOW_SCALES
from experiments.studies.kept import Look, look

_NO_MAP = (
    "coarse_to_fine", "fine_to_coarse", "saliency(scale=0.5)", "saliency(scale=0.4)", "saliency(scale=0.3)",
    "saliency(scale=(0.4, 0.3))",
)  # fmt: skip
_ITEMS, _ENTROPY, _GOAL, _GOAL_ENTROPY = (
    tuple(f"{policy}(scale={scale!r})" for scale in WINDOW_SCALES)
    for policy in ("item_probability", "entropy_greedy", "goal_probability", "goal_entropy")
)
_BOXES = tuple(
    f"box_locator(factor={factor}, jitter={jitter})"
    for factor, jitter in ((1.0, 0.0), (1.0, 0.2), (1.25, 0.2), (1.5, 0.2))
)
_WINDOWS = ("window_locator(scale=(0.5, 0.4, 0.3))", "window_locator(scale=0.4)", "window_locator(scale=(0.34, 0.24))")
CONFIDENCE = "confidence"
CONFIDENCES = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.1)
"""Candidate thresholds for stopping. At 0 an episode ends after its first glimpse; above 1 it never ends early."""


@dataclass(frozen=True)
class Compared:
    """The policies that are compared in an environment."""

    opponents: tuple[str, ...]
    """Hand-coded policies that use no labels."""
    ceilings: tuple[str, ...]
    """Policies that know where to look."""
    reference: tuple[str, ...] = ("random",)
    """Measured beside the two."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Of the environment, where the study's differ from the id's."""


STUDIES: dict[str, Compared] = {
    "CanViT/FashionSegmentation-v0": Compared((*_NO_MAP, *_ITEMS, *_ENTROPY), (*_BOXES, *_WINDOWS)),
    "CanViT/FashionClassification-v0": Compared((*_NO_MAP, *_ITEMS), _BOXES),
    "CanViT/FashionSearch-v0": Compared(
        (
            *_GOAL,
            *_GOAL_ENTROPY,
            "item_probability(scale=(0.34, 0.24))",
            "coarse_to_fine",
            "saliency(scale=0.4)",
        ),
        tuple(box.replace("box_locator", "goal_locator") for box in _BOXES),
    ),
    "CanViT/FashionCrowd-v0": Compared(
        (*_NO_MAP, *_ITEMS, *_ENTROPY, "entropy_greedy(scale=0.18)", "item_probability(scale=0.18)"),
        (*_BOXES, "box_locator(factor=0.8, jitter=0.2)", *_WINDOWS),
    ),
    "CanViT/FashionDistractors-v0": Compared((*_NO_MAP, *_ITEMS, *_ENTROPY), (*_BOXES, *_WINDOWS)),
    "CanViT/FashionOdd-v0": Compared((*_NO_MAP, *_ITEMS), _BOXES),
    "CanViT/FashionOrder-v0": Compared(
        (
            "entropy_greedy",
            "item_probability",
            "saliency",
            "raster_order",
            "center_out",
            "dependency_rank",
            "learned_order",
        ),
        ("window_locator",),
        reference=("random_order",),
    ),
    "CanViT/FashionStop-v0": Compared(
        ("saliency(scale=0.4)", "saliency(scale=0.3)", *_ITEMS, "coarse_to_fine"), _BOXES, reference=()
    ),
}


@dataclass(frozen=True)
class SuiteHeadroomConfig:
    envs: tuple[str, ...] = tuple(STUDIES)
    """Environment ids."""
    num_scenes: int = 1000
    """Validation scenes."""
    tuning_scenes: int = 3000
    """Training scenes that choose among candidates. Of 300, the best is often so by luck."""
    run_dir: Path = Path("runs/suite_headroom")
    """Evaluations so far."""
    results_dir: Path = Path("experiments/results/suite_headroom")


def look_of(spec: str, env: EnvConfig, directory: Path, *, confidence: bool) -> Look:
    """The policy on the environment's scenes; kept in `directory`.

    confidence: also measure that of every reading: the probability of the most likely class, [N, T].
    """
    return look(
        lambda: make_policy(spec, config=env, num_glimpses=env.budget),
        env,
        path=directory / f"{slug(spec)}-{env.split}-{evaluation_key(env, policy_key(spec))}.npz",
        signals={CONFIDENCE: confidence_now} if confidence else {},
    )


def stops_at_confidence(found: Look, threshold: float) -> NDArray[np.int64]:
    """[N]: the number of glimpses taken when the confidence first reaches the threshold, or all of them."""
    return first_at_least(found.signals[CONFIDENCE], threshold)


def _return(found: Look, stops: NDArray[np.int64], price: float) -> NDArray[np.float64]:
    return stopped_return(found.evaluation.scene_score(), stops, price)


def best(values: dict[str, float]) -> str:
    return max(values, key=lambda name: values[name])


def study(env_id: str, config: SuiteHeadroomConfig) -> dict[str, Any]:
    """The results of one environment as JSON values; scores are fractions."""
    who = STUDIES[env_id]
    env = env_config(env_id, {"device": "cpu", **who.kwargs})
    directory = config.run_dir / without_namespace(env_id)
    tuning = replace(env, split="training", num_scenes=config.tuning_scenes)
    measured = replace(env, split="validation", num_scenes=config.num_scenes)
    compare = _stopping if env.allow_stop else _comparison
    found = compare(who, tuning, measured, directory)
    return {
        "env": env_id,
        "budget": env.budget,
        "num_scenes": config.num_scenes,
        "tuning_scenes": config.tuning_scenes,
        "provenance": provenance(),  # after all that it lists was loaded
        **found,
    }


def _comparison(who: Compared, tuning: EnvConfig, measured: EnvConfig, directory: Path) -> dict[str, Any]:
    payoff = payoff_of(tuning)
    tried = {
        role: {spec: payoff.value(look_of(spec, tuning, directory, confidence=False).evaluation) for spec in specs}
        for role, specs in (("opponents", who.opponents), ("ceilings", who.ceilings))
    }
    chosen = {role: best(values) for role, values in tried.items()}
    looks = {spec: look_of(spec, measured, directory, confidence=False) for spec in {*chosen.values(), *who.reference}}
    paid = {spec: payoff.statistic([found.evaluation]) for spec, found in looks.items()}
    rows = {spec: bootstrap_interval(statistic).at(-1) for spec, statistic in paid.items()}
    pair = [paid[chosen[role]] for role in ("ceilings", "opponents")]
    headroom = bootstrap_interval(*pair, of=np.subtract).at(-1)
    return {
        "pays": payoff.name,
        "metric": next(iter(looks.values())).evaluation.metric,
        "opponent": chosen["opponents"],
        "ceiling": chosen["ceilings"],
        "on_training_scenes": tried,
        "policies": rows,
        "headroom": headroom,
    }


def _stopping(who: Compared, tuning: EnvConfig, measured: EnvConfig, directory: Path) -> dict[str, Any]:
    price = tuning.glimpse_cost

    def tuned(spec: str) -> tuple[float, float]:
        """The (return, threshold) of the best threshold on the training scenes."""
        found = look_of(spec, tuning, directory, confidence=True)
        returns = [(float(_return(found, stops_at_confidence(found, c), price).mean()), c) for c in CONFIDENCES]
        return max(returns)

    tried = {
        role: {spec: tuned(spec) for spec in specs}
        for role, specs in (("opponents", who.opponents), ("ceilings", who.ceilings))
    }
    opponent, locator = (max(tried[role], key=lambda s, r=role: tried[r][s]) for role in ("opponents", "ceilings"))
    values, glimpses = {}, {}
    for spec, role in ((opponent, "opponents"), (locator, "ceilings")):
        found = look_of(spec, measured, directory, confidence=True)
        stops = stops_at_confidence(found, tried[role][spec][1])
        name = f"{spec}, stops at confidence {tried[role][spec][1]:g}"
        values[name], glimpses[name] = _return(found, stops, price), float(stops.mean())
        if role == "opponents":
            stopped = stops_when_right(found.evaluation.scene_score())
            name = f"{spec}, told when the reading is right"
            values[name], glimpses[name] = _return(found, stopped, price), float(stopped.mean())
    names = list(values)
    statistics = {name: Mean(value[None, :, None]) for name, value in values.items()}
    rows = {name: bootstrap_interval(one).at(-1) | {"glimpses": glimpses[name]} for name, one in statistics.items()}
    stopping, ceiling, placed = names[0], names[1], names[2]
    return {
        "pays": payoff_of(tuning).name,
        "metric": "top-1",
        "opponent": stopping,
        "ceiling": ceiling,
        "on_training_scenes": {role: {s: list(v) for s, v in found.items()} for role, found in tried.items()},
        "policies": rows,
        "headroom": bootstrap_interval(statistics[ceiling], statistics[stopping], of=np.subtract).at(-1),
        "headroom_of_place": bootstrap_interval(statistics[placed], statistics[stopping], of=np.subtract).at(-1),
    }


def passes(result: dict[str, Any]) -> bool:
    return result["headroom"]["low"] > 0


def verdict(result: dict[str, Any]) -> str:
    if not passes(result):
        return "no: the interval is not clear of zero"
    return "yes" if result["headroom"]["value"] >= 0.05 else "yes, but less than 5 points"


def page(result: dict[str, Any]) -> str:
    """Markdown of one environment."""
    lines = [
        f"# Headroom of {result['env']}",
        "",
        f"{result['num_scenes']:,} validation scenes, {result['budget']} glimpses; {result['metric']} in %, "
        f"{result['pays']}; 95% intervals over scenes.",
        "",
        "| policy | | value |",
        "| --- | --- | --- |",
    ]
    roles = {result["opponent"]: "best without labels", result["ceiling"]: "ceiling"}
    for name, row in sorted(result["policies"].items(), key=lambda item: -item[1]["value"]):
        shown = f", {row['glimpses']:.1f} glimpses" if "glimpses" in row else ""
        lines.append(f"| {name} | {roles.get(name, '')} | {with_interval(row, '{:.1f}', 100)}{shown} |")
    lines += ["", f"Headroom: {with_interval(result['headroom'], '{:+.1f}', 100)} points. Passes: {verdict(result)}."]
    if "headroom_of_place" in result:
        lead = with_interval(result["headroom_of_place"], "{:+.1f}", 100)
        lines.append(f"A locator that stops by its confidence: {lead} points.")
    for role, title in (("opponents", "without labels"), ("ceilings", "that are told where to look")):
        tried = result["on_training_scenes"][role]
        values = {spec: v[0] if isinstance(v, list) else v for spec, v in tried.items()}
        shown = ", ".join(f"{s} {100 * v:.1f}" for s, v in sorted(values.items(), key=lambda item: -item[1]))
        lines += ["", f"Policies {title}, on {result['tuning_scenes']} training scenes: {shown}."]
    return "\n".join(lines) + "\n"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of all environments."""
    lines = [
        "# Headroom of the embedded environments",
        "",
        "A ceiling that is told where to look (or when to stop) minus the best hand-coded policy without labels, on "
        f"{results[0]['num_scenes']:,} validation scenes, in points, with 95% intervals. Written by",
        "",
        "    python -m experiments.studies.suite_headroom",
        "",
        "| environment | glimpses | metric, % | best without labels | | ceiling | | headroom | passes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        rows = result["policies"]
        one, other = result["opponent"], result["ceiling"]
        cells = (
            without_namespace(result["env"]), str(result["budget"]), f"{result['metric']}, {result['pays']}", one,
            f"{100 * rows[one]['value']:.1f}", other, f"{100 * rows[other]['value']:.1f}",
            with_interval(result["headroom"], "{:+.1f}", 100), verdict(result),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(config: SuiteHeadroomConfig) -> None:
    if unknown := sorted(set(config.envs) - set(STUDIES)):
        raise ValueError(f"no study of {', '.join(unknown)}; there are: {', '.join(STUDIES)}")
    for env_id in config.envs:
        result = study(env_id, config)
        name = without_namespace(env_id)
        write_json(config.results_dir / f"{name}.json", plain(result))
        write_text(config.results_dir / f"{name}.md", page(result))
        print(page(result), flush=True)
    paths = [config.results_dir / f"{env_id.rpartition('/')[2]}.json" for env_id in STUDIES]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    write_text(config.results_dir / "README.md", table(found))


if __name__ == "__main__":
    run_command(main, SuiteHeadroomConfig, description=__doc__, if_interrupted=GOES_ON)
