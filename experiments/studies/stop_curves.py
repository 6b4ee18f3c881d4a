"""When to stop: learned stop actions, DIME's price and plain confidence, as curves of score against mean glimpses.

    python -m agents.matrix --algos ppo dime --envs CanViT/FashionStop-v0 --seeds 0 1 2 --run-dir runs/matrix
    python -m experiments.studies.stop_curves --run-dir runs/matrix

Every policy views every scene until the budget is spent. After each glimpse three numbers are recorded:

- the preference for stopping: for PPO the log odds of stopping against going on, for DIME the price minus the largest
  predicted gain. An episode stops when this exceeds a threshold, which is 0 as trained; another threshold corresponds
  to another price;
- the confidence: the probability of the most likely class. An episode stops when this reaches a threshold;
- by how much stopping pays more than going on, as learned anew for these viewpoints from the readings of training
  scenes (agents.when_to_stop). PPO's stop action begins with what is learned so for its first viewpoints.

The hand-coded opponent of experiments.studies.suite_headroom has the last two. A curve covers all thresholds, on test
scenes. A rule's value is reported at the threshold that pays best on validation scenes, chosen for each seed: the score
at the stop minus the price of the glimpses after the first, with 95% intervals over seeds and scenes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Categorical

from agents.finished_runs import finished
from agents.intervals import with_interval
from agents.outcomes import evaluation_key, key_of
from agents.run_directory import provenance_of_runs
from agents.when_to_stop import Episodes, Stopping, train_when_to_stop, worth_of_stopping
from canvit_gym.atomic import write_json, write_text
from canvit_gym.benchmark.records import policy_key
from canvit_gym.command_line import GOES_ON, env_config, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies import make_policy
from canvit_gym.policies.learned import LearnedPolicy, load_policy
from canvit_gym.policies.networks import HasDistribution, HasValues
from canvit_gym.policies.policy_record import as_trained
from canvit_gym.policies.protocol import GlimpsePolicy
from canvit_gym.policies.when_to_stop import WorthOfStopping
from canvit_gym.provenance import plain
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.statistics import Mean, OverRuns, bootstrap_interval
from canvit_gym.stopping import first_at_least, stopped_return
from experiments.studies.kept import Signal, look

Floats = NDArray[np.float64]

QUANTILES = np.linspace(0, 1, 41)
"""Quantiles of a signal on validation scenes; their values are the thresholds of a curve."""
AT_GLIMPSES = (1.5, 2.0, 3.0, 4.0)
"""Mean numbers of glimpses at which the table shows the curves."""
READINGS = "readings"
OWN, SURE, LEARNED = "stop action", "confidence", "learned from readings"


@dataclass(frozen=True)
class StopCurvesConfig:
    run_dir: Path
    """Runs of agents.matrix or agents.train, in ALGO/ENVIRONMENT/seed-SEED."""
    env: str = "CanViT/FashionStop-v0"
    algos: tuple[str, ...] = ("ppo", "dime")
    training_scenes: int | None = None
    """What LEARNED learns from. None: all."""
    validation_scenes: int | None = None
    """None: all."""
    test_scenes: int | None = None
    """None: all."""
    headroom_dir: Path = Path("experiments/results/suite_headroom")
    results_dir: Path = Path("experiments/results/stop_curves")


@dataclass(frozen=True)
class Looked:
    """A policy on N scenes, made to spend the whole budget of T glimpses: [N, T] each."""

    score: Floats
    readings: Floats
    """[N, T, K] probabilities of the classes."""
    signals: dict[str, Floats]
    """Rule -> its signal for stopping after each glimpse."""
    decisions: int | None = None
    """Number of decisions that a learned policy was trained for."""

    @property
    def episodes(self) -> Episodes:
        return Episodes(torch.from_numpy(self.readings).float(), self.score)

    def stops(self, rule: str, threshold: float) -> NDArray[np.int64]:
        """[N]: the number of glimpses taken when the rule's signal first reaches the threshold."""
        return first_at_least(self.signals[rule], threshold)


def read(episodes: EpisodeBatch) -> NDArray[Any]:
    """[B, K]"""
    assert episodes.logits is not None
    return episodes.task.predict(episodes.logits).cpu().numpy()


def rather_stops(policy: LearnedPolicy) -> Signal:
    """How much "stop", the last action, is preferred to going on. The policy stops if it is at least 0.

    Raises:
        ValueError: the preference of a policy with a memory depends on more than what is observed now.
    """
    if hasattr(policy.network, "remember"):
        raise ValueError(f"{policy.info.name} has a memory, which this study does not follow: leave it out of --algos")

    def signal(episodes: EpisodeBatch) -> NDArray[Any]:
        observation = {key: value.to(policy.device) for key, value in episodes.observe().items()}
        return _preference(policy, observation).cpu().numpy()

    return signal


