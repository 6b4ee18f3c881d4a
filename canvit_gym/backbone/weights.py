"""Loading weights that others made: what config.json declares is held against the weights before anything is allocated.

A size of 10^9 in a config.json would be an allocation of terabytes, and weights of a training that diverged (NaN) load
like any others and read nothing.
"""

import inspect
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from math import prod
from typing import Any

import torch
from canvit_pytorch.model.config import CanViTConfig
from safetensors import SafetensorError, safe_open
from torch import nn

from canvit_gym.backbone.hub import WEIGHTS, Source
from canvit_gym.dtypes import float32_by_default

LOADING_ERRORS = (AssertionError, AttributeError, KeyError, RuntimeError, SafetensorError, TypeError, ValueError)
"""What canvit-pytorch and its loaders raise for a file that is damaged or of another kind."""


_quiet = threading.RLock()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Loading leaves no trace: the Hub mixin prints a line per checkpoint, and initialization draws random numbers.

    One thread at a time, since stdout and generators are those of all threads.
    """
    with _quiet, redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]), float32_by_default():
        yield


def load_weights[Model: nn.Module](model_class: type[Model], source: Source, config: Mapping[str, Any]) -> Model:
    """A model of canvit-pytorch as `from_pretrained` loads it, from a directory whose config.json holds `config`.

    Raises:
        ValueError: the config declares other sizes than the weights have, or weights are not finite.
        Exception: one of LOADING_ERRORS, where the files are of another kind or damaged.
    """
    with quiet_loading():
        _require_declared_shapes(model_class, source, config)
        model = model_class.from_pretrained(str(source.directory))  # pyright: ignore[reportAttributeAccessIssue]
    require_finite(model)
    return model


def require_finite(model: nn.Module) -> None:
    """Raise ValueError where a weight is NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinite weights, as a training that diverged leaves them")


def _require_declared_shapes(model_class: type[nn.Module], source: Source, config: Mapping[str, Any]) -> None:
    with safe_open(source.directory / WEIGHTS, framework="pt") as file:
        stored = {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
    most = sum(prod(shape) for shape in stored.values())
    arguments = {name: config[name] for name in inspect.signature(model_class).parameters if name in config}
    if too_large := [(name, value) for name, value in _whole_numbers(arguments) if value > most]:
        name, value = too_large[0]
        raise ValueError(f"its config.json says {name}={value}, but there are {most} weights in all")
    if "canvit_config" in arguments:
        arguments["canvit_config"] = CanViTConfig(**arguments["canvit_config"])
    with torch.device("meta"):  # shapes without memory
        declared = model_class(**arguments)
    for name, tensor in declared.state_dict().items():
        if name in stored and stored[name] != tuple(tensor.shape):
            raise ValueError(
                f"its config.json makes {name} {list(tensor.shape)}, but the weights hold {list(stored[name])}"
            )


def _whole_numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _whole_numbers(value)
        elif isinstance(value, int):
            yield name, value
