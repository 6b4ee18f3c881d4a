"""Report trained policies on the test scenes: tables of algorithms x environments, and the numbers as JSON.

    python -m agents.report --run-dir runs/matrix

reads the finished runs in RUN_DIR/ALGO/ENVIRONMENT/seed-SEED, including those of `agents.train`, evaluates those that
`agents.matrix` has not evaluated, and writes agents/trained/ENVIRONMENT.json and, from all such files,
agents/trained/README.md. Environments that the suite has no opponent and no ceiling for are left out, which the page
says.

Beside the JSON file, ENVIRONMENT.npz holds what the payoff of every run is computed from, scene by scene. With it,
earlier runs whose directories are gone still count: those of other algorithms and seeds stay in the report, and new
runs are compared with them on the same scenes. Runs of another recipe are not averaged: --drop leaves out the earlier
ones. Environments without runs in RUN_DIR stay as they are, unless --again names them: after a change of the suite's
opponents.

Each run counts with its best policy by validation and with what its environment pays (canvit_gym.suite.payoff). An
algorithm's value is the interquartile mean over its runs. A 95% interval resamples runs and test scenes
(canvit_gym.statistics), together with those of the policy that it is compared to. The opponent and the ceiling are
those of the suite (canvit_gym.scenes.datasets.Skill), with scales that were chosen on training scenes; here they are
measured on the same test scenes.
"""

import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agents.algorithms import DEFAULT
from agents.finished_runs import Run, find_runs, finished
from agents.intervals import with_interval
from agents.learning_curves import learning_curves, short_name
from agents.outcomes import DETERMINISTIC, SAMPLED, model_and_scenes, of_hand_coded
from agents.reported import Reported, load_reported, of_runs, pooled, save_counts
from agents.run_directory import FAILED, RESULT, provenance_of_runs
from canvit_gym.atomic import write_json, write_text
from canvit_gym.benchmark.comparison import share_of_lead
from canvit_gym.command_line import GOES_ON, env_config, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation
from canvit_gym.scenes.datasets import DATASETS, Skill, without_namespace
from canvit_gym.statistics import Estimate, OverRuns, bootstrap_interval, run_improvement_interval
from canvit_gym.stopping import named
from canvit_gym.suite.payoff import payoff_of, stacked
from canvit_gym.suite.plan import stop_rules

TRAINED = Path(__file__).with_name("trained")
ENOUGH_SEEDS = 3
"""An algorithm with fewer is only called the best of an environment if none has as many."""
HAND_CODED = "hand_coded"
"""The directory of evaluations of hand-coded policies, beside those of the algorithms."""


INTRODUCTION = """# Trained policies

What learned policies are worth on test scenes that no training, tuning or choice has seen. Written by

    python -m agents.report --run-dir RUN_DIR

from runs of `agents.train` and `agents.matrix`. The best seed of PPO by validation, of these runs or of an earlier set
of five (its card says which), is in the package: `load_policy("FashionStop-v0/ppo")`. Every number, the commands of all
runs, where newer ones were trained and evaluated, and the versions and the machine of one run of each algorithm are in
the JSON files beside this page. The npz files hold what the payoffs of newer runs are computed from, scene by scene, so
that seeds can be added to them (`agents.report`).

- **Value**: what the environment pays, of the best policy of each run, with its most likely viewpoints (or *sampled*
  ones); the interquartile mean over seeds. 95% intervals resample seeds and scenes; differences are paired by scene.
  The best policy has the lowest validation loss after the last glimpse (on FashionOrder, where the area under the
  score's curve pays, the smallest area under the loss's; where episodes can be stopped, the largest soft score minus
  the price).
- **Best hand-coded**: the best on training scenes of all that were tried (`experiments.studies.suite_headroom`); on
  Classification one that is better on validation scenes. On test scenes another may score more.
- **Better than**: the probability that a run is better than the best hand-coded policy without labels, or than a run of
  PPO, on the same scenes. Empty for runs that were never compared with the present ones of PPO.
- **Share**: how much of the way from that hand-coded policy to the ceiling the policy goes. A ceiling knows where to
  look or, where episodes can be stopped, when the reading is right. Where the way is short, the interval is wide, and
  has no end (∞) if the ceiling is not ahead in some resample.
- **90%**: when validation first reached 90% of the run's largest gain over random viewpoints, in decisions and in
  minutes of processor time, validations included; medians over seeds. Runs on a GPU do not count among the minutes.
- **Glimpses**: those of training, with those that a detector or a stop learned from before, and those that a warm
  start or an oracle tried with the labels at hand. On which environments a learner begins from a detector, a learned
  stop, a warm start or a hand-coded prior is in `agents/hyperparameters/`, and in the JSON files. Where an entry has
  changed since, the JSON file has what a run used.

"""

