"""What a stop action is worth: agents trained at several costs per glimpse, against budgets that are fixed.

    python -m experiments.stopping --decisions 100000 --costs 0.002 0.005 0.01 0.02

For every cost and seed an agent with allow_stop is trained (a run of experiments.train each, resumable) and evaluated
on validation scenes, most likely actions: at each scene it stops where "stop" is likelier than every viewpoint, or
when the budget is spent. The curve is the score at the stop against the mean number of glimpses; to be compared with
the same agents made to go on to any fixed budget, and with an agent trained without cost.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from agents.checkpoint import load_policy
from agents.learned import LearnedPolicy
from agents.policy import ViewpointPolicy
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.statistics import mean_iou
from experiments.provenance import plain, provenance
from experiments.runs import complete
from experiments.train import TrainConfig


@dataclass(frozen=True)
class StoppingConfig:
    env: str = "CanViT/FashionSegmentation-v0"
    costs: tuple[float, ...] = (0.0, 0.002, 0.005, 0.01, 0.02)
    """Per glimpse, in the reward's units; 0 is trained without a stop action, as the reference."""
    seeds: int = 3
    decisions: int = 100_000
    eval_scenes: int = 512
    hyper: str = "{}"
    """Overrides of agents/hyperparameters.yml, as JSON."""
    env_kwargs: str = "{}"
    runs_dir: Path = Path("runs/stopping")
    results_dir: Path = Path("experiments/results/stopping")
    progress: bool = True


@dataclass(frozen=True)
class Stops:
    """An evaluation in which every scene went on to the budget, and where each would have stopped."""

    evaluation: Evaluation
    glimpses: NDArray[np.int64]  # [N] taken at the stop; the budget where there was none

    @property
    def mean_glimpses(self) -> float:
        return float(self.glimpses.mean())

    def score(self) -> float:
        """The data set's mIoU or top-1 of the readings at the stops."""
        rows, at = np.arange(len(self.glimpses)), self.glimpses - 1
        intersection, union = self.evaluation.intersection[rows, at], self.evaluation.union[rows, at]
        return float(mean_iou(intersection.sum(axis=0), union.sum(axis=0)))

    def loss(self) -> float:
        return float(self.evaluation.loss[np.arange(len(self.glimpses)), self.glimpses - 1].mean())


def stops(policy: ViewpointPolicy, config: EnvConfig, *, seed: int = 0) -> Stops:
    """Up to its stop an episode that is made to go on is the episode itself: one evaluation tells both."""
    assert policy.record is not None
    wants_to: list[list[NDArray[np.bool_]]] = [[] for _ in range(config.budget)]

    def decide(t: int, episodes: EpisodeBatch) -> None:
        observation = {key: value.to(policy.device) for key, value in episodes.observe().items()}
        chosen = policy.get_distribution(observation).get_actions(deterministic=True)
        allowed = policy.record is not None and policy.record.env.allow_stop
        stop = chosen == policy.action_space.n - 1 if allowed else torch.zeros_like(chosen, dtype=torch.bool)  # type: ignore[attr-defined]
        wants_to[t].append(stop.cpu().numpy())

    evaluation = evaluate(LearnedPolicy(policy), config=config, seed=seed, on_glimpse=decide)
    stopping = np.stack([np.concatenate(of_glimpse) for of_glimpse in wants_to], axis=1)  # [N, T] after each glimpse
    stopping[:, -1] = True
    return Stops(evaluation=evaluation, glimpses=stopping.argmax(axis=1) + 1)


def run_one(config: StoppingConfig, cost: float, seed: int) -> Stops | None:
    """Trained where that is missing, then evaluated; None where Ctrl-C came."""
    where = config.runs_dir / config.env.split("/")[-1] / str(config.decisions) / f"cost{cost:g}" / f"seed{seed}"
    env_kwargs = json.loads(config.env_kwargs)
    if cost:
        env_kwargs |= {"allow_stop": True, "glimpse_cost": cost}
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
    assert policy.record is not None
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


