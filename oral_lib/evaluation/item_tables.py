"""Items of adapters, one outcome a held-out row and sample, and the metrics of items.

Items are kept small: strings are categories, and scores are rounded to a step far below their
spread.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from oral_lib.errors import OralError
from oral_lib.evaluation import bootstrap
from oral_lib.evaluation.schema import (
    ALLOWED,
    CELL,
    COLUMNS,
    GROUP,
    ITEM_COLUMNS,
    KEY,
    check_metrics,
    in_order,
    items_frame,
)
from oral_lib.provenance import code_commit

SCORE_STEPS = 64  # a score is rounded to about 1/64 of the scores' standard deviation


# ---------------------------------------------------------------- items of one adapter
def label_items(
    cell: Mapping,
    method: str,
    condition: str,
    *,
    item: Sequence[str],
    labels: Sequence[int],
    logits: np.ndarray,
    sample: int = 0,
) -> pd.DataFrame:
    """Items of one adapter on a task with labels.

    `score` is the logit of label 1 minus that of label 0 (NaN with more than two labels: no AUC).

    Args:
        cell: experiment, source, base, task and seed.
        method: one of `schema.METHODS`.
        condition: one of `schema.CONDITIONS`.
        item: ids [n] of the held-out rows.
        labels: correct labels [n].
        logits: [n, labels].
        sample: the number of the generated sample, or of the trained adapter.
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels)
    predicted = logits.argmax(axis=1)
    score = _rounded(logits[:, 1] - logits[:, 0]) if logits.shape[1] == 2 else np.nan
    return _items(cell, method, condition, item, labels, predicted, score, sample)


def answer_items(
    cell: Mapping,
    method: str,
    condition: str,
    *,
    item: Sequence[str],
    correct: Sequence[bool],
    sample: int = 0,
) -> pd.DataFrame:
    """Items of one adapter on a task with free-form answers; `correct` [n] is an exact match.

    label is 1, predicted is 1 where the answer is correct and 0 elsewhere; there is no score.
    """
    correct = np.asarray(correct, dtype=bool)
    return _items(cell, method, condition, item, np.ones_like(correct), correct, np.nan, sample)


def rank_items(
    cell: Mapping,
    method: str,
    condition: str,
    *,
    item: Sequence[str],
    ranks: Sequence[int],
    sample: int = 0,
) -> pd.DataFrame:
    """Items of one adapter on a retrieval task: each query's rank [n] of its first correct
    candidate.

    label is 0, the best rank, and predicted is the rank; there is no score.
    """
    ranks = np.asarray(ranks)
    return _items(cell, method, condition, item, np.zeros_like(ranks), ranks, np.nan, sample)


def _items(cell, method, condition, item, labels, predicted, score, sample) -> pd.DataFrame:
    group = {name: cell[name] for name in CELL} | {"method": method, "condition": condition}
    values = {"label": labels, "correct": predicted == labels, "score": score}
    rows = {"item": list(item), "sample": sample, "predicted": predicted} | values | group
    return items_frame(pd.DataFrame(rows))


def _rounded(scores: np.ndarray) -> np.ndarray:
    """Scores in multiples of a power of two near their standard deviation / 64.

    They take a fifth of the bytes on disk. Only pairs closer than the step can change order.
    """
    spread = scores.std()
    if not np.isfinite(spread) or spread == 0:
        return scores
    step = 2.0 ** np.round(np.log2(spread / SCORE_STEPS))
    return np.round(scores / step) * step