def _preference(policy: LearnedPolicy, observation: dict[str, Tensor]) -> Tensor:
    """[B] log odds of stopping, or by how much its value exceeds that of the best viewpoint."""
    if hasattr(policy.network, "distribution"):
        distribution = cast(HasDistribution, policy.network).distribution(observation)
        assert isinstance(distribution, Categorical), distribution
        return distribution.logits[:, -1] - distribution.logits[:, :-1].logsumexp(dim=1)
    values = cast(HasValues, policy.network).values(observation)
    return values[:, -1] - values[:, :-1].amax(dim=1)


def measured(policy: GlimpsePolicy, env: EnvConfig, signals: dict[str, Signal], *, path: Path) -> Looked:
    """The policy with its signals, and its confidence as another one; kept in `path`."""
    found = look(lambda: policy, env, path=path, signals={READINGS: read, **signals})
    values = {name: of.astype(np.float64) for name, of in found.signals.items()}
    readings = values.pop(READINGS)
    return Looked(found.evaluation.scene_score().astype(np.float64), readings, {**values, SURE: readings.max(axis=2)})


def looks(config: StopCurvesConfig, split: str) -> dict[str, list[Looked]]:
    """Name of a policy -> its runs, on the scenes of a split."""
    counts = {"training": config.training_scenes, "validation": config.validation_scenes, "test": config.test_scenes}
    env = replace(env_config(config.env, {}), split=split, num_scenes=counts[split])
    name = without_namespace(config.env)
    kept = config.run_dir.expanduser() / "stop_curves" / name
    found: dict[str, list[Looked]] = {}
    for algo in config.algos:
        runs = finished(config.run_dir.expanduser(), algo=algo, name=name)
        if not runs:
            raise FileNotFoundError(
                f"{config.run_dir / algo / name} holds no finished run: train with python -m agents.matrix"
            )
        for run, _ in runs:
            policy = load_policy(run / "best")
            own = as_trained(env, policy.record)
            key = evaluation_key(own, key_of(policy, own))
            path = kept / f"{algo}-{run.name}-{split}-{key}.npz"
            looked = measured(policy, own, {OWN: rather_stops(policy)}, path=path)
            found.setdefault(algo, []).append(replace(looked, decisions=policy.record.training["num_timesteps"]))
    chosen = json.loads((config.headroom_dir / f"{name}.json").read_text(encoding="utf-8"))
    spec = chosen["opponent"].split(", stops at")[0]
    policy = make_policy(spec, config=env, num_glimpses=env.budget)
    path = kept / f"hand-coded-{split}-{evaluation_key(env, policy_key(spec))}.npz"
    found[spec] = [measured(policy, env, {}, path=path)]
    return found


def learned(on_training: Looked, others: Sequence[Looked], *, price: float, seed: int) -> list[Looked]:
    """The others with the signal LEARNED, which is learned from the first."""
    torch.manual_seed(seed)
    network = WorthOfStopping(on_training.readings.shape[2])
    train_when_to_stop(network, on_training.episodes, Stopping(), price=price)
    return [replace(one, signals={**one.signals, LEARNED: worth_of_stopping(network, one.episodes)}) for one in others]


def curve(looked: Looked, thresholds: Floats, rule: str) -> Floats:
    """[len(thresholds), 2]: mean number of glimpses, and score."""
    points = []
    for threshold in thresholds:
        stops = looked.stops(rule, threshold)
        points.append((stops.mean(), looked.score[np.arange(len(stops)), stops - 1].mean()))
    return np.array(points)


