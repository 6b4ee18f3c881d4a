"""Hyperparameters of PPO: what an entry of agents/hyperparameters/ppo.yml holds."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from agents.ppo.callbacks import EntropyFloor
from agents.ppo.warm_start import WarmStart
from agents.training_state import ends_with_rollouts, num_decisions
from canvit_gym.config import EnvConfig

POLICY_KWARGS = (
    "network", "channels", "context_dim", "blocks", "separable", "upsample", "mask_seen", "inhibition", "distribution",
    "log_std_init",
)  # fmt: skip
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
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"hyperparameter {name} must be a whole number >= 1, got {value!r}")
        for name in ("env_kwargs", "policy_kwargs", "warm_start"):
            if not isinstance(value := getattr(self, name), dict):
                raise ValueError(f"hyperparameter {name} must be an object of options, got {value!r}")
        for name, high in (
            ("gamma", 1), ("gae_lambda", 1), ("ent_coef", None), ("vf_coef", None), ("max_grad_norm", None),
        ):  # fmt: skip
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < float("inf") or (high is not None and value > high):
                told = f"lie in [0, {high}]" if high is not None else "be a finite number >= 0"
                raise ValueError(f"hyperparameter {name} must {told}, got {value!r}")
        for name in ("clip_reward", "target_kl"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < float("inf")):
                raise ValueError(f"hyperparameter {name} must be a number > 0 or null, got {value!r}")
        for name, least in (("channels", 1), ("context_dim", 1), ("upsample", 1), ("blocks", 0)):
            value = self.policy_kwargs.get(name, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"policy_kwargs {name} must be a whole number >= {least}, got {value!r}")
        for name in ("learning_rate", "clip_range"):
            schedule(getattr(self, name), name=name)
        for name, choices in (
            ("rollout_tensors", ("float16", "float32", None)),
            ("normalize_reward", ("per_step", "pooled", None)),
        ):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"hyperparameter {name} must be one of {choices}, got {value!r}")
        if unknown := sorted(set(self.policy_kwargs) - set(POLICY_KWARGS)):
            raise ValueError(f"unknown policy_kwargs {', '.join(unknown)}; there are: {', '.join(POLICY_KWARGS)}")
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
        decisions = num_decisions(config)
        if ends_with_rollouts(config) and self.n_steps % decisions:
            raise ValueError(
                f"n_steps must be a multiple of the {decisions} decisions of an episode (budget "
                f"{config.budget}), so that rollouts hold whole episodes; got {self.n_steps}. Try --hyper "
                f"'{{\"n_steps\": {max(1, round(self.n_steps / decisions)) * decisions}}}'"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def schedule(value: float | str, *, name: str) -> Callable[[float], float]:
    """A constant, or "lin_x": x at the beginning (progress remaining 1), 0 at the end.

    SB3's progress remaining falls below 0 where the last rollout goes beyond the total; a rate never does.
    """
    linear = isinstance(value, str) and value.startswith("lin_")
    try:
        number = float(value.removeprefix("lin_") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        number = -1.0
    if (isinstance(value, str) and not linear) or not 0 < number < float("inf"):
        raise ValueError(f'hyperparameter {name} must be a number > 0 or "lin_" and one, got {value!r}')
    return (lambda remaining: number * max(remaining, 0.0)) if linear else (lambda _: number)
