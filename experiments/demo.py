"""The main job, end to end: train a PPO agent to look, then compare it on test scenes with hand-coded policies.

    python -m experiments.demo

Trains on FashionSegmentation's training scenes, chooses the best policy on validation scenes, evaluates once on
all test scenes against the paper's R-IID, F-IID, C2F and EG-C2F at the same budget, prints the table, and writes
`results.json` and `gaze.png` into the run directory.
"""

import json
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from canvit_pytorch.policies import PolicyName

from agents.algorithms import load_hyperparameters
from agents.run_directory import CONFIG, RESULT
from agents.settings import TrainConfig
from agents.train import train
from canvit_gym.benchmark.gaze_picture import draw_gaze
from canvit_gym.command_line import INTERRUPTED, run_command
from canvit_gym.evaluation import Evaluation, evaluate, loss_statistic, record_views, score_statistic
from canvit_gym.policies import GlimpsePolicy, PaperPolicy
from canvit_gym.policies.learned import load_policy, load_record
from canvit_gym.provenance import provenance
from canvit_gym.statistics import Estimate, paired_difference
from experiments.throughput.peak_memory import peak_mib

ENV_ID = "CanViT/FashionSegmentation-v0"
OPPONENTS: tuple[PolicyName, ...] = ("random", "full_then_random", "coarse_to_fine", "entropy_coarse_to_fine")
AGENT, SAMPLED = "PPO agent", "PPO agent, sampled"


@dataclass(frozen=True)
class DemoConfig:
    run_dir: Path = Path("runs/demo")
    """Where the policy, the results and the picture go. A finished run there is evaluated as it is, an unfinished one
    gone on with."""
    total_timesteps: int | None = None
    """Decisions to train for. None: as in agents/hyperparameters/ppo.yml."""
    warm_start_states: int | None = None
    """States of the warm start before them. None: as in agents/hyperparameters/ppo.yml."""
    num_training_scenes: int | None = None
    """None: all of the training split."""
    num_test_scenes: int | None = None
    """None: all of the test split."""
    num_pictures: int = 12
    seed: int = 0


def compare(results: dict[str, Evaluation], *, reference: str) -> dict[str, Estimate]:
    """The agent's paired differences to `reference` after every glimpse, with 95% intervals over scenes."""
    agent, other = results[AGENT], results[reference]
    return {
        "miou": paired_difference(score_statistic([agent]), score_statistic([other])),
        "cross_entropy": paired_difference(loss_statistic([agent]), loss_statistic([other])),
    }


def format_difference(difference: dict[str, Estimate]) -> str:
    """After the last glimpse, in words."""
    miou, loss = (difference[name].at(-1) for name in ("miou", "cross_entropy"))
    points = "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{name: 100 * value for name, value in miou.items()})
    return f"mIoU {points} points, cross-entropy " + "{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**loss)


def table(results: dict[str, Evaluation]) -> str:
    """Markdown: mIoU (%) and cross-entropy (nats) after every glimpse."""
    num_glimpses = next(iter(results.values())).loss.shape[1]
    header = " | ".join(f"{t + 1}" for t in range(num_glimpses))
    lines = [f"| mIoU % after glimpse | {header} |", "| --- " * (num_glimpses + 1) + "|"]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * v:.1f}" for v in result.score()) + " |")
    lines += ["", f"| cross-entropy after glimpse | {header} |", "| --- " * (num_glimpses + 1) + "|"]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{v:.4f}" for v in result.mean_loss()) + " |")
    return "\n".join(lines)


def trained_policy(config: DemoConfig) -> Path:
    """The best policy's directory: of a finished run in run_dir, of one that goes on there, or of a new one."""
    if (config.run_dir / RESULT).exists():
        print(f"1/3 {config.run_dir} holds a finished run: evaluating its policy (to train anew, remove it)")
        return config.run_dir / "best"
    env_kwargs = {} if config.num_training_scenes is None else {"num_scenes": config.num_training_scenes}
    resume = (config.run_dir / CONFIG).exists()
    verb = "Going on with" if resume else "Training"
    hyper = load_hyperparameters(ENV_ID)
    decisions = config.total_timesteps or hyper.total_timesteps
    print(f"1/3 {verb} a PPO agent on {ENV_ID} (a warm start, then {decisions:,} decisions)")
    trained = train(
        TrainConfig(
            env=ENV_ID,
            run_dir=config.run_dir,
            total_timesteps=config.total_timesteps,
            warm_start_states=None if resume else config.warm_start_states,
            seed=config.seed,
            env_kwargs=json.dumps(env_kwargs),
            resume=resume,
        )
    )
    if trained.interrupted:
        print("Interrupted. The same command goes on from here.")
        raise SystemExit(INTERRUPTED)
    return trained.best_policy_dir


def main(config: DemoConfig) -> dict[str, object]:
    began = time.monotonic()
    policy_dir = trained_policy(config)
    training = json.loads((config.run_dir / RESULT).read_text(encoding="utf-8"))

    kept = load_record(policy_dir)
    decisions = kept.training["num_timesteps"]
    print(f"    kept, by validation loss: {f'after {decisions:,} decisions' if decisions else 'the warm start'}")

    print("2/3 Evaluating on test scenes")
    # The environment that the policy was trained in, but for the scenes.
    test = replace(kept.env, split="test", num_scenes=config.num_test_scenes)
    agent = load_policy(policy_dir, config=test)
    policies: dict[str, GlimpsePolicy] = {}
    for name in OPPONENTS:
        policy = PaperPolicy(name, num_glimpses=test.budget)
        policies[policy.info.paper_name] = policy
    policies[AGENT] = agent
    policies[SAMPLED] = agent.sampling()
    results = {
        name: evaluate(policy, config=test, seed=config.seed, progress=name) for name, policy in policies.items()
    }
    print(f"\n{len(results[AGENT].scene)} test scenes, {test.budget} glimpses\n\n{table(results)}\n")

    opponents = [name for name in results if name not in (AGENT, SAMPLED)]
    by_score = max(opponents, key=lambda name: results[name].score()[-1])
    by_loss = min(opponents, key=lambda name: results[name].mean_loss()[-1])
    differences = {reference: compare(results, reference=reference) for reference in dict.fromkeys((by_score, by_loss))}
    for reference, difference in differences.items():
        print(f"{AGENT} minus {reference} after glimpse {test.budget}: {format_difference(difference)}")

    wins = {
        "miou": results[AGENT].score()[-1] > results[by_score].score()[-1],
        "cross_entropy": differences[by_loss]["cross_entropy"].high[-1] < 0,
    }
    print(
        f"Beats the best of the four in mIoU: {'yes' if wins['miou'] else 'no'}; in cross-entropy, with an interval "
        f"clear of zero: {'yes' if wins['cross_entropy'] else 'no'}\n"
    )

    print("3/3 Drawing the agent's gaze")
    rows = np.arange(min(config.num_pictures, len(results[AGENT].scene)))
    picture = config.run_dir / "gaze.png"
    draw_gaze(record_views(policies[AGENT], config=test, rows=rows), picture)

    record: dict[str, object] = dict(
        environment=ENV_ID,
        config=test.to_json(),
        miou={name: result.score().tolist() for name, result in results.items()},
        cross_entropy={name: result.mean_loss().tolist() for name, result in results.items()},
        agent_minus={
            reference: {metric: estimate.at(-1) for metric, estimate in difference.items()}
            for reference, difference in differences.items()
        },
        beats_best_of_four={metric: bool(won) for metric, won in wins.items()},
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
