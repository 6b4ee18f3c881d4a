"""Search hyperparameters with Optuna: the same number of trials for every algorithm, on validation scenes.

    python -m agents.tune --algos ppo q_regression --envs CanViT/FashionSearch-v0 --trials 20 --run-dir runs/tune

A trial trains with every seed of --seeds, which must differ from those of reported runs. Its value is what the
environment pays each run's best policy on the validation scenes (agents.outcomes), averaged over the seeds. The first
trial uses the values of agents/hyperparameters/ALGO.yml, as far as they lie in the space of ALGO.search.yml; Optuna's
TPE suggests the others. A trial fails if its values contradict each other or its numbers stop being finite; failed
trials count as well.

RUN_DIR/ALGO/ENVIRONMENT holds study.journal (Optuna's, from which an interrupted search continues), a directory of runs
per trial, trials.json, and best.yml, the entry to paste into ALGO.yml. With --results-dir the trials are also written
there, with a page of all searches: the same command once more does it for searches that are finished.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from agents.algorithms import HYPERPARAMETERS, load_hyperparameters
from agents.monitor import merit
from agents.outcomes import pays_of_curve
from agents.results import write_result
from agents.run_directory import CONFIG, RESULT, STATE, claimed, without_root
from agents.settings import TrainConfig, prepare
from agents.train import train
from canvit_gym.atomic import write_json, write_text
from canvit_gym.command_line import GOES_ON, env_config, json_object, run_command
from canvit_gym.provenance import provenance
from canvit_gym.scenes.datasets import without_namespace

log = logging.getLogger(__name__)

LINEAR = "lin_"
RANGE = ("low", "high", "log", "linear_schedule")
STUDY, TRIALS, BEST = "study.journal", "trials.json", "best.yml"


@dataclass(frozen=True)
class TuneConfig:
    run_dir: Path
    """A directory per algorithm, with one per environment."""
    algos: tuple[str, ...]
    envs: tuple[str, ...]
    trials: int = 20
    """Number of trials per algorithm and environment, failed ones included."""
    seeds: tuple[int, ...] = (1000,)
    """Seeds of a trial's runs. Do not use those of the reported runs."""
    total_timesteps: int | None = None
    """Decisions of a run. None: as in agents/hyperparameters/ALGO.yml."""
    hyper: str | None = None
    """Overrides of ALGO.yml that are not searched, as JSON."""
    env_kwargs: str | None = None
    """Keyword arguments of the environment, as JSON."""
    eval_scenes: int | None = None
    """Validation scenes. None: all."""
    results_dir: Path | None = None
    """Where to write what is worth keeping, such as experiments/results/tuning. None: nowhere."""
    progress: bool = True


def search_space(algo: str) -> dict[str, Any]:
    """Name (dots lead into objects) -> list of choices, or range; as the algorithm's file declares them.

    Raises:
        ValueError: the file is missing, or declares something else.
    """
    path = HYPERPARAMETERS / f"{algo}.search.yml"
    if not path.is_file():
        raise ValueError(f"{path} is missing: it declares what agents.tune searches for {algo}")
    space: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, values in space.items():
        ranged = isinstance(values, dict) and {"low", "high"} <= set(values) <= {*RANGE}
        if not ranged and not (isinstance(values, list) and values):
            raise ValueError(
                f"{path}: {name} must be a list of choices, or hold low, high and maybe log and linear_schedule; got "
                f"{values!r}"
            )
    return space


def suggested(trial: Trial, space: dict[str, Any]) -> dict[str, Any]:
    """Suggest a value for every name of the space."""
    found: dict[str, Any] = {}
    for name, values in space.items():
        if isinstance(values, list):
            found[name] = trial.suggest_categorical(name, values)
        elif isinstance(values["low"], int) and isinstance(values["high"], int):
            found[name] = trial.suggest_int(name, values["low"], values["high"], log=values.get("log", False))
        else:
            found[name] = trial.suggest_float(name, values["low"], values["high"], log=values.get("log", False))
    return found


