"""How much of a ceiling's lead can be known from what an agent sees?

    python -m experiments.studies.knowable
    python -m experiments.studies.knowable --envs CanViT/FashionSearch-v0

A ceiling is told where the items lie, or the item that is asked for. A policy can only find out as much as its
observations allow. Here a detector is trained with the labels of training scenes to predict, from observations, what
share of each cell is of interest (agents.detection): of the goal's class in FashionSearch, of any item elsewhere (where
the labels are no maps, of the squares around the items that count).

Then the same windows are taken greedily by their worth (canvit_gym.policies.windows), on test scenes, with three maps:
a probe's reading, as the hand-coded policies have it; the detector's prediction; and the truth. The environment's
ceiling, which fits its windows to the items, is measured beside them. If the detector predicts the places better than
the reading does and its windows score no higher, a learned policy gains nothing by knowing the places better, and the
rest of the ceiling's lead is out of its reach.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from agents.algorithms import load_hyperparameters
from agents.detection import Detection, States, cross_entropy, interest, look_around, num_learned, train_detector
from agents.intervals import with_interval
from agents.results import write_result
from agents.tried import by_episode
from canvit_gym.actions import DiscreteActions
from canvit_gym.backbone.load import resolve_device
from canvit_gym.command_line import env_config, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies import make_policy
from canvit_gym.policies.greedy_windows import GreedyWindows
from canvit_gym.policies.item_probability import ItemProbability
from canvit_gym.policies.prior import amounts_of, reads_maps
from canvit_gym.policies.protocol import GlimpsePolicy, PolicyInfo
from canvit_gym.policies.seen import Seen, SeenWithTruth, with_truth
from canvit_gym.policies.trunks import Detector
from canvit_gym.provenance import plain, provenance
from canvit_gym.scenes.datasets import DATASETS, without_namespace
from canvit_gym.statistics import bootstrap_interval, paired_difference
from canvit_gym.suite.payoff import payoff_of
from canvit_gym.vector_env import GlimpseVectorEnv

ENVS = tuple(
    f"CanViT/Fashion{name}-v0" for name in ("Search", "Distractors", "Crowd", "Order", "Odd", "Classification")
)


@dataclass(frozen=True)
class KnowableConfig:
    envs: tuple[str, ...] = ENVS
    """Environments whose ceilings are told where to look."""
    detection: Detection = field(default_factory=Detection)
    """How the detector is trained."""
    seed: int = 0
    num_scenes: int | None = None
    """Test scenes. None: all."""
    results_dir: Path = Path("experiments/results/knowable")
    progress: bool = True


class ReadWindows(GreedyWindows):
    """By the task's probe, whose reading is a map. Otherwise see ItemProbability."""

    def __init__(self, table: NDArray[np.float32], keys: tuple[str, ...]) -> None:
        super().__init__(table=table)
        self.info = _info("reading", keys)

    def amounts(self, seen: Seen) -> Tensor:
        observation = seen.observe()
        return amounts_of("goal" if "goal" in observation else "items", observation)


class DetectedWindows(GreedyWindows):
    """By a detector."""

    def __init__(self, table: NDArray[np.float32], keys: tuple[str, ...], detector: Detector) -> None:
        super().__init__(table=table)
        self.info = _info("detector", keys)
        self.detector = detector.eval()

    def amounts(self, seen: Seen) -> Tensor:
        return torch.sigmoid(self.detector(seen.observe()))


class TrueWindows(GreedyWindows):
    """By the labels."""

    info = PolicyInfo("truth", "truth", "Windows by where the labels are.", deterministic=True, uses_labels=True)

    def amounts(self, seen: Seen) -> Tensor:
        return interest(with_truth(seen))


def _info(name: str, keys: tuple[str, ...]) -> PolicyInfo:
    return PolicyInfo(name, name, f"Windows by the {name}.", deterministic=True, observations=keys)


def reading_windows(space: spaces.Dict, table: NDArray[np.float32]) -> GreedyWindows:
    """The policy whose windows go by a probe's reading."""
    return ReadWindows(table, tuple(space)) if reads_maps(space) else ItemProbability(table=table)


def spaces_of(env: EnvConfig) -> tuple[spaces.Dict, NDArray[np.float32]]:
    """(the observations, the table of viewpoints [A, 3]) of an environment with discrete actions."""
    envs = GlimpseVectorEnv(1, **vars(replace(env, num_scenes=1)))
    space, actions = envs.single_observation_space, envs.actions
    envs.close()
    assert isinstance(space, spaces.Dict) and isinstance(actions, DiscreteActions)
    return space, actions.viewpoints


