"""What the command lines of experiments have in common."""

import json
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import tyro

import canvit_gym
from canvit_gym.config import EnvConfig, config_from_kwargs

INTERRUPTED = 130
"""The exit status after Ctrl-C, as of shells."""

GOES_ON = "Interrupted; the same command goes on."
"""What `run_command` says of Ctrl-C where that is so."""


def run_command[Config](
    main: Callable[[Config], object],
    config: type[Config],
    *,
    description: str | None,
    if_interrupted: str = "Interrupted.",
) -> None:
    """Call `main` with what the command line says. What a user can mend is told in a line, without a traceback."""
    parsed = tyro.cli(config, prog=program(), description=description)
    try:
        main(parsed)
    except (OSError, ValueError, TypeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(if_interrupted, file=sys.stderr)
        sys.exit(INTERRUPTED)


def program() -> str | None:
    """How --help spells the command: "python -m experiments.demo". None: not run with -m, so as argparse has it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


def json_object(text: str | None, *, option: str) -> dict[str, Any]:
    """The option's value; empty where it was not given."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} must be a JSON object such as '{{\"seed\": 1}}', got {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object such as '{{\"seed\": 1}}', got {text!r}")
    return value


def env_config(env_id: str, env_kwargs: dict[str, Any]) -> EnvConfig:
    """The configuration of a registered id with keyword arguments.

    Raises:
        ValueError: unknown id, or a bad value. TypeError: unknown keyword.
    """
    if env_id not in canvit_gym.ENVIRONMENTS:
        raise ValueError(f"unknown environment {env_id!r}; there are: {', '.join(canvit_gym.ENVIRONMENTS)}")
    return config_from_kwargs({**gym.spec(env_id).kwargs, **env_kwargs})
