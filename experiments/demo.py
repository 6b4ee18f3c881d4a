"""The main job, end to end: train a PPO agent to look, then compare it with hand-coded policies on test scenes.

    python -m experiments.demo

Trains on FashionClassification's training scenes with rewards alone, chooses the best policy on validation scenes, and
evaluates it once on all test scenes, at the same budget as policies of the CanViT paper and the strongest hand-coded
ones, whose scales were tuned on validation scenes. Prints the table, and writes `results.json`, `gaze.png` and
`gaze_before.png` (the same scenes, viewed by the network before training) into the run directory.
"""

import json
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from agents.ppo.hyperparameters import REWARDS_ALONE
from agents.run_directory import CONFIG, RESULT
from agents.settings import TrainConfig
from agents.train import train
from canvit_gym.benchmark.gaze_picture import draw_gaze
from canvit_gym.checks import integer, optional
from canvit_gym.command_line import INTERRUPTED, run_command
from canvit_gym.evaluation import Evaluation, evaluate, loss_statistic, record_views, score_statistic
from canvit_gym.policies import GlimpsePolicy, make_policy
from canvit_gym.policies.learned import LearnedPolicy, load_policy, load_record, make_network
from canvit_gym.provenance import provenance
from canvit_gym.seeding import seeded
from canvit_gym.statistics import Estimate, paired_difference
from canvit_gym.tasks.metric import NATS, Metric
from experiments.throughput.peak_memory import peak_mib

ENV_ID = "CanViT/FashionClassification-v0"
OPPONENTS = (
    "random",
    "full_then_random",
    "coarse_to_fine",
    "fine_to_coarse",
    "center(scale=0.55)",
    "saliency(scale=0.4)",
    "item_probability(scale=(0.34, 0.24))",
)
"""Policies of the paper, and the strongest others. Their scales were tuned by experiments.studies.headroom (saliency)
and experiments.studies.suite_headroom. The last one also reads the canvas with the segmentation probe."""
DECISIONS = 81_920
AGENT, SAMPLED = "PPO agent", "PPO agent, sampled"


@dataclass(frozen=True)
class DemoConfig:
    run_dir: Path = Path("runs/demo")
    """Where the policy, the results and the picture go. A finished run there is evaluated as it is, an unfinished one
    gone on with."""
    total_timesteps: int = DECISIONS
    """Decisions to train for."""
    num_training_scenes: int | None = None
    """None: all of the training split."""
    num_test_scenes: int | None = None
    """None: all of the test split."""
    num_pictures: int = 6
    seed: int = 0


def compare(results: dict[str, Evaluation], *, reference: str) -> dict[str, Estimate]:
    """The agent's paired differences from `reference` after every glimpse, with 95% intervals over scenes."""
    agent, other = results[AGENT], results[reference]
    return {
        "score": paired_difference(score_statistic([agent]), score_statistic([other])),
        "loss": paired_difference(loss_statistic([agent]), loss_statistic([other])),
    }


def format_difference(difference: dict[str, Estimate], metric: Metric) -> str:
    """After the last glimpse, in words."""
    shown = []
    for name, display in ((metric.name, metric.display), ("cross-entropy", NATS)):
        last = difference["score" if name == metric.name else "loss"].at(-1)
        value, low, high = (display.text(last[key], signed=True) for key in ("value", "low", "high"))
        shown.append(f"{name} {value} [{low}, {high}] {display.difference_unit}")
    return ", ".join(shown)


def table(results: dict[str, Evaluation]) -> str:
    """Markdown: the score and the cross-entropy (nats) after every glimpse."""
    metric = next(iter(results.values())).measure
    num_glimpses = next(iter(results.values())).loss.shape[1]
    header = " | ".join(f"{t + 1}" for t in range(num_glimpses))
    lines = [f"| {metric.name} {metric.display.unit} after glimpse | {header} |", "| --- " * (num_glimpses + 1) + "|"]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(metric.display.text(v) for v in result.score()) + " |")
    lines += ["", f"| cross-entropy after glimpse | {header} |", "| --- " * (num_glimpses + 1) + "|"]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in result.mean_loss()) + " |")
    return "\n".join(lines)


def untrained(policy: LearnedPolicy) -> LearnedPolicy:
    """The policy with its network as it was before training, initialized with the run's seed."""
    with seeded(int(policy.record.training.get("seed", 0)), torch.device("cpu")):
        network = make_network(policy.record, policy.record.env)
    return LearnedPolicy(network.eval(), policy.record)


