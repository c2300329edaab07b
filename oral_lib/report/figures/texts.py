"""The heat map of texts and tasks: accuracy of adapters made from one task's sentence on another.

Every function returns a matplotlib Figure.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from oral_lib.report.figures.theme import (
    FAINT,
    INK,
    SMALL_TEXT,
    TINY_TEXT,
    extent,
    footnote,
    styled,
    subplots,
)
from oral_lib.report.names import task_words

_COLOURS = "cividis"  # one order of lightness, the same for readers with deuteranopia
_NO_TASK = ["random", "empty"]  # texts that describe no task
_WORDS = {"random": "random words", "empty": "empty prompt"}
_KEY = ["task", "seed", "condition", "sample"]


def text_by_task(items: pd.DataFrame, texts: pd.DataFrame) -> Figure | None:
    """Accuracy by whose sentence was given (rows) and whose test rows were answered (columns).

    The diagonal is framed: the task's own sentences. Cells that were not measured are empty. None
    if no sample has both a text and outcomes.

    Args:
        items: outcomes of `generated` on one base model of one experiment and source.
        texts: rows of texts.csv on the same base model.
    """
    items = items[items.method.astype(str) == "generated"]
    means = items.astype({name: str for name in ("task", "condition")})
    means = means.groupby(_KEY, as_index=False).correct.agg(["mean", "size"])
    means = means.merge(texts[[*_KEY, "text_of", "router", "retrieval"]], on=_KEY)
    if means.empty:
        return None
    tasks = [name for name in dict.fromkeys(texts.task) if name in set(means.task)]
    given = [*tasks, *sorted({*means.text_of} - {*tasks, *_NO_TASK})]
    given += [name for name in _NO_TASK if name in set(means.text_of)]
    cells = means.groupby(["text_of", "task"])["mean"].mean().unstack()
    cells = 100 * cells.reindex(index=given, columns=tasks)
    with styled():
        figure, axis = subplots(height=1.9 + 0.3 * len(given) + 0.1 * _longest(tasks))
        colours = matplotlib.colormaps[_COLOURS]
        low, high = np.nanmin(cells.to_numpy()), np.nanmax(cells.to_numpy())
        axis.set_facecolor(FAINT)
        image = axis.imshow(cells, cmap=colours, vmin=low, vmax=high, aspect="auto")
        for (y, x), value in np.ndenumerate(cells.to_numpy()):
            if np.isfinite(value):
                dark = value < (low + high) / 2
                colour = "white" if dark else INK
                axis.text(
                    x, y, f"{value:.0f}", ha="center", va="center", color=colour, size=TINY_TEXT
                )
        for i in range(len(tasks)):
            frame = Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, ec=INK, lw=1.6)
            axis.add_patch(frame)
        axis.set_xticks(range(len(tasks)), [task_words(name) for name in tasks], rotation=90)
        axis.set_yticks(range(len(given)), [_words(name) for name in given])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.xaxis.tick_top()
        axis.set_ylabel("sentence about")
        axis.set_title("test rows of", fontsize=SMALL_TEXT, weight="normal", loc="center")
        bar = figure.colorbar(image, ax=axis, fraction=0.03, aspect=25, label="accuracy, percent")
        bar.outline.set_visible(False)
        footnote(
            figure,
            f"Base model {' and '.join(texts.base.unique())}. Framed: the task's own sentences.",
            "Empty: not measured.",
            _agreement(means),
            f"n a cell: {extent(means.groupby(['text_of', 'task']).size())} samples of "
            f"{means.seed.nunique()} generator(s), {extent(means['size'])} rows each.",
        )
    return figure


def _agreement(means: pd.DataFrame) -> str:
    """How often router and retrieval assign a sentence to its task, as a sentence."""
    named = means[~means.text_of.isin(_NO_TASK)]
    if named.empty:
        return ""
    router, retrieval = (f"{100 * (named[k] == named.text_of).mean():.0f}%" for k in _SELECTORS)
    return f"The router assigns {router} of the sentences to their task, retrieval {retrieval}."


_SELECTORS = ("router", "retrieval")


def _words(name: str) -> str:
    return _WORDS.get(name, task_words(name))


def _longest(tasks: list[str]) -> int:
    return max(len(task_words(name)) for name in tasks)
