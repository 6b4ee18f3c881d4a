"""Learn where it is worth looking: what a network's detector predicts (canvit_gym.policies.trunks).

On training scenes it is known where the items are: from label maps or, where the label is a class, from the places that
the generator put them at. Half of the decisions of an episode take the window that is worth most by that, the others a
random one. In each state the detector learns to predict from the observations what share of each cell is of interest:
of the goal, where there is one; of any item elsewhere. A state costs one glimpse, where the learners of gains
(agents.tried) try several viewpoints in every state.

This is a stage of its own before reinforcement learning. Afterwards the detector stays as it is, and gives the
network's prior `detected`, so that what only training may use is turned into something that the agent can see (compare
Chen et al. 2019, arXiv:1912.12294, whose agent learns from one that is told more).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn
from tqdm import tqdm

from agents.behaviours import random_viewpoints
from agents.supervised import Stage, gradient_step, minibatches, num_to_learn_from, rise_and_fall
from agents.training_state import preserved_random_state
from agents.tried import by_episode, compact, take
from canvit_gym.actions import DiscreteActions
from canvit_gym.config import EnvConfig
from canvit_gym.observations import finest_scale
from canvit_gym.policies.prior import DETECTED
from canvit_gym.policies.seen import SeenWithTruth
from canvit_gym.policies.trunks import Detector
from canvit_gym.policies.windows import Windows
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.fashion import BACKGROUND
from canvit_gym.scenes.source import Item
from canvit_gym.vector_env import GlimpseVectorEnv

NUM_ENVS = 64
FIRST_SEED = 10_000
"""Added to the seed of a run: the detector's scenes and episodes are others than those that follow in the run."""


@dataclass(frozen=True)
class Detection(Stage):
    """How many states a detector learns from, and how."""

    hyperparameter = "detection"
    states: int = 16_384
    epochs: int = 6
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.1


