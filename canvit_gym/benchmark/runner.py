r"""Benchmark policies on one environment: all policies on the same scenes, with intervals and a report.

    canvit-gym benchmark --env CanViT/FashionSegmentation-v0 --budget 5 \
        --learned ppo=runs/seed0/best,runs/seed1/best,runs/seed2/best \
        --output experiments/results/benchmark/fashion_segmentation_b5

The output directory then contains report.html (self-contained), results.md, results.json, scenes.csv, figures/ and
gallery/, and the records from which they are made: records/*.npz, one per policy and seed, with the viewpoints, losses
and counts of every scene and glimpse.

Run the same command again to continue an interrupted benchmark: evaluations in records/ are not repeated, and the
result is the same. Policies and seeds can be added in the same way. `canvit-gym report --results DIR` rewrites the
report from the records, without a model.

All glimpses of the budget are taken, also where episodes can be stopped: what FashionStop pays is measured by
`canvit-gym suite --envs CanViT/FashionStop-v0 --output DIR`.

Policies with random choices are evaluated with seeds 0, 1, ..., others once. Policies that use labels (ceilings) cost a
forward per candidate. They only see `oracle_scenes` of the scenes, and are compared with others on those scenes.
"""

import glob
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from canvit_gym.assembly import build_backbone, build_task, classes_of, listed_scenes
from canvit_gym.atomic import write_json
from canvit_gym.backbone.load import Backbone
from canvit_gym.benchmark.comparison import run_warnings
from canvit_gym.benchmark.gallery import draw_gallery
from canvit_gym.benchmark.options import EvaluationOptions
from canvit_gym.benchmark.people import is_people, keep_people, read_people
from canvit_gym.benchmark.records import (
    MANIFEST,
    RECORDS,
    check_identity,
    code_sha256,
    digest,
    load_benchmark,
    policy_key,
    slug,
)
from canvit_gym.benchmark.report import write_report
from canvit_gym.checks import integer
from canvit_gym.command_line import GOES_ON, PROGRAM, output_directory, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.escaping import visible
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import (
    POLICY_NAMES,
    POLICY_SPECS,
    GlimpsePolicy,
    check_supported,
    is_trained,
    make_policy,
    parse_spec,
    supported_tasks,
)
from canvit_gym.policies.learned import (
    LearnedPolicy,
    load_as_trained,
    load_record,
    policy_directory,
    weights_sha256,
)
from canvit_gym.policies.policy_record import TRAINED_WITH
from canvit_gym.policies.released import is_released
from canvit_gym.provenance import provenance
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.tasks import metric_named
from canvit_gym.versions import package_version

DEFAULT_POLICIES = (
    *(name for name, spec in POLICY_SPECS.items() if spec.by_default),
    "center(scale=0.55)",
    "raster(scale=0.5)",
)