def join(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Items of several tables as one, in the order of the key."""
    tables = [items_frame(table) for table in tables]
    tables = [table for table in tables if len(table)] or tables[:1]
    columns = {}
    for name, kind in ITEM_COLUMNS.items():
        series = [table[name] for table in tables]
        union = kind == "category" and name not in ALLOWED
        columns[name] = union_categoricals(series) if union else pd.concat(series).array
    return items_frame(pd.DataFrame(columns))


# ---------------------------------------------------------------- metrics of items
def summarise(
    items: pd.DataFrame,
    *,
    family: str,
    base_version: str,
    wall_s: float | Mapping[tuple[str, str], float] = 0.0,
    commit: str | None = None,
    balanced: bool = False,
    kinds: Mapping[str, str] | None = None,
    depths: Sequence[int] = (),
) -> pd.DataFrame:
    """The metric rows of items: accuracy, and for labels 0 and 1 with finite scores also AUC and
    calibrated accuracy (each half of the items is classified with the threshold of the other).

    Args:
        items: items of any cells, methods and conditions.
        family: the family of the tasks.
        base_version: the version of the base model.
        wall_s: seconds, one number for all rows or one for each (method, condition).
        commit: of the code; by default that of this checkout.
        balanced: whether to add balanced accuracy.
        kinds: kind by item; each kind gets an accuracy, or with `depths` a recall@k.
        depths: k of recall@k; the items are ranks.
    """
    rows = []
    for group, part in items_frame(items).groupby(GROUP, sort=False, observed=True):
        correct, score, labels = (_wide(part, name) for name in ("correct", "score", "label"))
        measures = [("accuracy", bootstrap.bootstrap(correct), bootstrap.accuracy_stderr(correct))]
        counts = {}  # items by metric, where a metric covers only some of them
        if np.isfinite(score).all() and set(np.unique(labels)) == {0, 1}:
            measures.append(("auc", *bootstrap.bootstrap_auc(labels[0], score)))
            right = bootstrap.calibrated(labels[0], score)
            estimate = bootstrap.bootstrap(right), bootstrap.accuracy_stderr(right)
            measures.append(("calibrated_accuracy", *estimate))
        if balanced:
            estimate = bootstrap.bootstrap_balanced(labels[0], correct)
            measures.append(("balanced_accuracy", *estimate))
        kind_of = part["item"].astype(str).map(kinds or {})
        for kind in sorted(kind_of.dropna().unique()):
            values = _wide(part[kind_of == kind], "predicted" if depths else "correct")
            hits = {f"{kind}_recall@{k}": values < k for k in depths}
            for name, hit in (hits or {f"accuracy_{kind}": values}).items():
                hit, counts[name] = hit.astype(float), hit.shape[1]
                measures.append((name, bootstrap.bootstrap(hit), bootstrap.accuracy_stderr(hit)))
        row = dict(zip(GROUP, group, strict=True)) | {"family": family}
        row |= {"base_version": base_version, "higher_is_better": True}
        row |= {"n_samples": correct.shape[0]}
        row |= {"wall_s": wall_s.get(group[-2:], 0.0) if isinstance(wall_s, Mapping) else wall_s}
        for metric, (value, low, high), stderr in measures:
            number = {"value": value, "stderr": stderr, "ci_low": low, "ci_high": high}
            number["n_items"] = counts.get(metric, correct.shape[1])
            rows.append(row | number | {"metric": metric})
    frame = pd.DataFrame(rows).assign(commit=commit or code_commit())
    return check_metrics(in_order(frame[list(COLUMNS)], KEY))


def matrix(
    items: pd.DataFrame, method: str, condition: str, column: str = "correct"
) -> pd.DataFrame:
    """Outcomes [samples, items] of a method on one task and base model; empty without rows.

    Samples of all seeds, and the items that every sample was scored on.

    Args:
        items: items of one task and base model.
        method: one of `schema.METHODS`.
        condition: one of `schema.CONDITIONS`.
        column: "correct" or "score".
    """
    part = items[(items.method == method) & (items.condition == condition)]
    return _wide_frame(part, column).dropna(axis=1)


def _wide_frame(part: pd.DataFrame, column: str) -> pd.DataFrame:
    """`column` as [samples of all seeds, items], NaN where a sample has no such item."""
    item = part["item"].astype("category").cat
    run = part.seed.to_numpy(np.int64) * 2**16 + part["sample"]
    runs, row = np.unique(run, return_inverse=True)
    codes, index = np.unique(item.codes, return_inverse=True)
    wide = np.full((len(runs), len(codes)), np.nan)
    wide[row, index] = part[column]
    return pd.DataFrame(wide, index=runs, columns=item.categories[codes].astype(str))


def _wide(part: pd.DataFrame, column: str) -> np.ndarray:
    wide = _wide_frame(part, column)
    if wide.shape[0] * wide.shape[1] != len(part):
        raise OralError(
            f"The samples of {'/'.join(part[['method', 'condition']].iloc[0])} were scored on "
            "different items: score every sample of a method on the same held-out rows."
        )
    return wide.to_numpy()
