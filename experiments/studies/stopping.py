"""What a stop action is worth: agents trained at several costs per glimpse, compared with fixed budgets.

    python -m experiments.studies.stopping --decisions 100000 --costs 0 0.002 0.005 0.01 0.02

For every cost and seed an agent with allow_stop is trained (each in a resumable run of agents.train) and evaluated on
validation scenes with its most likely actions: it stops when "stop" is more likely than to go on, or when the
budget is spent. The curve is the score at the stop against the mean number of glimpses.

To measure what stopping is worth, the same agents are made to continue to a fixed budget with the same number of
glimpses on average. Differences are paired by agent and scene, with 95% bootstrap intervals over both. Agents trained
without a cost (cost 0) are also shown; differences from those include the differences between training runs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.intervals import with_interval
from agents.settings import TrainConfig
from agents.train_once import complete
from canvit_gym.atomic import write_text
from canvit_gym.command_line import GOES_ON, json_object, run_command
from canvit_gym.policies.learned import load_policy
from canvit_gym.provenance import plain, provenance
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.statistics import Mean, Statistic, Together, bootstrap_interval
from canvit_gym.stopping import Stops, stops


@dataclass(frozen=True)
class StoppingConfig:
    env: str = "CanViT/FashionSegmentation-v0"
    costs: tuple[float, ...] = (0.0, 0.002, 0.005, 0.01, 0.02)
    """Per glimpse, in the reward's units; 0 is trained without a stop action, as the reference."""
    seeds: int = 3
    decisions: int = 100_000
    eval_scenes: int = 512
    hyper: str = '{"policy_kwargs": {"prior": null}}'
    """Overrides of agents/hyperparameters/ppo.yml, as JSON. Default: no prior, for viewpoints would have one and the
    stop would not."""
    env_kwargs: str = "{}"
    runs_dir: Path = Path("runs/stopping")
    results_dir: Path = Path("experiments/results/stopping")
    progress: bool = True


def run_one(config: StoppingConfig, cost: float, seed: int) -> Stops | None:
    """Train the agent unless that is done, then evaluate it. Returns None after Ctrl-C."""
    where = config.runs_dir / without_namespace(config.env) / str(config.decisions) / f"cost{cost:g}" / f"seed{seed}"
    stop = {"allow_stop": cost > 0, "glimpse_cost": cost}
    env_kwargs = json_object(config.env_kwargs, option="--env-kwargs") | stop
    run = TrainConfig(
        run_dir=where,
        env=config.env,
        env_kwargs=json.dumps(env_kwargs),
        hyper=config.hyper,
        total_timesteps=config.decisions,
        seed=seed,
        eval_every=0,
        progress=config.progress,
    )
    if not complete(run):
        return None
    policy = load_policy(where / "last")
    validation = replace(policy.record.env, split="validation", num_scenes=config.eval_scenes, shard=(0, 1))
    return stops(policy, validation, seed=seed)


def entry(cost: float, seed: int, found: Stops) -> dict[str, Any]:
    budget = found.evaluation.loss.shape[1]
    return {
        "cost": cost,
        "seed": seed,
        "metric": found.evaluation.metric,
        "mean_glimpses": found.mean_glimpses,
        "score": found.score(),
        "loss": found.loss(),
        "stops_after": np.bincount(found.glimpses, minlength=budget + 1)[1:].tolist(),
        "score_at_fixed_budget": found.evaluation.score().tolist(),
        "loss_at_fixed_budget": found.evaluation.mean_loss().tolist(),
    }


def fixed_then_stop_then_glimpses(found: Sequence[Stops]) -> Statistic:
    """[T + 2]: the score with every fixed budget, the score at the stops, and the mean number of glimpses there."""

    measure = found[0].evaluation.measure

    def counted(name: str) -> NDArray[np.number]:
        """[S, N, T + 1, ...]"""
        of_runs = [(one, one.evaluation.counts[name]) for one in found]
        return np.stack([np.concatenate([counts, one.at_stop(counts)[:, None]], axis=1) for one, counts in of_runs])

    score = measure.statistic({name: counted(name) for name in measure.counts})
    return Together((score, Mean(np.stack([one.glimpses[:, None] for one in found]))))


