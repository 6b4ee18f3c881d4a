"""Hyperparameters of PPO: what an entry of agents/hyperparameters/ppo.yml holds."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from agents.checks import check_choice, check_number, check_policy_kwargs, check_schedule, check_whole, is_number
from agents.ppo.callbacks import EntropyFloor
from agents.ppo.warm_start import WarmStart
from agents.training_state import check_revisits, check_whole_episodes
from canvit_gym.config import EnvConfig

ENTROPY_FLOOR = ("start", "end", "low", "high", "rate")


@dataclass(frozen=True)
class Hyperparameters:
    """One entry of the file; see there for what they mean."""

    total_timesteps: int
    env_kwargs: dict[str, Any]
    n_envs: int
    n_steps: int
    batch_size: int
    n_epochs: int
    learning_rate: float | str
    clip_range: float | str
    gamma: float
    gae_lambda: float
    vf_coef: float
    max_grad_norm: float
    normalize_advantage: bool
    target_kl: float | None
    normalize_reward: Literal["per_step", "pooled"] | None
    clip_reward: float | None
    ent_coef: float
    entropy_floor: dict[str, float] | None
    policy_kwargs: dict[str, Any]
    rollout_tensors: Literal["float16", "float32"] | None = "float16"
    warm_start: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("total_timesteps", "n_envs", "n_steps", "batch_size", "n_epochs"):
            check_whole(name, getattr(self, name), low=1)
        for name in ("env_kwargs", "warm_start"):
            if not isinstance(value := getattr(self, name), dict):
                raise ValueError(f"hyperparameter {name} must be an object of options, got {value!r}")
        for name in ("gamma", "gae_lambda"):
            check_number(name, getattr(self, name), low=0, high=1)
        for name in ("ent_coef", "vf_coef", "max_grad_norm"):
            check_number(name, getattr(self, name), low=0)
        for name in ("clip_reward", "target_kl"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 < value < float("inf")):
                raise ValueError(f"hyperparameter {name} must be a number > 0 or null, got {value!r}")
        check_policy_kwargs(self.policy_kwargs)
        for name in ("learning_rate", "clip_range"):
            check_schedule(name, getattr(self, name))
        check_choice("rollout_tensors", self.rollout_tensors, ("float16", "float32", None))
        check_choice("normalize_reward", self.normalize_reward, ("per_step", "pooled", None))
        if unknown := sorted(set(self.warm_start) - {option.name for option in fields(WarmStart)}):
            options = ", ".join(option.name for option in fields(WarmStart))
            raise ValueError(f"unknown warm_start options {', '.join(unknown)}; there are: {options}")
        WarmStart(**self.warm_start)
        if self.entropy_floor is not None:
            if set(self.entropy_floor) != set(ENTROPY_FLOOR):
                raise ValueError(
                    f"entropy_floor must be null or hold {', '.join(ENTROPY_FLOOR)}; got {self.entropy_floor}"
                )
            EntropyFloor(**self.entropy_floor)
        if (self.n_envs * self.n_steps) % self.batch_size or self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2 and divide a rollout of n_envs * n_steps = {self.n_envs} * "
                f"{self.n_steps} = {self.n_envs * self.n_steps} decisions, got {self.batch_size}"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def check_fit(self, config: EnvConfig) -> None:
        """Raise ValueError where rollouts would end in the middle of episodes."""
        check_whole_episodes(config, self.n_steps)
        check_revisits(config, inhibition=self.policy_kwargs.get("inhibition"))
