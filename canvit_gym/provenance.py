"""Where a result comes from: command, versions, revision, loaded checkpoints and probes, machine, time."""

import json
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from canvit_gym.backbone.hub import used_sources
from canvit_gym.versions import package_version

PACKAGES = ("canvit-gym", "canvit-pytorch", "gymnasium", "stable-baselines3", "torch", "numpy")
CODE_AND_ASSETS = (":/*.py", ":/*.yml", ":/canvit_gym/assets")
"""Pathspecs, from the root of the checkout, of what results depend on."""


def provenance() -> dict[str, Any]:
    """JSON values to save with every result."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}},
        "git": _revision(),
        "loaded": used_sources(),
        "machine": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def plain(value: Any) -> Any:
    """A configuration as JSON values, without this machine's directories."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if not isinstance(v, Path) and not k.endswith("_dir")}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def strip_directories(value: Any) -> Any:
    """JSON values; of the paths of a machine only the last names, since a path may name a person.

    >>> strip_directories({"root": "/home/ann/ade20k", "probe": "~ann/probe", "checkpoint": "user/name"})
    {'root': 'ade20k', 'probe': 'probe', 'checkpoint': 'user/name'}
    """
    if isinstance(value, dict):
        return {key: strip_directories(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strip_directories(inner) for inner in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
        return Path(value).name
    return value


def strip_command(command: str) -> str:
    """A command line, as shlex.join writes it; of paths, also in options as JSON, only the last names.

    >>> strip_command("python /home/ann/train.py --log=~/log --env-kwargs '{\\"root\\": \\"/home/ann/ade20k\\"}'")
    'python train.py --log=log --env-kwargs \\'{"root": "ade20k"}\\''
    """
    arguments = shlex.split(command)
    stripped = [_strip_argument(argument) for argument in arguments]
    return command if stripped == arguments else shlex.join(stripped)


def _strip_argument(argument: str) -> str:
    """A part of a command line: a path, --option=path, or options as JSON."""
    if argument.startswith("-") and "=" in argument:
        option, _, value = argument.partition("=")
        return f"{option}={_strip_argument(value)}"
    if argument.startswith(("{", "[")):
        with suppress(ValueError):
            value = json.loads(argument)
            stripped = strip_directories(value)
            return argument if stripped == value else json.dumps(stripped)
    return strip_directories(argument)


def strip_record(record: Any) -> Any:
    """`strip_directories`, also within commands and options as JSON. Names of classes stay, whatever they look like.

    >>> strip_record({"command": "fit-probe --root /home/ann/photos", "classes": ["/misc/sign"]})
    {'command': 'fit-probe --root photos', 'classes': ['/misc/sign']}
    """
    if isinstance(record, dict):
        return {name: _strip_entry(name, value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [strip_record(inner) for inner in record]
    return _strip_argument(record) if isinstance(record, str) else record


def _strip_entry(name: str, value: Any) -> Any:
    if name == "classes":
        return value
    return strip_command(value) if name == "command" and isinstance(value, str) else strip_record(value)


def _cpu() -> str:
    """The name of the CPU's model, if the system provides it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _revision() -> dict[str, Any] | None:
    """The commit of this checkout and whether code or assets differ from it (results, which a run may write, do not
    count). None outside of git or before the first commit."""

    def git(*arguments: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *CODE_AND_ASSETS)
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None