def interpolated(curves: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values [R] of curves [R, T] over 1 to T glimpses, at `at` [R] glimpses."""
    glimpses = np.arange(1, curves.shape[1] + 1)
    return np.array([np.interp(where, glimpses, curve) for where, curve in zip(at, curves, strict=True)])


def row(cost: float, found: Sequence[Stops], reference: Sequence[Stops]) -> dict[str, Any]:
    """The results of the agents trained at a cost, as JSON values."""
    values = fixed_then_stop_then_glimpses(found)

    def parts(draws: NDArray[np.float64]) -> NDArray[np.float64]:
        """[R, 3]: the score at the stop, the score with a fixed budget of as many glimpses, and the difference."""
        stop, fixed = draws[:, -2], interpolated(draws[:, :-2], draws[:, -1])
        return np.stack([stop, fixed, stop - fixed], axis=1)

    interval = bootstrap_interval(values, of=parts)
    result: dict[str, Any] = {"cost": cost, "mean_glimpses": float(np.mean([one.mean_glimpses for one in found]))}
    for i, name in enumerate(("score", "fixed_budget_score", "difference")):
        result[name] = interval.at(i)
    if reference:
        curve = np.mean([one.evaluation.score() for one in reference], axis=0)
        result["reference_score"] = float(interpolated(curve[None], np.array([result["mean_glimpses"]]))[0])
    return result


def table(rows: list[dict[str, Any]], metric: str) -> str:
    lines = [
        f"| cost per glimpse | mean glimpses | {metric} % at the stop | the same agents, a fixed budget of as many "
        "| difference | agents trained without a cost |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        reference = f"{100 * row['reference_score']:.2f}" if "reference_score" in row else ""
        cells = [f"{row['cost']:g}", f"{row['mean_glimpses']:.2f}", with_interval(row["score"], "{:.2f}", 100)]
        if row["cost"]:
            fixed, difference = row["fixed_budget_score"], row["difference"]
            cells += [with_interval(fixed, "{:.2f}", 100), with_interval(difference, "{:+.2f}", 100), reference]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], reference: Sequence[Stops], metric: str, path: Path) -> None:
    """Plot the score at the stop against mean glimpses, with a point per cost, beside fixed budgets."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    if reference:
        curve = 100 * np.mean([one.evaluation.score() for one in reference], axis=0)
        ax.plot(np.arange(1, len(curve) + 1), curve, "o-", color="0.75", ms=4, label="fixed, trained without cost")
        ax.set_xticks(np.arange(1, len(curve) + 1))
    stopping = [row for row in rows if row["cost"]]
    glimpses = [row["mean_glimpses"] for row in stopping]
    fixed = [100 * row["fixed_budget_score"]["value"] for row in stopping]
    ax.plot(glimpses, fixed, "D", color="0.4", ms=5, label="fixed, the same agents")
    ax.plot(glimpses, [100 * row["score"]["value"] for row in stopping], "s", label="stops")
    for row in stopping:
        at = (row["mean_glimpses"], 100 * row["score"]["value"])
        ax.annotate(f"{row['cost']:g}", at, xytext=(8, -3), textcoords="offset points", fontsize=8)
    ax.set(xlabel="mean glimpses (numbers: cost of one)", ylabel=f"{metric}, %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def study(config: StoppingConfig) -> bool:
    """Run everything that is missing and write a report after every seed. Returns False if interrupted."""
    found: dict[float, list[Stops]] = {cost: [] for cost in config.costs}
    for seed in range(config.seeds):
        for cost in config.costs:
            one = run_one(config, cost, seed)
            if one is None:
                return False
            found[cost].append(one)
        write_report(config, found)
    return True


def write_report(config: StoppingConfig, found: dict[float, list[Stops]]) -> None:
    reference = found.get(0.0, [])
    rows = [row(cost, of_cost, reference) for cost, of_cost in sorted(found.items())]
    entries = [entry(cost, seed, one) for cost, of_cost in found.items() for seed, one in enumerate(of_cost)]
    origin, seeds, metric = provenance(), len(next(iter(found.values()))), entries[0]["metric"]
    result = {"config": plain(asdict(config)), "runs": entries, "curve": rows, "provenance": origin}
    path = config.results_dir / without_namespace(config.env)
    write_text(path.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_text(
        path.with_suffix(".md"),
        f"# The worth of a stop action on {config.env}\n\nOn {config.eval_scenes:,} validation scenes, "
        f"{seeds} training seed{'s' * (seeds > 1)} per cost, 95% intervals over scenes and seeds in brackets, "
        "differences paired by scene and seed; a fixed budget between two whole ones is interpolated. Written by"
        f"\n\n    {origin['command']}\n\n{table(rows, metric)}\n"
        f"![{metric} at the stop against mean glimpses, by cost]({path.name}.png)\n",
    )
    plot(rows, reference, metric, path.with_suffix(".png"))


def main(config: StoppingConfig) -> None:
    if not study(config):
        raise KeyboardInterrupt
    print((config.results_dir / without_namespace(config.env)).with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_command(main, StoppingConfig, description=__doc__, if_interrupted=GOES_ON)
