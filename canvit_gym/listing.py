"""`canvit-gym envs`: every environment id, what it asks for, and whether its data is there. Needs no extra."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from canvit_gym.command_line import PROGRAM, call, check_env_id
from canvit_gym.registration import ENVIRONMENTS
from canvit_gym.scenes.datasets import DATASETS, DatasetSpec


def data_line(spec: DatasetSpec) -> str:
    """Where the data is looked for, and whether it is there."""
    if spec.on_disk is None:
        return "comes with canvit_gym"
    layout, variable = spec.on_disk.layout, spec.on_disk.variable
    if variable is None:
        return f"yours, pass root=: {layout}"
    where = os.environ.get(variable)
    if not where:
        return f"${variable} is not set; set it, or pass root=: {layout}"
    there = Path(where).expanduser().is_dir()
    return f"{where} (${variable}): {'found' if there else 'NOT FOUND'}"


def listing(env_ids: Sequence[str]) -> str:
    """Three lines an id: the id, what it asks for, its data."""
    lines = []
    for env_id in env_ids:
        check_env_id(env_id)
        spec = DATASETS[ENVIRONMENTS[env_id]["dataset"]]
        lines += [env_id, f"    {spec.page.headline}", f"    data: {data_line(spec)}"]
    return "\n".join(lines)


def command_line(arguments: Sequence[str]) -> None:
    """`canvit-gym envs`."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} envs",
        description="List the environments: what each asks for, where its data is looked for, whether it is there.",
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="ids to list; all if none is given")
    options = parser.parse_args(list(arguments))
    call(lambda ids: print(listing(ids)), options.ids or list(ENVIRONMENTS))
