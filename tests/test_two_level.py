"""Intervals over items, adapters, generator seeds and samples: they cover new ones of each."""

import numpy as np
import pytest

from oral_lib.evaluation import bootstrap, two_level
from oral_lib.evaluation.two_level import Side


def outcomes(random, effects, n=400, noise=0.5):
    """Correct or not [s, n]: items differ in difficulty, samples by their `effects`, about 1/5."""
    difficulty = 1.5 * random.normal(size=n)
    effects = [np.asarray(part) / 0.2 for part in effects]
    shape = [(len(part), n) for part in effects]
    return [
        1.3 + difficulty + noise * random.normal(size=s) + part[:, None] > 0
        for s, part in zip(shape, effects, strict=True)
    ]


def covered(sd_adapters, sd_seeds, sd_samples=0.003, runs=150):
    """(two-level, item-only): how often the intervals contain a true difference of 0."""
    random, seeds = np.random.default_rng(0), np.repeat([0, 1, 2], 10)
    hits = np.zeros(2)
    for run in range(runs):
        of_seeds = sd_seeds * random.normal(size=3)[seeds]
        effects = (
            of_seeds + sd_samples * random.normal(size=30),
            sd_adapters * random.normal(size=10),
        )
        generated, trained = outcomes(random, effects)
        sides = {"generated": Side(generated, seeds), "trained": Side(trained, np.zeros(10))}
        draws = two_level.resampled(sides, n_boot=500, seed=run)
        gap = generated.mean() - trained.mean()
        both = two_level.estimate(draws["generated"], draws["trained"], gap)
        items = bootstrap.paired_bootstrap(generated, trained, n_boot=500, seed=run)
        hits += [e.ci_low <= 0 <= e.ci_high for e in (both, items)]
    return hits / runs


@pytest.mark.parametrize(
    ("sd_adapters", "sd_seeds", "item_only"),
    [(0.02, 0.0, 0.85), (0.005, 0.02, 0.7), (0.01, 0.01, 0.8)],
)
def test_intervals_cover_new_adapters_and_seeds_and_item_only_intervals_do_not(
    sd_adapters, sd_seeds, item_only
):
    two, one = covered(sd_adapters, sd_seeds)
    assert two >= 0.9
    assert one < item_only


def test_intervals_are_not_wider_than_needed_where_adapters_do_not_differ():
    """Plain resampling of items and samples covers the truth in all cases here, not in 95%."""
    two, one = covered(0.0, 0.0, 0.0)
    assert 0.9 <= one <= 1 and two - one < 0.04
    random = np.random.default_rng(1)
    generated, trained = outcomes(random, (np.zeros(30), np.zeros(10)), n=2000)
    sides = {
        "generated": Side(generated, np.repeat([0, 1, 2], 10)),
        "trained": Side(trained, [0] * 10),
    }
    draws = two_level.resampled(sides, n_boot=2000)
    item_only = bootstrap.resampled_means(generated, trained, n_boot=2000)
    assert (draws["generated"] - draws["trained"]).std() < 1.5 * (item_only[0] - item_only[1]).std()


def resampled_ref(sides, n_boot, seed):
    """`resampled` in loops: item by item, seed by seed, sample by sample."""
    n = len(sides["trained"].values[0])
    counts = np.concatenate([*bootstrap.item_counts(n, n_boot, seed)]).astype(float)
    draws = {}
    for name, side in sides.items():
        source = name if side.originals is None else "trained"
        index = range(len(side.values)) if side.originals is None else side.originals
        parts = two_level.components(sides[source].values, sides[source].seeds)
        effects = two_level.components(side.values, side.seeds).seeds
        samples = two_level.sample_effects(source, len(sides[source].values), parts, n_boot, seed)
        seeds = tuple(sorted(set(side.seeds)))
        weights = (
            two_level.seed_weights(seeds, n_boot, seed) if len(seeds) > 1 else [[0.0]] * n_boot
        )
        draws[name] = np.zeros(n_boot)
        for b in range(n_boot):
            for i, values in zip(index, side.values, strict=True):
                for j in range(n):
                    draws[name][b] += counts[b, j] * values[j] / n / len(side.values)
                draws[name][b] += samples[b, i] / len(side.values)
            for k in range(len(seeds)):
                draws[name][b] += weights[b][k] * effects[k]
    return draws


def test_draws_are_those_of_the_plain_loops():
    random = np.random.default_rng(2)
    effects = 0.1 * random.normal(size=6), 0.1 * random.normal(size=4)
    generated, trained = outcomes(random, effects, n=30)
    sides = {
        "generated": Side(generated, [0, 0, 1, 1, 2, 2]),
        "trained": Side(trained, [0] * 4),
        "router": Side(trained[[2, 3, 3]], [0] * 3, np.array([2, 3, 3])),
    }
    fast, slow = two_level.resampled(sides, n_boot=40, seed=3), resampled_ref(sides, 40, 3)
    for name in sides:
        assert fast[name] == pytest.approx(slow[name], abs=1e-9)
        assert fast[name].std() > 0


