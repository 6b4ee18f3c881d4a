"""Report trained policies on the test scenes: tables of algorithms x environments, and the numbers as JSON.

    python -m agents.report --run-dir runs/matrix

reads the finished runs in RUN_DIR/ALGO/ENVIRONMENT/seed-SEED, including those of `agents.train`, evaluates those that
`agents.matrix` has not evaluated, and writes agents/trained/ENVIRONMENT.json and, from all such files,
agents/trained/README.md. Numbers of environments without runs in RUN_DIR stay as they are. Environments that the suite
has no opponent and no ceiling for are left out, which the page says.

Each run counts with its best policy by validation and with what its environment pays (canvit_gym.suite.payoff). An
algorithm's value is the interquartile mean over its runs. A 95% interval resamples runs and test scenes
(canvit_gym.statistics), together with those of the policy that it is compared to. The opponent and the ceiling are
those of the suite (canvit_gym.scenes.datasets.Skill), with scales that were chosen on training scenes; here they are
measured on the same test scenes.
"""

import json
import logging
import shlex
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.algorithms import DEFAULT, find_algorithm
from agents.clock import read_times
from agents.intervals import with_interval
from agents.matrix import tested
from agents.outcomes import of_hand_coded, pays_of_curve
from agents.run_directory import CLOCK, CONFIG, FAILED, PROVENANCE, RESULT
from canvit_gym.atomic import write_json, write_text
from canvit_gym.benchmark.comparison import share_of_lead
from canvit_gym.command_line import GOES_ON, env_config, run_command
from canvit_gym.config import EnvConfig, override
from canvit_gym.evaluation import Evaluation
from canvit_gym.policies.learned import load_record
from canvit_gym.provenance import provenance
from canvit_gym.scenes.datasets import DATASETS, Skill
from canvit_gym.statistics import Estimate, OverRuns, bootstrap_interval, run_improvement_interval
from canvit_gym.stopping import named
from canvit_gym.suite.payoff import payoff_of
from canvit_gym.suite.plan import stop_rules

log = logging.getLogger(__name__)

TRAINED = Path(__file__).with_name("trained")
REACHED = 0.9
"""The share of its final gain over random viewpoints after which an algorithm counts as having learned."""
ENOUGH_SEEDS = 3
"""An algorithm with fewer is only called the best of an environment if none has as many."""
_LOCATOR = "box_locator(factor=1.25, jitter=0.2)"
"""Measured as well where the ceiling is told when to stop, but not where to look."""
HAND_CODED = "hand_coded"
"""The directory of evaluations of hand-coded policies, beside those of the algorithms."""


INTRODUCTION = """# Trained policies

What learned policies are worth on test scenes that no training, tuning or choice has seen. Written by

    python -m agents.report --run-dir RUN_DIR

from runs of `agents.train` and `agents.matrix`. The seed of PPO that is best by validation is in the package:
`load_policy("FashionStop-v0/ppo")`. Every number, the commands of all runs, where each was trained and evaluated, and
the versions and the machine of one run of each algorithm are in the JSON files beside this page.

- **Value**: what the environment pays, of the best policy of each run, with its most likely viewpoints (or *sampled*
  ones); the interquartile mean over seeds. 95% intervals resample seeds and scenes; differences are paired by scene.
  The best policy has the lowest validation loss after the last glimpse (where only the order counts, the smallest area
  under its curve; where episodes can be stopped, the largest soft score minus the price).
- **Best hand-coded**: the best on training scenes of all that were tried (`experiments.studies.suite_headroom`). On
  test scenes another may score more.
- **Better than**: the probability that a run is better than the best hand-coded policy without labels, or than a run of
  PPO, on the same scenes.
- **Share**: how much of the way from that hand-coded policy to the ceiling the policy goes. A ceiling knows where to
  look or, where episodes can be stopped, when the reading is right. Where the way is short, the interval is wide.
- **90%**: when validation first reached 90% of the run's final gain over random viewpoints, in decisions and in minutes
  of processor time, validations included; medians over seeds. Runs on a GPU do not count among the minutes.
- **Glimpses**: those of training, with those that a detector learned from and those that a warm start or an oracle
  tried with the labels at hand. On which environments a learner begins from a detector, a warm start or a hand-coded
  prior is in `agents/hyperparameters/`, and in the JSON files.

"""


