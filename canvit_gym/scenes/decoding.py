"""From files to scenes: decode an image (and its mask) and bring it to scene size, with canvit-pytorch's own geometry.

Classification scenes are resized on the short side and center-cropped, dense ones are squeezed to the square.
Pixels stay uint8, [3, S, S] RGB: canvit-pytorch's transforms without their last two, ToTensor and Normalize,
which the environment applies on the device in the same order. Images are read as canvit-pytorch reads them,
`Image.open(path).convert("RGB")`: grey, palette, CMYK and transparent files become RGB (transparency is
dropped), and an EXIF orientation is not applied. Grey images of 16 or 32 bits are refused: that
conversion makes every value above 255 white.

Decoders are small frozen values, so that a worker process can be given one.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL, NUM_CLASSES, decode_annotation, evaluation_transform
from canvit_pytorch.benchmarks.ade20k.dataset import EvaluationTransform
from canvit_pytorch.preprocess import preprocess
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms


class UnreadableSceneError(OSError):
    """A scene's file cannot be decoded: missing, empty, truncated, no image, or one that is not for here."""

    cure = "Repair or remove it"


class UnsuitableImageError(UnreadableSceneError):
    """An intact image whose pixels cannot be had, or would not be what it shows."""

    cure = "Convert or remove it"


class InvalidMaskError(ValueError):
    """A mask that can be decoded but is not one of class indices for its image."""


class Decoder(Protocol):
    """Files of one scene -> its pixels and, where the task is dense, its label map."""

    @property
    def size_px(self) -> int: ...

    @property
    def is_dense(self) -> bool: ...

    @property
    def geometry(self) -> str:
        """What was done to the pixels, and its version: part of a cache's key."""
        ...

    def decode(self, image: Path, mask: Path | None) -> tuple[Tensor, Tensor | None]:
        """([3, S, S] uint8, [S, S] uint8 or None).

        Raises:
            UnreadableSceneError: a file that cannot be decoded.
            InvalidMaskError: a mask that does not fit its image or the classes.
        """
        ...


_WIDE_MODES = ("I", "F")
"""Pillow's for grey images of 16 or 32 bits, integers or floats; before any ";"."""


def _opened(path: Path, mode: str | None) -> Image.Image:
    """The decoded image; `mode` converts it."""
    try:
        with Image.open(path) as file:
            if mode is not None and file.mode.partition(";")[0] in _WIDE_MODES:
                raise UnsuitableImageError(
                    f"cannot read {path}: it has mode {file.mode}, whose values above 255 would all become white: save "
                    "it as 8-bit"
                )
            if mode is not None:
                return file.convert(mode)
            file.load()
            return file
    except (MemoryError, UnsuitableImageError):
        raise
    except Image.DecompressionBombError as error:
        raise UnsuitableImageError(f"cannot read {path}: {error}: scale it down") from error
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        reason = "the file is empty" if _is_empty(path) else f"{type(error).__name__}: {error}"
        raise UnreadableSceneError(f"cannot read {path}: {reason}") from error


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _without_normalization(transform: transforms.Compose) -> transforms.Compose:
    """canvit-pytorch's image transform, ending in uint8 pixels in place of normalized ones."""
    *geometry, to_tensor, normalize = transform.transforms
    assert isinstance(to_tensor, transforms.ToTensor) and isinstance(normalize, transforms.Normalize), transform
    return transforms.Compose([*geometry, transforms.PILToTensor()])


@dataclass(frozen=True)
class CroppedImage:
    """Resize the short side, center-crop: `canvit_pytorch.preprocess`, the protocol of ImageNet-1k."""

    size_px: int
    is_dense = False
    geometry = "short side resized, center-cropped, v1"

    @cached_property
    def _transform(self) -> transforms.Compose:
        return _without_normalization(preprocess(self.size_px))

    def decode(self, image: Path, mask: Path | None = None) -> tuple[Tensor, None]:
        return cast(Tensor, self._transform(_opened(image, "RGB"))), None


