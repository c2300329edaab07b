"""The figures of one cell, or of a few: the accuracy of every method, and of every prompt.

Every figure function returns a matplotlib Figure: a notebook shows it once,
`theme.save_figure` writes it.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import (
    BLUE,
    DASHED,
    FAINT,
    GREY,
    INK,
    LOOKS,
    ORANGE,
    PALE,
    TEXT_LOOKS,
    TINY_TEXT,
    Look,
    extent,
    footnote,
    mark_of,
    note,
    styled,
    subplots,
)
from oral_lib.report.names import task_words

_ORDER = [  # from the top
    "generated", "generated_span", "generated_free", "trained", "router", "soup_task", "retrieval",
    "regression", "gaussian", "noise_small", "soup_all", "noise_large", "unconditional",
    "multitask", "linear_probe", "base", "majority",
]  # fmt: skip
_REFERENCES = {"base": GREY, "trained": BLUE}


def methods(rows: pd.DataFrame, samples: pd.DataFrame | None = None) -> Figure:
    """One panel per base model and task: every method's accuracy with its 95% interval.

    `rows` are from `comparisons.pooled`, of one experiment, source and metric. `samples` are from
    `comparisons.per_sample`; they are drawn as ticks below methods with several samples. The band
    is trained ± half a point.
    """
    plain = ["none", "matched"]
    rows = rows[rows.condition.isin(plain) & rows.method.isin(_ORDER)]
    both = rows.duplicated(["base", "task", "method", "metric"], keep=False)  # soup_task
    rows = rows[~both | (rows.condition == "none")]
    return _interval_panels(rows, "method", {name: LOOKS[name] for name in _ORDER}, samples)


def conditions(rows: pd.DataFrame, samples: pd.DataFrame | None = None) -> Figure:
    """One panel per base model and task: generated from the task's own and from other prompts.

    Lines mark the base model and the trained LoRA. Arguments as in `methods`.
    """
    return _interval_panels(rows, "condition", TEXT_LOOKS, samples)


def _interval_panels(
    rows: pd.DataFrame, column: str, looks: Mapping[str, Look], samples: pd.DataFrame | None
) -> Figure:
    """One panel per base model and task, one line per value of `column`.

    Args:
        rows: pooled metrics.
        column: "method" or "condition" (of generated only).
        looks: of each value of `column`.
        samples: values per sample, drawn as ticks.
    """
    drawn = rows if column == "method" else rows[rows.method == "generated"]
    looks = {name: look for name, look in looks.items() if name in set(drawn[column])}
    cells = list(rows.groupby(["base", "task"], sort=False))
    n_columns = 2 if len(cells) == 4 else min(3, max(1, len(cells)))
    n_rows = -(-len(cells) // n_columns)
    visible = drawn if column == "method" else rows[rows.index.isin(drawn.index) | _lines(rows)]
    low = np.floor(100 * visible.ci_low.min() / 10 - 0.2) * 10
    high = np.ceil(100 * visible.ci_high.max() / 10 + 0.2) * 10
    with styled():
        figure, axes = subplots(
            n_rows, n_columns, height=0.8 + n_rows * (0.6 + 0.26 * len(looks)), sharex=True,
            sharey=True, squeeze=False,
        )  # fmt: skip
        for axis in axes.flat[len(cells) :]:
            axis.set_visible(False)
        for axis, ((base, task), cell) in zip(axes.flat, cells, strict=False):
            axis.set_title(f"{task_words(task)}, {base}", fontsize=9.5, pad=4)
            _references(axis, cell, column)
            entries = drawn.loc[drawn.index.isin(cell.index)]
            for y, (name, look) in enumerate(looks.items()):
                axis.axhline(y, color=FAINT, lw=1, zorder=0)
                for row in entries[entries[column] == name].itertuples():
                    _interval(axis, row, y, look)
                    if samples is not None:
                        _ticks(axis, samples, row, y, look)
            axis.set_yticks(range(len(looks)), [look.label for look in looks.values()])
            axis.set(ylim=(len(looks) - 0.4, -0.6), xlim=(max(0, low), min(100, high)))
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
        lines = "dashed: base model and trained" if column == "condition" else "band: within half a"
        footnote(
            figure,
            "Accuracy in percent; mark: mean, bar: 95% interval over rows, ticks: single samples,",
            f"{lines}." if column == "condition" else f"{lines} point of trained.",
            f"n = {extent(drawn.n_items)} rows,",
            f"{extent(_counts(drawn, 'generated'))} generated samples and",
            f"{extent(_counts(rows, 'trained'))} trained adapters a cell.",
        )
    return figure


def _counts(rows: pd.DataFrame, method: str) -> list[int]:
    return list(rows[rows.method == method].n_samples) or [0]


def _lines(rows: pd.DataFrame) -> pd.Series:
    """The rows of the methods that the figure of the prompts draws as lines."""
    return rows.method.isin(_REFERENCES)


def _references(axis: Axes, cell: pd.DataFrame, column: str) -> None:
    """Vertical lines at the base model and trained; next to methods a band around trained."""
    for method, colour in _REFERENCES.items() if column == "condition" else ():
        for value in 100 * cell[cell.method == method].value:
            axis.axvline(value, color=colour, lw=1.6, ls=DASHED, zorder=1)
    for value in 100 * cell[cell.method == "trained"].value if column == "method" else ():
        axis.axvspan(value - 0.5, value + 0.5, color=BLUE, alpha=0.12, lw=0, zorder=0)


def _interval(axis: Axes, row, y: int, look: Look) -> None:
    value, ends = 100 * row.value, (100 * row.ci_low, 100 * row.ci_high)
    axis.plot(ends, [y, y], color=look.colour, lw=2, solid_capstyle="butt")
    axis.plot(value, y, **mark_of(look))
    colour = INK if look.colour == ORANGE else PALE
    note(axis, 1.02, y, f"{value:.1f}", ha="left", size=TINY_TEXT, colour=colour)


def _ticks(axis: Axes, samples: pd.DataFrame, row, y: int, look: Look) -> None:
    """A tick per sample of the row's method, if there are several."""
    columns = ["base", "task", "method", "condition"]
    values = samples[(samples[columns] == [getattr(row, c) for c in columns]).all(axis=1)].value
    if len(values) > 1:
        heights = np.full(len(values), y + 0.33)
        axis.plot(100 * values, heights, "|", ms=5, mew=1, color=look.colour, alpha=0.75)