def at_equal_glimpses(entries: list[dict[str, Any]], reference: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Per cost, means over seeds, and what the reference's curve over fixed budgets says at as many glimpses."""
    curve = np.mean([e["score_at_fixed_budget"] for e in reference], axis=0) if reference else None
    rows = []
    for cost in sorted({e["cost"] for e in entries}):
        of_cost = [e for e in entries if e["cost"] == cost]
        glimpses, score = (float(np.mean([e[name] for e in of_cost])) for name in ("mean_glimpses", "score"))
        row = {"cost": cost, "mean_glimpses": glimpses, "score": score}
        if curve is not None:
            row["fixed_budget_score"] = float(np.interp(glimpses, np.arange(1, len(curve) + 1), curve))
        rows.append(row)
    return rows


def table(rows: list[dict[str, float]], metric: str) -> str:
    lines = [
        f"| cost per glimpse | mean glimpses | {metric} % at the stop | {metric} % of a fixed budget of as many |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        fixed = f"{100 * row['fixed_budget_score']:.2f}" if "fixed_budget_score" in row else ""
        lines.append(f"| {row['cost']:g} | {row['mean_glimpses']:.2f} | {100 * row['score']:.2f} | {fixed} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, float]], reference: list[dict[str, Any]], metric: str, path: Path) -> None:
    """The score at the stop against mean glimpses, a point per cost, over the curve of fixed budgets."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    if reference:
        curve = 100 * np.mean([e["score_at_fixed_budget"] for e in reference], axis=0)
        ax.plot(np.arange(1, len(curve) + 1), curve, "o-", color="0.6", ms=4, label="fixed budget")
        ax.set_xticks(np.arange(1, len(curve) + 1))
    stopping = [row for row in rows if row["cost"]]
    ax.plot([row["mean_glimpses"] for row in stopping], [100 * row["score"] for row in stopping], "s", label="stops")
    for row in stopping:
        at = (row["mean_glimpses"], 100 * row["score"])
        ax.annotate(f"{row['cost']:g}", at, xytext=(4, -10), textcoords="offset points", fontsize=8)
    ax.set(xlabel="mean glimpses (numbers: cost of one)", ylabel=f"{metric} at the stop, %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def study(config: StoppingConfig) -> bool:
    """Everything that is missing, with a report after every run. False: interrupted."""
    entries: list[dict[str, Any]] = []
    for seed in range(config.seeds):
        for cost in config.costs:
            found = run_one(config, cost, seed)
            if found is None:
                return False
            entries.append(entry(cost, seed, found))
            write_report(config, entries)
    return True


def write_report(config: StoppingConfig, entries: list[dict[str, Any]]) -> None:
    reference = [e for e in entries if e["cost"] == 0]
    rows = at_equal_glimpses(entries, reference)
    origin, seeds = provenance(), len({e["seed"] for e in entries})
    result = {"config": plain(asdict(config)), "runs": entries, "curve": rows, "provenance": origin}
    config.results_dir.mkdir(parents=True, exist_ok=True)
    path = config.results_dir / config.env.split("/")[-1]
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(
        f"# The worth of a stop action on {config.env}\n\nOn {config.eval_scenes:,} validation scenes, means over "
        f"{seeds} training seed{'s' * (seeds > 1)}; a fixed budget between two whole ones is interpolated. Written by"
        f"\n\n    {origin['command']}\n\n{table(rows, entries[0]['metric'])}\n"
        f"![{entries[0]['metric']} at the stop against mean glimpses, by cost]({path.name}.png)\n"
    )
    plot(rows, reference, entries[0]["metric"], path.with_suffix(".png"))


def main() -> None:
    config = tyro.cli(StoppingConfig, description=__doc__)
    try:
        finished = study(config)
    except (OSError, ValueError, TypeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        finished = False
    if not finished:
        sys.exit("Interrupted; the same command goes on.")
    print((config.results_dir / config.env.split("/")[-1]).with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
