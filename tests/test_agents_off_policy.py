"""Off-policy learners: they act, learn, resume to the bit, and their policies act without SB3."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import assert_same_policies
from stable_baselines3 import A2C, DQN, TD3

from agents.algorithms import (
    ALGORITHMS,
    find_algorithm,
    hyperparameters_file,
    load_hyperparameters,
    register_algorithm,
)
from agents.extractors import SpatialExtractor
from agents.off_policy.learner import OffPolicyLearner
from agents.settings import TrainConfig, prepare
from agents.train import train
from agents.train_once import require_same_run
from agents.training_state import generator_state, glimpse_env, load_state, set_generator_state
from canvit_gym.benchmark.runner import BenchmarkConfig, plan
from canvit_gym.evaluation import evaluate
from canvit_gym.observations import COMPACT_KEYS
from canvit_gym.policies.learned import load_policy
from canvit_gym.registration import ENVIRONMENTS, config_for
from canvit_gym.sb3 import make_sb3_env

ALGOS = ("dqn", "sac", "crossq", "tqc")
SMALL = {"features_dim": 16, "channels": 8, "context_dim": 16, "blocks": 1, "cell_channels": 2}
CHUNK = 8
"""Decisions between updates."""


def tiny(run_dir: Path, algo: str, *, updates: int = 6, **env_kwargs: Any) -> TrainConfig:
    env = {"num_scenes": 14, "device": "cpu", "budget": 3, "canvas_size": 4, "map_size": 8} | env_kwargs
    if algo == "dqn":
        env |= {"grid_centers": 3}
    options = {
        "n_envs": 4, "train_freq": 2, "gradient_steps": 2, "batch_size": 8, "buffer_size": 32, "learning_starts": CHUNK,
        "encoder": SMALL, "net_arch": [16],
    }  # fmt: skip
    return TrainConfig(
        run_dir, algo=algo, env_kwargs=json.dumps(env), hyper=json.dumps(options), total_timesteps=updates * CHUNK,
        eval_every=2 * CHUNK, eval_scenes=4, checkpoint_every=2 * CHUNK, gaze_scenes=0, progress=False,
    )  # fmt: skip


def test_learners_of_ones_own_need_a_new_name_and_a_file(tmp_path: Path) -> None:
    algorithm = find_algorithm("q_regression")
    with pytest.raises(ValueError, match="there is an algorithm 'ppo' already: choose another name"):
        register_algorithm("ppo", algorithm, hyperparameters=tmp_path / "ppo.yml")
    with pytest.raises(FileNotFoundError, match=r"mine.yml does not exist: write the hyperparameters of 'mine' there"):
        register_algorithm("mine", algorithm, hyperparameters=tmp_path / "mine.yml")
    with pytest.raises(ValueError, match="unknown algorithm 'mine'"):
        find_algorithm("mine")


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_has_its_entries(algo: str) -> None:
    """An entry that fits for every environment that PPO has one for, but for Order where it cannot be learned."""
    written = yaml.safe_load(hyperparameters_file(algo).read_text(encoding="utf-8"))
    without_order = ("oracle_cloning", "dqn", "recurrent_ppo", "sac", "crossq", "tqc")
    of_ppo = yaml.safe_load(hyperparameters_file("ppo").read_text(encoding="utf-8"))
    env_ids = [env_id for env_id in ENVIRONMENTS if env_id in of_ppo]
    assert len(env_ids) == 8
    for env_id in env_ids:
        hyper = load_hyperparameters(env_id, algo=algo)
        assert type(hyper)(**json.loads(json.dumps(hyper.to_json()))) == hyper, env_id
        cannot = algo in without_order and env_id == "CanViT/FashionOrder-v0"
        assert (env_id in written) != cannot
        with pytest.raises(ValueError, match="revisit=False") if cannot else nullcontext():
            hyper.check_fit(config_for(env_id, **hyper.env_kwargs))


@pytest.mark.parametrize("written", [generator_state, lambda generator: str(generator.bit_generator.state)])
def test_the_state_of_a_generator(written: Callable[[np.random.Generator], str]) -> None:
    """As it is written, and as earlier versions wrote it."""
    one, other = np.random.default_rng(3), np.random.default_rng(4)
    one.random(5)
    set_generator_state(other, written(one))
    np.testing.assert_array_equal(one.random(7), other.random(7))


def test_a_preset_replaces_the_observations_of_the_hyperparameters(tmp_path: Path) -> None:
    config = TrainConfig(tmp_path, algo="dqn", env="CanViT/FashionClassification-v0")
    plan = prepare(replace(config, env_kwargs='{"observation_preset": "compact"}'))
    assert plan.env.observations == COMPACT_KEYS and plan.env.grid_centers == plan.hyper.env_kwargs["grid_centers"]
    with pytest.raises(ValueError, match="sets canvas_size, but canvas_size=4 was passed"):
        prepare(replace(config, env_kwargs='{"observation_preset": "compact", "canvas_size": 4}'))


@pytest.mark.parametrize("kind", ["whole episodes", "stop"])
@pytest.mark.parametrize("algo", ALGOS)
def test_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str, kind: str) -> None:
    """The replay buffer is full by then. Ctrl-C goes back to the last checkpoint."""
    stop: dict[str, Any] = {"allow_stop": True, "glimpse_cost": 0.01} if kind == "stop" else {}
    whole = tiny(tmp_path / "whole", algo, **stop)
    result = train(whole)
    assert not result.interrupted and result.num_timesteps == 6 * CHUNK
    require_same_run(whole)  # as studies do, which train each run once
    for other in (replace(whole, algo="ppo", hyper="{}"), replace(whole, hyper=json.dumps({"gamma": 0.9}))):
        with pytest.raises(ValueError, match="holds a run with other settings"):
            require_same_run(other)
    broken = replace(whole, run_dir=tmp_path / "broken")
    model_class = type(find_algorithm(algo).make(prepare(replace(whole, run_dir=tmp_path / "x"))).model)  # type: ignore[attr-defined]
    update = model_class.train

    def interrupt(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.num_timesteps == 5 * CHUNK:
            raise KeyboardInterrupt
        update(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model_class, "train", interrupt)
        assert train(broken).interrupted
    assert load_state(broken.run_dir / "training_state.pt")["num_timesteps"] == 4 * CHUNK
    assert not train(TrainConfig(broken.run_dir, resume=True, progress=False)).interrupted
    assert_same_policies(whole.run_dir, broken.run_dir)
    results = [json.loads((run / "result.json").read_text())["evaluations"] for run in (whole.run_dir, broken.run_dir)]
    assert results[0] == results[1]


WITHOUT_SB3 = """
import json, sys
sys.modules["stable_baselines3"] = sys.modules["sb3_contrib"] = None
from collections.abc import Callable
from dataclasses import replace
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import load_policy
for directory in sys.argv[1:]:
    policy = load_policy(directory)
    validation = replace(policy.record.env, split="validation", num_scenes=4)
    print(json.dumps(evaluate(policy, config=validation).mean_loss().tolist()))
