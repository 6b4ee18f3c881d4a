"""What a suite evaluates: a line for every policy in every environment, and the evaluations that it needs.

In every environment these are the baseline and the ceiling, since shares lie between the two; the hand-coded opponents
that its `Skill` names; and trained policies, both those trained there and all others that fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvit_gym import ENVIRONMENTS
from canvit_gym.assembly import build_backbone
from canvit_gym.benchmark.records import RECORDS, code_sha256, digest, policy_key, slug
from canvit_gym.benchmark.runner import identity, run_name
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.perturbations import PERTURBATIONS, perturbation_named
from canvit_gym.policies import POLICY_SPECS, check_supported, is_trained, make_policy, parse_spec
from canvit_gym.policies.learned import load_record, policy_directory, read_alike, shipped_policies, weights_sha256
from canvit_gym.policies.policy_record import (
    TRAINED_WITH,
    PolicyRecord,
    as_trained,
    describe_inputs,
    has_another_table,
    reads_probe,
    used_layout,
)
from canvit_gym.scenes.datasets import DATASETS, Skill, suite_ids, without_namespace
from canvit_gym.stopping import AT_RANDOM, OWN_ACTION, WHEN_RIGHT, at_confidence, named

HAND_CODED, TRAINED = "hand-coded", "trained"
"""What --policies takes besides names: the opponents of each environment, and every policy that this package ships."""

Role = str
"""A policy's role in an environment: "baseline", "opponent", "ceiling", "trained" (there) or "transfer" (elsewhere)."""


@dataclass(frozen=True)
class Source:
    """Where a policy comes from."""

    text: str
    """A spec as `make_policy` takes it, or the name or directory of a trained policy."""
    key: dict[str, Any]
    """What its numbers depend on; JSON values."""
    record: PolicyRecord | None = None
    """The record of a trained policy."""

    @property
    def name(self) -> str:
        """Its name in tables: for a run directory, the last part."""
        if self.record is None or self.text in shipped_policies():
            return self.text
        return run_name(self.text)

    @property
    def family(self) -> str:
        """The name that groups policies of several environments: its own without arguments, or the algorithm's as in
        the names of shipped policies."""
        if self.record is None:
            return parse_spec(self.text)[0]
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Job:
    """One evaluation, described so that another process can run it."""

    path: Path
    label: str
    config: EnvConfig
    source: str
    trained: bool
    seed: int
    stop: str | None
    """See canvit_gym.stopping.evaluate_with_stops; None: episodes go on to the budget."""
    perturbation: str | None
    """A name in PERTURBATIONS."""
    max_scenes: int | None = None
    """See `evaluate`."""

    @property
    def num_glimpses(self) -> int:
        return (self.max_scenes or self.config.num_scenes or 0) * self.config.budget


@dataclass(frozen=True)
class Line:
    """One policy in one environment."""

    label: str
    role: Role
    source: Source
    stop: str | None
    jobs: tuple[Job, ...]
    """One per seed."""
    perturbed: dict[str, Job] = field(default_factory=dict)
    """By perturbation, with the first seed on some of the scenes."""


@dataclass(frozen=True)
class Part:
    """One environment of the suite."""

    env_id: str
    config: EnvConfig
    skill: Skill
    lines: tuple[Line, ...]
    misfits: dict[str, str]
    """Trained policies that cannot be used here -> why not."""


