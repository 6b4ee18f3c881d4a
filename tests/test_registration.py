"""config_for: the configuration of an id, as gym.make makes it."""

import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import ALL_ENV_IDS, small

import canvit_gym
from canvit_gym.config import EnvConfig


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_it_is_the_configuration_of_the_environment(env_id: str) -> None:
    kwargs = small(env_id)
    with gym.make(env_id, **kwargs) as env:
        assert canvit_gym.config_for(env_id, **kwargs) == env.unwrapped.envs.config  # type: ignore[attr-defined]


def test_the_defaults_are_those_of_the_id() -> None:
    stop = canvit_gym.config_for("CanViT/FashionStop-v0", split="test")
    assert (stop.budget, stop.allow_stop, stop.split) == (9, True, "test")
    assert EnvConfig(dataset="fashion-stop").budget == 5
    assert canvit_gym.config_for("CanViT/FashionStop-v0", budget=3).budget == 3


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(ValueError, match="unknown environment 'CanViT/Nowhere-v0'; there are: CanViT/"):
        canvit_gym.config_for("CanViT/Nowhere-v0")
    with pytest.raises(TypeError, match=r"unknown environment keyword buget; there are: .*budget"):
        canvit_gym.config_for("CanViT/FashionStop-v0", buget=3)


def test_an_id_may_name_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("module_of_an_id.py").write_text("imported = True\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = canvit_gym.config_for("module_of_an_id:CanViT/FashionSearch-v0")
    assert config == canvit_gym.config_for("CanViT/FashionSearch-v0") and sys.modules["module_of_an_id"].imported
    with pytest.raises(ValueError, match="cannot import the module 'no_such_module'"):
        canvit_gym.config_for("no_such_module:CanViT/FashionSearch-v0")


@pytest.mark.parametrize("make", [gym.make, gym.make_vec, canvit_gym.config_for])
def test_the_dataset_of_another_id_is_an_error(make: Callable[..., object]) -> None:
    told = (
        "the dataset of CanViT/FashionSegmentation-v0 is 'fashion-segmentation', but dataset='fashion-stop' was passed"
    )
    with pytest.raises(ValueError, match=told):
        make("CanViT/FashionSegmentation-v0", num_scenes=4, dataset="fashion-stop")
    make("CanViT/FashionSegmentation-v0", num_scenes=4, dataset="fashion-segmentation")