def overrides(params: Mapping[str, Any], space: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters of an entry that a trial changes; objects are returned whole."""
    changed: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(space[name], dict) and space[name].get("linear_schedule"):
            value = f"{LINEAR}{value:.6g}"
        elif isinstance(value, float):
            value = float(f"{value:.6g}")
        top, *inner = name.split(".")
        if not inner:
            changed[top] = value
            continue
        changed.setdefault(top, json.loads(json.dumps(entry[top])))
        within = changed[top]
        for key in inner[:-1]:
            within = within[key]
        within[inner[-1]] = value
    return changed


def untuned(space: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The entry's own values, for those names whose range or choices contain them."""
    found: dict[str, Any] = {}
    for name, values in space.items():
        value: Any = entry
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and isinstance(values, dict) and value.startswith(LINEAR):
            value = float(value.removeprefix(LINEAR))
        if isinstance(values, list):
            inside = value in values
        else:
            inside = isinstance(value, int | float) and values["low"] <= value <= values["high"]
        if inside:
            found[name] = value
    return found


def tune(config: TuneConfig, algo: str, env_id: str) -> Path:
    """Run the missing trials. Returns their directory.

    Raises:
        BlockingIOError: another process runs them.
        ValueError: unknown algorithm or environment, or a search that was begun with other settings.
    """
    directory = config.run_dir.expanduser() / algo / without_namespace(env_id)
    fixed = json_object(config.hyper, option="--hyper")
    hyper = load_hyperparameters(env_id, fixed, algo=algo)
    entry, space = hyper.to_json(), search_space(algo)
    settings = {
        "algo": algo, "env": env_id, "seeds": list(config.seeds), "hyper": fixed, "space": space,
        "total_timesteps": hyper.total_timesteps if config.total_timesteps is None else config.total_timesteps,
        "eval_scenes": config.eval_scenes,
        "env_kwargs": json_object(config.env_kwargs, option="--env-kwargs"),
    }  # fmt: skip
    if not (directory / STUDY).exists():  # before settings are recorded that no run accepts
        prepare(_run_config(config, directory / "trial-0", fixed, config.seeds[0], settings))
    with claimed(directory):  # a trial of another process would look like one that was left unfinished
        study = _study(directory, settings, first=untuned(space, entry))
        _run_trials(config, study, directory, settings, entry, space)
        _write(study, directory, settings, entry, space)
    if config.results_dir is not None:
        _publish(directory / TRIALS, config.results_dir, run_dir=config.run_dir.expanduser())
    return directory


def _study(directory: Path, settings: dict[str, Any], *, first: dict[str, Any]) -> optuna.Study:
    """Begin the search with the values `first`, or continue the one that is there."""
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(directory / STUDY))),
        study_name=f"{settings['algo']} {settings['env']}",
        direction="maximize",
        load_if_exists=True,
    )
    if not study.user_attrs:
        study.enqueue_trial(first, skip_if_exists=True)
        study.set_user_attr("settings", settings)  # last: they say that the search has begun
    elif (begun := study.user_attrs["settings"]) != settings:
        changed = [name for name in settings if begun.get(name) != settings[name]]
        raise ValueError(
            f"the search in {directory} was begun with other {', '.join(changed)}: leave them as they were, or choose "
            "another --run-dir"
        )
    return study


def _run_trials(
    config: TuneConfig,
    study: optuna.Study,
    directory: Path,
    settings: dict[str, Any],
    entry: dict[str, Any],
    space: dict[str, Any],
) -> None:
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # its process ended before it was finished
        if set(trial.params) == set(space):
            _finish(config, study, trial.number, overrides(trial.params, space, entry), directory, settings)
            continue
        # Even while its values were suggested: another one counts in its place.
        if trial.number == 0 and not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial(untuned(space, entry))
        study.tell(trial.number, state=TrialState.PRUNED)
    while len(study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))) < config.trials:
        # A trial's values depend only on the trials before it, wherever the search was interrupted.
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
        trial = study.ask()
        changed = overrides(suggested(trial, space), space, entry)
        _finish(config, study, trial.number, changed, directory, settings)


def _finish(
    config: TuneConfig,
    study: optuna.Study,
    number: int,
    changed: dict[str, Any],
    directory: Path,
    settings: dict[str, Any],
) -> None:
    """Train the missing runs of a trial and report its value."""
    log.info("%s, trial %d: %s", study.study_name, number, json.dumps(changed))
    values = []
    for seed in settings["seeds"]:
        run_dir = directory / f"trial-{number}" / f"seed-{seed}"
        try:
            values.append(_value(config, run_dir, settings["hyper"] | changed, seed, settings))
        except (ValueError, FloatingPointError) as error:
            log.info("failed: %s", error)
            study.tell(number, state=TrialState.FAIL)
            return
    log.info("worth %.4f", np.mean(values))
    study.tell(number, float(np.mean(values)))


