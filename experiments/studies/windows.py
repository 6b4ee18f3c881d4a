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

import torch
from gymnasium import spaces
from tqdm import tqdm

from agents.algorithms import load_hyperparameters
from agents.detection import Detection, look_around, train_detector
from agents.intervals import with_interval
from agents.results import write_result
from agents.training_state import num_decisions
from canvit_gym.actions import DiscreteActions
from canvit_gym.backbone.load import resolve_device
from canvit_gym.checks import check_options, integer, optional
from canvit_gym.command_line import env_config, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies.trunks import Detector
from canvit_gym.provenance import plain, provenance
from canvit_gym.statistics import bootstrap_interval, paired_difference
from canvit_gym.suite.payoff import payoff_of
from canvit_gym.vector_env import GlimpseVectorEnv
from experiments.studies.knowable import DetectedWindows

SCALES: dict[str, tuple[tuple[float, ...], ...]] = {
    "CanViT/FashionSegmentation-v0": ((0.34,), (0.4,), (0.4, 0.34)),
    "CanViT/FashionClassification-v0": ((0.34,), (0.28,)),
    "CanViT/FashionDistractors-v0": ((0.34, 0.24), (0.4, 0.28)),
    "CanViT/FashionOdd-v0": ((0.34, 0.24), (0.3,)),
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
    envs = GlimpseVectorEnv(1, **vars(replace(env, num_scenes=1)))
    space, actions = envs.single_observation_space, envs.actions
    envs.close()
    assert isinstance(space, spaces.Dict) and isinstance(actions, DiscreteActions)
    states = look_around(env, states=config.detection.states, seed=seed, progress=False)
    torch.manual_seed(seed)
    detector = Detector(space).to(resolve_device(env.device))
    found = train_detector(detector, states, config.detection, decisions=num_decisions(env), progress=False)
    validation = replace(env, split="validation", num_scenes=config.num_scenes)
    policy = DetectedWindows(actions.viewpoints, tuple(space), detector)
    return evaluate(policy, config=validation), found["cross_entropy"]


def study(config: WindowsConfig, env_id: str) -> dict[str, Any]:
    """The results of one environment as JSON values."""
    env_kwargs = load_hyperparameters(env_id, {}).env_kwargs
    env = env_config(env_id, env_kwargs)
    rows: list[dict[str, Any]] = []
    runs: list[list[Evaluation]] = []
    total = len(SCALES[env_id]) * len(config.seeds)
    with tqdm(total=total, desc=env_id, unit="detector", disable=None if config.progress else True) as bar:
        for scales in SCALES[env_id]:
            entropies: list[float] = []
            runs.append([])
            for seed in config.seeds:
                one, entropy = detected(replace(env, grid_scales=scales), seed, config)
                runs[-1].append(one)
                entropies.append(entropy)
                bar.update()
            rows.append({"scales": scales, "cross_entropy": entropies})
    payoff = payoff_of(env)
    statistics = [payoff.statistic(evaluations) for evaluations in runs]
    for row, statistic, evaluations in zip(rows, statistics, runs, strict=True):
        row["score"] = bootstrap_interval(statistic).at(0)
        row["seeds"] = [float(bootstrap_interval(payoff.statistic([one])).value[0]) for one in evaluations]
        row["minus_first"] = paired_difference(statistic, statistics[0]).at(0)
    return {
        "env": env_id,
        "metric": runs[0][0].metric,
        "payoff": payoff.name,
        "num_scenes": len(runs[0][0].scene),
        "tables": rows,
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
        "entries of `agents/hyperparameters/ppo.yml` have. Nats: the detector's cross-entropy. Written by",
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
                result["env"].rpartition("/")[2] if first else "",
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
        write_result(config.results_dir, env_id.rpartition("/")[2], study(config, env_id), page=page)


if __name__ == "__main__":
    run_command(main, WindowsConfig, description=__doc__)
