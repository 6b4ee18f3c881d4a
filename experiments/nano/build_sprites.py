"""Build canvit_gym/assets/fashion_sprites.npz, the vendored Fashion-MNIST sprites.

    python -m experiments.nano.build_sprites --idx-dir /usr/share/datasets/fashion-mnist

The IDX files are those of the Debian package `dataset-fashion-mnist` (MIT licence, Zalando SE) or of the
dataset's own repository. Training and validation sprites come from disjoint parts of the 60,000 training
images, test sprites from the 10,000 test images. Each 28x28 sprite is quantized to 32 grey levels, its
holes are filled, and 0 is reserved for "outside the item", so that a sprite is its own mask.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

OUTPUT = Path(__file__).parents[2] / "canvit_gym" / "assets" / "fashion_sprites.npz"
NUM_CLASSES = 10
PER_CLASS = {"training": 3000, "validation": 300, "test": 600}
INSIDE_LEVEL = 12
"""Grey levels above this are inside the item; sensor noise around an item is below it."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes (gzip-compressed)."""
    data = gzip.decompress(path.read_bytes())
    ndim = data[3]
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it starts with {data[:4]!r}")
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * ndim).reshape(shape)


def outside_mask(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[N, 28, 28] booleans: dark pixels connected to the border (a flood fill of all images at once)."""
    dark = np.pad(images <= INSIDE_LEVEL, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    outside = np.zeros_like(dark)
    outside[:, 0] = outside[:, -1] = outside[:, :, 0] = outside[:, :, -1] = True
    while True:
        grown = outside.copy()
        grown[:, 1:] |= outside[:, :-1]
        grown[:, :-1] |= outside[:, 1:]
        grown[:, :, 1:] |= outside[:, :, :-1]
        grown[:, :, :-1] |= outside[:, :, 1:]
        grown &= dark
        if (grown == outside).all():
            return outside[:, 1:-1, 1:-1]
        outside = grown


def sprites(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, 28, 28] grey images -> sprites: 0 outside the item, odd multiples of 4 (32 levels) inside."""
    return np.where(outside_mask(images), 0, (images >> 3 << 3) + 4).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idx-dir", type=Path, required=True, help="directory of the four *-ubyte.gz files")
    args = parser.parse_args()
    images = {s: read_idx(args.idx_dir / f"{s}-images-idx3-ubyte.gz") for s in ("train", "t10k")}
    labels = {s: read_idx(args.idx_dir / f"{s}-labels-idx1-ubyte.gz") for s in ("train", "t10k")}
    arrays: dict[str, NDArray[np.uint8]] = {}
    for split, source, start in (("training", "train", 0), ("validation", "train", 5000), ("test", "t10k", 0)):
        count = PER_CLASS[split]
        chosen = [np.flatnonzero(labels[source] == c)[start : start + count] for c in range(NUM_CLASSES)]
        arrays[split] = np.stack([sprites(images[source][index]) for index in chosen])
        assert arrays[split].shape == (NUM_CLASSES, count, 28, 28), arrays[split].shape
    np.savez_compressed(OUTPUT, allow_pickle=False, **arrays)
    print(
        f"{OUTPUT.name}: {OUTPUT.stat().st_size / 2**20:.1f} MiB, "
        + ", ".join(f"{k} {v.shape}" for k, v in arrays.items())
    )


if __name__ == "__main__":
    main()
