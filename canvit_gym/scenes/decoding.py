"""From files to scenes: decode an image (and its mask) and resize it to scene size, with canvit-pytorch's geometry.

For classification the short side is resized and the image center-cropped; for segmentation the image is squeezed to a
square. Pixels stay uint8, [3, S, S] RGB: these are canvit-pytorch's transforms without the last two, ToTensor and
Normalize, which the environment applies on the device in the same order. Like canvit-pytorch, it reads images with
`Image.open(path).convert("RGB")`: grey, palette, CMYK and transparent images become RGB (transparency is dropped). Grey
images of 16 or 32 bits are an error, because this conversion makes every value above 255 white.

EXIF orientations are not applied, with one exception: if an image has a mask that only fits the rotated image. If the
mask fits both the rotated and the stored image, it is an error.

A file's content decides how it is decoded, not its name, and only the decoders in FORMATS are used: Pillow would pass
PostScript to Ghostscript, whatever the file is called.

Decoders are small frozen values that can be sent to worker processes.
"""

from collections.abc import Iterable, Mapping
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
from PIL import ExifTags, Image, features
from torch import Tensor
from torchvision import transforms

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c"),
    "AVIF": (".avif",),
}
"""Pillow's name of each format that is read -> the suffixes of its files, in lower case."""
if not features.check("avif"):  # Pillow can be built without it
    del FORMATS["AVIF"]

IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, "mirrored left to right"),
    3: (Image.Transpose.ROTATE_180, "upside down"),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, "mirrored top to bottom"),
    5: (Image.Transpose.TRANSPOSE, "mirrored and turned by 90 degrees"),
    6: (Image.Transpose.ROTATE_270, "turned by 90 degrees"),
    7: (Image.Transpose.TRANSVERSE, "mirrored and turned by 90 degrees"),
    8: (Image.Transpose.ROTATE_90, "turned by 90 degrees"),
}
"""EXIF orientation -> (the operation that makes the picture upright, how it is stored in the file)."""


class UnreadableSceneError(OSError):
    """A scene's file cannot be decoded: it is missing, empty, truncated, not an image, or not supported."""

    cure = "Repair or remove it"


class UnsuitableImageError(UnreadableSceneError):
    """An intact image whose pixels cannot be read, or not without changing what it shows."""

    cure = "Convert or remove it"


class InvalidMaskError(ValueError):
    """A mask that can be decoded but does not contain class indices for its image."""


class Decoder(Protocol):
    """Files of a scene -> its pixels and, for segmentation, its label map."""

    @property
    def size_px(self) -> int: ...

    @property
    def is_dense(self) -> bool: ...

    @property
    def geometry(self) -> str:
        """A description of the transform with its version: part of a cache's key."""
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
    return _opened_as(path, mode)[0]


def _opened_as(path: Path, mode: str | None) -> tuple[Image.Image, str]:
    """The decoded image, and Pillow's name of the file's format."""
    try:
        with Image.open(path, formats=tuple(FORMATS)) as file:
            if mode is not None and file.mode.partition(";")[0] in _WIDE_MODES:
                raise UnsuitableImageError(
                    f"cannot read {path}: it has mode {file.mode}, whose values above 255 would all become white: save "
                    "it as 8-bit"
                )
            if mode is not None:
                return file.convert(mode), str(file.format)
            file.load()
            return file, str(file.format)
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
    """canvit-pytorch's image transform, but with uint8 pixels instead of normalized ones."""
    *geometry, to_tensor, normalize = transform.transforms
    assert isinstance(to_tensor, transforms.ToTensor) and isinstance(normalize, transforms.Normalize), transform
    return transforms.Compose([*geometry, transforms.PILToTensor()])


