"""What of a real folder is data: hidden files, other suffixes, links, names in any spelling, large folders."""

import os
import shutil
import time
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import FOLDER_CLASSES, write_ade20k, write_image_folder, write_segmentation_folder
from PIL import Image

from canvit_gym.assembly import build_scenes
from canvit_gym.config import EnvConfig
from canvit_gym.scenes.decoding import FORMATS, SqueezedMask
from canvit_gym.scenes.files import FileScenes
from canvit_gym.scenes.folders import ade20k_files, hash_split, image_folder_files, segmentation_folder_files
from canvit_gym.scenes.listing import list_images

HIDDEN_FOLDERS = (".ipynb_checkpoints", ".Trash-1000", "__MACOSX", "@eaDir")


def quietly(list_files: Any, root: Path, split: str = "training") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list_files(root, split)


class TestNoData:
    @pytest.mark.parametrize("hidden", HIDDEN_FOLDERS)
    @pytest.mark.parametrize("splits", [("train", "val"), ()])
    def test_a_hidden_folder_is_no_class(self, tmp_path: Path, hidden: str, splits: tuple[str, ...]) -> None:
        root = write_image_folder(tmp_path / "pets", splits=splits, per_class=20)
        before = image_folder_files(root, "training")
        folder = root / (splits[0] if splits else "") / hidden
        folder.mkdir()
        shutil.copy(before.images[0], folder / "0-checkpoint.jpg")
        with pytest.warns(RuntimeWarning, match=rf"left out below .*: 1 hidden \({hidden}\)"):
            after = image_folder_files(root, "training")
        assert after.classes == FOLDER_CLASSES and list(after.images) == list(before.images)

    def test_hidden_files_are_no_scenes(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "pets")
        (root / "train/disc/._disc 0.jpg").write_bytes(b"\0\5\x16\7")
        (root / "train/disc/disc 0.jpg~").write_bytes(b"a backup")
        (root / "train/disc/Thumbs.db").write_bytes(b"of the file manager")
        with pytest.warns(RuntimeWarning, match=r"1 hidden \(\._disc 0\.jpg\); 1 whose suffix .* \(1 \.jpg~\)"):
            assert len(image_folder_files(root, "training")) == 12

    def test_copies_beside_images_and_masks(self, tmp_path: Path) -> None:
        root = write_segmentation_folder(tmp_path / "land", splits=(), per_split=20)
        before = segmentation_folder_files(root, "training")
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            (root / folder / ".ipynb_checkpoints").mkdir()
            shutil.copy(root / folder / f"scene_1.{suffix}", root / folder / ".ipynb_checkpoints" / f"a.{suffix}")
        with pytest.warns(RuntimeWarning, match="1 hidden"):
            assert list(segmentation_folder_files(root, "training").images) == list(before.images)

    def test_in_the_layout_of_ade20k(self, tmp_path: Path) -> None:
        root = write_ade20k(tmp_path / "ade")
        (root / "images/training/._ADE_train_00000001.jpg").write_bytes(b"\0\5\x16\7")
        with pytest.warns(RuntimeWarning, match="1 hidden"):
            assert len(ade20k_files(root, "training")) == 8

    def test_masks_of_no_image(self, tmp_path: Path) -> None:
        root = write_segmentation_folder(tmp_path / "land")
        shutil.copy(root / "masks/train/scene_1.png", root / "masks/train/other.png")
        with pytest.warns(RuntimeWarning, match=r"left out: 1 masks below .*masks/train without an image"):
            assert len(segmentation_folder_files(root, "training")) == 5

    def test_images_in_no_folder_of_a_class(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "pets")
        (root / "train/notes.txt").write_text("of no interest here", encoding="utf-8")
        shutil.copy(root / "train/disc/disc 0.jpg", root / "train/cover.jpg")
        with pytest.warns(RuntimeWarning, match="1 in no class's folder"):
            assert len(image_folder_files(root, "training")) == 12

    def test_a_class_of_which_the_hash_trains_nothing(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "pets", splits=(), per_class=20)
        for path in (root / "ring").iterdir():
            if hash_split(f"ring/{path.name}") == "training":
                path.unlink()
        assert list((root / "ring").iterdir())
        with pytest.warns(RuntimeWarning, match="no image of the class 'ring': a probe cannot learn it"):
            image_folder_files(root, "training")


