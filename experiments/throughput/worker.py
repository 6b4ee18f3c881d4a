"""One contestant in its own process: `python -m experiments.throughput.worker JOB`, where JOB is a JSON object.

For every line on standard input ("run", "stages", "memory" or "ran") it executes the command and answers with one line
of JSON. A separate process has its own allocator, thread count and peak memory.
"""

import json
import os
import sys
import time

import torch

from canvit_gym.backbone.load import resolve_device
from experiments.throughput.clock import synchronize
from experiments.throughput.contestants import CONTESTANTS, Job
from experiments.throughput.peak_memory import peak_mib
from experiments.throughput.stages import shares
from experiments.throughput.what_ran import ran_as_json, ran_of


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed
    job = Job(**json.loads(sys.argv[1]))
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    device = resolve_device(job.device)
    before = peak_mib(device)
    began = time.perf_counter()
    run = CONTESTANTS[job.contestant](job)
    run()  # warms up; compiles
    synchronize(device)
    answer = {"seconds_to_start": time.perf_counter() - began, "threads": torch.get_num_threads()}
    print(json.dumps(answer), file=answers)
    for line in sys.stdin:
        match line.strip():
            case "run":
                synchronize(device)
                began = time.perf_counter()
                glimpses = run()
                synchronize(device)
                answer = {"glimpses": glimpses, "seconds": time.perf_counter() - began}
            case "stages":
                answer = shares(run, device, repeats=3)
            case "memory":
                answer = {"peak_mib": peak_mib(device) - before}
            case "ran":
                answer = ran_as_json(ran_of(job))
            case command:
                raise ValueError(f"unknown command {command!r}")
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