INTEGER_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes with one number per pixel."""


def open_mask(path: Path) -> Image.Image:
    """A mask as it is stored.

    Raises:
        InvalidMaskError: a JPEG, whose values are not those that were saved.
    """
    mask, stored_as = _opened_as(path, None)
    if stored_as in ("JPEG", "MPO"):
        raise InvalidMaskError(
            f"mask {path} is a JPEG, which blurs values where classes meet: export the labels as PNG from their source"
        )
    return mask


def mask_pixels(mask: Image.Image, *, path: Path, as_colours: bool) -> NDArray[np.integer]:
    """[H, W]: the values of a mask, or its colours as 0xRRGGBB.

    Raises:
        InvalidMaskError: colours where values are expected.
    """
    if as_colours:
        red, green, blue = np.moveaxis(np.asarray(mask.convert("RGB"), dtype=np.int32), 2, 0)
        return red << 16 | green << 8 | blue
    if mask.mode not in INTEGER_MODES:
        raise InvalidMaskError(
            f"mask {path} has mode {mask.mode}, but masks have a class index per pixel: save it as a grey or palette "
            'PNG, or define its colours: mask_values={"#000000": "CLASS", "#ff0000": "CLASS", ...}'
        )
    pixels = np.asarray(mask)
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels


def distinct(pixels: NDArray[np.integer]) -> NDArray[np.int64]:
    """The values that occur, sorted."""
    if pixels.dtype == np.uint8:  # counting takes a fraction of the time of sorting
        return np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))
    return np.unique(pixels).astype(np.int64)


def listed(values: Iterable[object], most: int = 5) -> str:
    """The first values, with an ellipsis if there are more."""
    shown = [str(value) for value in values]
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def _checked_indices(pixels: NDArray[np.integer], num_classes: int, *, path: Path) -> NDArray[np.uint8]:
    values = distinct(pixels)
    if len(wrong := values[((values < 0) | (values >= num_classes)) & (values != IGNORE_LABEL)]):
        raise InvalidMaskError(
            f"mask {path} has the value {listed(wrong)}, but there are {num_classes} classes: values must be 0 to "
            f"{num_classes - 1}, or {IGNORE_LABEL} for pixels to ignore. Correct the mask, list every class in "
            "classes.txt, or define the values with mask_values={...}."
        )
    return pixels.astype(np.uint8)


@dataclass(frozen=True)
class MaskValues:
    """The meaning of the values or colours of masks."""

    classes: tuple[tuple[int, int], ...]
    """(value or 0xRRGGBB, class index or IGNORE_LABEL), sorted."""
    are_colours: bool = False

    def key(self, value: int) -> str:
        """A value as a key of mask_values."""
        return f"#{value:06x}" if self.are_colours else str(value)

    def classes_of(self, pixels: NDArray[np.integer], *, path: Path) -> NDArray[np.uint8]:
        """[H, W] values -> class indices or IGNORE_LABEL.

        Raises:
            InvalidMaskError: a value without an entry.
        """
        known = np.array([value for value, _ in self.classes], dtype=np.int64)
        meaning = np.array([label for _, label in self.classes], dtype=np.uint8)
        at = np.searchsorted(known, pixels).clip(max=len(known) - 1)
        if (wrong := known[at] != pixels).any():
            raise InvalidMaskError(
                f"mask {path} has {listed(map(self.key, distinct(pixels[wrong])))}, which is not in mask_values; it "
                f"has {listed((self.key(value) for value in known.tolist()), 10)}. Add what is missing, with null "
                "(None) for pixels to ignore."
            )
        return meaning[at]


def read_mask_values(given: Mapping[str, str | None], classes: tuple[str, ...]) -> MaskValues:
    """From the keyword: {"0": "background", "255": "thing"}, or {"#ff0000": "thing", ...}.

    Raises:
        ValueError: keys that are neither values nor colours, or names that are not exactly the classes.
    """
    example = '{"0": "background", "255": "thing"} or {"#000000": "background", "#ff0000": "thing"}'
    colours = [str(key).startswith("#") for key in given]
    meaning: dict[int, int] = {}
    for key, name in given.items():
        try:
            value = int(str(key).removeprefix("#"), 16 if all(colours) else 10)
        except ValueError:
            value = -1
        if value < 0 or (all(colours) and len(str(key)) != 7):
            raise ValueError(f"mask_values has the key {key!r}, but keys are all values or all colours: {example}")
        if name is not None and name not in classes:
            raise ValueError(f"mask_values names {name!r}, but the classes are {', '.join(classes)}")
        if value in meaning:
            raise ValueError(f"mask_values names the value of {key!r} twice: leave one of the two out")
        meaning[value] = IGNORE_LABEL if name is None else classes.index(name)
    if lacking := [name for k, name in enumerate(classes) if k not in meaning.values()]:
        raise ValueError(
            f"mask_values has no value for {listed(lacking)}: add one for every class, or remove the class from the "
            f"list. Example: {example}"
        )
    return MaskValues(tuple(sorted(meaning.items())), are_colours=all(colours))


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation that has not been applied; 1 if there is none."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block is ignored; Pillow may raise anything
        return 1
    return found if found in _TURNS else 1


def _upright(picture: Image.Image) -> Image.Image:
    found = orientation(picture)
    return picture if found == 1 else picture.transpose(_TURNS[found][0])


@dataclass(frozen=True)
class _Stored:
    """How a picture is stored in its file."""

    path: Path
    size: tuple[int, int]
    orientation: int

    @classmethod
    def of(cls, picture: Image.Image, path: Path) -> "_Stored":
        return cls(path, picture.size, orientation(picture))

    @property
    def upright_size(self) -> tuple[int, int]:
        width, height = self.size
        return (height, width) if self.orientation >= 5 else self.size


def _must_turn(image: _Stored, mask: _Stored) -> bool:
    """Whether image and mask fit each other with their EXIF orientations applied, and not as stored.

    Raises:
        InvalidMaskError: they fit in neither way, or in both, which is ambiguous.
    """
    as_stored, as_turned = image.size == mask.size, image.upright_size == mask.upright_size
    if as_stored and (image.orientation == mask.orientation or not as_turned):
        return False
    if as_turned and not as_stored:
        return True
    if not as_stored:
        (width, height), (mask_width, mask_height) = image.size, mask.size
        raise InvalidMaskError(
            f"{image.path} is {width} x {height} px, but its mask {mask.path} is {mask_width} x {mask_height} px. Give "
            "each image a mask of its own size."
        )
    turned, other = (image, mask) if image.orientation != 1 else (mask, image)
    raise InvalidMaskError(
        f"{turned.path} is stored {_TURNS[turned.orientation][1]} (EXIF orientation {turned.orientation}). It has the "
        f"size of {other.path} both as stored and rotated, so it is unknown whether the mask was drawn on the stored "
        "picture or on the rotated one that viewers show. Store it upright, for example with `mogrify -auto-orient`; "
        "if the mask was drawn on the stored pixels, remove the tag instead (`exiftool -Orientation= FILE`)."
    )


def require_same_pixels(image: Path, mask: Path) -> None:
    """Raise InvalidMaskError if an image and its mask do not fit each other. Reads no pixels."""
    headers = []
    for path in (image, mask):
        try:
            with Image.open(path, formats=tuple(FORMATS)) as file:
                headers.append(_Stored.of(file, path))
        except Exception as error:  # see _opened_as
            raise UnreadableSceneError(f"cannot read {path}: {error}") from error
    _must_turn(*headers)


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
    geometry = "squeezed, ADE20K annotations, v3"

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
                f"annotation {mask} has mode {label_map.mode}, but those of ADEChallengeData2016 have one byte per "
                "pixel, 0 for unlabeled and 1 to 150 for the classes (the full ADE20K release is another data set)"
            )
        photo = _opened(image, "RGB")
        if (highest := cast(tuple[int, int], label_map.getextrema())[1]) > NUM_CLASSES:
            raise InvalidMaskError(
                f"annotation {mask} holds the value {highest}, but those of ADEChallengeData2016 are 0 (unlabeled) to "
                f"{NUM_CLASSES}: use that data set's own annotations"
            )
        if _must_turn(_Stored.of(photo, image), _Stored.of(label_map, mask)):
            photo, label_map = _upright(photo), _upright(label_map)
        labels = cast(Tensor, transform.label_transform(label_map)).squeeze(0)
        return cast(Tensor, pixels(photo)), decode_annotation(labels).to(torch.uint8)


@dataclass(frozen=True)
class SqueezedMask:
    """Squeeze image (bilinear) and mask (nearest) to a square, as the ADE20K protocol does."""

    size_px: int
    num_classes: int
    values: MaskValues | None = None
    """The meaning of the masks' values. None: class indices, and IGNORE_LABEL for ignored pixels."""
    is_dense = True
    geometry = "squeezed, masks of class indices, v2"

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
        labels = self._classes_of(mask)
        if _must_turn(_Stored.of(photo, image), _Stored.of(labels, mask)):
            photo, labels = _upright(photo), _upright(labels)
        return cast(Tensor, pixels(photo)), torch.from_numpy(np.array(resize(labels)))

    def _classes_of(self, mask: Path) -> Image.Image:
        """[H, W], 8 bits: class indices or IGNORE_LABEL."""
        picture = open_mask(mask)
        pixels = mask_pixels(picture, path=mask, as_colours=self.values is not None and self.values.are_colours)
        if self.values is None:
            labels = _checked_indices(pixels, self.num_classes, path=mask)
        else:
            labels = self.values.classes_of(pixels, path=mask)
        image = Image.fromarray(labels)
        image.getexif()[ExifTags.Base.Orientation] = orientation(picture)
        return image
