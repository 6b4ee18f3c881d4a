"""Frozen CanViTs by name, loaded once per process and shared by every environment that asks for the same one."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

import torch
from canvit_pytorch import CanViT, CanViTForPretraining, RecurrentState, Viewpoint, sample_at_viewpoint
from canvit_pytorch.hub import repos
from canvit_pytorch.hub.loading import hub_file
from safetensors import SafetensorError
from torch import Tensor

from canvit_gym.backbone.nano import register_nano

Precision = Literal["float32", "bfloat16"]

GLIMPSES_PER_SIDE = 4
"""A glimpse has a quarter of the canvas grid's patches on a side, in nano as in the released CanViT-B."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CanViT in evaluation mode, with the geometry it was pretrained with."""

    pretrained: CanViTForPretraining
    name: str
    """As asked for: "nano", a Hub id, a directory."""
    sha256: str
    """Of model.safetensors; results and policies record it."""
    device: torch.device
    precision: Precision

    @property
    def canvit(self) -> CanViT:
        return self.pretrained.canvit

    @property
    def canvas_grid(self) -> int:
        """Side of the canvas, in cells."""
        return self.pretrained.teacher_patch_grid

    @property
    def scene_size_px(self) -> int:
        """One canvas cell per patch of the teacher, which saw the whole scene."""
        return self.canvas_grid * self.canvit.patch_size

    @property
    def glimpse_size_px(self) -> int:
        return self.scene_size_px // GLIMPSES_PER_SIDE

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def init_state(self, batch_size: int) -> RecurrentState:
        """The state before any glimpse."""
        return self.canvit.init_state(batch_size=batch_size, canvas_grid_size=self.canvas_grid)

    def glimpse(self, images: Tensor, viewpoint: Viewpoint) -> Tensor:
        """[B, 3, H, W] -> [B, 3, glimpse_size_px, glimpse_size_px]: what the backbone sees at each viewpoint."""
        return sample_at_viewpoint(spatial=images, viewpoint=viewpoint, glimpse_size_px=self.glimpse_size_px)

    def step(self, glimpse: Tensor, state: RecurrentState, viewpoint: Viewpoint) -> RecurrentState:
        """The state after a glimpse [B, 3, glimpse_size_px, glimpse_size_px] taken at `viewpoint`."""
        with self.autocast():
            return self.canvit(glimpse=glimpse, state=state, viewpoint=viewpoint).state


def asset_dir(name: str) -> Path:
    """A directory of this package's assets."""
    return Path(str(resources.files("canvit_gym"))) / "assets" / name


def checkpoint_location(name: str) -> str:
    """ "nano" and "flagship" -> where they are; Hub ids and directories stay as they are."""
    return {"nano": str(asset_dir("nano")), "flagship": repos.FLAGSHIP}.get(name, name)


def require_checkpoint_files(name: str, location: str, files: tuple[str, ...]) -> None:
    """Raise where a local directory lacks a checkpoint's files, or a name is neither a directory nor a Hub id."""
    path = Path(location)
    if path.is_dir():
        for file in files:
            if not (path / file).is_file():
                raise FileNotFoundError(
                    f"checkpoint {name!r}: {path} has no {file}. A checkpoint directory holds {' and '.join(files)}, "
                    "as canvit-pytorch's save_pretrained writes them."
                )
    elif path.is_absolute() or location.count("/") != 1:
        raise FileNotFoundError(
            f"checkpoint {name!r} is neither 'nano', 'flagship', an existing directory, nor a Hub id 'org/name'"
        )


LOADING_ERRORS = (AssertionError, AttributeError, KeyError, RuntimeError, SafetensorError, TypeError, ValueError)
"""What canvit-pytorch and its loaders raise for a file that is damaged or of another kind."""


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Loading leaves no trace: the Hub mixin prints a line per checkpoint, and initialization draws random numbers."""
    with redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        yield


def sha256_of(location: str) -> str:
    return hashlib.sha256(Path(hub_file(location, "model.safetensors")).read_bytes()).hexdigest()


@cache
def _load(name: str, location: str, device: str, precision: Precision) -> Backbone:
    require_checkpoint_files(name, location, ("config.json", "model.safetensors"))
    register_nano()
    try:
        with quiet_loading():
            model = CanViTForPretraining.from_pretrained(location)
    except LOADING_ERRORS as error:
        raise ValueError(
            f"checkpoint {name!r} ({location}) is not a CanViTForPretraining of canvit-pytorch 0.2: {error}. "
            "Save it with CanViTForPretraining.save_pretrained, or name another checkpoint."
        ) from error
    model = model.to(torch.device(device)).eval().requires_grad_(False)
    return Backbone(
        pretrained=model, name=name, sha256=sha256_of(location), device=torch.device(device), precision=precision
    )


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; use 'cpu', 'cuda' or 'auto'") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: PyTorch sees no CUDA device. Use device='cpu' or 'auto'.")
    return resolved


def load_backbone(name: str = "nano", *, device: str = "auto", precision: Precision = "float32") -> Backbone:
    """The frozen backbone of a name: "nano", "flagship", a Hub id "org/name", or a directory.

    Raises:
        FileNotFoundError: no such checkpoint, or a directory without config.json or model.safetensors.
        ValueError: an unknown precision or device, or weights that do not fit their config.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
    return _load(name, checkpoint_location(name), str(resolve_device(device)), precision)
