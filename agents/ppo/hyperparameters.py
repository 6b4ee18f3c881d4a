"""Hyperparameters in agents/hyperparameters/ppo.yml."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from agents.checks import check_fields, mapping, network_options, options_of, schedule
from agents.detection import Detection, check_detectable, detection_of
from agents.ppo.callbacks import EntropyFloor
from agents.ppo.warm_start import WarmStart
from agents.supervised import glimpses_of
from agents.training_state import check_revisits, check_whole_episodes
from agents.when_to_stop import Stopping, check_stops, stopping_of
from canvit_gym.checks import boolean, finite, integer, one_of, optional
from canvit_gym.config import EnvConfig

ENTROPY_FLOOR = ("start", "end", "low", "high", "rate")
REWARDS_ALONE: dict[str, Any] = {
    "policy_kwargs": {"prior": None, "learned_stop": False}, "detection": None, "stopping": None,
    "warm_start": {"states": 0}, "learning_rate": "lin_1.0e-3",
}  # fmt: skip
"""Overrides of the entries of embedded environments for PPO that learns from its rewards and nothing else."""


@dataclass(frozen=True)
class Hyperparameters:
    """An entry of the file, which explains the fields."""

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
    compile_policy: bool | None = None
    """Whether to compile the policy network with torch.compile. None: only on a GPU."""
    detection: dict[str, Any] | None = field(default_factory=dict)
    stopping: dict[str, Any] | None = field(default_factory=dict)
    warm_start: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, integer(1), "total_timesteps", "n_envs", "n_steps", "batch_size", "n_epochs")
        check_fields(self, mapping, "env_kwargs")
        check_fields(self, finite(low=0, high=1), "gamma", "gae_lambda")
        check_fields(self, finite(low=0), "ent_coef", "vf_coef", "max_grad_norm")
        check_fields(self, optional(finite(above=0)), "clip_reward", "target_kl")
        check_fields(self, boolean, "normalize_advantage")
        check_fields(self, optional(boolean), "compile_policy")
        self._check_policy_kwargs()
        check_fields(self, schedule, "learning_rate", "clip_range")
        check_fields(self, optional(one_of(lambda: ("float16", "float32"))), "rollout_tensors")
        check_fields(self, optional(one_of(lambda: ("per_step", "pooled"))), "normalize_reward")
        check_fields(self, optional(options_of(Detection)), "detection")
        detection_of(self)
        check_fields(self, optional(options_of(Stopping)), "stopping")
        check_fields(self, options_of(WarmStart), "warm_start")
        if stopping_of(self) is not None and self.warm_start.get("states"):
            raise ValueError(
                "a warm start scores a stop like a viewpoint, and learned_stop apart from viewpoints: set warm_start "
                "states to 0, or policy_kwargs learned_stop to false"
            )
        if self.entropy_floor is not None:
            if not isinstance(self.entropy_floor, dict) or set(self.entropy_floor) != set(ENTROPY_FLOOR):
                raise ValueError(
                    f"entropy_floor must be null or contain {', '.join(ENTROPY_FLOOR)}; got {self.entropy_floor!r}"
                )
            for name, value in self.entropy_floor.items():
                finite(low=0)(f"entropy_floor {name}", value)
            EntropyFloor(**self.entropy_floor)
        if (self.n_envs * self.n_steps) % self.batch_size or self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2 and divide a rollout of n_envs * n_steps = {self.n_envs} * "
                f"{self.n_steps} = {self.n_envs * self.n_steps} decisions, got {self.batch_size}"
            )

    def _check_policy_kwargs(self) -> None:
        check_fields(self, network_options(), "policy_kwargs")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def glimpses(self, decisions: int) -> int:
        options = WarmStart(**self.warm_start)
        before = glimpses_of(detection_of(self)) + glimpses_of(stopping_of(self))
        return before + options.states * (options.candidates + 1) + decisions

    def check_fit(self, config: EnvConfig) -> None:
        """Raise ValueError if rollouts would end in the middle of episodes."""
        check_whole_episodes(config, self.n_steps)
        check_revisits(config, inhibition=self.policy_kwargs.get("inhibition"))
        check_detectable(config, detection_of(self))
        check_stops(config, stopping_of(self))
