"""Means over tasks: intervals cover new tasks, rows and generator seeds; equivalent rows."""

import numpy as np
import pytest

from oral_lib.evaluation import over_tasks, two_level
from oral_lib.evaluation.two_level import Side


def made_tasks(random, n_tasks=30, sd_tasks=0.05, sd_rows=0.03, sd_seeds=0.0, mean=0.7):
    """(a, b): values of two methods with equal means, of 3 and 1 seeds, with common difficulty."""
    difficulty = sd_tasks * random.normal(size=n_tasks)
    effects = sd_seeds * random.normal(size=(3, 1))
    first = mean + difficulty + sd_rows * random.normal(size=(3, n_tasks)) + effects
    second = mean + difficulty + sd_rows * random.normal(size=(1, n_tasks))
    return {"a": Side(first, [0, 1, 2]), "b": Side(second, [0])}


def coverage(runs=300, **options):
    """How often intervals contain the difference 0, and contain the mean 0.7 of "a"."""
    random, hits = np.random.default_rng(0), np.zeros(2)
    for run in range(runs):
        sides = made_tasks(random, **options)
        draws = over_tasks.resampled_tasks(sides, n_boot=400, seed=run)
        ends = np.quantile(draws["a"] - draws["b"], [0.025, 0.975])
        low, high = np.quantile(draws["a"], [0.025, 0.975])
        hits += [ends[0] <= 0 <= ends[1], low <= 0.7 <= high]
    return hits / runs


@pytest.mark.parametrize("options", [{}, {"n_tasks": 8}, {"sd_rows": 0.1, "sd_tasks": 0.0}])
def test_resampling_tasks_covers_new_tasks_and_new_rows(options):
    """Rows are not resampled again: coverage is 95%, neither less nor all."""
    difference, mean = coverage(**options)
    assert 0.92 <= difference <= 0.985 and 0.92 <= mean <= 0.985


def test_intervals_cover_new_generator_seeds():
    difference, _ = coverage(sd_seeds=0.02)
    assert difference >= 0.91
    random = np.random.default_rng(1)
    sides = made_tasks(random, sd_seeds=0.1, n_tasks=200)
    one = {"a": Side(sides["a"].values[:1], [0]), "b": sides["b"]}
    draws, of_one = (
        over_tasks.resampled_tasks(sides, n_boot=500),
        over_tasks.resampled_tasks(one, n_boot=500),
    )
    assert (draws["a"] - draws["b"]).std() > 5 * (of_one["a"] - of_one["b"]).std()


def test_intervals_cover_rows_that_many_tasks_share():
    """Each task draws its rows from a small pool; without the covariance intervals are short."""
    random, hits, n_tasks, n = np.random.default_rng(2), np.zeros(2), 25, 40
    for run in range(200):
        skill = random.normal(size=(2, 50))  # of two methods on each row of the pool
        rows = [random.permutation(50)[:n] for _ in range(n_tasks)]
        values = [0.5 + 0.05 * skill[:, r] + 0.05 * random.normal(size=(2, n)) for r in rows]
        influences = [over_tasks.row_influences(v) for v in values]
        means = np.stack([v.mean(axis=1) for v in values], axis=1)  # [2, t]
        sides = {"a": Side(means[:1], [0]), "b": Side(means[1:], [0])}
        for i, extra in enumerate((over_tasks.shared_rows(influences, rows), None)):
            draws = over_tasks.resampled_tasks(sides, extra, n_boot=400, seed=run)
            ends = np.quantile(draws["a"] - draws["b"], [0.025, 0.975])
            hits[i] += ends[0] <= 0 <= ends[1]
    with_rows, without = hits / 200
    assert with_rows >= 0.9 and without < 0.7


def test_the_covariance_of_shared_rows_is_known_for_equal_and_for_separate_rows():
    influence = over_tasks.row_influences(np.random.default_rng(3).random((2, 20)))
    assert influence.sum(axis=1) == pytest.approx(0)
    once = influence @ influence.T
    rows = np.arange(20)
    equal = over_tasks.shared_rows([influence] * 5, [rows] * 5)
    assert equal == pytest.approx(once * (5**2 - 5) / 5**2)
    separate = over_tasks.shared_rows([influence] * 5, [rows + 20 * i for i in range(5)])
    assert separate == pytest.approx(np.zeros((2, 2)))


def test_two_methods_with_equal_values_never_differ():
    values = np.random.default_rng(4).random((3, 12))
    sides = {name: Side(values, [0, 1, 2]) for name in "ab"}
    covariance = np.full((2, 2), 0.01)
    draws = over_tasks.resampled_tasks(sides, covariance, n_boot=200)
    assert draws["a"] == pytest.approx(draws["b"]) and draws["a"].std() > 0.01
    again = over_tasks.resampled_tasks(sides, covariance, n_boot=200)
    assert np.array_equal(draws["a"], again["a"])
    assert two_level.estimate(draws["a"], draws["b"], 0.0)[:3] == pytest.approx((0, 0, 0))


def test_values_of_other_tasks_or_without_a_number_are_refused():
    with pytest.raises(ValueError, match="finite"):
        over_tasks.resampled_tasks({"a": Side(np.array([[0.5, np.nan]]), [0])})
    with pytest.raises(ValueError, match="shape"):
        over_tasks.resampled_tasks(
            {"a": Side(np.ones((1, 3)), [0]), "b": Side(np.ones((1, 4)), [0])}
        )


# ---------------------------------------------------------------- equivalent labelled rows
def pooled_ref(values):
    """Isotonic regression by pooling adjacent violators."""
    blocks = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return np.repeat([mean for mean, _ in blocks], [n for _, n in blocks])


def test_isotonic_regression_pools_adjacent_violators():
    values = np.random.default_rng(5).random((200, 6))
    assert over_tasks.isotonic(values) == pytest.approx(np.stack([*map(pooled_ref, values)]))


ROWS = [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (0.6, 1), (0.7, 2), (0.75, 8**0.5), (0.8, 4), (0.9, 8), (0.93, 8 * 2**0.6), (1.0, 32),
        (0.59, 0), (1.01, np.inf),
    ],
)  # fmt: skip
def test_equivalent_rows_lie_on_the_curve_in_the_logarithm_of_rows(target, wanted):
    curve = np.array([0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
    assert over_tasks.equivalent_rows(curve, ROWS, np.array(target)) == pytest.approx(wanted)


def test_a_flat_or_falling_part_counts_with_its_smallest_number_of_rows():
    flat = np.array([0.6, 0.7, 0.8, 0.8, 0.8, 0.9])
    assert over_tasks.equivalent_rows(flat, ROWS, np.array(0.8)) == pytest.approx(4)
    falling = np.array([0.6, 0.7, 0.85, 0.75, 0.9, 0.9])  # 4 and 8 rows are 0.8 together
    assert over_tasks.equivalent_rows(falling, ROWS, np.array(0.8)) == pytest.approx(4)
    assert over_tasks.equivalent_rows(falling, ROWS, np.array(0.85)) == pytest.approx(8 * 2**0.5)


def test_the_interval_of_rows_may_be_open():
    draws = np.concatenate([np.zeros(100), np.linspace(2, 4, 800), np.full(100, np.inf)])
    assert over_tasks.rows_interval(3.0, draws) == (3.0, 0.0, np.inf)
    assert over_tasks.rows_interval(3.0, draws[100:900]) == pytest.approx((3, 2.05, 3.95), abs=0.01)
    assert over_tasks.rows_interval(np.inf, draws[850:]) == pytest.approx(
        (np.inf, 3.88, np.inf), abs=0.02
    )
