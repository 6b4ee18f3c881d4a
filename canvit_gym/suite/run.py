"""Runs a suite's plan: every evaluation once, in several processes, each saved as soon as it is done."""

import importlib
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from tqdm import tqdm

from canvit_gym.backbone.load import resolve_device
from canvit_gym.config import EnvConfig
from canvit_gym.escaping import visible
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.perturbations import PERTURBATIONS
from canvit_gym.policies import make_policy
from canvit_gym.policies.learned import load_policy
from canvit_gym.scenes.workers import cpu_cores
from canvit_gym.stopping import evaluate_with_stops
from canvit_gym.suite.payoff import payoff_of
from canvit_gym.suite.plan import Job

MOST_WORKERS = 8


def do(job: Job, *, batch_size: int) -> Evaluation:
    """Run the evaluation of a job and save it at its path."""
    config = job.config
    policy = (
        load_policy(job.source, config=config)
        if job.trained
        else make_policy(job.source, config=config, num_glimpses=config.budget)
    )
    options: dict[str, Any] = {
        "config": config,
        "max_scenes": job.max_scenes,
        "batch_size": batch_size,
        "seed": job.seed,
        "perturbations": () if job.perturbation is None else (PERTURBATIONS[job.perturbation],),
    }
    found = evaluate(policy, **options) if job.stop is None else evaluate_with_stops(policy, stop=job.stop, **options)
    found.save(job.path)
    return found


def do_missing(
    jobs: list[Job], *, batch_size: int, workers: int | None, progress: bool, modules: Sequence[str] = ()
) -> None:
    """Run every job that has no file yet. After Ctrl-C those under way are finished and saved.

    workers: processes; 0 evaluates in this one; None: as many as there are CPU cores, or 0 on a GPU.
    modules: what they import first.

    Raises:
        OSError: a worker was killed.
    """
    missing = [job for job in jobs if not job.path.exists()]
    if done := len(jobs) - len(missing):
        print(f"{done} of {len(jobs)} evaluations are there already")
    if not missing:
        return
    if workers is None:
        workers = _automatic_workers(missing[0].config)
    run = _in_turn if workers == 0 else partial(_in_processes, workers=workers, modules=modules)
    glimpses = sum(job.num_glimpses for job in missing)
    with tqdm(total=glimpses, unit="glimpse", disable=None if progress else True, smoothing=0.02) as bar:
        began = time.monotonic()
        for place, (job, paid) in enumerate(run(missing, batch_size=batch_size)):
            bar.update(job.num_glimpses)
            if progress:
                minutes = (time.monotonic() - began) / 60
                bar.write(f"{place + 1}/{len(missing)} {visible(job.label)}: {paid} ({minutes:.1f} min)")


def _automatic_workers(config: EnvConfig) -> int:
    if resolve_device(config.device).type == "cuda":
        return 0
    return min(cpu_cores(), MOST_WORKERS)


def summary(found: Evaluation, config: EnvConfig) -> str:
    """What the environment pays; the score after the last glimpse if stops were not recorded."""
    payoff = payoff_of(replace(config, allow_stop=found.stops is not None))
    return f"{found.metric} {100 * payoff.value(found):.1f} %, {payoff.name}"


def _do_and_summarize(job: Job, batch_size: int) -> str:
    return summary(do(job, batch_size=batch_size), job.config)


def _in_turn(jobs: list[Job], *, batch_size: int) -> Iterator[tuple[Job, str]]:
    for job in jobs:
        yield job, _do_and_summarize(job, batch_size)


def _in_processes(
    jobs: list[Job], *, batch_size: int, workers: int, modules: Sequence[str]
) -> Iterator[tuple[Job, str]]:
    """Yields jobs in the order in which they are done."""
    threads = max(1, torch.get_num_threads() // workers)
    # Spawned: processes forked from one that has computed with several threads cannot use more than one.
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(threads, modules)
    )
    running: dict[Future[str], Job] = {}
    left = iter(jobs)
    try:
        while True:
            while len(running) < 2 * workers and (job := next(left, None)) is not None:
                running[pool.submit(_do_and_summarize, job, batch_size)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was killed, perhaps for want of memory: use fewer --workers, or 0; the same command goes "
            "on from here"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int, modules: Sequence[str]) -> None:
    """In a worker: ignore Ctrl-C, which the parent handles by letting evaluations under way finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    for module in modules:
        importlib.import_module(module)
