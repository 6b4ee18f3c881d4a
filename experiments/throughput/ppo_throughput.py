"""PPO end to end, rollouts and updates: ours against stock stable-baselines3 on the same environment.

    python -m experiments.throughput.ppo_throughput --output experiments/results/throughput/ppo.json

Every contestant runs in its own process, several times, in turns, so that a machine that slows down affects all of them
and none uses memory left by another. A measurement is --rollouts rollouts with their updates, after a warm-up rollout:

- glimpses/s: over all scenes, including their first glimpses;
- memory: the peak of the resident set above its size before the algorithm was made (on a GPU: the peak of what is
  allocated there), and the size of the rollout buffer;
- backbone: the share of the time in the frozen backbone's forward pass, which is the same for every contestant;
- update: the share of the time in the policy's update. The rest is the environment and the policy's forward pass.

The record's `ratio_with_free_update` is how far ours could get ahead of stock PPO if updates took no time.
"""

import json
import resource
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.algorithms import load_hyperparameters
from canvit_gym.checks import integer, optional
from canvit_gym.command_line import env_config, json_object, output_directory, run_command
from canvit_gym.provenance import plain, provenance
from canvit_gym.sb3 import make_sb3_env
from experiments.throughput.peak_memory import peak_mib
from experiments.throughput.ppo import learn_rollouts, learn_timed, ppo_for_throughput, stock_ppo_for_throughput

OURS, STOCK, STOCK_POLICY = "canvit_gym", "stock PPO", "stock PPO and policy"
DESCRIPTIONS = {
    OURS: "GlimpsePPO, TensorRolloutBuffer (float16 maps), ViewpointPolicy",
    STOCK: "stable-baselines3 PPO, DictRolloutBuffer, ViewpointPolicy",
    STOCK_POLICY: "stable-baselines3 PPO, DictRolloutBuffer, MultiInputPolicy",
}


@dataclass(frozen=True)
class PPOThroughputConfig:
    env: str = "CanViT/FashionSegmentation-v0"
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, for every contestant, as JSON."""
    hyper: str = "{}"
    """Overrides of agents/hyperparameters/ppo.yml for ours only, as JSON."""
    num_envs: int = 64
    num_scenes: int = 512
    rollouts: int = 3
    repeats: int = 3
    threads: int | None = None
    """PyTorch's threads. None: as it finds them."""
    contestant: str | None = None
    """Measure this one here, once, and print JSON; used for the processes. None: all of them, in turns."""
    output: Path | None = None
    """Where to write the JSON record; the table is printed in any case."""


def resident_mib() -> float:
    """The current resident memory, not the peak."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def env_kwargs_of(config: PPOThroughputConfig) -> dict[str, Any]:
    return {"num_scenes": config.num_scenes, **json_object(config.env_kwargs, option="--env-kwargs")}


def make(config: PPOThroughputConfig) -> OnPolicyAlgorithm:
    env_kwargs = env_kwargs_of(config)
    if config.contestant == OURS:
        overrides = json_object(config.hyper, option="--hyper")
        return ppo_for_throughput(config.env, num_envs=config.num_envs, env_kwargs=env_kwargs, overrides=overrides)
    return stock_ppo_for_throughput(
        config.env,
        num_envs=config.num_envs,
        env_kwargs=env_kwargs,
        policy="ViewpointPolicy" if config.contestant == STOCK else "MultiInputPolicy",
    )


def measure(config: PPOThroughputConfig) -> dict[str, float]:
    """Measure one contestant in this process."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    warm_environment(config)
    before = resident_mib()
    model = make(config)
    learn_rollouts(model, 1)
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    found = learn_timed(model, rollouts=config.rollouts)
    return found | {
        "peak_mib": peak_mib(model.device) - (0 if on_gpu else before),
        "peak_process_mib": peak_mib(torch.device("cpu")),
    }


def warm_environment(config: PPOThroughputConfig) -> None:
    """Step an environment of the same size once, so that all memory allocated later is the algorithm's."""
    env_kwargs = load_hyperparameters(config.env).env_kwargs | env_kwargs_of(config)
    envs = make_sb3_env(config.env, config.num_envs, **env_kwargs)
    envs.reset()
    shape = (config.num_envs, *(envs.action_space.shape or ()))
    for _ in range(envs.glimpse_envs.config.budget):
        envs.step(np.zeros(shape, dtype=envs.action_space.dtype))
    envs.close()


def measured_apart(config: PPOThroughputConfig, contestant: str) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.throughput.ppo_throughput", "--contestant", contestant]
    for name in ("env", "env_kwargs", "hyper", "num_envs", "num_scenes", "rollouts", "threads"):
        if (value := getattr(config, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring {contestant!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(medians: dict[str, dict[str, float]]) -> str:
    stock = medians[STOCK]
    lines = [
        "| | glimpses/s | ratio to stock PPO | in the backbone | in the update | rollout buffer MiB | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, values in medians.items():
        rate, share = values["glimpses_per_second"], values["share_in_backbone"]
        lines.append(
            f"| {name}: {DESCRIPTIONS[name]} | {rate:,.0f} | {rate / stock['glimpses_per_second']:.2f} | {share:.0%} "
            f"| {values['share_in_update']:.0%} | {values['rollout_buffer_mib']:.1f} | {values['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def ratio_with_free_update(medians: dict[str, dict[str, float]]) -> float:
    """Glimpses/s of ours without its updates, over stock PPO's with its own."""
    ours, stock = medians[OURS], medians[STOCK]
    return ours["glimpses_per_second"] / (1 - ours["share_in_update"]) / stock["glimpses_per_second"]


def main(config: PPOThroughputConfig) -> None:
    if config.contestant is not None:
        if config.contestant not in DESCRIPTIONS:
            raise ValueError(f"unknown contestant {config.contestant!r}; there are: {', '.join(DESCRIPTIONS)}")
        print(json.dumps(measure(config)))
        return
    for name in ("num_envs", "num_scenes", "rollouts", "repeats"):
        integer(1)(name, getattr(config, name))
    optional(integer(1))("threads", config.threads)
    hyper = load_hyperparameters(config.env, json_object(config.hyper, option="--hyper"))
    env_config(config.env, {**hyper.env_kwargs, **env_kwargs_of(config)})
    if config.output is not None:
        output_directory(config.output.parent, option="--output")
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in DESCRIPTIONS}
    for _ in range(config.repeats):
        for name, records in measured.items():
            records.append(measured_apart(config, name))
    medians = {
        name: {key: statistics.median(record[key] for record in records) for key in records[0]}
        for name, records in measured.items()
    }
    print(table(medians))
    print(f"with updates that took no time, ours would be at {ratio_with_free_update(medians):.2f} times stock PPO")
    if config.output is not None:
        record = dict(
            config=plain(asdict(config)),
            contestants=DESCRIPTIONS,
            measured=measured,
            median=medians,
            ratio_with_free_update=ratio_with_free_update(medians),
            provenance=provenance(),
        )
        config.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main, PPOThroughputConfig, description=__doc__)
