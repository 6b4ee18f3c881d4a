"""Hyperparameters in dqn.yml, sac.yml, crossq.yml and tqc.yml."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from agents.checks import check_fields, encoder_options, mapping, schedule, widths
from agents.training_state import check_revisits, check_whole_episodes, ends_with_rollouts
from canvit_gym.checks import finite, integer, one_of, optional
from canvit_gym.config import EnvConfig


@dataclass(frozen=True)
class OffPolicyHyperparameters:
    """An entry of one of these files; dqn.yml explains the fields."""

    total_timesteps: int
    env_kwargs: dict[str, Any]
    n_envs: int
    train_freq: int
    gradient_steps: int
    buffer_size: int
    learning_starts: int
    batch_size: int
    learning_rate: float | str
    gamma: float
    normalize_reward: Literal["per_step", "pooled"] | None
    clip_reward: float | None
    encoder: dict[str, Any]
    net_arch: list[int]
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(
            self, integer(1), "total_timesteps", "n_envs", "train_freq", "gradient_steps", "buffer_size", "batch_size"
        )
        check_fields(self, integer(0), "learning_starts")
        check_fields(self, finite(low=0, high=1), "gamma")
        check_fields(self, optional(finite(above=0)), "clip_reward")
        check_fields(self, schedule, "learning_rate")
        check_fields(self, optional(one_of(lambda: ("per_step", "pooled"))), "normalize_reward")
        check_fields(self, mapping, "env_kwargs", "options")
        check_fields(self, encoder_options, "encoder")
        check_fields(self, widths, "net_arch")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def glimpses(self, decisions: int) -> int:
        return decisions

    def check_fit(self, config: EnvConfig) -> None:
        check_whole_episodes(config, self.train_freq, name="train_freq")
        if self.options.get("n_steps", 1) > 1 and not ends_with_rollouts(config):
            raise ValueError(
                "options n_steps above 1 adds up rewards of consecutive decisions, but with a stop action or a random "
                f"first glimpse episodes are cut between rollouts: leave it out (got {self.options['n_steps']})"
            )
        check_revisits(config)


class OfTables(OffPolicyHyperparameters):
    """For learners with discrete actions."""

    def check_fit(self, config: EnvConfig) -> None:
        if config.action == "continuous":
            raise ValueError("dqn needs a table of viewpoints: use action='grid' or 'quadtree', or another --algo")
        super().check_fit(config)


class OfContinuous(OffPolicyHyperparameters):
    """For learners with continuous actions."""

    def check_fit(self, config: EnvConfig) -> None:
        if config.action != "continuous":
            raise ValueError(
                f"this algorithm needs action='continuous', but the environment's actions are {config.action!r}: "
                "choose another --algo"
            )
        super().check_fit(config)