def study(config: StopCurvesConfig) -> dict[str, Any]:
    """The results of all rules as JSON values."""
    price = env_config(config.env, {}).glimpse_cost
    training, validation, test = (looks(config, split) for split in ("training", "validation", "test"))
    for name, runs in training.items():
        for run, found in enumerate(runs):
            validation[name][run], test[name][run] = learned(
                found, (validation[name][run], test[name][run]), price=price, seed=run
            )
    returns: dict[str, OverRuns] = {}
    rows = []
    for name, runs in test.items():
        for rule in runs[0].signals:
            curves, values, taken, chosen = [], [], [], []
            for seen, unseen in zip(validation[name], runs, strict=True):
                thresholds = np.append(np.quantile(seen.signals[rule][:, :-1], QUANTILES), np.inf)
                worth = [stopped_return(seen.score, seen.stops(rule, at), price).mean() for at in thresholds]
                best = float(thresholds[int(np.argmax(worth))])
                stops = unseen.stops(rule, best)
                curves.append(curve(unseen, thresholds, rule))
                values.append(stopped_return(unseen.score, stops, price))
                taken.append(stops.mean())
                chosen.append(best)
            label = f"{name}, {rule}"
            returns[label] = OverRuns([Mean(value[None, :, None]) for value in values])
            row = {
                "policy": name, "rule": rule, "seeds": len(runs), "decisions": [one.decisions for one in runs],
                "thresholds": [at if np.isfinite(at) else None for at in chosen],
                "return": bootstrap_interval(returns[label]).at(0), "glimpses": float(np.mean(taken)),
                "curve": np.mean(curves, axis=0).tolist(),
            }  # fmt: skip
            if rule != SURE:
                as_trained_returns = []
                for one in runs:
                    stops = one.stops(rule, 0.0)
                    as_trained_returns.append(Mean(stopped_return(one.score, stops, price)[None, :, None]))
                row["return_as_trained"] = bootstrap_interval(OverRuns(as_trained_returns)).at(0)
                row["glimpses_as_trained"] = float(np.mean([one.stops(rule, 0.0).mean() for one in runs]))
            rows.append(row)
    reference = returns[f"{list(test)[-1]}, {SURE}"]
    for row, value in zip(rows, returns.values(), strict=True):
        row["minus_hand_coded"] = bootstrap_interval(value, reference, of=np.subtract).at(0)
    return {
        "env": config.env,
        "price": price,
        "test_scenes": reference.num_scenes,
        "rules": rows,
        "provenance": provenance_of_runs(config.run_dir.expanduser()),
    }


def score_at(points: list[list[float]], glimpses: float) -> float:
    """The score of a curve at a mean number of glimpses, interpolated between its points."""
    ordered = sorted(points)
    return float(np.interp(glimpses, [g for g, _ in ordered], [s for _, s in ordered]))


def page(result: dict[str, Any], name: str) -> str:
    reads = " | ".join(f"at {at:g} glimpses" for at in AT_GLIMPSES)
    lines = [
        f"# When to stop on {result['env']}",
        "",
        f"Scores in % on {result['test_scenes']:,} test scenes. What pays: the score at the stop minus "
        f"{100 * result['price']:g} points for every glimpse after the first; thresholds are those that pay best on "
        "validation scenes. 95% intervals over seeds and scenes. Decisions are those of the best policy by validation "
        "of every seed, 0 after a warm start. Written by",
        "",
        "    python -m experiments.studies.stop_curves --run-dir RUN_DIR",
        "",
        f"| viewpoints of | stops by | decisions | pays | glimpses | minus hand-coded | as trained | {reads} |",
        "| --- | --- | --- | --- | --- | --- | --- |" + " --- |" * len(AT_GLIMPSES),
    ]
    for row in sorted(result["rules"], key=lambda row: -row["return"]["value"]):
        own = "return_as_trained" in row
        cells = [
            row["policy"], row["rule"], ", ".join(f"{n:,}" for n in row["decisions"] if n is not None),
            with_interval(row["return"], "{:.1f}", 100),
            f"{row['glimpses']:.2f}", with_interval(row["minus_hand_coded"], "{:+.1f}", 100),
            f"{100 * row['return_as_trained']['value']:.1f} ({row['glimpses_as_trained']:.2f} glimpses)" if own else "",
            *(f"{100 * score_at(row['curve'], at):.1f}" for at in AT_GLIMPSES),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"![Score at the stop against mean glimpses]({name}.png)"]) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row["policy"] for row in result["rules"]))}
    for row in result["rules"]:
        points = np.array(sorted(row["curve"]))
        style = {OWN: "-", SURE: "--", LEARNED: ":"}[row["rule"]]
        label = f"{row['policy']}, {row['rule']}"
        ax.plot(points[:, 0], 100 * points[:, 1], style, color=colours[row["policy"]], label=label)
        worth = score_at(row["curve"], row["glimpses"])
        ax.plot(row["glimpses"], 100 * worth, "o", color=colours[row["policy"]], ms=5)
    ax.set(xlabel="mean glimpses (dots: the thresholds that pay best)", ylabel="score at the stop, %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(config: StopCurvesConfig) -> None:
    result = plain(study(config))
    path = config.results_dir / without_namespace(config.env)
    write_json(path.with_suffix(".json"), result)
    plot(result, path.with_suffix(".png"))
    write_text(path.with_suffix(".md"), page(result, path.name))
    print(page(result, path.name))


if __name__ == "__main__":
    run_command(main, StopCurvesConfig, description=__doc__, if_interrupted=GOES_ON)
