"""Results on disk: a folder a cell, the collected tables of a scale, and the small tables.

In parquet a row of items with one sample takes one to two bytes.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from oral_lib.errors import OralError, PreflightError
from oral_lib.evaluation.item_tables import join
from oral_lib.evaluation.schema import (
    CELL,
    COLUMNS,
    ITEM_COLUMNS,
    KEY,
    check_columns,
    check_items,
    check_metrics,
    check_words,
    csv_text,
    items_frame,
    read_csv,
    refuse,
    row_keys,
)
from oral_lib.storage import read_json, replacing, write_json, write_text

PACKED = {  # arguments of to_parquet: about a byte and a half for a row of one sample
    "index": False, "compression": "zstd", "compression_level": 12, "row_group_size": 1 << 20,
    "use_dictionary": [name for name in ITEM_COLUMNS if name != "score"],
    "column_encoding": {"score": "BYTE_STREAM_SPLIT"},
}  # fmt: skip


# ---------------------------------------------------------------- a cell on disk
def network_hash(folder: str | Path) -> str:
    """The hash of a trained network in `folder`: of its manifest.json, which has the hash of the
    weights, and of its config.json."""
    digest = hashlib.sha256()
    for name in ("manifest.json", "config.json"):
        file = Path(folder) / name
        digest.update(file.read_bytes() if file.exists() else b"")
    return digest.hexdigest()


def network_hashes(root: str | Path, names: Iterable[str]) -> dict[str, str]:
    """`network_hash` by name of the networks in the folder `root` of a run.

    Raises:
        PreflightError: if one was not trained.
    """
    hashes = {}
    for name in names:
        folder = Path(root) / name
        if not (folder / "manifest.json").exists():
            raise PreflightError(
                f"no generator in {folder}: train it first with `python -m oral_lib train {name}`, "
                "or run ./reproduce.sh, which does all that is missing."
            )
        hashes[name] = network_hash(folder)
    return hashes


def write_cell(
    folder: str | Path,
    metrics: pd.DataFrame,
    items: pd.DataFrame,
    networks: Mapping[str, str] | None = None,
) -> Path:
    """Writes a cell as a whole or not at all; returns its folder.

    Args:
        folder: the folder of the cell, which is replaced.
        metrics: its metric rows.
        items: its items.
        networks: `network_hashes` of the networks that were measured.
    """
    items = items_frame(items)
    check_items(items, check_metrics(metrics))
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "metrics.csv").write_text(csv_text(metrics, KEY), encoding="utf-8")
        items.to_parquet(temporary / "items.parquet", **PACKED)
        write_json(temporary / "cell.json", {"networks": dict(networks or {})})
    return Path(folder)


def is_current(folder: str | Path, networks: Mapping[str, str]) -> bool:
    """Whether `folder` has a cell that was measured with exactly `networks` (`network_hashes`)."""
    files = [Path(folder) / name for name in ("metrics.csv", "items.parquet", "cell.json")]
    if not all(file.exists() for file in files):
        return False
    return read_json(files[-1]).get("networks") == dict(networks)


def read_metrics(path: str | Path) -> pd.DataFrame:
    """The checked rows of a metrics.csv."""
    return check_metrics(read_csv(path, COLUMNS))


def read_items(path: str | Path) -> pd.DataFrame:
    """The checked rows of an items.parquet."""
    try:
        return check_items(items_frame(pd.read_parquet(path)))
    except (OSError, ValueError) as error:
        raise OralError(
            f"{path} is a truncated or invalid items table ({error}). Run its cell again."
        ) from error


def read(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and items of a cell folder or of results/<scale>, checked against each other."""
    metrics = read_metrics(Path(folder) / "metrics.csv")
    return metrics, check_items(read_items(Path(folder) / "items.parquet"), metrics)


# ---------------------------------------------------------------- collected cells
def collect(cells: Iterable[str | Path], results_dir: str | Path) -> Path:
    """Merges cell folders into results_dir/metrics.csv and items.parquet; returns the former.

    A cell replaces the rows of its experiment, family, task, source, base and seed; other rows
    stay. The files do not depend on the order of the cells.
    """
    tables = [read(cell) for cell in cells]
    if not tables:
        raise OralError(f"No cells to collect into {results_dir}: measure at least one first.")
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
    metrics = check_metrics(metrics)
    check_items(items, metrics)
    with replacing(items_path) as temporary:
        items.to_parquet(temporary, **PACKED)
    write_text(path, csv_text(metrics, KEY))
    return path


def _among(old: pd.DataFrame, new: pd.DataFrame, key: list[str]) -> np.ndarray:
    """Which rows of `old` have the key of any row of `new`."""
    keys = set(new[key].drop_duplicates().itertuples(index=False, name=None))
    group, values = pd.factorize(row_keys(old, key))
    first = np.unique(group, return_index=True)[1] if len(values) else []
    present = [row in keys for row in old.iloc[first][key].itertuples(index=False, name=None)]
    return np.array(present, bool)[group]


# ---------------------------------------------------------------- benchmarks, novelty, losses
# fmt: off
BENCHMARK_COLUMNS = {
    "benchmark": str, "variant": str, "case": str, "values": int, "metric": str, "value": float,
    "unit": str, "repeats": int, "device": str, "commit": str,
}
NOVELTY_COLUMNS = {  # the numbers are the fields of `distances.Novelty`
    "experiment": str, "source": str, "base": str, "task": str, "method": str, "seed": int,
    "ratio": float, "ratio_low": float, "generated": float, "held_out": float, "seeds": float,
    "samples": float, "norm": float, "n_generated": int, "n_train": int, "n_held_out": int,
    "commit": str,
}
# fmt: on
BENCHMARK_KEY = ["benchmark", "variant", "case", "values", "metric", "device"]
NOVELTY_KEY = [*CELL, "method"]


def append_benchmarks(path: str | Path, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Adds timings or memory to benchmarks.csv (one writer at a time); returns the whole table.

    A row replaces the older row of its key, which includes the device.
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
    """Adds rows to novelty.csv (one writer at a time); a row replaces the older row of its key."""
    return _append(path, rows, read_novelty, _check_novelty, NOVELTY_KEY)


def read_novelty(path: str | Path) -> pd.DataFrame:
    """The checked rows of a novelty.csv."""
    return _check_novelty(read_csv(path, NOVELTY_COLUMNS))


def _check_novelty(frame: pd.DataFrame) -> pd.DataFrame:
    check_columns(frame, NOVELTY_COLUMNS, "novelty")
    check_words(frame, [name for name, kind in NOVELTY_COLUMNS.items() if kind is str])
    for column, kind in NOVELTY_COLUMNS.items():
        if kind in (int, float) and column != "samples":  # NaN for a single sample
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

    All losses of six hundred adapters would take ten megabytes, more than a figure can show. A
    block has its last step, so curves end where training ended.
    """
    index = curves.groupby("series", sort=False).cumcount()
    size = curves.groupby("series", sort=False).step.transform("size")
    block = (index * np.minimum(points, size)) // size
    groups = curves.assign(block=block).groupby(["series", "block"], sort=False)
    return groups.agg(step=("step", "last"), loss=("loss", "mean")).reset_index()[list(curves)]
