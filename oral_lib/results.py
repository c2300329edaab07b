"""The contract of a result: what a row is, how cells are written, merged and described.

A cell is one experiment, task, source, base model and seed. It is written as `metrics.csv` (a row a
method, condition and metric) beside `items.parquet` (an outcome a held-out row and sample), so that
any two rows can be compared item by item. Tables, figures and the report read nothing else.

A method of `ONCE` does not depend on the seed of the generator, so of several seeds of a cell only
the first one need hold it. Items are kept small: words are categories, scores are rounded to a step
far below their spread, and in parquet a sample costs one to two bytes a row.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype, union_categoricals

from oral_lib import stats
from oral_lib.errors import OralError
from oral_lib.provenance import code_commit
from oral_lib.storage import replacing, write_text

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
BENCHMARK_COLUMNS = {
    "benchmark": str, "variant": str, "case": str, "values": int, "metric": str, "value": float,
    "unit": str, "repeats": int, "device": str, "commit": str,
}
NOVELTY_COLUMNS = {  # the numbers are those of `adapters.Novelty`
    "experiment": str, "source": str, "base": str, "task": str, "method": str, "seed": int,
    "ratio": float, "ratio_low": float, "generated": float, "held_out": float, "seeds": float,
    "samples": float, "norm": float, "n_generated": int, "n_train": int, "n_held_out": int,
    "commit": str,
}
METHODS = [  # in the order in which tables show them
    "majority", "base", "linear_probe", "trained", "soup_task", "soup_all", "multitask",
    "retrieval", "regression", "generated",
    "gaussian", "noise_small", "noise_large", "unconditional", "copy_oldest", "copy_newest",
    "retrained",
]
ONCE = [  # the methods that do not depend on the generator
    "majority", "base", "linear_probe", "trained", "soup_task", "soup_all", "multitask",
    "retrieval", "gaussian",
    "noise_small", "noise_large", "copy_oldest", "copy_newest", "retrained",
]
# fmt: on
PROMPTED = [
    "multitask",
    "retrieval",
    "regression",
    "generated",
]  # the methods that read the task's text
CONDITIONS = ["none", "matched", "paraphrase", "mismatched", "random", "empty"]
SOURCES = ["packages", "local", "hub", "made"]
ALLOWED = {"method": METHODS, "condition": CONDITIONS, "source": SOURCES}
SHARES = [
    "accuracy",
    "auc",
    "calibrated_accuracy",
    "balanced_accuracy",
]  # between 0 and 1, higher is better
PARTS = r"accuracy_\w+|\w+_recall@\d+"  # those of one kind of items, which are shares, too

CELL = ["experiment", "source", "base", "task", "seed"]  # with the family, which the task implies
GROUP = [*CELL, "method", "condition"]
ITEM_KEY = [*GROUP, "sample", "item"]
KEY = ["family", *CELL, "base_version", "method", "condition", "metric"]
SCORE_STEPS = 64  # a score is rounded to a step of about 1/64 of the scores' standard deviation
PACKED = {  # how items lie in parquet: about a byte and a half for a row of one sample
    "index": False, "compression": "zstd", "compression_level": 12, "row_group_size": 1 << 20,
    "use_dictionary": [name for name in ITEM_COLUMNS if name != "score"],
    "column_encoding": {"score": "BYTE_STREAM_SPLIT"},
}  # fmt: skip
NOVELTY_KEY = [*CELL, "method"]
BENCHMARK_KEY = ["benchmark", "variant", "case", "values", "metric", "device"]


# ---------------------------------------------------------------- from outcomes to rows
def outcomes(
    cell: Mapping,
    method: str,
    condition: str,
    *,
    item: Sequence[str],
    labels: Sequence[int],
    logits: np.ndarray,
    sample: int = 0,
) -> pd.DataFrame:
    """Item rows of one adapter on one cell: logits `[n, labels]`, labels `[n]`, item ids `[n]`.

    `cell` holds experiment, source, base, task and seed; `sample` counts the generated samples or
    the seeds of trained adapters. `score` is the logit of label 1 over that of label 0 (NaN with
    more than two labels: no AUC).
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels)
    predicted = logits.argmax(axis=1)
    score = _rounded(logits[:, 1] - logits[:, 0]) if logits.shape[1] == 2 else np.nan
    return _rows(cell, method, condition, item, labels, predicted, score, sample)


