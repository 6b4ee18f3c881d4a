"""Every number of a suite, with 95% bootstrap intervals over scenes and seeds, as JSON values.

Scores are fractions. A share is (policy - baseline) / (ceiling - baseline) of the environment's payoff, on the same
resampled scenes; it is undefined if the ceiling's own lead is not clearly above zero, or not above zero in some
resample.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvit_gym.benchmark.comparison import clearly_ahead, share_of_lead
from canvit_gym.evaluation import Evaluation, require_same_scenes
from canvit_gym.perturbations import PERTURBATIONS
from canvit_gym.statistics import Statistic, bootstrap_interval
from canvit_gym.suite.payoff import Payoff, glimpses_taken, payoff_of
from canvit_gym.suite.plan import Line, Part, Plan, Role

RESAMPLES = 1000
"""A suite has hundreds of intervals."""

Estimate = dict[str, Any]
"""{"value": number, "interval": [low, high]}"""

_interval = partial(bootstrap_interval, resamples=RESAMPLES)


def _estimate(*statistics: Statistic, of: Callable[..., NDArray[np.float64]] | None = None) -> Estimate:
    """From statistics of one number each."""
    found = _interval(*statistics, of=of)
    value, low, high = (float(f"{float(v[0]):.6g}") for v in (found.value, found.low, found.high))
    return {"value": value, "interval": [low, high]}


def numbers_of(plan: Plan) -> dict[str, Any]:
    """The numbers of a plan, all of whose evaluations have been run."""
    environments = {part.env_id: _environment(part) for part in plan.parts}
    return {
        "environments": environments,
        "perturbations": {
            name: PERTURBATIONS[name].effect
            for name in {name: None for part in plan.parts for line in part.lines for name in line.perturbed}
        },
        "radar": radar_shares(environments),
        "left_out": list(plan.left_out),
        "resamples": RESAMPLES,
    }


def _environment(part: Part) -> dict[str, Any]:
    payoff = payoff_of(part.config)
    evaluations = {line.label: [Evaluation.load(job.path) for job in line.jobs] for line in part.lines}
    statistics = {label: payoff.statistic(runs) for label, runs in evaluations.items()}
    ends = {line.role: statistics[line.label] for line in part.lines if line.role in ("baseline", "ceiling")}
    lead = _estimate(ends["ceiling"], ends["baseline"], of=np.subtract)
    low, high = lead["interval"]
    has_shares = clearly_ahead(low, high, higher_is_better=True)
    first = next(iter(evaluations.values()))[0]
    policies = {
        line.label: _policy(line, payoff, evaluations[line.label])
        | {"share": _share(line.role, statistics[line.label], ends) if has_shares else None}
        for line in part.lines
    }
    return {
        "skill": part.skill.name,
        "best_opponent": part.skill.opponents[0],
        "metric": first.metric,
        "pays": payoff.name,
        "budget": part.config.budget,
        "num_scenes": len(first.scene),
        "lead_of_ceiling": lead,
        "policies": policies,
        "misfits": part.misfits,
    }


def _share(role: Role, policy: Statistic, ends: dict[Role, Statistic]) -> Estimate | None:
    """None if the ceiling does not lead in some resample."""
    if role in ("baseline", "ceiling"):
        end = float(role == "ceiling")
        return {"value": end, "interval": [end, end]}
    found = _estimate(policy, ends["baseline"], ends["ceiling"], of=share_of_lead)
    return found if np.isfinite([found["value"], *found["interval"]]).all() else None


def _policy(line: Line, payoff: Payoff, runs: list[Evaluation]) -> dict[str, Any]:
    record = line.source.record
    return {
        "role": line.role,
        "family": line.source.family,
        "source": line.source.name,
        "trained_on": None if record is None else record.env_id,
        "stops": line.stop,
        "score": _estimate(payoff.statistic(runs)),
        "glimpses": glimpses_taken(runs),
        "seeds": [job.seed for job in line.jobs],
        "perturbed": {
            name: _perturbed(payoff, Evaluation.load(job.path), runs[0]) for name, job in line.perturbed.items()
        },
    }


def _perturbed(payoff: Payoff, found: Evaluation, unperturbed: Evaluation) -> dict[str, Any]:
    """The score, and its difference from the same policy, seed and scenes without the perturbation."""
    same = unperturbed.on(found.scene)
    require_same_scenes([same, found])
    before = payoff.statistic([same])
    after = payoff.statistic([found])
    return {
        "num_scenes": len(found.scene),
        "score": _estimate(after),
        "difference": _estimate(after, before, of=np.subtract),
    }


BEST = "best hand-coded"
"""The opponent of each environment that did best on training scenes, shown in the radar as one policy."""


def radar_shares(environments: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Family -> skill -> share: trained policies, in the environment they were trained in, by algorithm; the best
    opponents; hand-coded policies by name. A family with several policies in an environment has the largest share."""
    trained: dict[str, dict[str, float]] = {}
    best: dict[str, dict[str, float]] = {BEST: {}}
    hand_coded: dict[str, dict[str, float]] = {}
    for environment in environments.values():
        skill = environment["skill"]
        for policy in environment["policies"].values():
            if policy["role"] not in ("opponent", "trained") or policy["share"] is None:
                continue
            share = policy["share"]["value"]
            if policy["source"] == environment["best_opponent"]:
                best[BEST][skill] = share
            families = trained if policy["role"] == "trained" else hand_coded
            of_family = families.setdefault(policy["family"], {})
            of_family[skill] = max(share, of_family.get(skill, -np.inf))
    return {name: shares for name, shares in (trained | best | hand_coded).items() if shares}
