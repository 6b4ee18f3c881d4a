"""The share of headroom and pictures of the gaze, for evaluations during training.

Headroom is the difference between a greedy oracle, which tries every viewpoint with the labels, and coarse-to-fine on
the same scenes. Both are only measured once, because the oracle costs a forward per viewpoint and glimpse.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from canvit_gym.actions import DiscreteActions
from canvit_gym.assembly import build_actions
from canvit_gym.atomic import write_json
from canvit_gym.benchmark.comparison import share_of_lead
from canvit_gym.benchmark.gaze_picture import scene_strip
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate, evaluated_scenes, record_views
from canvit_gym.policies import GlimpsePolicy, make_policy
from canvit_gym.rendering import Frame, tile_frames

FLOOR = "coarse_to_fine"
HEAT_CELLS, HEAT_PX = 48, 192
_HEAT = np.array([(20, 24, 60), (60, 80, 190), (60, 190, 170), (250, 220, 70), (255, 255, 240)], dtype=np.float64)


@dataclass(frozen=True)
class Headroom:
    """Scores after every glimpse on `num_scenes` of the validation scenes."""

    num_scenes: int
    floor: list[float]
    ceiling: list[float]
    ceiling_policy: str
    scenes: list[int] | None = None
    """Their indices; None, as in older files: the first ones."""

    @property
    def indices(self) -> list[int]:
        """[num_scenes]"""
        return list(range(self.num_scenes)) if self.scenes is None else self.scenes

    def share(self, result: Evaluation) -> NDArray[np.float64]:
        """[T]: 0 if the policy is as good as coarse-to-fine, 1 if it is as good as the oracle; NaN if there is no
        headroom."""
        score = result.score(np.flatnonzero(np.isin(result.scene, self.indices)))
        return share_of_lead(score, np.array(self.floor), np.array(self.ceiling))


def headroom(config: EnvConfig, num_scenes: int, *, path: Path) -> Headroom:
    """Headroom on some of `config`'s validation scenes: read from `path` if it was measured before, else measured and
    written."""
    discrete = isinstance(build_actions(config), DiscreteActions)
    oracle = "greedy_oracle(candidates='actions')" if discrete else "greedy_oracle"
    validation = replace(config, split=config.choosing_split, shard=(0, 1))
    scenes = evaluated_scenes(validation, max_scenes=num_scenes).tolist()
    if path.exists():
        known = Headroom(**json.loads(path.read_text(encoding="utf-8")))
        if (known.indices, known.ceiling_policy) == (scenes, oracle):
            return known
    scores = []
    for spec in (FLOOR, oracle):
        policy = make_policy(spec, config=validation, num_glimpses=validation.budget)
        scores.append(evaluate(policy, config=validation, max_scenes=num_scenes).score().tolist())
    found = Headroom(num_scenes=num_scenes, floor=scores[0], ceiling=scores[1], ceiling_policy=oracle, scenes=scenes)
    write_json(path, asdict(found))
    return found


def fixation_maps(viewpoints: NDArray[np.float32], *, size: int = HEAT_CELLS) -> NDArray[np.float64]:
    """[N, T, 3] -> [T, size, size]: for each glimpse, the share of scenes whose crop covers each cell's center."""
    cells = (2 * np.arange(size) + 1) / size - 1
    inside = [np.abs(cells - viewpoints[..., axis, None]) <= viewpoints[..., 2, None] for axis in (0, 1)]
    return np.einsum("ntr,ntc->trc", inside[0].astype(np.float32), inside[1].astype(np.float32)) / len(viewpoints)


def fixation_picture(viewpoints: NDArray[np.float32]) -> Frame:
    """A heat map per glimpse, side by side, each scaled from never to most often."""
    maps = fixation_maps(viewpoints)
    heat = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-9)
    stops = np.linspace(0, 1, len(_HEAT))
    frames = []
    for one in heat:
        colours = np.stack([np.interp(one, stops, channel) for channel in _HEAT.T], axis=-1).astype(np.uint8)
        frames.append(np.asarray(Image.fromarray(colours).resize((HEAT_PX, HEAT_PX), Image.Resampling.BILINEAR)))
    return tile_frames(frames, columns=len(frames))


def gaze_strips(policy: GlimpsePolicy, config: EnvConfig, *, scenes: NDArray[np.int64]) -> Frame:
    """Scenes of the config's split, a row each: the gaze, the reading after every glimpse, and the truth."""
    views = record_views(policy, config=config, rows=scenes)
    strips = [np.asarray(scene_strip(scene, num_readings=len(scene)).convert("RGB")) for scene in views]
    return np.concatenate(strips)
