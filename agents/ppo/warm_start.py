"""A warm start for PPO: supervised regression of the gain of a glimpse at each viewpoint.

On training scenes, where labels may be used, K random viewpoints of the table are tried in every state that the policy
reaches, each with a forward pass of the backbone. The actor learns which of them help more than the others:

    logit of a viewpoint = gain / (temperature * sigma) + a constant of the state

Gains are the environment's rewards for the next glimpse (of the soft score, if the reward is based on the score), and
sigma is their standard deviation within states. The actor begins as a softmax over predicted gains, which look only one
glimpse ahead; PPO improves on that. The critic learns the returns of the same episodes.

States are collected in rounds, the first with random viewpoints, the others with viewpoints sampled from the policy,
because a policy that only learns from the states of other policies stops improving after the first glimpses. After
every round it learns from all states so far (Ross et al. 2011, DAgger). Maps are stored in float16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor
from tqdm import tqdm

from agents.finite import require_finite
from agents.normalize import clipped
from canvit_gym.actions import DiscreteActions
from canvit_gym.checks import finite, integer, one_of
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.heads import TableHead
from canvit_gym.policies.lookahead import outcomes_after
from canvit_gym.policies.networks import ViewpointNetwork
from canvit_gym.rewards import REWARDS, step_reward
from canvit_gym.vector_env import GlimpseVectorEnv

Objective = Literal["regression", "ranking", "cloning"]


@dataclass(frozen=True)
class WarmStart:
    """The amount of data, and how the policy learns from it. Without states there is no warm start."""

    states: int = 0
    candidates: int = 8
    """Number of viewpoints tried in every state; the same viewpoints for all states of a batched step."""
    round_states: int = 4096
    epochs: int = 4
    """Passes over all states so far, after every round."""
    batch_size: int = 128
    learning_rate: float = 1e-3
    """Learning rate in the first round. It falls linearly towards 0: the last of n rounds has 1/n of it."""
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
        one_of(lambda: get_args(Objective))("warm_start objective", self.objective)


@dataclass(frozen=True)
class Tried:
    """S states: observations, gains of the tried viewpoints, and returns until the end of the episode."""

    observations: dict[str, Tensor]  # [S, ...] each, maps in float16
    chosen: Tensor  # [S, K] which actions were tried
    gains: Tensor  # [S, K]
    rewards: NDArray[np.float64]  # [S / T, T]: states of an episode are contiguous

    def and_then(self, other: "Tried") -> "Tried":
        return Tried(
            observations={k: torch.cat([v, other.observations[k]]) for k, v in self.observations.items()},
            chosen=torch.cat([self.chosen, other.chosen]),
            gains=torch.cat([self.gains, other.gains]),
            rewards=np.concatenate([self.rewards, other.rewards]),
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and dicts of them."""
        return {**vars(self), "rewards": torch.from_numpy(self.rewards)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Tried":
        return cls(**{**state, "rewards": state["rewards"].numpy()})


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
    round (0: nothing; 1: everything, including luck). `sigma` is in the reward's units.

    Raises:
        ValueError: continuous actions, or fewer viewpoints than candidates.
        FloatingPointError: a loss that is not finite.
    """
    set_random_seed(seed)
    envs = GlimpseVectorEnv(num_envs, autoreset_mode="disabled", **vars(config))
    actions = envs.actions
    if not isinstance(actions, DiscreteActions) or len(actions.viewpoints) < options.candidates:
        envs.close()
        raise ValueError(
            f"a warm start tries {options.candidates} viewpoints of a table in every state, but the actions are "
            f"{actions.space}: use action='grid' or 'quadtree', fewer candidates, or no warm start "
            "(--warm-start-states 0)"
        )
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    sizes = [
        min(options.round_states, options.states - done) for done in range(0, options.states, options.round_states)
    ]
    history: list[dict[str, float]] = []
    tried: Tried | None = None
    bar = tqdm(total=options.states, desc="Warm start", unit="state", disable=None if progress else True)
    envs.reset(seed=seed)
    with bar:
        for number, size in enumerate(sizes):
            found = collect(network, envs, actions, options, size, rng, explores=number == 0, advance=bar.update)
            explained = explained_share(network, found, options)
            tried = found if tried is None else tried.and_then(found)
            returns = torch.from_numpy(returns_of(tried.rewards).reshape(-1)).float()
            optimizer.param_groups[0]["lr"] = options.learning_rate * (1 - number / len(sizes))
            try:
                record = {"explained": explained, **learn(network, optimizer, tried, returns, options)}
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"the warm start stopped in round {number + 1} of {len(sizes)}: {error}. A smaller learning_rate "
                    "of warm_start may help."
                ) from error
            history.append({"states": float(len(tried.gains)), **record})
            bar.set_postfix({name: f"{record[name]:.3f}" for name in ("explained", "loss")})
    envs.close()
    return history


@torch.no_grad()
def collect(
    network: ViewpointNetwork,
    envs: GlimpseVectorEnv,
    actions: DiscreteActions,
    options: WarmStart,
    size: int,
    rng: np.random.Generator,
    *,
    explores: bool,
    advance: Callable[[int], Any],
) -> Tried:
    """Collect at least `size` states, in whole batches of whole episodes."""
    network.eval()
    table, reward, cost = actions.viewpoints, envs.config.reward, envs.config.glimpse_cost
    seen: list[dict[str, Tensor]] = []  # per batch of episodes, [N * T, ...]
    chosen, gains, rewards = [], [], []
    count = 0
    while count < size:
        envs.reset()
        steps: list[dict[str, Tensor]] = []
        of_episode: tuple[list[NDArray[Any]], ...] = ([], [], [])
        ended = np.zeros(envs.num_envs, dtype=np.bool_)
        while not ended.any():
            observation = envs.observation_tensors()
            steps.append({k: v.half() if v.ndim == 4 else v for k, v in observation.items()})
            tried = rng.choice(len(table), options.candidates, replace=False)
            gain = _gains(reward, envs.episodes, table[tried]).T - cost
            if actions.allow_stop:  # a stop has no gain and no cost
                tried, gain = np.append(tried, len(table)), np.pad(gain, ((0, 0), (0, 1)))
            looks = _random(envs, len(table), rng) if explores else _sampled(network, observation, len(table))
            _, paid, ended, _, _ = envs.step(looks)
            for column, value in zip(of_episode, (np.tile(tried, (envs.num_envs, 1)), gain, paid), strict=True):
                column.append(value)
        seen.append({k: torch.stack([step[k] for step in steps], dim=1).flatten(0, 1) for k in steps[0]})
        tried_at, gains_at, paid_at = (np.stack(column, axis=1) for column in of_episode)
        chosen.append(tried_at.reshape(-1, tried_at.shape[-1]))
        gains.append(gains_at.reshape(-1, gains_at.shape[-1]))
        rewards.append(paid_at)
        count += paid_at.size
        advance(paid_at.size)
    return Tried(
        observations={k: torch.cat([part[k] for part in seen]) for k in seen[0]},
        chosen=torch.from_numpy(np.concatenate(chosen)),
        gains=torch.from_numpy(np.concatenate(gains)).float(),
        rewards=np.concatenate(rewards).astype(np.float64),
    )


def _gains(reward: str, episodes: EpisodeBatch, candidates: NDArray[np.float32]) -> NDArray[np.float64]:
    """[K, N]: the reward that each of the candidates [K, 3] would get now, in every episode."""
    # Scores are not smooth, so the soft score distinguishes similar candidates better.
    kind = "soft_score_gain" if REWARDS[reward].potential == "score" else reward
    measure = episodes.task.potentials[REWARDS[kind].potential].measure
    assert episodes.logits is not None
    before = measure(episodes.logits, episodes.truth).cpu().numpy()
    after = outcomes_after(episodes, candidates, measure=measure)
    return step_reward(kind, np.broadcast_to(before, after.shape), after)


def device_of(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device


def _random(envs: GlimpseVectorEnv, num_viewpoints: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[N] random viewpoints of the table, among those that are allowed."""
    if envs.config.revisit:
        return rng.integers(num_viewpoints, size=envs.num_envs)
    allowed = envs.action_masks()[:, :num_viewpoints]
    return np.where(allowed, rng.random(allowed.shape), -1).argmax(axis=1)


def _sampled(network: ViewpointNetwork, observation: dict[str, Tensor], num_viewpoints: int) -> NDArray[np.int64]:
    """[N] viewpoints sampled from the policy, never a stop, so that all episodes have the same length."""
    given = {key: value.to(device_of(network)) for key, value in observation.items()}
    probabilities = network.distribution(given).probs[:, :num_viewpoints]  # type: ignore[attr-defined]
    return torch.multinomial(probabilities, 1).squeeze(1).cpu().numpy()


def learn(
    network: ViewpointNetwork, optimizer: torch.optim.Optimizer, data: Tried, returns: Tensor, options: WarmStart
) -> dict[str, float]:
    device = device_of(network)
    targets, sigma = _targets(data, options)
    network.train()
    losses: list[Tensor] = []
    for epoch in range(options.epochs):
        for rows in torch.randperm(len(targets)).split(options.batch_size):
            scores, values = _scores(network, data, rows)
            wanted = targets[rows].to(device)
            if options.objective == "cloning":
                loss = F.cross_entropy(scores, wanted.argmax(dim=1))
            elif options.objective == "ranking":
                loss = F.cross_entropy(scores, wanted.softmax(dim=1))
            else:
                loss = F.mse_loss(scores, wanted)
            total = loss + options.vf_coef * F.mse_loss(values, returns[rows].to(device))
            optimizer.zero_grad()
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            require_finite({f"the loss in epoch {epoch + 1}": total.detach(), "its gradient": norm})
            optimizer.step()
            losses.append(loss.detach())
    network.eval()
    loss = torch.stack(losses)
    require_finite({name: value.detach() for name, value in network.named_parameters()})
    return {
        "sigma": sigma.item(),
        "loss": loss[-len(loss) // options.epochs :].mean().item(),
    }


def _targets(data: Tried, options: WarmStart) -> tuple[Tensor, Tensor]:
    """(targets for the scores of the tried actions [S, K], standard deviation of gains within states)."""
    centered = data.gains - data.gains.mean(dim=1, keepdim=True)
    sigma = centered.square().mean().sqrt().clamp(min=1e-9)
    return centered / (options.temperature * sigma), sigma


@torch.no_grad()
def explained_share(network: ViewpointNetwork, data: Tried, options: WarmStart) -> float:
    targets, _ = _targets(data, options)
    predicted = [_scores(network, data, rows)[0].cpu() for rows in torch.arange(len(targets)).split(options.batch_size)]
    return float(1 - (torch.cat(predicted) - targets).square().mean() / targets.square().mean())


def _scores(network: ViewpointNetwork, data: Tried, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(the tried actions' scores [n, K], centered; values [n])."""
    observation = {k: v[rows.to(v.device)].to(device_of(network)) for k, v in data.observations.items()}
    features = network.features(observation)
    head = network.action_net
    assert isinstance(head, TableHead)
    scores = head.scores(features.map).gather(
        1, data.chosen[rows].to(device_of(network))
    )  # masks do not matter for gains
    return scores - scores.mean(dim=1, keepdim=True), network.value_net(features).flatten()
