"""Glimpses per second of examples/rllib_ppo.py with one runner and with two.

    python -m experiments.examples.rllib_throughput --results-dir experiments/results/examples

Run it in an environment with Ray (scripts/test_libraries.sh makes one), on an otherwise idle machine; the load average
at the beginning is recorded with the numbers. Every variant trains for `--iterations` iterations after one warm-up
iteration. "end to end" includes the time of the updates; "sampling" is the time of the runners alone.
"""

import argparse
import json
import os
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import canvit_gym
from canvit_gym.atomic import write_text
from canvit_gym.config import config_from_kwargs
from canvit_gym.provenance import provenance
from canvit_gym.versions import package_version

EXAMPLE = Path(__file__).parents[2] / "examples" / "rllib_ppo.py"
VARIANTS = ((1, "vector_entry_point"), (2, "vector_entry_point"), (1, "sync"), (2, "sync"))
"""(runners, RLlib's gym_env_vectorize_mode)"""


def example() -> ModuleType:
    """examples/rllib_ppo.py as a module, since examples/ is not a package."""
    spec = spec_from_file_location("rllib_ppo", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(module: ModuleType, runners: int, mode: str, *, iterations: int) -> dict[str, Any]:
    args = module.parse(["--num-env-runners", str(runners), "--vectorize-mode", mode])
    config = config_from_kwargs({**canvit_gym.ENVIRONMENTS[args.env], **args.env_kwargs})
    algorithm = module.ppo(args, config).build_algo()
    try:
        algorithm.train()
        began, sampled, sampling = time.perf_counter(), 0, 0.0
        for _ in range(iterations):
            found = algorithm.train()
            sampled += int(found["env_runners"]["num_env_steps_sampled"])
            sampling += float(found["timers"]["env_runner_sampling_timer"])
        seconds = time.perf_counter() - began
    finally:
        algorithm.stop()
    return {
        "runners": runners,
        "mode": mode,
        "envs_per_runner": args.num_envs,
        "glimpses_per_s": sampled / seconds,
        "sampling_glimpses_per_s": sampled / sampling,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--results-dir", type=Path, default=Path("experiments/results/examples"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    module = example()
    module.ray.init(include_dashboard=False)
    rows = [measure(module, runners, mode, iterations=options.iterations) for runners, mode in VARIANTS]
    origin = provenance()
    origin["versions"]["ray"] = package_version("ray")
    result = {"rows": rows, "load_average": load, "provenance": origin}
    lines = ["| runners | mode | end to end, glimpses/s | sampling, glimpses/s |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row['runners']} x {row['envs_per_runner']} scenes | {row['mode']} | {row['glimpses_per_s']:.0f} | "
        f"{row['sampling_glimpses_per_s']:.0f} |"
        for row in rows
    ]
    machine = origin["machine"]
    text = (
        f"# examples/rllib_ppo.py with one runner and with two\n\nRay {origin['versions']['ray']}, {machine['cores']} "
        f"cores ({machine['cpu']}), load average {load:.1f} at the beginning. Written by\n\n    {origin['command']}\n\n"
        + "\n".join(lines)
        + "\n"
    )
    write_text(options.results_dir / "rllib_throughput.json", json.dumps(result, indent=1) + "\n")
    write_text(options.results_dir / "rllib_throughput.md", text)
    print(text)


if __name__ == "__main__":
    main()
