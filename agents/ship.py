"""Put the best seed of an algorithm, by validation, among the policies that the package ships.

    python -m agents.ship --run-dir runs/matrix --algo ppo --env CanViT/FashionSearch-v0

copies its weights and record to canvit_gym/assets/policies/ENVIRONMENT/ALGO, where
`load_policy("ENVIRONMENT/ALGO")` finds it. Its card describes the recipe and says what every seed, not only this one,
reaches on the test scenes.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.finished_runs import Run, find_runs
from agents.matrix import environment_to_test
from agents.monitor import merit
from agents.outcomes import DETERMINISTIC
from agents.run_directory import without_root
from canvit_gym.atomic import write_json, write_text
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.command_line import run_command
from canvit_gym.policies.learned import RECORD, SHIPPED, WEIGHTS, load_policy
from canvit_gym.publish import CARD, policy_card
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.suite.payoff import payoff_of

SHIPPED_POLICIES = asset_dir(SHIPPED)
MOST_MIB = 10
"""Limit of all shipped policies together."""


@dataclass(frozen=True)
class ShipConfig:
    run_dir: Path
    """Directory with the runs of agents.matrix or agents.train: ALGO/ENVIRONMENT/seed-SEED."""
    env: str
    """Environment id."""
    algo: str = "ppo"
    """The directory's name in run_dir."""
    output_dir: Path = SHIPPED_POLICIES
    test_scenes: int | None = None
    """None: all."""


def best_run(runs: list[Run]) -> Run:
    """The best run, by the same measure that chose the best policy within each run."""

    def validated(run: Run) -> float:
        policy = load_policy(run.directory / "best")
        return merit(policy.record.training["validation"], policy.record.env)

    return max(runs, key=validated)


def ship(config: ShipConfig) -> Path:
    """Returns the directory of the shipped policy.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: shipped policies would take more than MOST_MIB.
    """
    root, name = config.run_dir.expanduser(), without_namespace(config.env)
    runs = find_runs(root, config.test_scenes, algo=config.algo, name=name).get(config.env, {}).get(config.algo, [])
    if not runs:
        raise FileNotFoundError(f"{root / config.algo / name} holds no finished run of {config.env}")
    chosen = best_run(runs)
    policy = load_policy(chosen.directory / "best")
    env = environment_to_test(config.env, policy, config.test_scenes)
    payoff = payoff_of(env)
    tested: dict[str, Any] = {
        "scenes": len(chosen.evaluations[DETERMINISTIC].scene),
        "metric": chosen.evaluations[DETERMINISTIC].metric,
        "pays": payoff.name,
        "seeds": [run.seed for run in runs],
    }
    for how in chosen.evaluations:
        tested[how] = [round(payoff.value(run.evaluations[how]), 5) for run in runs]
    record = policy.record
    command = without_root(record.provenance["command"], root)
    record = replace(
        record,
        training=record.training | {"test": tested},
        provenance=record.provenance | {"command": command},
    )
    target = config.output_dir / name / config.algo
    weights = chosen.directory / "best" / WEIGHTS
    others = [path for path in config.output_dir.glob(f"*/*/{WEIGHTS}") if path.parent != target]
    size = sum(path.stat().st_size for path in [weights, *others]) / 2**20
    if size > MOST_MIB:
        raise ValueError(f"shipped policies would take {size:.1f} MiB, more than {MOST_MIB}: ship a smaller network")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, target / WEIGHTS)
    write_json(target / RECORD, record.to_json())
    write_text(target / CARD, policy_card(record, f"{name}/{config.algo}"))
    return target


def main(config: ShipConfig) -> None:
    print(ship(config))


if __name__ == "__main__":
    run_command(main, ShipConfig, description=__doc__)
