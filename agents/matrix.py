"""Train algorithms x environments x seeds at equal budgets of glimpses, and evaluate each on the test scenes.

    python -m agents.matrix --algos ppo q_regression --envs CanViT/FashionSearch-v0 --seeds 0 1 2 --run-dir runs/matrix
    python -m agents.report --run-dir runs/matrix

Each run is a run of `agents.train`, in RUN_DIR/ALGO/ENVIRONMENT/seed-SEED. Finished runs are skipped, interrupted ones
are resumed, and runs that another process is training are passed over; all must have the settings of this command. On
many cores several --processes train more runs in the same time than one; on a single GPU they only take turns. The
budget is the number of glimpses that PPO's entry for the environment takes, including those that it takes before PPO
learns; algorithms that try more glimpses per decision make fewer decisions. If an algorithm does not fit an
environment, or its numbers stop being finite, this is recorded and the others continue. The directory test/ of a run
holds the evaluation of its best policy (by validation) on the whole test split, with its most likely viewpoints and,
if the policy has probabilities, with sampled ones.
"""

import gc
import logging
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agents.algorithms import ALGORITHMS, find_algorithm, load_hyperparameters
from agents.outcomes import DETERMINISTIC, SAMPLED, of_learned
from agents.run_directory import CONFIG, FAILED, claimed
from agents.settings import TrainConfig
from agents.train_once import complete, require_same_run
from canvit_gym.atomic import write_json
from canvit_gym.checks import integer, optional
from canvit_gym.command_line import GOES_ON, env_config, json_object, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation
from canvit_gym.policies.learned import LearnedPolicy, load_policy
from canvit_gym.policies.policy_record import as_trained, has_another_table
from canvit_gym.provenance import provenance
from canvit_gym.scenes.datasets import suite_ids, without_namespace
from canvit_gym.scenes.workers import cpu_cores

log = logging.getLogger(__name__)

EMBEDDED = tuple(suite_ids())
EVALUATIONS = 8
"""Number of validations during a run, unless --eval-every is passed."""
TEST = "test"
"""The directory of a run that holds its evaluations on the test split."""


@dataclass(frozen=True)
class MatrixConfig:
    run_dir: Path
    """A directory per algorithm, with one per environment and seed."""
    algos: tuple[str, ...] = ALGORITHMS
    envs: tuple[str, ...] = EMBEDDED
    seeds: tuple[int, ...] = (0, 1, 2)
    total_timesteps: int | None = None
    """Decisions of every run, whatever the algorithm. None: what its budget of glimpses allows."""
    hyper: str | None = None
    """Overrides of the hyperparameters of all algorithms, as JSON."""
    env_kwargs: str | None = None
    """Keyword arguments of the environments, as JSON; what is tested has the id's own, but for observations and
    actions."""
    eval_every: int | None = None
    """Decisions between validations. None: an eighth of the run."""
    eval_scenes: int | None = None
    """Validation scenes. None: all."""
    checkpoint_every: int | None = None
    """Decisions between saved training states. None: as agents.train has it."""
    test_scenes: int | None = None
    """None: all."""
    progress: bool = True
    processes: int = 1
    """Number of processes, each of which trains one run at a time with its share of the cores. More than one: no
    progress bars."""

    def __post_init__(self) -> None:
        integer(1)("processes", self.processes)
        optional(integer(1))("eval_every", self.eval_every)  # the policy that is tested is the best validated one


def run_directory(root: Path, algo: str, env_id: str, seed: int) -> Path:
    return root / algo / without_namespace(env_id) / f"seed-{seed}"


def decisions(algo: str, env_id: str, overrides: dict[str, Any]) -> int:
    """The number of decisions for which an algorithm takes as many glimpses as PPO's entry for the environment.

    Raises:
        ValueError: a warm start uses up the budget.
    """
    own, reference = load_hyperparameters(env_id, overrides, algo=algo), load_hyperparameters(env_id)
    budget = reference.glimpses(reference.total_timesteps)
    before, each = own.glimpses(0), own.glimpses(1) - own.glimpses(0)
    if budget <= before:
        raise ValueError(
            f"the warm start of {algo} takes {before:,} glimpses, and the budget of {env_id} is {budget:,}"
        )
    return (budget - before) // each


def environment_to_test(env_id: str, policy: LearnedPolicy, num_scenes: int | None) -> EnvConfig:
    """The environment as registered, on test scenes, with the observations and actions that the policy was trained
    with.

    Raises:
        ValueError: the environment's viewpoints are fixed (revisit=False), and the policy has others.
    """
    registered = env_config(env_id, {})
    if has_another_table(policy.record, registered):
        raise ValueError(
            f"the policy has another table of viewpoints than {env_id}, which are its task: train it without action, "
            "grid_scales and grid_centers"
        )
    return replace(as_trained(registered, policy.record), split="test", num_scenes=num_scenes)