def answered(
    cell: Mapping,
    method: str,
    condition: str,
    *,
    item: Sequence[str],
    correct: Sequence[bool],
    sample: int = 0,
) -> pd.DataFrame:
    """Item rows of one adapter on a task whose answers are written out: right or not `[n]`.

    label is 1, predicted 1 where the answer is exactly right and 0 elsewhere; there is no score.
    """
    correct = np.asarray(correct, dtype=bool)
    return _rows(cell, method, condition, item, np.ones_like(correct), correct, np.nan, sample)


def ranked(
    cell: Mapping,
    method: str,
    condition: str,
    *,
    item: Sequence[str],
    ranks: Sequence[int],
    sample: int = 0,
) -> pd.DataFrame:
    """Item rows of one adapter on a task of matching: for each query the rank `[n]` of its first
    right candidate.

    label is 0, the best rank, and predicted the rank that was reached; there is no score.
    """
    ranks = np.asarray(ranks)
    return _rows(cell, method, condition, item, np.zeros_like(ranks), ranks, np.nan, sample)


def _rows(cell, method, condition, item, labels, predicted, score, sample) -> pd.DataFrame:
    known = {name: cell[name] for name in CELL} | {"method": method, "condition": condition}
    found = {"label": labels, "correct": predicted == labels, "score": score}
    rows = {"item": list(item), "sample": sample, "predicted": predicted} | found | known
    return items_frame(pd.DataFrame(rows))


def _rounded(scores: np.ndarray) -> np.ndarray:
    """Scores in multiples of a power of two near their spread / 64: a fifth of the bytes on disk,
    and an order that is the same but for pairs closer than that."""
    spread = scores.std()
    if not np.isfinite(spread) or spread == 0:
        return scores
    step = 2.0 ** np.round(np.log2(spread / SCORE_STEPS))
    return np.round(scores / step) * step


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
    """The metric rows of items: accuracy, and where labels are 0 and 1 and scores are known also
    AUC and calibrated accuracy (the threshold of one half of the items judges the other half); if
    `balanced`, balanced accuracy too.

    `kinds` of items have an accuracy each, or, where `depths` are given and items are ranks, a
    recall@k for each depth k. `wall_s` is one time for all rows or a time for each (method,
    condition).
    """
    rows = []
    for group, part in items_frame(items).groupby(GROUP, sort=False, observed=True):
        correct, score, labels = (_wide(part, name) for name in ("correct", "score", "label"))
        measured = [("accuracy", stats.bootstrap(correct), stats.accuracy_stderr(correct))]
        counts = {}  # items of a metric that does not speak of all
        if np.isfinite(score).all() and set(np.unique(labels)) == {0, 1}:
            measured.append(("auc", *stats.bootstrap_auc(labels[0], score)))
            right = stats.calibrated(labels[0], score)
            found = stats.bootstrap(right), stats.accuracy_stderr(right)
            measured.append(("calibrated_accuracy", *found))
        if balanced:
            found = stats.bootstrap_balanced(labels[0], correct)
            measured.append(("balanced_accuracy", *found))
        kind_of = part["item"].astype(str).map(kinds or {})
        for kind in sorted(kind_of.dropna().unique()):
            some = part[kind_of == kind]
            found = _wide(some, "predicted" if depths else "correct")
            hits = {f"{kind}_recall@{k}": found < k for k in depths} or {f"accuracy_{kind}": found}
            for name, hit in hits.items():
                hit, counts[name] = hit.astype(float), hit.shape[1]
                measured.append((name, stats.bootstrap(hit), stats.accuracy_stderr(hit)))
        row = dict(zip(GROUP, group, strict=True)) | {"family": family}
        row |= {"base_version": base_version, "higher_is_better": True}
        row |= {"n_samples": correct.shape[0]}
        row |= {"wall_s": wall_s.get(group[-2:], 0.0) if isinstance(wall_s, Mapping) else wall_s}
        for metric, (value, low, high), stderr in measured:
            number = {"value": value, "stderr": stderr, "ci_low": low, "ci_high": high}
            number["n_items"] = counts.get(metric, correct.shape[1])
            rows.append(row | number | {"metric": metric})
    frame = pd.DataFrame(rows).assign(commit=commit or code_commit())
    return check(_ordered(frame[list(COLUMNS)], KEY))


