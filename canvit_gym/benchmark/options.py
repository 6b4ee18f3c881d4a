"""Options that all commands that evaluate policies share."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from canvit_gym.checks import integer
from canvit_gym.command_line import env_config, json_object
from canvit_gym.config import EnvConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The environment and its scenes, and how they are evaluated."""

    env: str = "CanViT/FashionSegmentation-v0"
    """Environment id; `canvit-gym envs` lists them."""
    root: Path | None = None
    """Directory of the environment's data set."""
    env_kwargs: str | None = None
    """Further keyword arguments of the environment, as JSON."""
    budget: int | None = None
    """Glimpses per scene, including the first one. None: as many as an episode of the environment has."""
    split: Literal["training", "validation", "test", "tuning"] = "test"
    """"tuning" are the training scenes that --env-kwargs '{"tuning_scenes": N}' holds out."""
    num_scenes: int | None = None
    """The largest number of scenes to use. None: the whole split."""
    batch_size: int = 64
    device: str = "auto"
    progress: bool = True

    def env_config(self) -> EnvConfig:
        """
        Raises:
            ValueError: an unknown id, or a bad value. TypeError: an unknown keyword.
        """
        integer(1)("--batch-size", self.batch_size)
        root = {} if self.root is None else {"root": str(self.root)}
        env = env_config(self.env, json_object(self.env_kwargs, option="--env-kwargs") | root)
        return replace(
            env,
            split=self.split,
            num_scenes=self.num_scenes,
            budget=env.budget if self.budget is None else self.budget,
            device=self.device,
        )
