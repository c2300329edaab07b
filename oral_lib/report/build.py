"""The report of a scale: tables, figures and pages, from the files of results/<scale>/.

Reads metrics.csv, items-*.parquet and, if present, benchmarks.csv, ablations.csv, novelty.csv,
curves-*.csv and manifest.json. Rows that break the result schema are refused. Equal input files
give equal bytes.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from oral_lib.evaluation import results, small_tables
from oral_lib.report import drawing, findings, pages, study_pages
from oral_lib.report.comparisons import judged, pooled, without_signal
from oral_lib.report.figures import theme
from oral_lib.report.formats import latex, markdown
from oral_lib.report.intents.outcomes import INTENTS
from oral_lib.report.intents.results import LONG, IntentsResults
from oral_lib.report.studies.ablation_summary import ablation_means
from oral_lib.report.tables.grid import grid_table
from oral_lib.report.tables.judgements import conditions_table, projections_table, targets_table
from oral_lib.report.tables.methods import interval_table, main_table, parts_table, unseen_table
from oral_lib.report.tables.sets import sets_table
from oral_lib.report.tables.studies import bytes_table, novelty_table
from oral_lib.storage import list_paths, read_json, write_text

METRICS = {"accuracy": "main", "auc": "auc", "calibrated_accuracy": "calibrated"}  # table by metric


@dataclass(frozen=True)
class SourceResults:
    """The results of one experiment from one source: they never share a table with others."""

    experiment: str
    source: str
    metrics: pd.DataFrame
    items: pd.DataFrame
    held_out: int = 0  # the last so many trained adapters of a cell are the held-out ones

    @property
    def name(self) -> str:
        """The ending of the names of its files."""
        return f"{self.experiment}-{self.source}"

    @property
    def entry(self) -> str:
        """The key of its entry in the manifest."""
        return self.source if self.experiment == "language" else f"{self.source}-{self.experiment}"

    @property
    def metric(self) -> str:
        """The metric that its cells are judged by."""
        return "balanced_accuracy" if self.has("balanced_accuracy") else "accuracy"

    @cached_property
    def judged(self) -> pd.DataFrame:
        return judged(self.items, self.held_out, self.metric)

    @cached_property
    def no_signal(self) -> set[tuple[str, ...]]:
        return without_signal(self.judged)

    def has(self, metric: str) -> bool:
        return bool((self.metrics.metric == metric).any())

    def rows(self, metric: str) -> pd.DataFrame:
        return pooled(self.metrics[self.metrics.metric == metric])

    @cached_property
    def grid(self) -> pd.DataFrame:
        return grid_table(self.metrics, self.source, self.items, no_signal=self.no_signal)

    @cached_property
    def main(self) -> pd.DataFrame:
        return self.methods("accuracy")

    @cached_property
    def parts(self) -> pd.DataFrame:
        return parts_table(self.metrics, self.source)

    @cached_property
    def targets(self) -> pd.DataFrame:
        return targets_table(self.judged)

    @cached_property
    def intervals(self) -> pd.DataFrame:
        return interval_table(self.metrics, self.source)

    @cached_property
    def unseen(self) -> pd.DataFrame:
        return unseen_table(self.items)

    @cached_property
    def sets(self) -> pd.DataFrame:
        return sets_table(self.items)

    def methods(self, metric: str) -> pd.DataFrame:
        about = {"held_out": self.held_out, "no_signal": self.no_signal}
        return main_table(self.metrics, self.source, self.items, metric, **about)

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """(kind, table) of every table."""
        if self.has("accuracy"):
            yield "grid", self.grid
        for metric, kind in METRICS.items():
            if self.has(metric):
                yield kind, self.main if metric == "accuracy" else self.methods(metric)
        if self.has("balanced_accuracy"):
            yield "unseen", self.unseen
            if len(self.sets):
                yield "sets", self.sets
        if len(self.parts):
            yield "parts", self.parts
        yield "intervals", self.intervals
        judgements = {
            "targets": self.targets,
            "conditions": conditions_table(self.judged),
            "projections": projections_table(self.judged),
            "judged": self.judged.drop(columns=["experiment", "source"]),
        }
        yield from ((kind, table) for kind, table in judgements.items() if len(table))


def write_report(results_root: str | Path, scale: str) -> Path:
    """The path of the contents page README.md, written with all pages of `scale`.

    Tables and figures of this scale that an earlier version wrote are removed. Other scales stay;
    the contents page lists them. `smoke` is left out there unless it is the only scale, because its
    numbers mean nothing. Raises OralError if rows break the result schema; nothing is written then.
    """
    root, folder = Path(results_root), Path(results_root) / scale
    sources, tables, figures = _read(folder), folder / "tables", folder / "figures"
    written = [_write_table(tables, name, table) for name, table in _tables(folder, sources)]
    _remove_all_but(tables, [path for paths in written for path in paths])
    written = [theme.save_figure(f, figures, name) for name, f in _figures(folder, sources)]
    _remove_all_but(figures, [path for paths in written for path in paths])
    for source in sources:
        write_text(folder / f"{source.name}.md", pages.page(folder, source))
    for name, text in study_pages.study_pages(folder).items():
        write_text(folder / f"{name}.md", text)
    return write_contents(root)


def findings_of(
    experiment: str, source: str, items: pd.DataFrame, *, held_out: int = 0, by_cell: bool = True
) -> str:
    """The judgements of one experiment and source in words: a summary, and `by_cell` each cell.

    Means over tasks, of experiment intents, are judged by base model and split: no cell is.
    """
    if experiment == INTENTS:
        return IntentsResults(source, items[:0], items).findings
    metric = "balanced_accuracy" if experiment == findings.UNSEEN else "accuracy"
    summary, cells = findings.verdict(judged(items, held_out, metric))
    return "\n\n".join([*summary, *(cells if by_cell else ())])


def write_contents(root: Path) -> Path:
    """The path of the contents page in `root`, written again from the pages and notebooks there."""
    scales = sorted(path.parent.name for path in list_paths(root, "*/metrics.csv"))
    named = [name for name in scales if name != "smoke"] or scales
    write_text(root / "README.md", pages.contents(root, named))
    return root / "README.md"


def _read(folder: Path) -> list[SourceResults | IntentsResults]:
    """The results of a scale, by experiment and source."""
    keys = results.read_metrics(folder / "metrics.csv")[results.SOURCE].drop_duplicates()
    path = folder / "manifest.json"
    manifest = read_json(path) if path.exists() else {}
    sources = []
    for experiment, source in sorted(keys.itertuples(index=False, name=None)):
        tables = results.read(folder, experiment, source)
        if experiment == INTENTS:
            sources.append(IntentsResults(source, *tables, folder))
            continue
        cells = SourceResults(experiment, source, *tables)
        held_out = _held_out(manifest.get(cells.entry, {}))
        sources.append(replace(cells, held_out=held_out))
    return sources


def _cells(sources: Sequence[SourceResults | IntentsResults]) -> list[SourceResults]:
    """The results that are judged cell by cell; means over tasks are not."""
    return [source for source in sources if isinstance(source, SourceResults)]


def _held_out(entry: dict) -> int:
    """The number of held-out adapters of a task; older entries list their seeds only."""
    return entry.get("held_out", len(entry.get("seeds", {}).get("held out of training", [])))


def _tables(
    folder: Path, sources: Sequence[SourceResults | IntentsResults]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, table) of the overview, of every experiment and source, and of the studies."""
    if counted := [source.judged for source in _cells(sources) if source.has("accuracy")]:
        yield "overview", findings.overview(pd.concat(counted))
    for source in sources:
        yield from ((f"{kind}-{source.name}", table) for kind, table in source.tables())
    for (experiment, source), rows in small_tables.NOVELTY.read(folder).groupby(results.SOURCE):
        yield f"novelty-{experiment}-{source}", novelty_table(rows, source)
    for (experiment, source), rows in small_tables.BYTES.read(folder).groupby(results.SOURCE):
        yield f"bytes-{experiment}-{source}", bytes_table(rows)
    if (folder / "ablations.csv").exists():
        table = drawing.ablation_rows(folder)
        for source, rows in table[table.metric == "accuracy"].groupby("source"):
            yield f"ablations-{source}", ablation_means(rows)


def _figures(folder: Path, sources: Sequence[SourceResults | IntentsResults]) -> drawing.Named:
    """(name, figure) of every experiment and source, and of the scale."""
    for source in sources:
        if isinstance(source, IntentsResults):
            yield from source.figures()
        else:
            yield from drawing.source_figures(folder, source)
    yield from drawing.scale_figures(folder, _cells(sources))


def _remove_all_but(folder: Path, written: Collection[Path]) -> None:
    """Removes the files in `folder` that this report did not write, such as an earlier version's.

    Figures of answers stay: publishing a run draws them from images.
    """
    for path in list_paths(folder, "*.*"):
        if path not in written and not path.name.startswith("answers-"):
            path.unlink()


def _write_table(folder: Path, name: str, table: pd.DataFrame) -> list[Path]:
    """The paths of a table, written as CSV, Markdown and LaTeX; a long one as CSV only.

    A zero has no sign: it depends on the processor.
    """
    table = table.map(lambda cell: 0.0 if isinstance(cell, float) and cell == 0 else cell)
    csv = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    texts = {"csv": csv}
    if not name.startswith(LONG):
        texts |= {"md": markdown(table), "tex": latex(table)}
    paths = [folder / f"{name}.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths
