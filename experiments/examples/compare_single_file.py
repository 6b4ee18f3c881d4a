"""Does examples/ppo_single_file.py learn as much as agents/ppo in the same number of decisions?

    python -m experiments.examples.compare_single_file --decisions 40960 --seeds 2 \\
        --runs-dir runs/single_file --results-dir experiments/results/examples

Both are trained with the same seeds and numbers of decisions, the single file as imported from examples/, ours by
agents.train with agents/hyperparameters/ppo.yml, but with rewards alone. Both are evaluated by canvit_gym.evaluation on
the same test scenes, at their most likely viewpoints. From agents/ppo the last policy is used, not the best on
validation scenes, since the single file does not choose a best one either. Gain is the score after the last glimpse
minus that of the untrained network of the single file, whose viewpoints are almost uniform over the same table. The
share is the single file's gain divided by ours, with a 95% bootstrap interval over scenes and seeds.

Trained policies are kept in --runs-dir; the same command continues after an interruption.
"""

import argparse
import json
import logging
from dataclasses import asdict, dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from agents.intervals import with_interval
from agents.ppo.hyperparameters import REWARDS_ALONE
from agents.settings import TrainConfig
from agents.train_once import complete
from canvit_gym.actions import DiscreteActions
from canvit_gym.assembly import build_actions
from canvit_gym.atomic import replacing, write_text
from canvit_gym.benchmark.comparison import share_of_lead
from canvit_gym.command_line import GOES_ON, run_command
from canvit_gym.evaluation import Evaluation, evaluate, score_statistic
from canvit_gym.policies.learned import load_policy
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.streams import scene_uniforms
from canvit_gym.provenance import plain, provenance
from canvit_gym.statistics import bootstrap_interval
from canvit_gym.viewpoints import first_viewpoints

log = logging.getLogger(__name__)

SINGLE_FILE = Path(__file__).parents[2] / "examples" / "ppo_single_file.py"
NAMES = {"untrained": "untrained, sampled", "single_file": "examples/ppo_single_file.py", "agents": "agents/ppo"}


@dataclass(frozen=True)
class CompareConfig:
    env: str = "CanViT/FashionClassification-v0"
    decisions: int = 40_960
    """Decisions of each training run."""
    seeds: int = 2
    num_scenes: int = 3000
    """Test scenes to evaluate on."""
    runs_dir: Path = Path("runs/single_file")
    results_dir: Path = Path("experiments/results/examples")


def single_file() -> ModuleType:
    """examples/ppo_single_file.py as a module, since examples/ is not a package."""
    spec = spec_from_file_location("ppo_single_file", SINGLE_FILE)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SingleFilePolicy:
    """A network of the single file with the interface that evaluation needs."""

    def __init__(self, network: nn.Module, actions: DiscreteActions, keys: tuple[Any, ...], *, sampled: bool) -> None:
        self.info = PolicyInfo(
            name="single_file",
            paper_name="PPO in one file",
            description=str(SINGLE_FILE.name),
            deterministic=not sampled,
            observations=keys,
        )
        self._network, self._table = network.eval(), actions.viewpoints

    def reset(self, seen: Seen, *, seed: int) -> None:
        self._seed = seed

    @torch.no_grad()
    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if t == 0:
            return first_viewpoints("full", seen.num)
        logits, _ = self._network(seen.observe())
        if self.info.deterministic:
            return self._table[logits.argmax(dim=1).cpu().numpy()]
        cumulative = logits.softmax(dim=1).cumsum(dim=1).cpu().numpy()
        drawn = scene_uniforms(self._seed, seen.scene, t)
        rows = (cumulative < drawn[:, None]).sum(axis=1)
        return self._table[np.minimum(rows, len(self._table) - 1)]

    def flops_per_decision(self, seen: Seen) -> int:
        return 0  # not compared here


def trained_single_file(module: ModuleType, config: CompareConfig, seed: int) -> nn.Module:
    """The network from the runs' directory, or trained now."""
    args = settings(module, config, seed)
    path = config.runs_dir / f"single_file{seed}_{config.decisions}.safetensors"
    if not path.exists():
        network = module.train(args)
        with replacing(path) as partial:
            save_file(network.state_dict(), partial)
    network = untrained_single_file(module, args)
    network.load_state_dict(load_file(path))
    return network