def trained_detector(
    space: spaces.Dict, env: EnvConfig, states: States, options: Detection, *, seed: int, progress: bool
) -> tuple[Detector, dict[str, float]]:
    """(a new detector trained on the states, what train_detector returns). seed: of its weights and minibatches."""
    torch.manual_seed(seed)
    detector = Detector(space).to(resolve_device(env.device))
    return detector, train_detector(detector, states, options, decisions=env.num_decisions, progress=progress)


def study(config: KnowableConfig, env_id: str) -> dict[str, Any]:
    """The results of one environment as JSON values."""
    env = env_config(env_id, load_hyperparameters(env_id, {}).env_kwargs)
    space, table = spaces_of(env)
    decisions = env.num_decisions
    reader = reading_windows(space, table)
    reads: list[dict[str, Tensor]] = []

    def read(seen: SeenWithTruth) -> None:
        if not reads:
            reader.reset(seen, seed=config.seed)
        reads.append({"read": reader.amounts(seen).half()})

    states = look_around(env, states=config.detection.states, seed=config.seed, progress=config.progress, watch=read)
    detector, found = trained_detector(space, env, states, config.detection, seed=config.seed, progress=config.progress)
    learned = num_learned(states, decisions)
    batches = [by_episode(reads[start : start + decisions])["read"] for start in range(0, len(reads), decisions)]
    entropies = {
        "reading": cross_entropy(torch.cat(batches)[learned:].float(), states.interest[learned:].float()),
        "detector": found["cross_entropy"],
        "least": found["least"],
    }
    test = replace(env, split="test", num_scenes=config.num_scenes)
    skill = DATASETS[env.dataset].skill
    assert skill is not None, f"{env_id} has no ceiling"
    policies: dict[str, GlimpsePolicy] = {
        "reading": reading_windows(space, table),
        "detector": DetectedWindows(table, tuple(space), detector),
        "truth": TrueWindows(table=table),
        "ceiling": make_policy(skill.ceiling, config=test, num_glimpses=test.budget),
    }
    evaluations: dict[str, Evaluation] = {
        name: evaluate(policy, config=test, progress=name if config.progress else None)
        for name, policy in policies.items()
    }
    payoff = payoff_of(test)
    statistics = {name: payoff.statistic([one]) for name, one in evaluations.items()}
    differences = {
        f"{one} minus {other}": paired_difference(statistics[one], statistics[other]).at(0)
        for one, other in (("detector", "reading"), ("ceiling", "detector"), ("ceiling", "reading"))
    }
    return {
        "env": env_id,
        "metric": evaluations["truth"].metric,
        "payoff": payoff.name,
        "num_scenes": len(evaluations["truth"].scene),
        "states": len(states),
        "cross_entropy": entropies,
        "scores": {name: bootstrap_interval(one).at(0) for name, one in statistics.items()},
        "differences": differences,
        "config": plain(asdict(config)),
        "provenance": provenance(),
    }


def page(results: list[dict[str, Any]]) -> str:
    lines = [
        "# How much of a ceiling's lead can be known from what an agent sees",
        "",
        "The environment's windows, taken greedily by a probe's reading, by a detector that was trained with labels,",
        "and by the labels themselves, on test scenes; scores in %, cross-entropies of the first two on states held",
        "out, in nats a cell, with the least that is possible. 95% intervals over scenes. Written by",
        "",
        "    python -m experiments.studies.knowable",
        "",
        "| environment | scenes | cross-entropy: reading, detector, least | by the reading | by the detector | by the "
        "labels | ceiling | detector minus reading | ceiling minus detector |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        entropies, scores, differences = result["cross_entropy"], result["scores"], result["differences"]
        cells = (
            without_namespace(result["env"]), f"{result['num_scenes']:,}",
            ", ".join(f"{entropies[name]:.4f}" for name in ("reading", "detector", "least")),
            *(with_interval(scores[name], "{:.1f}", 100) for name in scores),
            *(
                with_interval(differences[name], "{:+.1f}", 100)
                for name in ("detector minus reading", "ceiling minus detector")
            ),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(config: KnowableConfig) -> None:
    for env_id in config.envs:
        write_result(config.results_dir, without_namespace(env_id), study(config, env_id), page=page)


if __name__ == "__main__":
    run_command(main, KnowableConfig, description=__doc__)