class HasDetection(Protocol):
    """Hyperparameters of a learner whose network may have a detector."""

    @property
    def detection(self) -> dict[str, Any] | None:
        """Options of Detection. None: those of an entry do not count."""
        ...

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Options of the network."""
        ...


def detection_of(hyper: HasDetection) -> Detection | None:
    """How the network's detector is trained; None if it has none.

    Raises:
        ValueError: bad options, or options without a detector.
    """
    if hyper.policy_kwargs.get("prior") == DETECTED:
        return Detection(**(hyper.detection or {}))
    if hyper.detection:
        raise ValueError(
            f"detection {hyper.detection} without a detector: set policy_kwargs prior to {DETECTED!r}, or detection to "
            "null"
        )
    return None


def check_detectable(config: EnvConfig, detection: Detection | None) -> None:
    """Raise ValueError if there is a detector to train, and nothing in this environment that it could learn."""
    if detection is None:
        return
    if DATASETS[config.dataset].on_disk is not None:
        raise ValueError(
            f"a detector learns where items are, which {config.dataset!r} does not record: use an environment of "
            "FashionScenes, or set policy_kwargs prior to null"
        )


@dataclass(frozen=True)
class States:
    """S states of whole episodes; those of an episode are contiguous."""

    observations: dict[str, Tensor]  # [S, ...], maps in float16
    interest: Tensor  # [S, m, m] float16, on the cells of the observed maps

    def __len__(self) -> int:
        return len(self.interest)


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


@torch.no_grad()
def look_around(
    config: EnvConfig,
    *,
    states: int,
    seed: int,
    progress: bool,
    watch: Callable[[SeenWithTruth], object] = lambda seen: None,
) -> States:
    """At least this many states, of different scenes as long as there are enough.

    Args:
        watch: called before every step of NUM_ENVS episodes, of which `num_decisions` steps are a batch.
    """
    envs = GlimpseVectorEnv(NUM_ENVS, autoreset_mode="disabled", **vars(config))
    try:
        assert isinstance(envs.actions, DiscreteActions)
        table, rng = envs.actions.viewpoints, np.random.default_rng(seed)
        seen = SeenWithTruth(envs.episodes, actions=envs.actions)
        size = (envs.single_observation_space["acuity"].shape or ())[-1]  # type: ignore[index]
        windows = Windows(table, size=size, device=seen.device)
        observations: list[dict[str, Tensor]] = []
        maps: list[Tensor] = []
        envs.reset(seed=seed)
        with tqdm(total=states, desc="States", unit="state", disable=None if progress else True) as bar:
            while sum(map(len, maps)) < states:
                envs.reset()
                true = F.adaptive_avg_pool2d(interest(seen)[:, None], size)[:, 0]
                steps: list[dict[str, Tensor]] = []
                ended = np.zeros(NUM_ENVS, dtype=np.bool_)
                while not ended.any():
                    observation = envs.observation_tensors()
                    steps.append(compact(observation))
                    watch(seen)
                    worth = windows.added(true, finest_scale(observation["acuity"][:, 0].float()))
                    allowed = torch.from_numpy(envs.action_masks()[:, : len(table)]).to(worth.device)
                    most, best = (found.cpu().numpy() for found in worth.masked_fill(~allowed, -1).max(dim=1))
                    follows = (rng.random(NUM_ENVS) < 0.5) & (most > 0)  # all windows are worth 0 when all is seen
                    looks = np.where(follows, best, random_viewpoints(envs, rng))
                    _, _, ended, _, _ = envs.step(looks)
                    bar.update(NUM_ENVS)
                observations.append(by_episode(steps))
                maps.append(true.half().repeat_interleave(len(steps), dim=0))
    finally:
        envs.close()
    joined = {key: torch.cat([one[key] for one in observations]) for key in observations[0]}
    return States(observations=joined, interest=torch.cat(maps))


def train_detector(
    detector: Detector, states: States, options: Detection, *, decisions: int, progress: bool
) -> dict[str, float]:
    """Train `detector` in place. Returns the cross-entropy of its prediction (nats a cell) on episodes held out, and
    the least that any prediction could have.

    Args:
        decisions: number of states of an episode.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    device = next(detector.parameters()).device
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=options.weight_decay)
    detector.train()
    for rows in minibatches(
        num_learned(states, decisions), epochs=options.epochs, batch_size=options.batch_size, optimizer=optimizer,
        rate=rise_and_fall(options.learning_rate), title="Detector", progress=progress,
    ):  # fmt: skip
        loss = F.binary_cross_entropy_with_logits(
            detector(take(states.observations, rows, device=device)), states.interest[rows].float().to(device)
        )
        gradient_step(detector, optimizer, loss, title="the detector's loss")
    detector.eval()
    detector.zero_grad()
    held_out = torch.arange(num_learned(states, decisions), len(states))
    true = states.interest[held_out].float().cpu()
    with torch.no_grad():
        logits = [detector(take(states.observations, rows, device=device)).cpu() for rows in held_out.split(256)]
    return {"cross_entropy": cross_entropy(torch.cat(logits).sigmoid(), true), "least": cross_entropy(true, true)}


def num_learned(states: States, decisions: int) -> int:
    """The number of states that a detector learns from; the episodes of the others are held out."""
    return decisions * num_to_learn_from(len(states) // decisions)


def cross_entropy(probability: Tensor, true: Tensor) -> float:
    """Mean over all cells, in nats."""
    return float(F.binary_cross_entropy(probability.clamp(1e-6, 1 - 1e-6), true))


def learn_to_detect(
    network: nn.Module, config: EnvConfig, options: Detection | None, *, seed: int, progress: bool
) -> list[dict[str, float]]:
    """Collect states and train the network's detector in place, with the random generators left as they are. Returns
    what a run records; nothing without options.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    if options is None:
        return []
    (detector,) = (module for module in network.modules() if isinstance(module, Detector))
    with preserved_random_state():
        set_random_seed(FIRST_SEED + seed)
        states = look_around(config, states=options.states, seed=FIRST_SEED + seed, progress=progress)
        try:
            found = train_detector(detector, states, options, decisions=config.num_decisions, progress=progress)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"the detector's training stopped: {error}. A smaller learning_rate of detection may help."
            ) from error
    return [{"states": float(len(states)), **found}]
