"""Results on disk: a folder a cell, and the collected tables of a scale.

In parquet a row of items with one sample takes about a byte.
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
    GROUP,
    ITEM_COLUMNS,
    KEY,
    among,
    check_items,
    check_metrics,
    csv_text,
    items_frame,
    read_csv,
)
from oral_lib.storage import list_paths, read_json, replacing, write_json, write_text

PACKED = {  # arguments of to_parquet: about a byte for a row of one sample
    "index": False, "compression": "brotli", "compression_level": 11, "write_statistics": False,
    "row_group_size": 1 << 24, "data_page_size": 1 << 26,  # equal samples lie within one page
    "use_dictionary": [name for name in ITEM_COLUMNS if name != "score"],
    "column_encoding": {"score": "BYTE_STREAM_SPLIT"},
}  # fmt: skip
ITEMS = "items.parquet"  # of a cell; an earlier version wrote one for a whole scale, too
SOURCE = ["experiment", "source"]
NO_ITEMS = items_frame(pd.DataFrame(columns=list(ITEM_COLUMNS)))


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

    A name such as "zoo/minilm-l6" is that of the adapters of a base model.

    Raises:
        PreflightError: if one was not trained.
    """
    hashes = {}
    for name in names:
        folder = Path(root) / name
        if not (folder / "manifest.json").exists():
            step, _, base = name.partition("/")
            words = f"{step} --base {base}" if base else f"train {name}"
            raise PreflightError(
                f"no {'adapters' if base else 'generator'} in {folder}: train it first with "
                f"`python -m oral_lib {words}`, or run ./reproduce.sh, which does all that is "
                "missing."
            )
        hashes[name] = network_hash(folder)
    return hashes


def write_cell(
    folder: str | Path,
    metrics: pd.DataFrame,
    items: pd.DataFrame,
    networks: Mapping[str, str] | None = None,
    wordings: str = "development",
) -> Path:
    """Writes a cell as a whole or not at all; returns its folder.

    Args:
        folder: the folder of the cell, which is replaced.
        metrics: its metric rows.
        items: its items.
        networks: `network_hashes` of the networks that were measured.
        wordings: the paraphrases that were measured, "development" or "test".
    """
    items = items_frame(items)
    check_items(items, check_metrics(metrics))
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "metrics.csv").write_text(csv_text(metrics, KEY), encoding="utf-8")
        items.to_parquet(temporary / ITEMS, **PACKED)
        content = {"networks": dict(networks or {}), "wordings": wordings}
        write_json(temporary / "cell.json", content)
    return Path(folder)


def is_current(
    folder: str | Path, networks: Mapping[str, str], wordings: str = "development"
) -> bool:
    """Whether `folder` has a cell that was measured with exactly `networks` and `wordings`.

    The cells of the first release record no wordings: they are measured again.
    """
    files = [Path(folder) / name for name in ("metrics.csv", ITEMS, "cell.json")]
    if not all(file.exists() for file in files):
        return False
    return read_json(files[-1]) == {"networks": dict(networks), "wordings": wordings}


def read_metrics(path: str | Path) -> pd.DataFrame:
    """The checked rows of a metrics.csv."""
    return check_metrics(read_csv(path, COLUMNS))


def read_items(path: str | Path) -> pd.DataFrame:
    """The checked rows of a file of items."""
    return check_items(_items_in(Path(path), {}))


