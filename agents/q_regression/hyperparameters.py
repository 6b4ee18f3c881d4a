"""What an entry of agents/hyperparameters/q_regression.yml holds."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from agents.checks import check_choice, check_number, check_policy_kwargs, check_schedule, check_whole
from agents.training_state import check_whole_episodes
from canvit_gym.config import EnvConfig


@dataclass(frozen=True)
class QHyperparameters:
    """One entry of the file; see there for what they mean."""

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

    def __post_init__(self) -> None:
        for name in ("total_timesteps", "n_envs", "n_steps", "replay_rollouts", "batch_size", "n_epochs"):
            check_whole(name, getattr(self, name), low=1)
        check_number("max_grad_norm", self.max_grad_norm, low=0)
        check_number("greedy", self.greedy, low=0, high=1)
        if self.clip_reward is not None:
            check_number("clip_reward", self.clip_reward, above=0)
        check_schedule("learning_rate", self.learning_rate)
        check_choice("rollout_tensors", self.rollout_tensors, ("float16", "float32"))
        check_policy_kwargs(self.policy_kwargs, leave_out=("distribution", "log_std_init"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def check_fit(self, config: EnvConfig) -> None:
        if config.action == "continuous":
            raise ValueError(
                "q_regression learns what every viewpoint of a table is worth, but the actions are continuous: use "
                "action='grid' or 'quadtree', or another --algo"
            )
        check_whole_episodes(config, self.n_steps)
