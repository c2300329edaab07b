"""The schema of a result: columns, allowed strings and ranges of numbers, and their checks.

A cell is one experiment, task, source, base model and seed. `metrics.csv` has a row for each
method, condition and metric; `items-<experiment>-<source>.parquet` has an outcome for each held-out
row and sample. So any two rows can be compared item by item. Tables, figures and the report read
these files and the small tables in the same folder (`small_tables`), the curves and the ablations.

Methods that do not depend on the generator are measured in the cell of seed 0 only.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from oral_lib.errors import OralError

# fmt: off
COLUMNS = {
    "experiment": str, "family": str, "task": str, "source": str, "base": str, "base_version": str,
    "method": str, "condition": str, "metric": str, "higher_is_better": bool,
    "value": float, "stderr": float, "ci_low": float, "ci_high": float,
    "n_items": int, "n_samples": int, "seed": int, "wall_s": float, "commit": str,
}
ITEM_COLUMNS = {
    "experiment": "category", "task": "category", "source": "category", "base": "category",
    "method": "category", "condition": "category", "sample": "int16", "seed": "int32",
    "item": "category", "label": "int16", "correct": "bool", "score": "float32",
    "predicted": "int16",
}
FEW_SHOT = [f"few_shot_{rows}" for rows in (1, 2, 4, 8, 16, 32)]  # LoRA on so many labelled rows
METHODS = [  # in the order in which tables show them
    "majority", "base", "zero_shot", "prompted", "prompted_4", "linear_probe", *FEW_SHOT, "trained",
    "complement", "ridge_bits", "soup_task", "soup_all", "multitask", "multitask_described",
    "retrieval", "soup_nearest", "mixture", "router", "regression", "generated",
    "generated_through_base", "generated_span", "generated_free", "gaussian", "noise_small",
    "noise_large", "unconditional",
]
PROMPTED = [  # conditioned on the task's text
    "zero_shot", "prompted", "prompted_4", "multitask", "multitask_described", "retrieval",
    "soup_nearest", "mixture", "router", "regression", "generated", "generated_through_base",
    "generated_span", "generated_free",
]
# fmt: on
EITHER = ["soup_task"]  # of the named task (condition none) or of the one that a text names
EXAMPLES = ["matched_4", "matched_16", "rows_4", "rows_16"]  # text and labelled rows, rows only
_CONDITIONS = ["none", "matched", "paraphrase", "mismatched", "random", "empty", *EXAMPLES]
SOURCES = ["packages", "local", "hub", "made"]
ALLOWED = {"method": METHODS, "condition": _CONDITIONS, "source": SOURCES}
SHARES = [  # metrics between 0 and 1, higher is better
    "accuracy",
    "auc",
    "calibrated_accuracy",
    "balanced_accuracy",
]
_PARTS = r"accuracy_\w+|\w+_recall@\d+"  # metrics of one kind of items, also between 0 and 1

PLACE = ["experiment", "source", "base", "task"]
CELL = [*PLACE, "seed"]  # the task implies the family
GROUP = [*CELL, "method", "condition"]
ITEM_KEY = [*GROUP, "sample", "item"]
KEY = ["family", *CELL, "base_version", "method", "condition", "metric"]
REFERENCE = "reference"  # the ablation group of the trained adapters, their average and the base


def check_metrics(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` itself if every row is valid; else OralError with the row and the column."""
    check_columns(frame, COLUMNS, "metrics")
    check_words(frame, COLUMNS)
    wrong = frame.method.isin(PROMPTED) == (frame.condition == "none")
    rule = f"must be 'none' exactly for methods without text, all but {PROMPTED} and {EITHER}"
    refuse(frame, wrong & ~frame.method.isin(EITHER), "condition", rule)
    for column, kind in COLUMNS.items():
        if kind in (int, float):
            number = pd.to_numeric(frame[column], errors="coerce")
            refuse(frame, ~np.isfinite(number), column, "must be a finite number")
        if kind is int:
            least = 0 if column == "seed" else 1
            wrong = (number % 1 != 0) | (number < least)
            refuse(frame, wrong, column, f"must be a whole number from {least}")
    for column in ("stderr", "wall_s"):
        refuse(frame, frame[column] < 0, column, "must not be negative")
    shares = frame.metric.isin(SHARES) | of_parts(frame)
    for column in ("value", "ci_low", "ci_high"):
        outside = shares & ~frame[column].between(0, 1)
        refuse(frame, outside, column, "must be between 0 and 1")
    refuse(frame, ~frame.higher_is_better.isin([True, False]), "higher_is_better", "must be a bool")
    downward = shares & (frame.higher_is_better == False)  # noqa: E712
    refuse(frame, downward, "higher_is_better", "must be True for this metric")
    refuse(frame, frame.ci_low > frame.value, "ci_low", "must be <= the value")
    refuse(frame, frame.ci_high < frame.value, "ci_high", "must be >= the value")
    refuse(frame, frame.duplicated(KEY), "metric", "repeats an earlier row with the same key")
    return frame