ROUNDING = 1e-3
"""By how much a score (a fraction) may differ on another machine, where sums are rounded otherwise."""
LEARNING = "learning.svg"
CURVES = f"""![Validation payoff against glimpses of training, by environment and algorithm]({LEARNING})

*Learning curves: what the environment pays on validation scenes; medians and ranges of the seeds. Curves begin after
the glimpses that were taken before: by a detector, a stop that is learned or a warm start. Each run counts with its
best validation, not with its last.*"""


@dataclass(frozen=True)
class ReportConfig:
    run_dir: Path
    """Directory with the runs of agents.matrix or agents.train: ALGO/ENVIRONMENT/seed-SEED."""
    output_dir: Path = TRAINED
    test_scenes: int | None = None
    """None: all."""
    drop: tuple[str, ...] = ()
    """Algorithms (directories in RUN_DIR) whose earlier runs in the output are left out, on environments with runs in
    RUN_DIR or named by --again."""
    again: tuple[str, ...] = ()
    """Ids of environments whose earlier runs in the output are compared with the suite's present opponent and ceiling,
    even without new runs in RUN_DIR."""


def skill_of(env_id: str) -> Skill | None:
    """The opponents and the ceiling of an environment of the suite; None for all others."""
    return DATASETS[env_config(env_id, {}).dataset].skill


Stopping = tuple[str, str | None]
"""A hand-coded policy and where it stops, as `of_hand_coded` takes them."""


def compared_with(skill: Skill, *, allow_stop: bool) -> tuple[Stopping, Stopping, tuple[Stopping, ...]]:
    """The opponent, the ceiling and other ceilings."""
    rules = stop_rules(skill, allow_stop=allow_stop)
    opponent, ceiling = (skill.opponents[0], rules["opponent"]), (skill.ceiling, rules["ceiling"])
    return opponent, ceiling, () if skill.locator is None else ((skill.locator, rules["opponent"]),)


def write_environment(env_id: str, runs: dict[str, list[Run]], config: ReportConfig) -> None:
    """Write the files of one environment: its numbers, and what the payoff of every run is computed from.

    Raises:
        ValueError: the output has earlier runs that these cannot be pooled with.
    """
    name, skill = without_namespace(env_id), skill_of(env_id)
    assert skill is not None, env_id
    env = replace(env_config(env_id, {}), split="test", num_scenes=config.test_scenes)
    hand_coded = partial(of_hand_coded, directory=config.run_dir / HAND_CODED / name)
    start = payoff_of(env).value(hand_coded(skill.baseline, replace(env, split="validation", num_scenes=None)))
    new = {algo: of_runs(of_algo, env, start=start, root=config.run_dir) for algo, of_algo in runs.items()}
    failed = _failed(config.run_dir, name)

    numbers, counts = config.output_dir / f"{name}.json", config.output_dir / f"{name}.npz"
    scenes, as_before, before = model_and_scenes(env), {}, {}
    if numbers.is_file():
        before = json.loads(numbers.read_text(encoding="utf-8"))
        entries = {algo: entry for algo, entry in before["algorithms"].items() if algo not in config.drop}
        earlier = load_reported(counts, entries, scenes=scenes)
        as_before = {algo: entry for algo, entry in entries.items() if algo not in earlier}
        ends = [named(*end) for end in compared_with(skill, allow_stop=env.allow_stop)[:2]]
        _require_comparable(before, as_before, new, num_scenes=scenes["num_scenes"], ends=ends)
        new = pooled(new, earlier, where=numbers)
        failed = {algo: why for algo, why in before["failed"].items() if algo not in (*new, *config.drop)} | failed
    result = of_environment(env_id, env, new, hand_coded) | {"random_on_validation": start, "failed": failed}
    if as_before:
        _require_same_values(before, result, cure=f"pass --drop {' '.join(as_before)} to leave the earlier runs out")
    for algo, entry in as_before.items():
        than_ppo = None if DEFAULT in new else entry["better_than_ppo"]  # PPO's runs may be others by now
        result["algorithms"][algo] = entry | {"better_than_ppo": than_ppo}
    result["provenance"] = provenance_of_runs(config.run_dir)
    save_counts(counts, new, scenes=scenes)
    write_json(numbers, result)


