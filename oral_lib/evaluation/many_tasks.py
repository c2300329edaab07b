"""Items and metrics of many tasks at once.

Letters: s samples, T tasks, n rows of a task, P positive and N negative rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from oral_lib.evaluation import bootstrap
from oral_lib.evaluation.schema import COLUMNS, KEY, check_metrics, in_order, items_frame
from oral_lib.provenance import code_commit

_DIGITS = 3  # significant digits of a score
_DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True)
class Scored:
    """The scores of one method under one condition.

    Attributes:
        method: one of `schema.METHODS`.
        condition: one of `schema.CONDITIONS`.
        scores: [s, T, n] logit of yes minus logit of no.
        making_s: seconds to make the adapters of all samples and tasks.
        scoring_s: seconds to score all rows.
        tokens: mean tokens of a row; 0: the tokens of its message.
        adapters: whether the method makes adapters of its own.
    """

    method: str
    condition: str
    scores: np.ndarray = field(repr=False)
    making_s: float = 0.0
    scoring_s: float = 0.0
    tokens: float = 0.0
    adapters: bool = False


def rounded(scores: np.ndarray, digits: int = _DIGITS) -> np.ndarray:
    """`scores` with so many significant digits, which take less space on disk.

    >>> rounded(np.array([1.23456, -0.0098765]))
    array([ 1.23   , -0.00988])
    """
    safe = np.where(scores == 0, 1.0, np.abs(scores))
    unit = 10.0 ** (np.floor(np.log10(safe)) - digits + 1)
    return np.round(scores / unit) * unit


def items_of(
    about: Mapping,
    tasks: Sequence[str],
    keys: Sequence[str],
    rows: np.ndarray,
    labels: np.ndarray,
    planned: Sequence[Scored],
) -> pd.DataFrame:
    """The items of all methods, in the schema.

    Args:
        about: experiment, source, base and seed.
        tasks: names [T].
        keys: ids of the messages, by row number.
        rows: row numbers [T, n].
        labels: [n], 0 or 1.
        planned: the scores.
    """
    total, n = rows.shape
    distinct, place = np.unique(rows, return_inverse=True)
    names = [keys[row] for row in distinct]
    place, columns = place.ravel(), []
    for trial in planned:
        scores = rounded(trial.scores)
        predicted = (scores > 0).astype(np.int16)
        s = len(scores)
        right = np.broadcast_to(labels, scores.shape)
        columns.append({
            "task": np.tile(np.repeat(np.arange(total), n), s), "item": np.tile(place, s),
            "sample": np.repeat(np.arange(s), total * n), "label": right.ravel(),
            "correct": (predicted == right).ravel(), "score": scores.ravel(),
            "predicted": predicted.ravel(),
        })  # fmt: skip
    frame = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    frame["task"] = pd.Categorical.from_codes(frame["task"], [*tasks])
    frame["item"] = pd.Categorical.from_codes(frame["item"], names)
    sizes = [trial.scores.size for trial in planned]
    for name in ("method", "condition"):
        words = [getattr(trial, name) for trial in planned]
        kinds = sorted({*words})
        codes = np.repeat([kinds.index(word) for word in words], sizes)
        frame[name] = pd.Categorical.from_codes(codes, kinds)
    for name in ("experiment", "source", "base", "seed"):
        frame[name] = np.repeat(about[name], sum(sizes))
    return items_frame(pd.DataFrame(frame))


def metrics_of(
    about: Mapping,
    tasks: Sequence[str],
    labels: np.ndarray,
    planned: Sequence[Scored],
    base_version: str,
) -> pd.DataFrame:
    """AUC, balanced accuracy and accuracy of each task, method and condition, in the schema.

    Intervals are bootstrap intervals over rows; samples are averaged within a row.

    Args:
        about: experiment, source, base and seed.
        tasks: names [T].
        labels: [n], 0 or 1, both of which occur.
        planned: the scores.
        base_version: the version of the base model.
    """
    counts = np.concatenate([*bootstrap.item_counts(len(labels), _DRAWS, 0)])  # [draws, n]
    positive = labels == 1
    kept = (counts[:, positive].sum(1) > 0) & (counts[:, ~positive].sum(1) > 0)
    counts = counts[kept].astype(float)
    parts = []
    for trial in planned:
        for metric, (value, draws, stderr) in _estimates(trial, labels, counts).items():
            value, low, high = (  # rounding may put them above 1
                each.clip(0, 1) for each in (value, *np.quantile(draws, [0.025, 0.975], axis=1))
            )
            parts.append(pd.DataFrame({
                "task": [*tasks], "method": trial.method, "condition": trial.condition,
                "metric": metric, "value": value, "stderr": stderr,
                "ci_low": np.minimum(low, value), "ci_high": np.maximum(high, value),
                "n_samples": len(trial.scores),
                "wall_s": round((trial.making_s + trial.scoring_s) / len(tasks), 3),
            }))  # fmt: skip
    frame = pd.concat(parts, ignore_index=True).assign(
        family="intents", base_version=base_version, higher_is_better=True, n_items=len(labels),
        commit=code_commit(), **about,
    )  # fmt: skip
    return check_metrics(in_order(frame[list(COLUMNS)], KEY))


def _estimates(trial: Scored, labels: np.ndarray, counts: np.ndarray) -> dict[str, tuple]:
    """(value [T], draws [T, draws], standard error [T]) by metric."""
    scores, positive = rounded(trial.scores), labels == 1
    correct = ((scores > 0) == positive).mean(0)  # [T, n]
    yes, no = (counts[:, side] / counts[:, side].sum(1, keepdims=True) for side in _sides(positive))
    hits, passes = correct[:, positive], correct[:, ~positive]
    balanced = (hits @ yes.T + passes @ no.T) / 2  # [T, draws]
    wins = wins_of(scores, positive)  # [T, P, N]
    area = np.einsum("tdn,dn->td", yes @ wins, no)
    return {
        "auc": (wins.mean((1, 2)), area, area.std(1, ddof=1)),
        "balanced_accuracy": (
            (hits.mean(1) + passes.mean(1)) / 2, balanced, balanced.std(1, ddof=1),
        ),
        "accuracy": (
            correct.mean(1), correct @ (counts / counts.sum(1, keepdims=True)).T,
            correct.std(1, ddof=1) / np.sqrt(correct.shape[1]),
        ),
    }  # fmt: skip


def _sides(positive: np.ndarray) -> tuple[slice, slice]:
    """The slices of positive and negative rows, of which the former come first."""
    count = int(positive.sum())
    return slice(0, count), slice(count, None)


def wins_of(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Share of samples in which a positive row's score is higher, ties counted half, [T, P, N]."""
    total = np.zeros((scores.shape[1], positive.sum(), (~positive).sum()))
    for sample in scores:
        high, low = sample[:, positive, None], sample[:, None, ~positive]
        total += (high > low) + 0.5 * (high == low)
    return total / len(scores)