def tested(run_dir: Path, *, num_scenes: int | None = None) -> dict[str, Evaluation]:
    """Evaluate a finished run's best policy on the test scenes: "deterministic" and, if it has probabilities,
    "sampled"."""
    policy = load_policy(run_dir / "best")
    env = environment_to_test(policy.record.env_id, policy, num_scenes)
    policies = {DETERMINISTIC: policy}
    if policy.can_sample:
        policies[SAMPLED] = policy.sampling()
    return {name: of_learned(policy, env, directory=run_dir / TEST) for name, policy in policies.items()}


def run_config(config: MatrixConfig, algo: str, env_id: str, seed: int) -> TrainConfig:
    """
    Raises:
        ValueError: a warm start uses up the budget.
    """
    overrides = json_object(config.hyper, option="--hyper")
    total = decisions(algo, env_id, overrides) if config.total_timesteps is None else config.total_timesteps
    return TrainConfig(
        run_dir=run_directory(config.run_dir, algo, env_id, seed),
        algo=algo,
        env=env_id,
        env_kwargs=config.env_kwargs,
        total_timesteps=total,
        seed=seed,
        hyper=config.hyper,
        eval_every=max(1, total // EVALUATIONS) if config.eval_every is None else config.eval_every,
        eval_scenes=config.eval_scenes,
        checkpoint_every=config.checkpoint_every,
        gaze_scenes=0,
        progress=config.progress,
    )


def main(config: MatrixConfig) -> None:
    config = replace(config, run_dir=config.run_dir.expanduser(), progress=config.progress and config.processes == 1)
    for algo in config.algos:
        find_algorithm(algo)
    for env_id in config.envs:
        env_config(env_id, {})
    if "total_timesteps" in json_object(config.hyper, option="--hyper"):
        raise ValueError("the number of decisions is not one of --hyper here: pass --total-timesteps")
    for run in _runs(config):
        if (run_directory(config.run_dir, *run) / CONFIG).exists():
            require_same_run(run_config(config, *run))
    if config.processes == 1:
        return _work(config)
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    workers = [
        context.Process(target=_worker, args=(config, share, time.time(), sys.orig_argv))
        for share in range(config.processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if codes := [worker.exitcode for worker in workers if worker.exitcode]:
        raise ChildProcessError(f"{len(codes)} of {len(workers)} processes failed, with exit codes {codes}: see above")


def _worker(config: MatrixConfig, share: int, began: float, command: list[str]) -> None:
    """A process of several. Records name the command that began them all."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.orig_argv = command
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cpu_cores() // config.processes))
    try:
        _work(config, share=share, began=began)
    except KeyboardInterrupt:  # Ctrl-C reaches every process; runs have saved their states
        return


def _runs(config: MatrixConfig) -> list[tuple[str, str, int]]:
    """(algorithm, environment, seed) in the order in which they are trained."""
    return [(algo, env_id, seed) for seed in config.seeds for env_id in config.envs for algo in config.algos]


def _work(config: MatrixConfig, *, share: int = 0, began: float | None = None) -> None:
    """Train every config.processes-th run, beginning with number `share`; then those that other processes have not
    come to. began: when the command did, by the clock of files; None: now."""
    began = time.time() if began is None else began
    runs = _runs(config)
    mine = runs[share :: config.processes]
    for algo, env_id, seed in mine + [run for run in runs if run not in mine]:
        failed = run_directory(config.run_dir, algo, env_id, seed) / FAILED
        if not failed.exists() or failed.stat().st_mtime < began:  # another process would fail alike
            _one(config, algo, env_id, seed)


def _one(config: MatrixConfig, algo: str, env_id: str, seed: int) -> None:
    run_dir = run_directory(config.run_dir, algo, env_id, seed)
    log.info("%s", run_dir)
    try:
        if not complete(run_config(config, algo, env_id, seed)):
            raise KeyboardInterrupt
        with claimed(run_dir):  # so that no other process tests it as well
            tested(run_dir, num_scenes=config.test_scenes)
    except BlockingIOError as error:
        log.info("passed over: %s", error)
    except (ValueError, FloatingPointError) as error:
        log.info("failed: %s", error)
        write_json(run_dir / FAILED, {"algo": algo, "env": env_id, "error": str(error), "provenance": provenance()})
    else:
        (run_dir / FAILED).unlink(missing_ok=True)
    finally:
        gc.collect()  # a learner is a cycle of objects, whose replay buffer may take gigabytes


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command(main, MatrixConfig, description=__doc__, if_interrupted=GOES_ON)