def _require_comparable(
    before: dict[str, Any],
    as_before: Mapping[str, Any],
    new: Mapping[str, Reported],
    *,
    num_scenes: int,
    ends: Sequence[str],
) -> None:
    """Raise ValueError if earlier entries without counts cannot stay beside the new runs, whose opponent and ceiling
    are `ends`."""
    cure = f"pass --drop {' '.join(as_before)} to leave them out"
    if both := sorted(set(as_before) & set(new)):
        raise ValueError(
            f"the earlier runs of {', '.join(both)} on {before['env']} cannot be averaged with the new ones, since "
            f"their counts were not kept: {cure}"
        )
    if as_before and before["test_scenes"] != num_scenes:
        raise ValueError(
            f"the earlier runs on {before['env']} were tested on {before['test_scenes']} scenes, the new ones on "
            f"{num_scenes}: {cure}"
        )
    if as_before and (compared := [before[end]["name"] for end in ("opponent", "ceiling")]) != list(ends):
        raise ValueError(
            f"the earlier runs on {before['env']} were compared with {' and '.join(compared)}, the new ones with "
            f"{' and '.join(ends)}: {cure}"
        )


def _require_same_values(before: dict[str, Any], now: dict[str, Any], *, cure: str) -> None:
    """Raise ValueError if opponent or ceiling score other than before: the checkpoint or the scenes have changed."""
    for end in ("opponent", "ceiling"):
        then, today = before[end]["value"]["value"], now[end]["value"]["value"]
        if abs(then - today) > ROUNDING:
            raise ValueError(
                f"the {end} of the earlier runs on {before['env']} scored {100 * then:.2f}, now it scores "
                f"{100 * today:.2f}: {cure}"
            )


def of_environment(
    env_id: str, env: EnvConfig, runs: Mapping[str, Reported], hand_coded: Callable[..., Evaluation]
) -> dict[str, Any]:
    """What runs are worth on one environment, as JSON values; scores are fractions.

    hand_coded: (policy, environment, stop=...) -> its evaluation.
    """
    skill, payoff = skill_of(env_id), payoff_of(env)
    assert skill is not None, env_id
    *ends, locators = compared_with(skill, allow_stop=env.allow_stop)
    evaluations = [hand_coded(spec, env, stop=stop) for spec, stop in ends]
    metric = evaluations[0].measure
    opponent, ceiling = (OverRuns([payoff.statistic([one])]) for one in evaluations)
    opponent_name, ceiling_name = (named(*end) for end in ends)
    others = {
        named(spec, stop): _at(bootstrap_interval(payoff.statistic([hand_coded(spec, env, stop=stop)])))
        for spec, stop in locators
    }

    def over_runs(one: Reported, how: str) -> OverRuns | None:
        kept = [stacked([counts[how]]) for counts in one.counts if how in counts]
        return OverRuns([payoff.of_counts(metric, counts) for counts in kept]) if kept else None

    ppo = over_runs(runs[DEFAULT], DETERMINISTIC) if DEFAULT in runs else None
    entries = {}
    for algo, one in runs.items():
        mine, sampled = over_runs(one, DETERMINISTIC), over_runs(one, SAMPLED)
        assert mine is not None, algo
        entries[algo] = {
            **one.recipe,
            "value": _at(bootstrap_interval(mine)),
            "sampled": _at(bootstrap_interval(sampled)) if sampled else None,
            "minus_opponent": _at(bootstrap_interval(mine, opponent, of=np.subtract)),
            "better_than_opponent": _at(run_improvement_interval(mine, opponent)),
            "better_than_ppo": _at(run_improvement_interval(mine, ppo)) if ppo and algo != DEFAULT else None,
            "share_of_headroom": _at(bootstrap_interval(mine, opponent, ceiling, of=share_of_lead)),
            "runs": one.runs,
        }
    return {
        "env": env_id,
        "budget": env.budget,
        "metric": metric.name,
        "pays": payoff.name,
        "test_scenes": opponent.num_scenes,
        "opponent": {"name": opponent_name, "value": _at(bootstrap_interval(opponent))},
        "ceiling": {"name": ceiling_name, "value": _at(bootstrap_interval(ceiling))},
        "headroom": _at(bootstrap_interval(ceiling, opponent, of=np.subtract)),
        "locators": others,
        "algorithms": entries,
    }


