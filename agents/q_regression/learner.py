"""Viewpoint-Q: predict the gain of a glimpse at each viewpoint from the canvas, and take the largest.

    Q(s, a) of the viewpoint taken  ->  z(r),  r standardized by the running mean and deviation of its depth

Depth counts an episode's decisions. There is no bootstrapping: the target is the reward of the next glimpse, by default
the share of the loss that it removes. Q = V + A, where A has mean zero over the table. There is one sample per visited
state, and the loss is the squared error. A share of the steps (half by default) takes the best viewpoint and the others
a random one, so that the policy learns on states that it reaches. Targets do not depend on the policy, so it can learn
from the last rollouts again.

With `pool`, it first learns from a pool of episodes (agents.pool), where several viewpoints were tried in each state.
A prior (canvit_gym.policies.prior) gets the weight with which it predicts the first rollout's targets best.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor, nn

from agents.algorithms import Algorithm
from agents.checks import schedule
from agents.detection import detection_of, learn_to_detect
from agents.finite import require_finite
from agents.learner import Monitoring, State, closed_on_error
from agents.pool import load_pool, split
from agents.q_regression.hyperparameters import QHyperparameters
from agents.q_regression.replay import Replay
from agents.settings import Plan
from agents.supervised import gradient_step, minibatches, rise_and_fall
from agents.torch_learner import TorchLearner
from agents.training_state import (
    capture_environments,
    ends_with_rollouts,
    glimpse_env,
    random_state,
    restore_environments,
    set_random_state,
)
from agents.tried import TriedViewpoints, take
from canvit_gym.backbone.load import resolve_device
from canvit_gym.policies.heads import TableHead
from canvit_gym.policies.networks import NETWORK_CLASSES, HasValues, ViewpointQNetwork, action_options
from canvit_gym.running_moments import RunningMoments
from canvit_gym.sb3 import make_sb3_env

EPISODES_SHOWN = 256
"""Number of episodes whose returns the progress bar averages."""
LEAST_PRIOR_WEIGHT = 0.05
"""A prior that predicts nothing in the first rollout still ranks the viewpoints at first."""


class QRegression(TorchLearner[nn.Module]):
    """Trains a ViewpointQNetwork on rollouts."""

    network_class = "ViewpointQNetwork"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.hyper: QHyperparameters = plan.hyper
        hyper, device = self.hyper, resolve_device(plan.env.device)
        set_random_seed(plan.settings.seed)
        envs = make_sb3_env(plan.settings.env, hyper.n_envs, tensors=hyper.rollout_tensors, **plan.env_kwargs)
        self.env = VecMonitor(envs)
        self.env.seed(plan.settings.seed)
        self.device = device
        self._num_classes = len(envs.glimpse_envs.task.classes)
        with closed_on_error(self.env):
            self._network = NETWORK_CLASSES[self.network_class](
                envs.glimpse_envs.single_observation_space,
                envs.glimpse_envs.single_action_space,
                **action_options(envs.glimpse_envs.actions),
                **self.network_options,
            ).to(device)
        self._rate = schedule("learning_rate", hyper.learning_rate)
        self.optimizer = torch.optim.Adam(self._network.parameters(), lr=self._rate(1.0), eps=1e-5)
        self.moments = RunningMoments(plan.env.num_decisions)
        self.replay = Replay(num_rollouts=hyper.replay_rollouts, rows=hyper.n_steps * hyper.n_envs)
        self._returns: deque[float] = deque(maxlen=EPISODES_SHOWN)
        self._loss: float | None = None
        self._observation: dict[str, Tensor] = {}
        self._depth = np.zeros(hyper.n_envs, dtype=np.int64)

    @property
    def captures_every_update(self) -> bool:
        return self.hyper.replay_rollouts == 1  # otherwise states contain old rollouts

    @property
    def status(self) -> dict[str, float | None]:
        return {"reward": float(np.mean(self._returns)) if self._returns else None, "loss": self._loss}

    def begin(self, *, progress: bool) -> list[dict[str, float]]:
        history = learn_to_detect(
            self._network, self.plan.env, detection_of(self.hyper), seed=self.plan.settings.seed, progress=progress
        )
        if self.hyper.from_pool.states:
            history.append(self._learn_from_pool(progress=progress))
        self._begin_episodes()
        return history

    def _learn_from_pool(self, *, progress: bool) -> dict[str, float]:
        """Returns the number of states, the last epoch's loss, and what `_explained` finds in the states held out."""
        options = self.hyper.from_pool
        pool, held_out = split(
            load_pool(self.plan.env, states=options.states, candidates=options.candidates, progress=progress)
        )
        depth = _depths(pool)
        self.moments.update(depth[:, None].expand_as(pool.gains).flatten().numpy(), pool.gains.flatten().numpy())
        optimizer = torch.optim.AdamW(self._network.parameters(), weight_decay=options.weight_decay)
        losses: list[Tensor] = []
        self._network.train()
        for rows in minibatches(
            len(pool), epochs=options.epochs, batch_size=options.batch_size, optimizer=optimizer,
            rate=rise_and_fall(options.learning_rate), title="Pool", progress=progress,
        ):  # fmt: skip
            loss = F.mse_loss(*self.predictions_and_targets(*self._pool_batch(pool, rows), depth[rows]))
            gradient_step(self._network, optimizer, loss, max_grad_norm=self.hyper.max_grad_norm)
            losses.append(loss.detach())
        self._network.eval()
        return {
            "states": float(len(pool)),
            "loss": float(torch.stack(losses[-len(losses) // options.epochs :]).mean()),
            "explained": self._explained(held_out, batch_size=options.batch_size),
        }

    def _pool_batch(self, pool: TriedViewpoints, rows: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """(observations, actions [B, K], gains [B, K])"""
        return take(pool.observations, rows, device=self.device), pool.chosen[rows], pool.gains[rows]

    @torch.no_grad()
    def _explained(self, pool: TriedViewpoints, *, batch_size: int) -> float:
        """The share of the targets' variance, between states as well, that the network predicts."""
        depth = _depths(pool)
        pairs = [
            self.predictions_and_targets(*self._pool_batch(pool, rows), depth[rows])
            for rows in torch.arange(len(pool)).split(batch_size)
        ]
        predictions, targets = (torch.cat([pair[which].flatten() for pair in pairs]) for which in (0, 1))
        return float(1 - F.mse_loss(predictions, targets) / targets.var().clamp(min=1e-9))

    def _begin_episodes(self, observation: Any = None) -> None:
        self._observation = cast(Any, self.env.reset()) if observation is None else observation
        self._depth[:] = 0

    def learn(self, total: int, monitor: Monitoring, *, callbacks: Sequence[BaseCallback] = ()) -> bool:
        self._refuse_callbacks(callbacks)
        cut = not ends_with_rollouts(self.plan.env)
        while self.num_timesteps < total:
            monitor.between_updates()
            if cut:
                self._begin_episodes()
            rate, first = self._rate(1 - self.num_timesteps / total), self.num_timesteps == 0
            self._collect(monitor)
            if first and not self.hyper.from_pool.states:  # a pool has taught it already
                self._fit_prior()
            self._update(rate)
            self._logger.record("rollout/ep_rew_mean", self.status["reward"])
            self._logger.dump(self.num_timesteps)
        return True

    @torch.no_grad()
    def _collect(self, monitor: Monitoring) -> None:
        """Collect a rollout into the replay."""
        hyper = self.hyper
        self._network.eval()
        for _ in range(hyper.n_steps):
            observation, depth = self._observation, np.minimum(self._depth, len(self.moments.count) - 1)
            actions = self._choose(observation)
            self._observation, rewards, ended, infos = self.env.step(actions)  # type: ignore[assignment]
            require_finite({"the environment's reward": rewards})
            self.moments.update(depth, rewards)
            self.replay.add(observation, torch.from_numpy(actions), torch.from_numpy(depth), torch.from_numpy(rewards))
            self._depth = np.where(ended, 0, self._depth + 1)
            self._returns.extend(info["episode"]["r"] for info in infos if "episode" in info)
            self.num_timesteps += hyper.n_envs
            monitor.stepped(hyper.n_envs)

    def _choose(self, observation: dict[str, Tensor]) -> NDArray[np.int64]:
        """[N]: the best action in a share `hyper.greedy` of the rows, a random allowed action in the others."""
        network = cast(HasValues, self._network)
        values = network.values({key: value.to(self.device) for key, value in observation.items()}).cpu()
        predicted = self._predicted(values)
        # -inf is what the network gives to viewpoints that it masks.
        require_finite({"the network's values": predicted.masked_fill(predicted == -torch.inf, 0)})
        if not self.plan.env.revisit:
            allowed = torch.from_numpy(glimpse_env(self.env).glimpse_envs.action_masks())
            values = values.masked_fill(~allowed, -torch.inf)
        anything = torch.multinomial((values > -torch.inf).float(), 1).squeeze(1)
        greedy = torch.rand(len(values)) < self.hyper.greedy
        return torch.where(greedy, values.argmax(dim=1), anything).numpy()

    @torch.no_grad()
    def _fit_prior(self) -> None:
        """Set the weight of the network's prior, if it has one, by least squares on the rollouts in the replay.

        A prior ranks viewpoints, on a scale of its own. Left at a weight at which its values differ by more than the
        targets do, it would be cancelled by the network before anything else is learned, and its ranking with it.
        """
        network = cast(ViewpointQNetwork, self._network).dueling
        prior = cast(TableHead, network.action_net).prior
        if prior is None:
            return
        batch = self.replay.take(torch.arange(len(self.replay)), device=self.device)
        features = network.features(batch.observation)
        assert features.amounts is not None and features.acuity is not None, "a prior needs its maps"
        worths = prior.worths(features.amounts, features.acuity)
        looked = batch.actions < worths.shape[1]  # not those that stopped
        worth = worths[looked].gather(1, batch.actions[looked, None].to(self.device))[:, 0].cpu()
        target = self._targets(batch.rewards[:, None], batch.depth)[looked, 0]
        centered = worth - worth.mean()
        slope = (centered * target).sum() / centered.square().sum().clamp(min=1e-9)
        prior.weight.fill_(max(float(slope), LEAST_PRIOR_WEIGHT))
        self._logger.record("train/prior_weight", float(prior.weight))

    def _predicted(self, values: Tensor) -> Tensor:
        """Those of the network's values [N, A (+ 1 for stop)] that it predicts."""
        return values

    def _update(self, rate: float) -> None:
        hyper, network = self.hyper, self._network
        network.train()
        losses: list[Tensor] = []
        targets: list[Tensor] = []
        for rows in minibatches(
            len(self.replay), epochs=hyper.n_epochs, batch_size=hyper.batch_size, optimizer=self.optimizer,
            rate=lambda _: rate, title="Update", progress=False,
        ):  # fmt: skip
            batch = self.replay.take(rows, device=self.device)
            predicted, wanted = self.predictions_and_targets(
                batch.observation, batch.actions[:, None], batch.rewards[:, None], batch.depth
            )
            if not len(wanted):  # DIME does not learn from stops
                continue
            loss = F.mse_loss(predicted, wanted)
            gradient_step(self._network, self.optimizer, loss, max_grad_norm=self.hyper.max_grad_norm)
            losses.append(loss.detach())
            targets.append(wanted)
        self._logger.record("train/learning_rate", rate)
        if not losses:
            return
        self._loss = float(torch.stack(losses).mean())
        variance = float(torch.cat(targets).square().mean())
        self._logger.record("train/loss", self._loss)
        self._logger.record("train/explained", 1 - self._loss / max(variance, 1e-9))

    def predictions_and_targets(
        self, observation: dict[str, Tensor], actions: Tensor, gains: Tensor, depth: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The network's predictions for actions [B, K] in states of this depth [B], and their targets, from their
        gains [B, K]."""
        values = cast(ViewpointQNetwork, self._network).q_values(observation)
        return values.gather(1, actions.to(self.device)), self._targets(gains, depth).to(self.device)

    def _targets(self, gains: Tensor, depth: Tensor) -> Tensor:
        """Gains [B, K] in states of this depth [B], standardized."""
        mean, deviation = (
            torch.from_numpy(moment).float() for moment in (self.moments.mean, np.sqrt(self.moments.var + 1e-8))
        )
        wanted = (gains - mean[depth, None]) / deviation[depth, None]
        limit = self.hyper.clip_reward
        return wanted if limit is None else wanted.clamp(-limit, limit)

    def capture(self) -> State:
        return super().capture() | {
            "moments": self.moments.state_dict(),
            "replay": {} if self.captures_every_update else self.replay.state_dict(),
            "random": random_state(),
            **capture_environments(glimpse_env(self.env)),
        }

    def restore(self, state: State) -> None:
        super().restore(state)
        self.moments.load_state_dict(state["moments"])
        if state["replay"]:
            self.replay.load_state_dict(state["replay"], device=self.device)
        self._begin_episodes(restore_environments(self.env, state))
        set_random_state(state["random"])

    def close(self) -> None:
        self.env.close()


def _depths(pool: TriedViewpoints) -> Tensor:
    """[S]: which decision of its episode a state is; episodes are whole and contiguous."""
    return torch.arange(len(pool)) % pool.rewards.shape[1]


ALGORITHM = Algorithm(title="Q-regression", hyperparameters=QHyperparameters, make=QRegression)
