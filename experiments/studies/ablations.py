"""What matters to PPO on glimpses: one change at a time, several seeds, exact evaluation on validation scenes.

    python -m experiments.studies.ablations --list
    python -m experiments.studies.ablations --decisions 60000 --variants base gamma=0.0 gamma=0.5
    python -m experiments.studies.ablations --decisions 60000 --shard 0 2    # beside it, in another shell: --shard 1 2

A variant is the entry of agents/hyperparameters/ppo.yml with one change; `base` has none. Every (variant, seed) is a
separate run of agents.train, on the first --num-scenes training scenes (prepared once), in
runs-dir/ENV/DECISIONSxSCENES/VARIANT/seed0. Finished runs are not repeated, and interrupted ones continue. The report,
experiments/results/ablations/ENV.json and .md, is written at the end from all finished runs in that directory,
whichever process ran them.

Scores are those of the last policy after the last glimpse. IQM is the interquartile mean over seeds and scenes of the
mIoU of single scenes, or of the cross-entropy if a scene can only be right or wrong. Intervals are 95% bootstrap
intervals over seeds and scenes; differences are paired by scene.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.algorithms import load_hyperparameters
from agents.intervals import with_interval
from agents.ppo.hyperparameters import REWARDS_ALONE
from agents.run_directory import CONFIG, RESULT
from agents.settings import TrainConfig
from agents.train_once import complete, require_same_run
from canvit_gym.atomic import write_text
from canvit_gym.benchmark.comparison import per_scene
from canvit_gym.command_line import GOES_ON, env_config, json_object, run_command
from canvit_gym.config import override
from canvit_gym.evaluation import Evaluation, evaluate, loss_statistic, score_statistic
from canvit_gym.policies.learned import load_policy, load_record
from canvit_gym.provenance import plain, provenance
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.statistics import InterquartileMean, bootstrap_interval, paired_difference
from canvit_gym.tasks import is_compared_by_score
from experiments.throughput.ppo import learn_rollouts, ppo_for_throughput

BASE = "base"


@dataclass(frozen=True)
class Variant:
    """One change of the base."""

    group: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    hyper: dict[str, Any] = field(default_factory=dict)


def _policy(**kwargs: Any) -> dict[str, Any]:
    return {"policy_kwargs": kwargs}


_CONTINUOUS = {"action": "continuous", "min_scale": 0.25}
_KEYS = ("canvas", "uncertainty", "acuity", "viewpoint", "gaze", "time", "cls")

VARIANTS: dict[str, Variant] = {
    BASE: Variant("base"),
    "reward=loss_reduction": Variant("reward", {"reward": "loss_reduction"}),
    "reward=relative_loss_reduction": Variant("reward", {"reward": "relative_loss_reduction"}),
    "reward=score_gain": Variant("reward", {"reward": "score_gain"}),
    "reward=soft_score_gain": Variant("reward", {"reward": "soft_score_gain"}),
    "normalize_reward=pooled": Variant("reward scale", hyper={"normalize_reward": "pooled"}),
    "normalize_reward=per_step": Variant("reward scale", hyper={"normalize_reward": "per_step"}),
    "normalize_reward=none": Variant("reward scale", hyper={"normalize_reward": None}),
    "clip_reward=none": Variant("reward scale", hyper={"clip_reward": None}),
    **{f"gamma={gamma}": Variant("discount", hyper={"gamma": gamma}) for gamma in (0.0, 0.5, 0.9, 1.0)},
    "scales=0.5,0.375": Variant("scales", {"grid_scales": [0.5, 0.375]}),
    "scales=0.34,0.24": Variant("scales", {"grid_scales": [0.34, 0.24]}),
    "action=quadtree": Variant("action", {"action": "quadtree"}),
    "action=gaussian": Variant("action", _CONTINUOUS, _policy(distribution="gaussian")),
    "action=tanh_gaussian": Variant("action", _CONTINUOUS, _policy(distribution="tanh_gaussian")),
    "action=beta": Variant("action", _CONTINUOUS, _policy(distribution="beta")),
    **{
        f"network={name}": Variant("network", hyper=_policy(network=name))
        for name in ("window", "conv", "pointer", "mlp")
    },
    "separable=true": Variant("network", hyper=_policy(separable=True)),
    "blocks=1": Variant("network", hyper=_policy(blocks=1)),
    **{f"without {key}": Variant("observation") for key in _KEYS if key != "cls"},
    "without gaze": Variant("observation", hyper=_policy(inhibition=None)),  # inhibition of return reads it
    "with cls": Variant("observation"),
    **{
        f"ent_coef={value}": Variant("entropy", hyper={"entropy_floor": None, "ent_coef": value})
        for value in (0.0, 0.003, 0.01, 0.03)
    },
    **{
        name: Variant("entropy", hyper={"entropy_floor": {**bounds, "low": 1e-4, "high": 0.05, "rate": 1.1}})
        for name, bounds in (
            ("entropy_floor=0.7,0.2", {"start": 0.7, "end": 0.2}),
            ("entropy_floor=0.97,0.7", {"start": 0.97, "end": 0.7}),
        )
    },
    "mask_seen=true": Variant("mask", hyper=_policy(mask_seen=True)),
    "mask_seen=false": Variant("mask", hyper=_policy(mask_seen=False)),
    "inhibition=none": Variant("mask", hyper=_policy(inhibition=None)),
    "inhibition=0.0": Variant("mask", hyper=_policy(inhibition=0.0)),
    "learning_rate=4e-4": Variant("warm start", hyper={"learning_rate": "lin_4.0e-4"}),
    # At the base's learning rate PPO forgets the warm start, so this has two changes; compare it with the one above.
    "warm_start=16384": Variant("warm start", hyper={"warm_start": {"states": 16_384}, "learning_rate": "lin_4.0e-4"}),
    "warm_start=0": Variant("warm start", hyper={"warm_start": {"states": 0}}),
}


@dataclass(frozen=True)
class AblationConfig:
    env: str = "CanViT/FashionSegmentation-v0"
    variants: tuple[str, ...] = ()
    """Names as in --list; base is always among them. Default: all that differ from the base."""
    seeds: int = 3
    decisions: int = 60_000
    num_scenes: int = 2048
    """Number of scenes of the training split."""
    eval_scenes: int = 512
    """Number of scenes of the validation split."""
    hyper: str | None = json.dumps(REWARDS_ALONE)
    """Overrides of agents/hyperparameters/ppo.yml for every variant, the base included, as JSON. Default: PPO by
    itself, for a warm start or a prior hides what PPO learns. A warm start is a variant."""
    env_kwargs: str | None = None
    """Keyword arguments of the environment for every variant, as JSON."""
    shard: tuple[int, int] = (0, 1)
    """(i, n): run every n-th of the runs from i, so that n processes share them."""
    runs_dir: Path = Path("runs/ablations")
    results_dir: Path = Path("experiments/results/ablations")
    list: bool = False
    """Print the variants and how long they would take, at a rate measured now, and end."""
    progress: bool = True


@dataclass(frozen=True)
class Run:
    """One variant and seed."""

    variant: str
    seed: int
    config: TrainConfig
    eval_scenes: int

    @property
    def directory(self) -> Path:
        return self.config.run_dir

    def evaluation_file(self, how: str) -> Path:
        return self.directory / f"{how}-{self.eval_scenes}.npz"

    @property
    def finished(self) -> bool:
        return (self.directory / RESULT).exists() and all(self.evaluation_file(how).exists() for how in HOW)


HOW = {"deterministic": True, "sampled": False}


def settings_of(config: AblationConfig, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keyword arguments of the environment, overrides of the hyperparameters) of a variant.

    Raises:
        ValueError: unknown variant.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; there are: {', '.join(VARIANTS)}")
    variant = VARIANTS[name]
    hyper = json_object(config.hyper, option="--hyper")
    for key, value in variant.hyper.items():
        both = isinstance(value, dict) and isinstance(hyper.get(key), dict)
        hyper[key] = {**hyper[key], **value} if both else value
    given = {"num_scenes": config.num_scenes, **json_object(config.env_kwargs, option="--env-kwargs")}
    env_kwargs = {**given, **variant.env_kwargs}
    if variant.group == "observation":
        own = load_hyperparameters(config.env, hyper).env_kwargs
        keys = list(env_config(config.env, {**own, **env_kwargs}).observations)
        what, key = name.split(" ")
        wanted = [k for k in keys if k != key] if what == "without" else [*keys, *{key} - set(keys)]
        env_kwargs["observations"] = wanted
    return env_kwargs, hyper


def resolved(config: AblationConfig, name: str) -> str:
    """Everything that determines a variant's outcome: variants for which this is equal are the same."""
    env_kwargs, overrides = settings_of(config, name)
    hyper = load_hyperparameters(config.env, overrides)
    env = env_config(config.env, override(hyper.env_kwargs, env_kwargs))
    defaults = dict(network="conv", mask_seen=False, inhibition=None, separable=False, distribution="gaussian")
    values = {**hyper.to_json(), "env_kwargs": env.to_json()}
    values["policy_kwargs"] = {**defaults, **hyper.policy_kwargs}
    if hyper.entropy_floor is not None:
        values["entropy_floor"] = {k: float(v) for k, v in hyper.entropy_floor.items()}
    return json.dumps(values, sort_keys=True)


