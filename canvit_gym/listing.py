"""`canvit-gym envs`: every environment id, its task, and whether its data is available. Needs no extra."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from canvit_gym.command_line import PROGRAM, bare_env_id, call
from canvit_gym.registration import ENVIRONMENTS
from canvit_gym.scenes.datasets import DATASETS, DatasetSpec


def data_line(spec: DatasetSpec) -> str:
    """Where the data is expected, and whether it is available."""
    if spec.on_disk is None:
        return "included in canvit_gym"
    layout, variable = spec.on_disk.layout, spec.on_disk.variable
    if variable is None:
        return f"your own, pass root=: {layout}"
    where = os.environ.get(variable)
    if not where:
        return f"${variable} is not set; set it, or pass root=: {layout}"
    there = Path(where).expanduser().is_dir()
    return f"{where} (${variable}): {'found' if there else 'NOT FOUND'}"


def listing(env_ids: Sequence[str]) -> str:
    """Three lines per id: the id, its task, its data."""
    lines = []
    for env_id in env_ids:
        spec = DATASETS[ENVIRONMENTS[bare_env_id(env_id)]["dataset"]]
        lines += [env_id, f"    {spec.page.headline}", f"    data: {data_line(spec)}"]
    return "\n".join(lines)


def command_line(arguments: Sequence[str]) -> None:
    """`canvit-gym envs`."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} envs",
        description="List the environments: their tasks, where they expect their data, and whether it is available.",
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="ids to list (default: all)")
    options = parser.parse_args(list(arguments))
    call(lambda ids: print(listing(ids)), options.ids or list(ENVIRONMENTS))
