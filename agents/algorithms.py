"""Learners by name, for `python -m agents.train --algo NAME`.

An algorithm is a folder of agents/ whose `learner` module defines an `ALGORITHM`, a file of hyperparameters keyed by
environment id, agents/hyperparameters/NAME.yml, and an entry here. No other code distinguishes learners. One that lives
elsewhere is added by `register_algorithm`.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

import canvit_gym
from agents.learner import Learner
from canvit_gym.config import EnvConfig

if TYPE_CHECKING:
    from agents.settings import Plan

HYPERPARAMETERS = Path(__file__).with_name("hyperparameters")
DEFAULT = "ppo"
DEFAULTS = "default"
"""The entry for environments that have none of their own."""

_MODULES: dict[str, str] = {  # module:attribute, imported when needed
    "ppo": "agents.ppo.learner:ALGORITHM",
    "q_regression": "agents.q_regression.learner:ALGORITHM",
    "dime": "agents.dime.learner:ALGORITHM",
    "oracle_cloning": "agents.oracle_cloning.learner:ALGORITHM",
    "dqn": "agents.off_policy.learner:DQN_ALGORITHM",
    "sac": "agents.off_policy.learner:SAC_ALGORITHM",
    "maskable_ppo": "agents.contrib_ppo.learner:MASKABLE_ALGORITHM",
    "recurrent_ppo": "agents.contrib_ppo.learner:RECURRENT_ALGORITHM",
    "crossq": "agents.off_policy.contrib:CROSSQ_ALGORITHM",
    "tqc": "agents.off_policy.contrib:TQC_ALGORITHM",
}
ALGORITHMS = tuple(_MODULES)
_REGISTERED: dict[str, tuple["Algorithm", Path]] = {}


class Hyperparameters(Protocol):
    """An entry of an algorithm's file: a frozen dataclass with a field per hyperparameter, which checks its values."""

    @property
    def total_timesteps(self) -> int: ...

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment for this algorithm."""
        ...

    def to_json(self) -> dict[str, Any]: ...

    def glimpses(self, decisions: int) -> int:
        """The number of glimpses that training for `decisions` decisions takes, including those that are only tried
        with the labels. The first glimpse of an episode, which nobody chooses, is not counted.
        """
        ...

    def check_fit(self, config: EnvConfig) -> None:
        """Raise ValueError if the algorithm cannot learn in this environment."""
        ...


@dataclass(frozen=True)
class Algorithm:
    """A learner: its title, its hyperparameters, and how to make it."""

    title: str
    """The name in tables and descriptions."""
    hyperparameters: Callable[..., Hyperparameters]
    """A dataclass; its keyword arguments are the keys of the file's entries."""
    make: Callable[["Plan"], Learner]


def register_algorithm(name: str, algorithm: Algorithm, *, hyperparameters: Path) -> None:
    """Add your own learner in this process: `train(TrainConfig(run_dir, algo=name))`.

    hyperparameters: a YAML file with an entry per environment id, and a "default" one for all others.

    Raises:
        ValueError: there is an algorithm of this name. FileNotFoundError: no such file.
    """
    if name in _MODULES or name in _REGISTERED:
        raise ValueError(f"there is an algorithm {name!r} already: choose another name")
    if not hyperparameters.is_file():
        raise FileNotFoundError(f"{hyperparameters} does not exist: write the hyperparameters of {name!r} there")
    _REGISTERED[name] = algorithm, hyperparameters


def find_algorithm(name: str) -> Algorithm:
    """
    Raises:
        ValueError: no such algorithm. ImportError: it needs a package that is not installed.
    """
    if name in _REGISTERED:
        return _REGISTERED[name][0]
    if name not in _MODULES:
        close = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown algorithm {name!r}; {hint}there are: {', '.join((*ALGORITHMS, *_REGISTERED))}")
    module, attribute = _MODULES[name].split(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name != "sb3_contrib":
            raise
        raise ImportError(
            f"algorithm {name!r} needs sb3-contrib, which is not installed: pip install sb3-contrib"
        ) from error


def hyperparameters_file(name: str) -> Path:
    return _REGISTERED[name][1] if name in _REGISTERED else HYPERPARAMETERS / f"{name}.yml"


def load_hyperparameters(env_id: str, overrides: dict[str, Any] | None = None, *, algo: str = DEFAULT) -> Any:
    """The entry for `env_id` in an algorithm's file, or its default entry, with overrides. Dicts are merged one level
    deep.

    Raises:
        ValueError: an unknown environment or hyperparameter, or a bad value.
    """
    path, algorithm = hyperparameters_file(algo), find_algorithm(algo)
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if env_id not in entries and env_id.rpartition(":")[2] not in canvit_gym.ENVIRONMENTS:
        there = ", ".join(key for key in entries if key != DEFAULTS)
        raise ValueError(f"{path} has no entry for {env_id!r}, which is not an environment; there are: {there}")
    known = [option.name for option in fields(algorithm.hyperparameters)]  # type: ignore[arg-type]
    values = dict(entries.get(env_id, entries[DEFAULTS]))
    for name, value in (overrides or {}).items():
        if name not in known:
            raise ValueError(f"unknown hyperparameter {name!r}; there are: {', '.join(known)}")
        both = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = values[name] | value if both else value
    return algorithm.hyperparameters(**values)
