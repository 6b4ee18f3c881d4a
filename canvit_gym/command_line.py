"""Shared by all command lines: options from a dataclass, errors in one line, Ctrl-C, JSON options."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvit_gym import registration
from canvit_gym.escaping import visible

if TYPE_CHECKING:
    from canvit_gym.config import EnvConfig

PROGRAM = "canvit-gym"
"""The console script."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as in shells."""

GOES_ON = "Interrupted; run the same command again to continue."
"""The message of `run_command` after Ctrl-C, for commands that can be continued."""

USER_ERRORS = (OSError, ValueError, TypeError, FloatingPointError)
"""Errors that a user can fix: printed in one line, without a traceback."""


def run_command[Config](
    main: Callable[[Config], object],
    config: type[Config],
    *,
    description: str | None,
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
    if_interrupted: str = "Interrupted.",
) -> None:
    """Call `main` with the options of a command line. Needs tyro.

    Args:
        main: called with the options.
        config: a dataclass with one field per option.
        description: the beginning of --help.
        arguments: None: those of the process.
        prog: the command's name in --help. None: as it was called.
        if_interrupted: printed after Ctrl-C, before the process exits with status 130.
    """
    import tyro

    parsed = tyro.cli(config, args=arguments, prog=prog or program(), description=description)
    call(main, parsed, if_interrupted=if_interrupted)


def call[Config](main: Callable[[Config], object], config: Config, *, if_interrupted: str = "Interrupted.") -> None:
    """Call `main`. Exit with one line for errors that a user can fix, and with status 130 after Ctrl-C."""
    try:
        main(config)
    except USER_ERRORS as error:
        sys.exit("error: " + "\n".join(map(visible, str(error).splitlines())))
    except KeyboardInterrupt:
        print(if_interrupted, file=sys.stderr)
        sys.exit(INTERRUPTED)


def program() -> str | None:
    """The command for --help: "python -m experiments.demo". None: not run with -m, so argparse's default."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


def json_object(text: str | None, *, option: str) -> dict[str, Any]:
    """The option's value as a dict; empty if it was not passed."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} must be a JSON object such as '{{\"seed\": 1}}', got {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object such as '{{\"seed\": 1}}', got {text!r}")
    return value


def output_directory(path: Path, *, option: str) -> Path:
    """The directory, with "~" expanded, made if missing. Call this before any work, so that no work is lost.

    Raises:
        OSError: it cannot be made or written to.
    """
    path = path.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"{option} {path} cannot be written to ({error.strerror}): choose another directory") from error
    return path


def bare_env_id(env_id: str) -> str:
    """The id without the module that registers it, see canvit_gym.registration. Modules are also found in the working
    directory.

    Raises:
        ValueError: the module cannot be imported, or no environment has this id.
    """
    if ":" in env_id and (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # where the console script, unlike `python -m`, does not look
    return registration.bare_env_id(env_id)


def env_config(env_id: str, env_kwargs: dict[str, Any]) -> "EnvConfig":
    """`canvit_gym.config_for` of an id whose module may lie in the working directory.

    Raises:
        ValueError: unknown id, or a bad value. TypeError: unknown keyword.
    """
    return registration.config_for(bare_env_id(env_id), **env_kwargs)