def test_the_variance_of_each_level_is_recovered():
    random = np.random.default_rng(3)
    runs = []
    for _ in range(300):
        seeds = np.repeat(np.arange(4), 5)
        means = 0.5 + 0.03 * random.normal(size=4)[seeds] + 0.02 * random.normal(size=20)
        values = means[:, None] + 0.4 * random.normal(size=(20, 200))  # noise of a mean: 0.028
        parts = two_level.components(values, seeds)
        runs.append((parts.variance, (parts.seeds**2).sum() / 3))
        assert parts.freedom == 16 and parts.seeds.sum() == pytest.approx(0)
    samples, between = np.mean(runs, axis=0)
    assert samples == pytest.approx(0.02**2, rel=0.1)
    assert between == pytest.approx(0.03**2, rel=0.15)


def test_one_sample_has_no_level_of_samples():
    parts = two_level.components(np.ones((1, 5)), [0])
    assert parts.variance == 0 and not parts.seeds.any()
    values = np.random.default_rng(4).random((1, 50)) < 0.5
    draws = two_level.resampled({"soup_task": Side(values, [0])}, n_boot=300)["soup_task"]
    assert draws == pytest.approx(bootstrap.resampled_means(values, n_boot=300)[0])


def test_copies_of_adapters_share_the_draws_of_their_originals():
    trained = np.random.default_rng(5).random((6, 1)) > np.linspace(0, 1, 80)
    sides = {"trained": Side(trained, [0] * 6), "router": Side(trained, [0] * 6, np.arange(6))}
    draws = two_level.resampled(sides, n_boot=200)
    assert draws["router"] == pytest.approx(draws["trained"])
    alone = two_level.resampled(sides | {"router": Side(trained, [0] * 6)}, n_boot=200)
    assert (alone["router"] - alone["trained"]).std() > 0.02


def test_seeds_that_two_sides_share_are_drawn_together():
    random = np.random.default_rng(6)
    seeds = np.repeat([0, 1, 2], 3)
    values = np.repeat([0.2, 0.5, 0.9], 3)[:, None] + 0.01 * random.normal(size=(9, 60))
    sides = {"generated": Side(values, seeds), "generated/paraphrase": Side(values, seeds)}
    draws = two_level.resampled(sides, n_boot=400)
    gap = draws["generated"] - draws["generated/paraphrase"]
    assert draws["generated"].std() > 0.1 and gap.std() < 0.01


def test_the_same_draws_every_time_and_others_with_another_seed():
    values = np.random.default_rng(7).random((5, 40)) < 0.6
    first, again = (
        two_level.resampled({"trained": Side(values, [0] * 5)}, n_boot=50) for _ in "ab"
    )
    other = two_level.resampled({"trained": Side(values, [0] * 5)}, n_boot=50, seed=1)
    assert np.array_equal(first["trained"], again["trained"])
    assert not np.array_equal(first["trained"], other["trained"])


def test_outcomes_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        two_level.resampled({"trained": Side(np.array([[1.0, np.nan]]), [0])})


# ---------------------------------------------------------------- p-values and metrics
def test_holm_steps_down_as_in_a_worked_example():
    """Holm (1979) by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 must not fall below that."""
    assert two_level.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert two_level.holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert two_level.holm([]).size == 0 and two_level.holm([0.02]) == pytest.approx([0.02])


def test_p_values_are_small_only_where_the_interval_excludes_zero():
    random = np.random.default_rng(8)
    draws = 0.02 + 0.01 * random.normal(size=2000)
    row = two_level.estimate(draws, np.zeros(2000), 0.02)
    assert 0.02 < row.p < 0.08 and row.ci_low < 0.01
    assert two_level.estimate(draws, draws, 0.0) == (0, 0, 0, 1)
    assert two_level.estimate(draws + 1, np.zeros(2000), 1.02).p == pytest.approx(2 / 2001)


def test_values_of_the_auc_have_its_mean_and_its_interval():
    random = np.random.default_rng(9)
    labels = np.arange(300) % 3 == 0
    scores = np.round(random.normal(size=(2, 300)) + labels, 1)  # with ties
    values = two_level.auc_values(labels, scores)
    for row, value in zip(scores, values, strict=True):
        assert value.mean() == pytest.approx(bootstrap.auc(labels.astype(int), row))
    exact, stderr = bootstrap.bootstrap_auc(labels.astype(int), scores)
    draws = bootstrap.resampled_means(values)[0]
    assert draws.std() == pytest.approx(stderr, rel=0.05)
    assert np.quantile(draws, 0.025) == pytest.approx(exact.low, abs=0.006)


def test_values_of_the_balanced_accuracy_have_its_mean_and_its_interval():
    random = np.random.default_rng(10)
    labels = (np.arange(400) % 4 == 0).astype(int)
    correct = random.random((3, 400)) < np.where(labels, 0.6, 0.9)
    values = two_level.balanced_values(labels, correct)
    exact, stderr = bootstrap.bootstrap_balanced(labels, correct)
    assert values.mean() == pytest.approx(exact.value)
    assert bootstrap.resampled_means(values)[0].std() == pytest.approx(stderr, rel=0.05)