def read(
    folder: str | Path, experiment: str | None = None, source: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and items of a cell folder or of results/<scale>, checked against each other.

    Args:
        folder: a folder with metrics.csv and files of items.
        experiment: the only experiment to read; by default all.
        source: the only source to read; by default all.
    """
    named = zip(SOURCE, (experiment, source), strict=True)
    wanted = {name: value for name, value in named if value is not None}
    metrics = _with(read_metrics(Path(folder) / "metrics.csv"), wanted).reset_index(drop=True)
    return metrics, check_items(_items_of(folder, wanted), metrics)


def items_path(results_dir: str | Path, experiment: str, source: str) -> Path:
    """The file of the items of one experiment and source in results/<scale>."""
    return Path(results_dir) / f"items-{experiment}-{source}.parquet"


def _items_of(folder: str | Path, wanted: Mapping[str, str]) -> pd.DataFrame:
    """The unchecked items in `folder` with the values `wanted` by column."""
    single = Path(folder) / ITEMS
    pattern = items_path(folder, *(wanted.get(name, "*") for name in SOURCE))
    files = list_paths(pattern.parent, pattern.name) or [single] * single.exists()
    return join(_items_in(path, wanted) for path in files) if files else NO_ITEMS


def _items_in(path: Path, wanted: Mapping[str, str]) -> pd.DataFrame:
    """The unchecked items in a file with the values `wanted` by column."""
    filters = [(name, "==", value) for name, value in wanted.items()]
    try:
        return items_frame(pd.read_parquet(path, filters=filters or None))
    except (OSError, ValueError) as error:
        raise OralError(
            f"{path} is a truncated or invalid items table ({error}). Run its cell again."
        ) from error


def _write_items(path: Path, items: pd.DataFrame) -> None:
    with replacing(path) as temporary:
        items_frame(items).to_parquet(temporary, **PACKED)


# ---------------------------------------------------------------- collected cells
def collect(cells: Iterable[str | Path], results_dir: str | Path) -> Path:
    """Merges cell folders into the tables of results_dir; returns the path of its metrics.csv.

    The items of each experiment and source have a file, which is only written if one of `cells`
    belongs to it. A cell replaces the rows of its experiment, family, task, source, base and seed;
    other rows stay. The files do not depend on the order of the cells.
    """
    tables = [read(cell) for cell in cells]
    if not tables:
        raise OralError(f"No cells to collect into {results_dir}: measure at least one first.")
    path, single = Path(results_dir) / "metrics.csv", Path(results_dir) / ITEMS
    new = pd.concat(rows for rows, _ in tables)
    items = join(rows for _, rows in tables)
    del tables
    metrics = new
    if path.exists():
        old = read_metrics(path)
        metrics = pd.concat([old[~among(old, new, ["family", *CELL])], new])
    metrics = check_metrics(metrics)
    for key in new[SOURCE].drop_duplicates().itertuples(index=False, name=None):
        wanted = dict(zip(SOURCE, key, strict=True))
        old = _items_of(results_dir, wanted)
        rows = join([old[~among(old, new, CELL)], _with(items, wanted)])
        check_items(rows, _with(metrics, wanted))
        if len(rows):
            _write_items(items_path(results_dir, *key), rows)
    if single.exists():  # as an earlier version wrote it
        _split(single)
    write_text(path, csv_text(metrics, KEY))
    return path


def extend(results_dir: str | Path, metrics: pd.DataFrame, items: pd.DataFrame) -> None:
    """Adds rows of further methods to published cells; all other rows stay.

    Args:
        results_dir: the folder results/<scale>.
        metrics: replace the rows of their cell, method and condition.
        items: replace the items of their cell, method and condition.
    """
    path, single = Path(results_dir) / "metrics.csv", Path(results_dir) / ITEMS
    if single.exists():  # as an earlier version wrote it
        _split(single)
    old = read_metrics(path)
    everything = check_metrics(pd.concat([old[~among(old, metrics, GROUP)], metrics]))
    for key in metrics[SOURCE].drop_duplicates().itertuples(index=False, name=None):
        wanted = dict(zip(SOURCE, key, strict=True))
        stored = _items_of(results_dir, wanted)
        rows = join([stored[~among(stored, metrics, GROUP)], _with(items, wanted)])
        check_items(rows, _with(everything, wanted))
        _write_items(items_path(results_dir, *key), rows)
    write_text(path, csv_text(everything, KEY))


def _with(rows: pd.DataFrame, wanted: Mapping[str, str]) -> pd.DataFrame:
    """The rows with the values `wanted` by column."""
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    return rows


def _split(single: Path) -> None:
    """Replaces one file of items by a file an experiment and source; an existing file is newer."""
    items = read_items(single)
    for key, rows in items.groupby(SOURCE, observed=True):
        path = items_path(single.parent, *key)
        if not path.exists():
            _write_items(path, rows)
    single.unlink()


# ---------------------------------------------------------------- losses
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
