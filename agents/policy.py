"""ViewpointPolicy: an SB3 actor-critic whose actor scores viewpoints from the spatial map."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
)
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.networks import GazeHead, MapTrunk, ModulatedBlock, ValueHead, ViewpointHead
from agents.record import PolicyRecord
from canvit_gym.actions import Actions, DiscreteActions

_SMALL = 0.01
"""Gain of the last layers: every viewpoint starts out almost equally likely."""


class ViewpointPolicy(MultiInputActorCriticPolicy):
    """PPO("MultiInputPolicy", ...) with a map where that has one long vector.

    `viewpoints` ([A, 3], or None for continuous actions) is the environment's table,
    `envs.actions.viewpoints`: see `policy_kwargs_for`. The rest of the keyword arguments are SB3's.
    """

    record: PolicyRecord | None = None
    """What the policy was trained on, where that is known."""

    def __init__(
        self,
        *args: Any,
        viewpoints: NDArray[np.float32] | None = None,
        allow_stop: bool = False,
        channels: int = 32,
        context_dim: int = 64,
        blocks: int = 3,
        upsample: int = 2,
        **kwargs: Any,
    ) -> None:
        self._network: dict[str, Any] = dict(
            viewpoints=viewpoints,
            allow_stop=allow_stop,
            channels=channels,
            context_dim=context_dim,
            blocks=blocks,
            upsample=upsample,
        )
        kwargs |= dict(
            features_extractor_class=MapTrunk,
            features_extractor_kwargs=dict(channels=channels, context_dim=context_dim, blocks=blocks),
            net_arch=[],  # the latent of actor and critic is the feature map itself
        )
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        trunk, network = self.features_extractor, self._network
        assert isinstance(trunk, MapTrunk)
        continuous = isinstance(self.action_dist, DiagGaussianDistribution)
        viewpoints = network["viewpoints"]
        if continuous != (viewpoints is None):
            raise ValueError(
                f"actions {self.action_space} with viewpoints={viewpoints!r}: pass the environment's table "
                "for discrete actions and None for continuous ones, as policy_kwargs_for(envs.actions) does"
            )
        self.value_net = ValueHead(channels=trunk.channels)
        if continuous:
            dim = int(np.prod(self.action_space.shape or ()))
            self.action_net = GazeHead(channels=trunk.channels, grid=trunk.grid, action_dim=dim)
            self.log_std = nn.Parameter(torch.full((dim,), self.log_std_init))
        else:
            self.action_net = ViewpointHead(
                viewpoints,
                channels=trunk.channels,
                grid=trunk.grid,
                upsample=network["upsample"],
                allow_stop=network["allow_stop"],
            )
        for module in (trunk, self.value_net, self.action_net):
            module.apply(lambda layer: self.init_weights(layer, gain=2**0.5))
        for block in trunk.blocks:
            assert isinstance(block, ModulatedBlock)
            self.init_weights(block.modulation, gain=0.1)
        last = [self.action_net.mean] if continuous else [self.action_net.score_maps, self.action_net.scale_bias]
        for layer in last:
            self.init_weights(cast(nn.Linear | nn.Conv2d, layer), gain=_SMALL)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        inherited = super()._get_constructor_parameters()
        for name in ("features_extractor_class", "features_extractor_kwargs", "net_arch"):
            inherited.pop(name)
        return inherited | self._network

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        scores = self.action_net(latent_pi)
        require_finite({"action_net's output": scores})
        if isinstance(self.action_dist, DiagGaussianDistribution):
            return self.action_dist.proba_distribution(scores, self.log_std)
        assert isinstance(self.action_dist, CategoricalDistribution), self.action_dist
        return self.action_dist.proba_distribution(action_logits=scores)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        require_finite({"values": values, "log_prob": log_prob, "entropy": entropy})
        return values, log_prob, entropy


def require_finite(tensors: dict[str, Tensor | NDArray[Any] | None]) -> None:
    """Raise FloatingPointError naming the first tensor with a NaN or an infinity."""
    for name, value in tensors.items():
        if value is not None and not bool(
            np.isfinite(value).all() if isinstance(value, np.ndarray) else value.isfinite().all()
        ):
            raise FloatingPointError(f"{name} is not finite")


def policy_kwargs_for(actions: Actions) -> dict[str, Any]:
    """The part of `policy_kwargs` that the environment's actions decide."""
    if isinstance(actions, DiscreteActions):
        return {"viewpoints": actions.viewpoints, "allow_stop": actions.allow_stop}
    return {"viewpoints": None, "log_std_init": -0.7}