def chosen_variants(config: AblationConfig) -> list[str]:
    """The base, then the requested variants or, by default, all that are not the base under another name."""
    if unknown := [name for name in config.variants if name not in VARIANTS]:
        raise ValueError(f"unknown variants {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    base = resolved(config, BASE)
    names = config.variants or tuple(VARIANTS)
    return [BASE] + [name for name in names if name != BASE and resolved(config, name) != base]


def runs_of(config: AblationConfig) -> list[Run]:
    """The runs, seed by seed, so that an interrupted study has the same number of seeds for every variant."""
    where = config.runs_dir / without_namespace(config.env) / f"{config.decisions}x{config.num_scenes}"
    runs = []
    for seed in range(config.seeds):
        for name in chosen_variants(config):
            env_kwargs, hyper = settings_of(config, name)
            training = TrainConfig(
                run_dir=where / name.replace(" ", "_") / f"seed{seed}",
                env=config.env,
                env_kwargs=json.dumps(env_kwargs),
                hyper=json.dumps(hyper),
                total_timesteps=config.decisions,
                seed=seed,
                eval_every=0,
                progress=config.progress,
            )
            runs.append(Run(variant=name, seed=seed, config=training, eval_scenes=config.eval_scenes))
    return runs


def execute(run: Run) -> bool:
    """Train and evaluate what is missing. Returns False after Ctrl-C; the same command continues."""
    if not complete(run.config):
        return False
    trained = load_record(run.directory / "last").env
    validation = replace(trained, split="validation", num_scenes=run.eval_scenes, shard=(0, 1))
    for how, deterministic in HOW.items():
        if not run.evaluation_file(how).exists():
            learned = load_policy(run.directory / "last", deterministic=deterministic)
            evaluate(learned, config=validation, seed=run.seed).save(run.evaluation_file(how))
    return True


def measured_rate(config: AblationConfig) -> float:
    """Decisions per second of the base, measured over one rollout and update after a warm-up."""
    env_kwargs, hyper = settings_of(config, BASE)
    own = load_hyperparameters(config.env, hyper)
    model = ppo_for_throughput(config.env, num_envs=own.n_envs, env_kwargs=env_kwargs, overrides=hyper)
    learn_rollouts(model, 1)
    began = time.perf_counter()
    return learn_rollouts(model, 1) / (time.perf_counter() - began)


def print_list(config: AblationConfig) -> None:
    rate = measured_rate(config)
    runs = runs_of(config)
    for name in chosen_variants(config):
        done = sum(run.finished for run in runs if run.variant == name)
        print(f"{name:32} {VARIANTS[name].group:14} {done} of {config.seeds} seeds finished")
    left = sum(not run.finished for run in runs)
    hours = left * config.decisions / rate / 3600
    print(f"{left} runs of {config.decisions:,} decisions at {rate:,.0f} decisions/s: about {hours:.1f} hours")


def summary(config: AblationConfig) -> dict[str, Any]:
    """Every finished run, and every variant compared with the base on the seeds that it has."""
    finished = [run for run in runs_of(config) if run.finished]
    for run in finished:
        require_same_run(run.config)
    variants: dict[str, Any] = {}
    loaded = {
        (run.variant, run.seed, how): Evaluation.load(run.evaluation_file(how)) for run in finished for how in HOW
    }
    for name in chosen_variants(config):
        seeds = [run.seed for run in finished if run.variant == name]
        if seeds:
            env_kwargs, hyper = settings_of(config, name)
            variants[name] = {
                "group": VARIANTS[name].group,
                "env_kwargs": env_kwargs,
                "hyper": hyper,
                "seeds": seeds,
                "seconds": [_seconds(run) for run in finished if run.variant == name],
            } | {
                how: _measures(
                    [loaded[name, seed, how] for seed in seeds],
                    [loaded[BASE, run.seed, how] for run in finished if run.variant == BASE],
                    against_base=name != BASE,
                )
                for how in HOW
            }
    return {"config": plain(asdict(config)), "variants": variants, "provenance": provenance()}


def _seconds(run: Run) -> float:
    return json.loads((run.directory / RESULT).read_text(encoding="utf-8"))["seconds"]


def _measures(runs: list[Evaluation], base: list[Evaluation], *, against_base: bool) -> dict[str, Any]:
    """After every glimpse; scores from 0 to 1, losses in nats."""
    scenes = np.stack([per_scene(run) for run in runs])
    record: dict[str, Any] = {
        "metric": runs[0].metric,
        "score_of_seed": [run.score().tolist() for run in runs],
        "loss_of_seed": [run.mean_loss().tolist() for run in runs],
        "score": bootstrap_interval(score_statistic(runs)).to_json(),
        "per_scene_iqm": bootstrap_interval(InterquartileMean(scenes)).to_json(),
        "loss": bootstrap_interval(loss_statistic(runs)).to_json(),
    }
    if against_base and base:
        record["score_minus_base"] = paired_difference(score_statistic(runs), score_statistic(base)).to_json()
        record["loss_minus_base"] = paired_difference(loss_statistic(runs), loss_statistic(base)).to_json()
    return record


def table(result: dict[str, Any]) -> str:
    """A Markdown table of scores after the last glimpse, with the best change first within each group."""
    variants, lines = result["variants"], []
    if not variants:
        return "No run is finished yet.\n"
    metric = next(iter(variants.values()))["deterministic"]["metric"]
    iqm, iqm_form = (
        (f"{metric} %", (100, "{:.2f}")) if is_compared_by_score(metric) else ("cross-entropy", (-1, "{:.4f}"))
    )
    lines += [
        f"| group | variant | {metric} % | seeds | minus base | cross-entropy minus base | sampled {metric} % "
        f"| sampled minus base | IQM of the scenes' {iqm} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups = list(dict.fromkeys(entry["group"] for entry in variants.values()))

    def place(item: tuple[str, Any]) -> tuple[int, float]:
        return groups.index(item[1]["group"]), -item[1]["deterministic"]["score"]["value"][-1]

    for name, entry in sorted(variants.items(), key=place):
        greedy, sampled = entry["deterministic"], entry["sampled"]
        seeds = ", ".join(f"{100 * score[-1]:.2f}" for score in greedy["score_of_seed"])
        cells = [
            entry["group"],
            name,
            _cell(greedy["score"], 100, "{:.2f}"),
            seeds,
            _cell(greedy.get("score_minus_base"), 100, "{:+.2f}"),
            _cell(greedy.get("loss_minus_base"), 1, "{:+.4f}"),
            _cell(sampled["score"], 100, "{:.2f}"),
            _cell(sampled.get("score_minus_base"), 100, "{:+.2f}"),
            _cell(greedy["per_scene_iqm"], *iqm_form),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(estimate: dict[str, list[float]] | None, factor: float, form: str) -> str:
    if estimate is None:
        return ""
    return with_interval({name: curve[-1] for name, curve in estimate.items()}, form, factor)


def page(config: AblationConfig, result: dict[str, Any]) -> str:
    last = env_config(config.env, json_object(config.env_kwargs, option="--env-kwargs")).budget
    command = re.sub(r" --shard \d+ \d+", "", result["provenance"]["command"])  # the report covers all shards
    return (
        f"# Ablations on {config.env}\n\n"
        f"{config.decisions:,} decisions on {config.num_scenes:,} training scenes; after glimpse {last}, on "
        f"{config.eval_scenes:,} validation scenes, most likely viewpoints unless sampled. 95% intervals over seeds "
        f"and scenes in brackets. Written by\n\n    {command}\n\n{table(result)}"
    )


def missing(config: AblationConfig) -> Iterator[Run]:
    index, count = config.shard
    for number, run in enumerate(runs_of(config)):
        if number % count == index and not run.finished:
            yield run


def ablate(config: AblationConfig) -> bool:
    """Run what is missing and write the report on all finished runs. Returns False if interrupted.

    Raises:
        ValueError: unknown variants, or a run directory with other settings.
    """
    index, count = config.shard
    if not (config.seeds >= 1 and config.decisions >= 1 and 0 <= index < count):
        raise ValueError(
            f"seeds and decisions must be at least 1 and shard (i, n) with 0 <= i < n, got {config.seeds}, "
            f"{config.decisions} and {config.shard}"
        )
    for run in runs_of(config):
        if (run.directory / CONFIG).exists():
            require_same_run(run.config)  # now, instead of after hours of other runs
    left = list(missing(config))
    try:
        for number, run in enumerate(left):
            print(f"{number + 1} of {len(left)}: {run.variant}, seed {run.seed}", flush=True)
            if not execute(run):
                return False
    finally:
        write_report(config)
    return True


def report_path(config: AblationConfig) -> Path:
    """The path of the report without its suffix."""
    return config.results_dir / without_namespace(config.env)


def write_report(config: AblationConfig) -> None:
    result, path = summary(config), report_path(config)
    write_text(path.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_text(path.with_suffix(".md"), page(config, result))


def main(config: AblationConfig) -> None:
    if config.list:
        print_list(config)
        return
    if not ablate(config):
        raise KeyboardInterrupt
    print(table(json.loads(report_path(config).with_suffix(".json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    run_command(main, AblationConfig, description=__doc__, if_interrupted=GOES_ON)
