"""The figures of all cells of a source: one panel per base model, one line per task.

Every function returns a matplotlib Figure. The input are rows of `comparisons.judged`, of one
experiment and source. Differences are in points of a percentage.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oral_lib.report.figures.theme import (
    BAND,
    FAINT,
    INK,
    LOOKS,
    ORANGE,
    TEXT_LOOKS,
    TINY_TEXT,
    footnote,
    key,
    legend,
    mark_of,
    note,
    signed_tick,
    sizes,
    state_keys,
    styled,
    subplots,
)
from oral_lib.report.formats import signed_points
from oral_lib.report.names import task_words
from oral_lib.report.outcomes import BASELINES
from oral_lib.report.tables.grid import impossible, ordered

_RIVALS = ["router", "soup_task", "retrieval", "regression", "multitask"]  # next to generated
_EDGES = (1, 2, 3, 4, 5, 6, 8, 10, 15)  # half the width of a panel, in points


# ---------------------------------------------------------------- generated and trained
def gaps(judged: pd.DataFrame, metric: str = "Accuracy") -> Figure:
    """Generated minus trained in every cell, with the two-level interval and the state.

    Marks of router, average, retrieval, regression and multi-task LoRA lie below. At the right is
    the gain: trained minus the better of base model and majority class.

    Args:
        judged: in `metric`.
        metric: its name in words.
    """
    gap = _by_place(judged, ["generated"], ["trained"])
    gains = _by_place(judged, ["trained"], BASELINES)
    rivals = {name: _by_place(judged, [name], ["trained"]) for name in _RIVALS}
    rivals = {name: cells for name, cells in rivals.items() if cells}
    ends = [100 * x for row in gap.values() for x in (row.ci_low, row.ci_high)]
    others = [100 * row.difference for cells in rivals.values() for row in cells.values()]
    edge = max(_edge(ends), _edge(others))

    def draw(axis: Axes, base: str, task: str, y: int) -> bool:
        row, gain = gap.get((base, task)), gains.get((base, task))
        if row is None:
            return False
        alpha = 1.0 if row.signal else 0.4
        interval = np.clip([100 * row.ci_low, 100 * row.ci_high], -edge, edge)
        axis.plot(interval, [y - 0.17] * 2, color=ORANGE, lw=1.6, alpha=alpha)
        look = mark_of(LOOKS["generated"], state=row.state, alpha=alpha)
        _within(axis, 100 * row.difference, y - 0.17, edge, look)
        for name, cells in rivals.items():
            if (base, task) in cells:
                look = mark_of(LOOKS[name], size=5, alpha=alpha)
                _within(axis, 100 * cells[base, task].difference, y + 0.2, edge, look)
        words = signed_points(gain.difference) if gain else ""
        if row.signal:
            note(axis, 1.03, y, words, ha="left", colour=INK)
        else:
            note(axis, 1.03, y - 0.17, words, ha="left")
            note(axis, 1.03, y + 0.2, "no signal", ha="left", size=TINY_TEXT - 1)
        return True

    handles = [
        *state_keys(gap.values(), "trained"),
        *(key(LOOKS[n], size=5.5) for n in rivals),
    ]
    figure = _grid(judged, draw, handles, (-edge, edge))
    outside = max(map(abs, [*ends, *others]), default=0) > edge
    footnote(
        figure,
        f"{metric} minus that of trained, in points. Line: two-level 95% interval.",
        "Right: gain of trained over the better of base model and majority class.",
        "Pale: no signal." if not all(row.signal for row in gap.values()) else "",
        f"Marks at ±{edge:g} lie further out." if outside else "",
        sizes(judged),
    )
    return figure


def _by_place(judged: pd.DataFrame, what: Sequence[str], against: Sequence[str]) -> dict:
    """The rows of a comparison by (base, task)."""
    rows = judged[judged.what.isin(what) & judged.against.isin(against)]
    return {(row.base, row.task): row for row in rows.dropna(subset="difference").itertuples()}


def _edge(values: Sequence[float]) -> float:
    """Half the width of the panels in points: nine tenths of the values lie within."""
    most = float(np.quantile(np.abs(values), 0.9)) if len(values) else 0.0
    return float(next((step for step in _EDGES if step >= most), _EDGES[-1]))


def _within(axis: Axes, value: float, y: float, edge: float, look: dict) -> None:
    """A mark at `value`, or at the edge of the panel if the value lies further out."""
    axis.plot(np.clip(value, -0.97 * edge, 0.97 * edge), y, **look)


# ---------------------------------------------------------------- control texts
def controls(judged: pd.DataFrame, metric: str = "Accuracy") -> Figure:
    """Generated under each control text minus generated under the task's own, in points.

    The cross is the better of base model and majority class. Arguments as in `gaps`.
    """
    lost = {t: _by_place(judged, [f"generated/{t}"], ["generated"]) for t in TEXT_LOOKS}
    lost = {text: cells for text, cells in lost.items() if cells}
    gains = _by_place(judged, ["generated"], BASELINES)
    ends = [100 * x for c in lost.values() for r in c.values() for x in (r.ci_low, r.ci_high)]
    values = [100 * row.difference for cells in lost.values() for row in cells.values()]
    values += [-100 * row.difference for row in gains.values()]
    room = 0.15 * (max([*values, 1.0]) - min([*values, -1.0]))
    low, high = min([*values, -1.0]) - room, max([*values, 1.0]) + room

    def draw(axis: Axes, base: str, task: str, y: int) -> bool:
        cell = {text: cells[base, task] for text, cells in lost.items() if (base, task) in cells}
        alpha = 1.0 if any(row.signal for row in cell.values()) else 0.4
        if (base, task) in gains:
            look = mark_of(LOOKS["base"], size=6, alpha=alpha)
            axis.plot(-100 * gains[base, task].difference, y, **look)
        for i, (text, row) in enumerate(cell.items()):
            height = y + 0.22 * (i - (len(cell) - 1) / 2)
            interval = [100 * row.ci_low, 100 * row.ci_high]
            axis.plot(interval, [height] * 2, color=ORANGE, lw=1.1, alpha=alpha)
            axis.plot(
                100 * row.difference, height, **mark_of(TEXT_LOOKS[text], size=5, alpha=alpha)
            )
        return bool(cell)

    handles = [key(TEXT_LOOKS[text], size=5.5) for text in lost]
    handles.append(key(LOOKS["base"], "better of base model and majority class"))
    figure = _grid(judged, draw, handles, (low, high))
    rows = [row for cells in lost.values() for row in cells.values()]
    footnote(
        figure,
        f"{metric} of generated under a control text minus that under the task's own prompt, in",
        "points. Line: two-level 95% interval.",
        "Pale: no signal." if not all(row.signal for row in rows) else "",
        "Lines that reach an edge go on." if min(ends) < low or max(ends) > high else "",
        sizes(judged, [f"generated/{text}" for text in lost], "generated"),
    )
    return figure


# ---------------------------------------------------------------- panels
def _grid(
    rows: pd.DataFrame,
    draw: Callable[[Axes, str, str, int], bool],
    handles: Sequence[Line2D],
    limits: tuple[float, float],
) -> Figure:
    """One panel per base model that was run and one line per task.

    Args:
        rows: from `judged`; base models and tasks without generated adapters take no space.
        draw: draws a cell into (axis, base, task, y); False if the cell is missing.
        handles: of the legend.
        limits: of the horizontal axis, in points; a line marks 0.
    """
    rows = rows[rows.what.str.startswith("generated")]
    bases = [name for name in ordered(rows, "base") if name in set(rows.base)]
    tasks = [name for name in ordered(rows, "task") if name in set(rows.task)]
    names = [task_words(name) for name in tasks]
    n_lines = max(name.count("\n") + 1 for name in names)
    with styled():
        figure, axes = subplots(
            1, len(bases), height=1.5 + max(0.42, 0.19 * n_lines) * len(tasks),
            sharex=True, sharey=True, squeeze=False,
        )  # fmt: skip
        for axis, base in zip(axes.flat, bases, strict=True):
            axis.set_title(base, pad=5, fontsize=9.5 if len(bases) > 2 else 10.5)
            for y, task in enumerate(tasks):
                if y % 2 == 0:
                    axis.axhspan(y - 0.5, y + 0.5, color=BAND, lw=0, zorder=-1)
                if not draw(axis, base, task, y):
                    words = "generates no text" if impossible(base, task) else "not run"
                    note(axis, 0.5, y, words, ground="white" if y % 2 else BAND)
            axis.set_yticks(range(len(tasks)), names, fontsize=9.5 if n_lines == 1 else 8.5)
            axis.set(ylim=(len(tasks) - 0.5, -0.5), xlim=limits)
            axis.locator_params(axis="x", nbins=5)
            axis.xaxis.set_major_formatter(signed_tick)
            axis.axvline(0, color=INK, lw=0.8, zorder=0.5)
            axis.grid(axis="x", color=FAINT, lw=0.8)
            axis.set_axisbelow(True)
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
        legend(figure, handles)
    return figure
