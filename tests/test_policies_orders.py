"""Environments with revisit=False: policies keep to the table, and orders of it."""

from dataclasses import replace
from importlib import import_module
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from test_policies import CONFIG, ORDER, QUICK

from canvit_gym.actions import grid_viewpoints
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import POLICY_SPECS, FixedSequence, make_policy, search_fixed_sequence
from canvit_gym.policies.dependency import dependencies, pagerank
from canvit_gym.policies.learned_order import learn_order, order_log_likelihood, sample_orders
from canvit_gym.policies.orders import center_out, raster_order

TABLE = grid_viewpoints(scales=(0.5,), centers=3)
QUICK = {name: spec for name, spec in QUICK.items() if "oracle" not in name}
ORDERS = [name for name, spec in POLICY_SPECS.items() if spec.info.needs_table]


def rows(viewpoints: np.ndarray) -> list[int]:
    """Of the table."""
    found = (viewpoints[:, None] == TABLE).all(axis=2)
    assert found.any(axis=1).all(), viewpoints
    return found.argmax(axis=1).tolist()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences are searched anew; prepared scenes are shared."""
    monkeypatch.setattr("canvit_gym.policies.fixed_sequence.cache_dir", lambda: tmp_path)


@pytest.mark.parametrize(
    "name", [name for name, spec in POLICY_SPECS.items() if spec.info.tasks != ("reconstruction",)]
)
def test_every_policy_looks_at_each_viewpoint_once(name: str) -> None:
    tasks = POLICY_SPECS[name].info.tasks
    config = replace(ORDER, dataset="fashion-search") if tasks == ("search",) else ORDER
    policy = make_policy(QUICK.get(name, name), config=config, num_glimpses=5)
    assert policy.info.name == QUICK.get(name, name)
    viewpoints = evaluate(policy, config=config).viewpoints
    assert name in ("random", "fine_to_coarse") or (viewpoints[:, 0] == [0, 0, 1]).all()
    for row in viewpoints:
        assert len(set(rows(row[1:]))) == 4


@pytest.mark.parametrize(
    "name", ["raster_order", "random_order", "entropy_greedy", "best_fixed_sequence", "coarse_to_fine"]
)
def test_where_the_agent_takes_the_first_glimpse_it_is_one_of_the_table(name: str) -> None:
    config = replace(ORDER, budget=9, first_glimpse=None)
    policy = make_policy(QUICK.get(name, name), config=config, num_glimpses=9)
    for row in evaluate(policy, config=config).viewpoints:
        assert sorted(rows(row)) == list(range(9))


@pytest.mark.parametrize("name", ORDERS)
def test_orders_need_a_table(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' orders the viewpoints .* pass revisit=False"):
        make_policy(name, config=CONFIG, num_glimpses=5)


def test_windows_of_ones_own_are_refused_where_there_is_a_table() -> None:
    with pytest.raises(ValueError, match="leave scale and centers out"):
        make_policy("entropy_greedy(scale=0.5)", config=ORDER, num_glimpses=5)


def test_simple_orders() -> None:
    mixed = np.concatenate([TABLE, grid_viewpoints(scales=(1.0,), centers=1)])
    assert raster_order(mixed[::-1])[0].tolist() == [0, 0, 1]
    assert rows(raster_order(TABLE[::-1])) == list(range(9))
    assert rows(center_out(TABLE)) == [4, 1, 3, 5, 7, 0, 2, 6, 8]
    config = replace(ORDER, num_scenes=8)
    policy = make_policy("random_order", config=config, num_glimpses=5)
    one, again, other = (
        evaluate(policy, config=config, seed=seed, batch_size=size).viewpoints
        for seed, size in ((0, 8), (0, 3), (1, 8))
    )
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert len({row.tobytes() for row in one}) > 4


def test_an_order_too_short_is_refused() -> None:
    policy = make_policy("raster_order", config=ORDER, num_glimpses=5)
    with pytest.raises(ValueError, match="raster_order has 10 glimpses and cannot take 11; use a budget of at most 10"):
        evaluate(policy, config=ORDER, num_glimpses=11)
    with pytest.raises(ValueError, match="none of the 9 candidates is allowed in scene"):
        evaluate(make_policy("center", config=ORDER, num_glimpses=11), config=ORDER, num_glimpses=11)
    with pytest.raises(ValueError, match="11 glimpses are asked for, but with revisit=False there are no more than 10"):
        search_fixed_sequence(ORDER, 11, num_scenes=2)


def test_best_fixed_order_is_greedy_over_what_is_left() -> None:
    found = search_fixed_sequence(ORDER, 10, num_scenes=6)
    assert sorted(rows(found.viewpoints[1:])) == list(range(9))
    free = search_fixed_sequence(replace(ORDER, revisit=True), 2, num_scenes=6, candidates=TABLE)
    assert np.array_equal(found.viewpoints[:2], free.viewpoints)


def test_dependencies_find_the_tile_that_others_follow_from() -> None:
    """Tile 2 drives all others but tile 4, which is noise."""
    rng = np.random.default_rng(0)
    cause = rng.normal(size=(400, 3))
    features = np.stack([cause @ rng.normal(size=(3, 6)) + rng.normal(size=(400, 6)) * 1.5 for _ in range(5)], axis=1)
    features[:, 2] = np.pad(cause, ((0, 0), (0, 3))) * 2
    features[:, 4] = rng.normal(size=(400, 6))
    found = dependencies(features)
    assert (np.diag(found) == 0).all() and (found >= 0).all() and (found <= 1).all()
    assert found[:, 2].argmin() in (2, 4) and (found[[0, 1, 3], 2] > 0.3).all()
    assert (found[4] < 0.05).all() and (found[:, 4] < 0.05).all()
    rank = pagerank(found)
    assert rank.sum() == pytest.approx(1) and rank.argmax() == 2 and rank.argmin() == 4
    np.testing.assert_allclose(pagerank(np.zeros((3, 3))), 1 / 3)
    with pytest.raises(ValueError, match="at least 4 training scenes, got 3"):
        dependencies(features[:3])


def test_dependency_rank_is_kept_and_no_scene_changes_it(tmp_path: Path) -> None:
    policy = make_policy("dependency_rank(num_scenes=8)", config=ORDER, num_glimpses=5)
    (stored,) = (tmp_path / "fixed_sequences").iterdir()
    sequence = FixedSequence.load(stored)
    assert sequence.method == "dependency rank" and len(sequence.viewpoints) == len(sequence.loss) == 10
    viewpoints = evaluate(policy, config=ORDER).viewpoints
    assert (viewpoints == sequence.viewpoints[:5]).all()
    before = stored.stat().st_mtime_ns
    make_policy("dependency_rank(num_scenes=8)", config=ORDER, num_glimpses=5)
    assert stored.stat().st_mtime_ns == before


CONSTANTS = {
    "best_fixed_sequence(num_scenes=2)": ("fixed_sequence.BATCH_SIZE", "fixed_sequence.MIN_SHORTLIST"),
    "learned_order(num_scenes=4, updates=1)": tuple(
        f"learned_order.{name}"
        for name in ("LEARNING_RATE", "PRIOR_SPREAD", "SCENES_AT_ONCE", "ORDERS_PER_SCENE", "RIDGE")
    ),
    "dependency_rank(num_scenes=4)": ("dependency.COMPONENTS", "dependency.RIDGE", "dependency.DAMPING"),
}


@pytest.mark.parametrize("spec", CONSTANTS)
def test_a_search_with_other_constants_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    """The files in the cache are not those of a search as it was before its constants changed."""

    def kept() -> int:
        make_policy(spec, config=ORDER, num_glimpses=3)
        return len(list((tmp_path / "fixed_sequences").iterdir()))

    assert kept() == kept() == 1
    for count, name in enumerate(CONSTANTS[spec], start=2):
        module, constant = name.split(".")
        value = getattr(import_module(f"canvit_gym.policies.{module}"), constant)
        monkeypatch.setattr(f"canvit_gym.policies.{name}", value / 2 if isinstance(value, float) else value - 1)
        assert kept() == kept() == count, name


def test_plackett_luce() -> None:
    """Frequencies of sampled orders against the likelihood that training uses, which sums to 1 over all orders."""
    scores = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    every = np.array(list(permutations(range(3))))
    likelihood = order_log_likelihood(scores, torch.from_numpy(every), count=3).exp().numpy()
    assert likelihood.sum() == pytest.approx(1)
    drawn = sample_orders(scores.numpy(), num=20_000, rng=np.random.default_rng(0))
    frequency = np.array([(drawn == order).all(axis=1).mean() for order in every])
    np.testing.assert_allclose(frequency, likelihood, atol=0.015)
    first = order_log_likelihood(scores, torch.from_numpy(every), count=1).exp().numpy()
    np.testing.assert_allclose(first, scores.softmax(0).numpy()[every[:, 0]])


def test_an_order_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that one viewpoint alone brings down: it comes first, from whichever prior."""
    wanted = TABLE[7]

    def losses(template, scenes, sequences) -> np.ndarray:  # type: ignore[no-untyped-def]
        sequences = np.broadcast_to(sequences, (len(scenes), *sequences.shape[-2:]))
        found = (sequences == wanted).all(axis=2)
        return np.where(found.any(axis=1), found.argmax(axis=1), sequences.shape[1]).astype(np.float64)

    monkeypatch.setattr("canvit_gym.policies.learned_order._losses", losses)
    found = learn_order(ORDER, 5, num_scenes=8, updates=80)
    assert found.viewpoints[0].tolist() == [0, 0, 1] and found.viewpoints[1].tolist() == wanted.tolist()
    assert sorted(rows(found.viewpoints[1:])) == list(range(9)) and found.method == "Plackett-Luce"
