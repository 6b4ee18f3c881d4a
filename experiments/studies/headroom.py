"""What the greedy oracle's lead consists of, and how much of it learned policies reach.

    python -m experiments.studies.headroom --env CanViT/FashionSegmentation-v0 --learned runs/segmentation/seed*/best

An oracle that tries every viewpoint with the labels also picks those that happen to push the reading the right way.
This is luck, which nothing visible predicts. There are four measures of what a policy without labels could reach, all
on the same scenes and, except for the locator, with the same table of viewpoints as the learned policies:

- greedy oracle: the whole lead;
- jittered oracle: its glimpses land up to --jitter canvas cells off, so that it can only choose a place, not the exact
  pixels that are sampled;
- locator: knows from the generator where every item lies and how large it is, but not how a glimpse will be read. Of
  several ways to look at items, it uses the one with the best score on validation scenes;
- halves (segmentation): the oracle chooses by the cross-entropy on one half of the pixels and is measured on the
  other, both ways round, on a checkerboard of squares of --blocks canvas cells. Small squares cut through items, so
  both halves share the luck in how an item is read; with large squares, a choice also favors its own half.

As a control, the learned policies are jittered as well and measured on the oracles' scenes alone. Headroom is a ceiling
minus the best of the --baselines on validation scenes. The gain of PPO over its warm start is paired by training seed.
Scores are after the last glimpse, on test scenes. Oracles use the first --oracle-scenes of them, so a share is a
policy's lead on its scenes divided by the oracle's lead on those.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from agents.intervals import with_interval
from canvit_gym.actions import DiscreteActions
from canvit_gym.assembly import build_actions
from canvit_gym.atomic import write_text
from canvit_gym.benchmark.comparison import Draws, clearly_ahead, per_scene, ratio_of_leads
from canvit_gym.command_line import env_config, run_command
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import Evaluation, evaluate, loss_statistic, score_statistic
from canvit_gym.policies import GlimpsePolicy, GreedyOracle, Jittered, jittered_oracle, make_policy
from canvit_gym.policies.label_split import Half, HalfLoss
from canvit_gym.policies.learned import load_policy, load_record
from canvit_gym.provenance import plain, provenance
from canvit_gym.scenes.datasets import without_namespace
from canvit_gym.statistics import InterquartileMean, Mean, OfFirst, Statistic, Together, bootstrap_interval
from canvit_gym.tasks import is_compared_by_score
from canvit_gym.tuning import tune

_ANY_TASK = (
    "coarse_to_fine", "fine_to_coarse", "best_fixed_sequence", "saliency(scale=0.5)", "saliency(scale=0.4)",
    "saliency(scale=0.3)", "saliency(scale=(0.4, 0.3))", "saliency(scale=0.34, centers=24)",
)  # fmt: skip
BASELINES = {
    # entropy_greedy has the windows of the learned policies' own actions.
    "fashion-segmentation": (
        *_ANY_TASK, "entropy_coarse_to_fine", "entropy_greedy", "entropy_greedy(scale=0.5)",
        "entropy_greedy(scale=(0.5, 0.25), centers=16)", "entropy_greedy(scale=(0.34, 0.24), centers=12)",
    ),
    "fashion-classification": _ANY_TASK,
}  # fmt: skip
_BOX_LOCATORS = tuple(
    f"box_locator(factor={factor}, jitter={jitter})" for factor in (1.0, 1.25, 1.5, 2.0) for jitter in (0.0, 0.2)
)

Role = Literal[
    "baseline", "warm start", "learned", "sampled", "learned few", "learned jittered", "locator", "jittered", "oracle"
]
_LEARNED: tuple[Role, ...] = ("warm start", "learned", "sampled", "learned few", "learned jittered")
SHARES: dict[Role, tuple[Role, ...]] = {
    "oracle": (*_LEARNED, "locator", "jittered"),
    "jittered": (*_LEARNED, "locator"),
    "locator": _LEARNED,
}
"""Whose share of which ceiling's lead is reported."""


@dataclass(frozen=True)
class HeadroomConfig:
    learned: tuple[Path, ...]
    """Policies of one method, one per training seed."""
    warm_started: tuple[Path, ...] = ()
    """The same policies, in the same order, as their warm starts left them, before PPO (agents.train's
    warm_start/)."""
    env: str = "CanViT/FashionSegmentation-v0"
    baselines: tuple[str, ...] = ()
    """Hand-coded policies that use no labels. Default: those that do best on the data set."""
    num_scenes: int | None = None
    """Test scenes. None: FashionScenes' 1,000; as many as are asked for are generated."""
    oracle_scenes: int = 200
    tuning_scenes: int = 512
    """Validation scenes that choose the best baseline and the best way to look at items."""
    jitter: float = 0.5
    """Canvas cells."""
    blocks: tuple[int, ...] = (1, 4)
    results_dir: Path = Path("experiments/results/headroom")


