"""The figures of control: accuracy against guidance, mixed texts, and a wrong base description.

Every function returns a matplotlib Figure. Thin marks are samples, lines connect their means.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oral_lib.report.figures.theme import (
    DASHED,
    LOOKS,
    PALE,
    SMALL_TEXT,
    footnote,
    key,
    legend,
    mark_of,
    styled,
    subplots,
)
from oral_lib.report.names import task_words

_REFERENCES = ("base", "trained")
_LINES = {"texts": "-", "conditions": DASHED}


def guidance_figure(guided: pd.DataFrame, references: pd.DataFrame) -> Figure:
    """Accuracy against guidance: one panel per task, with base model and zoo as lines.

    Args:
        guided: rows of `control.guidance`.
        references: rows of `control.references`.
    """
    tasks = list(dict.fromkeys(guided.task))
    n_columns = min(4, len(tasks))
    n_rows = -(-len(tasks) // n_columns)
    look = LOOKS["generated"]
    with styled():
        figure, axes = subplots(
            n_rows, n_columns, height=1.1 + 2.0 * n_rows, sharex=True, sharey=True, squeeze=False
        )
        for axis in axes.flat[len(tasks) :]:
            axis.set_visible(False)
        for axis, task in zip(axes.flat, tasks, strict=False):
            _lines(axis, references[references.task == task])
            rows = guided[guided.task == task]
            axis.plot(rows.guidance, 100 * rows.accuracy, **mark_of(look, size=4, alpha=0.4))
            means = 100 * rows.groupby("guidance").accuracy.mean()
            axis.plot(means.index, means, color=look.colour, lw=1.8)
            axis.axvline(1, color=PALE, lw=0.8, ls=":")
            axis.set_title(task_words(task))
        _label(axes, "guidance", "accuracy, percent")
        legend(figure, _keys())
        footnote(
            figure,
            "Guidance 0: no text. 1 (dotted): the default. Lines: means of the samples.",
            f"n: {guided['sample'].nunique()} samples a point.",
        )
    return figure


def interpolation_figure(mixed: pd.DataFrame, references: pd.DataFrame) -> Figure:
    """Accuracy on two tasks against the weight of the second one's description: a panel a task.

    Args:
        mixed: rows of `control.interpolation`.
        references: rows of `control.references`.
    """
    tasks, look = list(dict.fromkeys(mixed.task)), LOOKS["generated"]
    with styled():
        figure, axes = subplots(1, len(tasks), height=3.4, sharey=True, squeeze=False)
        for axis, task in zip(axes.flat, tasks, strict=True):
            _lines(axis, references[references.task == task])
            for name, rows in mixed[mixed.task == task].groupby("mixed"):
                means = 100 * rows.groupby("weight").accuracy.mean()
                axis.plot(means.index, means, color=look.colour, lw=1.8, ls=_LINES[name])
                axis.plot(rows.weight, 100 * rows.accuracy, **mark_of(look, size=4, alpha=0.4))
            axis.set_title(f"rows of {task_words(task)}")
        _label(axes, f"weight of the description of {task_words(tasks[-1])}", "accuracy, percent")
        legend(figure, _keys())
        footnote(
            figure,
            f"Weight 0: the description of {task_words(tasks[0])}.",
            "Solid: mixed text embeddings. Dashed: mixed conditions of the network.",
            f"n: {mixed['sample'].nunique()} samples a point.",
        )
    return figure


def wrong_base_figure(wrong: pd.DataFrame, references: pd.DataFrame) -> Figure:
    """Accuracy by what the network reads of the base model: one panel per task.

    Args:
        wrong: rows of `control.wrong_base`.
        references: rows of `control.references`.
    """
    tasks, look = list(dict.fromkeys(wrong.task)), LOOKS["generated"]
    names = list(dict.fromkeys(wrong.described))
    n_columns = min(4, len(tasks))
    n_rows = -(-len(tasks) // n_columns)
    with styled():
        figure, axes = subplots(
            n_rows, n_columns, height=1.0 + 1.5 * n_rows, sharex=True, sharey=True, squeeze=False
        )
        for axis in axes.flat[len(tasks) :]:
            axis.set_visible(False)
        for axis, task in zip(axes.flat, tasks, strict=False):
            for value in references[references.task == task][list(_REFERENCES)].iloc[0].items():
                axis.axvline(100 * value[1], color=LOOKS[value[0]].colour, lw=1.4, ls=DASHED)
            for height, name in enumerate(names):
                rows = wrong[(wrong.task == task) & (wrong.described == name)]
                values = 100 * rows.accuracy
                axis.plot(values, [height] * len(rows), **mark_of(look, size=4, alpha=0.4))
                axis.plot([values.mean()], [height], **mark_of(look, size=7))
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.set_title(task_words(task))
        figure.supylabel("")
        legend(figure, _keys())
        others = ", ".join(dict.fromkeys(wrong.other))
        footnote(
            figure,
            "Accuracy in percent by what the network reads of the base model. Large marks: means.",
            f"The wrong description belongs to {others}.",
            f"n: {wrong.groupby(['task', 'described']).size().max()} samples a line.",
        )
    return figure


def _keys() -> list[Line2D]:
    """The entries of the legend: samples, and the lines of the references."""
    lines = [
        Line2D([], [], color=LOOKS[n].colour, lw=1.4, ls=DASHED, label=LOOKS[n].label)
        for n in _REFERENCES
    ]
    return [key(LOOKS["generated"]), *lines]


def _lines(axis: Axes, references: pd.DataFrame) -> None:
    """Horizontal lines at the accuracy of the base model and of the zoo."""
    for name in _REFERENCES:
        for value in 100 * references[name]:
            axis.axhline(value, color=LOOKS[name].colour, lw=1.4, ls=DASHED, zorder=0)


def _label(axes, x: str, y: str) -> None:
    """Labels of the outer axes."""
    for axis in axes[-1]:
        axis.set_xlabel(x, fontsize=SMALL_TEXT)
    for line in axes:
        line[0].set_ylabel(y, fontsize=SMALL_TEXT)