def check_items(items: pd.DataFrame, metrics: pd.DataFrame | None = None) -> pd.DataFrame:
    """`items` itself if valid and, with `metrics`, if every accuracy is the mean of its items."""
    check_columns(items, ITEM_COLUMNS, "items")
    check_words(items, [name for name in ITEM_COLUMNS if name != "score"])
    refuse(items, np.isinf(items.score.astype(float)), "score", "must be finite")
    wrong = items.correct != (items.label == items.predicted)
    refuse(items, wrong, "correct", "must be whether predicted equals label")
    again = pd.Series(row_keys(items, ITEM_KEY)).duplicated().to_numpy()
    refuse(items, again, "item", "repeats an earlier item of its sample")
    if metrics is not None:
        group, first = pd.factorize(row_keys(items, GROUP))
        total = len(first)
        groups = items.iloc[np.unique(group, return_index=True)[1]][GROUP]
        groups = groups.astype({name: str for name in GROUP if name != "seed"}).assign(
            mean=np.bincount(group, items.correct, total) / np.bincount(group, minlength=total),
            items=_different(group, _codes(items["item"]), total),
            samples=_different(group, items["sample"].to_numpy(), total),
        )
        rows = metrics[metrics.metric == "accuracy"].merge(groups, on=GROUP, how="left")
        refuse(rows, rows["mean"].isna(), "value", "has no items")
        differs = (rows.value - rows["mean"]).abs() > 2e-6  # six significant digits on disk
        refuse(rows, differs, "value", "is not the mean of its items")
        refuse(rows, rows.n_items != rows["items"], "n_items", "is not its number of items")
        refuse(rows, rows.n_samples != rows.samples, "n_samples", "is not its number of samples")
    return items


def of_parts(metrics: pd.DataFrame) -> pd.Series:
    """Which rows are metrics of one kind of items: recall@k one way, accuracy of one kind."""
    return metrics.metric.astype(str).str.fullmatch(_PARTS)


