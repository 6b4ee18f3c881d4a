"""People in a benchmark: `--also human=FILE`, with a file from `canvit-gym play --record FILE`.

People see fewer scenes than policies. They are compared with every policy on the scenes that they played, in a separate
table.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from canvit_gym.backbone.load import Backbone
from canvit_gym.benchmark.records import RECORDS, slug
from canvit_gym.evaluation import Evaluation, name_of_split
from canvit_gym.play.recording import read_played
from canvit_gym.scenes.files import ScenesOnDisk
from canvit_gym.scenes.source import SceneSource

_GROUP = re.compile(r"(?P<label>[^()=]+)=(?P<path>.+)")


def is_people(spec: str) -> bool:
    """Whether a spec has the form label=FILE, unlike "center(scale=0.5)"."""
    return _GROUP.fullmatch(spec) is not None


_OF_THE_BACKBONE = ("canvas_grid", "scene_size_px", "glimpse_size_px", "precision")
"""What decides how well the same viewpoints are read, beside the weights."""


def read_people(
    spec: str, identity: dict[str, Any], *, scenes: SceneSource, backbone: Backbone
) -> tuple[str, Evaluation]:
    """(label, record) of "label=FILE".

    Args:
        identity: the benchmark's, see canvit_gym.benchmark.runner.identity.
        scenes, backbone: the benchmark's.

    Raises:
        FileNotFoundError: no such file. ValueError: not a record of people, or one of another environment, scenes or
            model.
    """
    found = _GROUP.fullmatch(spec)
    assert found is not None, spec
    label, path = found["label"].strip(), Path(found["path"])
    record = read_played(path)
    config, wanted = record.record["config"], identity["config"]
    there = {name: config[name] for name in ("dataset", "split", "budget")}
    here = {name: wanted[name] for name in there}
    there["scenes"], here["scenes"] = (name_of_split(name) for name in (record.record["scenes"], scenes.name))
    if isinstance(scenes, ScenesOnDisk) and "scenes_sha256" in record.record:
        there["files of the scenes"], here["files of the scenes"] = (
            sha256[:12] for sha256 in (record.record["scenes_sha256"], scenes.content_sha256)
        )
    for name in ("checkpoint", "probe"):
        there[name] = record.record[name]["sha256"]
        here[name] = identity["backbone_sha256" if name == "checkpoint" else "probe_sha256"]
    for name in _OF_THE_BACKBONE:  # None in the configuration stands for a size of pretraining
        there[name], here[name] = record.record["checkpoint"][name], backbone.record[name]
    if differing := [name for name in there if there[name] != here[name]]:
        differences = "; ".join(f"{name}: {there[name]!r} there, {here[name]!r} here" for name in differing)
        raise ValueError(
            f"{path} is a record of something else than this benchmark is on: {differences}. Choose the options with "
            "which it was played (sizes and precision as --env-kwargs '{...}'), or another file"
        )
    inside = record.scene < identity["num_scenes"]
    if not inside.any():
        raise ValueError(f"{path} has none of the benchmark's scenes, 0 to {identity['num_scenes'] - 1}")
    return label, record.choose(np.flatnonzero(inside))


def keep_people(label: str, record: Evaluation, directory: Path) -> dict[str, str]:
    """Write the record to the benchmark's directory. Returns its entry in the manifest."""
    contents = record.scene.tobytes() + record.viewpoints.tobytes()
    file = f"people-{slug(label)}-{hashlib.sha256(contents).hexdigest()[:12]}.npz"
    record.save(directory / RECORDS / file)
    return {"label": label, "file": file}
