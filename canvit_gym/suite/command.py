"""Measure the suite: one skill per environment, how well each policy does, and how well under perturbations.

    canvit-gym suite --output runs/suite
    canvit-gym suite --output runs/suite --policies hand-coded --num-scenes 100

The output directory then holds suite.html (one file), suite.md, radar.svg and results.json, and the evaluations from
which they are made, in records/. To continue an interrupted suite, run the same command again: what is in records/ is
not computed again. Environments, policies, seeds and perturbations can be added in the same way; another split or
number of scenes needs another directory.

Every environment is measured with its baseline and its ceiling, since shares lie between the two. Trained policies are
also evaluated in every other environment that they fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from canvit_gym.atomic import write_json
from canvit_gym.backbone.load import resolve_device
from canvit_gym.benchmark.records import check_identity
from canvit_gym.command_line import GOES_ON, PROGRAM, bare_env_id, output_directory, run_command
from canvit_gym.escaping import visible
from canvit_gym.perturbations import PERTURBATIONS
from canvit_gym.provenance import provenance
from canvit_gym.scenes.datasets import suite_ids
from canvit_gym.suite.numbers import numbers_of
from canvit_gym.suite.page import write_pages
from canvit_gym.suite.plan import HAND_CODED, TRAINED, Wanted, check_names, make_plan
from canvit_gym.suite.run import do_missing

RESULTS, MANIFEST = "results.json", "suite.json"


@dataclass(frozen=True)
class SuiteConfig:
    output: Path
    """Directory of the records and the report."""
    envs: tuple[str, ...] | None = None
    """Environment ids. None: all of the suite. A module that registers one of your own, or perturbations, can be named
    before an id: my_module:Mine/Id-v0."""
    policies: tuple[str, ...] = (HAND_CODED, TRAINED)
    """"hand-coded" (the opponents of each environment), "trained" (all that this package ships), and by name: a
    hand-coded policy with arguments where it takes some, a shipped policy such as FashionSearch-v0/ppo, or the
    directory of a training run."""
    perturbations: tuple[str, ...] = ("all",)
    """"all", "none", or names, for the robustness tables."""
    split: Literal["training", "validation", "test"] = "test"
    num_scenes: int = 500
    perturbed_scenes: int = 200
    """How many of these, from the first on, are evaluated under perturbations."""
    seeds: int = 3
    """Of policies that draw random numbers."""
    workers: int | None = None
    """Processes that evaluate. 0: this one. None: one per CPU core, and this one on a GPU."""
    batch_size: int = 64
    device: str = "auto"
    progress: bool = True


def wanted_of(config: SuiteConfig) -> Wanted:
    """The options as a Wanted, checked.

    Raises:
        ValueError: an invalid option.
        FileNotFoundError: a trained policy that does not exist.
    """
    for name in ("num_scenes", "perturbed_scenes", "seeds", "batch_size"):
        if (value := getattr(config, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if config.workers is not None and config.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {config.workers}")
    own = [env_id for env_id in config.envs or () if ":" in env_id]
    ids = suite_ids() if config.envs is None else [bare_env_id(e) if e in own else e for e in config.envs]
    perturbations = {"all": tuple(PERTURBATIONS), "none": ()}.get(" ".join(config.perturbations), config.perturbations)
    if mixed := {"all", "none"} & set(perturbations):
        raise ValueError(f"--perturbations takes {mixed.pop()!r} alone, or names: {', '.join(PERTURBATIONS)}")
    wanted = Wanted(
        output=config.output,
        envs=_once(ids, option="--envs"),
        policies=_once(config.policies, option="--policies"),
        perturbations=_once(perturbations, option="--perturbations"),
        split=config.split,
        num_scenes=config.num_scenes,
        perturbed_scenes=min(config.perturbed_scenes, config.num_scenes),
        seeds=config.seeds,
        device=config.device,
        modules=tuple(dict.fromkeys(env_id.rpartition(":")[0] for env_id in own)),
    )
    check_names(wanted)
    return wanted


def _once(names: Sequence[str] | dict[str, Any], *, option: str) -> tuple[str, ...]:
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise ValueError(f"{option} names {', '.join(twice)} twice: name each once")
    return tuple(names)


def identity_of(wanted: Wanted, origin: dict[str, Any]) -> dict[str, Any]:
    """What all records of a directory share; everything else about an evaluation is in the name of its record."""
    versions = origin["versions"]
    return {
        "split": wanted.split,
        "num_scenes": wanted.num_scenes,
        "perturbed_scenes": wanted.perturbed_scenes,
        "device": resolve_device(wanted.device).type,
        "versions": {name: versions[name] for name in ("canvit-gym", "canvit-pytorch", "torch", "numpy")},
    }


def run_suite(config: SuiteConfig) -> Path:
    """Run the missing evaluations, then write the report; returns its path."""
    wanted = wanted_of(config)
    output = output_directory(config.output, option="--output")
    wanted = Wanted(**{**vars(wanted), "output": output})
    origin = provenance()
    shared = identity_of(wanted, origin)
    check_identity(output, shared, manifest=MANIFEST)
    plan = make_plan(wanted)
    described = [
        {"env": part.env_id, "policies": {line.label: [job.path.name for job in line.jobs] for line in part.lines}}
        for part in plan.parts
    ]
    write_json(output / MANIFEST, {"identity": shared, "plan": described, "provenance": origin})
    do_missing(
        plan.jobs,
        batch_size=config.batch_size,
        workers=config.workers,
        progress=config.progress,
        modules=wanted.modules,
    )
    results = {**numbers_of(plan), "identity": shared, "provenance": provenance()}
    write_json(output / RESULTS, results)
    report = write_pages(results, output)
    print(f"Report: {visible(str(report))}")
    return report


def command_line(arguments: Sequence[str]) -> None:
    """`canvit-gym suite`."""
    run_command(
        run_suite,
        SuiteConfig,
        description=__doc__,
        arguments=arguments,
        prog=f"{PROGRAM} suite",
        if_interrupted=GOES_ON,
    )