@dataclass(frozen=True)
class ReportConfig:
    run_dir: Path
    """Directory with the runs of agents.matrix or agents.train: ALGO/ENVIRONMENT/seed-SEED."""
    output_dir: Path = TRAINED
    test_scenes: int | None = None
    """None: all."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    directory: Path
    seed: int
    config: dict[str, Any]
    result: dict[str, Any]
    evaluations: dict[str, Evaluation]


def skill_of(env_id: str) -> Skill | None:
    """The opponents and the ceiling of an environment of the suite; None for all others."""
    return DATASETS[env_config(env_id, {}).dataset].skill


def _finished(root: Path, *, algo: str = "*", name: str = "*") -> list[tuple[Path, dict[str, Any]]]:
    """(directory, configuration) of the finished runs."""
    directories = [path.parent for path in sorted(root.glob(f"{algo}/{name}/seed-*/{RESULT}"))]
    return [(path, json.loads((path / CONFIG).read_text(encoding="utf-8"))) for path in directories]


def find_runs(
    root: Path, num_scenes: int | None, *, algo: str = "*", name: str = "*", left_out: Sequence[str] = ()
) -> dict[str, dict[str, list[Run]]]:
    """Environment -> algorithm's directory -> finished runs, by seed. Evaluates those that have not been evaluated.

    left_out: ids of environments to leave out.

    Raises:
        ValueError: runs of one algorithm differ in more than their seed.
    """
    found: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for directory, config in _finished(root, algo=algo, name=name):
        if config["env"] in left_out:
            continue
        log.info("%s", directory)
        run = Run(
            directory=directory,
            seed=config["seed"],
            config=config,
            result=json.loads((directory / RESULT).read_text(encoding="utf-8")),
            evaluations=tested(directory, num_scenes=num_scenes),
        )
        found[config["env"]][directory.parents[1].name].append(run)
    for env_id, of_algorithms in found.items():
        for name, runs in of_algorithms.items():
            runs.sort(key=lambda run: run.seed)
            _require_alike(env_id, name, runs)
    return found


def _require_alike(env_id: str, name: str, runs: list[Run]) -> None:
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{name} on {env_id} has seeds {seeds}: every seed may be there once")
    settings = [_settings(run.config) for run in runs]
    for key, first in settings[0].items():
        for run, own in zip(runs, settings, strict=True):
            if own[key] != first:
                raise ValueError(
                    f"{runs[0].directory} and {run.directory} differ in {key}: {first!r} and {own[key]!r}. Runs "
                    "that are averaged must be alike but for their seeds; move one of them to another directory"
                )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What runs that are averaged have in common. How often they were validated is part of it: each run counts with
    the best policy that was validated. A hyperparameter that is newer than a run had the value that is now its default.
    """
    hyperparameters = find_algorithm(config["algo"]).hyperparameters(**config["hyperparameters"]).to_json()
    shared = ("algo", "env_kwargs", "total_timesteps", "eval_every", "eval_scenes")
    return {key: config[key] for key in shared} | {"hyperparameters": hyperparameters}


def learning(env: EnvConfig, run: Run, start: float) -> dict[str, Any]:
    """When validation first reached REACHED of the run's final gain over `start`; None if there was no gain."""
    evaluations = run.result["evaluations"]
    values = [pays_of_curve(env, entry) for entry in evaluations]
    decisions = [entry["num_timesteps"] for entry in evaluations]
    total = run.result["num_timesteps"]
    times = read_times(run.directory / CLOCK)
    minutes = None if times is None else times["processor_seconds"][-1] / 60
    result: dict[str, Any] = {
        "validation": {"decisions": decisions, "values": values},
        "decisions": total,
        "minutes": minutes,
        "wall_minutes": (run.result["seconds"] if times is None else times["seconds"][-1]) / 60,
        "decisions_to_90": None,
        "minutes_to_90": None,
    }
    if not values or max(values) <= start:
        return result
    place = next(i for i, v in enumerate(values) if v >= start + REACHED * (max(values) - start))
    result["decisions_to_90"] = decisions[place]
    if times is not None and decisions[place] in times["num_timesteps"]:
        result["minutes_to_90"] = times["processor_seconds"][times["num_timesteps"].index(decisions[place])] / 60
    return result


