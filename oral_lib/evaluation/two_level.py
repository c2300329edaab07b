"""Paired intervals over new items, new training runs, new generator seeds and new samples.

A draw resamples the items, the same ones for every method. To each method's mean over the drawn
items it adds a drawn effect of each level of samples: generator seeds, and samples within a seed.
The samples of `trained` are adapters with different training seeds. Letters: b draws, s samples
over all seeds, m units of a level, n items.

The variance of a level is the one that the samples have beyond the noise of finite items: the
estimate of a two-way analysis of variance, at least 0. Plain resampling of items and samples would
count that noise up to three times (Owen, 2007): intervals of two equal methods then cover the truth
in all of 400 simulated cases, and are 1.6 times as wide as intervals with 95% coverage. Effects are
drawn from a t distribution with the degrees of freedom of the estimate.

What few units mean. A level with one unit has no effect: an average of adapters, or the only
generator seed of a run, is judged as it is. With 2 or 3 units the interval is honest and may be
wide: 4.3 standard errors for 3 seeds, 12.7 for 2. That happens only where the means of the units
differ by more than finite items explain. An estimate from 2 or 3 units often is 0 by chance. Where
seeds dominate, intervals then cover the truth in 92 to 95% of cases.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from oral_lib.evaluation import bootstrap

DRAWS = 10_000
ORIGINALS = "trained"  # the side whose adapters other sides may have, too
_SEEDS, _SAMPLES = 1, 2  # streams of random numbers


class Side(NamedTuple):
    """The outcomes of one method under one condition.

    Args:
        values: [s, n], a number for each item and sample; all sides have the same n items.
        seeds: [s], the generator seed of each sample.
        originals: [s], if the samples are adapters of `trained`: their indices there. Effects of
            an adapter are the same on both sides.
    """

    values: np.ndarray
    seeds: Sequence[int]
    originals: np.ndarray | None = None

    @property
    def mean(self) -> float:
        """The mean over samples and items."""
        return float(np.asarray(self.values, dtype=float).mean())


class Components(NamedTuple):
    """How samples differ beyond the noise of finite items.

    Args:
        seeds: [m], the effect of each generator seed, with mean 0.
        variance: of the samples within a seed.
        freedom: its degrees of freedom, samples minus seeds.
    """

    seeds: np.ndarray
    variance: float
    freedom: int


def components(values: np.ndarray, seeds: Sequence[int]) -> Components:
    """The effects of seeds and the variance of samples within a seed, without the items' noise.

    Args:
        values: outcomes [s, n].
        seeds: [s], the generator seed of each sample.
    """
    values = np.asarray(values, dtype=float)
    different, group = np.unique(seeds, return_inverse=True)
    of_seed = np.stack([values[group == k].mean(axis=0) for k in range(len(different))])  # [m, n]
    freedom, ratio = len(values) - len(different), len(different) / len(values)
    variance, _ = _beyond_noise(values - of_seed[group], freedom)
    residuals = of_seed - of_seed.mean(axis=0)
    total, noise = _beyond_noise(residuals, len(different) - 1)
    beyond = max(0.0, total - variance * ratio) / ((total + noise) or 1.0)
    return Components(residuals.mean(axis=1) * np.sqrt(beyond), variance, freedom)


def _beyond_noise(residuals: np.ndarray, freedom: int) -> tuple[float, float]:
    """(variance of the rows' means beyond the noise of items, that noise); at least 0 in all.

    `residuals` [m, n] have mean 0 over rows, or over the rows of each group.
    """
    n = residuals.shape[1]
    if freedom < 1:
        return 0.0, 0.0
    means = residuals.mean(axis=1)
    total = float((means**2).sum()) / freedom
    noise = float(((residuals - means[:, None]) ** 2).sum()) / freedom / max(1, n - 1) / n
    beyond = total - noise
    return (beyond, noise) if beyond > 1e-9 * total else (0.0, total)  # rounding is not variance


def resampled(
    sides: Mapping[str, Side], *, n_boot: int = DRAWS, seed: int = 0
) -> dict[str, np.ndarray]:
    """The mean [n_boot] of each side under the same draws.

    So any function of several entries is a paired interval of that function. Sides with the same
    generator seeds share the draws of seeds. Samples are drawn independently for each name, unless
    they are adapters of `trained`. Every metric here is a share, so a drawn mean lies from 0 to 1.

    Args:
        sides: by name; `trained` must be among them if a side has originals.
        n_boot: the number of draws.
        seed: of the draws.

    Raises:
        ValueError: for outcomes that are not finite, and for sides over different items.
    """
    means = np.stack([bootstrap.item_means(side.values) for side in sides.values()], axis=1)
    blocks = [counts @ means for counts in bootstrap.item_counts(len(means), n_boot, seed)]
    draws = dict(zip(sides, np.concatenate(blocks).T / len(means), strict=True))
    parts = {name: components(side.values, side.seeds) for name, side in sides.items()}
    for name, side in sides.items():
        units = np.unique(side.seeds)
        if parts[name].seeds.any():
            draws[name] = draws[name] + seed_weights(tuple(units), n_boot, seed) @ parts[name].seeds
        source = name if side.originals is None else ORIGINALS
        if parts[source].variance > 0:
            n_samples = len(sides[source].values)
            effects = sample_effects(source, n_samples, parts[source], n_boot, seed)
            chosen = slice(None) if side.originals is None else side.originals
            draws[name] = draws[name] + effects[:, chosen].mean(axis=1)
    return {name: np.clip(values, 0.0, 1.0) for name, values in draws.items()}  # shares


@lru_cache(maxsize=16)
def seed_weights(seeds: tuple[int, ...], n_boot: int, seed: int) -> np.ndarray:
    """Weights [b, m] of the effects of m seeds: the sum follows t with m - 1 degrees of freedom."""
    m = len(seeds)
    random = np.random.default_rng([seed, _SEEDS, *seeds])
    weights = random.normal(size=(n_boot, m)) / np.sqrt(m * (m - 1))
    return weights * widths(random, m - 1, n_boot)


def sample_effects(
    name: str, n_samples: int, parts: Components, n_boot: int, seed: int
) -> np.ndarray:
    """Effects [b, s] of the samples of the side `name`."""
    random = np.random.default_rng([seed, _SAMPLES, *name.encode()])
    width = np.sqrt(parts.variance) * widths(random, parts.freedom, n_boot)
    return random.normal(size=(n_boot, n_samples)) * width


def widths(random: np.random.Generator, freedom: int, n_boot: int) -> np.ndarray:
    """Factors [b, 1] by which normal draws become draws from a t distribution."""
    return np.sqrt(freedom / random.chisquare(freedom, size=(n_boot, 1)))


# ---------------------------------------------------------------- comparisons of draws
def estimate(what: np.ndarray, against: np.ndarray, difference: float) -> bootstrap.Difference:
    """The difference of two sides, its 95% interval and a two-sided p-value.

    p is twice the share of draws beyond zero, with the observed difference counted as a draw.

    Args:
        what: the mean [b] of one side, from `resampled`.
        against: the mean [b] of the other side under the same draws.
        difference: the observed difference.
    """
    draws = np.round(what - against, 12)  # 0.1 + 0.2 - 0.3 must count as zero
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (len(draws) + 1))
    return bootstrap.Difference(*bootstrap.interval(difference, draws), p=float(p))


def holm(p: Sequence[float]) -> np.ndarray:
    """The p-values [m] after Holm's correction for m tests: never below `p`, at most 1."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(1, corrected)


# ---------------------------------------------------------------- metrics that are not means
def auc_values(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """A number for each item and sample [s, n], whose mean over items is the AUC.

    Its resampled mean is the resampled AUC to first order: the AUC plus the mean influence of the
    drawn items (DeLong and others, 1988).

    Args:
        labels: [n], 0 or 1, both present.
        scores: [s, n].
    """
    labels, rows = np.asarray(labels).astype(bool), np.atleast_2d(np.asarray(scores, dtype=float))
    values = np.empty(rows.shape)
    for row, value in zip(rows, values, strict=True):
        value[labels] = _share_below(row[~labels], row[labels])
        value[~labels] = 1 - _share_below(row[labels], row[~labels])
    result = balanced_values(labels, values)  # a mean of both classes; influences add up
    return 2 * result - result.mean(axis=1, keepdims=True)


def _share_below(others: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The share of `others` below each of `scores`, ties counted half."""
    others = np.sort(others)
    return sum(np.searchsorted(others, scores, end) for end in ("left", "right")) / 2 / len(others)


def balanced_values(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A number for each item and sample [s, n], whose mean over items is a mean over classes.

    Its resampled mean is the resampled mean over classes to first order.

    Args:
        labels: [n].
        values: [s, n]; their means within each class are averaged over the classes.
    """
    labels, values = np.asarray(labels), np.asarray(values, dtype=float)
    classes = np.unique(labels)
    means = np.stack([values[:, labels == label].mean(axis=1) for label in classes])  # [c, s]
    result = np.repeat(means.mean(axis=0)[:, None], labels.size, axis=1)
    for label, mean in zip(classes, means, strict=True):
        members = labels == label
        result[:, members] += (values[:, members] - mean[:, None]) / members.mean() / len(classes)
    return result
