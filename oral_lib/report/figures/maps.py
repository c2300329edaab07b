"""The map of the zoo: adapters, averages and samples in the plane of its two leading axes.

Every function returns a matplotlib Figure.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import (
    BLUE,
    FAINT,
    INK,
    LOOKS,
    TINY_TEXT,
    Look,
    extent,
    footnote,
    key,
    legend,
    mark_of,
    new_figure,
    styled,
)
from oral_lib.report.names import task_words

_KINDS = {  # in the order in which they are drawn
    "generated_free": LOOKS["generated_free"],
    "generated_span": LOOKS["generated_span"],
    "generated": LOOKS["generated"]._replace(label="generated, projection hull"),
    "adapter": LOOKS["trained"]._replace(label="adapter of the zoo"),
    "held_out": Look("held-out adapter", BLUE, "x"),
    "average": LOOKS["soup_task"],
}
_ZOOMED = 12  # most panels of single tasks


def zoo_map(maps: pd.DataFrame) -> Figure:
    """The whole zoo of one base model, and one panel per task that is zoomed to the task's points.

    Args:
        maps: rows of maps.csv, of one experiment, source and base model.
    """
    tasks = list(dict.fromkeys(maps.task))
    zoomed = tasks[:_ZOOMED]
    n_columns = 4
    n_rows = -(-len(zoomed) // n_columns)
    with styled():
        figure = new_figure(0.9 + 3.4 + 1.75 * n_rows)
        grid = figure.add_gridspec(n_rows + 1, n_columns, height_ratios=[3.4, *[1.75] * n_rows])
        whole = figure.add_subplot(grid[0, :])
        _points(whole, maps, size=4.5)
        share = 100 * maps.share.iloc[0]
        whole.set_xlabel("first principal axis of the zoo's adapters", fontsize=TINY_TEXT)
        whole.set_ylabel("second", fontsize=TINY_TEXT)
        whole.margins(0.08)
        for i, task in enumerate(zoomed):
            axis = figure.add_subplot(grid[1 + i // n_columns, i % n_columns])
            _points(axis, maps[maps.task == task], size=5)
            axis.set_title(task_words(task), fontsize=9, pad=3, weight="normal")
            axis.margins(0.15)
        for axis in figure.axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color=FAINT)
        drawn = [kind for kind in _KINDS if kind in set(maps.kind)]
        legend(figure, [key(_KINDS[kind], size=6) for kind in drawn])
        counts = maps.groupby(["kind", "task"]).size()
        numbers = ", ".join(f"{extent(counts[kind])} {_NOUNS[kind]}" for kind in drawn)
        footnote(
            figure,
            f"{maps.base.iloc[0]}: above all tasks, below each task by itself, every panel with a",
            f"scale of its own. Both axes have {share:.0f}% of the zoo's variance.",
            f"n a task: {numbers}.",
        )
        _names(figure, whole, maps)
    return figure


_NOUNS = {
    "adapter": "adapters", "held_out": "held out", "average": "average(s)",
    "generated": "samples with projection hull", "generated_span": "with span",
    "generated_free": "without projection",
}  # fmt: skip


def _points(axis: Axes, rows: pd.DataFrame, size: float) -> None:
    for kind, look in _KINDS.items():
        part = rows[rows.kind == kind]
        axis.plot(part.x, part.y, **mark_of(look, size=size, alpha=0.85))


def _names(figure: Figure, axis: Axes, maps: pd.DataFrame) -> None:
    """Write the tasks' names near their points, where they cover neither points nor names."""
    figure.draw_without_rendering()  # the transforms are only valid once drawn
    pixel = figure.dpi / 72
    size = 5.0 * pixel
    points = axis.transData.transform(maps[["x", "y"]].to_numpy())
    boxes = [(x, y, size, size) for x, y in points]
    inverse = axis.transData.inverted()
    low, high = axis.bbox.extents[:2], axis.bbox.extents[2:]
    for task, part in maps[maps.kind == "adapter"].groupby("task", sort=False):
        centre = axis.transData.transform(part[["x", "y"]].mean().to_numpy())
        words = task_words(str(task)).replace("\n", " ")
        sides = np.array([0.62 * TINY_TEXT * len(words) + 4, 1.5 * TINY_TEXT]) * pixel
        for place in _around(centre, 3 * pixel):
            inside = (place - sides / 2 > low).all() and (place + sides / 2 < high).all()
            box = (*place, *sides)
            if inside and not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
                axis.annotate(
                    words, inverse.transform(place), ha="center", va="center", fontsize=TINY_TEXT,
                    color=INK,
                )  # fmt: skip
                break


def _around(centre: np.ndarray, step: float) -> Iterator[np.ndarray]:
    """Places at growing distances from `centre`, above it first."""
    for radius in range(1, 90):
        for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            yield centre + radius * step * np.array([np.sin(angle), np.cos(angle)])


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether two boxes (x and y of the centre, width, height) overlap."""
    (x, y, width, height), (u, v, w, h) = first, second
    return abs(x - u) < (width + w) / 2 and abs(y - v) < (height + h) / 2
