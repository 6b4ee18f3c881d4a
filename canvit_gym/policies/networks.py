"""Policy networks in plain PyTorch: what a trained policy is made of, with any learner or none installed.

A network takes a dict of observations, [B, ...] each, and has a method `distribution(observation)` or
`values(observation)`.

ViewpointNetwork is a trunk (canvit_gym.policies.trunks) and heads (canvit_gym.policies.heads), chosen together by name:
`conv` (convolutions, ViewpointHead), `window` (the same trunk, WindowHead), `pointer` (self-attention over the cells,
then PointerHead) and `mlp` (every map averaged over the scene, then a logit per viewpoint): a control that cannot know
where anything is.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, Protocol, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from canvit_gym.actions import Actions, DiscreteActions
from canvit_gym.policies.distributions import (
    ActionDistribution,
    TanhGaussian,
    categorical,
    continuous,
    num_parameters,
)
from canvit_gym.policies.heads import GazeHead, ListHead, PointerHead, TableHead, ValueHead, ViewpointHead, WindowHead
from canvit_gym.policies.prior import INITIAL_WEIGHT, check_prior
from canvit_gym.policies.trunks import (
    AttentionBlock,
    Features,
    MapEncoder,
    MapTrunk,
    MeanTrunk,
    ModulatedBlock,
    TokenTrunk,
)
from canvit_gym.policies.when_to_stop import check_stoppable

NETWORKS: dict[str, tuple[type[MapTrunk], Callable[..., TableHead]]] = {
    "conv": (MapTrunk, ViewpointHead),
    "window": (MapTrunk, WindowHead),
    "pointer": (TokenTrunk, PointerHead),
    "mlp": (MeanTrunk, ListHead),
}
"""(trunk, head for a table of viewpoints) by name."""

_SMALL = 0.01
"""Gain of the last layers: every viewpoint starts out almost equally likely."""


class HasDistribution(Protocol):
    """A network that gives a distribution over actions."""

    def distribution(self, observation: dict[str, Tensor]) -> ActionDistribution:
        """Over [B] actions of a table (torch's Categorical; `stop` is the last one), or over [B, d] continuous ones."""
        ...


class HasValues(Protocol):
    """A network that estimates the value of each action of a table."""

    def values(self, observation: dict[str, Tensor]) -> Tensor:
        """[B, A], the higher the better; -inf for an action that must not be taken."""
        ...


Memory = tuple[Tensor, ...]
"""The state that a recurrent network carries from one decision to the next; its second axis indexes episodes."""


class HasMemory(Protocol):
    """A network whose distribution also depends on earlier observations."""

    def remember(self, observation: dict[str, Tensor], memory: Memory | None) -> tuple[ActionDistribution, Memory]:
        """The distribution, and the memory for the next decision. None as `memory` begins all episodes."""
        ...


def action_options(actions: Actions) -> dict[str, Any]:
    """The keyword arguments of a network that depend on the environment's actions."""
    if isinstance(actions, DiscreteActions):
        return {"viewpoints": actions.viewpoints, "allow_stop": actions.allow_stop}
    return {"viewpoints": None, "log_std_init": -0.7}


def initialize(module: nn.Module, *, gain: float) -> None:
    """Set orthogonal weights and zero biases in every linear and convolutional layer."""

    def one(layer: nn.Module) -> None:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain=gain)
            if layer.bias is not None:
                layer.bias.data.fill_(0.0)

    module.apply(one)


