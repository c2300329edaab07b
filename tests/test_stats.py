import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from oral_lib.evaluation import bootstrap


def test_bootstrap_interval_covers_the_true_mean_about_95_times_in_100():
    random = np.random.default_rng(0)
    runs, held = 300, 0
    for run in range(runs):
        found = bootstrap.bootstrap(random.random(120) < 0.7, n_boot=600, seed=run)
        held += found.low <= 0.7 <= found.high
    assert 0.91 <= held / runs <= 0.98


def test_bootstrap_of_samples_resamples_items_and_averages_samples():
    """Copies of one sample add nothing; they must not narrow the interval."""
    one = np.random.default_rng(1).random(200) < 0.6
    assert bootstrap.bootstrap(np.tile(one, (5, 1))) == pytest.approx(bootstrap.bootstrap(one))


def test_standard_error_of_accuracy_is_the_binomial_one():
    correct = np.arange(400) % 4 > 0
    assert bootstrap.accuracy_stderr(correct) == pytest.approx(np.sqrt(0.75 * 0.25 / 399))
    assert bootstrap.bootstrap(correct).high - 0.75 == pytest.approx(1.96 * 0.0217, rel=0.1)


def test_paired_bootstrap_finds_a_small_difference_that_unpaired_intervals_hide():
    random = np.random.default_rng(2)
    b = random.random(300) < 0.7
    b[:12] = False
    a = b | (np.arange(300) < 12)
    found = bootstrap.paired_bootstrap(a, b)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert 0 < found.ci_low < found.difference < found.ci_high and found.p < 0.05
    assert bootstrap.bootstrap(a).low < bootstrap.bootstrap(b).high


def test_paired_bootstrap_finds_nothing_where_there_is_nothing():
    random = np.random.default_rng(3)
    runs = [random.random((2, 150)) < 0.7 for _ in range(200)]
    found = [bootstrap.paired_bootstrap(a, b, n_boot=400) for a, b in runs]
    assert np.mean([one.p < 0.05 for one in found]) < 0.1
    same = bootstrap.paired_bootstrap(runs[0][0], runs[0][0])
    assert same == (0, 0, 0, 1)


def test_paired_bootstrap_takes_different_numbers_of_samples():
    random = np.random.default_rng(4)
    a, b = random.random((5, 80)) < 0.9, random.random((3, 80)) < 0.4
    found = bootstrap.paired_bootstrap(a, b)
    assert found.difference == pytest.approx(a.mean() - b.mean()) and found.p < 0.001
    mirror = bootstrap.paired_bootstrap(b, a)
    assert mirror.ci_low == pytest.approx(-found.ci_high, abs=1e-9)


def test_same_seed_same_interval():
    values = np.random.default_rng(5).random(50)
    assert bootstrap.bootstrap(values, seed=7) == bootstrap.bootstrap(values, seed=7)
    assert bootstrap.bootstrap(values, seed=7) != bootstrap.bootstrap(values, seed=8)


def test_many_items_are_resampled_in_blocks_that_differ(monkeypatch):
    values = np.random.default_rng(6).random(30)
    whole = bootstrap.bootstrap(values, n_boot=2000)
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 30 * 100)
    blocks = bootstrap.resampled_means(values, n_boot=2000)[0]
    assert len(np.unique(blocks)) > 1900
    assert bootstrap.bootstrap(values, n_boot=2000) == pytest.approx(whole, abs=0.01)


@pytest.mark.parametrize("decimals", [0, 8], ids=["ties", "no ties"])
def test_auc_is_that_of_scikit_learn(decimals):
    random = np.random.default_rng(7)
    labels = np.arange(90) % 3 == 0
    scores = np.round(random.normal(size=(4, 90)) + labels, decimals)
    wanted = np.mean([roc_auc_score(labels, row) for row in scores])
    assert bootstrap.auc(labels.astype(int), scores) == pytest.approx(wanted)


def test_auc_interval_holds_the_value_and_the_standard_error_fits_it():
    random = np.random.default_rng(8)
    labels = np.arange(200) % 2
    (value, low, high), stderr = bootstrap.bootstrap_auc(labels, random.normal(size=200) + labels)
    assert low < value < high < 1
    assert (high - low) / 2 == pytest.approx(1.96 * stderr, rel=0.15)


def test_spread_is_mean_and_deviation_over_samples():
    assert bootstrap.spread([0.7, 0.8, 0.9]) == pytest.approx((0.8, 0.1))
    assert bootstrap.spread([0.7]) == (0.7, 0.0)


@pytest.mark.parametrize("broken", [[], [1.0, np.nan], np.ones((2, 2, 2))])
def test_outcomes_that_cannot_be_averaged_are_refused(broken):
    with pytest.raises(ValueError, match="finite outcomes"):
        bootstrap.bootstrap(broken)


def test_series_over_different_items_are_refused():
    with pytest.raises(ValueError, match="different items"):
        bootstrap.paired_bootstrap(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="both labels"):
        bootstrap.auc(np.ones(3), np.ones(3))


def test_a_threshold_of_one_half_judges_the_other():
    """One half is separable at 0, the other at 10; each is judged by the other's threshold."""
    labels, shift = np.arange(200) % 2, np.zeros(200)
    first, second = bootstrap.halves(200)
    shift[second] = 10
    right = bootstrap.calibrated(labels, np.where(labels == 1, 1, -1) + shift)[0]
    assert (right[first] == (labels[first] == 0)).all()  # none lies above a threshold near 10
    assert (right[second] == (labels[second] == 1)).all()  # all lie above one near 0
    assert sorted([*first, *second]) == list(range(200)) and len(first) == len(second)


def test_calibration_finds_no_skill_where_there_is_none():
    random = np.random.default_rng(9)
    labels = np.arange(400) % 2
    found = bootstrap.calibrated(labels, random.normal(size=(50, 400))).mean()
    assert found == pytest.approx(0.5, abs=0.02)
    always = bootstrap.calibrated(np.arange(20) >= 3, np.zeros(20))[0]  # equal scores stay together
    assert always.tolist() == [0] * 3 + [1] * 17