NOT_IDENTIFYING = ("device", "workers", "cache", "observations", "reward", "glimpse_cost", "allow_stop", "track_score")
"""Fields of the configuration that do not affect hand-coded policies; learned ones have their own values."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(EvaluationOptions):
    output: Path
    """Directory of the records and the report."""
    policies: tuple[str, ...] | None = None
    """Hand-coded policies, optionally with arguments: "center(scale=0.55)"; or trained ones, each a policy of its own:
    shipped policies such as FashionStop-v0/ppo, run directories, or user/name on the Hub. None: all hand-coded ones
    that support the environment and, in one of the suite, its opponents and its ceiling with their tuned scales."""
    also: tuple[str, ...] = ()
    """Additional policies, for example with other arguments. And people, as human=FILE, with a file from
    `canvit-gym play --record FILE`."""
    learned: tuple[str, ...] = ()
    """Learned policies with one or more training runs, as name=directory,directory,... Shipped policies, such
    as FashionStop-v0/ppo, may stand for directories. They are evaluated with their most likely viewpoints and, if they
    have probabilities, with sampled ones."""
    seeds: int = 5
    """Seeds of policies with random choices. Sampled learned policies divide them among their training runs."""
    reference: str = "coarse_to_fine"
    """The policy that all others are compared with, as named in policies."""
    oracle_scenes: int = 200
    """Number of scenes for policies that use labels."""
    gallery_policy: str | None = None
    """Label of the policy whose best, median and worst scenes against the reference the gallery shows. None: the best
    learned policy, or else the best that uses no labels."""


@dataclass(frozen=True)
class Evaluable:
    """A policy that can be evaluated, and what determines its numbers."""

    policy: GlimpsePolicy
    config: EnvConfig
    key: dict[str, Any]
    max_scenes: int | None = None
    """See `evaluate`."""
    training: dict[str, Any] | None = None

    @property
    def num_glimpses(self) -> int:
        """In all scenes together."""
        with listed_scenes(self.config) as scenes:
            num_scenes = len(scenes)
        return min(num_scenes, self.max_scenes or num_scenes) * self.config.budget


@dataclass(frozen=True)
class Planned:
    """A row of the tables: runs of a policy, and the seeds to evaluate each with."""

    label: str
    spec: str
    learned: bool
    runs: tuple[Evaluable, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class PendingEvaluation:
    """One evaluation to do."""

    path: Path
    label: str
    evaluable: Evaluable
    seed: int


@dataclass(frozen=True)
class Plan:
    entries: tuple[Planned, ...]
    left_out: list[str] = field(default_factory=list)


def identity(config: EnvConfig, env_id: str) -> dict[str, Any]:
    """What all records of a directory share, as JSON values without this machine's directories."""
    with listed_scenes(config) as scenes:  # a wrong root is told before any download
        name, num_scenes, classes = scenes.name, len(scenes), scenes.classes
    backbone = build_backbone(config)
    task = build_task(config, backbone, classes)
    values = {name: value for name, value in config.to_json().items() if name not in NOT_IDENTIFYING}
    values["root"] = Path(config.root).name if config.root else None
    return {
        "environment": env_id,
        "config": values,
        "scenes": name,
        "num_scenes": num_scenes,
        "task": task.name,
        "backbone_sha256": backbone.sha256,
        "probe_sha256": task.probe_sha256,
        "device": backbone.device.type,
        "versions": {name: package_version(name) for name in ("canvit-gym", "canvit-pytorch", "torch", "numpy")},
    }


def plan(config: BenchmarkConfig, env: EnvConfig) -> Plan:
    """Decide what to evaluate. Searches the best fixed sequence if it is needed and not cached.

    Raises:
        ValueError: an unknown policy, one that does not support the environment, or no policies.
    """
    backbone = build_backbone(env)
    task_name = build_task(env, backbone, classes_of(env)).name
    entries: list[Planned] = []
    left_out: list[str] = []
    specs = config.policies
    if specs is None:
        specs, left_out = _supported(default_policies(env), task_name, backbone)
    for spec in (*specs, *(spec for spec in config.also if not is_people(spec))):
        if is_trained(spec):
            entries += _learned(run_name(spec), [spec], config, env)
        else:
            entries.append(_hand_coded(spec, config, env))
    for group in config.learned:
        entries += _learned(*_training_runs(group), config, env)
    if not entries:
        raise ValueError(
            f"no policies to benchmark: name some with --policies ({', '.join(POLICY_NAMES)}), or leave the option out"
        )
    if twice := [spec for spec, count in Counter(entry.spec for entry in entries).items() if count > 1]:
        raise ValueError(f"policies given twice: {', '.join(twice)}; name each once")
    labels = Counter(entry.label for entry in entries)
    entries = [replace(entry, label=entry.spec) if labels[entry.label] > 1 else entry for entry in entries]
    return Plan(entries=tuple(entries), left_out=left_out)


