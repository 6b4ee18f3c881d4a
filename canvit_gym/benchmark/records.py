"""A benchmark on disk: its identity, its plan, and one record per evaluation.

    benchmark.json      identity, plan, provenance
    records/*.npz       one Evaluation each: see canvit_gym.evaluation for the arrays
    results.json        every number of the report

Without records/ the report is made from benchmark.json and results.json.

The identity is what all records of a directory share: the environment, its scenes, the checkpoint, the probe and the
versions of the packages that compute. A record's file name contains a key: the hash of the identity, the policy and the
seed. Records with the right key are not computed again, and records with another key are never read.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import canvit_gym
from canvit_gym.backbone.hub import CONFIG, WEIGHTS, locate
from canvit_gym.evaluation import Evaluation
from canvit_gym.policies import POLICY_SPECS, parse_spec

MANIFEST, RECORDS, RESULTS = "benchmark.json", "records", "results.json"
NOT_EVALUATING = ("benchmark/", "cli.py", "command_line.py", "listing.py", "play/", "probes/", "sb3.py", "suite/")
"""Parts of canvit_gym that do not affect evaluations."""
FEW_SCALES, SCALE_DIGITS = 4, 4


def digest(value: Any) -> str:
    """sha256 of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def slug(text: str) -> str:
    """A part of a file's name.

    >>> slug("item_probability(scale=(0.4, 0.24))")
    'item_probability_scale_0.4_0.24'
    """
    return re.sub(r"[^a-z0-9.]+", "_", text.lower())[:100].strip("_")


