"""Data sets as specs: what follows from one, users' own ones, and what is refused."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ALL_ENV_IDS
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

import canvit_gym
import canvit_gym.env
from canvit_gym import config as config_module
from canvit_gym.config import EnvConfig, config_from_kwargs
from canvit_gym.registration import ENVIRONMENTS
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.vector_env import GlimpseVectorEnv


@dataclass(frozen=True)
class Stripes:
    """Scenes of one's own: stripes of two colours, which make two classes; 3 scenes."""

    name: str = "stripes"
    fingerprint: str = "stripes"
    classes: tuple[str, ...] = ("dark", "light")
    scene_size_px: int = 128

    def __len__(self) -> int:
        return 3

    def load(self, indices: NDArray[np.int64]) -> SceneBatch:
        rows = torch.arange(128).expand(len(indices), 128, 128) // (torch.from_numpy(indices).view(-1, 1, 1) + 8) % 2
        return SceneBatch(images=(rows * 200).byte().unsqueeze(1).repeat(1, 3, 1, 1), labels=rows.byte())


def stripes(request: canvit_gym.SceneRequest) -> Stripes:
    return Stripes()


SPEC = canvit_gym.DatasetSpec(
    name="stripes",
    env_id="Mine/Stripes-v3",
    task="segmentation",
    splits=("training", "test"),
    make_scenes=stripes,
    page=canvit_gym.DatasetPage(headline="Stripes.", scenes="Light and dark.", example={"num_scenes": 3}),
    env_defaults={"budget": 3},
)


@pytest.fixture
def registered() -> Iterator[str]:
    canvit_gym.register_dataset(SPEC)
    yield SPEC.env_id
    unregister()


def unregister() -> None:
    del DATASETS[SPEC.name], ENVIRONMENTS[SPEC.env_id], gym.registry[SPEC.env_id]
    canvit_gym.env._class_of.cache_clear()


def test_an_id_of_ones_own(registered: str, two_class_probe: str) -> None:
    with gym.make(registered, probe=two_class_probe, device="cpu") as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env.unwrapped, skip_render_check=True)
        assert "Light and dark." in (env.unwrapped.__doc__ or "")
        assert json.loads(env.spec.to_json())["kwargs"]["budget"] == 3 if env.spec else False
    envs = gym.make_vec(registered, num_envs=2, probe=two_class_probe, device="cpu")
    _, infos = envs.reset(seed=0)
    assert infos["scene"].shape == (2,)
    envs.close()


@pytest.fixture(scope="module")
def two_class_probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    from canvit_pytorch import SegmentationProbe

    directory = tmp_path_factory.mktemp("probe")
    SegmentationProbe(embed_dim=128, num_classes=2, dropout=0.1, use_ln=True).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "ade20k"}, "name 'ade20k' is empty or taken"),
        ({"name": ""}, "name '' is empty"),
        ({"env_id": "CanViT/ADE20K-v0"}, "'CanViT/ADE20K-v0' is taken by the data set 'ade20k'"),
        ({"env_id": "stripes"}, "'stripes' is not of the form 'namespace/Name-v0'"),
        ({"env_id": "CartPole-v1"}, "'CartPole-v1' is already registered with Gymnasium"),
        ({"task": "detection"}, "unknown task 'detection' of data set 'stripes'; choose one of segmentation, "),
        ({"splits": ("test",)}, "splits of data set 'stripes' must include 'training'"),
    ],
)
def test_specs_that_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canvit_gym.register_dataset(replace(SPEC, **change))
    assert "stripes" not in DATASETS


