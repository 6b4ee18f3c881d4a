"""What an environment pays a policy on held-out scenes, used neither for training nor for tuning.

canvit_gym.suite.payoff says what that is. Evaluations are kept in files, so that an interrupted command can
continue. A file's name contains a hash of what its numbers depend on: the policy, the scenes, the checkpoint, the
probe and the code (as in canvit_gym.benchmark). Others are never read. Where they were measured is in the file
(Evaluation.record) but not in its name: runs may be trained and evaluated on several machines, and reported on one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from canvit_gym.benchmark.records import code_sha256, digest, policy_key, slug
from canvit_gym.benchmark.runner import identity
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies import make_policy
from canvit_gym.policies.learned import LearnedPolicy
from canvit_gym.policies.policy_record import TRAINED_WITH
from canvit_gym.stopping import OWN_ACTION, at_confidence, cost_of_glimpses, evaluate_with_stops, named
from canvit_gym.suite.payoff import payoff_of

DETERMINISTIC, SAMPLED = "deterministic", "sampled"
"""Evaluations of a policy with its most likely viewpoints, and with sampled ones."""
MACHINE, LIBRARIES = ("device", "versions"), ("canvit-gym", "canvit-pytorch")
"""Parts of an identity that say where an evaluation ran, and the versions that count nevertheless. The device and the
versions of torch and numpy change the last digits of float32, not the model."""


def pays_of_curve(env: EnvConfig, entry: dict[str, Any]) -> float:
    """What the environment pays according to an evaluation during training (agents.monitor)."""
    if "at_stop" in entry:
        return entry["at_stop"]["score"] - cost_of_glimpses(entry["at_stop"]["glimpses"], env.glimpse_cost)
    return payoff_of(env).of_curve(np.array(entry["score"]))


def of_learned(policy: LearnedPolicy, env: EnvConfig, *, directory: Path) -> Evaluation:
    """Evaluate a trained policy on `env`; kept in `directory`, which is that of a run.

    Raises:
        ValueError: the policy does not fit the environment.
    """

    def measure() -> Evaluation:
        if env.allow_stop:
            return evaluate_with_stops(policy, stop=OWN_ACTION, config=env)
        return evaluate(policy, config=env)

    return _kept(directory, DETERMINISTIC if policy.deterministic else SAMPLED, env, key_of(policy, env), measure)


def of_hand_coded(spec: str, env: EnvConfig, *, directory: Path, stop: str | None = None) -> Evaluation:
    """Evaluate a hand-coded policy on `env`; kept in `directory`.

    Args:
        stop: where episodes can be stopped, the way as `evaluate_with_stops` takes it; None: they never stop.
    """
    name = named(spec, stop)

    def measure() -> Evaluation:
        policy = make_policy(spec, config=env, num_glimpses=env.budget)
        if not env.allow_stop:
            return evaluate(policy, config=env)
        return evaluate_with_stops(policy, stop=at_confidence(np.inf) if stop is None else stop, config=env)

    return _kept(directory, f"{slug(name)}-{env.split}", env, policy_key(spec) | {"stop": stop}, measure)


def key_of(policy: LearnedPolicy, env: EnvConfig) -> dict[str, Any]:
    """What the numbers of a trained policy on `env` depend on besides the environment, for `evaluation_key`."""
    seen = {name: env.to_json()[name] for name in TRAINED_WITH}
    return {
        "weights_sha256": policy.record.weights_sha256,
        "network": policy.record.network_class,
        "trained_with": seen,
    }


def evaluation_key(env: EnvConfig, policy: dict[str, Any]) -> str:
    """A part of a file's name that differs wherever an evaluation's numbers could. policy: JSON values."""
    whole = identity(env, env.dataset)
    depends_on = {
        "identity": _without_machine(whole),
        "versions": {name: whole["versions"][name] for name in LIBRARIES},
        "code": code_sha256(),
        "policy": policy,
        "allow_stop": env.allow_stop,
    }
    return f"{env.num_scenes or 'all'}-{digest(depends_on)[:12]}"


def model_and_scenes(env: EnvConfig) -> dict[str, Any]:
    """What tells apart evaluations that cannot be compared: the scenes, the checkpoint, the probe and what is paid."""
    return _without_machine(identity(env, env.dataset)) | {"pays": payoff_of(env).name}


def _without_machine(whole: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in whole.items() if name not in MACHINE}


def _kept(
    directory: Path, name: str, env: EnvConfig, policy: dict[str, Any], measure: Callable[[], Evaluation]
) -> Evaluation:
    """The evaluation in `directory` whose file begins with `name`; measured and saved if there is none of this policy
    and environment."""
    path = directory / f"{name}-{evaluation_key(env, policy)}.npz"
    if path.is_file():
        return Evaluation.load(path)
    found = measure()
    found.save(path)
    return found
