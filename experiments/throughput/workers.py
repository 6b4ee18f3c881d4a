"""Contestants in separate processes that run in turns, so that a machine that slows down affects all of them."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from experiments.throughput.contestants import Job

AT_ONCE = 2
"""Number of processes that start at the same time."""
LEAVES_ALLOCATOR = {"MALLOC_PERTURB_": "0"}
"""glibc's default, set explicitly so that canvit_gym.backbone.memory changes nothing."""


IDLE_LOAD = 0.5
"""Load average over the last minute below which a machine counts as idle."""


def busy_note(load: Sequence[float]) -> list[str]:
    """The note at the top of a table if the machine was busy when its measurement began. load: from os.getloadavg.

    With two threads, the one that the other waits for is often not running: rates fall tenfold and ratios mean nothing.
    """
    if load[0] < IDLE_LOAD:
        return []
    return [f"**The machine was busy (load average {load[0]:.1f}): measure again, these numbers mean little.**"]


class Worker:
    """A process that answers commands; see experiments.throughput.worker."""

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._command = command

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended with status {self._process.wait()}; see above")
        return json.loads(line)

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def worker_of(job: Job) -> Worker:
    command = [sys.executable, "-m", "experiments.throughput.worker", json.dumps(asdict(job))]
    return Worker(command, {} if job.own_memory else LEAVES_ALLOCATOR)


@contextmanager
def started(jobs: Mapping[str, Job | list[str]]) -> Iterator[tuple[dict[str, Worker], dict[str, dict[str, Any]]]]:
    """Start workers for jobs, or for commands with the same protocol. Yields (workers, their messages when ready)."""
    workers: dict[str, Worker] = {}
    said: dict[str, dict[str, Any]] = {}
    try:
        waiting: list[str] = []
        for name, job in jobs.items():
            workers[name] = worker_of(job) if isinstance(job, Job) else Worker(job, {})
            waiting.append(name)
            if len(waiting) == AT_ONCE:
                ready = waiting.pop(0)
                said[ready] = workers[ready].answer()
        said |= {name: workers[name].answer() for name in waiting}
        yield workers, said
    finally:
        for worker in workers.values():
            worker.close()


def in_turns(workers: Mapping[str, Worker], *, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Glimpses per second and seconds per run of every contestant: one number per repeat."""
    measured: dict[str, dict[str, list[float]]] = {name: {"glimpses_per_second": [], "seconds": []} for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            answer = worker.ask("run")
            measured[name]["glimpses_per_second"].append(answer["glimpses"] / answer["seconds"])
            measured[name]["seconds"].append(answer["seconds"])
    return measured


def ratio(rates: list[float], reference: list[float]) -> float:
    """The median of the ratios within a turn, so that what slows down a whole turn does not count."""
    return statistics.median(one / other for one, other in zip(rates, reference, strict=True))