@dataclass(frozen=True)
class Plan:
    parts: tuple[Part, ...]
    left_out: tuple[str, ...]
    """Sentences about requested policies that do not fit an environment."""

    @property
    def jobs(self) -> list[Job]:
        return [
            job
            for part in self.parts
            for line in part.lines
            for job in (*line.jobs, *line.perturbed.values())
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a suite should evaluate."""

    output: Path
    envs: tuple[str, ...]
    policies: tuple[str, ...]
    perturbations: tuple[str, ...]
    split: str
    num_scenes: int
    perturbed_scenes: int
    seeds: int
    device: str
    modules: tuple[str, ...] = ()
    """Modules that register environments or perturbations among these; worker processes import them too."""


def stop_rules(skill: Skill, *, allow_stop: bool) -> dict[Role, str | None]:
    """Where the hand-coded policies of each role stop; None: they go on to the budget."""
    sure = None if skill.stop_confidence is None else at_confidence(skill.stop_confidence)
    rules: dict[Role, str | None] = {
        "baseline": AT_RANDOM,
        "opponent": sure,
        "ceiling": WHEN_RIGHT if skill.ceiling_stops_when_right else sure,
    }
    return rules if allow_stop else dict.fromkeys(rules)


def skills_table() -> str:
    """A Markdown table of the suite's environments and what policies are compared with there, for the documentation."""
    lines = ["| environment | skill | baseline | ceiling | hand-coded opponents |", "| --- | --- | --- | --- | --- |"]
    for env_id, skill in suite_ids().items():
        stops = stop_rules(skill, allow_stop=ENVIRONMENTS[env_id].get("allow_stop", EnvConfig.allow_stop))
        baseline, ceiling = named(skill.baseline, stops["baseline"]), named(skill.ceiling, stops["ceiling"])
        opponents = "; ".join(f"`{named(spec, stops['opponent'])}`" for spec in skill.opponents)
        lines.append(f"| {without_namespace(env_id)} | {skill.name} | `{baseline}` | `{ceiling}` | {opponents} |")
    return "\n".join(lines)


def check_names(wanted: Wanted) -> None:
    """Raise ValueError if an environment, a policy or a perturbation does not exist."""
    if unknown := [env_id for env_id in wanted.envs if env_id not in suite_ids()]:
        raise ValueError(f"{', '.join(unknown)} is no environment of the suite; there are: {', '.join(suite_ids())}")
    for name in wanted.perturbations:
        perturbation_named(name)
    for name in wanted.policies:
        if is_trained(name):
            load_record(name)
        elif name not in (HAND_CODED, TRAINED):
            parse_spec(name)


def make_plan(wanted: Wanted) -> Plan:
    """
    Raises:
        FileNotFoundError: a trained policy that does not exist.
        ValueError: an unknown name, or policies given twice.
    """
    check_names(wanted)
    trained = _trained_sources(wanted.policies)
    left_out: list[str] = []
    parts = []
    for env_id in wanted.envs:
        config = env_config(
            env_id, {"split": wanted.split, "num_scenes": wanted.num_scenes, "device": wanted.device}
        )  # fmt: skip
        skill = suite_ids()[env_id]
        lines = _hand_coded_lines(wanted, env_id, config, skill, left_out)
        misfits = {}
        for source in trained:
            assert source.record is not None
            if (why := misfit(source.record, config)) is not None:
                misfits[source.name] = why
                continue
            home = source.record.env.dataset == config.dataset
            lines.append(_line(wanted, env_id, config, source, "trained" if home else "transfer", _own_stop(config)))
        parts.append(Part(env_id=env_id, config=config, skill=skill, lines=tuple(lines), misfits=misfits))
    return Plan(parts=tuple(parts), left_out=tuple(left_out))


def _trained_sources(policies: Sequence[str]) -> list[Source]:
    names = [name for name in policies if is_trained(name)]
    if TRAINED in policies:
        names = [
            *shipped_policies(),
            *(name for name in names if name.removeprefix("CanViT/") not in shipped_policies()),
        ]
    sources = []
    for name in names:
        record = load_record(name)
        weights = weights_sha256(policy_directory(name))
        trained_with = {field: record.env.to_json()[field] for field in TRAINED_WITH}
        key = {"weights_sha256": weights, "trained_with": trained_with}
        sources.append(Source(name.removeprefix("CanViT/"), key, record))
    called = [source.name for source in sources]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise ValueError(f"several trained policies are called {', '.join(twice)}: give their directories other names")
    return sources


def _hand_coded_lines(wanted: Wanted, env_id: str, config: EnvConfig, skill: Skill, left_out: list[str]) -> list[Line]:
    stops = stop_rules(skill, allow_stop=config.allow_stop)
    # A policy with a stop rule is not the same policy as without one.
    ends = (skill.baseline,) if skill.ceiling_stops_when_right else (skill.baseline, skill.ceiling)
    chosen: list[tuple[str, Role]] = [(skill.baseline, "baseline")]
    for name in wanted.policies:
        specs = skill.opponents if name == HAND_CODED else () if name == TRAINED or is_trained(name) else (name,)
        chosen += [(spec, "opponent") for spec in specs if (spec, "opponent") not in chosen and spec not in ends]
    chosen.append((skill.ceiling, "ceiling"))
    lines = []
    for spec, role in chosen:
        name, _ = parse_spec(spec)
        task, grid = DATASETS[config.dataset].task, build_backbone(config).canvas_grid
        try:
            check_supported(POLICY_SPECS[name].info, task, grid)
            source = Source(spec, policy_key(spec))
            lines.append(_line(wanted, env_id, config, source, role, stops[role]))
        except ValueError as error:
            if spec in (skill.baseline, skill.ceiling, *skill.opponents):
                raise
            left_out.append(f"{spec} in {env_id}: {error}")
    return lines


def _own_stop(config: EnvConfig) -> str | None:
    return OWN_ACTION if config.allow_stop else None


def _line(wanted: Wanted, env_id: str, config: EnvConfig, source: Source, role: Role, stop: str | None) -> Line:
    label = named(source.name, stop)
    deterministic = True
    if source.record is None:
        deterministic = make_policy(source.text, config=config, num_glimpses=config.budget).info.deterministic
    seeds = range(1 if deterministic and stop != AT_RANDOM else wanted.seeds)
    fewer = min(wanted.perturbed_scenes, wanted.num_scenes)
    used = config if source.record is None else as_trained(config, source.record)
    of_line = {"identity": identity(config, env_id), "code": code_sha256(), "policy": source.key, "stop": stop}

    def job(seed: int, max_scenes: int | None, perturbation: str | None) -> Job:
        key = digest(
            {
                **of_line,
                "max_scenes": max_scenes,
                "seed": seed,
                "perturbation": None if perturbation is None else PERTURBATIONS[perturbation].record(),
            }
        )
        under = "" if perturbation is None else f"-{perturbation}"
        short = without_namespace(env_id)
        return Job(
            path=wanted.output / RECORDS / short / f"{slug(label)}-{role}-seed{seed}{under}-{key[:12]}.npz",
            label=f"{short}, {label}, seed {seed}" + ("" if perturbation is None else f", {perturbation}"),
            config=used,
            source=source.text,
            trained=source.record is not None,
            seed=seed,
            stop=stop,
            perturbation=perturbation,
            max_scenes=max_scenes,
        )

    best = source.text == suite_ids()[env_id].opponents[0]
    tried = wanted.perturbations if role in ("baseline", "trained") or (role == "opponent" and best) else ()
    return Line(
        label=label,
        role=role,
        source=source,
        stop=stop,
        jobs=tuple(job(seed, None, None) for seed in seeds),
        perturbed={name: job(0, fewer, name) for name in tried},
    )


def misfit(record: PolicyRecord, config: EnvConfig) -> str | None:
    """Why a trained policy cannot be used in an environment; None if it can.

    It uses its own observations and table of viewpoints, since viewpoints mean the same everywhere. Budget, goal, price
    and probe are the environment's; so is the table if each viewpoint may be taken only once.
    """
    if config.allow_stop and not record.env.allow_stop:
        return "it has no stop action"
    if has_another_table(record, config):
        return "each viewpoint of a table may be taken once, and the policy has another table"
    if DATASETS[config.dataset].task not in read_alike(DATASETS[record.env.dataset].task):
        return "the task is read in another shape"
    try:
        found = describe_inputs(as_trained(config, record))
    except ValueError as error:
        return str(error)
    if found.backbone_sha256 != record.inputs.backbone_sha256:
        return "it was trained on another checkpoint"
    if used_layout(found.layout) != used_layout(record.inputs.layout):
        return "its observations have other shapes"
    if reads_probe(found.layout) and found.probe_sha256 != record.inputs.probe_sha256:
        return "it sees what another probe reads"
    return None
