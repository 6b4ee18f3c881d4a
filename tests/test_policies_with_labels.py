"""Policies that look ahead with labels: the oracle, its halves, and the search for the best fixed sequence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import SEGMENTATION_CLASSES, segmentation_probe, write_segmentation_folder

from canvit_gym.actions import grid_viewpoints
from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import (
    BestFixedSequence,
    FixedSequence,
    GreedyOracle,
    HalfLoss,
    Jittered,
    PolicyInfo,
    make_policy,
    oracle_candidates,
    search_fixed_sequence,
)
from canvit_gym.policies.sequences import CycledViewpoints

CONFIG = EnvConfig(split="validation", num_scenes=6, device="cpu")
CLASSIFICATION = replace(CONFIG, dataset="fashion-classification")
TRAINING = replace(CONFIG, split="training")
FEW = oracle_candidates()[::12]
INFO = PolicyInfo(name="fixed", paper_name="fixed", description="", deterministic=True)


def fixed(*viewpoints: np.ndarray) -> CycledViewpoints:
    return CycledViewpoints(np.stack(viewpoints), info=INFO)


@pytest.mark.parametrize("config", [CONFIG, CLASSIFICATION], ids=lambda config: config.dataset)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_oracle_takes_the_lowest_loss_of_all_candidates(config: EnvConfig, batch_size: int) -> None:
    """Against each candidate rolled out on its own."""
    oracle = evaluate(GreedyOracle(FEW), config=config, num_glimpses=2, batch_size=batch_size)
    every = np.stack([evaluate(fixed(row), config=config, num_glimpses=2).loss[:, 1] for row in FEW])
    np.testing.assert_allclose(oracle.loss[:, 1], every.min(axis=0), rtol=1e-4)
    assert np.array_equal(oracle.viewpoints[:, 1], FEW[every.argmin(axis=0)])
    assert every.max() > every.min()


def test_oracle_with_a_candidate_budget() -> None:
    some, same = (GreedyOracle(max_candidates=10).candidates for _ in range(2))
    assert np.array_equal(some, same) and len(np.unique(some, axis=0)) == 10
    assert {tuple(row) for row in some.tolist()} <= {tuple(row) for row in oracle_candidates().tolist()}
    assert set(some[:, 2].tolist()) == {0.5, 0.25}
    assert len(GreedyOracle(max_candidates=1000).candidates) == 74
    actions = make_policy("greedy_oracle(candidates='actions')", config=CONFIG, num_glimpses=3)
    assert isinstance(actions, GreedyOracle)
    assert np.array_equal(actions.candidates, build_actions(CONFIG).viewpoints)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="needs discrete actions, but the environment's are 'continuous'"):
        make_policy("greedy_oracle(candidates='actions')", config=replace(CONFIG, action="continuous"), num_glimpses=3)


def test_oracle_shows_its_progress_where_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    config = replace(CONFIG, num_scenes=1)
    for progress in (False, True):
        evaluate(GreedyOracle(FEW, progress=progress), config=config, num_glimpses=2)
        assert ("greedy_oracle, 1 scenes, glimpse 2 of 2" in capfd.readouterr().err) == progress


def test_jitter_moves_glimpses_a_little_and_keeps_them_inside() -> None:
    corner = np.array([-0.5, 0.5, 0.5], dtype=np.float32)
    steady, off, again, other = (
        evaluate(policy, config=CONFIG, num_glimpses=4, seed=seed, batch_size=size).viewpoints
        for policy, seed, size in (
            (fixed(corner), 0, 6),
            (Jittered(fixed(corner), cells=0.5), 0, 6),
            (Jittered(fixed(corner), cells=0.5), 0, 4),
            (Jittered(fixed(corner), cells=0.5), 1, 6),
        )
    )
    assert np.array_equal(off, again) and not np.array_equal(off, other)
    assert np.array_equal(off[:, 0], steady[:, 0])  # the first glimpse is where it was wanted
    moved = off[:, 1:] - steady[:, 1:]
    assert (moved[..., 0] >= 0).all() and (moved[..., 1] <= 0).all()  # out of the corner, never out of the scene
    assert 0.03 < abs(moved[..., :2]).max() <= 0.5 * 2 / 16 + 1e-6 and (moved[..., 2] == 0).all()
    with pytest.raises(ValueError, match="cells must be a finite number >= 0, got -1"):
        Jittered(fixed(corner), cells=-1)


def test_a_jittered_oracle_falls_behind() -> None:
    config = replace(CONFIG, num_scenes=24)
    still, jittered = (
        evaluate(policy, config=config, num_glimpses=3).loss[:, 2].mean()
        for policy in (GreedyOracle(), Jittered(GreedyOracle()))
    )
    assert jittered > still


@pytest.mark.parametrize("block", [1, 3])
def test_half_losses_are_those_of_a_checkerboard_of_squares(block: int) -> None:
    """Each half against PyTorch's cross_entropy with soft labels; together they make the whole loss."""
    halves = HalfLoss("even", block=block), HalfLoss("odd", block=block)
    expected: dict[str, list[list[float]]] = {"even": [], "odd": []}

    def keep(t: int, episodes) -> None:
        for half in halves:
            half(t, episodes)
        per_cell = F.cross_entropy(episodes.logits, episodes.truth["shares"], reduction="none")  # [B, G, G]
        mass = episodes.truth["shares"].sum(dim=1)
        parity = torch.tensor([[(r // block + c // block) % 2 for c in range(16)] for r in range(16)])
        for name, odd in (("even", 0), ("odd", 1)):
            mine = (parity == odd).float()
            expected[name].append(((per_cell * mine).sum((1, 2)) / (mass * mine).sum((1, 2))).tolist())

    result = evaluate(fixed(FEW[3]), config=CONFIG, num_glimpses=3, batch_size=6, on_glimpse=keep)
    even, odd = (half.loss() for half in halves)
    np.testing.assert_allclose(even, np.array(expected["even"]).T, rtol=1e-4)
    np.testing.assert_allclose(odd, np.array(expected["odd"]).T, rtol=1e-4)
    if block == 1:  # every pixel of these scenes is labelled, and the halves are of one size
        np.testing.assert_allclose((even + odd) / 2, result.loss, rtol=1e-4)


def test_squares_as_wide_as_the_canvas_are_refused() -> None:
    with pytest.raises(ValueError, match="a 16 x 16 canvas has no odd squares of 16 cells"):
        evaluate(fixed(FEW[3]), config=CONFIG, num_glimpses=1, on_glimpse=HalfLoss("even", block=16))


def test_half_losses_keep_the_order_of_scenes_over_batches() -> None:
    one, other = HalfLoss("odd"), HalfLoss("odd")
    evaluate(fixed(FEW[3]), config=CONFIG, num_glimpses=2, batch_size=6, on_glimpse=one)
    evaluate(fixed(FEW[3]), config=CONFIG, num_glimpses=2, batch_size=4, on_glimpse=other)
    np.testing.assert_allclose(one.loss(), other.loss(), rtol=1e-4)


def test_oracle_on_a_half_is_best_there_and_not_on_the_other() -> None:
    losses = {}
    for half in ("even", "odd"):
        scored = HalfLoss("odd", block=4)
        spec = f"greedy_oracle(half={half!r}, block=4, max_candidates=24)"
        config = replace(CONFIG, num_scenes=12)
        policy = make_policy(spec, config=config, num_glimpses=2)
        assert policy.info.uses_labels and f"{half} half" in policy.info.description
        evaluate(policy, config=config, num_glimpses=2, on_glimpse=scored)
        losses[half] = scored.loss()[:, 1]
    assert (losses["odd"] <= losses["even"] + 1e-5).all() and losses["odd"].mean() < losses["even"].mean()


def test_classification_has_no_halves() -> None:
    with pytest.raises(ValueError, match="supports segmentation, not classification"):
        make_policy("greedy_oracle(half='even')", config=CLASSIFICATION, num_glimpses=2)
    for make in (
        lambda: evaluate(GreedyOracle(FEW, half="even"), config=CLASSIFICATION, num_glimpses=2),
        lambda: evaluate(fixed(FEW[0]), config=CLASSIFICATION, num_glimpses=2, on_glimpse=HalfLoss("odd")),
    ):
        with pytest.raises(ValueError, match="one label per scene, which cannot be split"):
            make()


@pytest.mark.parametrize("config", [CONFIG, CLASSIFICATION], ids=lambda config: config.dataset)
def test_search_takes_the_best_candidate_on_average_at_every_glimpse(config: EnvConfig) -> None:
    """Against every candidate rolled out after the prefix, on the same training scenes."""
    found = search_fixed_sequence(config, 3, num_scenes=6, candidates=FEW)
    assert found.viewpoints.shape == (3, 3) and found.viewpoints[0].tolist() == [0, 0, 1]
    training = replace(config, split="training")
    for t in (1, 2):
        means = [
            evaluate(fixed(*found.viewpoints[1:t], row), config=training, num_glimpses=t + 1).mean_loss()[t]
            for row in FEW
        ]
        assert found.viewpoints[t].tolist() == FEW[int(np.argmin(means))].tolist()
        assert found.loss[t] == pytest.approx(min(means), rel=1e-4)


def test_found_sequence_beats_random_ones_on_the_scenes_it_was_searched_on() -> None:
    candidates = grid_viewpoints(scales=(0.5, 0.25), centers=3)
    training = replace(TRAINING, num_scenes=70)  # two batches: the first rules candidates out
    found = search_fixed_sequence(CONFIG, 3, num_scenes=70, candidates=candidates)
    best = evaluate(BestFixedSequence(found), config=training, num_glimpses=3, batch_size=50)
    np.testing.assert_allclose(best.mean_loss(), found.loss, rtol=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(3):
        other = fixed(*rng.choice(candidates, 2, replace=False))
        assert best.mean_loss()[2] < evaluate(other, config=training, num_glimpses=3).mean_loss()[2]


def test_a_search_goes_on_from_a_shorter_one_and_a_prefix_serves_a_smaller_budget() -> None:
    steps: list[FixedSequence] = []
    long = search_fixed_sequence(CONFIG, 3, num_scenes=6, candidates=FEW, on_glimpse=steps.append)
    assert [len(step.viewpoints) for step in steps] == [1, 2, 3]
    resumed = search_fixed_sequence(CONFIG, 3, num_scenes=6, candidates=FEW, known=steps[1])
    assert np.array_equal(resumed.viewpoints, long.viewpoints) and np.array_equal(resumed.loss, long.loss)
    viewpoints = evaluate(BestFixedSequence(long), config=CONFIG, num_glimpses=2).viewpoints
    assert (viewpoints == long.viewpoints[:2]).all()
    with pytest.raises(ValueError, match="has 3 glimpses and cannot take 4"):
        evaluate(BestFixedSequence(long), config=CONFIG, num_glimpses=4)
    with pytest.raises(ValueError, match="of another search"):
        search_fixed_sequence(CONFIG, 3, num_scenes=6, candidates=FEW[1:], known=steps[1])


def test_a_sequence_on_disk_is_checked_against_its_environment(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sequence.json"
    found = search_fixed_sequence(CONFIG, 2, num_scenes=4, candidates=FEW)
    found.save(path)
    assert FixedSequence.load(path) == found != replace(found, loss=found.loss + 1)
    assert [p.name for p in path.parent.iterdir()] == ["sequence.json"]

    spec = f"best_fixed_sequence(path={str(path)!r})"
    policy = make_policy(spec, config=CONFIG, num_glimpses=2)
    assert (evaluate(policy, config=CONFIG, num_glimpses=2).viewpoints == found.viewpoints).all()
    with pytest.raises(ValueError, match="has 2 glimpses, but 3 are asked for"):
        make_policy(spec, config=CONFIG, num_glimpses=3)
    with pytest.raises(ValueError, match="dataset: searched on 'fashion-segmentation', found 'fashion-classification'"):
        make_policy(spec, config=CLASSIFICATION, num_glimpses=2)
    with pytest.raises(ValueError, match="probe_sha256: searched on"):
        evaluate(policy, config=CLASSIFICATION, num_glimpses=2)

    values = json.loads(path.read_text())
    values["searched_on"]["checkpoint_sha256"] = "0" * 64
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="checkpoint_sha256: searched on '0000"):
        make_policy(spec, config=CONFIG, num_glimpses=2)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a fixed sequence"):
        FixedSequence.load(path)


def test_a_search_by_name_is_kept_and_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANVIT_GYM_CACHE", str(tmp_path))
    spec = "best_fixed_sequence(num_scenes=2)"
    short = make_policy(spec, config=CONFIG, num_glimpses=2)
    (stored,) = (tmp_path / "fixed_sequences").iterdir()
    assert len(FixedSequence.load(stored).viewpoints) == 2
    long = make_policy(spec, config=CONFIG, num_glimpses=3)
    assert isinstance(short, BestFixedSequence) and isinstance(long, BestFixedSequence)
    assert np.array_equal(long.sequence.viewpoints[:2], short.sequence.viewpoints)
    # The rest comes from the cache.
    monkeypatch.setattr("canvit_gym.policies.fixed_sequence.search_fixed_sequence", None)
    make_policy(spec, config=CONFIG, num_glimpses=2)
    make_policy(spec, config=CONFIG, num_glimpses=3)


def test_a_search_by_name_is_kept_per_training_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANVIT_GYM_CACHE", str(tmp_path / "cache"))
    probe = segmentation_probe(len(SEGMENTATION_CLASSES))
    spec, searched = "best_fixed_sequence(num_scenes=2)", set()
    for folder, tuning_scenes in (("a", 0), ("b", 0), ("b", 2), ("b", 0)):
        root = tmp_path / folder
        if not root.exists():
            write_segmentation_folder(root, splits=("train", "val"), per_split=6)
        config = EnvConfig(
            dataset="segmentation-folder", root=str(root), probe=str(probe), tuning_scenes=tuning_scenes, device="cpu"
        )
        policy = make_policy(spec, config=config, num_glimpses=2)
        assert isinstance(policy, BestFixedSequence)
        searched.add(policy.sequence.scenes)
    assert len(searched) == len(list((tmp_path / "cache" / "fixed_sequences").iterdir())) == 3


def test_oracle_by_another_potential_of_the_task() -> None:
    """By the score it chooses what scores most, against every candidate rolled out on its own."""
    oracle = make_policy("greedy_oracle(potential='score', max_candidates=6)", config=CONFIG, num_glimpses=2)
    assert isinstance(oracle, GreedyOracle) and "by the true score" in oracle.info.description
    chosen = evaluate(oracle, config=CONFIG, num_glimpses=2).scene_score()[:, 1]
    every = np.stack(
        [evaluate(fixed(row), config=CONFIG, num_glimpses=2).scene_score()[:, 1] for row in oracle.candidates]
    )
    np.testing.assert_allclose(chosen, every.max(axis=0), atol=2e-3)
    with pytest.raises(ValueError, match=r"greedy_oracle.*needs the potential 'beauty', which the task segmentation"):
        evaluate(
            make_policy("greedy_oracle(potential='beauty')", config=CONFIG, num_glimpses=2),
            config=CONFIG,
            num_glimpses=2,
        )
