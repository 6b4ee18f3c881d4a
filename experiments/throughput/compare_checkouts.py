"""Is one checkout slower than another? Old over new, in turns of a second.

    git worktree add ../old 14cf643
    python -m experiments.throughput.compare_checkouts --old ../old --new .

Each checkout has one long-lived process with one thread. They take turns (old, new, new, old, ...), so that only one of
them works at a time and a machine that becomes slower or faster affects both equally. A turn is a batch of environment
steps or an exact evaluation, measured in processor time of its process. A ratio above 1 means that the new checkout is
faster. The interval is a bootstrap interval over pairs of turns.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from canvit_gym.atomic import write_json
from canvit_gym.command_line import run_command
from canvit_gym.provenance import provenance

Job = Literal["steps", "evaluation"]

# Runs in either checkout, so it only uses what both of them have.
_WORKER = """
import sys, time, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.vector_env import GlimpseVectorEnv

job, scenes = sys.argv[1], int(sys.argv[2])
if job == "steps":
    envs = GlimpseVectorEnv(scenes, num_scenes=4 * scenes, device="cpu")
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(12)]
    def turn():
        for action in actions:
            envs.step(action)
else:
    config = EnvConfig(split="test", num_scenes=2 * scenes, device="cpu")
    policy = make_policy("coarse_to_fine", config=config, num_glimpses=5)
    def turn():
        evaluate(policy, config=config)
turn()
turn()
print("ready", flush=True)
for _ in sys.stdin:
    began = time.process_time()
    turn()
    print(time.process_time() - began, flush=True)
"""


@dataclass(frozen=True)
class Args:
    """Which checkouts, and for how long."""

    old: Path
    """A checkout of the version to compare with."""
    new: Path = Path(".")
    """The checkout in question."""
    pairs: int = 40
    """Turns of either checkout, per job."""
    num_scenes: int = 64
    """Environments that are stepped at once; an evaluation has twice as many scenes."""
    output: Path | None = None
    """A JSON file for the result; None prints it only."""


class _Worker:
    """A process that works in one checkout on command."""

    def __init__(self, checkout: Path, job: Job, num_scenes: int) -> None:
        checkout = checkout.expanduser().resolve()
        if not (checkout / "canvit_gym").is_dir():
            raise SystemExit(f"{checkout} holds no canvit_gym: name a checkout (git worktree add DIRECTORY COMMIT)")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, job, str(num_scenes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        )
        self._answer()

    def seconds(self) -> float:
        """Processor seconds of one turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a checkout's process ended early: its message is above")
        return line


def compare(args: Args, job: Job) -> dict[str, object]:
    """The ratio old/new for one job: the median over pairs of turns, with a 95% interval."""
    old, new = (_Worker(checkout, job, args.num_scenes) for checkout in (args.old, args.new))
    seconds = np.empty((args.pairs, 2))
    for pair in range(args.pairs):
        for column, worker in ((0, old), (1, new)) if pair % 2 == 0 else ((1, new), (0, old)):
            seconds[pair, column] = worker.seconds()
    old.close()
    new.close()
    ratios = seconds[:, 0] / seconds[:, 1]
    draws = np.random.default_rng(0).choice(ratios, (10_000, args.pairs))
    low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
    return {
        "job": job,
        "ratio": float(np.median(ratios)),
        "interval": [float(low), float(high)],
        "pairs": args.pairs,
        "old_s": float(np.median(seconds[:, 0])),
        "new_s": float(np.median(seconds[:, 1])),
    }


def main(args: Args) -> None:
    jobs: tuple[Job, ...] = ("steps", "evaluation")
    results = []
    for job in jobs:
        result = compare(args, job)
        results.append(result)
        print(json.dumps(result), flush=True)
    if args.output is not None:
        write_json(args.output, {"results": results, "provenance": provenance()})


if __name__ == "__main__":
    run_command(main, Args, description=__doc__)
