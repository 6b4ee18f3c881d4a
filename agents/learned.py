"""A learned policy behind the protocol of the hand-coded ones."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import CategoricalDistribution
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from agents.checkpoint import RECORD, load_policy
from agents.ppo.policy import ViewpointPolicy
from canvit_gym.actions import DiscreteActions
from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig
from canvit_gym.policies import PolicyInfo, Seen, check_supported
from canvit_gym.policies.flops import probe_flops
from canvit_gym.policies.record import Inputs, describe_layout, require_same
from canvit_gym.policies.streams import scene_seeds, scene_uniforms
from canvit_gym.seeding import seeded
from canvit_gym.viewpoints import FirstGlimpse, first_viewpoints


class LearnedPolicy:
    """A ViewpointPolicy with its record, as a GlimpsePolicy.

    Glimpse 0 is the one its environment takes before the agent acts, if it does. Evaluation takes a fixed
    number of glimpses, so a policy that may stop is asked where it would look if it went on. What is sampled for
    a scene is a function of (seed, scene, t) and what the policy sees.
    """

    def __init__(self, policy: ViewpointPolicy, *, deterministic: bool = True) -> None:
        if policy.record is None:
            raise ValueError(
                "this policy has no record of what it was trained on: load it with agents.checkpoint.load_policy"
            )
        self.policy, self.record, self.deterministic = policy, policy.record, deterministic
        self.actions = build_actions(self.record.env)
        what = "PPO's warm start" if self.record.training.get("num_timesteps") == 0 else "PPO trained"
        how = "most likely viewpoint" if deterministic else "sampled viewpoints"
        keys = self.record.inputs.layout["keys"]
        dense = self.record.inputs.layout["is_dense"]
        self.info = PolicyInfo(
            name="learned",
            paper_name="PPO",
            description=f"{what} on {self.record.env_id}, {how}",
            deterministic=deterministic and self.record.env.first_glimpse != "random",
            needs_segmentation_probe=dense and "uncertainty" in keys,
            tasks=("segmentation",) if dense else ("classification",),
            observations=tuple(keys),
        )
        self._network_flops: int | None = None

    def reset(self, seen: Seen, *, seed: int) -> None:
        check_supported(self.info, seen.task.name, seen.backbone.canvas_grid)
        found = Inputs(
            backbone_sha256=seen.backbone.sha256,
            probe_sha256=seen.task.probe_sha256,
            layout=describe_layout(seen.layout),
            actions=self.record.inputs.actions,
        )
        require_same(self.record.inputs, found, who=f"the policy trained on {self.record.env_id}")
        self._seed = seed

    @torch.no_grad()
    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        first = self.record.env.first_glimpse
        if t == 0 and first is not None:
            return self._first_viewpoints(first, seen)
        observation = {key: value.to(self.policy.device) for key, value in seen.observe().items()}
        chosen = self._most_likely(observation) if self.deterministic else self._sampled(observation, t, seen)
        return self.actions.decode(chosen)[0]

    def flops_per_decision(self, seen: Seen) -> int:
        """The network's, counted once by PyTorch, and the probe's where the observation carries its uncertainty."""
        if self._network_flops is None:
            observation, _ = self.policy.obs_to_tensor(self.policy.observation_space.sample())
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self.policy.get_distribution(observation)
            self._network_flops = counter.get_total_flops()
        reads = "uncertainty" in self.record.inputs.layout["keys"]
        return self._network_flops + (probe_flops(seen) if reads else 0)

    def _first_viewpoints(self, first: FirstGlimpse, seen: Seen) -> NDArray[np.float32]:
        if first != "random":
            return first_viewpoints(first, seen.num)
        drawn = []
        for scene_seed in scene_seeds(self._seed, seen.scene):
            with seeded(scene_seed, torch.device("cpu")):
                drawn.append(first_viewpoints(first, 1))
        return np.concatenate(drawn)

    def _most_likely(self, observation: dict[str, Tensor]) -> NDArray[Any]:
        """[B, ...] actions."""
        if isinstance(self.actions, DiscreteActions):
            return self._probabilities(observation).argmax(axis=1)
        return np.clip(self.policy.get_distribution(observation).get_actions(deterministic=True).cpu().numpy(), -1, 1)

    def _sampled(self, observation: dict[str, Tensor], t: int, seen: Seen) -> NDArray[Any]:
        """[B, ...] actions."""
        if isinstance(self.actions, DiscreteActions):
            cumulative = self._probabilities(observation).cumsum(axis=1)
            below = cumulative[:, :-1] <= scene_uniforms(self._seed, seen.scene, t)[:, None] * cumulative[:, -1:]
            return below.sum(axis=1)
        # Whatever the distribution: one row at a time, each under its scene's own seed.
        rows = []
        for row, scene_seed in enumerate(scene_seeds(self._seed, seen.scene, t)):
            with seeded(scene_seed, self.policy.device):
                distribution = self.policy.get_distribution({k: v[row : row + 1] for k, v in observation.items()})
                rows.append(distribution.get_actions(deterministic=False))
        return np.clip(torch.cat(rows).cpu().numpy(), -1, 1)

    def _probabilities(self, observation: dict[str, Tensor]) -> NDArray[np.float64]:
        """[B, A] of the viewpoints; "stop", the last action where there is one, is left out."""
        distribution = self.policy.get_distribution(observation)
        assert isinstance(distribution, CategoricalDistribution) and isinstance(self.actions, DiscreteActions)
        probabilities = distribution.distribution.probs
        return probabilities[:, : len(self.actions.viewpoints)].double().cpu().numpy()


def policy_directory(directory: Path) -> Path:
    """The directory of the policy that a run directory stands for: its best; any other directory as it is."""
    best = Path(directory) / "best"
    return best if (best / RECORD).is_file() and not (Path(directory) / RECORD).is_file() else Path(directory)


def load_learned(directory: Path, *, config: EnvConfig, deterministic: bool = True) -> LearnedPolicy:
    """The policy in `directory`, or the best one of a run directory, for the environment `config`.

    Raises:
        FileNotFoundError: no policy there.
        ValueError: it was trained on another backbone, probe, observation layout or action space.
    """
    policy = load_policy(policy_directory(directory), device=config.device, config=config)
    return LearnedPolicy(policy, deterministic=deterministic)