def test_scenes_of_the_wrong_shape_or_dtype_are_refused(registered: str, two_class_probe: str) -> None:
    @dataclass(frozen=True)
    class Floats(Stripes):
        def load(self, indices: NDArray[np.int64]) -> SceneBatch:
            batch = super().load(indices)
            return SceneBatch(images=batch.images.float(), labels=batch.labels)

    @dataclass(frozen=True)
    class ChannelsLast(Stripes):
        def load(self, indices: NDArray[np.int64]) -> SceneBatch:
            batch = super().load(indices)
            return SceneBatch(images=batch.images.permute(0, 2, 3, 1), labels=batch.labels)

    @dataclass(frozen=True)
    class Labelled(Stripes):
        labels: Any = None

        def load(self, indices: NDArray[np.int64]) -> SceneBatch:
            return SceneBatch(images=super().load(indices).images, labels=self.labels)

    for scenes, message in (
        (Labelled(labels=torch.tensor([0, 2])), r"labels .* must be classes in \[0, 1\], got \[0, 2\]"),
        (Labelled(labels=torch.tensor([-100, 1])), r"labels .* must be classes in \[0, 1\], got \[-100, 1\]"),
        (Labelled(labels=torch.tensor([0, 1], dtype=torch.int32)), r"must be int64 of shape \[2\].*got torch.int32"),
        (
            Labelled(labels=torch.zeros(2, 64, 64, dtype=torch.uint8)),
            r"128\] \(label maps\), got torch.uint8",
        ),
        (
            Labelled(labels=torch.arange(128, dtype=torch.uint8).expand(2, 128, 128).remainder(3)),
            r"label maps .* must hold classes in \[0, 1\], or 255 where there is none, got \[2\]",
        ),
        (Labelled(labels=np.zeros(2)), r"\(label maps\), got float64 of \[2\]"),
        (Labelled(labels=[0, 1]), r"\(label maps\), got \[0, 1\]"),
        (Floats(), r"images .* must be uint8 of shape \[2, 3, 128, 128\], got torch.float32"),
        (ChannelsLast(), r"images .* must be uint8 of shape \[2, 3, 128, 128\], got torch.uint8 of \[2, 128, 128, 3\]"),
    ):
        DATASETS["stripes"] = replace(SPEC, make_scenes=lambda request, scenes=scenes: scenes)
        envs = GlimpseVectorEnv(2, dataset="stripes", probe=two_class_probe, device="cpu")
        with pytest.raises(ValueError, match=message):
            envs.reset(seed=0)


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_every_id_has_its_class(env_id: str) -> None:
    spec = next(spec for spec in DATASETS.values() if spec.env_id == env_id)
    assert getattr(canvit_gym.env, spec.class_name).defaults == spec.kwargs == ENVIRONMENTS[env_id]


def test_no_class_without_a_data_set() -> None:
    with pytest.raises(AttributeError, match="no attribute 'CifarEnv'"):
        _ = canvit_gym.env.CifarEnv


def test_asking_too_early_for_a_class_is_no_answer_for_later() -> None:
    with pytest.raises(AttributeError, match="no attribute 'StripesEnv'"):
        _ = canvit_gym.env.StripesEnv
    canvit_gym.register_dataset(SPEC)
    try:
        assert canvit_gym.env.StripesEnv.defaults == SPEC.kwargs
    finally:
        unregister()


def test_numpy_numbers_are_plain_ones() -> None:
    given = EnvConfig(
        budget=np.int64(7),
        num_scenes=np.int32(9),
        glimpse_cost=np.float32(0.5),
        allow_stop=np.bool_(True),
        grid_scales=np.array([0.5, 0.25]),
    )
    assert json.loads(json.dumps(given.to_json()))["budget"] == 7
    assert given == EnvConfig(budget=7, num_scenes=9, glimpse_cost=0.5, allow_stop=True, grid_scales=(0.5, 0.25))


def test_retired_keywords_still_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.RETIRED_KEYWORDS, "old", (0, "it is gone"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert config_from_kwargs({"old": 0, "budget": 6}) == EnvConfig(budget=6)
    with pytest.warns(DeprecationWarning, match="old=3 has no effect any more: it is gone"):
        assert config_from_kwargs({"old": 3}) == EnvConfig()
