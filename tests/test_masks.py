"""Masks that do not mean what the list of classes says: told before anything is computed, with what to type."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import small
from datasets import SEGMENTATION_CLASSES, write_segmentation_folder
from gymnasium.envs.registration import EnvSpec
from PIL import Image

import canvit_gym  # noqa: F401  (registers the ids)
from canvit_gym.assembly import build_scenes
from canvit_gym.config import EnvConfig
from canvit_gym.scenes import mask_check
from canvit_gym.scenes.decoding import read_mask_values

COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_segmentation_folder(tmp_path / "land")


def scenes_of(root: Path, **kwargs: Any) -> Any:
    return build_scenes(EnvConfig(dataset="segmentation-folder", root=str(root), device="cpu", workers=0, **kwargs))


def recode(root: Path, change: Callable[[np.ndarray], np.ndarray], split: str = "*") -> None:
    """Write every mask of the splits anew; `change` maps class indices and 255 to what is saved."""
    for path in sorted((root / "masks").glob(f"{split}/*.png")):
        with Image.open(path) as file:
            labels = np.asarray(file).copy()
        Image.fromarray(change(labels)).save(path)


def suggested(told: str) -> dict[str, Any]:
    """The mask_values that a message says to type."""
    found = re.search(r"mask_values=(\{.*?\})", told)
    assert found, told
    return json.loads(found[1])


def labels_of(root: Path, **kwargs: Any) -> torch.Tensor:
    scenes = scenes_of(root, **kwargs)
    return scenes.load(np.arange(len(scenes))).labels


def two_classes(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == 1, 255, 0).astype(np.uint8)


def test_masks_of_0_and_255(root: Path) -> None:
    """255 is ignored: a probe would be fitted on no pixel of the second class."""
    (root / "classes.txt").write_text("background\nthing\n", encoding="utf-8")
    recode(root, lambda labels: (labels == 1).astype(np.uint8))
    expected = labels_of(root)
    recode(root, lambda labels: labels * 255)
    told = (
        r"no pixel of the class 'thing' was found: 5 of 5 masks .* They contain 0 \(in 5\), 255 \(in 5\)\. 255 marks "
        "ignored pixels"
    )
    with pytest.raises(ValueError, match=told) as caught:
        scenes_of(root)
    typed = suggested(str(caught.value))
    assert typed == {"0": "background", "255": "thing"}
    assert torch.equal(labels_of(root, mask_values=typed), expected)


def test_a_class_without_a_pixel_in_training(root: Path) -> None:
    (root / "classes.txt").write_text("\n".join([*SEGMENTATION_CLASSES, "ring"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no pixel of the class 'ring' was found: 5 of 5 masks.*Remove the class"):
        scenes_of(root)
    assert len(scenes_of(root, split="validation")) == 5  # a small validation split may lack a class
    (root / "classes.txt").write_text("\n".join(SEGMENTATION_CLASSES), encoding="utf-8")
    values = {"0": "ground", "1": "disc", "7": "square", "2": None, "255": None}
    with pytest.raises(ValueError, match="no pixel of the class 'square' was found"):
        scenes_of(root, mask_values=values)


def test_a_rare_class_is_searched_for_in_all_masks(tmp_path: Path) -> None:
    root = write_segmentation_folder(tmp_path / "land", splits=("train", "val"), per_split=60)
    rare = root / "masks/train/scene_59.png"
    (root / "classes.txt").write_text("\n".join([*SEGMENTATION_CLASSES, "rare"]), encoding="utf-8")
    with Image.open(rare) as file:
        labels = np.asarray(file).copy()
    labels[5, 5] = 3
    Image.fromarray(labels).save(rare)
    assert len(scenes_of(root)) == 60


@pytest.mark.parametrize("offset", ["from 1", "background"])
def test_classes_counted_from_1(root: Path, offset: str) -> None:
    expected = labels_of(root)
    recode(root, lambda labels: np.where(labels == 255, 255, labels + 1).astype(np.uint8))
    if offset == "background":
        (root / "masks/train/scene_0.png").unlink()
        with Image.open(root / "images/train/scene_0.jpg") as image:
            Image.new("L", image.size).save(root / "masks/train/scene_0.png")
    told = {"from 1": "seem to number the classes from 1", "background": "add the background to the list"}[offset]
    with pytest.raises(ValueError, match=told) as caught:
        scenes_of(root)
    typed = suggested(str(caught.value))
    if offset == "from 1":
        assert typed == {"1": "ground", "2": "disc", "3": "square"}
        assert torch.equal(labels_of(root, mask_values={**typed, "255": None}), expected)
    else:
        assert typed == {"0": None, "1": "ground", "2": "disc", "3": "square"}


def test_other_values(root: Path) -> None:
    expected = labels_of(root)
    recode(root, lambda labels: np.where(labels == 255, 9, labels * 100).astype(np.uint8))
    told = r"They contain 0 \(in 5\), 9 \(in 5\), 100 .*200 .*but there are 3 classes: 0 'ground', 1 'disc', 2 'square'"
    with pytest.raises(ValueError, match=told) as caught:
        scenes_of(root)
    assert suggested(str(caught.value)) == dict.fromkeys(["0", "9", "100", "200"], "CLASS")
    typed = {"0": "ground", "9": None, "100": "disc", "200": "square"}
    assert torch.equal(labels_of(root, mask_values=typed), expected)
    with pytest.raises(ValueError, match="mask_values names the value of '0100' twice"):
        scenes_of(root, mask_values={**typed, "0100": "ground"})
    with pytest.raises(ValueError, match="9 is not in mask_values"):
        scenes_of(root, mask_values={"0": "ground", "100": "disc", "200": "square"})


def test_values_of_16_bits(root: Path) -> None:
    expected = labels_of(root)
    recode(root, lambda labels: np.where(labels == 255, 65535, labels.astype(np.uint16) * 1000).astype(np.uint16))
    with pytest.raises(ValueError, match=r"1000 \(in"):
        scenes_of(root)
    typed = {"0": "ground", "1000": "disc", "2000": "square", "65535": None}
    assert torch.equal(labels_of(root, mask_values=typed), expected)


def test_masks_scaled_with_interpolation(root: Path) -> None:
    recode(root, lambda labels: np.tile(np.arange(labels.shape[1], dtype=np.uint8), (labels.shape[0], 1)))
    with pytest.raises(ValueError, match="values for 3 classes were probably scaled with"):
        scenes_of(root)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours(root: Path, mode: str) -> None:
    recode(root, lambda labels: np.where(labels == 255, 0, labels).astype(np.uint8))
    expected = labels_of(root)
    for path in sorted(root.glob("masks/*/*.png")):
        with Image.open(path) as file:
            coloured = Image.fromarray(COLOURS[np.asarray(file)])
        (coloured.quantize(3) if mode == "P" else coloured.convert(mode)).save(path)
    typed: dict[str, Any] = {"#000000": "ground", "#ff0000": "disc", "#0080ff": "square"}
    if mode != "P":
        told = rf"masks contain colours, not class indices: 5 of 5 masks .* 5 of mode {mode}\."
        with pytest.raises(ValueError, match=told) as caught:
            scenes_of(root)
        assert suggested(str(caught.value)).keys() == typed.keys()
    assert torch.equal(labels_of(root, mask_values=typed), expected)
    with pytest.raises(ValueError, match="#0080ff is not in mask_values"):
        scenes_of(root, mask_values={"#000000": "ground", "#ff0000": "disc", "#000001": "square"})


def test_grey_values_saved_as_colours(root: Path) -> None:
    recode(root, lambda labels: np.stack([labels] * 3, axis=-1))
    with pytest.raises(ValueError, match="Red, green and blue are equal everywhere, so they can be saved as grey PNGs"):
        scenes_of(root)


def test_a_mask_that_the_look_at_the_start_did_not_see(root: Path) -> None:
    scenes = scenes_of(root, mask_values={"0": "ground", "1": "disc", "2": "square", "255": None})
    with Image.open(root / "masks/train/scene_3.png") as file:
        labels = np.asarray(file).copy()
    labels[3, 3] = 17
    Image.fromarray(labels).save(root / "masks/train/scene_3.png")
    with pytest.raises(ValueError, match=r"scene_3\.png has 17, which is not in mask_values; it has 0, 1, 2"):
        scenes.load(np.array([3]))


def test_masks_of_another_size_are_told_at_the_start(root: Path) -> None:
    with Image.open(root / "masks/train/scene_1.png") as file:
        file.resize((7, 9)).save(root / "masks/train/scene_1.png")
    with pytest.raises(ValueError, match=r"scene_1\.jpg is .* px, but its mask .*scene_1\.png is 7 x 9 px"):
        scenes_of(root)


def test_the_keyword_is_json(root: Path) -> None:
    values: Any = {0: "ground", 1: "disc", 2: "square", 255: None}
    env = gym.make("CanViT/SegmentationFolder-v0", **{**small("CanViT/SegmentationFolder-v0"), "mask_values": values})
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    config = again.unwrapped.envs.config  # pyright: ignore[reportAttributeAccessIssue]
    assert config.mask_values == {"0": "ground", "1": "disc", "2": "square", "255": None}
    assert EnvConfig(**json.loads(json.dumps(config.to_json()))) == config
    env.close()
    again.close()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0, 255], "mask_values must map mask values to class names"),
        ({}, "mask_values must map mask values to class names"),
        ({"0": 1}, "mask_values must map mask values to class names"),
        ({"a": "ground"}, "has the key 'a', but keys are all values or all colours"),
        ({"0": "ground", "#ff0000": "disc"}, "has the key '#ff0000', but keys are all"),
        ({"#ff0": "ground"}, "has the key '#ff0', but keys are all"),
        ({"-1": "ground"}, "has the key '-1', but keys are all"),
        ({"0": "ground", "1": "sea"}, "names 'sea', but the classes are ground, disc, square"),
        ({"0": "ground", "1": None}, "has no value for disc, square: add one for every class"),
    ],
)
def test_bad_mappings(root: Path, values: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        scenes_of(root, mask_values=values)


def test_it_is_for_masks_of_ones_own() -> None:
    with pytest.raises(ValueError, match=r"mask_values is for your own masks .* not for fashion-segmentation"):
        EnvConfig(mask_values={"0": "sky"})


def test_several_values_may_be_one_class() -> None:
    values = read_mask_values({"0": "a", "1": "b", "2": "b", "3": None}, ("a", "b"))
    pixels = np.array([[0, 1], [2, 3]])
    assert values.classes_of(pixels, path=Path("m.png")).tolist() == [[0, 1], [1, 255]]


def test_the_look_takes_little_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many masks there are, and once per process."""
    root = write_segmentation_folder(tmp_path / "land", splits=("train", "val"), per_split=2)
    with Image.open(root / "masks/train/scene_0.png") as mask, Image.open(root / "images/train/scene_0.jpg") as image:
        mask.resize((1500, 1500), Image.Resampling.NEAREST).save(root / "masks/train/scene_0.png")
        image.resize((1500, 1500)).save(root / "images/train/scene_0.jpg")
    for k in range(2, 400):
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            (root / folder / "train" / f"scene_{k}.{suffix}").symlink_to(root / folder / "train" / f"scene_0.{suffix}")
    (root / "classes.txt").write_text("\n".join([*SEGMENTATION_CLASSES, "rare"]), encoding="utf-8")
    start = time.perf_counter()
    with pytest.warns(RuntimeWarning, match=r"'rare' was found in none of the checked masks \(\d+ of 400"):
        scenes_of(root)  # the class is searched for until time is up
    assert time.perf_counter() - start < mask_check.PATIENCE_S + 1.5
    monkeypatch.setattr(mask_check, "_look", None)
    scenes_of(root)
