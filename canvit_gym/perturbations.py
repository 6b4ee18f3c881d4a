"""Perturbations: the same environment under conditions that no policy was trained for.

A perturbation can change a scene's pixels and labels when it is loaded, a viewpoint before the glimpse is taken, and a
glimpse's pixels; it can also hide a glimpse altogether. `Perturb` applies perturbations to a vector environment,
`canvit_gym.evaluation.evaluate(..., perturbations=...)` applies them to exact evaluation: both through
`PerturbedEpisodes`, so that their numbers agree. Environments without perturbations run none of this code.

Random numbers are drawn for every scene and glimpse from (seed, scene, t): all policies face the same perturbed scenes,
and a scene that is repeated is perturbed in the same way. At strength zero a perturbation changes nothing, to the bit.

A new one is a subclass of `Perturbation` and an entry of `PERTURBATIONS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, cast
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch import Viewpoint
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.checks import integer, is_number, number
from canvit_gym.episodes import EpisodeBatch, Rows
from canvit_gym.observations import to_uint8
from canvit_gym.scenes.source import Item, LocatedSource, SceneBatch, SceneSource, load_scenes, loads_in_threads
from canvit_gym.states import index_of
from canvit_gym.vector_env import GlimpseVectorEnv
from canvit_gym.viewpoints import clip_to_scene

_BLUR_PX = 17
"""Blur of the surroundings of a scene that was made smaller: wider than the details that identify an item."""


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """The base class, which changes nothing: subclasses override what they change."""

    seed: int = 0
    """Seed of the random numbers."""

    name: ClassVar[str]
    """Its name in tables and records."""

    def __post_init__(self) -> None:
        self._set("seed", integer(0)("seed", self.seed))

    @property
    def effect(self) -> str:
        """What it does at this strength, in a sentence."""
        raise NotImplementedError

    def perturb_scenes(self, batch: SceneBatch, scene: NDArray[np.int64]) -> SceneBatch:
        """Pixels and labels of scenes `scene` [n] as they are loaded. The batch may be changed in place."""
        return batch

    def perturb_items(self, items: tuple[Item, ...], scene: int, *, size_px: int) -> tuple[Item, ...]:
        """Where the items of a scene of size_px lie in its perturbed pixels."""
        return items

    def perturb_viewpoints(
        self, viewpoints: NDArray[np.float32], scene: NDArray[np.int64], t: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """[n, 3] where glimpse t [n] (0-based) of scenes [n] is taken, given where it was meant to be taken."""
        return viewpoints

    def shows(self, scene: NDArray[np.int64], t: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n] whether glimpse t of each scene shows anything."""
        return np.ones(len(scene), dtype=np.bool_)

    def perturb_glimpses(self, glimpses: Tensor) -> Tensor:
        """[n, 3, px, px], ImageNet-normalized: what the backbone sees."""
        return glimpses

    def record(self) -> dict[str, Any]:
        """JSON values."""
        fields = asdict(self).items()
        return {"name": self.name} | {
            key: value.item() if isinstance(value, np.generic) else value for key, value in fields
        }

    def draws(self, scene: int, t: int = 0) -> np.random.Generator:
        """Random numbers of this kind of perturbation for glimpse t of a scene."""
        return np.random.default_rng((crc32(self.name.encode()), self.seed, scene, t))

    def _require(self, field: str, low: float, high: float) -> None:
        value = getattr(self, field)
        if not is_number(value) or not low <= value <= high:
            raise ValueError(f"{field} of {type(self).__name__} must be a number in [{low:g}, {high:g}], got {value!r}")
        self._set(field, number(field, value))

    def _set(self, field: str, value: float) -> None:
        """Set a checked value, in plain types: it ends up in records as JSON."""
        object.__setattr__(self, field, value)