LOCATORS = {
    "fashion-segmentation": (
        *_BOX_LOCATORS, "window_locator(scale=0.5)", "window_locator(scale=0.4)",
        "window_locator(scale=(0.5, 0.4, 0.3))",
    ),
    "fashion-classification": _BOX_LOCATORS,
}  # fmt: skip
"""Ways to look at items; one is chosen on validation scenes."""


def best_of(scores: Mapping[str, float]) -> str:
    return max(scores, key=lambda name: scores[name])


def baseline_policy(spec: str, env: EnvConfig) -> GlimpsePolicy:
    return make_policy(spec, config=env, num_glimpses=env.budget)


def _environment(config: HeadroomConfig) -> EnvConfig:
    """The environment that the learned policies were trained in."""
    if config.warm_started and len(config.warm_started) != len(config.learned):
        raise ValueError(
            f"got {len(config.warm_started)} --warm-started for {len(config.learned)} --learned: name the warm start "
            "of every learned policy, in the same order, or none"
        )
    envs = {record.env for record in map(load_record, (*config.learned, *config.warm_started))}
    if len(envs) != 1:
        raise ValueError(f"the learned policies must share one environment, got {len(envs)} of them")
    (env,) = envs
    wanted = env_config(config.env, {}).dataset
    if env.dataset != wanted or wanted not in BASELINES:
        raise ValueError(
            f"the learned policies are of {env.dataset}, and {config.env} is of {wanted}: pass --env of "
            f"theirs, one of the embedded data sets ({', '.join(BASELINES)})"
        )
    return env


@dataclass(frozen=True)
class Measured:
    """Runs of one policy or method on the same scenes."""

    name: str
    runs: tuple[Evaluation, ...]

    @property
    def num_scenes(self) -> int:
        return len(self.runs[0].scene)

    def first(self, count: int) -> "Measured":
        return Measured(self.name, tuple(run.first(count) for run in self.runs))

    @property
    def score(self) -> Statistic:
        return score_statistic(self.runs)

    @property
    def loss(self) -> Statistic:
        return loss_statistic(self.runs)

    @property
    def scene_iqm(self) -> Statistic:
        """The interquartile mean of the per-scene numbers of canvit_gym.benchmark.comparison.per_scene."""
        return InterquartileMean(np.stack([per_scene(run) for run in self.runs]))


def candidates(config: HeadroomConfig, env: EnvConfig) -> dict[Role, dict[str, float]]:
    """Scores on validation scenes of the candidates for the best hand-coded policy and the best locator."""
    tried: dict[Role, tuple[str, ...]] = {
        "baseline": config.baselines or BASELINES[env.dataset],
        "locator": LOCATORS[env.dataset],
    }
    return {
        role: dict(tune(specs, config=env, num_scenes=config.tuning_scenes, progress=True).scores)
        for role, specs in tried.items()
    }


def measured(config: HeadroomConfig, env: EnvConfig, *, baseline: str, locator: str) -> dict[Role, Measured]:
    """Measurements of the best baseline, the learned policies and the ceilings."""
    test = _test(config, env)
    few, oracle = _few(test, config), _oracle(env)
    found: dict[Role, Measured] = {
        "baseline": Measured(baseline, (evaluate(baseline_policy(baseline, test), config=test, progress=baseline),))
    }
    if config.warm_started:
        found["warm start"] = _evaluated("warm start alone", config.warm_started, test)
    learned = _evaluated("learned", config.learned, test)
    jittered = _evaluated("learned, jittered", config.learned, few, jitter=config.jitter)
    found |= {
        "learned": learned,
        "learned few": replace(learned.first(jittered.num_scenes), name="learned on the oracles' scenes"),
        "sampled": _evaluated("learned, sampled", config.learned, test, deterministic=False),
        "learned jittered": jittered,
        "locator": Measured(locator, (evaluate(baseline_policy(locator, test), config=test, progress=locator),)),
        "jittered": Measured("jittered oracle", (evaluate(jittered_oracle(oracle, cells=config.jitter), config=few),)),
        "oracle": Measured("greedy oracle", (evaluate(oracle, config=few),)),
    }
    return found


def _evaluated(
    name: str,
    policies: Sequence[Path],
    test: EnvConfig,
    *,
    deterministic: bool = True,
    jitter: float | None = None,
) -> Measured:
    runs = []
    for seed, directory in enumerate(policies):
        policy: GlimpsePolicy = load_policy(directory, deterministic=deterministic)
        if jitter is not None:
            policy = Jittered(policy, cells=jitter)
        runs.append(evaluate(policy, config=test, seed=seed, progress=f"{name}, run {seed}"))
    return Measured(name, tuple(runs))


