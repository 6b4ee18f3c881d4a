"""The environment ids. Registered on `import canvit_gym`; entry points are strings, so nothing heavy is imported."""

import gymnasium as gym

ENVIRONMENTS: dict[str, dict[str, object]] = {
    "CanViT/FashionSegmentation-v0": {"dataset": "fashion-segmentation"},
    "CanViT/FashionClassification-v0": {"dataset": "fashion-classification"},
    "CanViT/ADE20K-v0": {"dataset": "ade20k", "checkpoint": "flagship"},
    "CanViT/ImageNet1k-v0": {"dataset": "imagenet1k", "checkpoint": "flagship"},
    "CanViT/ImageFolder-v0": {"dataset": "image-folder"},
    "CanViT/SegmentationFolder-v0": {"dataset": "segmentation-folder"},
}
"""Keyword arguments of every id; see canvit_gym.config.EnvConfig for all there are."""


def register_environments() -> None:
    """Register every id with Gymnasium. Idempotent."""
    for env_id, kwargs in ENVIRONMENTS.items():
        name = env_id.removeprefix("CanViT/").partition("-")[0]
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point=f"canvit_gym.env:{name}Env",
                vector_entry_point="canvit_gym.vector_env:GlimpseVectorEnv",
                kwargs=kwargs,
            )
