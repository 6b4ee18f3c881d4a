"""How much of a ceiling's lead can be known from what an agent sees?

    python -m experiments.studies.knowable
    python -m experiments.studies.knowable --envs CanViT/FashionSearch-v0

A ceiling is told where the items lie, or the item that is asked for. A policy can only find out as much as its
observations allow. Here a detector with the trunk of the learners' networks is trained with the labels of training
scenes to predict, from observations, what share of each cell is of interest: of the goal's class in FashionSearch, of
any item elsewhere (where the labels are no maps, of the squares around the items that count). Its training states are
those of episodes that look at the most interesting window in half of the decisions, and at random otherwise.

Then the same windows are taken greedily by their worth (canvit_gym.policies.windows), on test scenes, with three maps:
a probe's reading, as the hand-coded policies have it; the detector's prediction; and the truth. The environment's
ceiling, which fits its windows to the items, is measured beside them. If the detector predicts the places better than
the reading does and its windows score no higher, a learned policy gains nothing by knowing the places better, and the
rest of the ceiling's lead is out of its reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from agents.algorithms import load_hyperparameters
from agents.behaviours import random_viewpoints
from agents.intervals import with_interval
from agents.results import write_result
from agents.supervised import minibatches, num_to_learn_from, rise_and_fall
from agents.training_state import num_decisions
from agents.tried import by_episode, compact, take
from canvit_gym.actions import DiscreteActions
from canvit_gym.backbone.load import resolve_device
from canvit_gym.command_line import env_config, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.observations import finest_scale
from canvit_gym.policies import make_policy
from canvit_gym.policies.greedy_windows import GreedyWindows
from canvit_gym.policies.item_probability import ItemProbability
from canvit_gym.policies.prior import amounts_of
from canvit_gym.policies.protocol import GlimpsePolicy, PolicyInfo
from canvit_gym.policies.seen import Seen, SeenWithTruth, with_truth
from canvit_gym.policies.trunks import MapTrunk
from canvit_gym.policies.windows import Windows
from canvit_gym.provenance import plain, provenance
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.source import Item
from canvit_gym.statistics import bootstrap_interval, paired_difference
from canvit_gym.suite.payoff import payoff_of
from canvit_gym.vector_env import GlimpseVectorEnv

BACKGROUND, READ = 0, "read"
ENVS = tuple(
    f"CanViT/Fashion{name}-v0" for name in ("Search", "Distractors", "Crowd", "Order", "Odd", "Classification")
)
NUM_ENVS = 64


@dataclass(frozen=True)
class KnowableConfig:
    envs: tuple[str, ...] = ENVS
    """Environments whose ceilings are told where to look."""
    states: int = 16_384
    """Training states."""
    epochs: int = 6
    batch_size: int = 128
    learning_rate: float = 4e-3
    """Its peak; see agents.supervised.rise_and_fall."""
    weight_decay: float = 0.1
    seed: int = 0
    num_scenes: int | None = None
    """Test scenes. None: all."""
    results_dir: Path = Path("experiments/results/knowable")
    progress: bool = True


def interest(seen: SeenWithTruth) -> Tensor:
    """[N, G, G]: the share of each cell that is of interest, from the labels or, if these are no maps, from the places
    of the items.
    """
    if "shares" in seen.truth:
        return labelled_interest(seen.truth)
    return torch.stack([covered(items, seen.canvas_grid) for items in seen.items]).to(seen.device)


def labelled_interest(truth: Mapping[str, Tensor]) -> Tensor:
    """[N, G, G], from labels that are maps."""
    shares = truth["shares"]
    if "goal" in truth:
        return shares[torch.arange(len(shares), device=shares.device), truth["goal"]]
    return 1 - shares[:, BACKGROUND]


def covered(items: Sequence[Item], size: int) -> Tensor:
    """[size, size]: the share of each cell of a scene that lies in the square around an item."""
    edges = torch.linspace(-1, 1, size + 1)

    def along(center: float, scale: float) -> Tensor:
        inside = edges[1:].clamp(max=center + scale) - edges[:-1].clamp(min=center - scale)
        return inside.clamp(min=0) * size / 2

    squares = [torch.outer(along(item.row, item.scale), along(item.col, item.scale)) for item in items]
    return torch.stack(squares).sum(dim=0).clamp(max=1)


def reads_maps(space: spaces.Dict) -> bool:
    """Whether the observations hold the probe's reading as a map."""
    return "reading" in space.spaces and len(space["reading"].shape or ()) == 3


