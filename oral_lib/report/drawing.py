"""All figures of a scale, by file name, from the files of results/<scale>.

| figure | shows |
| --- | --- |
| `signals` | all cells with a signal, sorted: generated against trained and simple methods |
| `gaps`, `auc`, `unseen` | generated minus trained, by base model and task |
| `controls` | generated under control texts |
| `texts` | whose sentence against whose rows, a figure a base model |
| `map` | adapters, averages and samples of a zoo in its plane, a figure a base model |
| `hero` | the answers to the same inputs before and after, for two sentences |
| `costs` | accuracy against labelled rows and seconds |
| `loss`, `benchmarks`, `ablations` | training, its speed, and parts of the generator |
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from oral_lib.evaluation import small_tables
from oral_lib.report import comparisons
from oral_lib.report.figures import (
    ablations,
    costs,
    hero,
    maps,
    overview,
    signals,
    texts,
    training,
)
from oral_lib.report.figures.theme import extent
from oral_lib.storage import list_paths

if TYPE_CHECKING:
    from oral_lib.report.build import SourceResults

Named = Iterator[tuple[str, Figure]]  # (file name without its ending, figure)
_GAPS = {  # kind of figure and words, by metric
    "accuracy": ("gaps", "Accuracy"),
    "auc": ("auc", "AUC"),
    "balanced_accuracy": ("unseen", "Balanced accuracy"),
}


def scale_figures(folder: Path, sources: Sequence["SourceResults"]) -> Named:
    """The figures about several sources: signals, benchmarks, ablations and loss curves.

    Args:
        folder: results/<scale>.
        sources: the results of the scale; tasks that no generator was trained on have their own
            figure and are left out of `signals`.
    """
    tables = [source.judged for source in sources if source.metric == "accuracy"]
    tables = [table[table.signal.astype(bool)] for table in tables]
    if any(map(_compared, tables)):
        yield "signals", signals.signals(pd.concat(tables))
    answers = small_tables.ANSWERS.read(folder)
    if len(answers):
        rows = answers[answers.base == answers.base.iloc[0]]
        n = rows.groupby("sentence").input.nunique()
        remark = f"Inputs: validation rows. n = {extent(n)} inputs a sentence, generator seed 0."
        yield "hero", hero.hero_figure(rows, base=rows.base.iloc[0], remark=remark)
    benchmarks = small_tables.BENCHMARKS.read(folder)
    if (benchmarks.benchmark == training.TRAINING).any():
        yield "benchmarks", training.training_speed(benchmarks)
    if (folder / "ablations.csv").exists():
        table = ablation_rows(folder)
        for source, rows in table[table.metric == "accuracy"].groupby("source"):
            yield f"ablations-{source}", ablations.ablation_figure(rows)
    for path in list_paths(folder, "curves*.csv"):
        yield path.stem.replace("curves", "loss"), training.loss_curves(pd.read_csv(path))


def ablation_rows(folder: Path) -> pd.DataFrame:
    """The rows of ablations.csv; a time has no interval."""
    missing = {name: [""] for name in ("ci_low", "ci_high")}
    return pd.read_csv(folder / "ablations.csv", keep_default_na=False, na_values=missing)


def source_figures(folder: Path, results: "SourceResults") -> Named:
    """The figures of one experiment and source, from `results` and the small tables of `folder`."""
    experiment, source, items = results.experiment, results.source, results.items
    ending = results.name
    others = [name for name in ("auc",) if results.has(name)]
    for metric in [results.metric, *others]:
        table = results.judged
        if metric != results.metric:
            table = comparisons.judged(items, results.held_out, metric)
        if _compared(table):
            kind, words = _GAPS[metric]
            yield f"{kind}-{ending}", overview.gaps(table, words)
    if results.judged.what.str.startswith("generated/").any():
        _, words = _GAPS[results.metric]
        yield f"controls-{ending}", overview.controls(results.judged, words)
    for base, rows in _of(small_tables.TEXTS.read(folder), experiment, source).groupby("base"):
        cell = items[(items.base == base) & (items.method == "generated")]
        if (figure := texts.text_by_task(cell, rows)) is not None:
            yield f"texts-{ending}-{base}", figure
    for base, rows in _of(small_tables.MAPS.read(folder), experiment, source).groupby("base"):
        yield f"map-{ending}-{base}", maps.zoo_map(rows)
    table = _of(small_tables.COSTS.read(folder), experiment, source)
    rows = results.rows("accuracy")
    if len(table) and (figure := costs.accuracy_and_cost(rows, table)) is not None:
        yield f"costs-{ending}", figure


def _of(table: pd.DataFrame, experiment: str, source: str) -> pd.DataFrame:
    return table[(table.experiment == experiment) & (table.source == source)]


def _compared(judged: pd.DataFrame) -> bool:
    return bool(((judged.what == "generated") & (judged.against == "trained")).any())
