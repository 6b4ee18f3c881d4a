"""A features extractor for any algorithm of Stable-Baselines3 and sb3-contrib.

    model = DQN("MultiInputPolicy", envs, policy_kwargs={"features_extractor_class": SpatialExtractor})

SB3's own extractor for Dict observations flattens maps, unless they are uint8 images. This one processes maps with
convolutions, together with the vectors, and returns the vector that SB3's networks need.

CrossQ does not support Dict observations: FlattenObservations concatenates them into a vector, and FlatSpatialExtractor
splits it again.
"""

from typing import Any, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from canvit_gym.policies.trunks import MapEncoder


class SpatialExtractor(BaseFeaturesExtractor):
    """canvit_gym.policies.trunks.MapEncoder as a features extractor. `features_extractor_kwargs` are its options:
    features_dim, channels, context_dim, blocks, cell_channels, separable.
    """

    def __init__(self, observation_space: spaces.Space, *, features_dim: int = 256, **options: Any) -> None:
        super().__init__(observation_space, features_dim)
        self.encoder = MapEncoder(cast(spaces.Dict, observation_space), features_dim=features_dim, **options)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self.encoder(observations)


class FlattenObservations(VecEnvWrapper):
    """Concatenates Dict observations, key by key, into [N, total] float32 vectors."""

    def __init__(self, venv: VecEnv) -> None:
        self.layout = cast(spaces.Dict, venv.observation_space)
        bounds = [
            np.concatenate([getattr(box, side).ravel() for box in self.layout.values()]) for side in ("low", "high")
        ]
        low, high = (side.astype(np.float32) for side in bounds)
        super().__init__(venv, observation_space=spaces.Box(low, high, dtype=np.float32))

    def reset(self) -> NDArray[np.float32]:  # type: ignore[override]
        return self._flat(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                last = {key: value[None] for key, value in info["terminal_observation"].items()}
                info["terminal_observation"] = self._flat(last)[0]
        return self._flat(observation), rewards, dones, infos

    def _flat(self, observation: Any) -> NDArray[np.float32]:
        parts = [observation[key].reshape(len(observation[key]), -1) for key in self.layout]
        return np.concatenate(parts, axis=1).astype(np.float32)


class FlatSpatialExtractor(BaseFeaturesExtractor):
    """SpatialExtractor for the vectors of FlattenObservations; `layout` says how to split them."""

    def __init__(
        self, observation_space: spaces.Space, *, layout: spaces.Dict, features_dim: int = 256, **options: Any
    ) -> None:
        super().__init__(observation_space, features_dim)
        self._shapes = {key: box.shape or () for key, box in layout.items()}
        self.encoder = MapEncoder(layout, features_dim=features_dim, **options)

    def forward(self, observations: Tensor) -> Tensor:
        parts = observations.split([int(np.prod(shape)) for shape in self._shapes.values()], dim=1)
        named = zip(self._shapes.items(), parts, strict=True)
        return self.encoder({key: part.unflatten(1, shape) for (key, shape), part in named})