def _at(estimate: Estimate) -> dict[str, float | None]:
    """An estimate as JSON. None stands for NaN: a share has no bounds if the ceiling does not lead in some resample."""
    return {name: number if np.isfinite(number) else None for name, number in estimate.at(0).items()}


def _failed(root: Path, name: str) -> dict[str, str]:
    """Algorithm -> the reason why it finished no run."""
    found = {}
    for path in sorted(root.glob(f"*/{name}/seed-*/{FAILED}")):
        if not list(path.parents[1].glob(f"seed-*/{RESULT}")):
            found[path.parents[2].name] = json.loads(path.read_text(encoding="utf-8"))["error"]
    return found


def page(results: list[dict[str, Any]], *, left_out: Sequence[str] = ()) -> str:
    """Markdown of all environments. left_out: ids of environments with runs that nothing can be compared with."""
    sections = "\n\n".join("\n".join(section(result)) for result in results)
    note = f"\n\nLeft out, being outside of the suite: {', '.join(left_out)}." if left_out else ""
    tables = "\n".join([*summary(results), "", *overview(results)])
    return f"{INTRODUCTION}{tables}{note}\n\n{CURVES}\n\n{sections}\n"


def summary(results: list[dict[str, Any]]) -> list[str]:
    """A line per environment about its best algorithm, of those with enough seeds."""
    lines = [
        "| environment | best algorithm (seeds) | minus the best hand-coded, points | share of the way to the ceiling "
        "|",
        "| --- | --- | --- | --- |",
    ]
    for result in results:
        algorithms = result["algorithms"]
        tried = {name: entry for name, entry in algorithms.items() if len(entry["runs"]) >= ENOUGH_SEEDS} or algorithms
        name, best = max(tried.items(), key=lambda item: item[1]["value"]["value"])
        lead = _bold_if_clear(shown(best["minus_opponent"], signed=True), best)
        lines.append(
            f"| {without_namespace(result['env'])} | {_titled(name, best)} ({len(best['runs'])}) | "
            f"{lead} | {shown(best['share_of_headroom'], digits=0)}% |"
        )
    return [*lines, "", "In bold: the interval is clear of zero."]


def overview(results: list[dict[str, Any]]) -> list[str]:
    """Algorithms x environments: points above the best hand-coded policy, and the number of seeds."""
    names = [short_name(result) for result in results]
    lines = [
        "Points above the best hand-coded policy without labels (number of seeds), by algorithm and environment:",
        "",
        f"| algorithm | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
    ]
    for name, title in ranked(results).items():
        leads = [_lead(result["algorithms"].get(name)) for result in results]
        lines.append(f"| {title} | {' | '.join(leads)} |")
    return [*lines, "", "In bold: the 95% interval is above zero. Intervals over one or two seeds are those of scenes."]


def ranked(results: list[dict[str, Any]]) -> dict[str, str]:
    """Algorithm's directory -> its title, from the best one to the worst by the mean lead over environments; where an
    algorithm is missing it counts as the worst there."""
    titles = {name: _titled(name, entry) for result in results for name, entry in sorted(result["algorithms"].items())}
    worst = [min(map(_gain, result["algorithms"].values())) for result in results]

    def standing(name: str) -> float:
        entries = [result["algorithms"].get(name) for result in results]
        return statistics.mean(_gain(entry) if entry else low for entry, low in zip(entries, worst, strict=True))

    return {name: titles[name] for name in sorted(titles, key=standing, reverse=True)}


def _gain(entry: dict[str, Any]) -> float:
    return entry["minus_opponent"]["value"]


def _bold_if_clear(lead: str, entry: dict[str, Any]) -> str:
    return f"**{lead}**" if entry["minus_opponent"]["low"] > 0 else lead