class TestSuffixes:
    def test_whatever_the_decoder_reads(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "pets", per_class=1)
        land = write_segmentation_folder(tmp_path / "land", per_split=1)
        with (
            Image.open(land / "images/train/scene_0.jpg") as picture,
            Image.open(land / "masks/train/scene_0.png") as mask,
        ):
            for name, suffixes in FORMATS.items():
                small = picture.resize((16, 12))
                for suffix in (suffixes[0], suffixes[-1].upper()):
                    small.save(root / "train/disc" / f"{name}{suffix}", format=name)
                    picture.save(land / "images/train" / f"{name} {suffix[1:]}{suffix}", format=name)
                    mask.save(land / "masks/train" / f"{name} {suffix[1:]}.png")
        assert len(image_folder_files(root, "training")) == 3 + 2 * len(FORMATS)
        scenes = FileScenes(
            segmentation_folder_files(land, "training"), SqueezedMask(16, 3), skip_unreadable=False, pin_memory=False
        )
        assert len(scenes) == 1 + 2 * len(FORMATS)
        labels = scenes.load(np.arange(len(scenes))).labels
        assert all(np.array_equal(labels[0], other) for other in labels)

    def test_others_are_counted(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "pets")
        for k in range(3):
            (root / f"train/ring/{k}.heic").write_bytes(b"a phone's")
        (root / "train/ring/LICENSE").write_text("free", encoding="utf-8")
        told = r"4 whose suffix is not that of a supported image \(3 \.heic, 1 without a suffix\)"
        with pytest.warns(RuntimeWarning, match=told):
            assert len(image_folder_files(root, "training")) == 12
        shutil.rmtree(root / "train/ring")
        (root / "train/ring").mkdir()
        (root / "train/ring/a.heic").write_bytes(b"a phone's")
        with (
            pytest.warns(RuntimeWarning),
            pytest.raises(FileNotFoundError, match=r"classes ring\..*Left out: 1 .*\(1 \.heic\)"),
        ):
            image_folder_files(root, "training")

    @pytest.mark.parametrize("suffix", [".tif", ".bmp", ".PNG", ".pgm"])
    def test_masks_of_other_formats_that_keep_values(self, tmp_path: Path, suffix: str) -> None:
        root = write_segmentation_folder(tmp_path / "land")
        before = segmentation_folder_files(root, "training")
        decoder = SqueezedMask(16, 3)
        expected = decoder.decode(before.images[2], before.mask(2))[1]
        with Image.open(root / "masks/train/scene_2.png") as mask:
            mask.load()
        (root / "masks/train/scene_2.png").unlink()
        mask.save(root / f"masks/train/scene_2{suffix}")
        after = segmentation_folder_files(root, "training")
        assert np.array_equal(decoder.decode(after.images[2], after.mask(2))[1], expected)

    def test_masks_that_are_jpeg(self, tmp_path: Path) -> None:
        root = write_segmentation_folder(tmp_path / "land")
        path = root / "masks/train/scene_2.png"
        with Image.open(path) as mask:
            mask.save(path.with_suffix(".jpg"))
        shutil.copy(path.with_suffix(".jpg"), path)
        files = segmentation_folder_files(root, "training")
        with pytest.raises(ValueError, match=r"scene_2\.png is a JPEG, which blurs values .*export the labels as PNG"):
            SqueezedMask(16, 3).decode(files.images[2], files.mask(2))
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 5 images have no mask.*1 masks are JPEG, which blurs"):
            segmentation_folder_files(root, "training")


class TestLinks:
    def test_folders_behind_links(self, tmp_path: Path) -> None:
        for write, list_files in (
            (write_image_folder, image_folder_files),
            (write_segmentation_folder, segmentation_folder_files),
            (write_ade20k, ade20k_files),
        ):
            real = write(tmp_path / f"{write.__name__}_real")
            expected = list_files(real, "training")
            root = tmp_path / write.__name__
            root.mkdir()
            for entry in sorted(real.iterdir()):
                (root / entry.name).symlink_to(entry)
            found = list_files(root, "training")
            assert list(found.relative(found.images)) == list(expected.relative(expected.images))
            assert found.content_sha256 == expected.content_sha256

    def test_a_linked_folder_within_images_and_masks(self, tmp_path: Path) -> None:
        root = write_segmentation_folder(tmp_path / "land")
        for folder in ("images", "masks"):
            (root / folder / "train").rename(tmp_path / folder)
            (root / folder / "train").mkdir()
            (root / folder / "train" / "part").symlink_to(tmp_path / folder)
        assert len(segmentation_folder_files(root, "training")) == 5

    def test_a_link_that_leads_back_up(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "pets")
        (root / "train/disc/again").symlink_to(root / "train")
        with pytest.warns(RuntimeWarning, match="1 links to a parent folder"):
            assert len(image_folder_files(root, "training")) == 12

    def test_a_link_to_itself_is_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "pets")
        link = root / "train/disc/again.jpg"
        link.symlink_to(link)
        config = EnvConfig(dataset="image-folder", root=str(root), device="cpu", workers=0, unreadable="skip")
        scenes = build_scenes(config)
        with pytest.warns(RuntimeWarning, match=r"again.jpg: .* symbolic links"):
            assert scenes.readable(np.arange(13)).sum() == 12

    def test_a_relative_root_after_a_change_of_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_image_folder(tmp_path / "pets")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        config = EnvConfig(dataset="image-folder", root="pets", device="cpu", workers=0)
        scenes = build_scenes(config)
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert len(scenes.load(np.arange(3)).images) == 3
        with pytest.raises(FileNotFoundError, match=r"root='pets' is not a directory \(relative to .*elsewhere\)"):
            build_scenes(config)

    def test_a_root_in_the_home_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_image_folder(tmp_path / "my pets")
        monkeypatch.setenv("HOME", str(tmp_path))
        scenes = build_scenes(EnvConfig(dataset="image-folder", root="~/my pets", device="cpu", workers=0))
        assert len(scenes.load(np.arange(3)).images) == 3


