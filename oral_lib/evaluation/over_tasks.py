"""Intervals of means over many tasks: over new tasks, rows, generator seeds and samples.

A method has one value a task and sample, such as its AUC. A draw resamples the tasks, the same ones
for every method. The value of a task carries the noise of its own rows, so resampling tasks
includes new rows: resampling the rows of a drawn task again would count that noise twice (Davison
and Hinkley, 1997, section 3.8). Two effects are common to all tasks and are added to each draw:

- rows that several tasks share, such as a message that is a positive of one task and a negative of
  another. `shared_rows` estimates the covariance of methods that resampling tasks leaves out;
- generator seeds, and samples within a seed, as in `two_level`.

Deviations of tasks follow a t distribution with the degrees of freedom of the number of tasks.
Letters: b draws, m methods, s samples over all seeds, t tasks, n rows of a task, k points of a
curve.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from oral_lib.evaluation import bootstrap, two_level
from oral_lib.evaluation.two_level import Side

_TASKS, _ROWS = 3, 4  # streams of random numbers


def resampled_tasks(
    sides: Mapping[str, Side],
    covariance: np.ndarray | None = None,
    *,
    n_boot: int = two_level.DRAWS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The mean over tasks [n_boot] of each method under the same draws.

    Args:
        sides: values [s, t] by method, and the generator seed of each sample.
        covariance: [m, m] of the methods' means in the order of `sides`, from `shared_rows`.
        n_boot: the number of draws.
        seed: of the draws.

    Raises:
        ValueError: for values that are not finite, or of different tasks.
    """
    means = np.stack([bootstrap.item_means(side.values) for side in sides.values()])  # [m, t]
    n_tasks, centre = means.shape[1], means.mean(axis=1)
    random = np.random.default_rng([seed, _TASKS, n_tasks])
    blocks = [
        counts @ (means - centre[:, None]).T
        for counts in bootstrap.item_counts(n_tasks, n_boot, seed)
    ]
    deviations = np.concatenate(blocks) / n_tasks  # [b, m]
    if n_tasks > 1:
        factor = np.sqrt(n_tasks / (n_tasks - 1))
        deviations = factor * deviations * two_level.widths(random, n_tasks - 1, n_boot)
    if covariance is not None:
        random = np.random.default_rng([seed, _ROWS])
        deviations = deviations + random.normal(size=deviations.shape) @ _root(covariance)
    draws = {}
    for i, (name, side) in enumerate(sides.items()):
        draws[name] = centre[i] + deviations[:, i]
        parts = two_level.components(side.values, side.seeds)
        if parts.seeds.any():
            units = tuple(np.unique(side.seeds))
            draws[name] += two_level.seed_weights(units, n_boot, seed) @ parts.seeds
        if parts.variance > 0:
            n_samples = len(side.values)
            effects = two_level.sample_effects(name, n_samples, parts, n_boot, seed)
            draws[name] += effects.mean(axis=1)
    return {name: np.clip(values, 0.0, 1.0) for name, values in draws.items()}  # shares


def shared_rows(influences: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> np.ndarray:
    """The covariance [m, m] of means over tasks that comes from rows in more than one task.

    It is the covariance with each row drawn once for all tasks, minus that with rows drawn for each
    task by itself, without its negative part. It is 0 if no row is in two tasks.

    Args:
        influences: for each task [m, n], from `row_influences`; 0 where a method has no such row.
        rows: for each task [n], integers that identify the rows.
    """
    n_methods, n_rows = len(influences[0]), 1 + max(int(ids.max(initial=0)) for ids in rows)
    together = np.zeros((n_rows, n_methods))
    separate = np.zeros((n_methods, n_methods))
    for numbers, ids in zip(influences, rows, strict=True):
        together[ids] += numbers.T  # a task has a row once
        separate += numbers @ numbers.T
    root = _root((together.T @ together - separate) / len(influences) ** 2)
    return root @ root


def row_influences(values: np.ndarray) -> np.ndarray:
    """How much each row moves the value of a task, [..., n]; they sum to 0.

    `values` [..., n] are numbers whose mean over rows is the value of the task, such as
    `two_level.auc_values` and `two_level.balanced_values` return.
    """
    values = np.asarray(values, dtype=float)
    return (values - values.mean(axis=-1, keepdims=True)) / values.shape[-1]


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root [m, m] of the positive part of a symmetric matrix."""
    size, directions = np.linalg.eigh(covariance)
    return (directions * np.sqrt(np.clip(size, 0, None))) @ directions.T


# ---------------------------------------------------------------- equivalent labelled rows
def isotonic(values: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence [..., k] that is closest to each of `values` [..., k].

    Isotonic regression with equal weights, by its min-max formula.
    """
    values = np.asarray(values, dtype=float)
    sums = np.concatenate([np.zeros_like(values[..., :1]), np.cumsum(values, axis=-1)], axis=-1)
    k = values.shape[-1]
    smallest = np.empty((*values.shape, k))  # [..., i, j]: least mean of a block from j beyond i
    for j in range(k):
        least = np.full(values.shape[:-1], np.inf)
        for end in range(k - 1, j - 1, -1):
            least = np.minimum(least, (sums[..., end + 1] - sums[..., j]) / (end + 1 - j))
            smallest[..., end, j] = least
    below = np.tril(np.ones((k, k), bool))  # blocks that start at or before i
    return np.where(below, smallest, -np.inf).max(axis=-1)


def equivalent_rows(curve: np.ndarray, rows: Sequence[int], target: np.ndarray) -> np.ndarray:
    """The number of labelled rows [...] at which a curve of trained adapters reaches `target`.

    The curve is made monotone and interpolated in the logarithm of the rows. Where it is flat, the
    smallest number counts. 0 means less than the first number of rows, infinity more than the last.

    Args:
        curve: [..., k], the value at each number of rows.
        rows: [k], increasing.
        target: [...], the value of a method.
    """
    curve, target = isotonic(curve), np.asarray(target, dtype=float)
    logs = np.log(np.asarray(rows, dtype=float))
    reached = curve >= target[..., None] - 1e-12
    first = np.where(reached.any(axis=-1), reached.argmax(axis=-1), len(logs) - 1)
    before = np.maximum(first - 1, 0)
    low, high = (np.take_along_axis(curve, i[..., None], -1)[..., 0] for i in (before, first))
    rise = np.where(high > low, high - low, 1.0)
    part = np.where(high > low, np.clip((target - low) / rise, 0, 1), 1.0)
    result = np.exp(logs[before] + part * (logs[first] - logs[before]))
    result = np.where(target < curve[..., 0] - 1e-12, 0.0, result)
    return np.where(reached.any(axis=-1), result, np.inf)


def rows_interval(value: float, draws: np.ndarray) -> bootstrap.Interval:
    """`value` with the 95% percentile interval of `draws` [b], which may be 0 or infinite."""
    ordered = np.sort(draws)
    ends = (0.025 * (len(ordered) - 1), 0.975 * (len(ordered) - 1))
    low, high = ordered[int(np.floor(ends[0]))], ordered[int(np.ceil(ends[1]))]
    return bootstrap.Interval(float(value), float(min(low, value)), float(max(high, value)))
