"""The results of experiment intents from one source: its tables and figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from oral_lib.evaluation import two_level
from oral_lib.evaluation.schema import read_csv
from oral_lib.report.intents import curves, dots, judgements, outcomes, tables, text_map

COSTS = {  # columns of intents_costs.csv
    "source": str, "base": str, "method": str, "ms_adapter": float, "ms_row": float,
    "flops_row": float, "bytes": float, "device": str, "commit": str,
}  # fmt: skip
MAP = {  # columns of intents_map.csv
    "source": str, "base": str, "split": str, "text_task": str, "row_task": str, "auc": float,
    "commit": str,
}  # fmt: skip


@dataclass(frozen=True)
class IntentsResults:
    """The results of one source: means over tasks by base model and split.

    Args:
        source: of the data.
        metrics: rows of metrics.csv, of this experiment and source.
        items: the outcomes of the same rows.
        folder: results/<scale>, with the small tables; None if there are none.
        n_boot: the number of draws of every interval.
    """

    source: str
    metrics: pd.DataFrame
    items: pd.DataFrame
    folder: Path | None = None
    n_boot: int = two_level.DRAWS

    experiment = outcomes.INTENTS

    @property
    def name(self) -> str:
        """The ending of the names of its files."""
        return f"{self.experiment}-{self.source}"

    @property
    def entry(self) -> str:
        """The key of its entry in the manifest."""
        return f"{self.source}-{self.experiment}"

    @cached_property
    def outcomes(self) -> judgements.Outcomes:
        """The outcomes by (base model, split)."""
        return dict(outcomes.splits(self.items, self.n_boot))

    @cached_property
    def values(self) -> pd.DataFrame:
        return judgements.values(self.outcomes)

    @cached_property
    def judged(self) -> pd.DataFrame:
        return judgements.judged(self.outcomes)

    @cached_property
    def aims(self) -> pd.DataFrame:
        return judgements.aims(self.outcomes, self.costs)

    @cached_property
    def summary(self) -> pd.DataFrame:
        return tables.summary_table(self.values)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """The rows of intents_costs.csv of this source; none without the file."""
        return self._small("intents_costs", COSTS)

    @cached_property
    def map(self) -> pd.DataFrame:
        """The rows of intents_map.csv of this source; none without the file."""
        return self._small("intents_map", MAP)

    def _small(self, name: str, columns: dict[str, type]) -> pd.DataFrame:
        path = self.folder / f"{name}.csv" if self.folder else None
        if path is None or not path.exists():
            return pd.DataFrame(columns=list(columns))
        table = read_csv(path, columns)
        return table[table.source == self.source]

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """(kind, table) of every table."""
        yield "summary", self.summary
        if len(self.aims):
            yield "aims", tables.aims_table(self.aims)
        methods = tables.method_tables(self.values, self.judged, self.costs)
        for (base, split), table in methods:
            yield f"{split}-{base}", table
        if len(self.costs):
            yield "costs", tables.costs_table(self.costs)
        yield "values", self.values
        yield "judged", self.judged
        if len(self.aims):
            yield "verdicts", self.aims

    def titles(self) -> dict[str, str]:
        """The title of each table of a base model and split, by kind."""
        titles = {"summary": "Unseen tasks, every method", "aims": "Aims"}
        for base, split in dict.fromkeys(zip(self.values.base, self.values.split, strict=True)):
            titles[f"{split}-{base}"] = f"{split}, {base}: every method and its costs"
        return titles | {"costs": "Costs"}

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """(file name without its ending, figure) of every figure."""
        unseen = self.values[self.values.split.isin(judgements.UNSEEN)]
        values = unseen if len(unseen) else self.values
        for kind, draw in (
            ("equivalent", curves.equivalent_figure),
            ("few", curves.few_rows_figure),
        ):
            figure = draw(values)
            if figure is not None:
                yield f"{kind}-{self.name}", figure
        for split in sorted(set(values.split)):
            of_split = {base: o for (base, name), o in self.outcomes.items() if name == split}
            yield f"dots-{self.name}-{split}", dots.task_dots(split, of_split, values)
        for (base, split), rows in self.map.groupby(["base", "split"], sort=False):
            yield f"textmap-{self.name}-{split}-{base}", text_map.text_by_task(rows)
