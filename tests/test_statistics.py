"""Aggregates against their published definitions, by hand; intervals against theory and direct resampling."""

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from canvit_gym import statistics
from canvit_gym.statistics import (
    InterquartileMean,
    Mean,
    MeanIoU,
    OverRuns,
    Transformed,
    area_under_curve,
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    mean_iou,
    multiplicities,
    paired_difference,
    probability_of_improvement,
    run_improvement_interval,
)


def test_area_under_curve_by_hand() -> None:
    assert area_under_curve([1.0, 2.0, 4.0]) == pytest.approx((1.5 + 3.0) / 2)
    assert area_under_curve([[0.3] * 5, [0.0, 0.0, 0.0, 0.0, 1.0]]) == pytest.approx([0.3, 0.125])
    assert area_under_curve([0.7]) == 0.7


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # trim_mean(0.25) leaves out floor(n / 4) at each end.
        ([0, 1, 2, 3, 4, 5, 6, 100], (2 + 3 + 4 + 5) / 4),
        ([100, 0, 1], (100 + 0 + 1) / 3),
        ([5, 1, 2, 1000], (2 + 5) / 2),
        ([7], 7),
        ([[1, 9, 4], [2, 8, 3]], (2 + 3 + 4 + 8) / 4),
        ([0.1] * 10, 0.1),
    ],
)
def test_interquartile_mean_by_hand(values: list[float], expected: float) -> None:
    assert interquartile_mean(values) == pytest.approx(expected)


def test_interquartile_mean_is_scipys_trimmed_mean() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 4, 5, 99, 1000):
        values = rng.standard_normal(n)
        assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_probability_of_improvement_by_hand() -> None:
    """Agarwal et al. (2021): per task, U / (N * M) with ties counted half; then the mean over tasks."""
    one = np.array([[3.0, 1.0], [5.0, 2.0]])  # 2 runs x 2 tasks
    other = np.array([[3.0, 2.0], [4.0, 2.0], [0.0, 9.0]])
    first = Fraction(0.5) + 0 + 1 + 1 + 1 + 1  # 3 against 3, 4, 0; 5 against 3, 4, 0
    second = 0 + 0 + 0 + Fraction(0.5) + Fraction(0.5) + 0  # 1 against 2, 2, 9; 2 against 2, 2, 9
    assert probability_of_improvement(one, other) == pytest.approx(float((first / 6 + second / 6) / 2))
    assert probability_of_improvement(other, one) == pytest.approx(1 - probability_of_improvement(one, other))
    assert probability_of_improvement(one, one[:1]) > 0.5 == probability_of_improvement(one, one)


def test_probability_of_improvement_is_mann_whitneys_u() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, (6, 3)), rng.integers(0, 6, (4, 3))
    u = stats.mannwhitneyu(one, other).statistic  # pyright: ignore[reportAttributeAccessIssue]  (SciPy has no types)
    assert probability_of_improvement(one, other) == pytest.approx(np.mean(u / 24))


def test_mean_iou_leaves_out_absent_classes() -> None:
    assert mean_iou(np.array([4, 2, 0]), np.array([5, 4, 0])) == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert mean_iou(np.array([0, 0]), np.array([0, 0])) == 0


def test_multiplicities_are_draws_with_replacement() -> None:
    rows = np.concatenate(list(multiplicities(7, resamples=600, seed=3)))
    assert rows.shape == (600, 7) and (rows.sum(axis=1) == 7).all()
    assert abs(rows.mean() - 1) < 1e-9 and abs(rows.var() - 6 / 7) < 0.05  # binomial(7, 1/7)
    assert np.array_equal(rows, np.concatenate(list(multiplicities(7, resamples=600, seed=3))))
    assert not np.array_equal(rows, np.concatenate(list(multiplicities(7, resamples=600, seed=4))))