def of_parts(metrics: pd.DataFrame) -> pd.Series:
    """Which rows speak of one kind of items only: recall@k one way, accuracy of one kind."""
    return metrics.metric.astype(str).str.fullmatch(PARTS)


def matrix(
    items: pd.DataFrame, method: str, condition: str, column: str = "correct"
) -> pd.DataFrame:
    """Outcomes `[samples, items]` of a method on the items of one task and base; empty if not run.

    Samples of all seeds; items that every one of them was scored on. `column` may also be "score".
    """
    part = items[(items.method == method) & (items.condition == condition)]
    return _wide_frame(part, column).dropna(axis=1)


def _wide_frame(part: pd.DataFrame, column: str) -> pd.DataFrame:
    """`column` as [samples of all seeds, items], NaN where a sample lacks an item."""
    item = part["item"].astype("category").cat
    runs, row = np.unique(part.seed.to_numpy() * 2**16 + part["sample"], return_inverse=True)
    there, place = np.unique(item.codes, return_inverse=True)
    wide = np.full((len(runs), len(there)), np.nan)
    wide[row, place] = part[column]
    return pd.DataFrame(wide, index=runs, columns=item.categories[there].astype(str))


def _wide(part: pd.DataFrame, column: str) -> np.ndarray:
    wide = _wide_frame(part, column)
    if wide.shape[0] * wide.shape[1] != len(part):
        raise OralError(
            f"The samples of {'/'.join(part[['method', 'condition']].iloc[0])} were scored on "
            "different items: score every sample of a method on the same held-out rows."
        )
    return wide.to_numpy()


