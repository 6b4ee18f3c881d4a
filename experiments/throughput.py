"""Glimpses per second of every layer, against canvit-pytorch's bare run_episode loop.

    python -m experiments.throughput --output experiments/results/throughput/cpu.json

All contestants see scenes of the same split in batches of --num-envs and take --budget glimpses per scene,
the full scene first. Repeats are interleaved, so that a machine that slows down slows all of them; the table
gives medians, and ratios of medians within the run. The first repeat of each is warm-up and is dropped.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from canvit_pytorch.episode import run_episode
from canvit_pytorch.policies import make_policy
from gymnasium.vector import SyncVectorEnv

import canvit_gym
from canvit_gym.backbone.load import load_backbone
from canvit_gym.sb3 import GlimpseVecEnv, make_sb3_env
from canvit_gym.vector_env import GlimpseVectorEnv
from experiments.provenance import plain, provenance
from experiments.teacher import normalized
from experiments.train import ppo_for_throughput


@dataclass(frozen=True)
class ThroughputConfig:
    env: str = "CanViT/FashionSegmentation-v0"
    num_envs: int = 64
    budget: int = 5
    num_scenes: int = 512
    """Of the validation split; prepared before the clock starts."""
    repeats: int = 7
    rounds: int = 4
    """Passes over all environments per repeat, `budget` glimpses each."""
    device: str = "auto"
    skip_naive: bool = False
    output: Path | None = None
    """Where to write the JSON record; the table is printed in any case."""


Contestant = Callable[[], int]
"""Runs once and returns how many glimpses it took."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_loop(config: ThroughputConfig) -> Contestant:
    """canvit-pytorch's run_episode on scenes that already lie normalized on the device, without any probe."""
    backbone = load_backbone("nano", device=config.device)
    envs = make_vector_env(config)
    images = normalized(envs.scenes.load(np.arange(config.num_envs)).images.to(backbone.device))
    envs.close()

    def run() -> int:
        with torch.inference_mode():
            for _ in range(config.rounds):
                policy = make_policy(
                    "full_then_random",
                    batch_size=config.num_envs,
                    device=backbone.device,
                    num_glimpses=config.budget,
                    canvas_grid_size=backbone.canvas_grid,
                )
                run_episode(
                    canvit=backbone.canvit,
                    images=images,
                    policy=policy,
                    num_glimpses=config.budget,
                    glimpse_size_px=backbone.glimpse_size_px,
                    initial_state=backbone.init_state(config.num_envs),
                )
        return config.rounds * config.num_envs * config.budget

    return run


def env_kwargs(config: ThroughputConfig) -> dict[str, Any]:
    return dict(split="validation", num_scenes=config.num_scenes, budget=config.budget, device=config.device)


def make_vector_env(config: ThroughputConfig) -> GlimpseVectorEnv:
    envs = gym.make_vec(config.env, num_envs=config.num_envs, **env_kwargs(config))
    assert isinstance(envs, GlimpseVectorEnv)
    return envs


def vector_env(config: ThroughputConfig, *, allow_stop: bool = False) -> Contestant:
    """NEXT_STEP autoreset: a step of all environments is one forward, whether it acts or resets."""
    envs = gym.make_vec(config.env, num_envs=config.num_envs, allow_stop=allow_stop, **env_kwargs(config))
    envs.reset(seed=0)
    envs.action_space.seed(0)
    glimpse_actions = envs.single_action_space.n - allow_stop  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)

    ended = np.zeros(config.num_envs, dtype=np.bool_)
    taken = np.ones(config.num_envs, dtype=np.int64)

    def run() -> int:
        nonlocal ended, taken
        glimpses = 0
        for _ in range(config.rounds * config.budget):
            actions = rng.integers(glimpse_actions, size=config.num_envs)
            if allow_stop:
                actions[rng.random(config.num_envs) < 0.1] = glimpse_actions
            _, _, terminated, _, info = envs.step(actions)
            # An environment that ended takes its next scene's first glimpse; one that stops takes none.
            glimpses += int((ended | (info["glimpses"] != taken)).sum())
            ended, taken = terminated, info["glimpses"]
        return glimpses

    return run


def sb3_env(config: ThroughputConfig) -> Contestant:
    envs: GlimpseVecEnv = make_sb3_env(config.env, config.num_envs, **env_kwargs(config))
    envs.reset()
    rng = np.random.default_rng(0)

    def run() -> int:
        for _ in range(config.rounds * (config.budget - 1)):
            envs.step(rng.integers(envs.action_space.n, size=config.num_envs))  # type: ignore[attr-defined]
        # SAME_STEP: the last step of an episode takes two glimpses, its own and the next scene's first.
        return config.rounds * config.num_envs * config.budget

    return run


def naive_env(config: ThroughputConfig) -> Contestant:
    """Gymnasium's SyncVectorEnv over single environments: one forward per environment."""
    envs = SyncVectorEnv(
        [lambda: gym.make(config.env, disable_env_checker=True, **env_kwargs(config))] * config.num_envs
    )
    envs.reset(seed=0)
    rng = np.random.default_rng(0)

    def run() -> int:
        for _ in range(config.budget):
            envs.step(rng.integers(envs.single_action_space.n, size=config.num_envs))  # type: ignore[attr-defined]
        return config.num_envs * config.budget

    return run


def ppo(config: ThroughputConfig) -> Contestant:
    """Rollouts and updates, with the hyperparameters of agents/hyperparameters.yml."""
    model = ppo_for_throughput(config.env, num_envs=config.num_envs, env_kwargs=env_kwargs(config))
    steps = model.n_steps

    def run() -> int:
        model.learn(total_timesteps=steps * config.num_envs, reset_num_timesteps=False)
        return steps * config.num_envs * config.budget // (config.budget - 1)

    return run


def measure(config: ThroughputConfig) -> dict[str, list[float]]:
    """Glimpses per second of every contestant, one number per repeat."""
    device = load_backbone("nano", device=config.device).device
    contestants: dict[str, Contestant] = {
        "run_episode, bare loop": bare_loop(config),
        "GlimpseVectorEnv": vector_env(config),
        "GlimpseVectorEnv, early stops": vector_env(config, allow_stop=True),
        "SB3 adapter": sb3_env(config),
        "PPO end to end": ppo(config),
    }
    if not config.skip_naive:
        contestants["SyncVectorEnv of single envs"] = naive_env(config)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(config.repeats + 1):
        for name, run in contestants.items():
            synchronize(device)
            began = time.perf_counter()
            glimpses = run()
            synchronize(device)
            if repeat:
                rates[name].append(glimpses / (time.perf_counter() - began))
    return rates


def main(config: ThroughputConfig) -> None:
    rates = measure(config)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    bare = medians["run_episode, bare loop"]
    print(f"| {config.num_envs} scenes a batch | glimpses/s | ratio to the bare loop |\n| --- | --- | --- |")
    for name, median in medians.items():
        print(f"| {name} | {median:,.0f} | {median / bare:.2f} |")
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"Peak memory of all of them together: {peak_gib:.2f} GiB")
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        record = dict(
            config=plain(asdict(config)),
            glimpses_per_second=rates,
            median=medians,
            ratio_to_bare_loop={name: median / bare for name, median in medians.items()},
            peak_gib=peak_gib,
            canvit_gym_environments=list(canvit_gym.ENVIRONMENTS),
            provenance=provenance(),
        )
        config.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(ThroughputConfig, description=__doc__))