def _value(config: TuneConfig, run_dir: Path, hyper: dict[str, Any], seed: int, settings: dict[str, Any]) -> float:
    """What the environment pays the best policy of a run, by validation."""
    if not (run_dir / RESULT).exists():
        if (run_dir / CONFIG).exists():
            result = train(TrainConfig(run_dir, resume=True, progress=config.progress))
        else:
            result = train(_run_config(config, run_dir, hyper, seed, settings))
        if result.interrupted:
            raise KeyboardInterrupt
        (run_dir / STATE).unlink(missing_ok=True)  # nobody extends a trial, and replays are large
    env = env_config(settings["env"], settings["env_kwargs"])
    evaluations = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))["evaluations"]
    return pays_of_curve(env, max(evaluations, key=lambda entry: merit(entry, env)))


def _run_config(
    config: TuneConfig, run_dir: Path, hyper: dict[str, Any], seed: int, settings: dict[str, Any]
) -> TrainConfig:
    total = settings["total_timesteps"]
    return TrainConfig(
        run_dir,
        algo=settings["algo"],
        env=settings["env"],
        env_kwargs=config.env_kwargs,
        total_timesteps=total,
        seed=seed,
        hyper=json.dumps(hyper),
        eval_every=max(1, total // 4),
        eval_scenes=config.eval_scenes,
        checkpoint_every=total,
        gaze_scenes=0,
        progress=config.progress,
    )


def _write(
    study: optuna.Study, directory: Path, settings: dict[str, Any], entry: dict[str, Any], space: dict[str, Any]
) -> None:
    def trial_record(trial: FrozenTrial) -> dict[str, Any]:
        began, ended = trial.datetime_start, trial.datetime_complete
        seconds = (ended - began).total_seconds() if began and ended else None
        return {
            "number": trial.number, "state": trial.state.name.lower(), "value": trial.value,
            "hyper": overrides(trial.params, space, entry), "seconds": seconds,
        }  # fmt: skip

    trials = [trial_record(trial) for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))]
    write_json(directory / TRIALS, {**settings, "trials": trials, "provenance": provenance()})
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise ValueError(f"no trial of {directory} went through; its errors were printed")
    best = study.best_trial
    tuned = entry | overrides(best.params, space, entry)
    head = (
        f"# Best of {len(trials)} trials of agents.tune, trial {best.number}: {best.value:.4f} on validation scenes "
        f"(seeds {', '.join(map(str, settings['seeds']))}, {settings['total_timesteps']:,} decisions).\n"
    )
    write_text(directory / BEST, head + yaml.safe_dump({settings["env"]: tuned}, sort_keys=False, width=110))


def _publish(trials: Path, results_dir: Path, *, run_dir: Path) -> None:
    """Keep the trials of a search, and write the page of all that are kept."""
    result = json.loads(trials.read_text(encoding="utf-8"))
    origin = result["provenance"]
    result["provenance"] = {**origin, "command": without_root(origin["command"], run_dir)}
    write_result(results_dir, f"{result['algo']}-{without_namespace(result['env'])}", result, page=page)


def page(results: list[dict[str, Any]]) -> str:
    """Markdown of searches: the value of every trial, and the best one's hyperparameters."""
    lines = [
        "# Searches of hyperparameters",
        "",
        "What the environment pays each trial's best policy on validation scenes, in %. The first trial is the entry",
        "of `agents/hyperparameters/` as it was then, before it was tuned. Spaces, the hyperparameters of every trial",
        "and the revision are in the JSON files. Written by",
        "",
        "    python -m agents.tune --algos ALGO --envs ENVIRONMENT --run-dir RUN_DIR --results-dir RESULTS_DIR",
        "",
        "| algorithm | environment | decisions, validation scenes | trials | best: what differs from the entry |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        done = [trial for trial in result["trials"] if trial["value"] is not None]
        best = max(done, key=lambda trial: trial["value"])
        first = result["trials"][0]["hyper"]
        differs = {name: value for name, value in best["hyper"].items() if value != first.get(name)}
        values = ("failed" if trial["value"] is None else f"{100 * trial['value']:.1f}" for trial in result["trials"])
        cells = (
            result["algo"], without_namespace(result["env"]),
            f"{result['total_timesteps']:,}, {result['eval_scenes'] or 'all'}", ", ".join(values),
            f"`{json.dumps(differs)}`" if differs else "nothing",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(config: TuneConfig) -> None:
    if config.trials < 1 or not config.seeds:
        raise ValueError(f"trials must be at least 1 and seeds not empty, got {config.trials} and {config.seeds}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    for algo in config.algos:
        search_space(algo)
    for env_id in config.envs:
        for algo in config.algos:
            directory = tune(config, algo, env_id)
            log.info("%s", (directory / BEST).read_text(encoding="utf-8"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command(main, TuneConfig, description=__doc__, if_interrupted=GOES_ON)