def untrained_single_file(module: ModuleType, args: argparse.Namespace) -> nn.Module:
    envs = module.make(args, 1)
    torch.manual_seed(args.seed)
    network = module.Network(envs.single_observation_space, envs.unwrapped.actions.viewpoints)
    envs.close()
    return network


def settings(module: ModuleType, config: CompareConfig, seed: int) -> argparse.Namespace:
    return module.parse(
        ["--env", config.env, "--decisions", str(config.decisions), "--seed", str(seed), "--device", "cpu"]
    )


def evaluations(config: CompareConfig) -> dict[str, list[Evaluation]] | None:
    """Name -> one evaluation per seed; None after Ctrl-C."""
    module = single_file()
    found: dict[str, list[Evaluation]] = {name: [] for name in NAMES}
    for seed in range(config.seeds):
        run = TrainConfig(
            run_dir=config.runs_dir / f"agents{seed}_{config.decisions}",
            env=config.env,
            total_timesteps=config.decisions,
            seed=seed,
            hyper=json.dumps(REWARDS_ALONE),
            eval_every=0,
            progress=False,
        )
        log.info("seed %d: agents.train", seed)
        if not complete(run):
            return None
        ours = load_policy(run.run_dir / "last", device="cpu")
        test = replace(ours.record.env, split="test", num_scenes=config.num_scenes, shard=(0, 1), device="cpu")
        actions = build_actions(test)
        assert isinstance(actions, DiscreteActions)
        log.info("seed %d: %s", seed, SINGLE_FILE.name)
        networks = {
            "untrained": untrained_single_file(module, settings(module, config, seed)),
            "single_file": trained_single_file(module, config, seed),
        }
        for name, network in networks.items():
            policy = SingleFilePolicy(network, actions, module.KEYS, sampled=name == "untrained")
            found[name].append(evaluate(policy, config=test, seed=seed))
        found["agents"].append(evaluate(ours, config=test, seed=seed))
        for name, of_name in found.items():
            log.info("seed %d: %s %.2f %%", seed, NAMES[name], 100 * of_name[-1].score()[-1])
    return found


def report(config: CompareConfig, found: dict[str, list[Evaluation]]) -> dict[str, Any]:
    """As plain JSON values: scores after the last glimpse, and the share of our gain that the single file reaches."""
    curves = {name: score_statistic(of_name) for name, of_name in found.items()}
    rows = {
        name: {
            "score": bootstrap_interval(curve).at(-1),
            "of_seeds": [float(evaluation.score()[-1]) for evaluation in found[name]],
            "loss": float(np.mean([evaluation.mean_loss()[-1] for evaluation in found[name]])),
        }
        for name, curve in curves.items()
    }
    three = [curves[name] for name in ("single_file", "untrained", "agents")]
    share = bootstrap_interval(*three, of=lambda *draws: share_of_lead(*(draw[:, -1:] for draw in draws)))
    return {
        "config": plain(asdict(config)),
        "metric": found["agents"][0].metric,
        "rows": rows,
        "share_of_gain": share.at(0),
        "provenance": provenance(),
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"| | {result['metric']}, % on test scenes | of the seeds | loss |", "| --- | --- | --- | --- |"]
    for name, row in result["rows"].items():
        seeds = ", ".join(f"{100 * score:.1f}" for score in row["of_seeds"])
        lines.append(f"| {NAMES[name]} | {with_interval(row['score'], '{:.1f}', 100)} | {seeds} | {row['loss']:.4f} |")
    return "\n".join(lines)


def main(config: CompareConfig) -> None:
    found = evaluations(config)
    if found is None:
        raise KeyboardInterrupt
    result = report(config, found)
    text = (
        f"# PPO in one file against agents/ppo on {config.env}\n\n{config.decisions:,} decisions each, {config.seeds} "
        f"seeds, {config.num_scenes:,} test scenes, most likely viewpoints of the last policies; after the last "
        f"glimpse, 95% intervals over scenes and seeds.\n\n{table(result)}\n\nThe single file reaches "
        f"{with_interval(result['share_of_gain'], '{:.2f}')} of agents/ppo's gain over the untrained network. Written "
        f"by\n\n    {result['provenance']['command']}\n"
    )
    write_text(config.results_dir / "ppo_single_file.json", json.dumps(result, indent=1) + "\n")
    write_text(config.results_dir / "ppo_single_file.md", text)
    print(text)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_command(main, CompareConfig, description=__doc__, if_interrupted=GOES_ON)
