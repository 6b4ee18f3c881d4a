"""How wide should the windows be that a learner begins with? Measured on validation scenes, before any reward.

    python -m experiments.studies.windows
    python -m experiments.studies.windows --envs CanViT/FashionOdd-v0 --seeds 0

Learners whose prior is a detector (agents.detection) begin with the windows that hold most of what it predicts. How
wide these are is chosen with the environment's table of actions and needs no policy to be trained: for every table a
detector is trained on training scenes as before PPO, and the windows are taken greedily by what it predicts
(canvit_gym.policies.windows). Seeds are those of detectors. Differences are from the first table, paired by scene.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agents.algorithms import load_hyperparameters
from agents.detection import Detection, look_around
from agents.intervals import with_interval
from agents.results import write_result
from canvit_gym.checks import check_options, integer, optional
from canvit_gym.command_line import env_config, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.provenance import plain, provenance
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.statistics import bootstrap_interval, paired_difference
from canvit_gym.suite.payoff import payoff_of
from experiments.studies.knowable import DetectedWindows, spaces_of, trained_detector

SCALES: dict[str, tuple[tuple[float, ...], ...]] = {
    "CanViT/FashionSegmentation-v0": ((0.34,), (0.4,), (0.4, 0.34)),
    "CanViT/FashionClassification-v0": ((0.34,), (0.28,)),
    "CanViT/FashionDistractors-v0": ((0.5, 0.3), (0.34, 0.24), (0.4, 0.28)),
    "CanViT/FashionOdd-v0": ((0.34,), (0.34, 0.24), (0.3,)),
    "CanViT/FashionCrowd-v0": ((0.34, 0.17), (0.34, 0.24), (0.34, 0.14)),
}
"""Environment -> the tables that are compared, by their grid_scales; those of agents/hyperparameters/ppo.yml first."""


@dataclass(frozen=True)
class WindowsConfig:
    envs: tuple[str, ...] = tuple(SCALES)
    seeds: tuple[int, ...] = (0, 1)
    """Of the detectors."""
    detection: Detection = field(default_factory=Detection)
    """How detectors are trained."""
    num_scenes: int | None = 3000
    """Validation scenes. None: the data set's default."""
    results_dir: Path = Path("experiments/results/windows")
    progress: bool = True

    def __post_init__(self) -> None:
        check_options(self, optional(integer(1)), "num_scenes")
        if not self.seeds:
            raise ValueError("--seeds must name at least one seed")
        if unknown := [env for env in self.envs if env not in SCALES]:
            raise ValueError(f"--envs {', '.join(unknown)}: no tables to compare; choose among {', '.join(SCALES)}")


def detected(env: EnvConfig, seed: int, config: WindowsConfig) -> tuple[Evaluation, float]:
    """(the evaluation on validation scenes, the detector's cross-entropy in nats a cell) of one detector."""
    space, table = spaces_of(env)
    states = look_around(env, states=config.detection.states, seed=seed, progress=False)
    detector, found = trained_detector(space, env, states, config.detection, seed=seed, progress=False)
    validation = replace(env, split="validation", num_scenes=config.num_scenes)
    return evaluate(DetectedWindows(table, tuple(space), detector), config=validation), found["cross_entropy"]


def study(config: WindowsConfig, env_id: str) -> dict[str, Any]:
    """The results of one environment as JSON values."""
    env = env_config(env_id, load_hyperparameters(env_id, {}).env_kwargs)
    runs = [(scales, seed) for scales in SCALES[env_id] for seed in config.seeds]
    shown = tqdm(runs, desc=env_id, unit="detector", disable=None if config.progress else True)
    found = {(scales, seed): detected(replace(env, grid_scales=scales), seed, config) for scales, seed in shown}
    payoff = payoff_of(env)
    evaluations = {scales: [found[scales, seed][0] for seed in config.seeds] for scales in SCALES[env_id]}
    statistics = {scales: payoff.statistic(of_table) for scales, of_table in evaluations.items()}
    first = SCALES[env_id][0]
    return {
        "env": env_id,
        "metric": evaluations[first][0].metric,
        "payoff": payoff.name,
        "num_scenes": len(evaluations[first][0].scene),
        "tables": [
            {
                "scales": scales,
                "cross_entropy": [found[scales, seed][1] for seed in config.seeds],
                "score": bootstrap_interval(statistic).at(0),
                "seeds": [payoff.value(one) for one in evaluations[scales]],
                "minus_first": paired_difference(statistic, statistics[first]).at(0),
            }
            for scales, statistic in statistics.items()
        ],
        "chosen": env.grid_scales,
        "config": plain(asdict(config)),
        "provenance": provenance(),
    }


def page(results: list[dict[str, Any]]) -> str:
    lines = [
        "# How wide the windows of a learner should be",
        "",
        "Windows of several tables, taken greedily by what a detector predicts, on validation scenes; scores in %, of",
        "the mean over the detectors' seeds, with 95% intervals that resample seeds and scenes. In bold: what the",
        "entries of `agents/hyperparameters/ppo.yml` had when measured. Nats: the detector's cross-entropy. Written by",
        "",
        "    python -m experiments.studies.windows",
        "",
        "| environment | scenes | metric | scales | nats a cell | score | seed by seed | minus the first |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for row in result["tables"]:
            scales = ", ".join(f"{scale:g}" for scale in row["scales"])
            first = row is result["tables"][0]
            cells = (
                without_namespace(result["env"]) if first else "",
                f"{result['num_scenes']:,}" if first else "",
                result["metric"] if first else "",
                f"**{scales}**" if row["scales"] == result["chosen"] else scales,
                ", ".join(f"{entropy:.3f}" for entropy in row["cross_entropy"]),
                with_interval(row["score"], "{:.1f}", 100),
                ", ".join(f"{100 * value:.1f}" for value in row["seeds"]),
                "" if first else with_interval(row["minus_first"], "{:+.1f}", 100),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(config: WindowsConfig) -> None:
    for env_id in config.envs:
        write_result(config.results_dir, without_namespace(env_id), study(config, env_id), page=page)


if __name__ == "__main__":
    run_command(main, WindowsConfig, description=__doc__)