def read_interest(observation: Mapping[str, Tensor]) -> Tensor:
    """[N, m, m]: the same by the task's probe, from a map `reading`, and `goal` if there is one."""
    return amounts_of("goal" if "goal" in observation else "items", observation)


class Detector(nn.Module):
    """Observations -> logits [B, G, G] of the share of each cell that is of interest."""

    def __init__(self, space: spaces.Dict, *, size: int, channels: int = 32) -> None:
        """size: G."""
        super().__init__()
        self.trunk = MapTrunk(space, channels=channels)
        self.reads_maps = reads_maps(space)
        self.factor = size // self.trunk.grid
        self.fine = nn.Conv2d(channels, 16 * self.factor**2, 1)
        self.read = nn.Sequential(nn.Conv2d(16 + self.reads_maps, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1))

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        given = {key: value.float() for key, value in observation.items()}
        maps = [F.pixel_shuffle(self.fine(self.trunk(given).map), self.factor)]
        if self.reads_maps:
            maps.append(read_interest(given)[:, None])
        return self.read(torch.cat(maps, dim=1))[:, 0]


class ReadWindows(GreedyWindows):
    """By the task's probe, whose reading is a map. Otherwise see ItemProbability."""

    def __init__(self, table: NDArray[np.float32], keys: tuple[str, ...]) -> None:
        super().__init__(table=table)
        self.info = _info("reading", keys)

    def amounts(self, seen: Seen) -> Tensor:
        return read_interest(seen.observe())


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


def reading_windows(space: spaces.Space, table: NDArray[np.float32]) -> GreedyWindows:
    """The policy whose windows go by a probe's reading."""
    assert isinstance(space, spaces.Dict)
    return ReadWindows(table, tuple(space)) if reads_maps(space) else ItemProbability(table=table)


@dataclass(frozen=True)
class States:
    """States of whole episodes."""

    observations: dict[str, Tensor]  # [S, ...], maps in float16
    read: Tensor  # [S, G, G]: what a probe reads of the interest
    interest: Tensor  # [S, G, G] float16

    def __len__(self) -> int:
        return len(self.interest)


@torch.no_grad()
def look_around(config: EnvConfig, *, states: int, seed: int, progress: bool) -> States:
    """At least this many states.

    Episodes are whole and of different scenes, as long as there are enough; states of an episode are contiguous.
    """
    envs = GlimpseVectorEnv(NUM_ENVS, autoreset_mode="disabled", **vars(config))
    try:
        assert isinstance(envs.actions, DiscreteActions)
        table, rng = envs.actions.viewpoints, np.random.default_rng(seed)
        seen = SeenWithTruth(envs.episodes, actions=envs.actions)
        windows = Windows(table, size=seen.canvas_grid, device=seen.device)
        reader = reading_windows(envs.single_observation_space, table)
        observations: list[dict[str, Tensor]] = []
        reads: list[Tensor] = []
        maps: list[Tensor] = []
        envs.reset(seed=seed)
        reader.reset(seen, seed=seed)
        with tqdm(total=states, desc="States", unit="state", disable=None if progress else True) as bar:
            while sum(map(len, maps)) < states:
                envs.reset()
                true = interest(seen)
                steps: list[dict[str, Tensor]] = []
                ended = np.zeros(NUM_ENVS, dtype=np.bool_)
                while not ended.any():
                    observation = envs.observation_tensors()
                    steps.append(compact(observation | {READ: reader.amounts(seen)}))
                    worth = windows.added(true, finest_scale(observation["acuity"][:, 0].float()))
                    allowed = torch.from_numpy(envs.action_masks()[:, : len(table)]).to(worth.device)
                    best = worth.masked_fill(~allowed, -1).argmax(dim=1).cpu().numpy()
                    looks = np.where(rng.random(NUM_ENVS) < 0.5, best, random_viewpoints(envs, rng))
                    _, _, ended, _, _ = envs.step(looks)
                    bar.update(NUM_ENVS)
                episodes = by_episode(steps)
                reads.append(episodes.pop(READ))
                observations.append(episodes)
                maps.append(true.half().repeat_interleave(len(steps), dim=0))
    finally:
        envs.close()
    joined = {key: torch.cat([one[key] for one in observations]) for key in observations[0]}
    return States(observations=joined, read=torch.cat(reads), interest=torch.cat(maps))