class ViewpointNetwork(nn.Module):
    """An actor that scores viewpoints from the spatial map, and a critic on the same trunk.

    `viewpoints` ([A, 3], or None for continuous actions) is the environment's table, `envs.actions.viewpoints`: see
    `action_options`. `network` is one of NETWORKS; `mask_seen` (discrete actions) gives probability 0 to viewpoints
    whose window has been seen at their scale, `inhibition` to viewpoints within this distance of an earlier one (see
    canvit_gym.policies.heads.TableHead; it has no effect on continuous actions); `prior` (discrete actions) is one of
    canvit_gym.policies.prior.PRIORS or "detected", which the network starts from, with a weight of `prior_weight`;
    with `learned_stop` it decides apart from its viewpoints whether to stop, and starts from what was learned of that;
    `distribution` (continuous actions) is "gaussian", "tanh_gaussian" or "beta".

    Raises:
        ValueError: options that are unknown or do not fit the observations or actions.
    """

    features_extractor: MapTrunk
    value_net: ValueHead
    action_net: TableHead | GazeHead

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
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
        prior: str | None = None,
        prior_weight: float = INITIAL_WEIGHT,
        learned_stop: bool = False,
        distribution: str = "gaussian",
        log_std_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.continuous = isinstance(action_space, spaces.Box)
        _check_options(
            observation_space,
            action_space,
            network=network,
            mask_seen=mask_seen,
            inhibition=inhibition,
            prior=prior,
            distribution=distribution,
        )
        _check_table(action_space, viewpoints, allow_stop)
        if learned_stop:
            check_stoppable(observation_space, allow_stop=allow_stop)
        self.distribution_name = distribution
        make_trunk, make_head = NETWORKS[network]
        self.features_extractor = trunk = make_trunk(
            observation_space,
            channels=channels,
            context_dim=context_dim,
            blocks=blocks,
            separable=separable,
            prior=prior,
            learned_stop=learned_stop,
        )
        self.value_net = ValueHead(channels=trunk.channels)
        if isinstance(action_space, spaces.Box):
            dim = int(np.prod(action_space.shape))
            self.action_net = GazeHead(
                channels=trunk.channels, grid=trunk.grid, num_parameters=num_parameters(distribution, dim)
            )
            if distribution != "beta":
                self.log_std = nn.Parameter(torch.full((dim,), log_std_init))
        else:
            acuity = observation_space["acuity"].shape if mask_seen or prior is not None else None
            self.action_net = make_head(
                viewpoints,
                channels=trunk.channels,
                grid=trunk.grid,
                upsample=upsample,
                allow_stop=allow_stop,
                mask_seen=mask_seen,
                acuity_size=acuity[-1] if acuity else 0,
                inhibition=inhibition,
                prior_size=acuity[-1] if acuity and prior is not None else None,
                prior_weight=prior_weight,
                learned_stop=learned_stop,
            )
        self._initialize()

    def _initialize(self) -> None:
        trunk = self.features_extractor
        layers = [layer for layer in trunk.children() if layer not in trunk.learned_before]
        for module in (*layers, self.value_net, self.action_net):
            initialize(module, gain=2**0.5)
        for block in trunk.blocks:
            initialize(cast(ModulatedBlock | AttentionBlock, block).modulation, gain=0.1)
        for layer in self.action_net.last_layers:
            initialize(layer, gain=_SMALL)

    def features(self, observation: dict[str, Tensor]) -> Features:
        """The input of the heads."""
        return self.features_extractor({key: value.float() for key, value in observation.items()})

    def of_features(self, features: Features) -> ActionDistribution:
        """The distribution over actions, given the trunk's features of an observation."""
        scores = self.action_net(features)
        if not self.continuous:
            return categorical(scores)
        return continuous(self.distribution_name, scores, getattr(self, "log_std", None))

    def distribution(self, observation: dict[str, Tensor]) -> ActionDistribution:
        return self.of_features(self.features(observation))


NETWORK_OPTIONS = {
    name: parameter.default
    for name, parameter in signature(ViewpointNetwork).parameters.items()
    if parameter.kind is Parameter.KEYWORD_ONLY
}
"""The options of ViewpointNetwork, and their defaults."""


def _check_options(
    observations: spaces.Dict,
    actions: spaces.Space,
    *,
    network: str,
    mask_seen: bool,
    inhibition: float | None,
    prior: str | None,
    distribution: str,
) -> None:
    continuous = isinstance(actions, spaces.Box)
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}; choose one of {', '.join(NETWORKS)}")
    if mask_seen and (continuous or "acuity" not in observations.spaces):
        raise ValueError(
            "mask_seen needs a table of viewpoints (action grid or quadtree) and `acuity` among the observations, "
            f"got {actions} and {list(observations.spaces)}"
        )
    if inhibition is not None and not continuous:
        if "gaze" not in observations.spaces:
            raise ValueError(
                "inhibition of return needs `gaze` among the observations, which are "
                f"{list(observations.spaces)}: add it, or set policy_kwargs inhibition to null"
            )
        if not 0 <= inhibition < float("inf"):
            raise ValueError(f"inhibition must be a distance >= 0 in scene coordinates, or null, got {inhibition!r}")
    if prior is not None:
        check_prior(prior, observations, actions)
    if distribution != "gaussian" and not continuous:
        raise ValueError(f"distribution {distribution!r} is for action='continuous'; these are {actions}")


def _check_table(actions: spaces.Space, viewpoints: NDArray[np.float32] | None, allow_stop: bool) -> None:
    if isinstance(actions, spaces.Box) != (viewpoints is None):
        raise ValueError(
            f"actions {actions} with viewpoints={viewpoints!r}: pass the environment's table for discrete actions and "
            "None for continuous ones, as action_options(envs.actions) does"
        )
    if viewpoints is not None:
        expected, found = len(viewpoints) + allow_stop, int(cast(spaces.Discrete, actions).n)
        if expected != found:
            raise ValueError(
                f"{len(viewpoints)} viewpoints with allow_stop={allow_stop} make {expected} actions, the environment "
                f"has {found}: pass its own table, as action_options(envs.actions) does"
            )


