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
from canvit_gym.atomic import replacing
from canvit_gym.command_line import GOES_ON, env_config, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import Evaluation, evaluate, score_statistic
from canvit_gym.policies.learned import LearnedPolicy, load_policy, load_record
from canvit_gym.policies.policy_record import as_trained
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.statistics import Mean, OverRuns, Statistic, Together, Transformed, bootstrap_interval

BEGUN, ENDED = "warm_start", "last"
"""Directories of a run's policies."""
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


@dataclass(frozen=True)
class Measured:
    evaluation: Evaluation
    soft: NDArray[np.float32]  # [N] after the last glimpse

    def statistic(self, measure: str) -> Statistic:
        """The statistic [R, 1] of one of MEASURES, for one run."""
        found = self.evaluation
        match measure:
            case "soft score":
                return Mean(self.soft[None, :, None])
            case "scenes' own scores":
                return Mean(found.scene_score()[None, :, -1:])
            case "data set's score":
                return Transformed(score_statistic((found,)), lambda curves: curves[:, -1:])
            case _:
                return Mean(found.loss[None, :, -1:])


def measured(policy: LearnedPolicy, env: EnvConfig, *, path: Path) -> Measured:
    """Evaluate the policy, or read its evaluation from `path` if there is one."""
    beside = path.with_suffix(".soft.npy")
    if path.is_file() and beside.is_file():
        return Measured(Evaluation.load(path), np.load(beside))
    soft: list[NDArray[np.float32]] = []

    def note(t: int, episodes: EpisodeBatch) -> None:
        if t == env.budget - 1:
            assert episodes.logits is not None
            potential = episodes.task.potentials["soft_score"]
            soft.append(potential.measure(episodes.logits, episodes.truth).float().cpu().numpy())

    found = evaluate(policy, config=env, on_glimpse=note, progress=path.stem)
    values = np.concatenate(soft)
    with replacing(beside) as partial, partial.open("wb") as file:
        np.save(file, values)
    found.save(path)
    return Measured(found, values)


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
    found: dict[str, list[Measured]] = {BEGUN: [], ENDED: []}
    decisions = []
    for run in runs:
        for when, of_runs in found.items():
            policy = load_policy(run / when)
            own = as_trained(env, policy.record)
            key = evaluation_key(own, key_of(policy, own))
            of_runs.append(measured(policy, own, path=root / "surrogate" / name / f"{run.name}-{when}-{key}.npz"))
        decisions.append(load_record(run / ENDED).training["num_timesteps"])
    rows = {}
    for measure in MEASURES:
        begun, ended = ([one.statistic(measure) for one in found[when]] for when in (BEGUN, ENDED))
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
        "num_scenes": len(found[BEGUN][0].soft),
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
