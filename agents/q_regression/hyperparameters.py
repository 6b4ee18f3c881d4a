"""Hyperparameters in agents/hyperparameters/q_regression.yml."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from agents.checks import check_fields, mapping, network_options, options_of, schedule
from agents.detection import Detection, check_detectable, detection_of
from agents.supervised import glimpses_of
from agents.training_state import check_whole_episodes
from agents.tried import require_table
from canvit_gym.checks import finite, integer, one_of, optional
from canvit_gym.config import EnvConfig
from canvit_gym.rewards import REWARDS


@dataclass(frozen=True)
class FromPool:
    """What is learned from a pool of episodes (agents.pool) before the first rollout. Without states: nothing."""

    states: int = 0
    candidates: int = 8
    epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 6e-3
    """Its peak; see agents.supervised.rise_and_fall."""
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        for name, low in (("states", 0), ("candidates", 2), ("epochs", 1), ("batch_size", 1)):
            integer(low)(f"pool {name}", getattr(self, name))
        finite(above=0)("pool learning_rate", self.learning_rate)
        finite(low=0)("pool weight_decay", self.weight_decay)


@dataclass(frozen=True)
class QHyperparameters:
    """An entry of the file, which explains the fields."""

    total_timesteps: int
    env_kwargs: dict[str, Any]
    n_envs: int
    n_steps: int
    replay_rollouts: int
    batch_size: int
    n_epochs: int
    learning_rate: float | str
    max_grad_norm: float
    greedy: float
    clip_reward: float | None
    policy_kwargs: dict[str, Any]
    rollout_tensors: Literal["float16", "float32"]
    detection: dict[str, Any] | None = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, mapping, "env_kwargs")
        check_fields(
            self, integer(1), "total_timesteps", "n_envs", "n_steps", "replay_rollouts", "batch_size", "n_epochs"
        )
        check_fields(self, finite(low=0), "max_grad_norm")
        check_fields(self, finite(low=0, high=1), "greedy")
        check_fields(self, optional(finite(above=0)), "clip_reward")
        check_fields(self, schedule, "learning_rate")
        check_fields(self, one_of(lambda: ("float16", "float32")), "rollout_tensors")
        check_fields(self, options_of(FromPool), "pool")
        check_fields(self, network_options(leave_out=("distribution", "log_std_init", "learned_stop")), "policy_kwargs")
        check_fields(self, optional(options_of(Detection)), "detection")
        detection_of(self)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def from_pool(self) -> FromPool:
        return FromPool(**self.pool)

    def glimpses(self, decisions: int) -> int:
        return glimpses_of(detection_of(self)) + self.from_pool.states * (self.from_pool.candidates + 1) + decisions

    def check_fit(self, config: EnvConfig) -> None:
        if config.action == "continuous":
            raise ValueError(
                "q_regression learns a value for every viewpoint of a table, but the actions are continuous: use "
                "action='grid' or 'quadtree', or another --algo"
            )
        check_whole_episodes(config, self.n_steps)
        check_detectable(config, detection_of(self))
        if self.from_pool.states:
            require_table(config, self.from_pool.candidates)
            if REWARDS[config.reward].potential == "score":
                raise ValueError(
                    f"a pool holds gains of the soft score, but reward={config.reward!r} pays for the score itself: "
                    "use reward='soft_score_gain', or no pool (pool states 0)"
                )
