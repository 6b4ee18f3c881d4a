"""Learn when it pays to stop: what a network's stop action begins with (canvit_gym.policies.when_to_stop).

On training scenes the policy looks where it would look, until the budget is spent. With the labels at hand it is then
known how good the reading was after every glimpse, so what stopping there would have paid. What going on would have
paid depends on the decisions that follow: from the last decision down to the first, it is what the episode pays if
later decisions are those of what has been learned so far. The difference is learned by regression on what the agent
reads (least-squares Monte Carlo, a method for pricing options: Longstaff and Schwartz 2001, doi:10.1093/rfs/14.1.113).
One network learns all decisions together, and their outcomes are computed anew before every epoch.

Like the detector's (agents.detection), this is a stage of its own before reinforcement learning, and a state costs one
glimpse.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn
from tqdm import tqdm

from agents.detection import NUM_ENVS
from agents.supervised import Stage, gradient_step, minibatches, num_to_learn_from, rise_and_fall
from agents.training_state import preserved_random_state
from canvit_gym.config import EnvConfig
from canvit_gym.policies.networks import ViewpointNetwork
from canvit_gym.policies.when_to_stop import WorthOfStopping, require_stop_action
from canvit_gym.stopping import first_at_least, stopped_return
from canvit_gym.vector_env import GlimpseVectorEnv

FIRST_SEED = 20_000
"""Added to the seed of a run: the scenes and episodes are others than those of the detector and of the run."""


@dataclass(frozen=True)
class Stopping(Stage):
    """How many states it is learned from when to stop, and how."""

    hyperparameter = "stopping"
    states: int = 32_768
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 4e-3
    weight_decay: float = 0.1


class HasStopping(Protocol):
    """Hyperparameters of a learner whose network may have learned when to stop."""

    @property
    def stopping(self) -> dict[str, Any] | None:
        """Options of Stopping. None: those of an entry do not count."""
        ...

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Options of the network."""
        ...


def stopping_of(hyper: HasStopping) -> Stopping | None:
    """How the network learns when to stop; None if it does not.

    Raises:
        ValueError: bad options, or options of what is not learned.
    """
    if hyper.policy_kwargs.get("learned_stop"):
        return Stopping(**(hyper.stopping or {}))
    if hyper.stopping:
        raise ValueError(
            f"stopping {hyper.stopping} of a stop that is not learned: set policy_kwargs learned_stop to true, or "
            "stopping to null"
        )
    return None


@dataclass(frozen=True)
class Episodes:
    """E episodes of T glimpses that all went on to the budget."""

    reading: Tensor  # [E, T, K] after every glimpse
    score: NDArray[np.float64]  # [E, T] what stopping there would have scored

    def __len__(self) -> int:
        return len(self.score)

    def first(self, num: int) -> "Episodes":
        return Episodes(self.reading[:num], self.score[:num])

    def after(self, num: int) -> "Episodes":
        return Episodes(self.reading[num:], self.score[num:])

    def states(self) -> dict[str, Tensor]:
        """What is observed before the decisions, [E * (T - 1), ...]: after the last glimpse there is none."""
        num, glimpses, _ = self.reading.shape
        left = 1 - torch.arange(1, glimpses, device=self.reading.device) / glimpses
        return {"reading": self.reading[:, :-1].flatten(0, 1), "time": left.repeat(num)[:, None]}


def gained_by_stopping(score: NDArray[np.float64], stops: NDArray[np.bool_], *, price: float) -> NDArray[np.float64]:
    """[E, T - 1]: by how much stopping after each glimpse would have paid more than going on, to where one stops then.

    Args:
        score: [E, T] after every glimpse.
        stops: [E, T - 1] whether one stops there. Everyone stops after the last glimpse.
        price: of a glimpse, in units of the score.

    >>> score = np.array([[0.0, 0.0, 1.0]])
    >>> gained_by_stopping(score, np.array([[False, True]]), price=0.25)  # going on ends at the second glimpse
    array([[ 0.25, -0.75]])
    """
    gained = np.empty_like(score[:, 1:])
    outcome = score[:, -1]
    for t in reversed(range(gained.shape[1])):
        going_on = outcome - price
        gained[:, t] = score[:, t] - going_on
        outcome = np.where(stops[:, t], score[:, t], going_on)
    return gained


