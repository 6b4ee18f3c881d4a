"""Runs of agents.train as parts of something larger: each is trained once, continued if interrupted, and never mixed
with runs of other settings.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agents.algorithms import DEFAULT, find_algorithm, load_hyperparameters
from agents.run_directory import CONFIG, RESULT
from agents.settings import DEFAULT_ENV, DEFAULT_EVAL_EVERY, TrainConfig
from agents.train import train
from canvit_gym.command_line import json_object
from canvit_gym.policies.learned import load_record
from canvit_gym.policies.policy_record import describe_inputs, require_same


def complete(config: TrainConfig) -> bool:
    """Train what is missing. Returns False after Ctrl-C; the same call continues.

    Raises:
        BlockingIOError: another process trains it.
        ValueError: the directory contains a run with other settings, or with another backbone or probe.
    """
    begun = (config.run_dir / CONFIG).exists()
    if begun:
        require_same_run(config)
    if (config.run_dir / RESULT).exists():
        return True
    try:
        return not train(replace(config, resume=begun)).interrupted
    except FileExistsError as error:
        raise BlockingIOError(f"another process has just begun it: {error}") from error


def require_same_run(config: TrainConfig) -> None:
    """Raise ValueError if the run in `config.run_dir` is not the one that `config` would begin now.

    The algorithm's hyperparameters may have changed since, and so may the checkpoint behind a name.
    """
    found = json.loads((config.run_dir / CONFIG).read_text(encoding="utf-8"))
    algo, env = config.algo or DEFAULT, config.env or DEFAULT_ENV
    hyper = load_hyperparameters(env, json_object(config.hyper, option="--hyper"), algo=algo)
    asked = {
        "hyperparameters": json.loads(json.dumps(hyper.to_json())),
        "total_timesteps": config.total_timesteps or hyper.total_timesteps,
        "algo": algo,
        "env_kwargs": json_object(config.env_kwargs, option="--env-kwargs"),
        "eval_every": DEFAULT_EVAL_EVERY if config.eval_every is None else config.eval_every,
        "eval_scenes": config.eval_scenes,
    }
    differing = _differing(found, asked) if found["algo"] == algo else {"algo"}
    differing |= {name for name, own in (("seed", config.seed or 0), ("env", env)) if found[name] != own}
    if differing:
        raise ValueError(
            f"{config.run_dir} holds a run with other settings ({', '.join(sorted(differing))}): delete it, or choose "
            "another directory for the runs"
        )
    if (config.run_dir / RESULT).exists():  # an unfinished run is checked when it is resumed
        record = load_record(config.run_dir / "last")
        require_same(record.inputs, describe_inputs(record.env), who=f"the run in {config.run_dir}", learning=True)


SETTINGS = ("algo", "env_kwargs", "total_timesteps", "eval_every", "eval_scenes")
"""What runs that differ only in their seed have in common, besides their hyperparameters. How often they were validated
is part of it: each run counts with the best policy that was validated."""


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs that differ only in their seed have in common: SETTINGS and the "hyperparameters".

    A hyperparameter that is newer than a run had the value that is now its default. The number of decisions is that of
    the run, whatever its entry of the hyperparameters has.

    Args:
        config: of a run, as it was written.
    """
    hyperparameters = find_algorithm(config["algo"]).hyperparameters(**config["hyperparameters"]).to_json()
    del hyperparameters["total_timesteps"]
    return {key: config[key] for key in SETTINGS} | {"hyperparameters": hyperparameters}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """The names of the settings in which two runs of one algorithm differ."""
    first, second = settings(one), settings(other)
    ours, theirs = first.pop("hyperparameters"), second.pop("hyperparameters")
    pairs = ((first, second), (ours, theirs))
    return {name for mine, others in pairs for name, value in mine.items() if value != others[name]}