# ---------------------------------------------------------------- the contract
def check(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` itself when every row keeps the contract, else OralError naming row and column."""
    _columns(frame, COLUMNS, "metrics")
    _words(frame, COLUMNS)
    prompted = frame.method.isin(PROMPTED)
    rule = f"must be 'none' for methods that read no text, and only there ({PROMPTED} read it)"
    _refuse(frame, prompted == (frame.condition == "none"), "condition", rule)
    for column, kind in COLUMNS.items():
        if kind in (int, float):
            number = pd.to_numeric(frame[column], errors="coerce")
            _refuse(frame, ~np.isfinite(number), column, "must be a finite number")
        if kind is int:
            least = 0 if column == "seed" else 1
            wrong = (number % 1 != 0) | (number < least)
            _refuse(frame, wrong, column, f"must be a whole number from {least}")
    for column in ("stderr", "wall_s"):
        _refuse(frame, frame[column] < 0, column, "must not be negative")
    shares = frame.metric.isin(SHARES) | of_parts(frame)
    for column in ("value", "ci_low", "ci_high"):
        outside = shares & ~frame[column].between(0, 1)
        _refuse(frame, outside, column, "must lie between 0 and 1")
    _refuse(frame, ~frame.higher_is_better.isin([True, False]), "higher_is_better", "is no bool")
    downward = shares & (frame.higher_is_better == False)  # noqa: E712
    _refuse(frame, downward, "higher_is_better", "must be True for this metric")
    _refuse(frame, frame.ci_low > frame.value, "ci_low", "must not lie above the value")
    _refuse(frame, frame.ci_high < frame.value, "ci_high", "must not lie below the value")
    _refuse(frame, frame.duplicated(KEY), "metric", "repeats an earlier row with the same key")
    return frame


def check_items(items: pd.DataFrame, metrics: pd.DataFrame | None = None) -> pd.DataFrame:
    """`items` itself when sound and, with `metrics`, when every accuracy is its items' mean."""
    _columns(items, ITEM_COLUMNS, "items")
    _words(items, [name for name in ITEM_COLUMNS if name != "score"])
    _refuse(items, np.isinf(items.score.astype(float)), "score", "must be finite")
    wrong = items.correct != (items.label == items.predicted)
    _refuse(items, wrong, "correct", "must say whether predicted equals label")
    again = pd.Series(_key(items, ITEM_KEY)).duplicated().to_numpy()
    _refuse(items, again, "item", "repeats an earlier item of its sample")
    if metrics is not None:
        group, first = pd.factorize(_key(items, GROUP))
        total = len(first)
        found = items.iloc[np.unique(group, return_index=True)[1]][GROUP]
        found = found.astype({name: str for name in GROUP if name != "seed"}).assign(
            mean=np.bincount(group, items.correct, total) / np.bincount(group, minlength=total),
            items=_different(group, _codes(items["item"]), total),
            samples=_different(group, items["sample"].to_numpy(), total),
        )
        rows = metrics[metrics.metric == "accuracy"].merge(found, on=GROUP, how="left")
        _refuse(rows, rows["mean"].isna(), "value", "has no items")
        differs = (rows.value - rows["mean"]).abs() > 2e-6  # six significant digits on disk
        _refuse(rows, differs, "value", "is not the mean of its items")
        _refuse(rows, rows.n_items != rows["items"], "n_items", "is not its number of items")
        _refuse(rows, rows.n_samples != rows.samples, "n_samples", "is not its number of samples")
    return items


def _different(group: np.ndarray, codes: np.ndarray, total: int) -> np.ndarray:
    """How many different codes each group has."""
    pairs = pd.unique(group * (int(codes.max(initial=0)) + 1) + codes.astype(np.int64))
    return np.bincount(pairs // (int(codes.max(initial=0)) + 1), minlength=total)


def _codes(column: pd.Series) -> np.ndarray:
    """Whole numbers in the order of the column: by the tables for methods and conditions."""
    if is_numeric_dtype(column):
        return column.to_numpy().astype(np.int64)
    kind = pd.CategoricalDtype(ALLOWED[column.name]) if column.name in ALLOWED else "category"
    made = column.astype(kind) if column.dtype != kind or kind == "category" else column
    rank = np.arange(len(made.cat.categories))
    if column.name not in ALLOWED:
        rank[np.argsort(made.cat.categories.astype(str), kind="stable")] = rank.copy()
    return rank[made.cat.codes].astype(np.int64) if len(rank) else np.zeros(len(made), np.int64)


def _key(items: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """One whole number a row that sorts as its columns do: 15 million rows in a second or two."""
    key, room = np.zeros(len(items), np.int64), 1
    for name in columns:
        codes = _codes(items[name])
        codes -= codes.min(initial=0)
        size = int(codes.max(initial=0)) + 1
        if room * size > 2**62:  # only the order counts: close the gaps
            key, room = pd.factorize(key, sort=True)[0], len(items)
        key, room = key * size + codes, room * size
    return key


def _columns(frame: pd.DataFrame, wanted: Iterable[str], what: str) -> None:
    missing = [column for column in wanted if column not in frame]
    unknown = [column for column in frame if column not in wanted]
    if missing or unknown:
        raise OralError(f"The {what} table lacks columns {missing} and has unknown ones {unknown}.")


def _words(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in columns:
        if is_numeric_dtype(frame[column]) and not frame[column].hasnans:
            continue
        empty = frame[column].isna()
        if isinstance(frame[column].dtype, pd.CategoricalDtype):
            words = frame[column].cat.categories
            empty |= frame[column].isin([word for word in words if not str(word).strip()])
        elif not is_numeric_dtype(frame[column]):
            empty |= frame[column].astype(str).str.strip() == ""
        _refuse(frame, empty, column, "is missing")
        if column in ALLOWED:
            allowed = ALLOWED[column]
            _refuse(frame, ~frame[column].isin(allowed), column, f"must be one of {allowed}")


def _refuse(frame: pd.DataFrame, broken: pd.Series, column: str, rule: str) -> None:
    """OralError about the first broken row, if any."""
    if broken.any():
        place = int(np.flatnonzero(broken)[0])
        row = frame.iloc[place]
        names = [*GROUP, "metric", "sample", "item", "benchmark", "variant", "case"]
        key = ", ".join(f"{name}={row[name]}" for name in names if name in frame)
        raise OralError(f"Row {place} ({key}): {column} '{row[column]}' {rule}.")


# ---------------------------------------------------------------- on disk
def items_frame(items: pd.DataFrame) -> pd.DataFrame:
    """Items with the columns and types of the contract, in the order of its key."""
    _columns(items, ITEM_COLUMNS, "items")
    _words(items, [name for name in ITEM_COLUMNS if name != "score"])
    made = {name: _typed(items[name], kind) for name, kind in ITEM_COLUMNS.items()}
    frame = pd.DataFrame(made, index=items.index)
    key = _key(frame, ITEM_KEY)
    if (np.diff(key) < 0).any():
        frame = frame.iloc[np.argsort(key, kind="stable")]
    return frame.reset_index(drop=True)


def _typed(column: pd.Series, kind: str) -> pd.Series:
    """The column as `kind`; categories are those of the tables, or those there are, sorted."""
    if kind != "category":
        return column.astype(kind)
    if column.name in ALLOWED:
        return column.astype(pd.CategoricalDtype(ALLOWED[column.name]))
    made = column.astype("category").cat.remove_unused_categories()
    words = made.cat.categories.astype(str)
    return made.cat.rename_categories(words).cat.reorder_categories(sorted(words))


def join(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Items of several tables as one, in the order of the key."""
    tables = [items_frame(table) for table in tables]
    tables = [table for table in tables if len(table)] or tables[:1]
    columns = {}
    for name, kind in ITEM_COLUMNS.items():
        parts = [table[name] for table in tables]
        united = kind == "category" and name not in ALLOWED
        columns[name] = union_categoricals(parts) if united else pd.concat(parts).array
    return items_frame(pd.DataFrame(columns))


def read_metrics(path: str | Path) -> pd.DataFrame:
    """The checked rows of a metrics.csv."""
    return check(_read_csv(path, COLUMNS))


def read_items(path: str | Path) -> pd.DataFrame:
    """The checked rows of an items.parquet."""
    try:
        return check_items(items_frame(pd.read_parquet(path)))
    except (OSError, ValueError) as error:
        raise OralError(f"{path} is no whole items table ({error}). Run its cell again.") from error


def read(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and items of a cell folder or of results/<scale>, checked against each other."""
    metrics = read_metrics(Path(folder) / "metrics.csv")
    return metrics, check_items(read_items(Path(folder) / "items.parquet"), metrics)


def write_cell(folder: str | Path, metrics: pd.DataFrame, items: pd.DataFrame) -> Path:
    """Writes a cell whole or not at all; returns its folder."""
    items = items_frame(items)
    check_items(items, check(metrics))
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "metrics.csv").write_text(_csv(metrics, KEY), encoding="utf-8")
        items.to_parquet(temporary / "items.parquet", **PACKED)
    return Path(folder)


def collect(cells: Iterable[str | Path], results_dir: str | Path) -> Path:
    """Merges cell folders into results_dir/metrics.csv and items.parquet; returns the former.

    A cell replaces the rows of its experiment, family, task, source, base and seed; other rows
    stay. Equal rows give byte-equal files, in whatever order the cells come.
    """
    tables = [read(cell) for cell in cells]
    if not tables:
        raise OralError(f"There is no cell to collect into {results_dir}.")
    path, items_path = Path(results_dir) / "metrics.csv", Path(results_dir) / "items.parquet"
    metrics = pd.concat(rows for rows, _ in tables)
    items = join(rows for _, rows in tables)
    del tables
    if path.exists():
        old = read_metrics(path)
        metrics = pd.concat([old[~_among(old, metrics, ["family", *CELL])], metrics])
    if items_path.exists():
        old = read_items(items_path)
        items = join([old[~_among(old, items, CELL)], items])
    metrics = check(metrics)
    check_items(items, metrics)
    with replacing(items_path) as temporary:
        items.to_parquet(temporary, **PACKED)
    write_text(path, _csv(metrics, KEY))
    return path


def _among(old: pd.DataFrame, new: pd.DataFrame, key: list[str]) -> np.ndarray:
    """Which rows of `old` have the key of some row of `new`."""
    keys = set(new[key].drop_duplicates().itertuples(index=False, name=None))
    group, first = pd.factorize(_key(old, key))
    places = np.unique(group, return_index=True)[1] if len(first) else []
    there = [one in keys for one in old.iloc[places][key].itertuples(index=False, name=None)]
    return np.array(there, bool)[group]


def append_benchmarks(path: str | Path, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Adds timings or memory to benchmarks.csv (one writer at a time) and returns the whole table.

    A measurement of the same thing on the same device replaces the older one.
    """
    new = pd.DataFrame(list(rows))
    _check_benchmarks(new)
    old = [read_benchmarks(path)] if Path(path).exists() else []
    frame = pd.concat([*old, new[list(BENCHMARK_COLUMNS)]])
    write_text(path, _csv(frame.drop_duplicates(BENCHMARK_KEY, keep="last"), BENCHMARK_KEY))
    return read_benchmarks(path)


def read_benchmarks(path: str | Path) -> pd.DataFrame:
    """The checked rows of a benchmarks.csv."""
    return _check_benchmarks(_read_csv(path, BENCHMARK_COLUMNS))


def _check_benchmarks(frame: pd.DataFrame) -> pd.DataFrame:
    _columns(frame, BENCHMARK_COLUMNS, "benchmarks")
    for column, kind in BENCHMARK_COLUMNS.items():
        if kind in (int, float):
            number = pd.to_numeric(frame[column], errors="coerce")
            _refuse(frame, ~np.isfinite(number), column, "must be a finite number")
    return frame


def thinned(curves: pd.DataFrame, points: int = 50) -> pd.DataFrame:
    """Losses [series, step, loss] with at most `points` rows a series: means over blocks of steps.

    Six hundred adapters of some hundred steps would be ten megabytes in a figure that shows none
    of it. The last step of a block stands for it, so curves still end where training did.
    """
    place = curves.groupby("series", sort=False).cumcount()
    size = curves.groupby("series", sort=False).step.transform("size")
    block = (place * np.minimum(points, size)) // size
    groups = curves.assign(block=block).groupby(["series", "block"], sort=False)
    return groups.agg(step=("step", "last"), loss=("loss", "mean")).reset_index()[list(curves)]


def append_novelty(path: str | Path, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Adds rows to novelty.csv (one writer at a time); a row of the same key replaces the older."""
    new = pd.DataFrame(list(rows))
    _check_novelty(new)
    old = [read_novelty(path)] if Path(path).exists() else []
    frame = pd.concat([*old, new[list(NOVELTY_COLUMNS)]])
    write_text(path, _csv(frame.drop_duplicates(NOVELTY_KEY, keep="last"), NOVELTY_KEY))
    return read_novelty(path)


def read_novelty(path: str | Path) -> pd.DataFrame:
    """The checked rows of a novelty.csv."""
    return _check_novelty(_read_csv(path, NOVELTY_COLUMNS))


def _check_novelty(frame: pd.DataFrame) -> pd.DataFrame:
    _columns(frame, NOVELTY_COLUMNS, "novelty")
    _words(frame, [name for name, kind in NOVELTY_COLUMNS.items() if kind is str])
    for column, kind in NOVELTY_COLUMNS.items():
        if kind in (int, float) and column != "samples":  # of a single sample there is no pair
            number = pd.to_numeric(frame[column], errors="coerce")
            _refuse(frame, ~(np.isfinite(number) & (number >= 0)), column, "must be 0 or above")
    return frame


def _read_csv(path: str | Path, columns: Mapping[str, type]) -> pd.DataFrame:
    text = {name: str for name, kind in columns.items() if kind is str}
    empty = {name: [""] for name in columns}  # only "" is missing: "none" and "null" are words
    try:
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
    except (OSError, ValueError) as error:
        raise OralError(f"{path} is no whole table ({error}). Run the job again.") from error


def _csv(frame: pd.DataFrame, key: list[str]) -> str:
    return _ordered(frame, key).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _ordered(frame: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Rows by key; methods and conditions in the order in which tables show them."""
    places = {name: {word: i for i, word in enumerate(words)} for name, words in ALLOWED.items()}

    def rank(column: pd.Series) -> pd.Series:
        return column.map(places[column.name]) if column.name in places else column

    return frame.sort_values(key, key=rank, kind="stable", ignore_index=True)