def _refuse_learned_stop(options: Mapping[str, Any]) -> None:
    if options.get("learned_stop"):
        raise ValueError("learned_stop gives a stop its odds, but this network gives it a value: leave it out")


class ViewpointQNetwork(nn.Module):
    """The value of a glimpse at each viewpoint of a table: Q = V + A, where A has mean zero over the table.

    The layers and their options are those of ViewpointNetwork with discrete actions. `q_values` are those of all
    actions; `values` are -inf where a mask forbids an action.

    Raises:
        ValueError: continuous actions, or options that are unknown or do not fit.
    """

    def __init__(self, observation_space: spaces.Dict, action_space: spaces.Space, **options: Any) -> None:
        super().__init__()
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(
                f"a network of values needs a table of viewpoints (action grid or quadtree): {action_space}"
            )
        _refuse_learned_stop(options)
        self.dueling = ViewpointNetwork(observation_space, action_space, **options)

    def q_values(self, observation: dict[str, Tensor]) -> Tensor:
        """[B, A (+ 1 for stop)]"""
        return self._of_features(self.dueling.features(observation))

    def values(self, observation: dict[str, Tensor]) -> Tensor:
        features = self.dueling.features(observation)
        masked = cast(TableHead, self.dueling.action_net).masked(features)
        values = self._of_features(features)
        return values if masked is None else values.masked_fill(masked, -torch.inf)

    def _of_features(self, features: Features) -> Tensor:
        advantage = cast(TableHead, self.dueling.action_net).unmasked(features)
        return self.dueling.value_net(features) + advantage - advantage.mean(dim=1, keepdim=True)


class GainNetwork(nn.Module):
    """How much a glimpse at each viewpoint lowers the loss: sigmoid(v) times the reading's predictive entropy.

    The entropy bounds the gain of a glimpse (Gadgil et al. 2024, DIME): a reading without uncertainty cannot improve.
    The layers and their options are those of ViewpointNetwork with discrete actions. `uncertainty` must be among the
    observations: it is the entropy as a fraction of log `num_classes`.

    A policy that may stop does so when no viewpoint gains as much as `price` (nats) or, with `confidence`, when the
    entropy's fraction is below that value, however large the gains are.

    Raises:
        ValueError: continuous actions, no `uncertainty`, or options that are unknown or do not fit.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        *,
        num_classes: int,
        price: float = 0.0,
        confidence: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(f"gains are of a table of viewpoints (action='grid' or 'quadtree'), got {action_space}")
        if "uncertainty" not in observation_space.spaces:
            raise ValueError(
                f"gains need `uncertainty` among the observations, which are {list(observation_space.spaces)}: add it"
            )
        _refuse_learned_stop(options)
        self.nats, self.price, self.confidence = float(np.log(num_classes)), price, confidence
        self.actor = ViewpointNetwork(observation_space, action_space, **options)
        self.shift = nn.Parameter(torch.tensor(-3.0))  # a glimpse removes a small part of the uncertainty

    def gains(self, observation: dict[str, Tensor]) -> Tensor:
        """[B, A]: the gain of each viewpoint, in nats."""
        return self._gains(observation, self.actor.features(observation))

    def values(self, observation: dict[str, Tensor]) -> Tensor:
        features = self.actor.features(observation)
        head = cast(TableHead, self.actor.action_net)
        gains, masked = self._gains(observation, features), head.masked(features)
        if masked is not None:
            gains = gains.masked_fill(masked[:, : gains.shape[1]], -torch.inf)
        if not head.allow_stop:
            return gains
        stop = torch.full_like(gains[:, :1], self.price)
        if self.confidence is not None:
            certain = _doubt(observation) < self.confidence
            stop = torch.where(certain, torch.inf, -torch.inf)[:, None]
        return torch.cat([gains, stop], dim=1)

    def _gains(self, observation: dict[str, Tensor], features: Features) -> Tensor:
        head = cast(TableHead, self.actor.action_net)
        scores = head.unmasked(features)
        scores = scores[:, :-1] if head.allow_stop else scores
        return torch.sigmoid(scores + self.shift) * self.nats * _doubt(observation)[:, None]


def _doubt(observation: dict[str, Tensor]) -> Tensor:
    """[B]: the predictive entropy as a fraction of its maximum, averaged over the scene where it is a map."""
    return observation["uncertainty"].float().flatten(1).mean(dim=1)


class EncodedValues(nn.Module):
    """The values of a table's actions, by a perceptron on MapEncoder's vector: what DQN trains."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        *,
        net_arch: Sequence[int] = (256,),
        encoder: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.encoder = MapEncoder(observation_space, **(encoder or {}))
        width = self.encoder.mixed.out_features
        self.head = nn.Sequential(
            *_perceptron(width, net_arch), nn.Linear([width, *net_arch][-1], int(cast(spaces.Discrete, action_space).n))
        )

    def values(self, observation: dict[str, Tensor]) -> Tensor:
        return self.head(self.encoder(observation))


