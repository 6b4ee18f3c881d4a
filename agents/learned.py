"""A learned policy behind the protocol of the hand-coded ones."""

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import CategoricalDistribution

from agents.policy import ViewpointPolicy
from agents.record import Inputs, describe_layout, require_same
from canvit_gym.config import build_actions
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies import PolicyInfo
from canvit_gym.viewpoints import first_viewpoints


class LearnedPolicy:
    """A ViewpointPolicy with its record, as a GlimpsePolicy.

    Glimpse 0 is the one its environment takes before the agent acts, if it does. Evaluation takes a fixed
    number of glimpses, so a policy that may stop is asked where it would look if it went on.
    """

    def __init__(self, policy: ViewpointPolicy, *, deterministic: bool = True) -> None:
        if policy.record is None:
            raise ValueError(
                "this policy has no record of what it was trained on: load it with agents.checkpoint.load_policy"
            )
        self.policy, self.record, self.deterministic = policy, policy.record, deterministic
        self.actions = build_actions(self.record.env)
        how = "most likely viewpoint" if deterministic else "sampled viewpoints"
        self.info = PolicyInfo(
            name="learned",
            paper_name="PPO",
            description=f"PPO trained on {self.record.env_id}, {how}",
            deterministic=deterministic,
        )

    def begin(self, batch_size: int, device: torch.device) -> None:
        """Nothing is remembered between glimpses: the canvas remembers."""

    @torch.no_grad()
    def viewpoints(self, t: int, episodes: EpisodeBatch) -> NDArray[np.float32]:
        if t == 0:
            self._require_same(episodes)
            first = self.record.env.first_glimpse
            if first is not None:
                return first_viewpoints(first, episodes.num)
        observation = {key: value.to(self.policy.device) for key, value in episodes.observe().items()}
        distribution = self.policy.get_distribution(observation)
        if isinstance(distribution, CategoricalDistribution) and self.record.env.allow_stop:
            distribution.proba_distribution(distribution.distribution.logits[:, :-1])
        chosen = distribution.get_actions(deterministic=self.deterministic).cpu().numpy()
        if not isinstance(distribution, CategoricalDistribution):
            chosen = np.clip(chosen, -1, 1)
        return self.actions.decode(chosen)[0]

    def _require_same(self, episodes: EpisodeBatch) -> None:
        found = Inputs(
            backbone_sha256=episodes.backbone.sha256,
            probe_sha256=episodes.task.probe_sha256,
            layout=describe_layout(episodes.layout),
            actions=self.record.inputs.actions,
        )
        require_same(self.record.inputs, found, who=f"the policy trained on {self.record.env_id}")
