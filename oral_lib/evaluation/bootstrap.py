"""Standard errors, bootstrap intervals and paired comparisons over held-out rows.

Outcomes are `[n]` (one value an item) or `[s, n]` (s samples or seeds on the same n items). Items
are resampled, and samples are averaged within an item. So an interval is about new items for the
given samples, and `spread` is about the samples.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

BLOCK_VALUES = 3_000_000  # of a block of the resampling: under about 100 MB for every n
CACHED_BLOCKS = 12  # all blocks of two numbers of items, up to 1,500 each; 12 MB a block


class Interval(NamedTuple):
    """A value and its 95% bootstrap interval, which always contains the value."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """mean(a) - mean(b), its 95% paired bootstrap interval, and a two-sided p-value."""

    difference: float
    ci_low: float
    ci_high: float
    p: float


def item_means(outcomes) -> np.ndarray:
    """One value an item, `[n]`: the mean over samples of `[s, n]`, or `[n]` unchanged."""
    outcomes = np.asarray(outcomes, dtype=float)
    if outcomes.ndim not in (1, 2) or outcomes.size == 0 or not np.isfinite(outcomes).all():
        raise ValueError(f"need finite outcomes [n] or [s, n], got shape {outcomes.shape}")
    return outcomes if outcomes.ndim == 1 else outcomes.mean(axis=0)


def accuracy_stderr(correct) -> float:
    """The standard error of a mean over items: standard deviation of item means / sqrt(n)."""
    means = item_means(correct)
    return float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else 0.0


def spread(values) -> tuple[float, float]:
    """Mean and standard deviation over samples or seeds (0 for a single one)."""
    values = np.asarray(values, dtype=float)
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0


def item_counts(n: int, n_boot: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks `[draws, n]` of the counts of n items, n_boot draws in total."""
    size = max(1, BLOCK_VALUES // n)
    for start in range(0, n_boot, size):
        yield _block(n, min(size, n_boot - start), seed, start)


@lru_cache(maxsize=CACHED_BLOCKS)  # a report compares many pairs over the same items
def _block(n: int, draws: int, seed: int, start: int) -> np.ndarray:
    random = np.random.default_rng([seed, start])
    drawn = random.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * n)
    return counts.reshape(draws, n).astype(np.float32)


def resampled_means(*outcomes, n_boot: int = 10_000, seed: int = 0) -> np.ndarray:
    """Means of several series under the same resampled items, `[series, n_boot]`.

    Every series is `[n]` or `[s, n]` over the same n items. So any function of the result's rows is
    a paired bootstrap of that function.
    """
    means = [item_means(series) for series in outcomes]
    if len({series.size for series in means}) != 1:
        raise ValueError(f"series over different items: n = {[series.size for series in means]}")
    stacked = np.stack(means, axis=1)  # [n, series]
    blocks = [counts @ stacked for counts in item_counts(len(stacked), n_boot, seed)]
    return np.concatenate(blocks).T / len(stacked)


