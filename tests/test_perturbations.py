"""Perturbations: each does what it says, through the vector environment and through exact evaluation alike."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from canvit_pytorch.benchmarks.ade20k import IGNORE_LABEL
from numpy.typing import NDArray

import canvit_gym  # noqa: F401  (registers the ids)
from canvit_gym.assembly import build_scenes
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.perturbations import (
    PERTURBATIONS,
    Brightness,
    DroppedGlimpses,
    GlimpseResolution,
    MissedTargets,
    Perturb,
    Perturbation,
    PerturbedLocatedScenes,
    PixelNoise,
    SmallerScenes,
    perturbation_from_record,
    perturbation_named,
    perturbations_table,
)
from canvit_gym.policies import make_policy
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen
from canvit_gym.testing import check_vector_env
from canvit_gym.vector_env import GlimpseVectorEnv

MakeVec = Callable[..., GlimpseVectorEnv]

SEGMENTATION, SEARCH, ORDER = (f"CanViT/Fashion{name}-v0" for name in ("Segmentation", "Search", "Order"))
ZERO: tuple[Perturbation, ...] = (
    DroppedGlimpses(probability=0.0), MissedTargets(deviation=0.0), Brightness(factor=1.0), PixelNoise(deviation=0.0),
    SmallerScenes(factor=1.0), GlimpseResolution(factor=1.0),
)  # fmt: skip
NUM = 6


def evaluation(
    *perturbations: Perturbation, env_id: str = SEGMENTATION, spec: str = "random", batch_size: int = 64
) -> Evaluation:
    config = env_config(env_id, {"split": "test", "num_scenes": NUM, "budget": 3, "device": "cpu"})
    policy = make_policy(spec, config=config, num_glimpses=3)
    return evaluate(policy, config=config, perturbations=perturbations, batch_size=batch_size)


def arrays(found: Evaluation) -> list[NDArray[Any]]:
    return [found.viewpoints, found.loss, *found.counts.values()]


def assert_same(one: Evaluation, other: Evaluation) -> None:
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def plain() -> Evaluation:
    return evaluation()


def test_zero_strength_changes_not_a_bit(plain: Evaluation) -> None:
    for perturbation in ZERO:
        assert_same(evaluation(perturbation), plain)
    assert {type(one) for one in ZERO} == {type(one) for one in PERTURBATIONS.values()}


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_evaluation_repeats_and_is_changed(plain: Evaluation, name: str) -> None:
    perturbation = PERTURBATIONS[name]
    first = evaluation(perturbation)
    assert_same(first, evaluation(perturbation))
    assert not np.array_equal(first.loss, plain.loss)
    assert first.record["perturbations"] == [perturbation.record()] and "perturbations" not in plain.record
    np.testing.assert_allclose(evaluation(perturbation, batch_size=4).loss, first.loss, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_vector_environment_gives_evaluations_numbers(make_vec: MakeVec, name: str) -> None:
    """The same perturbed scenes and glimpses, whoever drives the episodes."""
    found = evaluation(PERTURBATIONS[name], spec="coarse_to_fine", env_id=SEARCH)
    config = env_config(SEARCH, {"split": "test", "num_scenes": NUM, "budget": 3, "device": "cpu"})
    intended = evaluation(spec="coarse_to_fine", env_id=SEARCH).viewpoints
    inner = make_vec(NUM, SEARCH, split="test", num_scenes=NUM, budget=3, action="quadtree", track_score=True)
    envs = Perturb(inner, name)
    envs.reset(options={"scene": np.arange(NUM), "goal": found.goal})
    for t in (1, 2):
        *_, info = envs.step(inner.actions.encode(intended[:, t]))
        np.testing.assert_array_equal(info["viewpoint"], found.viewpoints[:, t])
    np.testing.assert_array_equal(info["loss_curve"], found.loss)
    assert config.dataset == inner.config.dataset and "score_curve" in info


def test_evaluation_takes_names_as_the_wrapper_does() -> None:
    config = EnvConfig(split="test", num_scenes=2, device="cpu")
    policy = make_policy("center", config=config, num_glimpses=1)
    one, other = (
        evaluate(policy, config=config, num_glimpses=1, perturbations=[given])
        for given in ("darker", PERTURBATIONS["darker"])
    )
    assert one == other and one.record["perturbations"] == [PERTURBATIONS["darker"].record()]
    wrong: list[tuple[Any, type[Exception], str]] = [
        (["fog"], ValueError, "unknown perturbation 'fog'"),
        ("darker", TypeError, r"perturbations must be a list, got 'darker': pass \['darker'\]"),
        (PERTURBATIONS["darker"], TypeError, r"must be a list, got Brightness\(.*"),
    ]
    for given, kind, words in wrong:
        with pytest.raises(kind, match=words):
            evaluate(policy, config=config, perturbations=given)


def test_a_dropped_glimpse_leaves_everything_as_it_was(make_vec: MakeVec) -> None:
    """With all glimpses dropped the state stays, to the bit; with some of them, that of those."""
    keys = ("canvas", "uncertainty", "acuity", "glimpse", "viewpoint", "time")
    for probability in (1.0, 0.5):
        inner = make_vec(NUM, split="test", observations=keys, budget=4)
        envs = Perturb(inner, DroppedGlimpses(probability=probability))
        before, info = envs.reset()
        canvas, loss = inner.state.canvas.clone(), info["loss"].copy()
        dropped = ~envs.perturbations[0].shows(np.arange(NUM), np.ones(NUM, dtype=np.int64))
        assert dropped.all() if probability == 1 else 0 < dropped.sum() < NUM
        after, reward, *_, info = envs.step(np.full(NUM, 37))
        lost = torch.from_numpy(dropped)
        assert torch.equal(inner.state.canvas[lost], canvas[lost])
        assert info["glimpses"].tolist() == [2] * NUM and (after["time"] < before["time"]).all()
        for key in ("canvas", "uncertainty", "acuity"):
            np.testing.assert_array_equal(after[key][dropped], before[key][dropped])
        np.testing.assert_array_equal(info["loss"][dropped], loss[dropped])
        assert (reward[dropped] == 0).all() and (reward[~dropped] != 0).all()
        assert not torch.equal(inner.state.canvas[~lost], canvas[~lost]) or dropped.all()
        seen = inner.view(int(dropped.argmax())).glimpse
        assert (seen == seen[0, 0]).all() and (after["glimpse"][dropped] == seen.transpose(2, 0, 1)).all()
        assert (after["glimpse"][~dropped] != before["glimpse"][~dropped]).any() or dropped.all()


def test_numpy_numbers_are_plain_ones() -> None:
    """Records are JSON, and so are specs made from them."""
    one = DroppedGlimpses(probability=np.float32(0.5), seed=np.int64(2))  # type: ignore[arg-type]
    assert one == DroppedGlimpses(probability=0.5, seed=2)
    assert json.loads(json.dumps(one.record())) == one.record()
    config = env_config(SEGMENTATION, {"split": "test", "num_scenes": 4, "budget": 2, "device": "cpu"})
    policy = make_policy("random", config=config, num_glimpses=2)
    numbers: Any = {"batch_size": np.int64(2), "seed": np.int64(1), "num_glimpses": np.int64(2)}
    found = evaluate(policy, config=config, perturbations=(one,), **numbers)
    assert found.record["batch_size"] == 2 and type(found.seed) is int
    with pytest.raises(ValueError, match="seed must be an integer >= 0, got -1"):
        DroppedGlimpses(seed=-1)


def test_first_glimpses_are_shown() -> None:
    everything = evaluation(DroppedGlimpses(probability=1.0))
    np.testing.assert_array_equal(everything.loss, everything.loss[:, :1].repeat(3, axis=1))
    np.testing.assert_allclose(everything.loss[:, 0], evaluation().loss[:, 0])


def test_missed_targets_stay_inside_and_are_told(plain: Evaluation) -> None:
    found = evaluation(MissedTargets(deviation=0.1)).viewpoints
    np.testing.assert_array_equal(found[..., 2], plain.viewpoints[..., 2])
    off = np.abs(found[..., :2] - plain.viewpoints[..., :2])
    assert 0.01 < off[:, 1:].mean() < 0.2 and (np.abs(found[..., :2]) <= 1 - found[..., 2:] + 1e-6).all()
    other = evaluation(MissedTargets(deviation=0.1, seed=1)).viewpoints
    assert not np.array_equal(found, other)


def test_each_tile_is_taken_once_where_glimpses_miss(make_vec: MakeVec) -> None:
    """Masks follow what was chosen, not where it landed."""
    inner = make_vec(2, ORDER, revisit=False, split="test")
    envs = Perturb(inner, "missed")
    envs.reset()
    *_, info = envs.step(np.array([3, 7]))
    assert not info["action_mask"][0, 3] and not info["action_mask"][1, 7] and info["action_mask"].sum() == 30
    assert not np.array_equal(inner.episodes.viewpoints[:, 1], inner.episodes.targets[:, 1])
    found = evaluation(PERTURBATIONS["missed"], env_id=ORDER, spec="item_probability")
    assert found.loss.shape == (NUM, 3)


def scenes(env_id: str = SEGMENTATION) -> Any:
    return build_scenes(env_config(env_id, {"split": "test", "num_scenes": NUM, "device": "cpu"}))


def test_pixels_of_scenes() -> None:
    where = np.arange(NUM)
    source = scenes()
    before = source.load(where)
    values = before.images.float()
    brighter = Brightness(factor=1.5).perturb_scenes(source.load(where), where)
    assert torch.equal(brighter.images.float(), (1.5 * values).round().clamp(max=255))
    noisy = PixelNoise(deviation=10).perturb_scenes(source.load(where), where)
    unclipped = (values > 50) & (values < 205)
    assert float((noisy.images.float() - values)[unclipped].std()) == pytest.approx(10, abs=0.2)
    again = PixelNoise(deviation=10).perturb_scenes(source.load(where[[4, 2]]), where[[4, 2]])
    assert torch.equal(again.images, noisy.images[[4, 2]]), "a scene's noise is its own, whatever comes with it"
    for after in (brighter, noisy):
        assert torch.equal(after.labels, before.labels) and after.images.dtype == torch.uint8


def test_smaller_scenes_carry_their_labels_and_items() -> None:
    perturbation, source = SmallerScenes(factor=0.75), scenes()
    smaller = PerturbedLocatedScenes(source, [perturbation])
    before, after = (s.load(np.arange(NUM)) for s in (source, smaller))
    inside = after.labels != IGNORE_LABEL
    assert inside.flatten(1).sum(dim=1).tolist() == [96 * 96] * NUM
    for index in range(NUM):
        labels = after.labels[index][inside[index]].view(96, 96)
        shares = [torch.bincount(m.flatten().int(), minlength=11) / m.numel() for m in (before.labels[index], labels)]
        torch.testing.assert_close(*shares, atol=0.01, rtol=0)
        for item, was in zip(smaller.items(index), source.items(index), strict=True):
            assert (item.label, item.scale) == (was.label, 0.75 * was.scale)
            row, col = (round((c + 1) / 2 * 128 - 0.5) for c in (item.row, item.col))
            at, of = (2 * np.array([c - i.scale, c + i.scale]) for c, i in ((item.row, item), (was.row, was)))
            assert np.ptp(at) == pytest.approx(0.75 * np.ptp(of))
            near = after.labels[index][row - 4 : row + 5, col - 4 : col + 5]
            assert (near == item.label).any(), "the item is where its box says"
    assert not torch.equal(before.images, after.images) and repr(perturbation) in smaller.name


def test_labels_of_classes_stay() -> None:
    source = scenes("CanViT/FashionClassification-v0")
    for name, perturbation in PERTURBATIONS.items():
        batch = perturbation.perturb_scenes(source.load(np.arange(NUM)), np.arange(NUM))
        assert torch.equal(batch.labels, source.load(np.arange(NUM)).labels), name


def test_coarse_glimpses_hold_their_shape() -> None:
    glimpses = torch.randn(2, 3, 32, 32)
    coarse = GlimpseResolution(factor=0.25).perturb_glimpses(glimpses)
    assert coarse.shape == glimpses.shape and coarse.std() < glimpses.std() / 2
    flat = torch.ones(1, 3, 32, 32)
    torch.testing.assert_close(GlimpseResolution(factor=0.25).perturb_glimpses(flat), flat)


class ReadsGlimpses:
    """Remembers what a policy is shown of past glimpses."""

    info = PolicyInfo(name="reads", paper_name="reads", description="", deterministic=True)

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def reset(self, seen: Seen, *, seed: int) -> None: ...

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if t:
            self.shown.append(seen.glimpse(t - 1))
        return np.tile(np.array([0, 0, 1 if t == 0 else 0.5], dtype=np.float32), (seen.num, 1))

    def flops_per_decision(self, seen: Seen) -> int:
        return 0


def test_policies_see_glimpses_as_they_were() -> None:
    config = env_config(SEGMENTATION, {"split": "test", "num_scenes": NUM, "budget": 3, "device": "cpu"})
    for perturbation, same, sees in (
        (DroppedGlimpses(probability=1.0), True, False),
        (GlimpseResolution(factor=0.5), False, True),
    ):
        policies = ReadsGlimpses(), ReadsGlimpses()
        evaluate(policies[0], config=config)
        evaluate(policies[1], config=config, perturbations=[perturbation])
        (first, second), (perturbed_first, perturbed_second) = (policy.shown for policy in policies)
        assert torch.equal(first, perturbed_first) == same
        assert not torch.equal(second, perturbed_second) and bool(perturbed_second.any()) == sees


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_perturbed_environments_keep_gymnasiums_contract(make_vec: MakeVec, mode: str) -> None:
    inner = make_vec(3, budget=3, autoreset_mode=mode)
    check_vector_env(Perturb(inner, *PERTURBATIONS))


def test_wrappers_nest(make_vec: MakeVec) -> None:
    def rollout(envs: gym.vector.VectorEnv[Any, Any, Any]) -> NDArray[Any]:
        envs.reset(seed=3)
        return envs.step(np.array([5, 50, 500]))[4]["loss"]

    one = Perturb(make_vec(3), "noisy", "dropped", "coarse")
    other = Perturb(Perturb(Perturb(make_vec(3), "noisy"), "dropped"), "coarse")
    np.testing.assert_array_equal(rollout(one), rollout(other))


def test_a_wrapped_environment_begins_anew(make_vec: MakeVec) -> None:
    inner = make_vec(2)
    inner.reset()
    envs = Perturb(inner, "noisy")
    with pytest.raises(RuntimeError, match="call reset"):
        envs.step(np.array([0, 1]))


def test_bad_input_is_refused(make_vec: MakeVec, make_one: Callable[..., gym.Env[Any, Any]]) -> None:
    with pytest.raises(ValueError, match="unknown perturbation 'fog'; there are: dropped, missed"):
        perturbation_named("fog")
    with pytest.raises(ValueError, match="unknown perturbation 'fog'"):
        Perturb(make_vec(2), "fog")
    with pytest.raises(TypeError, match=r"a perturbation is a Perturbation or a name among dropped, .*, got 3"):
        Perturb(make_vec(2), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name at least one perturbation"):
        Perturb(make_vec(2))
    closed = make_vec(2)
    closed.close()
    with pytest.raises(RuntimeError, match="closed; make a new one"):
        Perturb(closed, "noisy")
    for wrong in (make_one(), gym.make_vec("CartPole-v1", num_envs=2)):
        with pytest.raises(TypeError, match="vector_entry_point"):
            Perturb(wrong, "noisy")  # type: ignore[arg-type]
    for make in (
        lambda: DroppedGlimpses(probability=1.5),
        lambda: MissedTargets(deviation=float("nan")),
        lambda: Brightness(factor=-1),
        lambda: PixelNoise(deviation="much"),  # type: ignore[arg-type]
        lambda: SmallerScenes(factor=0.5),
        lambda: GlimpseResolution(factor=0),
    ):
        with pytest.raises(ValueError, match="must be a number in"):
            make()
    with pytest.raises(ValueError, match="seed must be an integer >= 0"):
        replace(PERTURBATIONS["noisy"], seed=-1)


def test_perturbations_come_back_from_records() -> None:
    for perturbation in (*PERTURBATIONS.values(), PixelNoise(deviation=3, seed=7)):
        assert perturbation_from_record(json.loads(json.dumps(perturbation.record()))) == perturbation
    with pytest.raises(ValueError, match="under 'fog', which is no perturbation that is known here"):
        perturbation_from_record({"name": "fog", "seed": 0})
    with pytest.raises(ValueError, match="use the version that wrote the record"):
        perturbation_from_record({"name": "brightness", "seed": 0, "gamma": 2})


@dataclass(frozen=True, kw_only=True)
class Fog(Perturbation):
    """Of a user, who does not convert NumPy's numbers."""

    name = "fog"
    density: float = 0.0


def test_numbers_of_numpy_become_json() -> None:
    fog = Fog(density=np.float32(0.5))  # type: ignore[arg-type]
    assert json.loads(json.dumps(fog.record())) == {"name": "fog", "seed": 0, "density": 0.5}


def test_the_table_tells_every_perturbation() -> None:
    table = perturbations_table()
    assert all(f"| `{name}` | `{type(one).__name__}` |" in table for name, one in PERTURBATIONS.items())


class Blindfold(DroppedGlimpses):
    """Hides every glimpse of scenes from the third on, the first one too."""

    def shows(self, scene: NDArray[np.int64], t: NDArray[np.int64]) -> NDArray[np.bool_]:
        return scene < 2


def test_nothing_of_the_last_scene_is_left_where_the_first_glimpse_is_hidden() -> None:
    hidden = evaluation(Blindfold(), batch_size=2)
    first, *later = hidden.loss.reshape(-1, 2, 3)
    assert (first[:, 0] != first[:, 2]).all()
    assert all((loss == loss[:, :1]).all() for loss in later)
    assert not np.isin(np.stack(later), first).any()
