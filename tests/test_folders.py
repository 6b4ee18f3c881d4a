"""Data sets on disk: pixels and labels equal canvit-pytorch's own, splits are disjoint, bad layouts are explained."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from canvit_pytorch.benchmarks import ade20k, imagenet
from canvit_pytorch.preprocess import imagenet_normalize, preprocess
from conftest import ALL_ENV_IDS, small
from datasets import (
    FOLDER_CLASSES,
    SEGMENTATION_CLASSES,
    WNIDS,
    scene,
    tiny,
    write_ade20k,
    write_image_folder,
    write_segmentation_folder,
)
from PIL import Image
from torchvision.datasets import ImageFolder

import canvit_gym
from canvit_gym.assembly import build_scenes
from canvit_gym.config import EnvConfig
from canvit_gym.scenes import on_disk
from canvit_gym.scenes.decoding import CroppedImage, SqueezedADE20K, SqueezedMask
from canvit_gym.scenes.files import FileScenes, spread
from canvit_gym.scenes.folders import hash_split, image_folder_files
from canvit_gym.vector_env import GlimpseVectorEnv

SIZE_PX = 128  # nano's


def scenes_of(dataset: Any, root: Path, **kwargs: Any) -> FileScenes:
    source = build_scenes(EnvConfig(dataset=dataset, root=str(root), device="cpu", **{"workers": 0, **kwargs}))
    assert isinstance(source, FileScenes)
    return source


def normalized(images: torch.Tensor) -> torch.Tensor:
    return imagenet_normalize(images.float() / 255)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_ade20k_is_canvit_pytorchs_to_the_bit(split: Any) -> None:
    root = tiny("ade20k")
    ours = scenes_of("ade20k", root, split=split)
    theirs = ade20k.ADE20kDataset(root=root, split=split, transform=ade20k.evaluation_transform(SIZE_PX))
    assert len(ours) == len(theirs) and ours.classes == ade20k.CLASS_NAMES
    batch = ours.load(np.arange(len(ours)))
    for k, (image, labels) in enumerate(theirs):
        assert torch.equal(normalized(batch.images[k]), image)
        assert torch.equal(batch.labels[k].long(), labels)
    assert {255, 0, 149} <= set(batch.labels.unique().tolist())


def test_imagenet_is_canvit_pytorchs_to_the_bit() -> None:
    root = tiny("imagenet1k")
    ours = scenes_of("imagenet1k", root, split="validation")
    theirs = imagenet.validation_set(root / "val", size_px=SIZE_PX)
    assert len(ours) == len(theirs) == 1000 and ours.classes == imagenet.CLASS_NAMES
    chosen = np.array([0, 1, 5, 500, 999])
    batch = ours.load(chosen)
    for k, index in enumerate(chosen):
        image, label = theirs[index]
        assert torch.equal(normalized(batch.images[k]), image)
        assert batch.labels[k] == label and ours.files.images[index].parent.name == WNIDS[label]


def test_an_image_folder_is_torchvisions() -> None:
    root = tiny("image-folder")
    for split, folder in (("training", "train"), ("validation", "val"), ("test", "test")):
        ours = scenes_of("image-folder", root, split=split)
        theirs = ImageFolder(str(root / folder), transform=preprocess(SIZE_PX))
        assert ours.classes == tuple(theirs.classes) == FOLDER_CLASSES
        batch = ours.load(np.arange(len(ours)))
        assert batch.labels.tolist() == theirs.targets
        for k, (image, _) in enumerate(theirs):
            assert torch.equal(normalized(batch.images[k]), image)


def test_a_segmentation_folder_follows_the_geometry_of_ade20k() -> None:
    root = tiny("segmentation-folder")
    ours = scenes_of("segmentation-folder", root, split="validation")
    assert ours.classes == SEGMENTATION_CLASSES
    transform = ade20k.evaluation_transform(SIZE_PX)
    batch = ours.load(np.arange(len(ours)))
    for k, path in enumerate(ours.files.images):
        mask = np.asarray(Image.open(root / "masks/val" / f"{path.stem}.png"))
        shifted = Image.fromarray(np.where(mask == 255, 0, mask + 1).astype(np.uint8))  # ADE20K's way to write it
        image, labels = transform(Image.open(path).convert("RGB"), shifted)
        assert torch.equal(normalized(batch.images[k]), image) and torch.equal(batch.labels[k].long(), labels)
    assert set(batch.labels.unique().tolist()) == {0, 1, 2, 255}


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture = scene(0)[0].convert(mode)
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    picture.save(path)
    pixels, _ = CroppedImage(SIZE_PX).decode(path)
    with Image.open(path) as file:
        expected = preprocess(SIZE_PX)(file.convert("RGB"))
    assert pixels.dtype == torch.uint8 and torch.equal(normalized(pixels), expected)


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32), ("tif", "f4")]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_would_become_white_is_refused(tmp_path: Path, suffix: str, dtype: Any, workers: int) -> None:
    root = write_image_folder(tmp_path / "wide", splits=("train", "val"), per_class=1)
    path = root / "train" / "disc" / f"disc 0.{suffix}"
    (root / "train" / "disc" / "disc 0.jpg").unlink()
    Image.fromarray((np.asarray(scene(0)[0].convert("L")) * 256.0).astype(dtype)).save(path)
    source = scenes_of("image-folder", root, workers=workers)
    source.prefetch(np.arange(3))
    told = (
        r"cannot read .*disc 0.*mode [IF].* would all become white: save it as 8-bit. Convert or remove it, or pass un"
    )
    with pytest.raises(OSError, match=told):
        source.load(np.arange(3))
    source.close()
    source = scenes_of("image-folder", root, workers=0, unreadable="skip")
    with pytest.warns(RuntimeWarning, match="scene 0 is left out: .* mode"):
        assert source.readable(np.arange(3)).tolist() == [False, True, True]


def test_an_image_of_too_many_pixels_is_to_be_scaled_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_image_folder(tmp_path / "large", splits=("train", "val"), per_class=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match=r"cannot read .*exceeds limit of .*: scale it down\. Convert or remove it"):
        scenes_of("image-folder", root).load(np.array([0]))


def test_an_exif_orientation_is_not_applied_in_classification(tmp_path: Path) -> None:
    """As canvit-pytorch and torchvision read it."""
    picture = scene(3)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "plain.jpg")
    decoder = CroppedImage(32)
    assert torch.equal(decoder.decode(tmp_path / "turned.jpg")[0], decoder.decode(tmp_path / "plain.jpg")[0])


class TestOrientation:
    """Image and mask show the same pixels, or the scene is refused."""

    STORED = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    """EXIF orientation -> how a camera stores a picture that it tells to show so."""

    @classmethod
    def save(cls, picture: Image.Image, path: Path, orientation: int) -> None:
        exif, turn = Image.Exif(), cls.STORED[orientation]
        exif[0x0112] = orientation
        (picture if turn is None else picture.transpose(turn)).save(path, exif=exif, quality=95)

    @staticmethod
    def agreement(pixels: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of pixels whose colour and class say the same."""
        return float(((pixels[2].float() > pixels[0].float()) == (labels == 1)).float().mean())

    @staticmethod
    def pair(size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
        picture = Image.new("RGB", size, (255, 0, 0))
        picture.paste((0, 0, 255), (0, 0, size[0] // 2, size[1] // 4))
        return picture, Image.fromarray((np.asarray(picture)[..., 2] > 128).astype(np.uint8))

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("size", [(40, 30), (32, 32)])
    @pytest.mark.parametrize("turned", ["image", "mask", "both"])
    def test_in_a_segmentation_folder(
        self, tmp_path: Path, orientation: int, size: tuple[int, int], turned: str
    ) -> None:
        picture, mask = self.pair(size)
        self.save(picture, tmp_path / "a.jpg", 1 if turned == "mask" else orientation)
        self.save(mask, tmp_path / "a.png", 1 if turned == "image" else orientation)
        decoder = SqueezedMask(64, 2)
        told = orientation != 1 and turned != "both" and (orientation < 5 or size[0] == size[1])
        if told:
            with pytest.raises(ValueError, match=rf"\(EXIF orientation {orientation}\).*it is unknown.*auto-orient"):
                decoder.decode(tmp_path / "a.jpg", tmp_path / "a.png")
        else:
            pixels, labels = decoder.decode(tmp_path / "a.jpg", tmp_path / "a.png")
            assert self.agreement(pixels, labels) > 0.95

    def test_a_mask_of_the_stored_pixels(self, tmp_path: Path) -> None:
        picture, mask = self.pair((40, 30))
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(tmp_path / "a.jpg", exif=exif)
        mask.save(tmp_path / "a.png")
        assert self.agreement(*SqueezedMask(64, 2).decode(tmp_path / "a.jpg", tmp_path / "a.png")) > 0.95

    @pytest.mark.parametrize("orientation", [1, 6])
    def test_in_the_layout_of_ade20k(self, tmp_path: Path, orientation: int) -> None:
        picture, mask = self.pair((40, 30))
        annotation = mask.point(lambda value: value + 1)
        self.save(picture, tmp_path / "a.jpg", orientation)
        annotation.save(tmp_path / "a.png")
        decoder = SqueezedADE20K(64)
        assert self.agreement(*decoder.decode(tmp_path / "a.jpg", tmp_path / "a.png")) > 0.95
        annotation.resize((17, 90)).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=r"a\.jpg is \d\d x \d\d px, but its mask .*a\.png is 17 x 90 px"):
            decoder.decode(tmp_path / "a.jpg", tmp_path / "a.png")

    @pytest.mark.parametrize("orientation", [2, 3, 4])
    def test_in_the_layout_of_ade20k_where_both_fit(self, tmp_path: Path, orientation: int) -> None:
        picture, mask = self.pair((40, 30))
        self.save(picture, tmp_path / "a.jpg", orientation)
        mask.point(lambda value: value + 1).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=rf"\(EXIF orientation {orientation}\).*it is unknown.*auto-orient"):
            SqueezedADE20K(64).decode(tmp_path / "a.jpg", tmp_path / "a.png")

    def test_a_damaged_exif_block_is_none(self, tmp_path: Path) -> None:
        picture, mask = self.pair((40, 30))
        picture.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\xff", quality=95)
        mask.save(tmp_path / "a.png")
        with pytest.warns(UserWarning, match="Corrupt EXIF data"):
            decoded = SqueezedMask(64, 2).decode(tmp_path / "a.jpg", tmp_path / "a.png")
        assert self.agreement(*decoded) > 0.95


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.tif", "photo.gif"])
def test_only_safe_decoders_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pillow would hand PostScript to Ghostscript, whatever the file is called."""
    called = tmp_path / "called"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {called}\necho 10.0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / name
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(OSError, match=rf"cannot read .*{name}: UnidentifiedImageError"):
        CroppedImage(32).decode(path)
    with pytest.raises(OSError, match=rf"cannot read .*{name}: UnidentifiedImageError"):
        SqueezedMask(32, 2).decode(path, path)
    assert not called.exists()


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    picture = scene(4)[0]
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "b.jpg")
    picture.save(tmp_path / "c.png")
    decoder = CroppedImage(32)
    assert torch.equal(decoder.decode(tmp_path / "b.jpg")[0], decoder.decode(tmp_path / "c.png")[0])


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_masks_of_any_integer_mode(tmp_path: Path, mode: str) -> None:
    image, labels = scene(1, num_classes=2)
    image.save(tmp_path / "a.jpg")
    match mode:
        case "1":
            mask = Image.fromarray(labels.astype(bool))
        case "P":
            mask = Image.fromarray(labels)
            mask.putpalette([200, 0, 0, 0, 200, 0])
        case "L":
            mask = Image.fromarray(labels)
        case _:
            mask = Image.fromarray(labels.astype(np.uint16))
    mask.save(tmp_path / "a.png")
    decoded = SqueezedMask(16, 2).decode(tmp_path / "a.jpg", tmp_path / "a.png")[1]
    expected = Image.fromarray(labels).resize((16, 16), Image.Resampling.NEAREST)
    assert np.array_equal(decoded.numpy(), np.asarray(expected))


class TestSplits:
    def test_a_hash_splits_by_the_relative_path(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "pets", splits=(), per_class=30)
        parts = {split: scenes_of("image-folder", root, split=split) for split in ("training", "validation", "test")}
        names = {
            split: {path.relative_to(root).as_posix() for path in part.files.images} for split, part in parts.items()
        }
        assert sum(len(part) for part in names.values()) == len(set().union(*names.values())) == 90
        assert all(hash_split(name) == split for split, part in names.items() for name in part)
        assert len(names["training"]) > 50 and all(part.classes == FOLDER_CLASSES for part in parts.values())
        moved = tmp_path / "elsewhere"
        shutil.move(root, moved)
        (moved / "disc" / "another.png").write_bytes((moved / "disc" / "disc 1.png").read_bytes())
        again = {path.relative_to(moved).as_posix() for path in scenes_of("image-folder", moved).files.images}
        assert again - {"disc/another.png"} == names["training"]

    def test_shares_of_the_hash(self) -> None:
        counts = Counter(hash_split(f"class/{k}.jpg") for k in range(5000))
        assert abs(counts["training"] / 5000 - 0.8) < 0.02 and abs(counts["test"] / 5000 - 0.1) < 0.02

    def test_a_segmentation_folder_without_splits(self, tmp_path: Path) -> None:
        root = write_segmentation_folder(tmp_path / "s", splits=(), per_split=40)
        counts = [
            len(scenes_of("segmentation-folder", root, split=split)) for split in ("training", "validation", "test")
        ]
        assert sum(counts) == 40 and counts[0] > 20

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "v", splits=(), per_class=10)
        (root / "disc").rename(root / "train")
        assert scenes_of("image-folder", root).classes == ("ring", "square", "train")

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (("Train", "Val"), "Train/, Val/ in .* look like"),
            (("train", "dev"), "dev/, train/ in"),
            (("train", "eval"), "eval/, train/ in"),
            (("val", "test"), "test/, val/ in"),
            (("train", "training"), "train/, training/ in"),
            (("train",), "train/ in .* looks like"),
        ],
    )
    def test_what_looks_like_a_split_is_neither_class_nor_hashed(
        self, tmp_path: Path, names: tuple[str, ...], told: str
    ) -> None:
        told += ".* a split, but splits are named train/, val/ and test/, in lower case"
        for split in ("training", "validation"):
            with pytest.raises(ValueError, match=told):
                scenes_of("image-folder", self._written(write_image_folder, tmp_path / "images", names), split=split)
            with pytest.raises(ValueError, match=told):
                root = self._written(write_segmentation_folder, tmp_path / "land", names)
                scenes_of("segmentation-folder", root, split=split)

    @staticmethod
    def _written(write: Callable[..., Path], root: Path, names: tuple[str, ...]) -> Path:
        return root if root.exists() else write(root, splits=names)

    @pytest.mark.parametrize("dataset", ["ade20k", "image-folder", "segmentation-folder"])
    def test_tuning_scenes_are_held_out_of_training(self, dataset: Any) -> None:
        root = tiny(dataset)
        everything = scenes_of(dataset, root).files.images
        left = scenes_of(dataset, root, tuning_scenes=3)
        held_out = scenes_of(dataset, root, split="tuning", tuning_scenes=3)
        assert len(held_out) == 3 and not set(held_out.files.images) & set(left.files.images)
        assert sorted([*held_out.files.images, *left.files.images]) == sorted(everything)
        # The truth goes along.
        where = [list(everything).index(path) for path in left.files.images]
        whole = scenes_of(dataset, root).load(np.array(where))
        assert torch.equal(left.load(np.arange(len(left))).labels, whole.labels)
        assert len(scenes_of(dataset, root, split="validation", tuning_scenes=3)) == len(
            scenes_of(dataset, root, split="validation")
        )

    def test_few_scenes_are_spread_over_the_classes(self) -> None:
        few = scenes_of("image-folder", tiny("image-folder"), num_scenes=3)
        assert few.load(np.arange(3)).labels.tolist() == [0, 1, 2] and "3 of 12" in few.name
        assert len(scenes_of("image-folder", tiny("image-folder"), num_scenes=13)) == 12

    def test_spread(self) -> None:
        for total in range(1, 30):
            for count in range(1, total + 1):
                chosen = spread(count, total)
                assert len(set(chosen.tolist())) == count and chosen.min() >= 0 and chosen.max() < total
            assert spread(total + 2, total).tolist() == list(range(total))
        assert spread(5, 100).tolist() == [10, 30, 50, 70, 90] and spread(5, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("spelling", ["absolute", "relative", "."])
def test_paths_below_a_root_are_os_paths_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    """A cache's key and stamps are made of them: caches that there are stay valid."""
    root = write_image_folder(tmp_path / "pets", splits=())
    monkeypatch.chdir(root if spelling == "." else tmp_path)
    given = {"absolute": root, "relative": Path("pets"), ".": Path(".")}[spelling]
    files = image_folder_files(given, "training")
    assert list(files.relative(files.images)) == [os.path.relpath(image, given) for image in files.images]
    assert files.content_sha256 == image_folder_files(root, "training").content_sha256


def test_ignored_pixels_count_for_nothing() -> None:
    """A scene whose mask is 255 everywhere but in one corner is scored on that corner."""
    env_id = "CanViT/SegmentationFolder-v0"
    kwargs = {**small(env_id), "num_scenes": 2, "track_score": True}
    envs = GlimpseVectorEnv(2, **canvit_gym.ENVIRONMENTS[env_id], **kwargs)
    scenes = envs.scenes.load(np.arange(2))
    scenes.labels[:, :64] = 255
    truth = envs.task.truth(scenes)
    loss, score = (envs.task.potentials[name].measure for name in ("loss", "score"))
    envs.reset(seed=0)
    logits = envs.episodes.logits
    assert logits is not None
    expected = score(logits, truth)
    spoilt = logits.clone()
    spoilt[:, :, :7] = torch.randn_like(spoilt[:, :, :7])  # cells above the middle, but for the row next to it
    assert torch.allclose(score(spoilt, truth), expected)
    assert torch.allclose(loss(spoilt, truth), loss(logits, truth))
    envs.close()


@pytest.mark.parametrize("env_id", [env_id for env_id in ALL_ENV_IDS if "Fashion" not in env_id])
def test_roots_come_from_the_environment(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs = {**canvit_gym.ENVIRONMENTS[env_id], **small(env_id)}
    root = kwargs.pop("root")
    variable = {"ade20k": "ADE20K_ROOT", "imagenet1k": "IMAGENET_ROOT"}.get(kwargs["dataset"])
    for name in ("ADE20K_ROOT", "IMAGENET_ROOT"):
        monkeypatch.delenv(name, raising=False)
    hint = rf"pass root=directory or set \${variable}\. Expected: " if variable else r"pass root=directory\. Expected: "
    with pytest.raises(ValueError, match=hint):
        GlimpseVectorEnv(2, **kwargs)
    if variable:
        monkeypatch.setenv(variable, root)
        GlimpseVectorEnv(2, **kwargs).close()
        monkeypatch.setenv(variable, "/no/such")
        with pytest.raises(FileNotFoundError, match=rf"\${variable}='/no/such' is not a directory"):
            GlimpseVectorEnv(2, **kwargs)


class TestBadLayouts:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_image_folder(tmp_path / "pets")

    @pytest.fixture
    def segmentation(self, tmp_path: Path) -> Path:
        return write_segmentation_folder(tmp_path / "land")

    def test_no_such_directory(self) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"root='/no/such' is not a directory\. Expected: a folder of images"
        ):
            scenes_of("image-folder", Path("/no/such"))

    def test_an_empty_directory(self, tmp_path: Path) -> None:
        for dataset, told in (
            ("ade20k", r"images/training is not a directory\. Expected below .*: images/training, images/valid"),
            ("imagenet1k", r"train is not a directory\. Expected below .*: train/ and val/"),
            ("image-folder", "has no folder, but at least two classes are needed: a folder of images per class"),
            ("segmentation-folder", r"neither .*classes.txt nor .*classes.json exists"),
        ):
            with pytest.raises((ValueError, FileNotFoundError), match=told):
                scenes_of(dataset, tmp_path)

    def test_ade20k_without_an_annotation(self, tmp_path: Path) -> None:
        root = write_ade20k(tmp_path / "ade")
        (root / "annotations/training/ADE_train_00000003.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 label maps missing, e\.g\. .*00000003\.png\. Expected below"):
            scenes_of("ade20k", root)

    def test_an_annotation_of_the_full_release(self, tmp_path: Path) -> None:
        root = write_ade20k(tmp_path / "ade")
        path = root / "annotations/training/ADE_train_00000001.png"
        Image.open(path).convert("RGB").save(path)
        with pytest.raises(ValueError, match=r"00000001\.png has mode RGB, but those of ADEChallengeData2016"):
            scenes_of("ade20k", root).load(np.array([0]))
        Image.fromarray(np.full((8, 8), 151, dtype=np.uint8)).save(path)
        with pytest.raises(ValueError, match=r"00000001\.png holds the value 151"):
            scenes_of("ade20k", root).load(np.array([0]))

    def test_imagenet_of_other_classes(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"has 3 class folders, but ImageNet-1k has 1000.*use CanViT/ImageFolder"):
            scenes_of("imagenet1k", folder)

    def test_a_class_without_images(self, folder: Path) -> None:
        shutil.rmtree(folder / "train" / "ring")
        (folder / "train" / "ring").mkdir()
        with pytest.raises(
            FileNotFoundError, match=r"for the classes ring\..*remove the folders of classes without images"
        ):
            scenes_of("image-folder", folder)
        assert len(scenes_of("image-folder", folder, split="validation")) == 12

    def test_a_class_that_training_lacks(self, folder: Path) -> None:
        (folder / "val" / "ring").rename(folder / "val" / "rings")
        with pytest.raises(ValueError, match=r"val has the class rings, which .*train does not have"):
            scenes_of("image-folder", folder, split="validation")

    def test_a_split_that_is_not_there(self, folder: Path) -> None:
        shutil.rmtree(folder / "test")
        told = r"has no test/ for split='test'; there are: 'training' \(train/\), 'validation' \(val/\)\."
        with pytest.raises(ValueError, match=told):
            scenes_of("image-folder", folder, split="test")

    def test_one_class(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="has only the folder 'disc', but at least two classes"):
            for name in ("ring", "square"):
                shutil.rmtree(folder / "train" / name)
            scenes_of("image-folder", folder)

    def test_a_split_may_have_images_of_one_class(self, folder: Path) -> None:
        for name in ("ring", "square"):
            shutil.rmtree(folder / "test" / name)
        scenes = scenes_of("image-folder", folder, split="test")
        assert scenes.classes == scenes_of("image-folder", folder).classes
        assert set(scenes.load(np.arange(len(scenes))).labels.tolist()) == {scenes.classes.index("disc")}

    def test_a_hash_split_without_images(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "few", splits=(), per_class=1)
        empty = next(split for split in ("validation", "test", "training") if self._none(root, split))
        with pytest.raises(ValueError, match=rf"none of the 3 images below .*few is in the {empty} split"):
            scenes_of("image-folder", root, split=empty)

    @staticmethod
    def _none(root: Path, split: str) -> bool:
        return all(hash_split(path.relative_to(root).as_posix()) != split for path in root.glob("*/*"))

    def test_an_image_without_a_mask(self, segmentation: Path) -> None:
        (segmentation / "masks/train/scene_2.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 5 images have no mask, the first one .*train/scene_2\.png"):
            scenes_of("segmentation-folder", segmentation)

    def test_two_images_with_one_mask(self, segmentation: Path) -> None:
        shutil.copy(segmentation / "images/train/scene_2.jpg", segmentation / "images/train/scene_2.png")
        with pytest.raises(ValueError, match=r"share the mask .*scene_2\.png: give each image a different name"):
            scenes_of("segmentation-folder", segmentation)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{", r"classes\.json is not JSON"),
            ('{"sky": 0}', r'must contain a list of class names, such as \["sky"'),
            ('["sky"]', "names 1 classes; there must be 2 to 255"),
            ('["sky", "sea", "sky"]', "names a class twice: sky"),
        ],
    )
    def test_classes(self, segmentation: Path, text: str, told: str) -> None:
        (segmentation / "classes.txt").unlink()
        (segmentation / "classes.json").write_text(text)
        with pytest.raises(ValueError, match=told):
            scenes_of("segmentation-folder", segmentation)
        (segmentation / "classes.json").write_text(json.dumps(SEGMENTATION_CLASSES))
        assert scenes_of("segmentation-folder", segmentation).classes == SEGMENTATION_CLASSES

    @pytest.mark.parametrize("name", ["classes.txt", "classes.json"])
    def test_classes_of_another_encoding(self, segmentation: Path, name: str) -> None:
        (segmentation / "classes.txt").unlink()
        (segmentation / name).write_bytes('["Wüste", "Meer"]'.encode("latin-1"))
        with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text .*: save it as UTF-8"):
            scenes_of("segmentation-folder", segmentation)

    def test_classes_with_a_byte_order_mark(self, segmentation: Path) -> None:
        text = (segmentation / "classes.txt").read_text()
        (segmentation / "classes.txt").write_text(text, encoding="utf-8-sig")
        assert scenes_of("segmentation-folder", segmentation).classes == SEGMENTATION_CLASSES

    def test_splits_above_images(self, segmentation: Path) -> None:
        for kind in ("images", "masks"):
            (segmentation / kind).rename(segmentation / f"moved-{kind}")
            for split in ("train", "val"):
                (segmentation / split).mkdir(exist_ok=True)
                (segmentation / f"moved-{kind}" / split).rename(segmentation / split / kind)
        told = (
            r"has train/images/, but splits are folders of images/ and masks/: move train/images/ to images/train/, tr"
        )
        with pytest.raises(FileNotFoundError, match=told):
            scenes_of("segmentation-folder", segmentation)

    def test_two_folders_for_one_split(self, folder: Path) -> None:
        (folder / "valid").mkdir()
        with pytest.raises(ValueError, match="has both val/ and valid/ for split='validation': keep one of them"):
            scenes_of("image-folder", folder)

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            ("size", r"is \d+ x \d+ px, but its mask .*scene_0\.png is 5 x 4 px\. Give each"),
            (
                "value",
                r"scene_0\.png has the value 7, but there are 3 classes: values must be 0 to 2, or 255.*classes",
            ),
            ("16 bits", r"scene_0\.png has the value 3000"),
            ("colours", r"scene_0\.png has mode RGB, but masks have a class index per pixel.*mask_values="),
        ],
    )
    @pytest.mark.parametrize("unreadable", ["raise", "skip"])
    def test_masks(
        self, segmentation: Path, fault: str, told: str, unreadable: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Wrong masks are mistakes in the data set, not damaged files: they are never skipped.

        Here those that the look at the start does not see; see test_masks.py for what it tells.
        """
        monkeypatch.setattr(on_disk, "check_masks", lambda files, values, *, is_training: None)
        path = segmentation / "masks/train/scene_0.png"
        with Image.open(path) as file:
            values = np.asarray(file).astype(np.uint16)
        match fault:
            case "size":
                values = np.zeros((4, 5), dtype=np.uint8)
            case "value":
                values[0, 0] = 7
                values = values.astype(np.uint8)
            case "16 bits":
                values[0, 0] = 3000
            case "colours":
                values = np.stack([values.astype(np.uint8)] * 3, axis=-1)
        Image.fromarray(values).save(path)
        source = scenes_of("segmentation-folder", segmentation, unreadable=unreadable)
        with pytest.raises(ValueError, match=told):
            source.readable(np.array([0]))
            source.load(np.array([0]))


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"split": "test"}, "unknown split 'test' of ade20k; choose one of training, validation, tuning"),
        ({"split": "tuning"}, "'tuning' consists of held-out training scenes: pass their number as tuning_scenes=N"),
        ({"dataset": "fashion-segmentation"}, r"root is for data sets on disk \(ade20k, .*not for fashion-seg"),
        ({"tuning_scenes": 8}, "tuning_scenes=8 would leave no training scene: there are 8"),
        ({"tuning_scenes": -1}, "tuning_scenes must be an integer >= .* got -1"),
        ({"workers": -1}, "workers must be an integer >= 0, got -1"),
        ({"workers": 1.5}, r"workers must be an integer >= .* got 1\.5"),
        ({"unreadable": "ignore"}, "unknown unreadable 'ignore'; choose one of raise, skip"),
        ({"cache": 3}, "cache must be True, False or a directory, got 3"),
        ({"root": Path("x")}, "root must be a string, so that the environment's spec is JSON"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build_scenes(EnvConfig(**{"dataset": "ade20k", "root": str(tiny("ade20k")), "device": "cpu", **kwargs}))
