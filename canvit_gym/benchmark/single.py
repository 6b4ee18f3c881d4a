"""Evaluate one policy on one environment: its score after every glimpse, with 95% intervals over scenes.

    canvit-gym evaluate --policy entropy_coarse_to_fine
    canvit-gym evaluate --policy runs/mine --split validation --output runs/mine/validation.npz

All glimpses of the budget are taken, also where episodes can be stopped: what FashionStop pays is measured by
`canvit-gym suite --envs CanViT/FashionStop-v0 --output DIR`, and from Python by `evaluate_with_stops` of
canvit_gym.stopping.

To compare policies use `canvit-gym benchmark`, which pairs them scene by scene.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from canvit_gym.benchmark.options import EvaluationOptions
from canvit_gym.benchmark.runner import evaluable
from canvit_gym.command_line import PROGRAM, output_directory, run_command
from canvit_gym.evaluation import Evaluation, evaluate, loss_statistic, score_statistic
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.on_disk import dataset_root
from canvit_gym.statistics import Statistic, bootstrap_interval
from canvit_gym.tasks import metric_named


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationOptions):
    policy: str
    """A hand-coded policy, optionally with arguments: "center(scale=0.55)"; or a trained one: a shipped policy,
    such as FashionStop-v0/ppo, the directory of a training run, or user/name on the Hub."""
    sampled: bool = False
    """Sample the viewpoints of a learned policy instead of taking the most likely ones."""
    output: Path | None = None
    """File to save the evaluation to; canvit_gym.evaluation.Evaluation.load reads it."""
    seed: int = 0


def _row(name: str, statistic: Statistic, *, factor: float, digits: int) -> str:
    found = bootstrap_interval(statistic)
    cells = [
        f"{factor * value:.{digits}f} [{factor * low:.{digits}f}, {factor * high:.{digits}f}]"
        for value, low, high in zip(found.value, found.low, found.high, strict=True)
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def table(evaluation: Evaluation) -> str:
    """Score and loss after every glimpse, in Markdown."""
    num_glimpses = evaluation.loss.shape[1]
    header = " | ".join(str(t + 1) for t in range(num_glimpses))
    return "\n".join(
        [
            f"| after glimpse | {header} |",
            "| --- " * (num_glimpses + 1) + "|",
            _row(f"{evaluation.metric} %", score_statistic([evaluation]), factor=100, digits=1),
            _row(metric_named(evaluation.metric).loss.label, loss_statistic([evaluation]), factor=1, digits=3),
        ]
    )


def main(config: EvaluateConfig) -> Evaluation:
    """Evaluate, print the table, and save the evaluation if requested."""
    env = config.env_config()
    output = config.output and config.output.expanduser()
    if output is not None:
        output_directory(output.parent, option="--output")
        if output.is_dir():
            raise IsADirectoryError(f"--output {output} is a directory: name a file in it, such as {output / 'x.npz'}")
    if DATASETS[env.dataset].on_disk is not None:
        dataset_root(env.dataset, env.root)  # a wrong root is told before policies ask for a checkpoint
    policy = evaluable(config.policy, env, deterministic=not config.sampled, progress=config.progress)
    evaluation = evaluate(
        policy.policy,
        config=policy.config,
        batch_size=config.batch_size,
        seed=config.seed,
        progress=config.policy if config.progress else None,
    )
    print(f"{config.policy} on {len(evaluation.scene):,} {config.split} scenes of {config.env}\n\n{table(evaluation)}")
    if output is not None:
        evaluation.save(output)
        print(f"\nSaved: {output}")
    return evaluation


def command_line(arguments: Sequence[str]) -> None:
    """`canvit-gym evaluate`."""
    run_command(main, EvaluateConfig, description=__doc__, arguments=arguments, prog=f"{PROGRAM} evaluate")
