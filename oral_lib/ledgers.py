"""The small tables beside the results: benchmarks and novelty, added to row by row, and curves."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from oral_lib.contract import CELL, check_columns, check_words, csv_text, read_csv, refuse
from oral_lib.storage import write_text

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