Stopping = tuple[str, str | None]
"""A hand-coded policy and where it stops, as `of_hand_coded` takes them."""


def compared_with(skill: Skill, *, allow_stop: bool) -> tuple[Stopping, Stopping, tuple[Stopping, ...]]:
    """The opponent, the ceiling and other ceilings."""
    rules = stop_rules(skill, allow_stop=allow_stop)
    opponent, ceiling = (skill.opponents[0], rules["opponent"]), (skill.ceiling, rules["ceiling"])
    return opponent, ceiling, ((_LOCATOR, rules["opponent"]),) if skill.ceiling_stops_when_right else ()


def of_environment(env_id: str, runs: dict[str, list[Run]], config: ReportConfig) -> dict[str, Any]:
    """All numbers of one environment, as JSON values; scores are fractions."""
    name, skill = env_id.rpartition("/")[2], skill_of(env_id)
    assert skill is not None, env_id
    env = replace(env_config(env_id, {}), split="test", num_scenes=config.test_scenes)
    payoff = payoff_of(env)
    *ends, locators = compared_with(skill, allow_stop=env.allow_stop)
    kept = config.run_dir / HAND_CODED / name
    hand_coded = [of_hand_coded(spec, env, stop=stop, directory=kept) for spec, stop in ends]
    opponent, ceiling = (OverRuns([payoff.statistic([one])]) for one in hand_coded)
    opponent_name, ceiling_name = (named(*end) for end in ends)
    others = {
        named(spec, stop): bootstrap_interval(
            payoff.statistic([of_hand_coded(spec, env, stop=stop, directory=kept)])
        )
        for spec, stop in locators
    }  # fmt: skip
    on_validation = replace(env, split="validation", num_scenes=None)
    start = payoff.value(of_hand_coded(skill.baseline, on_validation, directory=kept))
    algorithms = {
        algo: OverRuns([payoff.statistic([run.evaluations["deterministic"]]) for run in of_algo])
        for algo, of_algo in runs.items()
    }
    entries, origin = {}, provenance()
    for algo, of_algo in runs.items():
        mine = algorithms[algo]
        sampled = [payoff.statistic([run.evaluations["sampled"]]) for run in of_algo if "sampled" in run.evaluations]
        entries[algo] = {
            **_recipe(of_algo),
            "value": _at(bootstrap_interval(mine)),
            "sampled": _at(bootstrap_interval(OverRuns(sampled))) if sampled else None,
            "minus_opponent": _at(bootstrap_interval(mine, opponent, of=np.subtract)),
            "better_than_opponent": _at(run_improvement_interval(mine, opponent)),
            "better_than_ppo": _at(run_improvement_interval(mine, algorithms[DEFAULT]))
            if DEFAULT in algorithms and algo != DEFAULT
            else None,
            "share_of_headroom": _at(bootstrap_interval(mine, opponent, ceiling, of=share_of_lead)),
            "runs": [_run(env, run, start, config.run_dir) for run in of_algo],
        }
    return {
        "env": env_id,
        "budget": env.budget,
        "metric": hand_coded[0].metric,
        "pays": payoff.name,
        "test_scenes": opponent.num_scenes,
        "random_on_validation": start,
        "opponent": {"name": opponent_name, "value": _at(bootstrap_interval(opponent))},
        "ceiling": {"name": ceiling_name, "value": _at(bootstrap_interval(ceiling))},
        "headroom": _at(bootstrap_interval(ceiling, opponent, of=np.subtract)),
        "locators": {spec: _at(found) for spec, found in others.items()},
        "algorithms": entries,
        "failed": _failed(config.run_dir, name),
        "provenance": origin | {"command": without_root(origin["command"], config.run_dir)},
    }


def _at(estimate: Estimate) -> dict[str, float | None]:
    """An estimate as JSON. None stands for NaN: a share has no bounds if the ceiling does not lead in some resample."""
    return {name: number if np.isfinite(number) else None for name, number in estimate.at(0).items()}


