"""ViewpointPolicy: an SB3 actor-critic whose actor scores viewpoints from the spatial map."""

from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.ppo.distributions import BoundedBeta, TanhGaussian, make_continuous_distribution
from canvit_gym.actions import Actions, DiscreteActions
from canvit_gym.policies.networks import (
    NETWORKS,
    AttentionBlock,
    Features,
    GazeHead,
    MapTrunk,
    ModulatedBlock,
    TableHead,
    ValueHead,
)
from canvit_gym.policies.record import PolicyRecord

_SMALL = 0.01
"""Gain of the last layers: every viewpoint starts out almost equally likely."""


_DECIDED_HERE: dict[str, tuple[Any, ...]] = {
    "net_arch": (None, []),
    "activation_fn": (nn.Tanh,),
    "ortho_init": (True,),
    "use_sde": (False,),
    "features_extractor_class": (),
    "features_extractor_kwargs": (),
    "share_features_extractor": (True,),
}
"""SB3's keyword arguments that are no choice here, and the values that say nothing else."""


class ViewpointPolicy(MultiInputActorCriticPolicy):
    """PPO("MultiInputPolicy", ...) with a map where that has one long vector.

    `viewpoints` ([A, 3], or None for continuous actions) is the environment's table,
    `envs.actions.viewpoints`: see `policy_kwargs_for`. `network` is one of canvit_gym.policies.networks.NETWORKS;
    `mask_seen` (discrete actions) gives no probability to viewpoints whose window has been seen at their scale,
    `inhibition` none to those within this distance of one taken before (see canvit_gym.policies.networks.TableHead; it
    has no effect on continuous actions); `distribution` (continuous actions) is "gaussian", "tanh_gaussian" or "beta".
    The rest of the keyword arguments are SB3's, but for those that choose what is chosen here (layers, initialization,
    noise), which are refused.
    """

    record: PolicyRecord | None = None
    """What the policy was trained on, where that is known."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        viewpoints: NDArray[np.float32] | None = None,
        allow_stop: bool = False,
        network: str = "conv",
        channels: int = 32,
        context_dim: int = 64,
        blocks: int = 3,
        separable: bool = False,
        upsample: int = 2,
        mask_seen: bool = False,
        inhibition: float | None = None,
        distribution: str = "gaussian",
        **kwargs: Any,
    ) -> None:
        for name, own in _DECIDED_HERE.items():
            if name in kwargs and kwargs[name] not in own:
                raise ValueError(
                    f"{name}={kwargs[name]!r} has no effect on ViewpointPolicy, whose layers are those of `network` "
                    "and whose noise is its distribution's: leave it out"
                )
        if network not in NETWORKS:
            raise ValueError(f"unknown network {network!r}; choose one of {', '.join(NETWORKS)}")
        continuous = isinstance(action_space, spaces.Box)
        if mask_seen and (continuous or "acuity" not in observation_space.spaces):
            raise ValueError(
                "mask_seen needs a table of viewpoints (action grid or quadtree) and `acuity` among the observations, "
                f"got {action_space} and {list(observation_space.spaces)}"
            )
        if inhibition is not None and not continuous:
            if "gaze" not in observation_space.spaces:
                raise ValueError(
                    "inhibition of return needs `gaze` among the observations, which are "
                    f"{list(observation_space.spaces)}: add it, or set policy_kwargs inhibition to null"
                )
            if not 0 <= inhibition < float("inf"):
                raise ValueError(
                    f"inhibition must be a distance >= 0 in scene coordinates, or null, got {inhibition!r}"
                )
        if distribution != "gaussian" and not continuous:
            raise ValueError(f"distribution {distribution!r} is for action='continuous'; these are {action_space}")
        trunk = dict(channels=channels, context_dim=context_dim, blocks=blocks, separable=separable)
        self._options: dict[str, Any] = dict(
            viewpoints=viewpoints,
            allow_stop=allow_stop,
            network=network,
            upsample=upsample,
            mask_seen=mask_seen,
            inhibition=inhibition,
            distribution=distribution,
            **trunk,
        )
        kwargs |= dict(
            features_extractor_class=NETWORKS[network][0],
            features_extractor_kwargs=trunk,
            net_arch=[],  # the latent of actor and critic is what the trunk gives
        )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        trunk, options = self.features_extractor, self._options
        assert isinstance(trunk, MapTrunk)
        continuous = isinstance(self.action_space, spaces.Box)
        if continuous != (options["viewpoints"] is None):
            raise ValueError(
                f"actions {self.action_space} with viewpoints={options['viewpoints']!r}: pass the environment's table "
                "for discrete actions and None for continuous ones, as policy_kwargs_for(envs.actions) does"
            )
        if not continuous:
            expected, found = len(options["viewpoints"]) + options["allow_stop"], int(self.action_space.n)  # type: ignore[attr-defined]
            if expected != found:
                raise ValueError(
                    f"{len(options['viewpoints'])} viewpoints with allow_stop={options['allow_stop']} make {expected} "
                    f"actions, the environment has {found}: pass its own table, as policy_kwargs_for(envs.actions) does"
                )
        self.value_net = ValueHead(channels=trunk.channels)
        self.action_net = self._gaze_head(trunk) if continuous else self._table_head(trunk)
        for module in (trunk, self.value_net, self.action_net):
            module.apply(lambda layer: self.init_weights(layer, gain=2**0.5))
        for block in trunk.blocks:
            assert isinstance(block, ModulatedBlock | AttentionBlock)
            self.init_weights(block.modulation, gain=0.1)
        for layer in self.action_net.last_layers:
            self.init_weights(cast(nn.Linear | nn.Conv2d, layer), gain=_SMALL)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _gaze_head(self, trunk: MapTrunk) -> GazeHead:
        dim = int(np.prod(self.action_space.shape or ()))
        self.action_dist = make_continuous_distribution(self._options["distribution"], dim)
        bounded = isinstance(self.action_dist, BoundedBeta)
        if not bounded:
            self.log_std = nn.Parameter(torch.full((dim,), self.log_std_init))
        return GazeHead(channels=trunk.channels, grid=trunk.grid, num_parameters=2 * dim if bounded else dim)

    def _table_head(self, trunk: MapTrunk) -> TableHead:
        options = self._options
        acuity = self.observation_space["acuity"].shape if options["mask_seen"] else None  # type: ignore[index]
        return NETWORKS[options["network"]][1](
            options["viewpoints"],
            channels=trunk.channels,
            grid=trunk.grid,
            upsample=options["upsample"],
            allow_stop=options["allow_stop"],
            mask_seen=options["mask_seen"],
            acuity_size=acuity[-1] if acuity else 0,
            inhibition=options["inhibition"],
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        inherited = super()._get_constructor_parameters()
        for name in ("features_extractor_class", "features_extractor_kwargs", "net_arch"):
            inherited.pop(name)
        return inherited | self._options

    def _get_action_dist_from_latent(self, latent_pi: Features) -> Distribution:  # type: ignore[override]
        scores = self.action_net(latent_pi)
        require_finite({"action_net's output": scores})
        match self.action_dist:
            case DiagGaussianDistribution() | TanhGaussian():
                return self.action_dist.proba_distribution(scores, self.log_std)
            case BoundedBeta():
                return self.action_dist.proba_distribution(scores)
        return self.action_dist.proba_distribution(action_logits=scores)

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """As SB3's, which takes arrays; tensors stay tensors, on whatever device they are."""
        if not (isinstance(observation, dict) and all(isinstance(value, Tensor) for value in observation.values())):
            return super().obs_to_tensor(observation)
        shapes = {key: space.shape or () for key, space in cast(spaces.Dict, self.observation_space).items()}
        is_batch = any(value.ndim > len(shapes[key]) for key, value in observation.items())
        return {key: v.reshape(-1, *shapes[key]).to(self.device) for key, v in observation.items()}, is_batch

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        require_finite({"values": values, "log_prob": log_prob, "entropy": entropy})
        return values, log_prob, entropy


def require_finite(tensors: dict[str, Tensor | NDArray[Any] | None]) -> None:
    """Raise FloatingPointError naming the first tensor with a NaN or an infinity. One synchronization on a GPU."""
    # A sum is finite only where every term is, and no sum of what is learned from comes near the largest float.
    sums = {name: value.sum() for name, value in tensors.items() if value is not None}
    on_device = [value for value in sums.values() if isinstance(value, Tensor)]
    finite = iter(torch.stack(on_device).isfinite().tolist() if on_device else [])
    for name, value in sums.items():
        if not (next(finite) if isinstance(value, Tensor) else np.isfinite(value)):
            raise FloatingPointError(f"{name} is not finite")


def policy_kwargs_for(actions: Actions) -> dict[str, Any]:
    """The part of `policy_kwargs` that the environment's actions decide."""
    if isinstance(actions, DiscreteActions):
        return {"viewpoints": actions.viewpoints, "allow_stop": actions.allow_stop}
    return {"viewpoints": None, "log_std_init": -0.7}