"""


def test_their_policies_act_as_in_training_without_sb3(tmp_path: Path) -> None:
    results = [train(tiny(tmp_path / algo, algo)) for algo in ALGOS]
    directories = [str(result.last_policy_dir) for result in results]
    command = [sys.executable, "-c", WITHOUT_SB3, *directories]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line, result in zip(done.stdout.splitlines(), results, strict=True):
        np.testing.assert_allclose(json.loads(line), result.evaluations[-1]["loss"], rtol=1e-5)


@pytest.mark.parametrize("algo", ALGOS)
def test_the_network_acts_as_the_model(tmp_path: Path, algo: str) -> None:
    learner = find_algorithm(algo).make(prepare(tiny(tmp_path, algo)))
    assert isinstance(learner, OffPolicyLearner)
    wanted, _ = learner.model.predict(learner.env.reset(), deterministic=True)  # type: ignore[arg-type]
    given = glimpse_env(learner.env).glimpse_envs.observation_tensors()
    with torch.no_grad():
        if algo == "dqn":
            found = learner.network.eval().values(given).argmax(dim=1).numpy()  # type: ignore[operator]
        else:
            found = learner.network.eval().distribution(given).mode.numpy()  # type: ignore[operator]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    learner.close()


@pytest.mark.parametrize("algo", ALGOS)
def test_their_policies_are_benchmarked(tmp_path: Path, algo: str) -> None:
    result = train(tiny(tmp_path / "run", algo, updates=2))
    policy = load_policy(result.last_policy_dir)
    assert policy.record.algorithm == find_algorithm(algo).title
    env = replace(policy.record.env, split="test", num_scenes=4)
    compared = BenchmarkConfig(
        output=tmp_path, policies=("random",), learned=(f"mine={result.last_policy_dir}",), reference="random"
    )
    rows = [entry.label for entry in plan(compared, env).entries if entry.learned]
    assert rows == (["mine"] if algo == "dqn" else ["mine", "mine, sampled"])
    if algo != "dqn":
        sampled = evaluate(policy.sampling(), config=replace(policy.record.env, split="validation", num_scenes=4))
        assert not np.array_equal(sampled.viewpoints[:, 1], sampled.viewpoints[:, 2])


@pytest.mark.parametrize("algorithm", [A2C, DQN, TD3])
def test_the_extractor_serves_any_algorithm(algorithm: Any) -> None:
    action: dict[str, Any] = {"action": "continuous"} if algorithm is TD3 else {"grid_centers": 3}
    envs = make_sb3_env("CanViT/FashionSegmentation-v0", 4, num_scenes=14, device="cpu", budget=3, **action)
    options: dict[str, Any] = {} if algorithm is A2C else {"buffer_size": 64, "learning_starts": 8}
    model = algorithm(
        "MultiInputPolicy", envs, device="cpu", seed=0, **options,
        policy_kwargs={"features_extractor_class": SpatialExtractor, "features_extractor_kwargs": SMALL},
    )  # fmt: skip
    learned = [key for key in model.policy.state_dict() if "encoder.trunk.from_canvas" in key and "target" not in key]
    before = {key: model.policy.state_dict()[key].clone() for key in learned}
    model.learn(40)
    after = model.policy.state_dict()
    assert before and all(not torch.equal(value, after[name]) for name, value in before.items())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("dqn", {"action": "continuous"}, "dqn needs a table of viewpoints"),
        ("sac", {"action": "grid"}, "needs action='continuous', but the environment's actions are 'grid'"),
        ("dqn", {"budget": 4}, "train_freq must be a multiple of the 3 decisions"),
        ("dqn", {"budget": 9, "first_glimpse": "random"}, "train_freq must be at least the 8 decisions"),
        ("sac", {"budget": 9, "allow_stop": True}, "Try --hyper '{\"train_freq\": 8}'"),
    ]
    for algo, env_kwargs, message in refused:
        with pytest.raises(ValueError, match=message):
            prepare(tiny(tmp_path / "run", algo, **env_kwargs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net_arch": 256}, r"net_arch must be a list of at least one width, such as \[256\], got 256"),
        ({"encoder": {"width": 3}}, "unknown hyperparameter encoder width; there are: features_dim, channels"),
        ({"encoder": {"channels": "x"}}, "encoder channels must be an integer >= 1, got 'x'"),
    ],
)
def test_bad_hyperparameters_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_hyperparameters("CanViT/FashionSearch-v0", changes, algo="dqn")


@pytest.mark.parametrize("option", ["exploration", "batch_size", "n_steps"])
def test_unknown_options_of_an_algorithm_are_named(tmp_path: Path, option: str) -> None:
    config = tiny(tmp_path / "run", "dqn")
    hyper = json.loads(config.hyper or "") | {"options": {option: 2}}
    with pytest.raises(ValueError, match=rf"options {option}; there are: .*exploration_fraction"):
        train(replace(config, hyper=json.dumps(hyper)))


@pytest.mark.parametrize("algo", ALGOS)
def test_numbers_that_are_not_finite_end_a_run_and_its_last_checkpoint_is_kept(tmp_path: Path, algo: str) -> None:
    config = tiny(tmp_path, algo, updates=12)
    hyper = json.loads(config.hyper or "{}") | {"learning_rate": 1e30}
    with pytest.raises(
        FloatingPointError, match=r"the gradient of .* is not finite. The last good checkpoint, of deci"
    ):
        train(replace(config, hyper=json.dumps(hyper)))
    assert not (tmp_path / "result.json").exists()
    load_policy(tmp_path / "last")
    modules = load_state(tmp_path / "training_state.pt")["modules"]["policy"]
    assert all(value.isfinite().all() for value in modules.values())


@pytest.mark.parametrize(
    ("algo", "option"), [("sac", "use_sde"), ("tqc", "use_sde"), ("crossq", "optimize_memory_usage")]
)
def test_options_that_policies_or_states_do_not_cover_are_refused(tmp_path: Path, algo: str, option: str) -> None:
    config = tiny(tmp_path, algo)
    hyper = json.loads(config.hyper or "{}") | {"options": {option: 1}}
    with pytest.raises(ValueError, match=rf"unknown hyperparameter options {option}; there are: "):
        train(replace(config, hyper=json.dumps(hyper)))


def test_sums_of_rewards_need_whole_episodes(tmp_path: Path) -> None:
    config = tiny(tmp_path, "crossq", allow_stop=True, glimpse_cost=0.01)
    hyper = json.loads(config.hyper or "{}") | {"options": {"n_steps": 3}}
    with pytest.raises(ValueError, match=r"episodes are cut between rollouts: leave it out \(got 3\)"):
        train(replace(config, hyper=json.dumps(hyper)))
