"""The CUDA streams that this process uses beside the current one."""

from functools import cache
from typing import NamedTuple

import torch


class SideStreams(NamedTuple):
    """Of one GPU."""

    loading: torch.cuda.Stream
    """Scenes are sent on it while the current stream computes."""
    recording: torch.cuda.Stream
    """CUDA graphs are recorded on it."""


@cache
def side_streams(device: torch.device) -> SideStreams:
    """The streams of a device, made once.

    PyTorch hands out 32 streams in turn. Were one made for every environment, the stream on which a thread sends scenes
    would sooner or later be the one that records, and the copies would become part of the graph.
    """
    return SideStreams(*(torch.cuda.Stream(device) for _ in SideStreams._fields))