def _test(config: HeadroomConfig, env: EnvConfig) -> EnvConfig:
    return replace(env, split="test", num_scenes=config.num_scenes, shard=(0, 1))


def _few(test: EnvConfig, config: HeadroomConfig) -> EnvConfig:
    return replace(test, num_scenes=min(config.oracle_scenes, test.num_scenes or config.oracle_scenes))


def _oracle(env: EnvConfig, **options: Any) -> GreedyOracle:
    actions = build_actions(env)
    if not isinstance(actions, DiscreteActions):
        raise ValueError("the oracle tries every viewpoint of a table: use policies of action='grid' or 'quadtree'")
    return GreedyOracle(actions.viewpoints, progress=True, **options)


def halves(few: EnvConfig, baseline: str, block: int) -> dict[str, Any]:
    """The oracle's lead over the baseline in cross-entropy, on the pixels that it chose by and on the others."""
    of_baseline = _losses_by_half(baseline_policy(baseline, few), few, block)
    chosen, unseen = [], []
    ways: tuple[tuple[Half, Half], ...] = (("even", "odd"), ("odd", "even"))
    for half, other in ways:
        of_oracle = _losses_by_half(_oracle(few, half=half, block=block), few, block)
        chosen.append(of_baseline[half] - of_oracle[half])
        unseen.append(of_baseline[other] - of_oracle[other])
    lead, honest = (Mean(np.mean(leads, axis=0)[None]) for leads in (chosen, unseen))
    return {
        "block": block,
        "lead_on_own_half": bootstrap_interval(lead).at(-1),
        "lead_on_other_half": bootstrap_interval(honest).at(-1),
        "share_of_luck": bootstrap_interval(lead, honest, of=_share_lost).at(-1),
    }


def _losses_by_half(policy: GlimpsePolicy, config: EnvConfig, block: int) -> dict[Half, NDArray[np.float32]]:
    """Losses [N, T] on each half, from one evaluation."""
    losses: dict[Half, HalfLoss] = {half: HalfLoss(half, block=block) for half in get_args(Half)}

    def measure(t: int, episodes: EpisodeBatch) -> None:
        for loss in losses.values():
            loss(t, episodes)

    evaluate(policy, config=config, on_glimpse=measure)
    return {half: loss.loss() for half, loss in losses.items()}


def _share_across_scenes(
    one: Draws, its_reference: Draws, other: Draws, other_reference: Draws, *, higher_is_better: bool
) -> Draws:
    return ratio_of_leads(one - its_reference, other - other_reference, higher_is_better=higher_is_better)


def _first_minus_second(curves: Draws) -> Draws:
    return np.subtract(*np.split(curves, 2, axis=1))


def _share_lost(lead: Draws, honest: Draws) -> Draws:
    return 1 - ratio_of_leads(honest, lead)


def _trained(directory: Path) -> dict[str, Any]:
    """How a policy was trained."""
    record = load_record(directory)
    return {"provenance": record.provenance, "hyperparameters": record.hyperparameters}


