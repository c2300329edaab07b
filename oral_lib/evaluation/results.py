"""Results from outcomes to files: item rows, their metrics, cells on disk, and cells collected.

Items are kept small: words are categories, scores are rounded to a step far below their spread, and
in parquet a sample costs one to two bytes a row.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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
    check,
    check_columns,
    check_items,
    check_words,
    csv_text,
    in_order,
    items_frame,
    read_csv,
    refuse,
    row_keys,
)
from oral_lib.provenance import code_commit
from oral_lib.storage import replacing, write_text

SCORE_STEPS = 64  # a score is rounded to a step of about 1/64 of the scores' standard deviation
PACKED = {  # how items lie in parquet: about a byte and a half for a row of one sample
    "index": False, "compression": "zstd", "compression_level": 12, "row_group_size": 1 << 20,
    "use_dictionary": [name for name in ITEM_COLUMNS if name != "score"],
    "column_encoding": {"score": "BYTE_STREAM_SPLIT"},
}  # fmt: skip


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
        measured = [("accuracy", bootstrap.bootstrap(correct), bootstrap.accuracy_stderr(correct))]
        counts = {}  # items of a metric that does not speak of all
        if np.isfinite(score).all() and set(np.unique(labels)) == {0, 1}:
            measured.append(("auc", *bootstrap.bootstrap_auc(labels[0], score)))
            right = bootstrap.calibrated(labels[0], score)
            found = bootstrap.bootstrap(right), bootstrap.accuracy_stderr(right)
            measured.append(("calibrated_accuracy", *found))
        if balanced:
            found = bootstrap.bootstrap_balanced(labels[0], correct)
            measured.append(("balanced_accuracy", *found))
        kind_of = part["item"].astype(str).map(kinds or {})
        for kind in sorted(kind_of.dropna().unique()):
            some = part[kind_of == kind]
            found = _wide(some, "predicted" if depths else "correct")
            hits = {f"{kind}_recall@{k}": found < k for k in depths} or {f"accuracy_{kind}": found}
            for name, hit in hits.items():
                hit, counts[name] = hit.astype(float), hit.shape[1]
                measured.append((name, bootstrap.bootstrap(hit), bootstrap.accuracy_stderr(hit)))
        row = dict(zip(GROUP, group, strict=True)) | {"family": family}
        row |= {"base_version": base_version, "higher_is_better": True}
        row |= {"n_samples": correct.shape[0]}
        row |= {"wall_s": wall_s.get(group[-2:], 0.0) if isinstance(wall_s, Mapping) else wall_s}
        for metric, (value, low, high), stderr in measured:
            number = {"value": value, "stderr": stderr, "ci_low": low, "ci_high": high}
            number["n_items"] = counts.get(metric, correct.shape[1])
            rows.append(row | number | {"metric": metric})
    frame = pd.DataFrame(rows).assign(commit=commit or code_commit())
    return check(in_order(frame[list(COLUMNS)], KEY))


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
    run = part.seed.to_numpy(np.int64) * 2**16 + part["sample"]
    runs, row = np.unique(run, return_inverse=True)
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


# ---------------------------------------------------------------- on disk
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
    return check(read_csv(path, COLUMNS))


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
        (temporary / "metrics.csv").write_text(csv_text(metrics, KEY), encoding="utf-8")
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
    write_text(path, csv_text(metrics, KEY))
    return path


def _among(old: pd.DataFrame, new: pd.DataFrame, key: list[str]) -> np.ndarray:
    """Which rows of `old` have the key of some row of `new`."""
    keys = set(new[key].drop_duplicates().itertuples(index=False, name=None))
    group, first = pd.factorize(row_keys(old, key))
    places = np.unique(group, return_index=True)[1] if len(first) else []
    there = [one in keys for one in old.iloc[places][key].itertuples(index=False, name=None)]
    return np.array(there, bool)[group]


# fmt: off
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

# fmt: on
BENCHMARK_KEY = ["benchmark", "variant", "case", "values", "metric", "device"]

NOVELTY_KEY = [*CELL, "method"]


def append_benchmarks(path: str | Path, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Adds timings or memory to benchmarks.csv (one writer at a time) and returns the whole table.

    A measurement of the same thing on the same device replaces the older one.
    """
    return _append(path, rows, read_benchmarks, _check_benchmarks, BENCHMARK_KEY)


def read_benchmarks(path: str | Path) -> pd.DataFrame:
    """The checked rows of a benchmarks.csv."""
    return _check_benchmarks(read_csv(path, BENCHMARK_COLUMNS))


def _check_benchmarks(frame: pd.DataFrame) -> pd.DataFrame:
    check_columns(frame, BENCHMARK_COLUMNS, "benchmarks")
    for column, kind in BENCHMARK_COLUMNS.items():
        if kind in (int, float):
            number = pd.to_numeric(frame[column], errors="coerce")
            refuse(frame, ~np.isfinite(number), column, "must be a finite number")
    return frame[list(BENCHMARK_COLUMNS)]


def append_novelty(path: str | Path, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Adds rows to novelty.csv (one writer at a time); a row of the same key replaces the older."""
    return _append(path, rows, read_novelty, _check_novelty, NOVELTY_KEY)


def read_novelty(path: str | Path) -> pd.DataFrame:
    """The checked rows of a novelty.csv."""
    return _check_novelty(read_csv(path, NOVELTY_COLUMNS))


def _check_novelty(frame: pd.DataFrame) -> pd.DataFrame:
    check_columns(frame, NOVELTY_COLUMNS, "novelty")
    check_words(frame, [name for name, kind in NOVELTY_COLUMNS.items() if kind is str])
    for column, kind in NOVELTY_COLUMNS.items():
        if kind in (int, float) and column != "samples":  # of a single sample there is no pair
            number = pd.to_numeric(frame[column], errors="coerce")
            refuse(frame, ~(np.isfinite(number) & (number >= 0)), column, "must be 0 or above")
    return frame[list(NOVELTY_COLUMNS)]


def _append(path: str | Path, rows: Iterable[Mapping], read, check, key: list[str]) -> pd.DataFrame:
    new = check(pd.DataFrame(list(rows)))
    frame = pd.concat([read(path), new]) if Path(path).exists() else new
    write_text(path, csv_text(frame.drop_duplicates(key, keep="last"), key))
    return read(path)


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
