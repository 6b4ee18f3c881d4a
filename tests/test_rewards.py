"""Rewards are differences of a potential, less what glimpses cost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ENV_IDS

from canvit_gym.rewards import RELATIVE_LOSS_FLOOR, step_reward
from canvit_gym.vector_env import GlimpseVectorEnv

MakeVec = Callable[..., GlimpseVectorEnv]


def episode(envs: GlimpseVectorEnv, actions: list[np.ndarray]) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """(rewards [T, N], first info, last info)."""
    _, first = envs.reset(seed=0)
    rewards, info = [], first
    for action in actions:
        _, reward, _, _, info = envs.step(action)
        rewards.append(reward)
    return np.stack(rewards), first, info


def sampled(envs: GlimpseVectorEnv, steps: int) -> list[np.ndarray]:
    envs.action_space.seed(1)
    return [envs.action_space.sample() for _ in range(steps)]


@pytest.mark.parametrize("first_glimpse", ["full", None])
@pytest.mark.parametrize(("reward", "key", "sign"), [("score_gain", "score", 1), ("loss_reduction", "loss", -1)])
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_return_is_final_minus_first(
    make_vec: MakeVec, env_id: str, reward: str, key: str, sign: int, first_glimpse: str | None
) -> None:
    envs = make_vec(
        8,
        env_id,
        reward=reward,
        track_score=True,
        autoreset_mode="disabled",
        first_glimpse=first_glimpse,
        glimpse_cost=0.25,
    )
    steps = 4 if first_glimpse else 5
    rewards, first, last = episode(envs, sampled(envs, steps))
    expected = sign * (last[key].astype(float) - first[key]) - 0.25 * steps
    np.testing.assert_allclose(rewards.sum(axis=0), expected, atol=1e-5)
    assert np.ptp(rewards) > 0 or key == "score"


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_relative_loss_reduction_is_a_share_of_the_loss_before(make_vec: MakeVec, env_id: str) -> None:
    envs = make_vec(8, env_id, reward="relative_loss_reduction", autoreset_mode="disabled")
    rewards, _, last = episode(envs, sampled(envs, 4))
    curve = last["loss_curve"].astype(float)
    floor = np.maximum(curve[:, :-1], RELATIVE_LOSS_FLOOR)
    np.testing.assert_allclose(rewards.T, (curve[:, :-1] - curve[:, 1:]) / floor, atol=1e-5)


@pytest.mark.parametrize("first_glimpse", ["full", None])
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_soft_score_gains_what_probabilities_gain(make_vec: MakeVec, env_id: str, first_glimpse: str | None) -> None:
    envs = make_vec(8, env_id, reward="soft_score_gain", autoreset_mode="disabled", first_glimpse=first_glimpse)
    envs.reset(seed=0)
    before = soft_score(envs)
    np.testing.assert_allclose(envs.episodes.potentials["soft_score"], before, atol=1e-6)
    for action in sampled(envs, 4):
        _, rewards, *_ = envs.step(action)
        after = soft_score(envs)
        np.testing.assert_allclose(rewards, after - before, atol=1e-6)
        assert np.ptp(rewards) > 0
        before = after


def soft_score(envs: GlimpseVectorEnv) -> np.ndarray:
    """By its definition, class by class and scene by scene."""
    logits, truth = envs.episodes.logits, envs.episodes.truth
    assert logits is not None
    scores = []
    for row, probabilities in enumerate(logits.double().softmax(dim=1).numpy()):
        if logits.ndim == 2:
            scores.append(probabilities[int(truth["labels"][row])])
            continue
        shares = truth["shares"][row].double().numpy()
        asked = truth["goal"][row : row + 1].tolist() if "goal" in truth else np.flatnonzero(shares.sum(axis=(1, 2)))
        ious = [
            (shares[c] * probabilities[c]).sum() / (shares[c] + probabilities[c] - shares[c] * probabilities[c]).sum()
            for c in asked
        ]
        scores.append(np.mean(ious))
    return np.array(scores)


def test_what_is_not_labelled_counts_for_no_soft_score(make_vec: MakeVec) -> None:
    envs = make_vec(2, reward="soft_score_gain")
    envs.reset(seed=0)
    logits, truth = envs.episodes.logits, dict(envs.episodes.truth)
    assert logits is not None
    left = torch.zeros_like(truth["shares"])
    left[..., :8] = truth["shares"][..., :8]  # the right half of the scenes has no labels
    whatever = logits.clone()
    whatever[..., 8:] = torch.randn_like(whatever[..., 8:])
    one, other = (
        envs.task.potentials["soft_score"].measure(reading, {**truth, "shares": left}) for reading in (logits, whatever)
    )
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one, envs.task.potentials["soft_score"].measure(logits, truth))


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
def test_final_score_pays_at_the_end_only(make_vec: MakeVec, mode: str) -> None:
    envs = make_vec(8, reward="final_score", autoreset_mode=mode)
    rewards, _, last = episode(envs, sampled(envs, 4))
    last = last.get("final_info", last)
    assert not rewards[:-1].any()
    np.testing.assert_allclose(rewards[-1], last["score"], atol=1e-7)
    assert rewards[-1].any()


def test_curves_hold_the_whole_episode(make_vec: MakeVec) -> None:
    envs = make_vec(4, reward="score_gain", autoreset_mode="disabled")
    _, info = envs.reset(seed=0)
    seen = [(info["loss"], info["score"])]
    for action in sampled(envs, 4):
        *_, info = envs.step(action)
        seen.append((info["loss"], info["score"]))
    for i, key in enumerate(("loss_curve", "score_curve")):
        assert info[key].shape == (4, 5) and info[f"_{key}"].all()
        assert np.array_equal(info[key], np.stack([pair[i] for pair in seen], axis=1))


@pytest.mark.parametrize("first_glimpse", ["full", None])
def test_curves_of_stopped_episodes_keep_their_last_value(make_vec: MakeVec, first_glimpse: str | None) -> None:
    """Never NaN, which is unequal to itself: Gymnasium's checkers would call equal infos different."""
    envs = make_vec(3, action="quadtree", allow_stop=True, autoreset_mode="disabled", first_glimpse=first_glimpse)
    _, first = envs.reset(seed=0)
    *_, info = envs.step(np.array([21, 1, 21]))
    assert info["_loss_curve"].tolist() == [True, False, True]
    assert np.array_equal(info["loss_curve"][[0, 2]], np.repeat(first["loss"][[0, 2], None], 5, axis=1))
    assert np.isfinite(info["loss_curve"]).all()