def train_when_to_stop(
    network: WorthOfStopping, episodes: Episodes, options: Stopping, *, price: float, progress: bool = False
) -> None:
    """Train `network` in place, from never stopping.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    states, (num, decisions) = episodes.states(), episodes.score[:, 1:].shape
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=options.weight_decay)
    rate, worth = rise_and_fall(options.learning_rate), np.full((num, decisions), -np.inf)
    for epoch in range(options.epochs):
        gained = gained_by_stopping(episodes.score, worth >= 0, price=price)
        targets = torch.from_numpy(gained.reshape(-1)).to(states["time"])
        for rows in minibatches(
            len(targets), epochs=1, batch_size=options.batch_size, optimizer=optimizer,
            rate=lambda done, epoch=epoch: rate((epoch + done) / options.epochs),
            title=f"When to stop, epoch {epoch + 1} of {options.epochs}", progress=progress,
        ):  # fmt: skip
            predicted = network.worth({key: value[rows] for key, value in states.items()})
            gradient_step(network, optimizer, F.mse_loss(predicted, targets[rows]), title="the loss of when to stop")
        worth = worth_of_stopping(network, episodes)[:, :-1]
    spread = torch.from_numpy(worth).float().std()
    network.spread.copy_(spread.clamp(min=1e-3))  # where all states are alike
    network.zero_grad()


@torch.no_grad()
def worth_of_stopping(network: WorthOfStopping, episodes: Episodes) -> NDArray[np.float64]:
    """[E, T]: by how much stopping after each glimpse pays more than going on; infinite after the last one."""
    worth = network.worth(episodes.states()).double().cpu().numpy().reshape(episodes.score[:, 1:].shape)
    return np.pad(worth, ((0, 0), (0, 1)), constant_values=np.inf)


@torch.no_grad()
def whole_episodes(
    config: EnvConfig, network: ViewpointNetwork, *, states: int, seed: int, progress: bool = False
) -> Episodes:
    """Episodes of at least this many states, of different scenes as long as there are enough, in which the policy takes
    its most likely viewpoints.
    """
    envs = GlimpseVectorEnv(NUM_ENVS, autoreset_mode="disabled", **vars(config))
    try:
        decisions, batches = config.num_decisions, list[Episodes]()
        envs.reset(seed=seed)
        with tqdm(total=states, desc="Episodes", unit="state", disable=None if progress else True) as bar:
            while sum(map(len, batches)) * decisions < states:
                envs.reset()
                batches.append(_of_a_batch(envs, network, decisions))
                bar.update(NUM_ENVS * decisions)
    finally:
        envs.close()
    return Episodes(torch.cat([one.reading for one in batches]), np.concatenate([one.score for one in batches]))


def _of_a_batch(envs: GlimpseVectorEnv, network: ViewpointNetwork, decisions: int) -> Episodes:
    """Of episodes that have just begun."""
    device = next(network.parameters()).device
    score = envs.episodes.task.potentials["score"].measure
    readings: list[Tensor] = []
    scores: list[Tensor] = []
    for t in range(decisions + 1):
        observation = {key: value.to(device) for key, value in envs.observation_tensors().items()}
        readings.append(observation["reading"])
        assert envs.episodes.logits is not None
        scores.append(score(envs.episodes.logits, envs.episodes.truth))
        if t < decisions:
            probabilities = network.distribution(observation).probs  # type: ignore[attr-defined]
            envs.step(probabilities[:, :-1].argmax(dim=1).cpu().numpy())
    return Episodes(torch.stack(readings, dim=1), torch.stack(scores, dim=1).double().cpu().numpy())


def check_stops(config: EnvConfig, stopping: Stopping | None) -> None:
    """Raise ValueError if the network is to learn when to stop, and this environment does not let it."""
    if stopping is None:
        return
    require_stop_action(config.allow_stop and config.action != "continuous")
    if config.first_glimpse is None:
        raise ValueError(
            "what a scene scores before its first glimpse is not known: use first_glimpse='full' or 'random', or set "
            "policy_kwargs learned_stop to false"
        )


def learn_when_to_stop(
    network: nn.Module, config: EnvConfig, options: Stopping | None, *, seed: int, progress: bool
) -> list[dict[str, float]]:
    """Collect episodes and train the network's WorthOfStopping in place, with the random generators left as they are.
    Returns what a run records, of episodes held out: what they pay if they stop by what was learned, and if they go on.
    Nothing without options.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    if options is None:
        return []
    assert isinstance(network, ViewpointNetwork)
    learner = network.features_extractor.when_to_stop
    assert learner is not None
    price = config.glimpse_cost
    with preserved_random_state():
        set_random_seed(FIRST_SEED + seed)
        episodes = whole_episodes(config, network, states=options.states, seed=FIRST_SEED + seed, progress=progress)
        learned = num_to_learn_from(len(episodes))
        try:
            train_when_to_stop(learner, episodes.first(learned), options, price=price, progress=progress)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"learning when to stop failed: {error}. A smaller learning_rate of stopping may help."
            ) from error
    held_out = episodes.after(learned)
    stops = first_at_least(worth_of_stopping(learner, held_out), 0.0)
    goes_on = np.full_like(stops, held_out.score.shape[1])
    return [
        {
            "states": float(len(episodes) * config.num_decisions),
            "stopping_pays": float(stopped_return(held_out.score, stops, price).mean()),
            "going_on_pays": float(stopped_return(held_out.score, goes_on, price).mean()),
            "glimpses": float(stops.mean()),
        }
    ]
