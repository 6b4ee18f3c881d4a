"""Processes forked from one that has computed with several threads use one thread.

OpenMP's threads do not survive a fork, but its pool believes that they do: the child's first parallel operation would
wait for them forever. Gymnasium's AsyncVectorEnv and Stable-Baselines3's SubprocVecEnv fork their workers, from a
process in which PyTorch may have computed before any environment was made. One thread each is also best for as many
workers as CPU cores.

Registered by `import canvit_gym`, which does not import PyTorch: the handler acts only if PyTorch is loaded.
"""

import os
import sys
from functools import cache


def _compute_alone() -> None:
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "set_num_threads"):  # half imported: it lacks
        torch.set_num_threads(1)


@cache
def compute_alone_after_forks() -> None:
    """Make every process forked from now on use one thread, on systems that can fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_compute_alone)
