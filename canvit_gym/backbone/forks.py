"""A process forked from one that has computed with several threads computes with one.

OpenMP's threads do not survive a fork, but its pool believes that they do: the child's first parallel operation would
wait for them forever. Gymnasium's AsyncVectorEnv forks its workers by default, from a process in which PyTorch has
already computed. One thread in each is also what as many workers as CPU cores want.
"""

import os
from functools import cache

import torch


@cache
def compute_alone_after_forks() -> None:
    """Have every process forked from now on use one thread, where processes can be forked."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
