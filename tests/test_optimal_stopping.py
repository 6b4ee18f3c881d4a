"""When to stop, learned from episodes: problems whose answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.studies.optimal_stopping import facts, learn_when_to_stop, worth_of_stopping

PRICE = 0.1


def paid(worth: NDArray[np.float64], score: NDArray[np.float64]) -> NDArray[np.float64]:
    stops = (worth >= 0).argmax(axis=1)
    return score[np.arange(len(stops)), stops] - PRICE * stops


def episodes(num: int, *, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Three glimpses. Half of the scenes show by an even reading that the second glimpse will be right and all others
    wrong; the others are read rightly from the first one on."""
    hard = np.random.default_rng(seed).random(num) < 0.5
    sure, even = np.array([0.9, 0.05, 0.05]), np.array([0.34, 0.33, 0.33])
    readings = np.where(hard[:, None, None], np.stack([even, sure, even]), np.stack([sure, sure, sure]))
    score = np.where(hard[:, None], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0])
    return readings, score


def test_stops_where_it_pays_most() -> None:
    learned = learn_when_to_stop(*episodes(2000, seed=0), price=PRICE, seed=0)
    readings, score = episodes(500, seed=1)
    worth = worth_of_stopping(learned, readings)
    best = (score - PRICE * np.arange(3)).max(axis=1)
    np.testing.assert_allclose(paid(worth, score), best)
    hard = score[:, 0] == 0
    np.testing.assert_allclose(worth[hard, 0], -1 + PRICE, atol=0.1)  # going on to the second glimpse, which is right
    np.testing.assert_allclose(worth[~hard, 0], PRICE, atol=0.1)
    assert (worth[:, -1] == np.inf).all()


def test_nothing_to_learn_from_what_does_not_tell() -> None:
    """The same reading everywhere, right in half of the scenes from the start: going on costs its price."""
    readings = np.full((2000, 4, 3), 1 / 3)
    score = np.repeat(np.random.default_rng(0).random(2000) < 0.5, 4).reshape(2000, 4).astype(float)
    worth = worth_of_stopping(learn_when_to_stop(readings, score, price=PRICE, seed=0), readings)
    np.testing.assert_allclose(worth[:, :-1], PRICE, atol=0.05)


def test_repeatable() -> None:
    readings, score = episodes(200, seed=0)
    one, other = (
        worth_of_stopping(learn_when_to_stop(readings, score, price=PRICE, seed=3), readings) for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("t", [0, 2])
def test_facts_know_nothing_of_later_glimpses(t: int) -> None:
    readings = np.random.default_rng(0).dirichlet(np.ones(10), size=(5, 4))
    changed = readings.copy()
    changed[:, t + 1 :] = 0.1
    assert facts(readings, t).equal(facts(changed, t))
    changed[:, t] = 0.1
    assert not facts(readings, t).equal(facts(changed, t))