def default_policies(env: EnvConfig) -> tuple[str, ...]:
    """What is benchmarked if no policies are named, whether it supports the environment or not."""
    skill = DATASETS[env.dataset].skill
    of_suite = () if skill is None else (*skill.opponents, skill.ceiling)
    return tuple(dict.fromkeys((*DEFAULT_POLICIES, *of_suite)))


def _training_runs(group: str) -> tuple[str, list[str]]:
    """Split name=directory,directory,... A directory may contain commas if it is the only one.

    Raises:
        ValueError: another form.
    """
    name, equals, directories = group.partition("=")
    if not (name and equals and directories.strip(",")):
        raise ValueError(f"--learned takes name=directory,directory,..., got {group!r}")
    if Path(directories).expanduser().is_dir():
        return name, [directories]
    return name, [directory for directory in directories.split(",") if directory]


def run_name(directory: str) -> str:
    """The name of a run directory, also for its best/ or last/."""
    path = Path(directory)
    return path.parent.name if path.name in ("best", "last") and path.parent.name else path.name


def _supported(specs: tuple[str, ...], task_name: str, backbone: Backbone) -> tuple[tuple[str, ...], list[str]]:
    """The specs that support the environment, and a line for the report for each reason why others do not."""
    supported: list[str] = []
    left_out: dict[str, list[str]] = {}
    for spec in specs:
        info = POLICY_SPECS[parse_spec(spec)[0]].info
        try:
            check_supported(info, task_name, backbone.canvas_grid)
            supported.append(spec)
        except ValueError:
            reason = f"{' and '.join(supported_tasks(info))} only"
            if info.tasks is None:
                reason = "needs a segmentation probe"
            if task_name in supported_tasks(info):
                reason = f"for canvas grids that are a {info.canvas_grids}, not {backbone.canvas_grid}"
            left_out.setdefault(reason, []).append(spec)
    return tuple(supported), [f"Left out ({reason}): {', '.join(of_reason)}." for reason, of_reason in left_out.items()]


def evaluable(spec: str, env: EnvConfig, *, deterministic: bool = True, progress: bool = False) -> Evaluable:
    """A single policy: a hand-coded one by its spec, or a learned one by its directory."""
    if is_trained(spec):
        return _trained(spec, env, deterministic=deterministic)
    policy = make_policy(spec, config=env, num_glimpses=env.budget, progress=progress)
    return Evaluable(policy=policy, config=env, key=policy_key(spec))


def _hand_coded(spec: str, config: BenchmarkConfig, env: EnvConfig) -> Planned:
    policy = make_policy(spec, config=env, num_glimpses=env.budget, progress=config.progress)
    max_scenes = None
    key = policy_key(spec)
    if policy.info.uses_labels:
        with listed_scenes(env) as scenes:
            max_scenes = min(config.oracle_scenes, len(scenes))
        key["num_scenes"] = max_scenes
    return Planned(
        label=policy.info.paper_name,
        spec=spec.strip(),
        learned=False,
        runs=(Evaluable(policy=policy, config=env, key=key, max_scenes=max_scenes),),
        seeds=(0,) if policy.info.deterministic else tuple(range(config.seeds)),
    )


