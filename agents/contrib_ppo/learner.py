"""MaskablePPO and RecurrentPPO of sb3-contrib with the spatial extractor.

MaskablePPO never takes an action that the environment forbids (revisit=False). RecurrentPPO has an LSTM that remembers
the episode, so it does not need `gaze` and `acuity` among its observations. Both apply an MLP to the vector from
MapEncoder, whereas agents.ppo scores viewpoints from the map. With a stop action, a model's own `predict` takes the
most likely single action; the policies that are saved decide first whether to stop, as those of all learners here.
"""

from typing import Any, cast

from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from torch import nn

from agents.algorithms import Algorithm
from agents.checks import check_fields, encoder_options, mapping, widths
from agents.extractors import SpatialExtractor
from agents.finite import GradientWatch
from agents.learner import closed_on_error
from agents.ppo.algorithm import WholeSchedule, require_finite_rollout
from agents.ppo.callbacks import ViewpointStatistics
from agents.ppo.hyperparameters import Hyperparameters
from agents.ppo.learner import PPOLearner
from agents.ppo.model import make_training_env, ppo_arguments
from agents.settings import Plan
from agents.training_state import begin_episodes, check_revisits, check_whole_episodes
from canvit_gym.assembly import build_actions
from canvit_gym.backbone.load import resolve_device
from canvit_gym.checks import integer
from canvit_gym.config import EnvConfig
from canvit_gym.policies.networks import EncodedTable, RecurrentTable


class EncodedHyperparameters(Hyperparameters):
    """An entry of maskable_ppo.yml, which explains the fields."""

    options = ("encoder", "net_arch")
    """Keys of policy_kwargs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warm_start.get("states"):
            raise ValueError(f"a warm start is for ppo alone: leave out warm_start, got {self.warm_start!r}")
        if self.compile_policy:
            raise ValueError("networks of sb3-contrib are not compiled: leave compile_policy out, got true")
        if self.rollout_tensors is not None:
            raise ValueError(
                f"rollouts of sb3-contrib are NumPy arrays: rollout_tensors must be null, got {self.rollout_tensors!r}"
            )

    def _check_policy_kwargs(self) -> None:
        check_fields(self, mapping, "policy_kwargs")
        if set(self.policy_kwargs) != set(self.options):
            raise ValueError(
                f"hyperparameter policy_kwargs must hold {', '.join(self.options)}, got {', '.join(self.policy_kwargs)}"
            )
        encoder_options("policy_kwargs encoder", self.policy_kwargs["encoder"])
        widths("policy_kwargs net_arch", self.policy_kwargs["net_arch"])

    def check_fit(self, config: EnvConfig) -> None:
        if config.action == "continuous":
            raise ValueError("this algorithm needs a table of viewpoints: use action='grid' or 'quadtree'")
        check_whole_episodes(config, self.n_steps)


class RecurrentHyperparameters(EncodedHyperparameters):
    """An entry of recurrent_ppo.yml, which explains the fields."""

    options = ("encoder", "net_arch", "lstm_size")

    def _check_policy_kwargs(self) -> None:
        super()._check_policy_kwargs()
        integer(1)("policy_kwargs lstm_size", self.policy_kwargs["lstm_size"])

    def check_fit(self, config: EnvConfig) -> None:
        super().check_fit(config)
        check_revisits(config)


class CheckedMaskablePPO(WholeSchedule, MaskablePPO):
    """MaskablePPO that stops at the first number that is not finite."""

    def train(self) -> None:
        require_finite_rollout(self.rollout_buffer)
        super().train()


class CheckedRecurrentPPO(WholeSchedule, RecurrentPPO):
    """RecurrentPPO that stops at the first number that is not finite."""

    def train(self) -> None:
        require_finite_rollout(self.rollout_buffer)
        super().train()


class _EncodedPPOLearner(PPOLearner):
    """A PPO of sb3-contrib with an MLP; `_network` shares the actor's layers."""

    model_class: type[CheckedMaskablePPO | CheckedRecurrentPPO]

    def __init__(self, plan: Plan) -> None:
        self.plan, self.hyper = plan, plan.hyper
        self.env = make_training_env(plan.settings.env, plan.env, self.hyper, plan.env_kwargs)
        with closed_on_error(self.env):
            options = self.hyper.policy_kwargs
            self.model = self.model_class(  # type: ignore[assignment]
                self._policy_name,
                self.env,
                **ppo_arguments(self.hyper),
                policy_kwargs={
                    "features_extractor_class": SpatialExtractor,
                    "features_extractor_kwargs": options["encoder"],
                    "net_arch": options["net_arch"],
                    "activation_fn": nn.ReLU,
                    **self._policy_options,
                },
                seed=plan.settings.seed,
                device=resolve_device(plan.env.device),
            )
            self._watch = GradientWatch(self.model.policy, self.model.policy.optimizer)
            self._statistics = ViewpointStatistics(build_actions(plan.env))
            self._network = self._shared(cast(spaces.Dict, self.env.observation_space), self.model.policy)

    _policy_name = "MultiInputPolicy"

    @property
    def _policy_options(self) -> dict[str, Any]:
        return {}

    def _shared(self, layout: spaces.Dict, policy: Any) -> EncodedTable:
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        return self._network

    def begin(self, *, progress: bool) -> list[dict[str, float]]:
        begin_episodes(self.model, self.env)
        return []


def share_layers(network: EncodedTable, policy: Any) -> None:
    network.encoder = policy.features_extractor.encoder
    network.latent, network.logits = policy.mlp_extractor.policy_net, policy.action_net


class MaskablePPOLearner(_EncodedPPOLearner):
    model_class = CheckedMaskablePPO
    network_class = "EncodedTable"

    def _shared(self, layout: spaces.Dict, policy: Any) -> EncodedTable:
        network = EncodedTable(layout, self.env.action_space, **self.hyper.policy_kwargs)
        share_layers(network, policy)
        return network


class RecurrentPPOLearner(_EncodedPPOLearner):
    model_class = CheckedRecurrentPPO
    network_class = "RecurrentTable"
    _policy_name = "MultiInputLstmPolicy"

    @property
    def _policy_options(self) -> dict[str, Any]:
        return {"lstm_hidden_size": self.hyper.policy_kwargs["lstm_size"]}

    def _shared(self, layout: spaces.Dict, policy: Any) -> EncodedTable:
        network = RecurrentTable(layout, self.env.action_space, **self.hyper.policy_kwargs)
        share_layers(network, policy)
        network.lstm = policy.lstm_actor
        return network


MASKABLE_ALGORITHM = Algorithm(title="MaskablePPO", hyperparameters=EncodedHyperparameters, make=MaskablePPOLearner)
RECURRENT_ALGORITHM = Algorithm(
    title="RecurrentPPO", hyperparameters=RecurrentHyperparameters, make=RecurrentPPOLearner
)