def trained(
    states: States,
    space: spaces.Dict,
    config: KnowableConfig,
    *,
    decisions: int,
    device: torch.device,
) -> tuple[Detector, dict[str, float]]:
    """A detector, and the cross-entropies (nats a cell) of reading and detector on episodes held out, with the least
    value that any prediction could have.

    Args:
        decisions: number of states of an episode.
    """
    torch.manual_seed(config.seed)
    detector = Detector(space, size=states.interest.shape[-1]).to(device)
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=config.weight_decay)
    learned = decisions * num_to_learn_from(len(states) // decisions)

    def taken(rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return take(states.observations, rows, device=device), states.interest[rows].float().to(device)

    for rows in minibatches(
        learned, epochs=config.epochs, batch_size=config.batch_size, optimizer=optimizer,
        rate=rise_and_fall(config.learning_rate), title="Detector", progress=config.progress,
    ):  # fmt: skip
        observation, true = taken(rows)
        loss = F.binary_cross_entropy_with_logits(detector(observation), true)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    detector.eval()
    totals = {"reading": 0.0, "detector": 0.0, "least": 0.0}
    held_out = torch.arange(learned, len(states))
    with torch.no_grad():
        for rows in held_out.split(config.batch_size):
            observation, true = taken(rows)
            read = states.read[rows].float().to(device)
            predicted = {"reading": read, "detector": torch.sigmoid(detector(observation))}
            for name, probability in (predicted | {"least": true}).items():
                entropy = F.binary_cross_entropy(probability.clamp(1e-6, 1 - 1e-6), true)
                totals[name] += float(entropy) * len(rows) / len(held_out)
    return detector, totals


def study(config: KnowableConfig, env_id: str) -> dict[str, Any]:
    """The results of one environment as JSON values."""
    env = env_config(env_id, load_hyperparameters(env_id, {}).env_kwargs)
    states = look_around(env, states=config.states, seed=config.seed, progress=config.progress)
    envs = GlimpseVectorEnv(1, **vars(replace(env, num_scenes=1)))
    space, actions = envs.single_observation_space, envs.actions
    assert isinstance(space, spaces.Dict) and isinstance(actions, DiscreteActions)
    envs.close()
    detector, entropies = trained(
        states, space, config, decisions=num_decisions(env), device=resolve_device(env.device)
    )
    keys, table = tuple(space), actions.viewpoints
    test = replace(env, split="test", num_scenes=config.num_scenes)
    skill = DATASETS[env.dataset].skill
    assert skill is not None, f"{env_id} has no ceiling"
    policies: dict[str, GlimpsePolicy] = {
        "reading": reading_windows(space, table),
        "detector": DetectedWindows(table, keys, detector),
        "truth": TrueWindows(table=table),
        "ceiling": make_policy(skill.ceiling, config=test, num_glimpses=test.budget),
    }
    found: dict[str, Evaluation] = {
        name: evaluate(policy, config=test, progress=name if config.progress else None)
        for name, policy in policies.items()
    }
    payoff = payoff_of(test)
    statistics = {name: payoff.statistic([one]) for name, one in found.items()}
    differences = {
        f"{one} minus {other}": paired_difference(statistics[one], statistics[other]).at(0)
        for one, other in (("detector", "reading"), ("ceiling", "detector"), ("ceiling", "reading"))
    }
    return {
        "env": env_id,
        "metric": found["truth"].metric,
        "payoff": payoff.name,
        "num_scenes": len(found["truth"].scene),
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
            result["env"].rpartition("/")[2], f"{result['num_scenes']:,}",
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
        write_result(config.results_dir, env_id.rpartition("/")[2], study(config, env_id), page=page)


if __name__ == "__main__":
    run_command(main, KnowableConfig, description=__doc__)
