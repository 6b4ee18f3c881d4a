"""A run's directory: its files, and a lock for one process at a time."""

import json
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from canvit_gym.atomic import write_json
from canvit_gym.provenance import provenance

CONFIG, STATE, RESULT, PROVENANCE = "config.json", "training_state.pt", "result.json", "provenance.json"
CLOCK, FAILED = "clock.json", "failed.json"
LOCK, OWNER = "run.lock", "owner.json"


@contextmanager
def writing_to(run_dir: Path) -> Iterator[None]:
    """Add the cure to errors of the file system."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write to the run directory {run_dir}: {error.strerror or error}. Choose another with --run-dir."
        ) from error


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Lock the directory for this process; it is created if missing. The lock ends with the process.

    Raises:
        BlockingIOError: another process has the lock; the message names it.
        OSError: the directory cannot be written to.
    """
    with writing_to(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=run_dir).close()
    lock = FileLock(run_dir / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"{run_dir} is in use by {_owner(run_dir)}. Wait for it to end, end it, or choose another run directory."
        ) from None
    try:
        with writing_to(run_dir):
            write_json(
                run_dir / OWNER,
                {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "command": shlex.join(["python", *sys.orig_argv[1:]]),
                    "since": datetime.now(UTC).isoformat(timespec="seconds"),
                },
            )
        yield
    finally:
        (run_dir / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(run_dir: Path) -> str:
    try:
        owner = json.loads((run_dir / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}: {owner['command']}"
    except (OSError, ValueError, KeyError):  # it has just begun, or is about to end
        return "another process"


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


def provenance_of_runs(root: Path) -> dict[str, Any]:
    """canvit_gym.provenance of a result that was made from the runs in `root`, for others."""
    origin = provenance()
    return origin | {"command": without_root(origin["command"], root)}
