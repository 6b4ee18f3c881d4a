"""A warm start for PPO: supervised regression of the gain of a glimpse at each viewpoint.

On training scenes, where labels may be used, K random viewpoints of the table are tried in every state that the policy
reaches, each with a forward pass of the backbone. The actor learns which of them help more than the others:

    logit of a viewpoint = gain / (temperature * sigma) + a constant of the state

Gains are the environment's rewards for the next glimpse (of the soft score, if the reward is based on the score), and
sigma is their standard deviation within states. The actor begins as a softmax over predicted gains, which look only one
glimpse ahead; PPO improves on that. The critic learns the returns of the same episodes.

States are collected in rounds, the first with random viewpoints, the others with viewpoints sampled from the policy,
because a policy that only learns from the states of other policies stops improving after the first glimpses. After
every round it learns from all states so far (Ross et al. 2011, DAgger). Or all states come from a pool of episodes that
is made once for all seeds and algorithms (agents.pool).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor
from tqdm import tqdm

from agents.behaviours import look_anywhere, sample_network
from agents.finite import require_finite
from agents.normalize import clipped
from agents.pool import load_pool, split
from agents.supervised import gradient_step, minibatches, rise_and_fall
from agents.tried import TriedViewpoints, collect, require_table, take
from canvit_gym.checks import boolean, finite, integer, one_of
from canvit_gym.config import EnvConfig
from canvit_gym.policies.heads import TableHead
from canvit_gym.policies.networks import ViewpointNetwork
from canvit_gym.vector_env import GlimpseVectorEnv

Objective = Literal["regression", "ranking", "cloning"]


@dataclass(frozen=True)
class WarmStart:
    """The amount of data, and how the policy learns from it. Without states there is no warm start."""

    states: int = 0
    pool: bool = False
    """Whether states come from the environment's pool of episodes (agents.pool), in a single round."""
    candidates: int = 8
    """Number of viewpoints tried in every state; the same viewpoints for all states of a batched step."""
    round_states: int = 4096
    epochs: int = 4
    """Passes over all states so far, after every round."""
    batch_size: int = 128
    learning_rate: float = 1e-3
    """Learning rate in the first round. It falls linearly towards 0: the last of n rounds has 1/n of it. With a pool it
    rises first, then falls (agents.supervised.rise_and_fall)."""
    weight_decay: float = 0.0
    """Of AdamW."""
    temperature: float = 0.25
    objective: Objective = "regression"
    """regression: squared error of gains; ranking: cross-entropy to softmax(gain / (temperature * sigma)); cloning:
    cross-entropy to whichever of the tried viewpoints gains most."""
    vf_coef: float = 0.5

    def __post_init__(self) -> None:
        for name, low in (("states", 0), ("candidates", 2), ("round_states", 1), ("epochs", 1), ("batch_size", 2)):
            integer(low)(f"warm_start {name}", getattr(self, name))
        for name in ("learning_rate", "temperature"):
            finite(above=0)(f"warm_start {name}", getattr(self, name))
        for name in ("weight_decay", "vf_coef"):
            finite(low=0)(f"warm_start {name}", getattr(self, name))
        boolean("warm_start pool", self.pool)
        one_of(lambda: get_args(Objective))("warm_start objective", self.objective)


ReturnsOf = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Rewards [episodes, decisions] of the environment -> targets of the critic for each state."""


def discounted_returns(
    rewards: NDArray[np.float64],
    *,
    gamma: float,
    normalize: Literal["per_step", "pooled"] | None,
    center: bool,
    clip: float | None,
) -> NDArray[np.float64]:
    """[E, T] rewards of whole episodes -> discounted returns of the rewards as PerStepNormalize would scale them."""
    axis = 0 if normalize == "per_step" else None
    if normalize == "per_step" and center:
        rewards = rewards - rewards.mean(axis=0)
    if normalize is not None:
        rewards = clipped(rewards / np.sqrt(rewards.var(axis=axis) + 1e-8), clip)
    returns = np.zeros_like(rewards)
    following = np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        following = returns[:, t] = rewards[:, t] + gamma * following
    return returns


def warm_start(
    network: ViewpointNetwork,
    *,
    config: EnvConfig,
    options: WarmStart,
    returns_of: ReturnsOf,
    num_envs: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Train `network` in place. Returns a dict per round. Seeds the global random generators.

    `explained` is the share of the gains' variance within states that the actor predicted before it learned from the
    round, or on states of the pool that it did not learn from (0: nothing; 1: everything, including luck). `sigma` is
    in the reward's units.

    Raises:
        ValueError: continuous actions, or fewer viewpoints than candidates.
        FloatingPointError: a loss that is not finite.
    """
    set_random_seed(seed)
    if options.pool:
        return [_learn_from_pool(network, config, options, returns_of, progress=progress)]
    require_table(config, options.candidates)
    envs = GlimpseVectorEnv(num_envs, autoreset_mode="disabled", **vars(config))
    try:
        return _learn_in_rounds(network, envs, options, returns_of, seed=seed, progress=progress)
    finally:
        envs.close()


def _learn_in_rounds(
    network: ViewpointNetwork,
    envs: GlimpseVectorEnv,
    options: WarmStart,
    returns_of: ReturnsOf,
    *,
    seed: int,
    progress: bool,
) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    optimizer = _optimizer(network, options)
    sizes = [
        min(options.round_states, options.states - done) for done in range(0, options.states, options.round_states)
    ]
    history: list[dict[str, float]] = []
    tried: TriedViewpoints | None = None
    envs.reset(seed=seed)
    with tqdm(total=options.states, desc="Warm start", unit="state", disable=None if progress else True) as bar:
        for number, size in enumerate(sizes):
            found = collect(
                envs, candidates=options.candidates, states=size, rng=rng, advance=bar.update,
                behaviour=look_anywhere(envs, rng) if number == 0 else sample_network(network, envs),
            )  # fmt: skip
            explained = explained_share(network, found, options)
            tried = found if tried is None else tried.and_then(found)
            rate = options.learning_rate * (1 - number / len(sizes))
            where = f"in round {number + 1} of {len(sizes)}"
            record = _learned(network, optimizer, tried, returns_of, options, lambda _, rate=rate: rate, where)
            history.append({"states": float(len(tried)), "explained": explained, **record})
            bar.set_postfix({name: f"{history[-1][name]:.3f}" for name in ("explained", "loss")})
    return history


