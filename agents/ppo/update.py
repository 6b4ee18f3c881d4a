"""PPO's update with its statistics on the device until the end.

Stable-Baselines3's own update reads four numbers of every minibatch, and the host waits for the GPU each time. Here the
numbers and the order of operations are the same, and so are the parameters (to the bit on a CPU).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from torch import Tensor
from torch.distributions import Distribution

from agents.finite import Checks, checked_at_the_end


class Coefficients(NamedTuple):
    """What a schedule or a callback may change between updates: floats, or tensors [] where a graph reads them."""

    clip: Any
    clip_value: Any
    """None: values are not clipped."""
    ent_coef: Any


Gradients = Callable[[PPO, DictRolloutBufferSamples, Coefficients], Tensor]
"""`minibatch_gradients`, or another way to do the same."""

STATISTICS = ("policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction", "approx_kl", "loss")


def minibatch_losses(model: PPO, batch: DictRolloutBufferSamples, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
    """Returns (loss, statistics [6] in the order of STATISTICS) of a minibatch."""
    clip, clip_value, ent_coef = coefficients
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
    loss = policy_loss + ent_coef * entropy_loss + model.vf_coef * value_loss
    with torch.no_grad():
        clipped = ((ratio - 1).abs() > clip).float().mean()
        approx_kl = ((log_ratio.exp() - 1) - log_ratio).mean()
        statistics = torch.stack([policy_loss, value_loss, entropy_loss, clipped, approx_kl, loss])
    return loss, statistics


def minibatch_gradients(model: PPO, batch: DictRolloutBufferSamples, coefficients: Coefficients) -> Tensor:
    """Leave the clipped gradients of a minibatch in the parameters. Returns its statistics [6]: see STATISTICS."""
    loss, statistics = minibatch_losses(model, batch, coefficients)
    model.policy.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
    return statistics


@contextmanager
def _unchecked_arguments(unchecked: bool) -> Iterator[None]:
    """Turn off the argument checks of torch's distributions, which wait for the GPU; ours are read at the end."""
    default = Distribution._validate_args
    Distribution.set_default_validate_args(default and not unchecked)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(default)


def update(model: PPO, *, gradients: Gradients | None = None, check_at_the_end: bool | None = None) -> None:
    """Do what PPO.train does, for models without target_kl, which would have to be compared after every minibatch.

    Args:
        model: its rollout buffer is full.
        gradients: None for minibatch_gradients.
        check_at_the_end: check once, after the last minibatch, for numbers that are not finite, and restore the
            parameters from before the update if there is one. This way the host waits for a GPU only once. False: check
            every minibatch before it changes a parameter. None: True on a GPU, False on a CPU.

    Raises:
        FloatingPointError: logits, values, losses or gradients are not finite.
    """
    assert model.target_kl is None
    late = model.device.type != "cpu" if check_at_the_end is None else check_at_the_end
    before = [parameter.detach().clone() for parameter in model.policy.parameters()] if late else []
    with checked_at_the_end() if late else nullcontext() as checks, _unchecked_arguments(late):
        collected = _optimize(model, gradients or minibatch_gradients)
    found, finite, std = _fetched(model, collected, checks)
    if checks is not None:
        try:
            checks.raise_unless(finite)
        except FloatingPointError:
            with torch.no_grad():
                for parameter, value in zip(model.policy.parameters(), before, strict=True):
                    parameter.copy_(value)
            raise
    _record(model, found, std=std)


def _clip_range(model: PPO) -> tuple[float, float | None]:
    """The clip ranges of (the ratio, the values) at this point of training."""
    progress = model._current_progress_remaining
    clip = model.clip_range(progress)  # type: ignore[operator]
    return clip, None if model.clip_range_vf is None else model.clip_range_vf(progress)  # type: ignore[operator]


def _optimize(model: PPO, gradients: Gradients) -> Tensor:
    """All minibatches of all epochs. Returns their statistics [epochs, minibatches, 6], on the device."""
    model.policy.set_training_mode(True)
    model._update_learning_rate(model.policy.optimizer)
    coefficients = Coefficients(*_clip_range(model), ent_coef=model.ent_coef)
    buffer = cast(DictRolloutBuffer, model.rollout_buffer)
    collected: list[list[Tensor]] = []
    for _ in range(model.n_epochs):
        collected.append([])
        for batch in buffer.get(model.batch_size):
            collected[-1].append(gradients(model, batch, coefficients))
            model.policy.optimizer.step()
        model._n_updates += 1
    return torch.stack([torch.stack(epoch) for epoch in collected])


def _fetched(
    model: PPO, statistics: Tensor, checks: Checks | None
) -> tuple[NDArray[np.float64], list[bool], float | None]:
    """(statistics, what was checked, the continuous actions' standard deviation) on the host, in one transfer."""
    parts = [statistics.flatten().double()]
    parts += [] if checks is None else [checks.finite().double()]
    has_std = hasattr(model.policy, "log_std")
    parts += [torch.exp(model.policy.log_std.detach()).mean().double().reshape(1)] if has_std else []
    numbers = torch.cat(parts).cpu().numpy()
    num = statistics.numel()
    finite = numbers[num : len(numbers) - has_std].astype(bool).tolist()
    return numbers[:num].reshape(statistics.shape), finite, float(numbers[-1]) if has_std else None


def _record(model: PPO, found: NDArray[np.float64], *, std: float | None) -> None:
    means = dict(zip(STATISTICS, found.mean(axis=(0, 1)), strict=True))
    # As in SB3: the divergence is that of the last epoch, the loss that of the last minibatch.
    means |= {"approx_kl": found[-1, :, STATISTICS.index("approx_kl")].mean(), "loss": found[-1, -1, -1]}
    for name, value in means.items():
        model.logger.record(f"train/{name}", float(value))
    buffer = model.rollout_buffer
    explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
    model.logger.record("train/explained_variance", explained)
    if std is not None:
        model.logger.record("train/std", std)
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
    clip, clip_value = _clip_range(model)
    model.logger.record("train/clip_range", clip)
    if clip_value is not None:
        model.logger.record("train/clip_range_vf", clip_value)
