"""Standard errors, bootstrap intervals and paired comparisons over held-out rows.

Outcomes come as `[n]` (one value an item) or `[s, n]` (s samples or seeds on the same n items).
Items are resampled and samples are averaged within an item: an interval speaks about new items for
the samples at hand, and `spread` about the samples.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

DRAWS_AT_ONCE = 3_000_000  # keeps a block of the resampling under about 100 MB, whatever n is
BLOCKS_KEPT = 12  # all blocks of two numbers of items, up to 1,500 each; 12 MB a block


class Interval(NamedTuple):
    """A value and its 95% bootstrap interval, which always holds the value."""

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
    """One value an item, `[n]`: the mean over samples of `[s, n]`, or `[n]` as it is."""
    outcomes = np.asarray(outcomes, dtype=float)
    if outcomes.ndim not in (1, 2) or outcomes.size == 0 or not np.isfinite(outcomes).all():
        raise ValueError(f"need finite outcomes [n] or [s, n], got shape {outcomes.shape}")
    return outcomes if outcomes.ndim == 1 else outcomes.mean(axis=0)


def accuracy_stderr(correct) -> float:
    """The standard error of a mean over items: sd of the item means / sqrt(n)."""
    means = item_means(correct)
    return float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else 0.0


def spread(values) -> tuple[float, float]:
    """Mean and standard deviation over samples or seeds (0 for a single one)."""
    values = np.asarray(values, dtype=float)
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0


def _counts(n: int, n_boot: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks `[draws, n]` of how often each of n items was drawn, n_boot draws in all."""
    size = max(1, DRAWS_AT_ONCE // n)
    for start in range(0, n_boot, size):
        yield _block(n, min(size, n_boot - start), seed, start)


@lru_cache(maxsize=BLOCKS_KEPT)  # a report compares many pairs over the same items
def _block(n: int, draws: int, seed: int, start: int) -> np.ndarray:
    random = np.random.default_rng([seed, start])
    drawn = random.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * n)
    return counts.reshape(draws, n).astype(np.float32)


def resampled_means(*outcomes, n_boot: int = 10_000, seed: int = 0) -> np.ndarray:
    """Means of several series under the same resampled items, `[series, n_boot]`.

    Every series is `[n]` or `[s, n]` over the same n items, so any function of the rows is a paired
    bootstrap of that function.
    """
    means = [item_means(series) for series in outcomes]
    if len({series.size for series in means}) != 1:
        raise ValueError(f"series over different items: n = {[series.size for series in means]}")
    stacked = np.stack(means, axis=1)  # [n, series]
    blocks = [counts @ stacked for counts in _counts(len(stacked), n_boot, seed)]
    return np.concatenate(blocks).T / len(stacked)


def interval(value: float, draws: np.ndarray) -> Interval:
    """The 95% percentile interval of bootstrap draws round `value`."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def bootstrap(outcomes, n_boot: int = 10_000, seed: int = 0) -> Interval:
    """The mean over items and its 95% bootstrap interval."""
    return interval(
        item_means(outcomes).mean(), resampled_means(outcomes, n_boot=n_boot, seed=seed)[0]
    )


def paired_bootstrap(a, b, n_boot: int = 10_000, seed: int = 0) -> Difference:
    """How much better a is than b on the same n items: difference, interval, p.

    a and b are `[n]` or `[s, n]`; their numbers of samples may differ. p is twice the share of
    draws on the far side of zero, counting the observed one (so it is never 0).
    """
    first, second = resampled_means(a, b, n_boot=n_boot, seed=seed)
    draws = np.round(first - second, 12)  # 0.1 + 0.2 - 0.3 must count as zero
    found = interval(item_means(a).mean() - item_means(b).mean(), draws)
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    return Difference(*found, p=float(min(1.0, 2 * (tail + 1) / (n_boot + 1))))


def auc(labels, scores) -> float:
    """P(score of a positive > score of a negative), ties counted half; the mean over samples.

    labels `[n]` of 0 and 1, scores `[n]` or `[s, n]`. 1.0 is perfect, 0.5 is no skill.
    """
    labels, scores = np.asarray(labels), np.atleast_2d(np.asarray(scores, dtype=float))
    return float(np.mean([_auc(labels, row, np.ones((1, labels.size)))[0] for row in scores]))


def calibrated(labels, scores) -> np.ndarray:
    """Right or not, `[s, n]`, when each half of the items is judged by the other half's threshold.

    labels `[n]` of 0 and 1, scores `[n]` or `[s, n]`. The halves are drawn at random, always the
    same. A half's threshold is the one that judges it best; of equally good ones the middle one.
    """
    labels, rows = np.asarray(labels), np.atleast_2d(np.asarray(scores, dtype=float))
    right, (first, second) = np.empty(rows.shape), halves(labels.size)
    for own, other in ((first, second), (second, first)):
        for row, found in zip(rows, right, strict=True):
            judged = row[own] > _threshold(labels[other], row[other])
            found[own] = judged == labels[own]
    return right


def halves(n: int) -> list[np.ndarray]:
    """The places of n items in two random halves; the same for every method on these items."""
    return np.array_split(np.random.default_rng(n).permutation(n), 2)


def _threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold above which label 1 is right most often: between two scores, or infinite."""
    if not labels.size:
        return 0.0
    order = np.argsort(scores, kind="stable")
    ordered, signs = scores[order], 2 * labels[order] - 1
    gains = np.concatenate([[0], -np.cumsum(signs)])  # of calling the lowest i scores label 0
    between = np.concatenate([[True], np.diff(ordered) > 0, [True]])  # equal scores stay together
    places = np.flatnonzero(between)
    best = places[gains[places] == gains[places].max()]
    place = best[len(best) // 2]
    edges = np.concatenate([[-np.inf], ordered, [np.inf]])
    return float((edges[place] + edges[place + 1]) / 2)


def bootstrap_auc(labels, scores, n_boot: int = 2_000, seed: int = 0) -> tuple[Interval, float]:
    """The AUC with its 95% bootstrap interval over items, and its standard error."""
    labels, rows = np.asarray(labels), np.atleast_2d(np.asarray(scores, dtype=float))
    draws = np.concatenate(
        [
            np.mean([_auc(labels, row, counts) for row in rows], axis=0)
            for counts in _counts(labels.size, n_boot, seed)
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


def balanced(labels, correct) -> float:
    """Balanced accuracy: the mean over classes of the share of right answers."""
    labels, right = np.asarray(labels), item_means(correct)
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def bootstrap_balanced(
    labels, correct, n_boot: int = 2_000, seed: int = 0
) -> tuple[Interval, float]:
    """Balanced accuracy with its 95% bootstrap interval over items, and its standard error."""
    labels, right = np.asarray(labels), item_means(correct)
    found = []
    for counts in _counts(labels.size, n_boot, seed):
        classes = [counts * (labels == label) for label in np.unique(labels)]
        with np.errstate(invalid="ignore"):  # a draw without one of the classes is left out
            found.append(np.mean([part @ right / part.sum(1) for part in classes], axis=0))
    draws = np.concatenate(found)
    draws = draws[np.isfinite(draws)]
    return interval(balanced(labels, correct), draws), float(draws.std(ddof=1))
