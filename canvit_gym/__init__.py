"""Gymnasium environments for active vision with a frozen CanViT: choose where to look, and build up a canvas.

>>> import gymnasium as gym
>>> import canvit_gym
>>> env = gym.make("CanViT/FashionSegmentation-v0", num_scenes=16)
"""

from canvit_gym.backbone.forks import compute_alone_after_forks
from canvit_gym.play.animation import show
from canvit_gym.registration import ENVIRONMENTS, config_for, register_dataset, register_environments
from canvit_gym.scenes.datasets import DatasetPage, DatasetSpec, OnDisk, SceneRequest
from canvit_gym.sharding import env_fns, share_scenes

__all__ = [
    "ENVIRONMENTS",
    "DatasetPage",
    "DatasetSpec",
    "OnDisk",
    "SceneRequest",
    "__version__",
    "config_for",
    "env_fns",
    "register_dataset",
    "register_environments",
    "share_scenes",
    "show",
]

__version__ = "0.2.0"

register_environments()
compute_alone_after_forks()
