"""ViewpointPolicy: an SB3 actor-critic whose actor scores viewpoints from the spatial map."""

from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.finite import require_finite
from agents.ppo.distributions import ContinuousDistribution, StoppableDistribution
from canvit_gym.backbone.compilation import CompiledFunction, GraphedFunction, TrainedFunction
from canvit_gym.policies.networks import NETWORK_OPTIONS, NETWORKS, ViewpointNetwork
from canvit_gym.policies.trunks import Features, MapTrunk

_DECIDED_HERE: dict[str, tuple[Any, ...]] = {
    "net_arch": (None, []),
    "activation_fn": (nn.Tanh,),
    "ortho_init": (True,),
    "use_sde": (False,),
    "features_extractor_class": (),
    "features_extractor_kwargs": (),
    "share_features_extractor": (True,),
}
"""SB3's keyword arguments that cannot be chosen here, and the values that are accepted."""

MOST_GRAPHED = 1024
"""The most observations for which a rollout's forward is recorded as a CUDA graph."""


class ViewpointPolicy(MultiInputActorCriticPolicy):
    """Like SB3's MultiInputPolicy, but with a spatial map in place of one long vector.

    It has the layers of canvit_gym.policies.networks.ViewpointNetwork and takes its keyword arguments. It also takes
    SB3's, except for those that choose layers, initialization or noise, which ViewpointNetwork determines. `plain` is
    the network itself, without SB3.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        **kwargs: Any,
    ) -> None:
        for name, own in _DECIDED_HERE.items():
            if name in kwargs and kwargs[name] not in own:
                raise ValueError(
                    f"{name}={kwargs[name]!r} has no effect on ViewpointPolicy, whose layers are those of `network` "
                    "and whose noise is its distribution's: leave it out"
                )
        self._networks: TrainedFunction | None = None
        self._graphed: GraphedFunction | None = None
        self._options = {name: kwargs.pop(name, default) for name, default in NETWORK_OPTIONS.items()}
        kwargs |= dict(
            features_extractor_class=NETWORKS.get(self._options["network"], (MapTrunk,))[0],
            net_arch=[],  # the latent of actor and critic is the output of the trunk
            log_std_init=self._options["log_std_init"],
        )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    @property
    def plain(self) -> ViewpointNetwork:
        """The network itself, which is saved and acts without SB3. It shares this policy's layers."""
        return self._plain[0]

    def make_features_extractor(self) -> MapTrunk:  # type: ignore[override]
        # In a tuple, so that its layers are not registered twice: they are registered below, with SB3's names.
        self._plain = (ViewpointNetwork(cast(spaces.Dict, self.observation_space), self.action_space, **self._options),)
        return self.plain.features_extractor

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        self.value_net, self.action_net = self.plain.value_net, self.plain.action_net
        if isinstance(self.action_space, spaces.Box):
            name = self._options["distribution"]
            self.action_dist = ContinuousDistribution(name, int(np.prod(self.action_space.shape)))
            if name != "beta":
                self.log_std = self.plain.log_std
        elif self._options["allow_stop"]:
            self.action_dist = StoppableDistribution(int(cast(spaces.Discrete, self.action_space).n))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        inherited = super()._get_constructor_parameters()
        for name in ("features_extractor_class", "features_extractor_kwargs", "net_arch"):
            inherited.pop(name)
        return inherited | self._options

    def compile_networks(self) -> None:
        """Compile trunk and heads into one function for rollouts and updates; `ran` and `ran_in_rollouts` say how they
        actually ran.

        On a GPU rollouts replay it as a CUDA graph.
        """
        self._networks = TrainedFunction(self._scores_and_values, name="the policy network", compile=True)
        if self.device.type == "cuda":
            acting = CompiledFunction(self._of_tensors, name="the policy network", any_number=False)
            self._graphed = GraphedFunction(acting, up_to=MOST_GRAPHED)

    @property
    def ran(self) -> str:
        """How trunk and heads ran in updates: see TrainedFunction."""
        return "eager" if self._networks is None else self._networks.ran

    @property
    def ran_in_rollouts(self) -> str:
        """The same of rollouts, which on a GPU may also be "cuda graph"."""
        return self.ran if self._graphed is None else self._graphed.how

    def _scores_and_values(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        features = self.features_extractor(inputs)
        return self.action_net(features), self.value_net(features)

    def _of_tensors(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The same, of inputs in the order of the observation space."""
        return self._scores_and_values(dict(zip(cast(spaces.Dict, self.observation_space), inputs, strict=True)))

    def _compiled(self, obs: PyTorchObs) -> tuple[Tensor, Tensor]:
        """(scores, values) of observations."""
        assert self._networks is not None
        inputs = preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)  # type: ignore[arg-type]
        assert isinstance(inputs, dict)
        if self._graphed is None or torch.is_grad_enabled():
            return self._networks(inputs)
        scores, values = self._graphed(*(inputs[name] for name in cast(spaces.Dict, self.observation_space)))
        return scores, values

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        if self._networks is None:
            return super().forward(obs, deterministic)  # type: ignore[arg-type]
        scores, values = self._compiled(obs)
        distribution = self._distribution_of(scores)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape(-1, *(self.action_space.shape or ())), values, log_prob

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        return super().predict_values(obs) if self._networks is None else self._compiled(obs)[1]

    def _get_action_dist_from_latent(self, latent_pi: Features) -> Distribution:  # type: ignore[override]
        return self._distribution_of(self.action_net(latent_pi))

    def _distribution_of(self, scores: Tensor) -> Distribution:
        require_finite({"action_net's output": scores})
        if isinstance(self.action_dist, ContinuousDistribution):
            return self.action_dist.proba_distribution(scores, getattr(self, "log_std", None))
        return self.action_dist.proba_distribution(action_logits=scores)

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """Like SB3's method, but also takes tensors."""
        if not (isinstance(observation, dict) and all(isinstance(value, Tensor) for value in observation.values())):
            return super().obs_to_tensor(observation)
        shapes = {key: space.shape or () for key, space in cast(spaces.Dict, self.observation_space).items()}
        is_batch = any(value.ndim > len(shapes[key]) for key, value in observation.items())
        return {key: v.reshape(-1, *shapes[key]).to(self.device) for key, v in observation.items()}, is_batch

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self._networks is None:
            values, log_prob, entropy = super().evaluate_actions(obs, actions)
        else:
            scores, values = self._compiled(obs)
            distribution = self._distribution_of(scores)
            log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        require_finite({"values": values, "log_prob": log_prob, "entropy": entropy})
        return values, log_prob, entropy