def _lead(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    return f"{_bold_if_clear(f'{100 * _gain(entry):+.1f}', entry)} ({len(entry['runs'])})"


def section(result: dict[str, Any]) -> list[str]:
    opponent, ceiling = result["opponent"], result["ceiling"]
    lines = [
        f"## {without_namespace(result['env'])}",
        "",
        f"{result['test_scenes']:,} test scenes, {result['budget']} glimpses; {result['metric']} in %, "
        f"{result['pays']}. Best hand-coded without labels: {opponent['name']}, {shown(opponent['value'])}. "
        f"Ceiling: {ceiling['name']}, {shown(ceiling['value'])}; headroom "
        f"{shown(result['headroom'], signed=True)}."
        + "".join(f" {spec}: {shown(value)}." for spec, value in result.get("locators", {}).items()),
        "",
        "| algorithm | seeds | value | sampled | minus hand-coded | better than hand-coded | better than PPO "
        "| share, % | 90%: decisions, minutes | decisions | glimpses |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in sorted(result["algorithms"].items(), key=lambda item: -item[1]["value"]["value"]):
        cells = (
            _titled(name, entry),
            str(len(entry["runs"])),
            shown(entry["value"]),
            shown(entry["sampled"]),
            shown(entry["minus_opponent"], signed=True),
            shown(entry["better_than_opponent"], digits=2, factor=1),
            shown(entry["better_than_ppo"], digits=2, factor=1),
            shown(entry["share_of_headroom"], digits=0),
            _reached(entry["runs"]),
            f"{entry['decisions']:,}",
            f"{entry['glimpses']:,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if result["failed"]:
        lines += ["", "Not trained here, with the reason:", ""]
    for reason in dict.fromkeys(result["failed"].values()):
        lines.append(f"- {', '.join(name for name, why in result['failed'].items() if why == reason)}: {reason}")
    values = "; ".join(
        f"{_titled(name, entry)} " + ", ".join(f"{100 * run['values']['deterministic']:.1f}" for run in entry["runs"])
        for name, entry in result["algorithms"].items()
    )
    return [*lines, "", f"Seed by seed: {values}."]


def _titled(name: str, entry: dict[str, Any]) -> str:
    return entry["title"] if name == entry["algo"] else f"{entry['title']} ({name})"


def _reached(runs: list[dict[str, Any]]) -> str:
    """Medians over the runs that gained."""
    decisions = [run["decisions_to_90"] for run in runs if run["decisions_to_90"] is not None]
    if not decisions:
        return "no gain"
    minutes = [run["minutes_to_90"] for run in runs if run["minutes_to_90"] is not None and run.get("gpu") is None]
    return f"{statistics.median(decisions):,.0f}" + (f", {statistics.median(minutes):.1f}" if minutes else "")


def shown(
    estimate: dict[str, float | None] | None, *, signed: bool = False, digits: int = 1, factor: float = 100
) -> str:
    """An estimate of `_at` with its interval."""
    if estimate is None:
        return ""
    beyond = {"value": np.nan, "low": -np.inf, "high": np.inf}  # JSON has no infinities
    numbers = {name: end if (number := estimate[name]) is None else number for name, end in beyond.items()}
    text = with_interval(numbers, f"{{:{'+' if signed else ''}.{digits}f}}", factor)
    return text.replace("+inf", "∞").replace("inf", "∞").replace("nan", "?")


def main(config: ReportConfig) -> None:
    config = replace(config, run_dir=config.run_dir.expanduser())
    env_ids = sorted({run["env"] for _, run in finished(config.run_dir)} | set(config.again))
    if not env_ids:
        raise FileNotFoundError(
            f"{config.run_dir} holds no finished run: train with python -m agents.matrix, or with "
            f"python -m agents.train --run-dir {config.run_dir}/ppo/FashionSearch-v0/seed-0"
        )
    left_out = [env_id for env_id in env_ids if skill_of(env_id) is None]  # before anything is evaluated
    if left_out == env_ids:
        raise ValueError(
            f"{config.run_dir} only holds runs of {', '.join(env_ids)}, which the suite has no opponent and no ceiling "
            "for: compare them with canvit-gym benchmark --learned"
        )
    for env_id in config.again:
        if not (numbers := config.output_dir / f"{without_namespace(env_id)}.json").is_file():
            raise FileNotFoundError(f"--again {env_id}: there is no {numbers} with earlier runs")
    runs = find_runs(config.run_dir, config.test_scenes, left_out=left_out)
    for env_id in env_ids:
        if env_id not in left_out:
            write_environment(env_id, runs.get(env_id, {}), config)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(config.output_dir.glob("*-v*.json"))]
    write_text(config.output_dir / "README.md", page(results, left_out=left_out))
    write_text(config.output_dir / LEARNING, learning_curves(results, ranked(results)))
    print("\n".join(summary(results)))
    if left_out:
        print(f"Left out, being outside of the suite: {', '.join(left_out)}.")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command(main, ReportConfig, description=__doc__, if_interrupted=GOES_ON)