def study(config: HeadroomConfig) -> dict[str, Any]:
    """All results as JSON values; shares are fractions."""
    env = _environment(config)
    tried = candidates(config, env)
    found = measured(config, env, baseline=best_of(tried["baseline"]), locator=best_of(tried["locator"]))
    baseline, oracle = found["baseline"], found["oracle"]
    rows: dict[str, dict[str, Any]] = {}
    for policy in found.values():
        rows[policy.name] = {
            "num_scenes": policy.num_scenes,
            "score_of_seed": [float(run.score()[-1]) for run in policy.runs],
            **{name: bootstrap_interval(getattr(policy, name)).at(-1) for name in ("score", "loss", "scene_iqm")},
        }
        if policy is not baseline:
            for name in ("score", "loss"):
                pair = [getattr(each, name) for each in (policy, baseline.first(policy.num_scenes))]
                rows[policy.name][f"{name}_minus_baseline"] = bootstrap_interval(*pair, of=np.subtract).at(-1)
    if "warm start" in found:
        for name in ("score", "loss"):
            pair = Together(tuple(getattr(found[role], name) for role in ("learned", "warm start")))
            rows["learned"][f"{name}_minus_warm_start"] = bootstrap_interval(pair, of=_first_minus_second).at(-1)
    for ceiling, roles in SHARES.items():
        leader = found[ceiling]
        for name in ("score", "loss"):
            lead, higher_is_better = rows[leader.name][f"{name}_minus_baseline"], name == "score"
            if not clearly_ahead(lead["low"], lead["high"], higher_is_better=higher_is_better):
                continue
            share_of = partial(_share_across_scenes, higher_is_better=higher_is_better)
            for policy in (found[role] for role in roles if role in found):
                four = [
                    OfFirst(getattr(each, name), num_scenes=baseline.num_scenes)
                    for ahead in (policy, leader)
                    for each in (ahead, baseline.first(ahead.num_scenes))
                ]
                share = bootstrap_interval(*four, of=share_of)
                if np.isfinite([share.low[-1], share.high[-1]]).all():  # else the leader is behind in some resample
                    rows[policy.name][f"share_of_{ceiling}_{name}"] = share.at(-1)
    metric = oracle.runs[0].metric
    blocks, few = config.blocks if is_compared_by_score(metric) else (), _few(_test(config, env), config)
    return {
        "metric": metric,
        "baseline": baseline.name,
        "num_scenes": baseline.num_scenes,
        "oracle_scenes": oracle.num_scenes,
        "jitter_cells": config.jitter,
        "tuning_scenes": config.tuning_scenes,
        "on_validation": tried,
        "policies": rows,
        "halves": [halves(few, baseline.name, block) for block in blocks],
        "config": plain(asdict(config))
        | {name: [str(path) for path in getattr(config, name)] for name in ("learned", "warm_started")},
        "learned_provenance": [_trained(directory) for directory in config.learned],
        "provenance": provenance(),
    }


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    metric, rows = result["metric"], result["policies"]
    lines = [
        f"| | {metric} % | minus {result['baseline']} | cross-entropy minus {result['baseline']} "
        "| share of the oracle's lead: by score | by cross-entropy | share of the jittered oracle's: by score "
        "| by cross-entropy | share of the locator's: by score | by cross-entropy | IQM of scenes | every seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        by_score = is_compared_by_score(metric)
        cells = [
            f"{name} ({row['num_scenes']:,} scenes)" if row["num_scenes"] < result["num_scenes"] else name,
            _cell(row["score"], "{:.1f}", 100),
            _cell(row.get("score_minus_baseline"), "{:+.1f}", 100),
            _cell(row.get("loss_minus_baseline"), "{:+.4f}"),
            *(
                _cell(row.get(f"share_of_{ceiling}_{name}"), "{:.0f} %", 100)
                for ceiling in ("oracle", "jittered", "locator")
                for name in ("score", "loss")
            ),
            _cell(row["scene_iqm"], "{:.1f}", 100) if by_score else _cell(row["scene_iqm"], "{:.3f}"),
            ", ".join(f"{100 * score:.1f}" for score in row["score_of_seed"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    text = [
        f"# Headroom on {result['config']['env']}",
        f"{result['num_scenes']:,} test scenes, oracles and what is jittered on the first {result['oracle_scenes']:,}; "
        f"jittered glimpses land up to {result['jitter_cells']:g} canvas cells off. After the last glimpse, "
        "95% intervals over scenes and training seeds in brackets. The IQM is of single scenes' "
        + (f"{metric}." if is_compared_by_score(metric) else "minus cross-entropy, in nats."),
        f"Written by\n\n    {result['provenance']['command']}",
        "\n".join(lines),
    ]
    if gained := rows["learned"].get("score_minus_warm_start"):
        text.append(
            f"PPO minus its warm start, paired by training seed: {_cell(gained, '{:+.1f}', 100)} points, "
            f"{_cell(rows['learned']['loss_minus_warm_start'], '{:+.4f}')} nats."
        )
    for half in result["halves"]:
        text.append(
            f"Oracle by halves, squares of {half['block']} x {half['block']} cells: the lead in cross-entropy is "
            f"{_cell(half['lead_on_own_half'], '{:.4f}')} nats on the pixels it chooses by and "
            f"{_cell(half['lead_on_other_half'], '{:.4f}')} on the others; "
            f"{_cell(half['share_of_luck'], '{:.0f} %', 100)} of it does not carry over."
        )
    for role, what in (("baseline", "The best hand-coded policy"), ("locator", "The best locator")):
        scores = sorted(result["on_validation"][role].items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {100 * score:.1f}" for name, score in scores)
        text.append(f"{what} on {result['tuning_scenes']:,} validation scenes, {metric} %: {listed}.")
    return "\n\n".join(text) + "\n"


def _cell(estimate: dict[str, float] | None, form: str, factor: float = 1) -> str:
    if estimate is None:
        return ""
    return with_interval(estimate, form, factor).replace("-", "−")


def main(config: HeadroomConfig) -> None:
    result = study(config)
    path = config.results_dir / without_namespace(config.env)
    write_text(path.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_text(path.with_suffix(".md"), page(result))
    print(page(result))


if __name__ == "__main__":
    run_command(main, HeadroomConfig, description=__doc__)