@dataclass(frozen=True)
class SqueezedADE20K:
    """Squeeze image and annotation to the square: the transform of canvit-pytorch's ADE20K evaluation.

    Annotation 0 (unlabeled) becomes IGNORE_LABEL, k becomes class k - 1.
    """

    size_px: int
    is_dense = True
    geometry = "squeezed, ADE20K annotations, v1"

    @cached_property
    def _transforms(self) -> tuple[transforms.Compose, EvaluationTransform]:
        transform = evaluation_transform(self.size_px)
        assert isinstance(transform, EvaluationTransform)
        return _without_normalization(transform.image_transform), transform

    def decode(self, image: Path, mask: Path | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        pixels, transform = self._transforms
        label_map = _opened(mask, None)
        if label_map.mode != "L":
            raise InvalidMaskError(
                f"annotation {mask} has mode {label_map.mode}, but those of ADEChallengeData2016 have one byte a "
                "pixel, 0 for unlabeled and 1 to 150 for the classes (the full ADE20K release is another data set)"
            )
        photo = _opened(image, "RGB")
        if (highest := cast(tuple[int, int], label_map.getextrema())[1]) > NUM_CLASSES:
            raise InvalidMaskError(
                f"annotation {mask} holds the value {highest}, but those of ADEChallengeData2016 are 0 (unlabeled) to "
                f"{NUM_CLASSES}: use that data set's own annotations"
            )
        labels = cast(Tensor, transform.label_transform(label_map)).squeeze(0)
        return cast(Tensor, pixels(photo)), decode_annotation(labels).to(torch.uint8)


@dataclass(frozen=True)
class SqueezedMask:
    """Squeeze image (bilinear) and mask (nearest) to the square, as the ADE20K protocol does; masks hold classes."""

    size_px: int
    num_classes: int
    is_dense = True
    geometry = "squeezed, masks of class indices, v1"

    @cached_property
    def _transforms(self) -> tuple[transforms.Compose, transforms.Resize]:
        transform = evaluation_transform(self.size_px)
        assert isinstance(transform, EvaluationTransform)
        resize = transform.label_transform.transforms[0]
        assert isinstance(resize, transforms.Resize) and resize.interpolation == transforms.InterpolationMode.NEAREST
        return _without_normalization(transform.image_transform), resize

    def decode(self, image: Path, mask: Path | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        pixels, resize = self._transforms
        photo = _opened(image, "RGB")
        labels = _class_indices(mask, self.num_classes)
        if labels.size != photo.size:
            turned = ImageOps.exif_transpose(photo).size == labels.size
            cure = (
                "The image is stored turned, with an EXIF orientation, which is not applied here: store it upright."
                if turned
                else "Give each image a mask of its own size."
            )
            raise InvalidMaskError(
                f"{image} is {photo.width} x {photo.height} px, but its mask {mask} is "
                f"{labels.width} x {labels.height} px. {cure}"
            )
        return cast(Tensor, pixels(photo)), torch.from_numpy(np.array(resize(labels)))


def _class_indices(path: Path, num_classes: int) -> Image.Image:
    """A mask as an 8-bit image of class indices or IGNORE_LABEL."""
    mask = _opened(path, None)
    if mask.mode not in ("1", "L", "P", "I", "I;16"):
        raise InvalidMaskError(
            f"mask {path} has mode {mask.mode}, but a mask holds one class index a pixel: "
            "save it as a grey or palette PNG, not as colours"
        )
    pixels = np.asarray(mask)
    eight_bits = mask.mode in ("L", "P")  # counted by PIL at a hundredth of what sorting takes
    values: NDArray[np.int64] = np.flatnonzero(mask.histogram()) if eight_bits else np.unique(pixels.astype(np.int64))
    if len(wrong := values[((values < 0) | (values >= num_classes)) & (values != IGNORE_LABEL)]):
        told = ", ".join(str(value) for value in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise InvalidMaskError(
            f"mask {path} holds the value {told}, but there are {num_classes} classes: values must be "
            f"0 to {num_classes - 1}, or {IGNORE_LABEL} where a pixel is to be ignored. Correct the mask, or list "
            "every class in classes.txt."
        )
    return Image.fromarray(pixels.astype(np.uint8))
