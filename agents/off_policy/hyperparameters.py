"""What entries of dqn.yml, sac.yml, crossq.yml and tqc.yml hold."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from agents.checks import check_choice, check_number, check_schedule, check_whole
from agents.training_state import check_revisits, check_whole_episodes
from canvit_gym.config import EnvConfig


@dataclass(frozen=True)
class OffPolicyHyperparameters:
    """One entry of a file; see dqn.yml for what they mean."""

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
        for name in (
            "total_timesteps", "n_envs", "train_freq", "gradient_steps", "buffer_size", "batch_size",
        ):  # fmt: skip
            check_whole(name, getattr(self, name), low=1)
        check_whole("learning_starts", self.learning_starts, low=0)
        check_number("gamma", self.gamma, low=0, high=1)
        if self.clip_reward is not None:
            check_number("clip_reward", self.clip_reward, above=0)
        check_schedule("learning_rate", self.learning_rate)
        check_choice("normalize_reward", self.normalize_reward, ("per_step", "pooled", None))
        for name in ("env_kwargs", "encoder", "options"):
            if not isinstance(value := getattr(self, name), dict):
                raise ValueError(f"hyperparameter {name} must be an object of options, got {value!r}")
        if not self.net_arch:
            raise ValueError("hyperparameter net_arch must be a list of at least one width, such as [256]")
        for width in self.net_arch:
            check_whole("net_arch", width, low=1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def check_fit(self, config: EnvConfig) -> None:
        check_whole_episodes(config, self.train_freq, name="train_freq")
        check_revisits(config)


class OfTables(OffPolicyHyperparameters):
    """Of a learner whose actions are a table."""

    def check_fit(self, config: EnvConfig) -> None:
        if config.action == "continuous":
            raise ValueError("dqn needs a table of viewpoints: use action='grid' or 'quadtree', or another --algo")
        super().check_fit(config)


class OfContinuous(OffPolicyHyperparameters):
    """Of a learner whose actions are numbers."""

    def check_fit(self, config: EnvConfig) -> None:
        if config.action != "continuous":
            raise ValueError(
                f"this algorithm needs action='continuous', but the environment's actions are {config.action!r}: "
                "choose another --algo"
            )
        super().check_fit(config)
