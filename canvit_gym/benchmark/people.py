"""People in a benchmark: `--also human=FILE`, with a file from `canvit-gym play --record FILE`.

People see fewer scenes than policies. They are compared with every policy on the scenes that they played, in a separate
table.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvit_gym.benchmark.records import RECORDS, Entry
from canvit_gym.evaluation import Evaluation

_GROUP = re.compile(r"(?P<label>[^()=]+)=(?P<path>.+)")


def is_people(spec: str) -> bool:
    """Whether a spec has the form label=FILE, unlike "center(scale=0.5)"."""
    return _GROUP.fullmatch(spec) is not None


def read_people(spec: str, identity: dict[str, Any]) -> tuple[str, Evaluation]:
    """(label, record) of "label=FILE".

    Raises:
        FileNotFoundError: no such file. ValueError: not a record, or one of another environment, scenes or model.
    """
    found = _GROUP.fullmatch(spec)
    assert found is not None, spec
    label, path = found["label"].strip(), Path(found["path"])
    record = Evaluation.load(path)
    config, wanted = record.record["config"], identity["config"]
    there = {name: config[name] for name in ("dataset", "split", "budget")}
    here = {name: wanted[name] for name in there}
    for name in ("checkpoint", "probe"):
        there[name] = record.record[name]["sha256"]
        here[name] = identity["backbone_sha256" if name == "checkpoint" else "probe_sha256"]
    if differing := [name for name in there if there[name] != here[name]]:
        differences = "; ".join(f"{name}: {there[name]!r} there, {here[name]!r} here" for name in differing)
        raise ValueError(f"{path} is a record of something else than this benchmark is on: {differences}")
    inside = record.scene < identity["num_scenes"]
    if not inside.any():
        raise ValueError(f"{path} has none of the benchmark's scenes, 0 to {identity['num_scenes'] - 1}")
    return label, record.choose(np.flatnonzero(inside))


def keep_people(label: str, record: Evaluation, directory: Path) -> dict[str, str]:
    """Write the record to the benchmark's directory. Returns its entry in the manifest."""
    contents = record.scene.tobytes() + record.viewpoints.tobytes()
    name = re.sub(r"[^a-z0-9.]+", "_", label.lower()).strip("_")
    file = f"people-{name}-{hashlib.sha256(contents).hexdigest()[:12]}.npz"
    record.save(directory / RECORDS / file)
    return {"label": label, "file": file}


def on_scenes(entry: Entry, scenes: NDArray[np.integer]) -> Entry | None:
    """The entry on these scenes, in this order; None if it was not evaluated on all of them."""
    place = {scene: row for row, scene in enumerate(entry.first.scene.tolist())}
    if any(scene not in place for scene in scenes.tolist()):
        return None
    rows = np.array([place[scene] for scene in scenes.tolist()])
    runs = tuple(replace(run, evaluations=tuple(e.choose(rows) for e in run.evaluations)) for run in entry.runs)
    return replace(entry, runs=runs)
