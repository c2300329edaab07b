"""The figures of labelled rows: AUC against equivalent rows, and a sentence with a few rows.

Every function returns a matplotlib Figure, with a column a base model and a row a split.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from oral_lib.report.figures.theme import (
    BAND,
    BLUE,
    FAINT,
    INK,
    LOOKS,
    ORANGE,
    PALE,
    TINY_TEXT,
    extent,
    footnote,
    key,
    legend,
    mark_of,
    styled,
    subplots,
)
from oral_lib.report.intents.outcomes import FEW_ROWS
from oral_lib.report.intents.tables import curve_ends

DRAWN = [  # from below to the top
    "prompted", "prompted_4", "retrieval", "soup_nearest", "mixture", "regression", "zero_shot",
    "multitask", "multitask_described", "trained", "generated", "generated_through_base",
]  # fmt: skip
_WITH_INTERVAL = ("multitask_described", "generated_through_base")
_BEYOND = 2.2  # factor: the places of "< 1" and "> 32" next to the ends of the curve
_CONDITIONS = {0: "", 4: "/matched_4", 16: "/matched_16"}  # by labelled rows
_ROWS_ONLY = {4: "/rows_4", 16: "/rows_16"}


def equivalent_figure(values: pd.DataFrame) -> Figure | None:
    """AUC against equivalent labelled rows: methods as points on the curve of few-shot adapters.

    None without a curve.

    Args:
        values: of `judgements.values`.
    """
    rows = values[(values.metric == "auc") & values.rows.notna()]
    if rows.empty:
        return None
    methods = [name for name in DRAWN if name in set(rows.method)]

    def draw(axis: Axes, cell: pd.DataFrame) -> None:
        first, last = curve_ends(cell)
        _curve(axis, cell)
        for end, side in ((first / _BEYOND, -1), (last * _BEYOND, 1)):
            edges = sorted((end * _BEYOND**side, end * _BEYOND ** (-side / 2)))
            axis.axvspan(*edges, color=BAND, lw=0, zorder=-1)
        for row in _in_order(cell, methods):
            x, low, high = (_place(v, first, last) for v in (row.rows, row.rows_low, row.rows_high))
            if row.method in _WITH_INTERVAL:
                colour = LOOKS[row.method].colour
                axis.plot([low, high], [100 * row.value] * 2, color=colour, lw=1.4)
                axis.plot([x, x], [100 * row.ci_low, 100 * row.ci_high], color=colour, lw=1.4)
            axis.plot(x, 100 * row.value, **mark_of(LOOKS[row.method], size=6.5))
        ticks = [2**i for i in range(int(np.log2(first)), int(np.log2(last)) + 1)]
        ticks = ticks if len(ticks) <= 3 else ticks[:: max(1, len(ticks) // 3)]
        labels = {first / _BEYOND: f"<{first}", last * _BEYOND: f">{last}"}
        _logarithmic(axis, {**{t: f"{t}" for t in ticks if first <= t < last}, **labels})
        axis.set_xlim(first / _BEYOND**2, last * _BEYOND**2)

    handles = [_line_key("few_shot"), *(key(LOOKS[name]) for name in reversed(methods))]
    with styled():
        figure = _panels(rows, draw, handles, "equivalent labelled rows")
        footnote(
            figure,
            "AUC in percent, mean over tasks. Blue: LoRA trained on that many rows of a task, with",
            "its 95% interval over tasks, rows and seeds. A mark lies where that curve, made",
            "monotone, reaches the AUC of the method. Grey ground: beyond the ends of the curve.",
            "Lines through a mark: 95% intervals of rows and of AUC.",
            _sizes(rows),
        )
    return figure


def few_rows_figure(values: pd.DataFrame) -> Figure | None:
    """AUC against labelled rows, of a sentence with rows, of rows only and of trained adapters.

    None if no generated adapter was conditioned on rows.

    Args:
        values: of `judgements.values`.
    """
    rows = values[values.metric == "auc"]
    name = "generated_through_base"
    if not rows.method.str.startswith(f"{name}/matched_").any():
        return None
    look = LOOKS[name]
    orange = {"color": ORANGE, "lw": 1.4}

    def draw(axis: Axes, cell: pd.DataFrame) -> None:
        _curve(axis, cell, marked=True)
        for endings, style in ((_ROWS_ONLY, ":"), (_CONDITIONS, "-")):
            entries = cell.set_index("method")
            entries = {
                k: entries.loc[name + e] for k, e in endings.items() if name + e in entries.index
            }
            aside = 1.0 if style == "-" else 1.12  # lines of intervals do not cover each other
            places = [aside * max(k, 0.5) for k in entries]
            axis.plot(places, [100 * row.value for row in entries.values()], ls=style, **orange)
            for x, row in zip(places, entries.values(), strict=True):
                axis.plot([x, x], [100 * row.ci_low, 100 * row.ci_high], **orange)
                state = None if style == "-" else "undecided"
                axis.plot(x, 100 * row.value, **mark_of(look, state=state, size=6))
        _logarithmic(axis, {0.5: "0", 1: "1", 4: "4", 16: "16", 32: "32"})
        axis.set_xlim(0.38, 42)

    hollow = key(look, "examples only", state="undecided", size=6)
    hollow.set(linestyle=":", color=ORANGE, markeredgecolor=ORANGE)
    filled = key(look, "sentence, then with examples", size=6)
    filled.set(linestyle="-", color=ORANGE, markeredgecolor=INK)
    trained = rows.method.str.startswith(FEW_ROWS).any()
    keys = [filled, hollow, *([_line_key("few_shot")] if trained else [])]
    blue = " Blue: LoRA trained on the rows." if trained else ""
    with styled():
        figure = _panels(rows, draw, keys, "labelled rows of the task")
        footnote(
            figure,
            "AUC in percent, mean over tasks; vertical lines, band: 95% interval over tasks, rows",
            f"and seeds. Orange: one forward pass of the generator.{blue}",
            _sizes(rows[rows.method.str.startswith((name, FEW_ROWS))]),
        )
    return figure


# ---------------------------------------------------------------- panels
def _panels(
    rows: pd.DataFrame,
    draw: Callable[[Axes, pd.DataFrame], None],
    handles: Sequence[Line2D],
    label: str,
) -> Figure:
    """One panel per split (rows) and base model (columns), drawn by `draw`."""
    bases, splits = list(dict.fromkeys(rows.base)), sorted(set(rows.split))
    figure, axes = subplots(
        len(splits), len(bases), height=1.9 + 2.3 * len(splits), sharey="row", squeeze=False
    )
    for line, split in zip(axes, splits, strict=True):
        for axis, base in zip(line, bases, strict=True):
            cell = rows[(rows.base == base) & (rows.split == split)]
            axis.set_title(f"{base}, {split}", fontsize=9.5, pad=4)
            if len(cell):
                draw(axis, cell)
            axis.grid(axis="y", color=FAINT, lw=0.8)
            axis.set_axisbelow(True)
            axis.tick_params(length=0)
        line[0].set_ylabel("AUC, percent")
    for axis in axes[-1]:
        axis.set_xlabel(label)
    legend(figure, handles)
    return figure


def _curve(axis: Axes, cell: pd.DataFrame, *, marked: bool = False) -> None:
    """The curve of adapters trained on few rows, with its interval."""
    few = cell[cell.method.str.fullmatch(rf"{FEW_ROWS}\d+")]
    few = few.assign(k=few.method.str.removeprefix(FEW_ROWS).astype(int)).sort_values("k")
    low, high = 100 * few.ci_low, 100 * few.ci_high
    axis.fill_between(few.k, low, high, color=BLUE, alpha=0.15, lw=0)
    axis.plot(few.k, 100 * few.value, color=BLUE, lw=1.6)
    if marked:
        axis.plot(few.k, 100 * few.value, **mark_of(LOOKS["few_shot"], size=4))


def _line_key(name: str) -> Line2D:
    return Line2D([], [], color=LOOKS[name].colour, lw=1.6, label=LOOKS[name].label)


def _place(rows: float, first: int, last: int) -> float:
    """The horizontal place of a number of rows; next to the ends if it lies beyond them."""
    return first / _BEYOND if rows == 0 else last * _BEYOND if np.isinf(rows) else rows


def _in_order(cell: pd.DataFrame, methods: Sequence[str]) -> list:
    by_name = {row.method: row for row in cell.itertuples()}
    return [by_name[name] for name in methods if name in by_name]


def _logarithmic(axis: Axes, ticks: dict[float, str]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(list(ticks), list(ticks.values()), fontsize=TINY_TEXT, color=PALE)
    axis.xaxis.set_minor_locator(NullLocator())


def _sizes(rows: pd.DataFrame) -> str:
    seeds = int(rows.n_seeds.max())
    return (
        f"n = {extent(rows.n_tasks)} tasks, {extent(rows.n_rows)} rows each, "
        f"{seeds} generator seed{'s' * (seeds > 1)}."
    )
