"""The results of experiment intents from one source: its tables and figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from oral_lib.evaluation import small_tables, two_level
from oral_lib.report.intents import curves, dots, judgements, outcomes, page, tables, text_map

LONG = ("values-intents", "judged-intents", "verdicts-intents")  # tables that only programs read


@dataclass(frozen=True)
class IntentsResults:
    """The results of one source: means over tasks by base model and split.

    Args:
        source: of the data.
        metrics: rows of metrics.csv, of this experiment and source.
        items: the outcomes of the same rows.
        folder: results/<scale> with the small tables, or the folder of a run; None: none are read.
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
        return dict(outcomes.by_split(self.items, self.n_boot))

    @cached_property
    def values(self) -> pd.DataFrame:
        return judgements.values(self.outcomes)

    @cached_property
    def judged(self) -> pd.DataFrame:
        return judgements.compared_pairs(self.outcomes)

    @cached_property
    def aims(self) -> pd.DataFrame:
        return judgements.aims(self.outcomes, self.costs)

    @cached_property
    def summary(self) -> pd.DataFrame:
        return tables.summary_table(self.values)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """The rows of intents_costs.csv of this source; none without the file."""
        return self._small(small_tables.INTENTS_COSTS)

    @cached_property
    def map(self) -> pd.DataFrame:
        """The rows of intents_map.csv of this source; none without the file."""
        return self._small(small_tables.INTENTS_MAP)

    def _small(self, table: small_tables.SmallTable) -> pd.DataFrame:
        if self.folder is None:
            rows = pd.DataFrame(columns=list(table.columns))
        elif table.path(self.folder).exists():
            rows = table.read(self.folder)
        else:
            rows = table.measured(self.folder)
        return rows[rows.source == self.source]

    @cached_property
    def aims_table(self) -> pd.DataFrame:
        """The aims that were measured, with their verdicts, a column a base model."""
        return tables.aims_table(self.aims)

    @cached_property
    def method_tables(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Every method with its costs, by (base model, split)."""
        return dict(tables.method_tables(self.values, self.judged, self.costs))

    @cached_property
    def findings(self) -> str:
        """The judgements in words, a sentence or a base model and split a line."""
        return "\n".join(page.findings(self))

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """(kind, table) of every table."""
        yield "summary", self.summary
        if len(self.aims):
            yield "aims", self.aims_table
        for (base, split), table in self.method_tables.items():
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

    @cached_property
    def unseen_values(self) -> pd.DataFrame:
        """The values of unseen splits, which figures show; of all splits without unseen ones."""
        unseen = self.values[self.values.split.isin(judgements.UNSEEN_SPLITS)]
        return unseen if len(unseen) else self.values

    def equivalent_figure(self) -> Figure | None:
        """AUC against equivalent labelled rows; None without adapters trained on few rows."""
        return curves.equivalent_figure(self.unseen_values)

    def few_rows_figure(self) -> Figure | None:
        """A sentence and a few rows; None if nothing was conditioned on rows."""
        return curves.few_rows_figure(self.unseen_values)

    def task_dots(self, split: str) -> Figure:
        """The AUC of every task of a split, by method and base model."""
        of_split = {base: rows for (base, name), rows in self.outcomes.items() if name == split}
        return dots.task_dots(split, of_split, self.values)

    def text_maps(self) -> dict[tuple[str, str], Figure]:
        """Whose text on whose rows, by (base model, split); empty without intents_map.csv."""
        groups = self.map.groupby(["base", "split"], sort=False)
        return {key: text_map.unseen_map(rows) for key, rows in groups}

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """(file name without its ending, figure) of every figure."""
        of_rows = {"equivalent": self.equivalent_figure(), "few": self.few_rows_figure()}
        for kind, figure in of_rows.items():
            if figure is not None:
                yield f"{kind}-{self.name}", figure
        for split in sorted(set(self.unseen_values.split)):
            yield f"dots-{self.name}-{split}", self.task_dots(split)
        for (base, split), figure in self.text_maps().items():
            yield f"textmap-{self.name}-{split}-{base}", figure