class EncodedTable(nn.Module):
    """A distribution over a table's actions, by a perceptron on MapEncoder's vector: what MaskablePPO trains.

    Raises:
        ValueError: continuous actions.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        *,
        net_arch: Sequence[int] = (256,),
        encoder: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(f"a distribution over a table needs discrete actions, got {action_space}")
        self.encoder = MapEncoder(observation_space, **(encoder or {}))
        self._add_layers(self.encoder.mixed.out_features, net_arch, num_actions=int(action_space.n), **options)

    def _add_layers(self, width: int, net_arch: Sequence[int], *, num_actions: int, **_: Any) -> None:
        self.latent = nn.Sequential(*_perceptron(width, net_arch))
        self.logits = nn.Linear([width, *net_arch][-1], num_actions)

    def distribution(self, observation: dict[str, Tensor]) -> ActionDistribution:
        return categorical(self.logits(self.latent(self.encoder(observation))))


class RecurrentTable(EncodedTable):
    """EncodedTable with an LSTM of `lstm_size` units after the encoder: what RecurrentPPO trains."""

    def _add_layers(
        self, width: int, net_arch: Sequence[int], *, num_actions: int, lstm_size: int = 64, **_: Any
    ) -> None:
        super()._add_layers(lstm_size, net_arch, num_actions=num_actions)
        self.lstm = nn.LSTM(width, lstm_size)

    def remember(self, observation: dict[str, Tensor], memory: Memory | None) -> tuple[ActionDistribution, Memory]:
        """`memory`: the LSTM's hidden and cell state, [1, B, lstm_size] each."""
        output, remembered = self.lstm(self.encoder(observation)[None], memory)
        return categorical(self.logits(self.latent(output[0]))), remembered

    def distribution(self, observation: dict[str, Tensor]) -> ActionDistribution:
        """The distribution at the first decision of episodes."""
        return self.remember(observation, None)[0]


class EncodedActor(nn.Module):
    """A tanh-Gaussian over continuous actions, by a perceptron on MapEncoder's vector: the actor of SAC and variants.

    `renormalized`: with batch renormalization before every layer, as in CrossQ.
    """

    LOG_STD_RANGE = (-20.0, 2.0)

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        *,
        net_arch: Sequence[int] = (256,),
        encoder: dict[str, Any] | None = None,
        renormalized: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        self.encoder = MapEncoder(observation_space, **(encoder or {}))
        width, dim = self.encoder.mixed.out_features, int(np.prod(action_space.shape or ()))
        last = [width, *net_arch][-1]
        layers = _perceptron(width, net_arch, renormalized=renormalized)
        self.latent = nn.Sequential(*layers, *[RunningNorm(last)] * renormalized)
        self.mean, self.log_std = nn.Linear(last, dim), nn.Linear(last, dim)

    def distribution(self, observation: dict[str, Tensor]) -> ActionDistribution:
        latent = self.latent(self.encoder(observation))
        return TanhGaussian(self.mean(latent), self.log_std(latent).clamp(*self.LOG_STD_RANGE))


class RunningNorm(nn.Module):
    """Batch renormalization as used after training, with the running mean and variance."""

    EPSILON = 1e-3

    ra_mean: Tensor
    ra_var: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("ra_mean", torch.zeros(num_features))
        self.register_buffer("ra_var", torch.ones(num_features))
        self.register_buffer("steps", torch.tensor(0))
        self.scale = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * ((x - self.ra_mean) / (self.ra_var + self.EPSILON).sqrt()) + self.bias


def _perceptron(width: int, net_arch: Sequence[int], *, renormalized: bool = False) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise((width, *net_arch)):
        layers += [*[RunningNorm(size_in)] * renormalized, nn.Linear(size_in, size_out), nn.ReLU()]
    return layers


NETWORK_CLASSES: dict[str, Callable[..., nn.Module]] = {
    "ViewpointNetwork": ViewpointNetwork,
    "ViewpointQNetwork": ViewpointQNetwork,
    "GainNetwork": GainNetwork,
    "EncodedValues": EncodedValues,
    "EncodedActor": EncodedActor,
    "EncodedTable": EncodedTable,
    "RecurrentTable": RecurrentTable,
}
"""By the name in a policy's record; called with the spaces, and with `action_options` and the record's as keywords."""