class TestNames:
    def test_classes_and_masks_in_other_unicode_forms(self, tmp_path: Path) -> None:
        """An archive from a Mac holds accents decomposed, a folder made elsewhere composed: they are the same names."""
        root = write_image_folder(tmp_path / "pets", splits=("train", "val"))
        (root / "train/ring").rename(root / "train" / unicodedata.normalize("NFC", "café"))
        (root / "val/ring").rename(root / "val" / unicodedata.normalize("NFD", "café"))
        train, val = image_folder_files(root, "training"), image_folder_files(root, "validation")
        assert train.classes == val.classes == (unicodedata.normalize("NFC", "café"), "disc", "square")
        assert len(val) == 12
        (root / "train" / unicodedata.normalize("NFD", "café")).mkdir()
        with pytest.raises(ValueError, match="two folders named 'café' in different Unicode forms"):
            image_folder_files(root, "training")

        land = write_segmentation_folder(tmp_path / "land")
        (land / "images/train/scene_1.jpg").rename(land / "images/train" / unicodedata.normalize("NFD", "é.jpg"))
        (land / "masks/train/scene_1.png").rename(land / "masks/train" / unicodedata.normalize("NFC", "é.png"))
        files = segmentation_folder_files(land, "training")
        assert len(files) == 5 and all(mask.exists() for mask in files.truth)

    def test_a_split_does_not_depend_on_the_unicode_form(self) -> None:
        for k in range(20):
            assert hash_split(unicodedata.normalize("NFC", f"é/{k}.jpg")) == hash_split(
                unicodedata.normalize("NFD", f"é/{k}.jpg")
            )

    def test_a_name_that_is_not_utf_8(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "pets", splits=())
        folder = root / "disc"
        try:
            os.rename(folder / "disc 0.jpg", os.fsencode(folder) + b"/caf\xe9.jpg")
        except OSError:
            pytest.skip("this file system takes UTF-8 names alone")
        for split in ("training", "validation", "test"):
            try:
                files = quietly(image_folder_files, root, split)
            except ValueError as error:
                assert "none of the" in str(error)
                continue
            assert len(files.content_sha256) == 64 and len(files.stamps()) == len(files)
            kwargs: Any = {"root": str(root), "split": split, "workers": 1, "cache": str(tmp_path / "cache")}
            scenes = build_scenes(EnvConfig(dataset="image-folder", device="cpu", **kwargs))
            assert len(scenes.load(np.arange(len(scenes))).images) == len(scenes)
        os.rename(root / "ring", os.fsencode(root) + b"/caf\xe9")
        with pytest.raises(ValueError, match=r"the name of the folder .*caf.* is not UTF-8.*: rename it"):
            image_folder_files(root, "training")

    def test_any_other_name(self, tmp_path: Path) -> None:
        root = write_image_folder(tmp_path / "my 'pets' & $HOME #1", splits=("train", "val"))
        for k, name in enumerate(["a b.jpg", "ü.jpg", "line\nbreak.jpg", "日本.jpg"]):
            shutil.copy(root / "train/disc/disc 0.jpg", root / "train/disc" / name)
            files = image_folder_files(root, "training")
            assert len(files) == 13 + k and len(files.content_sha256) == 64


def test_a_large_folder_is_listed_in_no_time(tmp_path: Path) -> None:
    """10,000 files: under 3 s for all that happens at the start, on any machine."""
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for k in range(5000):
            (tmp_path / "pets" / name / f"{k}.jpg").touch()
    start = time.perf_counter()
    files = image_folder_files(tmp_path / "pets", "training")
    files.stamps()
    assert len(files.content_sha256) == 64
    assert time.perf_counter() - start < 3
    assert len(list_images(tmp_path / "pets")) == 10_000 and 7800 < len(files) < 8200