def trained_policy(config: DemoConfig) -> Path:
    """The best policy's directory, from a finished run in run_dir, one that is continued there, or a new one."""
    if (config.run_dir / RESULT).exists():
        print(f"1/3 {config.run_dir} holds a finished run: evaluating its policy (to train anew, remove it)")
        return config.run_dir / "best"
    env_kwargs = {} if config.num_training_scenes is None else {"num_scenes": config.num_training_scenes}
    resume = (config.run_dir / CONFIG).exists()
    verb = "Going on with" if resume else "Training"
    print(f"1/3 {verb} a PPO agent on {ENV_ID} ({config.total_timesteps:,} decisions)")
    trained = train(
        TrainConfig(
            env=ENV_ID,
            run_dir=config.run_dir,
            total_timesteps=config.total_timesteps,
            seed=config.seed,
            hyper=json.dumps(REWARDS_ALONE),
            env_kwargs=json.dumps(env_kwargs),
            resume=resume,
        )
    )
    if trained.interrupted:
        print("Interrupted. Run the same command to continue.")
        raise SystemExit(INTERRUPTED)
    return trained.best_policy_dir


def checked(config: DemoConfig) -> DemoConfig:
    """The options, checked before training, with "~" expanded."""
    for name in ("total_timesteps", "num_pictures"):
        integer(1)(name, getattr(config, name))
    for name in ("num_training_scenes", "num_test_scenes"):
        optional(integer(1))(name, getattr(config, name))
    integer(0)("seed", config.seed)
    return replace(config, run_dir=config.run_dir.expanduser())


def main(config: DemoConfig) -> dict[str, object]:
    began, config = time.monotonic(), checked(config)
    policy_dir = trained_policy(config)
    training = json.loads((config.run_dir / RESULT).read_text(encoding="utf-8"))

    decisions = load_record(policy_dir).training["num_timesteps"]
    print(f"    kept, by validation loss: after {decisions:,} decisions")

    print("2/3 Evaluating on test scenes")
    # The environment that the policy was trained in, except for the scenes.
    agent = load_policy(policy_dir)
    test = replace(agent.record.env, split="test", num_scenes=config.num_test_scenes)
    policies: dict[str, GlimpsePolicy] = {}
    for name in OPPONENTS:
        policy = make_policy(name, config=test, num_glimpses=test.budget)
        policies[policy.info.paper_name] = policy
    policies[AGENT] = agent
    policies[SAMPLED] = agent.sampling()
    results = {
        name: evaluate(policy, config=test, seed=config.seed, progress=name) for name, policy in policies.items()
    }
    print(f"\n{len(results[AGENT].scene)} test scenes, {test.budget} glimpses\n\n{table(results)}\n")

    metric = results[AGENT].measure
    opponents = [name for name in results if name not in (AGENT, SAMPLED)]
    best = max(opponents, key=lambda name: results[name].score()[-1])
    difference = compare(results, reference=best)
    print(f"{AGENT} minus {best} after glimpse {test.budget}: {format_difference(difference, metric)}")
    wins = bool(difference["score"].low[-1] > 0)
    print(
        f"Beats the best of the {len(opponents)} in {metric.name}, with an interval clear of zero: "
        f"{'yes' if wins else 'no'}\n"
    )

    print("3/3 Drawing the agent's gaze, before and after training")
    rows = np.arange(min(config.num_pictures, len(results[AGENT].scene)))
    picture = config.run_dir / "gaze.png"
    draw_gaze(record_views(agent, config=test, rows=rows), picture)
    draw_gaze(record_views(untrained(agent), config=test, rows=rows), config.run_dir / "gaze_before.png")

    record: dict[str, object] = dict(
        environment=ENV_ID,
        config=test.to_json(),
        metric=metric.name,
        score={name: result.score().tolist() for name, result in results.items()},
        cross_entropy={name: result.mean_loss().tolist() for name, result in results.items()},
        best_opponent=best,
        agent_minus_best={name: estimate.at(-1) for name, estimate in difference.items()},
        beats_best=wins,
        training=training
        | {"kept_after": decisions, "seed": json.loads((config.run_dir / CONFIG).read_text(encoding="utf-8"))["seed"]},
        seconds=time.monotonic() - began,
        peak_gib=peak_mib(torch.device("cpu")) / 2**10,
        num_threads=torch.get_num_threads(),
        provenance=provenance(),
    )
    (config.run_dir / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(
        f"Done in {(time.monotonic() - began) / 60:.1f} minutes, peak memory {record['peak_gib']:.1f} GiB. "
        f"Picture: {picture}. TensorBoard: tensorboard --logdir {config.run_dir}"
    )
    return record


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run_command(main, DemoConfig, description=__doc__)