def _different(group: np.ndarray, codes: np.ndarray, total: int) -> np.ndarray:
    """The number of different codes of each group."""
    pairs = pd.unique(group * (int(codes.max(initial=0)) + 1) + codes.astype(np.int64))
    return np.bincount(pairs // (int(codes.max(initial=0)) + 1), minlength=total)


def _codes(column: pd.Series) -> np.ndarray:
    """Integers in the order of the column, which `ALLOWED` sets for methods and conditions."""
    if is_numeric_dtype(column):
        return column.to_numpy().astype(np.int64)
    kind = pd.CategoricalDtype(ALLOWED[column.name]) if column.name in ALLOWED else "category"
    categories = column.astype(kind) if column.dtype != kind or kind == "category" else column
    names = categories.cat.categories
    rank = np.arange(len(names))
    if column.name not in ALLOWED:
        rank[np.argsort(names.astype(str), kind="stable")] = rank.copy()
    codes = categories.cat.codes
    return rank[codes].astype(np.int64) if len(rank) else np.zeros(len(codes), np.int64)


def row_keys(items: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """One integer a row in the order of `columns`; 15 million rows take a second or two."""
    key, room = np.zeros(len(items), np.int64), 1
    for name in columns:
        codes = _codes(items[name])
        codes -= codes.min(initial=0)
        size = int(codes.max(initial=0)) + 1
        if room * size > 2**62:  # only the order matters: close the gaps
            key, room = pd.factorize(key, sort=True)[0], len(items)
        key, room = key * size + codes, room * size
    return key


def among(old: pd.DataFrame, new: pd.DataFrame, key: Sequence[str]) -> np.ndarray:
    """Which rows of `old` have the `key` of any row of `new`; bool by row."""
    keys = set(new[key].drop_duplicates().itertuples(index=False, name=None))
    group, values = pd.factorize(row_keys(old, key))
    first = np.unique(group, return_index=True)[1] if len(values) else []
    present = [row in keys for row in old.iloc[first][key].itertuples(index=False, name=None)]
    return np.array(present, bool)[group]


def check_columns(frame: pd.DataFrame, columns: Iterable[str], table: str) -> None:
    """Raises OralError unless `frame` has exactly `columns`; `table` is its name in the message."""
    missing = [column for column in columns if column not in frame]
    unknown = [column for column in frame if column not in columns]
    if missing or unknown:
        raise OralError(
            f"The {table} table has missing columns {missing} and unknown columns {unknown}."
        )


def check_words(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raises OralError at the first empty or disallowed string in `columns`."""
    for column in columns:
        if is_numeric_dtype(frame[column]) and not frame[column].hasnans:
            continue
        empty = frame[column].isna()
        if isinstance(frame[column].dtype, pd.CategoricalDtype):
            words = frame[column].cat.categories
            empty |= frame[column].isin([word for word in words if not str(word).strip()])
        elif not is_numeric_dtype(frame[column]):
            empty |= frame[column].astype(str).str.strip() == ""
        refuse(frame, empty, column, "is missing")
        if column in ALLOWED:
            allowed = ALLOWED[column]
            refuse(frame, ~frame[column].isin(allowed), column, f"must be one of {allowed}")


def refuse(frame: pd.DataFrame, broken: pd.Series, column: str, rule: str) -> None:
    """Raises OralError with `rule` about the first row that is True in `broken`, if any.

    Args:
        frame: the table.
        broken: bool by row.
        column: the column whose value is quoted.
        rule: the rest of the message: "must be ...".
    """
    if broken.any():
        index = int(np.flatnonzero(broken)[0])
        row = frame.iloc[index]
        names = [*GROUP, "metric", "sample", "item", "benchmark", "variant", "case"]
        key = ", ".join(f"{name}={row[name]}" for name in names if name in frame)
        raise OralError(f"Row {index} ({key}): {column} '{row[column]}' {rule}.")


# ---------------------------------------------------------------- as tables and files
def items_frame(items: pd.DataFrame) -> pd.DataFrame:
    """Items with the columns and types of the schema, in the order of its key."""
    check_columns(items, ITEM_COLUMNS, "items")
    check_words(items, [name for name in ITEM_COLUMNS if name != "score"])
    columns = {name: _typed(items[name], kind) for name, kind in ITEM_COLUMNS.items()}
    frame = pd.DataFrame(columns, index=items.index)
    key = row_keys(frame, ITEM_KEY)
    if (np.diff(key) < 0).any():
        frame = frame.iloc[np.argsort(key, kind="stable")]
    return frame.reset_index(drop=True)


def _typed(column: pd.Series, kind: str) -> pd.Series:
    """The column as `kind`; its categories come from `ALLOWED`, or are its sorted values."""
    if kind != "category":
        return column.astype(kind)
    if column.name in ALLOWED:
        return column.astype(pd.CategoricalDtype(ALLOWED[column.name]))
    column = column.astype("category").cat.remove_unused_categories()
    words = column.cat.categories.astype(str)
    return column.cat.rename_categories(words).cat.reorder_categories(sorted(words))


def read_csv(path: str | Path, columns: Mapping[str, type]) -> pd.DataFrame:
    """The unchecked table in `path`; OralError if the file is truncated or invalid."""
    text = {name: str for name, kind in columns.items() if kind is str}
    empty = {name: [""] for name in columns}  # only "" is missing: "none" and "null" are names
    try:
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
    except (OSError, ValueError) as error:
        raise OralError(
            f"{path} is a truncated or invalid table ({error}). Run the job again."
        ) from error


def csv_text(frame: pd.DataFrame, key: list[str]) -> str:
    """The rows in the order of `key` as CSV, numbers with six significant digits."""
    return in_order(frame, key).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def in_order(frame: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Rows sorted by key; methods and conditions in the order of the tables."""
    ranks = {name: {word: i for i, word in enumerate(words)} for name, words in ALLOWED.items()}

    def rank(column: pd.Series) -> pd.Series:
        return column.map(ranks[column.name]) if column.name in ranks else column

    return frame.sort_values(key, key=rank, kind="stable", ignore_index=True)