def _learn_from_pool(
    network: ViewpointNetwork, config: EnvConfig, options: WarmStart, returns_of: ReturnsOf, *, progress: bool
) -> dict[str, float]:
    pool = load_pool(config, states=options.states, candidates=options.candidates, progress=progress)
    training, held_out = split(pool)
    rate = rise_and_fall(options.learning_rate)
    optimizer = _optimizer(network, options)
    record = _learned(network, optimizer, training, returns_of, options, rate, "on its pool", progress=progress)
    explained = explained_share(network, held_out, options, sigma=record["sigma"])
    return {"states": float(len(training)), "explained": explained, **record}


def _optimizer(network: ViewpointNetwork, options: WarmStart) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)


def _learned(
    network: ViewpointNetwork,
    optimizer: torch.optim.Optimizer,
    data: TriedViewpoints,
    returns_of: ReturnsOf,
    options: WarmStart,
    rate: Callable[[float], float],
    where: str,
    *,
    progress: bool = False,
) -> dict[str, float]:
    """`learn`, with an error that names the cure."""
    returns = torch.from_numpy(returns_of(data.rewards.numpy()).reshape(-1)).float()
    try:
        return learn(network, optimizer, data, returns, options, rate=rate, progress=progress)
    except FloatingPointError as error:
        raise FloatingPointError(
            f"the warm start stopped {where}: {error}. A smaller learning_rate of warm_start may help."
        ) from error


def learn(
    network: ViewpointNetwork,
    optimizer: torch.optim.Optimizer,
    data: TriedViewpoints,
    returns: Tensor,
    options: WarmStart,
    *,
    rate: Callable[[float], float],
    progress: bool = False,
) -> dict[str, float]:
    """Train for `options.epochs` epochs.

    Args:
        returns: [S] targets of the critic.
        rate: share of the updates done -> learning rate.
    """
    device = _device_of(network)
    targets, sigma = _targets(data, options)
    network.train()
    losses: list[Tensor] = []
    for rows in minibatches(
        len(data), epochs=options.epochs, batch_size=options.batch_size, optimizer=optimizer, rate=rate,
        title="Warm start", progress=progress,
    ):  # fmt: skip
        scores, values = _scores(network, data, rows)
        wanted = targets[rows].to(device)
        if options.objective == "cloning":
            loss = F.cross_entropy(scores, wanted.argmax(dim=1))
        elif options.objective == "ranking":
            loss = F.cross_entropy(scores, wanted.softmax(dim=1))
        else:
            loss = F.mse_loss(scores, wanted)
        total = loss + options.vf_coef * F.mse_loss(values, returns[rows].to(device))
        gradient_step(network, optimizer, total, title=f"the loss in update {len(losses) + 1}")
        losses.append(loss.detach())
    network.eval()
    loss = torch.stack(losses)
    require_finite({name: value.detach() for name, value in network.named_parameters()})
    return {
        "sigma": sigma.item(),
        "loss": loss[-len(loss) // options.epochs :].mean().item(),
    }


def _targets(data: TriedViewpoints, options: WarmStart, sigma: float | None = None) -> tuple[Tensor, Tensor]:
    """(targets for the scores of the tried actions [S, K], standard deviation of gains within states).

    sigma: that of the states that the network learns from, if these are others.
    """
    centered = data.gains - data.gains.mean(dim=1, keepdim=True)
    deviation = centered.square().mean().sqrt() if sigma is None else torch.tensor(sigma)
    return centered / (options.temperature * deviation.clamp(min=1e-9)), deviation.clamp(min=1e-9)


@torch.no_grad()
def explained_share(
    network: ViewpointNetwork, data: TriedViewpoints, options: WarmStart, sigma: float | None = None
) -> float:
    """The share of the gains' variance within states that the actor predicts. sigma: as in _targets."""
    targets, _ = _targets(data, options, sigma)
    predicted = [_scores(network, data, rows)[0].cpu() for rows in torch.arange(len(targets)).split(options.batch_size)]
    return float(1 - (torch.cat(predicted) - targets).square().mean() / targets.square().mean())


def _scores(network: ViewpointNetwork, data: TriedViewpoints, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(the tried actions' scores [n, K], centered; values [n]).

    Each of the tried viewpoints stands for many of the table, a stop only for itself (sampled softmax, Jean et al.
    2015, arXiv:1412.2007). So a stop becomes as likely among all actions as it is among the tried ones.
    """
    features = network.features(take(data.observations, rows, device=_device_of(network)))
    head = network.action_net
    assert isinstance(head, TableHead)
    scores = head.unmasked(features)  # masks do not matter for gains
    chosen = data.chosen[rows].to(scores.device)
    tried = scores.gather(1, chosen)
    if head.allow_stop:
        stop = scores.shape[1] - 1
        standing_for = math.log(stop / (chosen.shape[1] - 1))
        tried = torch.where(chosen == stop, tried, tried + standing_for)
    return tried - tried.mean(dim=1, keepdim=True), network.value_net(features).flatten()


def _device_of(network: ViewpointNetwork) -> torch.device:
    return next(network.parameters()).device
