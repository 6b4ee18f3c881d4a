"""Do agents learn from observation_preset="compact", which is small enough for a replay buffer of a million steps?

    python -m experiments.examples.compact_observations --decisions 40960 --seeds 2 \\
        --runs-dir runs/compact --results-dir experiments/results/examples

The DQN of agents.train (Stable-Baselines3's, with our extractor) learns on compact observations; all other settings are
those of agents/hyperparameters/dqn.yml. Its last policies are evaluated on test scenes, at the viewpoints of highest
value, together with a random policy and the best hand-coded one of experiments/results/suite_headroom. The share is
DQN's gain over random divided by the hand-coded policy's; intervals are 95% bootstrap intervals over scenes and seeds.

Trained policies are kept in --runs-dir; the same command continues after an interruption.
"""

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from agents.intervals import with_interval
from agents.settings import TrainConfig
from agents.train_once import complete
from canvit_gym.atomic import write_text
from canvit_gym.benchmark.comparison import share_of_lead
from canvit_gym.command_line import GOES_ON, run_command
from canvit_gym.evaluation import Evaluation, evaluate, score_statistic
from canvit_gym.policies import make_policy
from canvit_gym.policies.learned import LearnedPolicy, load_policy
from canvit_gym.provenance import plain, provenance
from canvit_gym.statistics import bootstrap_interval

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompactConfig:
    env: str = "CanViT/FashionClassification-v0"
    algo: str = "dqn"
    decisions: int = 40_960
    seeds: int = 2
    num_scenes: int = 1000
    """Test scenes to evaluate on."""
    hand_coded: str = "item_probability(scale=(0.34, 0.24))"
    """The best hand-coded policy without labels."""
    runs_dir: Path = Path("runs/compact")
    results_dir: Path = Path("experiments/results/examples")


def trained(config: CompactConfig, seed: int) -> LearnedPolicy | None:
    """The trained policy; None after Ctrl-C."""
    run = TrainConfig(
        run_dir=config.runs_dir / f"{config.algo}{seed}_{config.decisions}",
        algo=config.algo,
        env=config.env,
        env_kwargs='{"observation_preset": "compact"}',
        total_timesteps=config.decisions,
        seed=seed,
        eval_every=0,
        progress=False,
    )
    return load_policy(run.run_dir / "last", device="cpu") if complete(run) else None


def bytes_per_observation(policy: LearnedPolicy) -> int:
    boxes = cast(spaces.Dict, policy.observation_space).values()
    return sum(int(np.prod(box.shape or ())) * cast(np.dtype[Any], box.dtype).itemsize for box in boxes)


def study(config: CompactConfig) -> dict[str, Any] | None:
    """The results as plain JSON values; None after Ctrl-C."""
    found: dict[str, list[Evaluation]] = {"random": [], config.algo: [], config.hand_coded: []}
    size = 0
    for seed in range(config.seeds):
        policy = trained(config, seed)
        if policy is None:
            return None
        size = bytes_per_observation(policy)
        test = replace(policy.record.env, split="test", num_scenes=config.num_scenes, shard=(0, 1), device="cpu")
        found[config.algo].append(evaluate(policy, config=test))
        found["random"].append(
            evaluate(make_policy("random", config=test, num_glimpses=test.budget), config=test, seed=seed)
        )
        if not found[config.hand_coded]:  # deterministic: once is enough
            hand_coded = make_policy(config.hand_coded, config=test, num_glimpses=test.budget)
            found[config.hand_coded].append(evaluate(hand_coded, config=test))
        log.info("seed %d: %s %.2f %%", seed, config.algo, 100 * found[config.algo][-1].score()[-1])
    curves = {name: score_statistic(of_name) for name, of_name in found.items()}
    three = [curves[name] for name in (config.algo, "random", config.hand_coded)]
    share = bootstrap_interval(*three, of=lambda *draws: share_of_lead(*(draw[:, -1:] for draw in draws)))
    return {
        "config": plain(asdict(config)),
        "metric": found["random"][0].metric,
        "bytes_per_observation": size,
        "rows": {
            name: {
                "score": bootstrap_interval(curve).at(-1),
                "of_seeds": [float(evaluation.score()[-1]) for evaluation in found[name]],
            }
            for name, curve in curves.items()
        },
        "share_of_gain": share.at(0),
        "provenance": provenance(),
    }


def text(config: CompactConfig, result: dict[str, Any]) -> str:
    size = result["bytes_per_observation"]
    lines = [f"| | {result['metric']}, % on test scenes | of the seeds |", "| --- | --- | --- |"]
    for name, row in result["rows"].items():
        seeds = ", ".join(f"{100 * score:.1f}" for score in row["of_seeds"])
        lines.append(f"| {name} | {with_interval(row['score'], '{:.1f}', 100)} | {seeds} |")
    return (
        f'# {config.algo.upper()} on observation_preset="compact", {config.env}\n\n{config.decisions:,} decisions, '
        f"{config.seeds} seed{'s' * (config.seeds > 1)}, {config.num_scenes:,} test scenes; after the last glimpse. An "
        f"observation has {size:,} bytes: a buffer of a million steps, which holds two of each, {2 * size / 1e3:.1f} "
        "GB.\n\n"
        + "\n".join(lines)
        + f"\n\nThe gain over random is {with_interval(result['share_of_gain'], '{:.2f}')} of the hand-coded policy's. "
        f"Written by\n\n    {result['provenance']['command']}\n"
    )


def main(config: CompactConfig) -> None:
    result = study(config)
    if result is None:
        raise KeyboardInterrupt
    write_text(config.results_dir / "compact_observations.json", json.dumps(result, indent=1) + "\n")
    write_text(config.results_dir / "compact_observations.md", text(config, result))
    print(text(config, result))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_command(main, CompactConfig, description=__doc__, if_interrupted=GOES_ON)
