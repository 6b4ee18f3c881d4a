"""The warm start learns which viewpoints gain, is reproducible, and PPO goes on from it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.ppo.policy import ViewpointPolicy
from agents.ppo.warm_start import WarmStart, discounted_returns, learn, warm_start
from agents.settings import TrainConfig
from agents.train import train
from agents.tried import TriedViewpoints, gains_of
from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.observations import ObservationLayout
from canvit_gym.policies.learned import load_policy, load_record
from canvit_gym.policies.lookahead import outcomes_after
from canvit_gym.policies.networks import action_options
from canvit_gym.policies.policy_record import describe_inputs
from canvit_gym.vector_env import GlimpseVectorEnv

CONFIG = EnvConfig(num_scenes=16, device="cpu", budget=3, grid_scales=(0.5,), grid_centers=3)
RETURNS = partial(discounted_returns, gamma=1.0, normalize="pooled", center=True, clip=5.0)


def make_policy(config: EnvConfig, **kwargs: Any) -> ViewpointPolicy:
    actions = build_actions(config)
    torch.manual_seed(0)
    layout = ObservationLayout.from_json(describe_inputs(config).layout)
    options: dict[str, Any] = action_options(actions) | {"channels": 16, "context_dim": 16, "blocks": 1} | kwargs
    return ViewpointPolicy(layout.space, actions.space, lambda _: 1e-3, **options)


def warmed(policy: ViewpointPolicy, config: EnvConfig = CONFIG, **options: Any) -> list[dict[str, float]]:
    given: dict[str, Any] = {"states": 64, "round_states": 32, "candidates": 4, "epochs": 2} | options
    return warm_start(policy.plain, config=config, options=WarmStart(**given), returns_of=RETURNS, num_envs=8)


@pytest.mark.parametrize("objective", ["regression", "ranking"])
def test_the_actor_learns_what_gains(objective: str) -> None:
    """On the few scenes it saw, what it prefers is better than chance by far."""
    config = replace(CONFIG, budget=2)
    policy = make_policy(config)
    options: dict[str, Any] = dict(states=48, round_states=16, candidates=9, epochs=20, batch_size=8)
    history = warmed(policy, config, objective=objective, **options)
    assert [record["states"] for record in history] == [16, 32, 48]
    assert history[-1]["loss"] < history[0]["loss"]
    if objective == "regression":
        assert history[-1]["explained"] > 0.15 > abs(history[0]["explained"])
    envs = GlimpseVectorEnv(16, autoreset_mode="disabled", **vars(config))
    envs.reset(seed=5)
    actions: Any = envs.actions
    gains = envs.episodes.potentials["loss"] - outcomes_after(envs.episodes, actions.viewpoints)  # [A, N]
    with torch.no_grad():
        probabilities = policy.get_distribution(envs.observation_tensors()).distribution.probs.numpy().T  # type: ignore[union-attr]
        values = policy.predict_values(envs.observation_tensors()).numpy()  # type: ignore[arg-type]
    expected, chance, best = (probabilities * gains).sum(axis=0).mean(), gains.mean(), gains.max(axis=0).mean()
    assert (expected - chance) / (best - chance) > (0.3 if objective == "regression" else 0.1)
    assert values.std() > 0.01
    envs.close()


def test_the_same_seed_gives_the_same_policy() -> None:
    policies = [make_policy(CONFIG) for _ in range(2)]
    histories = []
    for noise, policy in enumerate(policies):
        torch.manual_seed(100 + noise)
        histories.append(warmed(policy))
    assert histories[0] == histories[1]
    for name, value in policies[0].state_dict().items():
        assert torch.equal(value, policies[1].state_dict()[name]), name


@pytest.mark.parametrize("dataset", ["fashion-segmentation", "fashion-classification"])
@pytest.mark.parametrize("reward", ["loss_reduction", "relative_loss_reduction", "soft_score_gain"])
def test_what_is_tried_pays_what_a_step_would(reward: str, dataset: str) -> None:
    config = replace(CONFIG, reward=reward, dataset=dataset)  # type: ignore[arg-type]
    envs = GlimpseVectorEnv(8, autoreset_mode="disabled", **vars(config))
    envs.reset(seed=3)
    actions: Any = envs.actions
    promised = gains_of(reward, envs.episodes, actions.viewpoints[:4])  # [4, N]
    _, paid, *_ = envs.step(np.full(8, 2))
    np.testing.assert_allclose(promised[2], paid, atol=1e-6)
    assert np.ptp(paid) > 0
    envs.close()


def test_a_score_is_stood_for_by_the_soft_one() -> None:
    """In its units, so that the cost of a glimpse is worth the same to both."""
    envs = GlimpseVectorEnv(8, autoreset_mode="disabled", **vars(replace(CONFIG, reward="score_gain")))
    envs.reset(seed=3)
    table = envs.actions.viewpoints[:4]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(
        *(gains_of(reward, envs.episodes, table) for reward in ("score_gain", "soft_score_gain"))
    )
    envs.close()


def test_nan_stops_before_the_parameters_with_the_round_and_the_cure() -> None:
    policy = make_policy(CONFIG)
    steps: list[int] = []

    def poison(grad: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return grad if len(steps) < 3 else grad * float("nan")

    policy.get_parameter("value_net.net.2.bias").register_hook(poison)
    with pytest.raises(FloatingPointError, match=r"round 1 of 2: its gradient is not finite. A smaller learning_rate"):
        warmed(policy, batch_size=8)
    assert all(value.isfinite().all() for value in policy.state_dict().values())


@pytest.mark.parametrize(
    "changes",
    [
        {"allow_stop": True, "glimpse_cost": 0.01, "reward": "relative_loss_reduction"},
        {"action": "quadtree", "reward": "score_gain", "first_glimpse": None},
        {"dataset": "fashion-classification", "observation_dtype": "float16", "reward": "soft_score_gain"},
    ],
    ids=str,
)
def test_every_environment_with_a_table(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    policy = make_policy(config, network="pointer", mask_seen=True)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    history = warmed(policy, config)
    assert all(np.isfinite(list(record.values())).all() for record in history)
    assert any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_a_stop_is_as_likely_as_it_is_best_among_the_tried() -> None:
    """Though each of the tried viewpoints stands for several of the table, and the stop for itself."""
    config = replace(CONFIG, allow_stop=True)
    network, num = make_policy(config).plain, 400
    envs, rng = GlimpseVectorEnv(1, **vars(config)), np.random.default_rng(0)
    envs.reset(seed=0)
    chosen = np.stack([[*rng.choice(9, 2, replace=False), 9] for _ in range(num)])
    stop_gains = np.where(np.arange(num) % 5 < 2, 1.0, -1.0)  # best in 40 % of the states
    data = TriedViewpoints(
        observations={
            key: value.repeat(num, *[1] * (value.ndim - 1)) for key, value in envs.observation_tensors().items()
        },
        chosen=torch.from_numpy(chosen),
        gains=torch.from_numpy(np.column_stack([rng.random((num, 2)), stop_gains])).float(),
        rewards=torch.zeros(num // 2, 2, dtype=torch.float64),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    options = WarmStart(states=num, candidates=2, epochs=10, objective="cloning", vf_coef=0.0)
    learn(network, optimizer, data, torch.zeros(num), options, rate=lambda done: 3e-3 * (1 - done))
    with torch.no_grad():
        (probabilities,) = network.distribution(envs.observation_tensors()).probs  # type: ignore[attr-defined]
    envs.close()
    assert probabilities[-1] == pytest.approx(0.4, abs=0.06)


def test_viewpoints_that_are_allowed_once() -> None:
    """Random viewpoints of the first round, too: an environment refuses one that was taken."""
    gaze = ("canvas", "uncertainty", "viewpoint", "gaze", "time")
    config = replace(CONFIG, revisit=False, budget=9, observations=gaze, reward="score_area")
    history = warmed(make_policy(config, network="window", inhibition=0.0), config)
    assert [record["states"] for record in history] == [64, 128]  # whole episodes of eight environments


def test_returns_are_those_of_normalized_rewards() -> None:
    rewards = np.array([[1.0, 2.0], [3.0, 6.0]])
    raw = discounted_returns(rewards, gamma=0.5, normalize=None, center=True, clip=5.0)
    np.testing.assert_allclose(raw, [[2, 2], [6, 6]])
    pooled = discounted_returns(rewards, gamma=0.5, normalize="pooled", center=True, clip=None)
    np.testing.assert_allclose(pooled, raw / rewards.std(), rtol=1e-6)
    per_step = discounted_returns(rewards, gamma=0.0, normalize="per_step", center=True, clip=None)
    np.testing.assert_allclose(per_step, [[-1, -1], [1, 1]], rtol=1e-6)


def test_returns_are_of_clipped_rewards() -> None:
    rewards = np.array([[100.0, 0.0]] + [[0.0, 0.0]] * 49)  # one reward of nearly ten standard deviations
    returns = discounted_returns(rewards, gamma=1.0, normalize="pooled", center=False, clip=5.0)
    np.testing.assert_allclose(returns[0], [5, 0])
    whole = discounted_returns(rewards, gamma=1.0, normalize="pooled", center=False, clip=None)
    assert whole[0, 0] == pytest.approx(100 / rewards.std())


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="warm_start candidates must be an integer >= 2, got 1"):
        WarmStart(states=8, candidates=1)
    with pytest.raises(ValueError, match="unknown warm_start objective 'hope'; choose one of regression, ranking"):
        WarmStart(objective="hope")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4 viewpoints of a table are tried"):
        warmed(make_policy(replace(CONFIG, action="continuous")), replace(CONFIG, action="continuous"))
    with pytest.raises(ValueError, match="fewer candidates"):
        warmed(make_policy(CONFIG), candidates=10)


def test_training_goes_on_from_it_and_resumes_to_the_bit(tmp_path: Path) -> None:
    hyper = {
        "n_envs": 4, "n_steps": 4, "batch_size": 8, "n_epochs": 1, "warm_start": {"candidates": 3, "round_states": 16},
        "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None},
    }  # fmt: skip
    env_kwargs = {"num_scenes": 14, "device": "cpu", "budget": 3, "grid_centers": 3}
    whole = TrainConfig(
        tmp_path / "whole", env_kwargs=json.dumps(env_kwargs), hyper=json.dumps(hyper), total_timesteps=32,
        warm_start_states=32, eval_every=32, eval_scenes=4, gaze_scenes=0, progress=False,
    )  # fmt: skip
    trained = train(whole)
    # What the warm start is worth alone is told, and it may be the best policy.
    assert [found["num_timesteps"] for found in trained.evaluations] == [0, 32]
    least = min(trained.evaluations, key=lambda found: found["loss"][-1])
    assert load_record(trained.best_policy_dir).training == {
        "num_timesteps": least["num_timesteps"], "seed": 0, "validation": least,
    }  # fmt: skip
    alone = evaluate(
        load_policy(tmp_path / "whole" / "warm_start"),
        config=replace(load_record(trained.best_policy_dir).env, split="validation", num_scenes=4),
    )
    np.testing.assert_allclose(alone.mean_loss(), trained.evaluations[0]["loss"])
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert [record["states"] for record in result["warm_start"]] == [16, 32]
    assert load_record(tmp_path / "whole" / "last").hyperparameters["warm_start"]["states"] == 32

    half = replace(whole, run_dir=tmp_path / "half")
    train(replace(half, total_timesteps=16))
    with pytest.raises(ValueError, match="begun with hyper="):
        train(replace(half, resume=True, warm_start_states=64))
    train(replace(half, resume=True))
    files = [(tmp_path / name / "last" / "policy.safetensors").read_bytes() for name in ("whole", "half")]
    assert files[0] == files[1]
    assert json.loads((tmp_path / "half" / "result.json").read_text())["warm_start"] == result["warm_start"]