def counts(rng: np.random.Generator, *shape: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    union = rng.integers(0, 5000, shape) * (rng.random(shape) < 0.6)
    return (union * rng.random(shape)).astype(np.int64), union


def test_statistics_of_a_resample_are_those_of_the_scenes_drawn() -> None:
    """Multiplicities against the plain way: repeat the rows and the scenes, and compute."""
    rng = np.random.default_rng(0)
    num_rows, num_scenes, num_glimpses = 3, 9, 2
    values = rng.standard_normal((num_rows, num_scenes, num_glimpses))
    intersection, union = counts(rng, num_rows, num_scenes, num_glimpses, 4)
    scenes, rows = (rng.integers(0, 4, (5, n)).astype(np.float64) for n in (num_scenes, num_rows))
    rows[:, 0] += 1
    scenes[:, 0] += 1
    for r in range(5):
        scene, row = (np.repeat(np.arange(len(w[r])), w[r].astype(int)) for w in (scenes, rows))
        drawn = values[row][:, scene]
        miou = np.mean([mean_iou(intersection[i, scene].sum(axis=0), union[i, scene].sum(axis=0)) for i in row], axis=0)
        one = slice(r, r + 1)
        np.testing.assert_allclose(Mean(values)(rows[one], scenes[one])[0], drawn.mean(axis=(0, 1)))
        np.testing.assert_allclose(MeanIoU(intersection, union)(rows[one], scenes[one])[0], miou, rtol=1e-5)
        trimmed = [interquartile_mean(drawn[..., t]) for t in range(num_glimpses)]
        np.testing.assert_allclose(InterquartileMean(values)(rows[one], scenes[one])[0], trimmed)


def test_the_value_is_the_statistic_of_what_was_observed() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((2, 30, 3))
    intersection, union = counts(rng, 2, 30, 3, 5)
    few = dict(resamples=50)
    assert np.allclose(bootstrap_interval(Mean(values), **few).value, values.mean(axis=(0, 1)))
    expected = mean_iou(intersection.sum(axis=1), union.sum(axis=1)).mean(axis=0)
    assert np.allclose(bootstrap_interval(MeanIoU(intersection, union), **few).value, expected)
    trimmed = [interquartile_mean(values[..., t]) for t in range(3)]
    assert np.allclose(bootstrap_interval(InterquartileMean(values), **few).value, trimmed)
    better = improvement_interval(values[..., :1], values[:1, :, 1:2], **few)
    expected_p = probability_of_improvement(values[..., 0], values[:1, :, 1])
    assert np.allclose(better.value, expected_p) and better.low < expected_p < better.high
    area = bootstrap_interval(Mean(values), of=area_under_curve, **few)
    assert area.value.shape == () and np.isclose(area.value, area_under_curve(values.mean(axis=(0, 1))))


def test_one_run_has_the_standard_error_of_the_mean() -> None:
    values = np.linspace(0, 1, 400)
    found = bootstrap_interval(Mean(values.reshape(1, 400, 1)))
    half_width = 1.96 * values.std() / np.sqrt(400)
    assert found.low[0] == pytest.approx(0.5 - half_width, abs=0.005)
    assert found.high[0] == pytest.approx(0.5 + half_width, abs=0.005)


def test_narrower_confidence_is_a_narrower_interval() -> None:
    values = np.random.default_rng(0).standard_normal((1, 50, 1))
    wide, narrow = (bootstrap_interval(Mean(values), confidence=c) for c in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@pytest.mark.parametrize(("num_runs", "run_spread", "bounds"), [(1, 0.0, (0.90, 0.985)), (8, 1.0, (0.86, 0.985))])
def test_intervals_cover_the_truth(num_runs: int, run_spread: float, bounds: tuple[float, float]) -> None:
    """Scenes and runs drawn anew 200 times from a known population: 95% intervals hold its mean about that often.

    The bounds are 95% minus what percentile intervals of few runs are known to lack, give or take the binomial error.
    """
    rng, covered, trials = np.random.default_rng(5), 0, 200
    for trial in range(trials):
        difficulty = rng.exponential(1.0, (1, 60, 1))
        run = run_spread * rng.standard_normal((num_runs, 1, 1))
        values = 2 + (difficulty - 1) + run + 0.3 * rng.standard_normal((num_runs, 60, 1))
        found = bootstrap_interval(Mean(values), resamples=400, seed=trial)
        covered += bool(found.low[0] <= 2 <= found.high[0])
    assert bounds[0] <= covered / trials <= bounds[1]


def test_scenes_shared_by_runs_do_not_count_as_many() -> None:
    """More runs on the same scenes say nothing new about scenes: the interval must not shrink below the scenes' own."""
    scenes = np.random.default_rng(0).standard_normal((1, 100, 1))
    alone, ten = (bootstrap_interval(Mean(np.repeat(scenes, n, axis=0))) for n in (1, 10))
    assert np.allclose([alone.low, alone.high], [ten.low, ten.high])


def test_rows_of_one_run_are_drawn_together() -> None:
    """Two trained policies, evaluated three times each: two units, not six."""
    values = np.repeat([0.0, 1.0], 3).reshape(6, 1, 1) * np.ones((6, 4, 1))
    together = bootstrap_interval(Mean(values, run=[7, 7, 7, 2, 2, 2]))
    apart = bootstrap_interval(Mean(values))
    assert together.low == 0 and together.high == 1 and apart.low > 0 and apart.high < 1


def test_differences_are_paired() -> None:
    """One policy is 0.1 better on every scene, however scenes vary: the interval has no width."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 50, 2))
    found = paired_difference(Mean(values + 0.1), Mean(values))
    assert np.allclose([found.value, found.low, found.high], 0.1)
    intersection, union = counts(rng, 1, 50, 2, 5)
    found = paired_difference(MeanIoU(intersection, union), MeanIoU(intersection, union))
    assert not found.value.any() and not found.low.any() and not found.high.any()


def test_a_share_of_headroom_of_three_policies() -> None:
    rng = np.random.default_rng(0)
    low = rng.standard_normal((1, 40, 1))
    high = low + 2 + 0.1 * rng.standard_normal(low.shape)
    policy = low + 0.5 * (high - low)
    found = bootstrap_interval(Mean(policy), Mean(low), Mean(high), of=lambda p, a, b: (p - a) / (b - a))
    assert np.allclose([found.value, found.low, found.high], 0.5)


def test_draws_are_a_function_of_the_seed() -> None:
    values = np.random.default_rng(0).standard_normal((3, 20, 1))
    one, same, other = (bootstrap_interval(Mean(values), seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.low, same.low) and not np.array_equal(one.low, other.low)


def test_chunks_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((2, 20, 1))
    before = bootstrap_interval(Mean(values), resamples=100)
    monkeypatch.setattr(statistics, "CHUNK", 7)
    after = bootstrap_interval(Mean(values), resamples=100)
    assert np.allclose([before.low, before.high], [after.low, after.high])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 2), (1, 5, 1)])
def test_degenerate_observations(shape: tuple[int, int, int]) -> None:
    constant = np.full(shape, 0.25)
    for found in (
        bootstrap_interval(Mean(constant)),
        bootstrap_interval(InterquartileMean(constant)),
        bootstrap_interval(MeanIoU(np.ones((*shape, 2)), np.full((*shape, 2), 4))),
    ):
        assert np.allclose([found.value, found.low, found.high], 0.25)
    even = improvement_interval(constant, constant)
    assert np.allclose([even.value, even.low, even.high], 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean([]), "of no values"),
        (lambda: probability_of_improvement([1.0], [2.0]), r"one must have shape \[runs, tasks\].*\(1,\)"),
        (lambda: probability_of_improvement([[1.0, 2.0]], [[2.0]]), r"same tasks.*\(1, 2\) and \(1, 1\)"),
        (lambda: Mean(np.zeros((2, 0, 1))), "none empty"),
        (lambda: Mean(np.zeros((2, 3))), "3 axes"),
        (lambda: Mean(np.full((1, 2, 1), np.nan)), r"finite, but is not at \[0, 0, 0\]"),
        (lambda: Mean(np.zeros((2, 3, 1)), run=[0]), "each of 2 rows, got 1"),
        (lambda: MeanIoU(np.zeros((1, 2, 1, 3)), np.zeros((1, 2, 1, 4))), "one shape"),
        (lambda: bootstrap_interval(Mean(np.zeros((1, 2, 1))), resamples=1), "resamples must be >= 2"),
        (lambda: bootstrap_interval(Mean(np.zeros((1, 2, 1))), confidence=95), "confidence in"),
        (
            lambda: bootstrap_interval(Mean(np.zeros((1, 2, 1))), Mean(np.zeros((1, 2, 1)))),
            "with 2 statistics pass a function of them",
        ),
        (lambda: paired_difference(Mean(np.zeros((1, 2, 1))), Mean(np.zeros((1, 3, 1)))), r"got \[2, 3\] of them"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_over_runs_is_the_trimmed_mean_of_what_the_runs_have() -> None:
    values = np.random.default_rng(3).random((7, 40))
    runs = OverRuns([Mean(of_run[None, :, None]) for of_run in values])
    scenes, rows = np.ones((1, 40)), np.array([[2, 0, 1, 1, 3, 0, 0]], dtype=np.float64)
    drawn = np.repeat(values.mean(axis=1), rows[0].astype(int))
    assert runs(rows, scenes)[0, 0] == pytest.approx(stats.trim_mean(drawn, 0.25))
    doubled = bootstrap_interval(Transformed(runs, lambda curves: 2 * curves))
    assert doubled.value[0] == pytest.approx(2 * stats.trim_mean(values.mean(axis=1), 0.25))
    assert doubled.low[0] < doubled.value[0] < doubled.high[0]


def test_run_improvement_compares_runs_on_the_same_scenes() -> None:
    hard = np.linspace(0, 1, 50)[None, :, None]
    better, worse = OverRuns([Mean(hard + 0.1)] * 3), OverRuns([Mean(hard)])
    found = run_improvement_interval(better, worse)
    assert (found.low[0], found.value[0], found.high[0]) == (1, 1, 1)  # what scenes have in common cancels
    assert run_improvement_interval(worse, worse).value[0] == 0.5