def _learned(name: str, directories: list[str], config: BenchmarkConfig, env: EnvConfig) -> list[Planned]:
    """A row with the most likely viewpoints, and one with sampled ones if the policies have probabilities."""
    if twice := [d for d, count in Counter(directories).items() if count > 1]:
        raise ValueError(f"learned policy {name!r} names a directory twice: {', '.join(twice)}")
    lines = []
    for deterministic in (True, False):
        if lines and not all(isinstance(run.policy, LearnedPolicy) and run.policy.can_sample for run in lines[0].runs):
            break
        runs = tuple(_trained(directory, env, deterministic=deterministic) for directory in directories)
        random = not runs[0].policy.info.deterministic
        num_seeds = -(-config.seeds // len(runs)) if random else 1
        label = name if deterministic else f"{name}, sampled"
        lines.append(Planned(label=label, spec=label, learned=True, runs=runs, seeds=tuple(range(num_seeds))))
    return lines


def _trained(directory: str, env: EnvConfig, *, deterministic: bool) -> Evaluable:
    """
    Raises:
        FileNotFoundError: no policy there.
        ValueError: a policy of another environment, checkpoint or probe.
    """
    where = policy_directory(directory)
    record = None if is_released(where) else load_record(where)
    if record is not None and record.env.dataset != env.dataset:
        raise ValueError(
            f"the policy in {directory} was trained on {record.env_id} (data set {record.env.dataset!r}), but this "
            f"benchmark is on {env.dataset!r}: choose a policy trained on it, or --env {record.env_id}"
        )
    # Where it was found, not to ask the Hub again; but a released policy is called as it was asked for.
    policy, own = load_as_trained(directory if record is None else where, env, deterministic=deterministic)
    weights = weights_sha256(where)
    return Evaluable(
        policy=policy,
        config=own,
        key={
            "weights_sha256": weights,
            "trained_with": {name: own.to_json()[name] for name in TRAINED_WITH},
            "deterministic": deterministic,
        },
        training={
            "directory": directory,
            "weights_sha256": weights,
            # None where it is not known, of policies that CanViT's authors released.
            "env_id": record and record.env_id,
            "budget": record and record.env.budget,
            "training": record.training if record else {},
        },
    )


def _find_reference(name: str, entries: tuple[Planned, ...]) -> Planned:
    for entry in entries:
        if name in (entry.spec, entry.label):
            if entry.runs[0].policy.info.uses_labels:
                raise ValueError(f"reference {name!r} uses labels: compare policies with one that does not")
            return entry
    names = ", ".join(entry.spec for entry in entries)
    raise ValueError(f"reference {name!r} is not among the policies ({names}): add it, or choose another --reference")


def _require_gallery_policy(name: str | None, entries: tuple[Planned, ...], reference: Planned) -> None:
    named = [entry for entry in entries if name in (entry.spec, entry.label)]
    if reference in named:
        raise ValueError(f"gallery policy {name!r} is the reference: choose another")
    if name is not None and not named:
        others = [e.label for e in entries if e is not reference and not e.runs[0].policy.info.uses_labels]
        there = ", ".join(others) or "none beside the reference"
        raise ValueError(f"gallery policy {name!r} is not in this benchmark; there are: {there}")


def _records(entry: Planned, shared: dict[str, Any], directory: Path) -> list[list[PendingEvaluation]]:
    """The evaluations of an entry: [runs][seeds]."""
    runs = []
    for place, evaluable in enumerate(entry.runs):
        of_run = []
        for seed in entry.seeds:
            key = digest({"identity": shared, "code": code_sha256(), "policy": evaluable.key, "seed": seed})
            run = f"-run{place}" if entry.learned else ""
            path = directory / RECORDS / f"{slug(entry.spec)}{run}-seed{seed}-{key[:12]}.npz"
            label = f"{entry.label}, run {place + 1}" if len(entry.runs) > 1 else entry.label
            of_run.append(PendingEvaluation(path=path, label=label, evaluable=evaluable, seed=seed))
        runs.append(of_run)
    return runs


def _described(entry: Planned, records: list[list[PendingEvaluation]]) -> dict[str, Any]:
    """An entry of the manifest's plan."""
    info = entry.runs[0].policy.info
    return {
        "label": entry.label,
        "spec": entry.spec,
        "description": info.description,
        "deterministic": info.deterministic,
        "uses_labels": info.uses_labels,
        "learned": entry.learned,
        "runs": [
            {
                "training": run.training,
                "records": [{"file": r.path.name, "seed": r.seed} for r in of_run],
            }
            for run, of_run in zip(entry.runs, records, strict=True)
        ],
    }


def evaluate_missing(records: list[PendingEvaluation], *, batch_size: int, progress: bool) -> None:
    """Evaluate every record that does not exist yet, with one progress bar for all of them."""
    planned = {record.path for record in records}
    missing = [record for record in records if not record.path.exists()]
    if done := len(records) - len(missing):
        print(f"{done} of {len(records)} evaluations are already in {records[0].path.parent}")
    total = sum(r.evaluable.num_glimpses for r in missing)
    with tqdm(total=total, unit="glimpse", disable=None if progress else True, smoothing=0.05) as bar:
        for place, record in enumerate(missing):
            label = visible(f"{record.label}, seed {record.seed}")
            bar.set_description(f"{place + 1}/{len(missing)} {label}")
            began = time.monotonic()
            evaluation = evaluate(
                record.evaluable.policy,
                config=record.evaluable.config,
                max_scenes=record.evaluable.max_scenes,
                batch_size=batch_size,
                seed=record.seed,
                on_glimpse=_advance(bar),
            )
            evaluation.save(record.path)
            _remove_outdated(record.path, planned=planned)
            loss = metric_named(evaluation.metric).loss
            bar.write(
                f"{label}: {evaluation.metric} {100 * evaluation.score()[-1]:.2f} %, "
                f"{loss.name} {evaluation.mean_loss()[-1]:.4f} on {len(evaluation.scene)} scenes "
                f"({time.monotonic() - began:.1f} s)"
            )


def _remove_outdated(path: Path, *, planned: set[Path]) -> None:
    """Remove records of the same policy and seed with another key: of other weights, or other code."""
    name = path.stem.rsplit("-", 1)[0]
    for other in path.parent.glob(f"{glob.escape(name)}-????????????.npz"):
        if other not in planned:
            other.unlink()


def _advance(bar: "tqdm[Any]") -> Callable[[int, EpisodeBatch], None]:
    def on_glimpse(_: int, episodes: EpisodeBatch) -> None:
        bar.update(episodes.num)

    return on_glimpse


def benchmark(config: BenchmarkConfig) -> Path:
    """Run the missing evaluations, then write the report. Returns its path."""
    integer(1)("--seeds", config.seeds)
    integer(1)("--oracle-scenes", config.oracle_scenes)
    env = config.env_config()
    config = replace(config, output=output_directory(config.output, option="--output"))
    shared = identity(env, config.env)
    check_identity(config.output, shared)
    groups = [spec for spec in config.also if is_people(spec)]
    with listed_scenes(env) as scenes:
        people = [read_people(spec, shared, scenes=scenes, backbone=build_backbone(env)) for spec in groups]
    planned = plan(config, env)
    reference = _find_reference(config.reference, planned.entries)
    _require_gallery_policy(config.gallery_policy, planned.entries, reference)
    records = [_records(entry, shared, config.output) for entry in planned.entries]
    manifest: dict[str, Any] = {
        "identity": shared,
        "reference": reference.label,
        "left_out": planned.left_out,
        "plan": [_described(entry, of_entry) for entry, of_entry in zip(planned.entries, records, strict=True)],
        "people": [keep_people(label, record, config.output) for label, record in people],
        "provenance": provenance(),
    }
    write_json(config.output / MANIFEST, manifest)
    flat = [record for of_entry in records for of_run in of_entry for record in of_run]
    evaluate_missing(flat, batch_size=config.batch_size, progress=config.progress)

    done = load_benchmark(config.output)
    for line in (*planned.left_out, *(f"Warning: {warning}" for warning in run_warnings(done.entries))):
        print(visible(line))
    draw_gallery(done, config=env, policy=config.gallery_policy)
    report = write_report(load_benchmark(config.output))
    print(f"Report: {visible(str(report))}")
    return report


def command_line(arguments: Sequence[str]) -> None:
    """`canvit-gym benchmark`."""
    logging.basicConfig(level=logging.WARNING)
    run_command(
        benchmark,
        BenchmarkConfig,
        description=__doc__,
        arguments=arguments,
        prog=f"{PROGRAM} benchmark",
        if_interrupted=GOES_ON,
    )