def interval(value: float, draws: np.ndarray) -> Interval:
    """`value` with the 95% percentile interval of bootstrap draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def bootstrap(outcomes, n_boot: int = 10_000, seed: int = 0) -> Interval:
    """The mean over items and its 95% bootstrap interval."""
    return interval(
        item_means(outcomes).mean(), resampled_means(outcomes, n_boot=n_boot, seed=seed)[0]
    )


def paired_bootstrap(a, b, n_boot: int = 10_000, seed: int = 0) -> Difference:
    """mean(a) - mean(b) on the same n items, with interval and p.

    a and b are `[n]` or `[s, n]`; their numbers of samples may differ. p is twice the share of
    draws beyond zero, with the observed difference counted as a draw, so it is never 0.
    """
    first, second = resampled_means(a, b, n_boot=n_boot, seed=seed)
    draws = np.round(first - second, 12)  # 0.1 + 0.2 - 0.3 must count as zero
    estimate = interval(item_means(a).mean() - item_means(b).mean(), draws)
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    return Difference(*estimate, p=float(min(1.0, 2 * (tail + 1) / (n_boot + 1))))


def auc(labels, scores) -> float:
    """P(score of a positive > score of a negative), ties counted half; the mean over samples.

    labels `[n]` of 0 and 1, scores `[n]` or `[s, n]`. 1.0 is perfect, 0.5 is chance.
    """
    labels, scores = np.asarray(labels), np.atleast_2d(np.asarray(scores, dtype=float))
    return float(np.mean([_auc(labels, row, np.ones((1, labels.size)))[0] for row in scores]))


def calibrated(labels, scores) -> np.ndarray:
    """Correct (1.0) or not, `[s, n]`, with the threshold of each half fitted on the other half.

    labels `[n]` of 0 and 1, scores `[n]` or `[s, n]`. The random halves depend on n only. A
    threshold maximises the accuracy of its half; among several, the middle one is used.
    """
    labels, rows = np.asarray(labels), np.atleast_2d(np.asarray(scores, dtype=float))
    correct, (first, second) = np.empty(rows.shape), halves(labels.size)
    for test, fit in ((first, second), (second, first)):
        for row, outcomes in zip(rows, correct, strict=True):
            predicted = row[test] > _threshold(labels[fit], row[fit])
            outcomes[test] = predicted == labels[test]
    return correct


def halves(n: int) -> list[np.ndarray]:
    """The indices of n items in two random halves, the same for every method."""
    return np.array_split(np.random.default_rng(n).permutation(n), 2)


def _threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold of label 1 with the best accuracy: between two scores, or infinite."""
    if not labels.size:
        return 0.0
    order = np.argsort(scores, kind="stable")
    ordered, signs = scores[order], 2 * labels[order] - 1
    gains = np.concatenate([[0], -np.cumsum(signs)])  # of label 0 for the lowest i scores
    between = np.concatenate([[True], np.diff(ordered) > 0, [True]])  # equal scores stay together
    cuts = np.flatnonzero(between)
    best = cuts[gains[cuts] == gains[cuts].max()]
    cut = best[len(best) // 2]
    edges = np.concatenate([[-np.inf], ordered, [np.inf]])
    return float((edges[cut] + edges[cut + 1]) / 2)


def bootstrap_auc(labels, scores, n_boot: int = 2_000, seed: int = 0) -> tuple[Interval, float]:
    """The AUC with its 95% bootstrap interval over items, and its standard error."""
    labels, rows = np.asarray(labels), np.atleast_2d(np.asarray(scores, dtype=float))
    draws = np.concatenate(
        [
            np.mean([_auc(labels, row, counts) for row in rows], axis=0)
            for counts in item_counts(labels.size, n_boot, seed)
        ]
    )
    draws = draws[np.isfinite(draws)]  # a draw without one of the two classes has no AUC
    return interval(auc(labels, scores), draws), float(draws.std(ddof=1))


def _auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted AUC for each row of weights `[draws, n]`: the Mann-Whitney statistic."""
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError(f"AUC needs both labels 0 and 1, got {np.unique(labels).tolist()}")
    levels, level = np.unique(scores, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(levels.size))
    positive = np.add.reduceat((weights * labels)[:, order], starts, axis=1)  # [draws, levels]
    negative = np.add.reduceat((weights * (1 - labels))[:, order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    with np.errstate(invalid="ignore"):
        return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def balanced_accuracy(labels, correct) -> float:
    """Balanced accuracy: the mean over classes of the accuracy of a class."""
    labels, means = np.asarray(labels), item_means(correct)
    return float(np.mean([means[labels == label].mean() for label in np.unique(labels)]))


def bootstrap_balanced(
    labels, correct, n_boot: int = 2_000, seed: int = 0
) -> tuple[Interval, float]:
    """Balanced accuracy with its 95% bootstrap interval over items, and its standard error."""
    labels, means = np.asarray(labels), item_means(correct)
    blocks = []
    for counts in item_counts(labels.size, n_boot, seed):
        classes = [counts * (labels == label) for label in np.unique(labels)]
        with np.errstate(invalid="ignore"):  # a draw without one of the classes is left out
            accuracies = [count @ means / count.sum(1) for count in classes]
            blocks.append(np.mean(accuracies, axis=0))
    draws = np.concatenate(blocks)
    draws = draws[np.isfinite(draws)]
    return interval(balanced_accuracy(labels, correct), draws), float(draws.std(ddof=1))