@dataclass(frozen=True, kw_only=True)
class DroppedGlimpses(Perturbation):
    """Each glimpse after the first is lost with this probability: it shows nothing, but counts towards the budget."""

    probability: float = 0.25
    name = "dropped glimpses"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("probability", 0, 1)

    @property
    def effect(self) -> str:
        return f"each glimpse after the first is lost with probability {self.probability:g}"

    def shows(self, scene: NDArray[np.int64], t: NDArray[np.int64]) -> NDArray[np.bool_]:
        drawn = [self.draws(s, i).random() for s, i in zip(scene.tolist(), t.tolist(), strict=True)]
        return (np.array(drawn) >= self.probability) | (t == 0)


@dataclass(frozen=True, kw_only=True)
class MissedTargets(Perturbation):
    """Glimpses miss the chosen viewpoint; the model and the agent know where they were taken."""

    deviation: float = 0.15
    """Standard deviation of the center along each axis, in scene coordinates (the scene is 2 wide)."""
    name = "missed targets"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("deviation", 0, 2)

    @property
    def effect(self) -> str:
        return f"centers miss by a normal error of {self.deviation:g} along each axis, clipped to the scene"

    def perturb_viewpoints(
        self, viewpoints: NDArray[np.float32], scene: NDArray[np.int64], t: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if not self.deviation:
            return viewpoints
        errors = [self.draws(s, i).standard_normal(2) for s, i in zip(scene.tolist(), t.tolist(), strict=True)]
        return clip_to_scene(viewpoints[:, :2] + self.deviation * np.array(errors), viewpoints[:, 2:])


@dataclass(frozen=True, kw_only=True)
class Brightness(Perturbation):
    """Pixel values are multiplied by a factor and clipped at white."""

    factor: float = 1.5
    name = "brightness"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("factor", 0, 100)

    @property
    def effect(self) -> str:
        return f"pixel values times {self.factor:g}, cut off at 255"

    def perturb_scenes(self, batch: SceneBatch, scene: NDArray[np.int64]) -> SceneBatch:
        if self.factor == 1:
            return batch
        bright = (torch.arange(256) * self.factor).round().clamp(max=255).to(torch.uint8)
        return SceneBatch(images=bright[batch.images.int()], labels=batch.labels)


@dataclass(frozen=True, kw_only=True)
class PixelNoise(Perturbation):
    """Normal noise on every value of every pixel of the scene, the same in all glimpses of it."""

    deviation: float = 25.0
    """Standard deviation, for values in [0, 255]."""
    name = "pixel noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("deviation", 0, 255)

    @property
    def effect(self) -> str:
        return f"normal noise of {self.deviation:g} (of 255) on every pixel value"

    def perturb_scenes(self, batch: SceneBatch, scene: NDArray[np.int64]) -> SceneBatch:
        if not self.deviation:
            return batch
        for image, index in zip(batch.images, scene.tolist(), strict=True):
            noise = torch.from_numpy(self.draws(index).standard_normal(tuple(image.shape), dtype=np.float32))
            image.copy_(noise.mul_(self.deviation).add_(image).round_().clamp_(0, 255))
        return batch


@dataclass(frozen=True, kw_only=True)
class SmallerScenes(Perturbation):
    """The scene shrinks, with all its items, to a random place within blurred surroundings of the same colours.

    The surroundings have no label: they count neither in a loss nor in a score.
    """

    factor: float = 0.75
    """Factor of the scene's side, and so of every item's."""
    name = "smaller items"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("factor", 0.51, 1)  # below, the surroundings would need more than one reflection

    @property
    def effect(self) -> str:
        return f"the scene and its items at {self.factor:g} of their size, within blurred surroundings"

    def perturb_scenes(self, batch: SceneBatch, scene: NDArray[np.int64]) -> SceneBatch:
        size = batch.images.shape[-1]
        side = round(self.factor * size)
        if side == size:
            return batch
        images, labels = batch.images, batch.labels
        small = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        nearest = (2 * torch.arange(side) + 1) * size // (2 * side)  # the pixel under each new one's center
        has_maps = labels.ndim == 3
        shrunk = labels[:, nearest[:, None], nearest] if has_maps else labels
        surrounded = torch.full_like(labels, IGNORE_LABEL) if has_maps else labels
        for row, index in enumerate(scene.tolist()):
            top, left = self._place(index, size - side)
            around = (left, size - side - left, top, size - side - top)
            scenery = F.pad(small[row : row + 1], around, mode="reflect")
            scenery = F.avg_pool2d(F.pad(scenery, (_BLUR_PX // 2,) * 4, mode="replicate"), _BLUR_PX, stride=1)
            scenery[0, :, top : top + side, left : left + side] = small[row]
            images[row] = scenery[0].round().clamp(0, 255)
            if has_maps:
                surrounded[row, top : top + side, left : left + side] = shrunk[row]
        return SceneBatch(images=images, labels=surrounded)

    def perturb_items(self, items: tuple[Item, ...], scene: int, *, size_px: int) -> tuple[Item, ...]:
        side = round(self.factor * size_px)
        place, share = self._place(scene, size_px - side), side / size_px
        # A scene coordinate x is at pixel (x + 1) / 2 * size_px.
        row, col = (2 * first / size_px + share - 1 for first in place)
        return tuple(
            replace(item, row=row + share * item.row, col=col + share * item.col, scale=share * item.scale)
            for item in items
        )

    def _place(self, scene: int, room: int) -> tuple[int, int]:
        """(top, left) in pixels, each in [0, room]."""
        top, left = self.draws(scene).integers(0, room + 1, size=2).tolist()
        return top, left


@dataclass(frozen=True, kw_only=True)
class GlimpseResolution(Perturbation):
    """Glimpses have fewer pixels, and are enlarged to the model's input size."""

    factor: float = 0.5
    """Factor of the number of pixels along a side."""
    name = "glimpse resolution"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("factor", 0.01, 1)

    @property
    def effect(self) -> str:
        return f"glimpses of {self.factor:g} of the pixels along a side, enlarged again"

    def perturb_glimpses(self, glimpses: Tensor) -> Tensor:
        size = glimpses.shape[-1]
        side = max(1, round(self.factor * size))
        if side == size:
            return glimpses
        coarse = F.interpolate(glimpses, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)


PERTURBATIONS: dict[str, Perturbation] = {
    "dropped": DroppedGlimpses(),
    "missed": MissedTargets(),
    "brighter": Brightness(factor=1.5),
    "darker": Brightness(factor=0.5),
    "noisy": PixelNoise(),
    "smaller": SmallerScenes(),
    "coarse": GlimpseResolution(),
}
"""Name -> perturbation, at the strength that `canvit-gym suite` uses."""


def perturbation_named(name: str) -> Perturbation:
    """The entry of PERTURBATIONS with this name; raises ValueError if there is none."""
    if name not in PERTURBATIONS:
        raise ValueError(f"unknown perturbation {name!r}; there are: {', '.join(PERTURBATIONS)}")
    return PERTURBATIONS[name]


def checked_perturbations(given: Sequence[str | Perturbation]) -> tuple[Perturbation, ...]:
    """Perturbations, some of which are given by their names in PERTURBATIONS.

    Raises:
        TypeError: something else, or one that is not in a list.
        ValueError: an unknown name.
    """
    if isinstance(given, str | Perturbation):
        raise TypeError(f"perturbations must be a list, got {given!r}: pass [{given!r}]")
    for one in given:
        if not isinstance(one, str | Perturbation):
            raise TypeError(f"a perturbation is a Perturbation or a name among {', '.join(PERTURBATIONS)}, got {one!r}")
    return tuple(perturbation_named(one) if isinstance(one, str) else one for one in given)


def perturbation_from_record(record: Mapping[str, Any]) -> Perturbation:
    """The perturbation that `Perturbation.record` describes.

    Raises:
        ValueError: one of a kind that PERTURBATIONS has no entry of, or with other parameters.

    >>> perturbation_from_record(Brightness(factor=0.5).record())
    Brightness(seed=0, factor=0.5)
    """
    kinds = {one.name: type(one) for one in PERTURBATIONS.values()}
    parameters = {name: value for name, value in record.items() if name != "name"}
    if record["name"] not in kinds:
        raise ValueError(
            f"this was recorded under {record['name']!r}, which is no perturbation that is known here "
            f"({', '.join(kinds)}): if it is your own, add one of its kind to canvit_gym.perturbations.PERTURBATIONS"
        )
    try:
        return kinds[record["name"]](**parameters)
    except TypeError as error:
        raise ValueError(
            f"this was recorded under {record['name']!r} with {parameters}, which it does not take in this version "
            f"({error}): use the version that wrote the record"
        ) from error


class PerturbedScenes:
    """A SceneSource whose scenes are perturbed as they are loaded."""

    def __init__(self, source: SceneSource, perturbations: Sequence[Perturbation]) -> None:
        self._source = source
        self._perturbations = tuple(perturbations)

    @property
    def name(self) -> str:
        return self._described(self._source.name)

    @property
    def fingerprint(self) -> str:
        return self._described(self._source.fingerprint)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._source.classes

    @property
    def scene_size_px(self) -> int:
        return self._source.scene_size_px

    @property
    def loads_in_threads(self) -> bool:
        return loads_in_threads(self._source)  # a perturbation depends on nothing but its seed and the scene

    def __len__(self) -> int:
        return len(self._source)

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        batch = load_scenes(self._source, indices)
        for perturbation in self._perturbations:
            batch = perturbation.perturb_scenes(batch, indices)
        return batch

    def _described(self, text: str) -> str:
        return ", ".join([text, *(str(perturbation) for perturbation in self._perturbations)])


class PerturbedLocatedScenes(PerturbedScenes):
    """PerturbedScenes of a source that knows where the items of its scenes lie."""

    def items(self, index: int) -> tuple[Item, ...]:
        items = cast(LocatedSource, self._source).items(index)
        for perturbation in self._perturbations:
            items = perturbation.perturb_items(items, index, size_px=self.scene_size_px)
        return items


class PerturbedEpisodes(EpisodeBatch):
    """An EpisodeBatch under perturbations, which are applied in order.

    With compile=True only the backbone's steps are compiled, not what comes before and after them.
    """

    def __init__(self, *, perturbations: Sequence[Perturbation], scenes: SceneSource, **parts: Any) -> None:
        perturbed = PerturbedLocatedScenes if isinstance(scenes, LocatedSource) else PerturbedScenes
        super().__init__(scenes=perturbed(scenes, perturbations), **{**parts, "compiles": False})
        self.perturbations = tuple(perturbations)
        self.unperturbed_scenes = scenes
        self.targets = np.zeros_like(self.viewpoints)

    @classmethod
    def instead_of(cls, episodes: EpisodeBatch, perturbations: Sequence[Perturbation]) -> "PerturbedEpisodes":
        """A new batch like `episodes`, with these perturbations after its own."""
        nested = isinstance(episodes, PerturbedEpisodes)
        return cls(
            perturbations=(*episodes.perturbations, *perturbations) if nested else perturbations,
            scenes=episodes.unperturbed_scenes if nested else episodes.scenes,
            num=episodes.num,
            backbone=episodes.backbone,
            task=episodes.task,
            layout=episodes.layout,
            budget=episodes.budget,
            potentials=episodes.measured,
        )

    def reset_rows(self, rows: Rows, scene: NDArray[np.int64], *, read: bool, **options: Any) -> None:
        hides_first = not self._shown(scene, np.zeros_like(scene)).all()  # else readings would be the last scene's
        super().reset_rows(rows, scene, read=read or hides_first, **options)
        self.targets[rows] = 0

    def step_rows(self, rows: Rows, viewpoints: NDArray[np.float32]) -> None:
        scene, t = self.scene[rows], self.glimpses[rows]
        self.targets[rows, t] = viewpoints
        viewpoints = self.perturbed_viewpoints(viewpoints, scene, t)
        shown = self._shown(scene, t)
        if shown.all():
            super().step_rows(rows, viewpoints)
            return
        if shown.any():
            super().step_rows(rows[shown], viewpoints[shown])
        self._see_nothing(rows[~shown], viewpoints[~shown])

    def perturbed_viewpoints(
        self, viewpoints: NDArray[np.float32], scene: NDArray[np.int64], t: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """[n, 3] where glimpse t [n] of scenes [n] is taken, given where it was meant to be taken."""
        for perturbation in self.perturbations:
            viewpoints = perturbation.perturb_viewpoints(viewpoints, scene, t)
        return viewpoints

    def taken_glimpses(self, rows: Rows, t: NDArray[np.int64]) -> Tensor:
        glimpses = super().taken_glimpses(rows, t)
        shown = torch.from_numpy(self._shown(self.scene[rows], t)).to(glimpses.device)
        return glimpses * shown.view(-1, 1, 1, 1)  # 0, ImageNet's mean colour, where nothing was shown

    def _shown(self, scene: NDArray[np.int64], t: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.all([perturbation.shows(scene, t) for perturbation in self.perturbations], axis=0)

    def _see_nothing(self, rows: Rows, viewpoints: NDArray[np.float32]) -> None:
        """Count a glimpse that shows the mean colour, and leave states, readings and what is known as they are."""
        if (last := self._kept.get("glimpse")) is not None:
            with torch.inference_mode():
                last[index_of(rows, last)] = to_uint8(torch.zeros(last.shape[1:], device=last.device))
        self.viewpoints[rows, self.glimpses[rows]] = viewpoints
        self.glimpses[rows] += 1
        curves = self.curves  # waits for the last reading
        for name, values in self.potentials.items():
            curves[name][rows, self.glimpses[rows]] = values[rows]

    def _glimpses(self, rows: Rows, where: Viewpoint) -> Tensor:
        glimpses = super()._glimpses(rows, where)
        for perturbation in self.perturbations:
            glimpses = perturbation.perturb_glimpses(glimpses)
        return glimpses


class Perturb(VectorWrapper):
    """A vector environment under perturbations: names (entries of PERTURBATIONS) or instances with your own strengths.

    The wrapper changes the environment itself: call reset() next. Infos, rewards and observations keep their meaning:
    `viewpoint` is where a glimpse was taken, a glimpse that showed nothing leaves every map as it was, and action masks
    follow the viewpoints that were chosen.

    >>> import gymnasium as gym
    >>> import canvit_gym
    >>> envs = gym.make_vec("CanViT/FashionSearch-v0", num_envs=2, num_scenes=16)
    >>> envs = Perturb(envs, "noisy", DroppedGlimpses(probability=1.0))
    >>> observation, info = envs.reset(seed=0)
    >>> after, reward, *_, info = envs.step(envs.action_space.sample())
    >>> reward.tolist(), bool((after["canvas"] == observation["canvas"]).all()), info["glimpses"].tolist()
    ([0.0, 0.0], True, [2, 2])
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], *perturbations: str | Perturbation) -> None:
        """
        Raises:
            TypeError: not a vector environment of this package, or something that is no perturbation.
            ValueError: no perturbation, or an unknown name.
            RuntimeError: the environment is closed.
        """
        inner = env.unwrapped if isinstance(env, VectorEnv) else env
        if not isinstance(inner, GlimpseVectorEnv):
            raise TypeError(
                f"Perturb is for canvit_gym's vector environments, not for a {type(inner).__name__}: make one with "
                'gymnasium.make_vec(id, num_envs=n, vectorization_mode="vector_entry_point")'
            )
        if not perturbations:
            raise ValueError(f"name at least one perturbation; there are: {', '.join(PERTURBATIONS)}")
        if inner.closed:
            raise RuntimeError("this environment is closed; make a new one")
        super().__init__(env)
        self.perturbations = checked_perturbations(perturbations)
        inner.replace_episodes(PerturbedEpisodes.instead_of(inner.episodes, self.perturbations))


def perturbations_table() -> str:
    """All perturbations in Markdown, for the documentation."""
    lines = ["| name | class | what it does |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | `{type(one).__name__}` | {one.effect} |" for name, one in PERTURBATIONS.items()]
    return "\n".join(lines)
