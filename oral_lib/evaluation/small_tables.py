"""The small tables of results/<scale>: a CSV file each, next to metrics.csv.

| table | a row |
| --- | --- |
| `BENCHMARKS` | a time or an amount of memory |
| `NOVELTY` | how far the samples of a cell lie from the zoo and from each other |
| `TEXTS` | which task each classifier of texts assigns to the text of a generated sample |
| `MAPS` | the coordinates of an adapter, an average or a sample in the plane of the zoo |
| `BYTES` | the size of the zoo, of the generator or of the router |
| `COSTS` | the labelled rows and the seconds that an adapter of a task takes |
| `INTENTS_COSTS` | what a method takes to make an adapter and to answer a message |
| `INTENTS_MAP` | how well the adapter from the text of one task does on the rows of another |
| `ANSWERS` | what base, router and generated answer to an input under a sentence |
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from oral_lib.evaluation.schema import (
    CELL,
    PLACE,
    among,
    check_columns,
    check_words,
    csv_text,
    read_csv,
    refuse,
)
from oral_lib.storage import list_paths, read_json, write_text


@dataclass(frozen=True)
class SmallTable:
    """A small table: its file, its columns, and what its values may be.

    Attributes:
        name: of the file, without its ending.
        columns: type by column. Strings are not empty, integers are whole and not negative.
        key: the columns that identify a row.
        replaced: a new row replaces all older rows that agree with it in these columns.
        unknown: columns of numbers that may be NaN. An older file may have no such column.
        signed: columns of numbers that may be negative.
        allowed: the allowed strings, by column.
    """

    name: str
    columns: Mapping[str, type]
    key: list[str]
    replaced: list[str]
    unknown: frozenset[str] = frozenset()
    signed: frozenset[str] = frozenset()
    allowed: Mapping[str, list[str]] = field(default_factory=dict)

    def path(self, folder: str | Path) -> Path:
        """Its file in `folder`, which may not exist."""
        return Path(folder) / f"{self.name}.csv"

    def read(self, folder: str | Path) -> pd.DataFrame:
        """The checked rows of its file in `folder`; no rows if there is no file."""
        path = self.path(folder)
        if not path.exists():
            return pd.DataFrame(columns=list(self.columns))
        return self.check(read_csv(path, self.columns))

    def measured(self, root: str | Path) -> pd.DataFrame:
        """The checked rows that the cells of a run have stored: JSON files with a row or a list of
        rows, in a folder of the table's name in the folder `root` of the run."""
        files = [read_json(path) for path in list_paths(Path(root) / self.name, "*.json")]
        rows = [row for each in files for row in (each if isinstance(each, list) else [each])]
        return self.check(pd.DataFrame(rows)) if rows else pd.DataFrame(columns=list(self.columns))

    def append(self, folder: str | Path, rows: Iterable[Mapping]) -> pd.DataFrame:
        """Adds rows to its file in `folder` (one writer at a time); returns the whole table.

        Raises OralError if a row breaks the schema.
        """
        new, old = self.check(pd.DataFrame(list(rows))), self.read(folder)
        old = old[~among(old, new, self.replaced)]
        frame = pd.concat([frame for frame in (old, new) if len(frame)] or [new])
        write_text(self.path(folder), csv_text(frame, self.key))
        return self.read(folder)

    def check(self, frame: pd.DataFrame) -> pd.DataFrame:
        """`frame` with its columns in order; OralError with the row and column of a broken value.

        Missing columns of `unknown` are filled with NaN.
        """
        frame = frame.assign(**dict.fromkeys(self.unknown.difference(frame), np.nan))
        check_columns(frame, self.columns, self.name)
        check_words(frame, [name for name, kind in self.columns.items() if kind is str])
        for column, words in self.allowed.items():
            refuse(frame, ~frame[column].isin(words), column, f"must be one of {words}")
        for column, kind in self.columns.items():
            if kind is str:
                continue
            number = pd.to_numeric(frame[column], errors="coerce")
            least = -np.inf if column in self.signed else 0
            valid = np.isfinite(number) & (number >= least)
            if column in self.unknown:
                valid |= frame[column].isna()
            rule = "a finite number" if column in self.signed else "0 or above"
            refuse(frame, ~valid, column, f"must be {rule}")
            if kind is int:
                refuse(frame, number % 1 != 0, column, "must be a whole number")
        again = frame.duplicated(self.key)
        refuse(frame, again, self.key[-1], "repeats an earlier row with the same key")
        return frame[list(self.columns)]