@cache
def code_sha256() -> str:
    """The hash of the modules that evaluations use, so that records of different code are not mixed."""
    root = Path(canvit_gym.__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(NOT_EVALUATING):
            whole.update(f"{name}\0".encode() + path.read_bytes())
    return whole.hexdigest()


def policy_key(spec: str) -> dict[str, Any]:
    """What the numbers of a hand-coded policy depend on: its name, its arguments, and the contents of the file that
    `path` names and of the probe that `probe` names.

    Raises:
        ValueError: as in parse_spec.
        FileNotFoundError: no such file, or no such probe.
    """
    name, arguments = parse_spec(spec)
    key: dict[str, Any] = {"policy": name, "arguments": repr(sorted(arguments.items()))}
    if path := arguments.get("path"):
        if not Path(path).is_file():
            raise FileNotFoundError(f"policy {spec!r}: there is no file {path}")
        key["file_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if probe := (POLICY_SPECS[name].arguments | arguments).get("probe"):
        key["probe_sha256"] = locate("probe", probe, files=(CONFIG, WEIGHTS)).sha256
    return key


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}


def check_identity(directory: Path, identity: dict[str, Any], *, manifest: str = MANIFEST) -> None:
    """
    Raises:
        ValueError: the directory has another benchmark; the message names every field that differs.
    """
    path = directory / manifest
    if not path.exists():
        return
    ours, theirs = _flat(identity), _flat(read_manifest(directory, name=manifest)["identity"])
    if differing := [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]:
        fields = "; ".join(f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} now" for name in differing)
        raise ValueError(
            f"{directory} holds the records of another benchmark. They differ in {fields}. Choose another --output, or "
            "remove the directory."
        )


def read_manifest(directory: Path, *, name: str = MANIFEST) -> dict[str, Any]:
    """
    Raises:
        FileNotFoundError: no benchmark there.
        ValueError: the manifest is damaged.
    """
    path = directory / name
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {name}: name a directory that canvit-gym benchmark --output wrote")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(_damaged(path, error)) from error
    fields = set(manifest) if isinstance(manifest, dict) else set()
    if missing := {"identity", "plan", "provenance"} - fields:
        raise ValueError(_damaged(path, f"without {', '.join(sorted(missing))}"))
    return manifest


def _damaged(path: Path, how: object) -> str:
    return f"{path} is damaged ({how}): remove the directory and run the benchmark again"


@dataclass(frozen=True)
class Run:
    """A training run of a learned policy, or a seed of a hand-coded one: the unit that is resampled."""

    training: dict[str, Any] | None
    """Directory and weights of a learned policy."""
    seeds: tuple[int, ...]
    evaluations: tuple[Evaluation, ...]
    """One per seed; empty without the records."""


@dataclass(frozen=True)
class Entry:
    """One line of the benchmark's tables."""

    label: str
    spec: str
    description: str
    deterministic: bool
    uses_labels: bool
    learned: bool
    runs: tuple[Run, ...]

    @property
    def first(self) -> Evaluation:
        """The evaluation that represents the policy in pictures."""
        return self.runs[0].evaluations[0]

    @property
    def num_scenes(self) -> int:
        return len(self.first.scene)

    def has(self, scenes: NDArray[np.integer]) -> bool:
        """Whether the policy was evaluated on all scenes with these indices."""
        return bool(np.isin(scenes, self.first.scene).all())

    @property
    def viewpoints(self) -> NDArray[np.float32]:
        """[all scenes and evaluations, T, 3]"""
        return np.concatenate([evaluation.viewpoints for run in self.runs for evaluation in run.evaluations])

    @property
    def scales(self) -> list[float] | None:
        """The scales of the glimpses after the first, largest first; None if there are more than FEW_SCALES."""
        scales = np.unique(self.viewpoints[:, 1:, 2].astype(np.float64).round(SCALE_DIGITS))
        return scales[::-1].tolist() if len(scales) <= FEW_SCALES else None

    @property
    def num_evaluations(self) -> int:
        return sum(len(run.evaluations) for run in self.runs)


@dataclass(frozen=True)
class Benchmark:
    """All evaluations of a benchmark, and its manifest."""

    directory: Path
    manifest: dict[str, Any]
    entries: tuple[Entry, ...]
    people: tuple[Entry, ...] = ()
    """People, on the scenes that they played."""
    numbers: dict[str, Any] | None = None
    """The contents of results.json if there are no records. Single scenes cannot be drawn then."""

    @property
    def reference(self) -> Entry:
        return next(entry for entry in self.entries if entry.label == self.manifest["reference"])

    @property
    def num_scenes(self) -> int:
        """The entries of policies that use no labels."""
        return self.reference.num_scenes

    @property
    def budget(self) -> int:
        return self.manifest["identity"]["config"]["budget"]

    @property
    def metric(self) -> str:
        return self.reference.first.metric


def load_benchmark(directory: Path) -> Benchmark:
    """
    Raises:
        FileNotFoundError: no benchmark there, or an incomplete one.
        ValueError: a damaged file.
    """
    manifest = read_manifest(directory)
    planned = [record for entry in manifest["plan"] for run in entry["runs"] for record in run["records"]]
    missing = [record["file"] for record in planned if not (directory / RECORDS / record["file"]).is_file()]
    numbers = _read_numbers(directory) if len(missing) == len(planned) else None
    if missing and numbers is None:
        raise FileNotFoundError(
            f"{len(missing)} of {len(planned)} records of {directory} are missing, {missing[0]} among them. Make them "
            f"with the command that began it: {manifest['provenance']['command']}"
        )
    entries = tuple(
        Entry(
            label=entry["label"],
            spec=entry["spec"],
            description=entry["description"],
            deterministic=entry["deterministic"],
            uses_labels=entry["uses_labels"],
            learned=entry["learned"],
            runs=tuple(
                Run(
                    training=run["training"],
                    seeds=tuple(record["seed"] for record in run["records"]),
                    evaluations=tuple(
                        Evaluation.load(directory / RECORDS / record["file"])
                        for record in run["records"]
                        if numbers is None
                    ),
                )
                for run in entry["runs"]
            ),
        )
        for entry in manifest["plan"]
    )
    people = _load_people(manifest, directory) if numbers is None else ()
    return Benchmark(directory=directory, manifest=manifest, entries=entries, people=people, numbers=numbers)


def _read_numbers(directory: Path) -> dict[str, Any] | None:
    """Of results.json; None where there is none."""
    path = directory / RESULTS
    if not path.is_file():
        return None
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(_damaged(path, error)) from error
    if not isinstance(numbers, dict) or "policies" not in numbers:
        raise ValueError(_damaged(path, "without policies"))
    return {"people": [], **numbers}  # version 0.1 had no people


def _load_people(manifest: dict[str, Any], directory: Path) -> tuple[Entry, ...]:
    """The people of a benchmark, as entries like those of its policies."""
    return tuple(
        Entry(
            label=kept["label"],
            spec=kept["label"],
            description="people who looked for themselves",
            deterministic=False,
            uses_labels=False,
            learned=False,
            runs=(Run(training=None, seeds=(0,), evaluations=(Evaluation.load(directory / RECORDS / kept["file"]),)),),
        )
        for kept in manifest.get("people", [])
    )
