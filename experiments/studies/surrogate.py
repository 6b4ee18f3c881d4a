"""Does training after a warm start increase the reward, and does the dataset's score follow?

    python -m agents.matrix --algos ppo --envs CanViT/FashionDistractors-v0 --seeds 0 1 2 --run-dir runs/matrix
    python -m experiments.studies.surrogate --run-dir runs/matrix --envs CanViT/FashionDistractors-v0

PPO on segmentation is rewarded by a soft score of every scene, but judged by the dataset's mIoU, which pools pixels
over scenes. For every run, the policy after the warm start and the policy at the end are evaluated on the same
validation scenes, at their most likely viewpoints. Four things are measured after the last glimpse: the soft score, the
mean of the per-scene scores, the dataset's score, and the loss. Differences are paired by seed and scene, with 95%
intervals over both.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.finished_runs import finished
from agents.intervals import with_interval
from agents.outcomes import evaluation_key, key_of
from agents.results import write_result
from agents.run_directory import provenance_of_runs
from canvit_gym.command_line import GOES_ON, env_config, run_command
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import score_statistic
from canvit_gym.policies.learned import load_policy, load_record
from canvit_gym.policies.policy_record import as_trained
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.statistics import Mean, OverRuns, Statistic, Together, Transformed, bootstrap_interval
from experiments.studies.kept import Look, look

BEGUN, ENDED = "warm_start", "last"
"""Directories of a run's policies."""
SOFT = "soft_score"
MEASURES = ("soft score", "scenes' own scores", "data set's score", "loss")


@dataclass(frozen=True)
class SurrogateConfig:
    run_dir: Path
    """Runs of agents.matrix or agents.train, in ppo/ENVIRONMENT/seed-SEED, with a warm start."""
    envs: tuple[str, ...] = ("CanViT/FashionSegmentation-v0",)
    algo: str = "ppo"
    """The directory's name in run_dir."""
    num_scenes: int | None = None
    """Validation scenes. None: all."""
    results_dir: Path = Path("experiments/results/surrogate")


def statistic(found: Look, measure: str) -> Statistic:
    """The statistic [R, 1] of one of MEASURES, for one run after its last glimpse."""
    match measure:
        case "soft score":
            return Mean(found.signals[SOFT][None, :, -1:])
        case "scenes' own scores":
            return Mean(found.evaluation.scene_score()[None, :, -1:])
        case "data set's score":
            return Transformed(score_statistic((found.evaluation,)), lambda curves: curves[:, -1:])
        case _:
            return Mean(found.evaluation.loss[None, :, -1:])


def soft_score(episodes: EpisodeBatch) -> NDArray[np.float32]:
    """[B]"""
    assert episodes.logits is not None
    potential = episodes.task.potentials[SOFT]
    return potential.measure(episodes.logits, episodes.truth).float().cpu().numpy()


def study(config: SurrogateConfig, env_id: str) -> dict[str, Any]:
    """The results of one environment as JSON values.

    Raises:
        FileNotFoundError: there is no run with a warm start.
    """
    root, name = config.run_dir.expanduser(), without_namespace(env_id)
    runs = [run for run, _ in finished(root, algo=config.algo, name=name) if (run / BEGUN).is_dir()]
    if not runs:
        raise FileNotFoundError(f"{root / config.algo / name} holds no finished run with a warm start")
    env = replace(env_config(env_id, {}), split="validation", num_scenes=config.num_scenes)
    found: dict[str, list[Look]] = {BEGUN: [], ENDED: []}
    decisions = []
    for run in runs:
        for when, of_runs in found.items():
            policy = load_policy(run / when)
            own = as_trained(env, policy.record)
            key = evaluation_key(own, key_of(policy, own))
            path = root / "surrogate" / name / f"{run.name}-{when}-{key}.npz"
            of_runs.append(look(lambda policy=policy: policy, own, path=path, signals={SOFT: soft_score}))
        decisions.append(load_record(run / ENDED).training["num_timesteps"])
    rows = {}
    for measure in MEASURES:
        begun, ended = ([statistic(one, measure) for one in found[when]] for when in (BEGUN, ENDED))
        pairs = [Together(pair) for pair in zip(ended, begun, strict=True)]
        difference = OverRuns([Transformed(pair, lambda values: values[:, :1] - values[:, 1:]) for pair in pairs])
        estimates = {BEGUN: OverRuns(begun), ENDED: OverRuns(ended), "difference": difference}
        rows[measure] = {name: bootstrap_interval(one).at(0) for name, one in estimates.items()}
        rows[measure]["by_seed"] = [float(bootstrap_interval(pair, resamples=2).value @ [1, -1]) for pair in pairs]
    return {
        "env": env_id,
        "algo": config.algo,
        "reward": load_record(runs[0] / ENDED).env.reward,
        "decisions": decisions,
        "num_scenes": len(found[BEGUN][0].evaluation.scene),
        "measures": rows,
        "provenance": provenance_of_runs(root),
    }


def page(results: list[dict[str, Any]]) -> str:
    lines = [
        "# What PPO raises after its warm start, and what the data set's score does",
        "",
        f"After the last glimpse on {results[0]['num_scenes']:,} validation scenes; scores in %, losses in nats. 95% "
        "intervals over seeds and scenes. Written by",
        "",
        f"    python -m experiments.studies.surrogate --run-dir RUN_DIR --envs ENVIRONMENT "
        f"--num-scenes {results[0]['num_scenes']}",
        "",
        "| environment | rewarded by | seeds, decisions | measured | after the warm start | at the end | difference | "
        "seed by seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for measure, row in result["measures"].items():
            form, factor = ("{:.4f}", 1) if measure == "loss" else ("{:.2f}", 100)
            signed = form.replace(":", ":+")
            cells = (
                without_namespace(result["env"]), result["reward"],
                f"{len(result['decisions'])}, {result['decisions'][0]:,}", measure,
                with_interval(row[BEGUN], form, factor), with_interval(row[ENDED], form, factor),
                with_interval(row["difference"], signed, factor),
                ", ".join(signed.format(factor * value) for value in row["by_seed"]),
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(config: SurrogateConfig) -> None:
    for env_id in config.envs:
        write_result(config.results_dir, without_namespace(env_id), study(config, env_id), page=page)
    print((config.results_dir / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_command(main, SurrogateConfig, description=__doc__, if_interrupted=GOES_ON)