# fmt: off
BENCHMARKS = SmallTable(
    name="benchmarks",
    columns={
        "benchmark": str, "variant": str, "case": str, "values": int, "metric": str,
        "value": float, "unit": str, "repeats": int, "device": str, "commit": str,
    },
    key=["benchmark", "variant", "case", "values", "metric", "device"],
    replaced=["benchmark", "variant", "case", "values", "metric", "device"],
    signed=frozenset({"value"}),
)
NOVELTY = SmallTable(  # most numbers are the fields of `distances.Novelty`
    name="novelty",
    columns={
        "experiment": str, "source": str, "base": str, "task": str, "method": str, "seed": int,
        "ratio": float, "ratio_low": float, "generated": float, "held_out": float, "seeds": float,
        "samples": float, "norm": float, "n_generated": int, "n_train": int, "n_held_out": int,
        "spread": float,  # median distance of two samples / that of two adapters of the zoo
        "free_numbers": float,  # participation ratio of the variance of the samples
        "bound": float,  # the largest number of free numbers that the construction allows
        "commit": str,
    },
    key=[*CELL, "method"],
    replaced=[*CELL, "method"],
    unknown=frozenset({"samples", "spread", "free_numbers", "bound"}),  # such as of one sample
)
TEXTS = SmallTable(
    name="texts",
    columns={
        "experiment": str, "source": str, "base": str, "task": str, "seed": int, "condition": str,
        "sample": int,
        "text_of": str,  # the task that the text describes, or "random" or "empty"
        "router": str, "retrieval": str,  # the task that each assigns to the text
    },
    key=[*CELL, "condition", "sample"],
    replaced=CELL,
)
MAPS = SmallTable(
    name="maps",
    columns={
        "experiment": str, "source": str, "base": str, "kind": str, "task": str, "number": int,
        "x": float, "y": float,  # along the two leading principal axes of the zoo
        "share": float,  # of the variance of the zoo along both axes
        "commit": str,
    },
    key=["experiment", "source", "base", "kind", "task", "number"],
    replaced=["experiment", "source", "base"],
    signed=frozenset({"x", "y"}),
    allowed={"kind": [
        "adapter", "held_out", "average", "generated", "generated_span", "generated_free",
    ]},
)
BYTES = SmallTable(
    name="bytes",
    columns={
        "experiment": str, "source": str, "what": str, "bytes": int, "adapters": int,
        "values": int, "commit": str,
    },
    key=["experiment", "source", "what"],
    replaced=["experiment", "source"],
    allowed={"what": ["zoo_fp32", "zoo_fp16", "generator", "router"]},
)
COSTS = SmallTable(
    name="costs",
    columns={
        "experiment": str, "source": str, "base": str, "task": str, "method": str,
        "labelled_rows": int, "seconds": float, "device": str, "commit": str,
    },
    key=[*PLACE, "method"],
    replaced=[*PLACE, "method"],
    allowed={"method": ["base", "router", "generated", "trained"]},
)
INTENTS_COSTS = SmallTable(
    name="intents_costs",
    columns={
        "source": str, "base": str, "split": str,
        "method": str, "condition": str,
        # to make the adapter of a task: one at a time from a text, else the time of all by their
        # number, with the compilation
        "ms_adapter": float,
        "ms_row": float,  # to score a row, in batches
        "flops_row": float,  # of the forward pass of a row, 2 a multiply-add
        # stored to use the method on a new task, besides the base model: adapters in float16, a
        # generator as its file, for all its base models
        "bytes": float,
        "device": str, "commit": str,
    },
    key=["source", "base", "split", "method", "condition"],
    replaced=["source", "base", "split"],
    unknown=frozenset({"ms_adapter", "ms_row", "flops_row", "bytes"}),
)
INTENTS_MAP = SmallTable(  # seed 0 of generated_through_base
    name="intents_map",
    columns={
        "source": str, "base": str, "split": str, "text_task": str, "row_task": str, "auc": float,
        "commit": str,
    },
    key=["source", "base", "split", "text_task", "row_task"],
    replaced=["source", "base", "split"],
)
ANSWERS = SmallTable(
    name="answers",
    columns={
        "base": str, "sentence": str, "input": str, "truth": str, "method": str, "answer": str,
        "probability": float,  # of the answer
        "commit": str,
    },
    key=["base", "sentence", "input", "method"],
    replaced=["base", "sentence"],
    allowed={"method": ["base", "router", "generated"]},
)
# fmt: on
