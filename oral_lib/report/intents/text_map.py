"""The map of unseen tasks: the adapter made from one task's text on the rows of another.

Every function returns a matplotlib Figure.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import FAINT, SMALL_TEXT, footnote, styled, subplots

_COLOURS = "cividis"  # one order of lightness, the same for readers with deuteranopia
_LABEL, _FEWEST = 7.5, 12  # size of the names in points; tasks that a map needs at least for it


def unseen_map(rows: pd.DataFrame) -> Figure:
    """AUC by whose text made the adapter (rows of the map) and whose rows it was scored on.

    Args:
        rows: of intents_map.csv, of one source, base model and split.
    """
    tasks = list(dict.fromkeys([*rows.row_task, *rows.text_task]))
    cells = rows.pivot_table(index="text_task", columns="row_task", values="auc")
    cells = 100 * cells.reindex(index=tasks, columns=tasks)
    numbers = cells.to_numpy()
    size = max(5.0, 1.2 + 0.135 * len(tasks))
    with styled():
        figure, axis = subplots(height=size + 0.9)
        axis.set_facecolor(FAINT)
        image = axis.imshow(
            numbers, cmap=matplotlib.colormaps[_COLOURS], vmin=np.nanmin(numbers), vmax=100,
            aspect="auto", interpolation="nearest",
        )  # fmt: skip
        names = [_words(task) for task in tasks]
        font = _LABEL if len(tasks) > _FEWEST else SMALL_TEXT
        axis.set_yticks(range(len(tasks)), names, fontsize=font)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_ylabel("text of")
        axis.set_title(
            "rows of, in the same order", fontsize=SMALL_TEXT, weight="normal", loc="center"
        )
        bar = figure.colorbar(image, ax=axis, fraction=0.03, aspect=30, label="AUC, percent")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        base, split = rows.base.iloc[0], rows.split.iloc[0]
        footnote(
            figure,
            f"Base model {base}, split {split}, one generator. {diagonal_words(cells)}",
            "Empty: not measured." if np.isnan(numbers).any() else "",
            f"n = {len(tasks)} tasks, {np.isfinite(numbers).sum():,} adapters and sets of rows.",
        )
    return figure


def diagonal_words(cells: pd.DataFrame) -> str:
    """The mean of the own and of other texts, and how often the own text is the best, in words.

    `cells` is AUC in percent by text (rows) and task (columns), in the same order.
    """
    numbers = cells.to_numpy()
    diagonal = np.eye(len(numbers), dtype=bool)
    best = np.nanargmax(np.where(np.isnan(numbers), -np.inf, numbers), axis=0)
    hits = int((best == np.arange(len(numbers))).sum())
    return (
        f"Own text (diagonal): mean {np.nanmean(numbers[diagonal]):.1f}; other texts: mean "
        f"{np.nanmean(numbers[~diagonal]):.1f}. The own text is the best of all for {hits} of "
        f"{len(numbers)} tasks."
    )


def _words(task: str) -> str:
    """The name of a task without split and set, shortened."""
    name = task.partition("/")[2].partition(".")[2] or task
    name = name.replace("_", " ").replace("-", " ")
    return name if len(name) <= 30 else f"{name[:28]}…"
