"""PPO's update with its statistics on the device until the end.

Stable-Baselines3's own reads four numbers of every minibatch, and each time the host waits for the GPU. The numbers and
the order of the operations are the same here: so are the parameters, to the bit on a CPU.
"""

from typing import cast

import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

STATISTICS = ("policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction", "approx_kl", "loss")


def minibatch_losses(
    model: PPO, batch: DictRolloutBufferSamples, *, clip: float, clip_value: float | None
) -> tuple[Tensor, Tensor]:
    """(loss, statistics [6], as STATISTICS names them) of a minibatch."""
    actions = batch.actions
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    values, log_prob, entropy = model.policy.evaluate_actions(batch.observations, actions)  # pyright: ignore[reportArgumentType]
    values = values.flatten()
    advantages = batch.advantages
    if model.normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    log_ratio = log_prob - batch.old_log_prob
    ratio = log_ratio.exp()
    policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    if clip_value is not None:
        values = batch.old_values + (values - batch.old_values).clamp(-clip_value, clip_value)
    value_loss = F.mse_loss(batch.returns, values)
    entropy_loss = -torch.mean(-log_prob if entropy is None else entropy)
    loss = policy_loss + model.ent_coef * entropy_loss + model.vf_coef * value_loss
    with torch.no_grad():
        clipped = ((ratio - 1).abs() > clip).float().mean()
        approx_kl = ((log_ratio.exp() - 1) - log_ratio).mean()
        statistics = torch.stack([policy_loss, value_loss, entropy_loss, clipped, approx_kl, loss])
    return loss, statistics


def update(model: PPO) -> None:
    """What PPO.train does, for models without target_kl, which has to look at every minibatch."""
    assert model.target_kl is None
    model.policy.set_training_mode(True)
    model._update_learning_rate(model.policy.optimizer)
    progress = model._current_progress_remaining
    clip = model.clip_range(progress)  # type: ignore[operator]
    clip_value = None if model.clip_range_vf is None else model.clip_range_vf(progress)  # type: ignore[operator]
    buffer = cast(DictRolloutBuffer, model.rollout_buffer)
    collected: list[list[Tensor]] = []  # by epoch and minibatch
    for _ in range(model.n_epochs):
        collected.append([])
        for batch in buffer.get(model.batch_size):
            loss, statistics = minibatch_losses(model, batch, clip=clip, clip_value=clip_value)
            collected[-1].append(statistics)
            model.policy.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
            model.policy.optimizer.step()
        model._n_updates += 1

    found = torch.stack([torch.stack(epoch) for epoch in collected]).double().cpu().numpy()  # the one transfer
    told = dict(zip(STATISTICS, found.mean(axis=(0, 1)), strict=True))
    # As SB3 has it: the divergence of the last epoch, and the loss of the last minibatch.
    told |= {"approx_kl": found[-1, :, STATISTICS.index("approx_kl")].mean(), "loss": found[-1, -1, -1]}
    for name, value in told.items():
        model.logger.record(f"train/{name}", float(value))
    explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
    model.logger.record("train/explained_variance", explained)
    if hasattr(model.policy, "log_std"):
        model.logger.record("train/std", torch.exp(model.policy.log_std).mean().item())
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
    model.logger.record("train/clip_range", clip)
    if clip_value is not None:
        model.logger.record("train/clip_range_vf", clip_value)
