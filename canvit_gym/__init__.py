"""Gymnasium environments for active vision with a frozen CanViT: choose where to look, build up a canvas.

>>> import gymnasium as gym
>>> import canvit_gym
>>> env = gym.make("CanViT/FashionSegmentation-v0", num_scenes=16)
"""

from canvit_gym.registration import ENVIRONMENTS, register_environments

__all__ = ["ENVIRONMENTS", "register_environments"]

register_environments()
