"""MaskablePPO and RecurrentPPO: masks are kept, memories last an episode, runs resume to the bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents.algorithms import find_algorithm, load_hyperparameters
from agents.settings import TrainConfig, prepare
from agents.train import train
from canvit_gym.command_line import env_config
from canvit_gym.evaluation import evaluate
from canvit_gym.policies.learned import LearnedPolicy, load_policy
from canvit_gym.policies.policy_record import as_trained
from canvit_gym.stopping import stops

ALGOS = ("maskable_ppo", "recurrent_ppo")
ROLLOUT = 16
SMALL = {"features_dim": 16, "channels": 8, "context_dim": 16, "blocks": 1, "cell_channels": 2}
ENV: dict[str, Any] = {"num_scenes": 14, "device": "cpu", "canvas_size": 4, "map_size": 8}


def tiny(run_dir: Path, algo: str, *, updates: int = 3, **env_kwargs: Any) -> TrainConfig:
    env = ENV | {"budget": 3, "grid_centers": 3} | env_kwargs
    network = {"encoder": SMALL, "net_arch": [16], **({"lstm_size": 8} if algo == "recurrent_ppo" else {})}
    hyper = {
        "n_envs": 4,
        "n_steps": 4,
        "batch_size": 8,
        "n_epochs": 2,
        "learning_rate": 1e-3,
        "policy_kwargs": network,
        "entropy_floor": None,
    }
    return TrainConfig(
        run_dir, algo=algo, env_kwargs=json.dumps(env), hyper=json.dumps(hyper), total_timesteps=updates * ROLLOUT,
        eval_every=2 * ROLLOUT, eval_scenes=4, gaze_scenes=0, progress=False, seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> LearnedPolicy:
    run_dir = tmp_path_factory.mktemp("recurrent")
    train(tiny(run_dir, "recurrent_ppo"))
    return load_policy(run_dir / "last")


@pytest.mark.parametrize(("algo", "stop"), [("maskable_ppo", False), ("recurrent_ppo", False), ("recurrent_ppo", True)])
def test_resumed_equals_uninterrupted(tmp_path: Path, algo: str, stop: bool) -> None:
    more = {"allow_stop": True, "glimpse_cost": 0.01} if stop else {}
    whole = train(tiny(tmp_path / "whole", algo, **more))
    train(tiny(tmp_path / "cut", algo, updates=2, **more))
    cut = train(TrainConfig(tmp_path / "cut", resume=True, total_timesteps=3 * ROLLOUT, progress=False))
    assert cut.evaluations == whole.evaluations and len(whole.evaluations) == 2
    ours, theirs = (load_file(run.last_policy_dir / "policy.safetensors") for run in (whole, cut))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


def test_masks_are_kept_where_every_tile_is_taken(tmp_path: Path) -> None:
    """Nine tiles, nine decisions: whoever repeats one is refused by the environment."""
    config = tiny(tmp_path, "maskable_ppo", updates=1, budget=10, revisit=False, grid_scales=[0.25])
    hyper = json.loads(config.hyper or "") | {"n_steps": 9, "batch_size": 12}
    run = train(TrainConfig(**vars(config) | {"hyper": json.dumps(hyper), "eval_every": 0}))
    policy = load_policy(run.last_policy_dir)
    env = gym.make(policy.record.env_id, **policy.record.env.to_json())
    observation, info = env.reset(seed=0)
    taken, ended = [], False
    while not ended:
        action, _ = policy.predict(observation, deterministic=False, action_masks=info["action_mask"])
        observation, _, ended, _, info = env.step(action)
        taken.append(action)
    assert sorted(taken) == list(range(9))
    with pytest.raises(ValueError, match=r"action_masks must be \[1, 9\].*got \(1, 4\)"):
        policy.predict(observation, action_masks=np.ones(4, dtype=bool))


def test_what_was_forbidden_in_training_stays_so(tmp_path: Path) -> None:
    """The registered environment allows returns; a policy that was trained without them takes none there."""
    run = train(tiny(tmp_path, "maskable_ppo", updates=1, revisit=False, grid_centers=2, grid_scales=[0.5]))
    policy = load_policy(run.last_policy_dir)
    registered = env_config(policy.record.env_id, ENV)
    own = as_trained(registered, policy.record)
    assert registered.revisit and not own.revisit and not as_trained(replace(own, revisit=True), policy.record).revisit
    assert not as_trained(own, replace(policy.record, env=replace(policy.record.env, revisit=True))).revisit
    chosen = evaluate(policy, config=replace(own, budget=5)).viewpoints[:, 1:]  # the first glimpse is given
    assert all(len(np.unique(scene, axis=0)) == 4 for scene in chosen)


def test_the_plain_network_is_what_sb3_contrib_learned(tmp_path: Path) -> None:
    plan = prepare(tiny(tmp_path, "recurrent_ppo"))
    learner: Any = find_algorithm("recurrent_ppo").make(plan)
    learner.begin(progress=False)
    model, network = learner.model, learner.network.eval()
    state, memory = None, None
    rng = np.random.default_rng(0)
    for step in range(3):
        observation = {
            key: rng.random((4, *box.shape), dtype=np.float32) for key, box in learner.env.observation_space.items()
        }
        tensors = {key: torch.from_numpy(value) for key, value in observation.items()}
        begins = np.full(4, step == 0)
        theirs, state = model.predict(observation, state=state, episode_start=begins, deterministic=True)
        with torch.no_grad():
            distribution, memory = network.remember(tensors, memory)
        np.testing.assert_array_equal(distribution.probs.argmax(dim=1).numpy(), theirs)
        np.testing.assert_allclose(memory[0].numpy(), state[0], atol=1e-6)
    learner.close()


def test_a_memory_lasts_an_episode(recurrent: LearnedPolicy) -> None:
    """In evaluations as in gym.make_vec, where `predict` is handed the state."""
    config = recurrent.record.env
    envs = gym.make_vec(recurrent.record.env_id, num_envs=3, **config.to_json() | {"split": "validation"})
    observation, _ = envs.reset(options={"scene": [0, 1, 2]}, seed=0)
    chosen, state = [], None
    for step in range(2):
        action, state = recurrent.predict(observation, state, np.full(3, step == 0))
        chosen.append(action)
        observation, *_ = envs.step(action)
    assert state is not None and state[0].shape == (1, 3, 8) and state[0].any()
    fresh, _ = recurrent.predict(observation, None)
    begun, _ = recurrent.predict(observation, state, np.ones(3, dtype=bool))
    np.testing.assert_array_equal(fresh, begun)  # what begins remembers nothing
    found = evaluate(recurrent, config=replace(config, split="validation", num_scenes=3))
    expected = recurrent.actions.decode(np.stack(chosen, axis=1).ravel())[0].reshape(3, 2, 3)
    np.testing.assert_array_equal(found.viewpoints[:, 1:], expected)
    again = evaluate(recurrent, config=replace(config, split="validation", num_scenes=3), batch_size=1)
    np.testing.assert_array_equal(again.viewpoints, found.viewpoints)


def test_asking_where_to_stop_leaves_the_memory(tmp_path: Path) -> None:
    run = train(tiny(tmp_path, "recurrent_ppo", updates=1, allow_stop=True, glimpse_cost=0.01))
    policy = load_policy(run.last_policy_dir)
    config = replace(policy.record.env, split="validation", num_scenes=4)
    asked, plain = stops(policy, config).evaluation, evaluate(policy, config=config)
    np.testing.assert_array_equal(asked.viewpoints, plain.viewpoints)


@pytest.mark.parametrize(
    ("algo", "changes", "message"),
    [
        ("maskable_ppo", {"policy_kwargs": {"encoder": {}, "net_arch": []}}, "net_arch must be a list of at least one"),
        ("maskable_ppo", {"policy_kwargs": {"channels": 3}}, "must hold encoder, net_arch"),
        ("maskable_ppo", {"policy_kwargs": {"encoder": {"width": 3}}}, "unknown policy_kwargs encoder width"),
        ("recurrent_ppo", {"policy_kwargs": {"lstm_size": 0}}, "lstm_size must be an integer >= 1, got 0"),
        ("recurrent_ppo", {"warm_start": {"states": 8}}, "a warm start is for ppo alone"),
        ("recurrent_ppo", {"rollout_tensors": "float16"}, "must be null, got 'float16'"),
    ],
)
def test_bad_hyperparameters_are_named(algo: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_hyperparameters("CanViT/FashionSearch-v0", changes, algo=algo)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a table of viewpoints"):
        prepare(tiny(tmp_path, "maskable_ppo", action="continuous"))
    with pytest.raises(ValueError, match="revisit=False"):
        prepare(tiny(tmp_path, "recurrent_ppo", revisit=False))