def test_the_score_is_the_scenes_miou(make_vec: MakeVec) -> None:
    """Against the definition: classes that occur in the scene's labels or its reading, averaged."""
    envs = make_vec(3, track_score=True)
    _, info = envs.reset(seed=0)
    labels = envs.scenes.load(info["scene"]).labels.numpy()
    assert envs.episodes.logits is not None
    predictions = envs.task.predict(envs.episodes.logits).numpy()
    for row in range(3):
        truth, read = labels[row], predictions[row]
        ious = [
            ((truth == c) & (read == c)).sum() / ((truth == c) | (read == c)).sum()
            for c in np.union1d(np.unique(truth), np.unique(read))
        ]
        assert info["score"][row] == pytest.approx(np.mean(ious), abs=1e-5)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_stop_costs_nothing_and_gains_nothing(make_vec: MakeVec, env_id: str) -> None:
    envs = make_vec(4, env_id, action="quadtree", allow_stop=True, glimpse_cost=0.5, autoreset_mode="disabled")
    _, before = envs.reset(seed=0)
    stop = len(envs.actions.viewpoints)  # pyright: ignore[reportAttributeAccessIssue]
    _, rewards, terminated, _, info = envs.step(np.array([stop, 0, stop, 0]))
    assert terminated.tolist() == [True, False, True, False]
    assert rewards[0] == rewards[2] == 0
    assert info["glimpses"].tolist() == [1, 2, 1, 2]
    np.testing.assert_allclose(rewards[[1, 3]], (before["loss"] - info["loss"])[[1, 3]] - 0.5, atol=1e-6)


def test_a_stop_still_pays_the_final_score(make_vec: MakeVec) -> None:
    envs = make_vec(2, action="quadtree", allow_stop=True, reward="final_score", autoreset_mode="disabled")
    _, info = envs.reset(seed=0)
    _, rewards, *_ = envs.step(np.array([21, 21]))
    np.testing.assert_allclose(rewards, info["score"], atol=1e-7)


@pytest.mark.parametrize("budget", [1, 2])
def test_an_area_without_a_glimpse_pays_nothing(budget: int) -> None:
    paid = step_reward(
        "score_area", np.array([0.5]), np.array([0.5]), ended=np.array([True]), stopped=np.array([True]),
        glimpses=np.array([0]), budget=budget,
    )  # fmt: skip
    assert paid.tolist() == [0]


def test_a_solved_scene_does_not_divide_by_zero() -> None:
    pair = (np.zeros(1, dtype=np.float32), np.full(1, 0.01, dtype=np.float32))
    reward = step_reward("relative_loss_reduction", *pair)
    np.testing.assert_allclose(reward, [-0.01 / RELATIVE_LOSS_FLOOR], rtol=1e-6)
