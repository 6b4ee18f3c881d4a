"""The console script: `canvit-gym COMMAND ...`.

Every command is an entry of `COMMANDS`: a module with a function `command_line(arguments)`. The module is imported only
when its command is called and its extra is installed.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from canvit_gym import __version__
from canvit_gym.command_line import PROGRAM


@dataclass(frozen=True)
class Command:
    """One command of `canvit-gym`."""

    module: str
    """A module with `command_line(arguments: Sequence[str]) -> None`."""
    summary: str
    extra: str | None = None
    """The extra of pyproject.toml that it needs."""
    needs: tuple[str, ...] = ()
    """The modules that it imports from that extra."""


COMMANDS = {
    "envs": Command(
        module="canvit_gym.listing",
        summary="list the environments and where they look for their data",
    ),
    "evaluate": Command(
        module="canvit_gym.benchmark.single",
        summary="evaluate one policy on one environment",
        extra="benchmark",
        needs=("tyro",),
    ),
    "benchmark": Command(
        module="canvit_gym.benchmark.runner",
        summary="compare policies on the same scenes, with intervals and a report",
        extra="benchmark",
        needs=("matplotlib", "tyro"),
    ),
    "report": Command(
        module="canvit_gym.benchmark.report",
        summary="rewrite the report of a benchmark from its records",
        extra="benchmark",
        needs=("matplotlib", "tyro"),
    ),
    "suite": Command(
        module="canvit_gym.suite.command",
        summary="measure every skill of the suite, with perturbations, shares and a radar plot",
        extra="benchmark",
        needs=("matplotlib", "tyro"),
    ),
    "fit-probe": Command(
        module="canvit_gym.probes.fit",
        summary="fit a linear probe on your own data",
        extra="benchmark",
        needs=("tyro",),
    ),
    "play": Command(
        module="canvit_gym.play.command",
        summary="choose glimpses yourself in the browser, and compare yourself with policies",
        extra="play",
        needs=("fastapi", "tyro", "uvicorn", "websockets"),
    ),
    "explore": Command(
        module="canvit_gym.play.explore",
        summary="write a web page that shows what the policies of a benchmark saw, scene by scene",
        extra="play",
        needs=("tyro",),
    ),
}


def usage() -> str:
    """What `canvit-gym --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help explains a command. {PROGRAM} --version prints the version.",
        ]
    )


def missing_modules(command: Command) -> list[str]:
    """The modules of the command's extra that are not installed."""
    return [name for name in command.needs if importlib.util.find_spec(name) is None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name (default: those of the process)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = arguments
    if name == "--version":
        print(f"{PROGRAM} {__version__}")
        return
    if name not in COMMANDS:
        sys.exit(f"error: unknown command {name!r}; there are: {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if missing := missing_modules(command):
        sys.exit(
            f"error: {PROGRAM} {name} needs {' and '.join(missing)}. Install the extra: "
            f"pip install 'canvit-gym[{command.extra}]'"
        )
    importlib.import_module(command.module).command_line(rest)


if __name__ == "__main__":
    main()