def _recipe(runs: list[Run]) -> dict[str, Any]:
    config = runs[0].config
    algorithm = find_algorithm(config["algo"])
    hyper = algorithm.hyperparameters(**config["hyperparameters"])
    record = load_record(runs[0].directory / "best")
    decisions = runs[0].result["num_timesteps"]  # at least as many as asked for: the last rollout is a whole one
    return {
        "algo": config["algo"],
        "title": algorithm.title,
        "decisions": decisions,
        "glimpses": hyper.glimpses(decisions),
        "env_kwargs": override(hyper.env_kwargs, config["env_kwargs"]),
        "hyper": config["hyper"],
        "hyperparameters": config["hyperparameters"],
        "provenance": {key: record.provenance[key] for key in ("versions", "git", "machine")},
    }


def without_root(command: str, root: Path) -> str:
    """The command without the directories of the machine that ran it, as it is printed for others.

    >>> without_root("python -m agents.matrix --run-dir m --algos ppo", Path("m"))
    'python -m agents.matrix --run-dir runs --algos ppo'
    """

    def shared(word: str) -> str:
        option, equals, value = word.rpartition("=")
        for known in {str(root), str(root.resolve())}:
            if value == known or value.startswith(f"{known.rstrip('/')}/"):
                return f"{option}{equals}runs{value[len(known.rstrip('/')) :]}"
        return word

    return shlex.join(map(shared, shlex.split(command)))


def _run(env: EnvConfig, run: Run, start: float, root: Path) -> dict[str, Any]:
    record = load_record(run.directory / "best")
    commands = json.loads((run.directory / PROVENANCE).read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "seed": run.seed,
        "commands": [without_root(one["command"], root) for one in commands],
        "best_at": record.training["num_timesteps"],
        "gpu": record.provenance["machine"]["gpu"],
        "evaluated_on": run.evaluations["deterministic"].record["device"],
        "weights_sha256": record.weights_sha256,
        "values": {name: payoff_of(env).value(found) for name, found in run.evaluations.items()},
        "score": run.evaluations["deterministic"].score().tolist(),
    }
    glimpses = run.evaluations["deterministic"].stops
    return result | ({} if glimpses is None else {"glimpses": float(glimpses.mean())}) | learning(env, run, start)


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
    return f"{INTRODUCTION}{tables}{note}\n\n{sections}\n"


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
            f"| {result['env'].rpartition('/')[2]} | {_titled(name, best)} ({len(best['runs'])}) | "
            f"{lead} | {shown(best['share_of_headroom'], digits=0)}% |"
        )
    return [*lines, "", "In bold: the interval is clear of zero."]


def overview(results: list[dict[str, Any]]) -> list[str]:
    """Algorithms x environments: points above the best hand-coded policy, and the number of seeds."""
    titles = {name: _titled(name, entry) for result in results for name, entry in sorted(result["algorithms"].items())}
    rows = {name: [result["algorithms"].get(name) for result in results] for name in titles}
    worst = [min(map(_gain, result["algorithms"].values())) for result in results]

    def standing(name: str) -> float:
        """The mean over environments; a missing one counts as the worst there."""
        return statistics.mean(_gain(entry) if entry else low for entry, low in zip(rows[name], worst, strict=True))

    names = [result["env"].rpartition("/")[2].removeprefix("Fashion").removesuffix("-v0") for result in results]
    lines = [
        "Points above the best hand-coded policy without labels (number of seeds), by algorithm and environment:",
        "",
        f"| algorithm | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
    ]
    for name in sorted(titles, key=standing, reverse=True):
        lines.append(f"| {titles[name]} | {' | '.join(map(_lead, rows[name]))} |")
    return [*lines, "", "In bold: the 95% interval is above zero. Intervals over one or two seeds are those of scenes."]


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
        f"## {result['env'].rpartition('/')[2]}",
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
    lines += [f"\n{name}: {error}" for name, error in result["failed"].items()]
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
    env_ids = sorted({run["env"] for _, run in _finished(config.run_dir)})
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
    for env_id, runs in find_runs(config.run_dir, config.test_scenes, left_out=left_out).items():
        result = of_environment(env_id, runs, config)
        write_json(config.output_dir / f"{env_id.rpartition('/')[2]}.json", result)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(config.output_dir.glob("*-v*.json"))]
    write_text(config.output_dir / "README.md", page(results, left_out=left_out))
    print("\n".join(summary(results)))
    if left_out:
        print(f"Left out, being outside of the suite: {', '.join(left_out)}.")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command(main, ReportConfig, description=__doc__, if_interrupted=GOES_ON)
