"""The figure of the ablations: one panel per group of variants."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.evaluation.schema import REFERENCE
from oral_lib.report.figures.theme import (
    BLUE,
    DASHED,
    FAINT,
    GREY,
    INK,
    VERMILION,
    new_figure,
    note,
    styled,
)


def ablation_figure(
    means: pd.DataFrame, trained: float | None = None, label: str = "accuracy in percent"
) -> Figure:
    """The effect of each part of the generator: one panel per group, one line per variant.

    Args:
        means: rows of `ablation_means`, in the order in which they are drawn. The variants of the
            group "reference" (trained, soup, base) are vertical lines through all panels. A base
            model far below the others is written in words instead.
        trained: a further reference line, as a share.
        label: of the horizontal axis.
    """
    references = means[means.group == REFERENCE].groupby("variant", sort=False).value.mean()
    lines = dict(references) | ({} if trained is None else {"trained": trained})
    means = means[means.group != REFERENCE]
    ends = [*means.ci_low, *means.ci_high, *(v for name, v in lines.items() if name != "base")]
    margin = 0.04 * (max(ends) - min(ends)) or 0.01
    limits = (100 * (min(ends) - margin), 100 * (max(ends) + margin))
    legend = "filled: the default at that commit; bar: 95% interval over items"
    if 100 * lines.get("base", 1) < limits[0]:
        legend += f"; base model: {100 * lines.pop('base'):.1f}"
    columns = _columns(list(means.groupby("group", sort=False)))
    height = max(sum(len(rows) + 1.4 for _, rows in column) for column in columns)
    with styled():
        figure = new_figure(figsize=(6.2 * len(columns), 0.9 + 0.31 * height))
        outer = figure.add_gridspec(1, len(columns))
        for side, column in enumerate(columns):
            ratios = [len(rows) + 0.4 for _, rows in column]
            spare = height - sum(len(rows) + 1.4 for _, rows in column)
            ratios += [spare] * (spare > 0)
            inner = outer[side].subgridspec(len(ratios), 1, height_ratios=ratios)
            for i, (group, rows) in enumerate(column):
                axis = figure.add_subplot(inner[i])
                axis.set_title(f"{group}\n" if i == 0 and lines else group, fontsize=12)
                _references(axis, lines, limits, labelled=i == 0)
                _variants(axis, rows, limits)
                if i + 1 == len(column):
                    axis.set_xlabel(label)
                else:
                    axis.tick_params(labelbottom=False)
        figure.supxlabel(legend, fontsize=10.5)
    return figure


def _columns(groups: list[tuple[str, pd.DataFrame]]) -> list[list[tuple[str, pd.DataFrame]]]:
    """The groups in one column, or from three groups on in two of about the same height."""
    total = sum(len(rows) for _, rows in groups)
    half = total / 2 if len(groups) > 2 else total
    columns, count = [[]], 0
    for group in groups:
        if columns[0] and len(columns) == 1 and count + len(group[1]) / 2 > half:
            columns.append([])
        columns[-1].append(group)
        count += len(group[1])
    return columns


def _references(
    axis: Axes, lines: Mapping[str, float], limits: tuple[float, float], labelled: bool
) -> None:
    """Vertical lines at the references, with names above the panel that do not overlap."""
    close, previous = 0.08 * (limits[1] - limits[0]), -np.inf
    positions = sorted(100 * value for value in lines.values())
    for name, value in sorted(lines.items(), key=lambda line: line[1]):
        colour, x = BLUE if name == "trained" else GREY, 100 * value
        axis.axvline(x, color=colour, lw=1.4, ls=DASHED, zorder=0)
        touches = any(0 < other - x < close for other in positions)
        side = "left" if x - previous < close else "right" if touches else "center"
        if labelled:
            axis.annotate(
                name, (x, 1), (2 * (side == "left"), 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", color=colour, ha=side, fontsize=9.5,
            )  # fmt: skip
        previous = x


def _variants(axis: Axes, rows: pd.DataFrame, limits: tuple[float, float]) -> None:
    """The variants of a group with their intervals; the default is filled and coloured."""
    for height, row in enumerate(rows.itertuples()):
        colour = VERMILION if row.default else INK
        axis.axhline(height, color=FAINT, lw=1, zorder=-1)
        axis.plot([100 * row.ci_low, 100 * row.ci_high], [height] * 2, color=colour, lw=2)
        face = colour if row.default else "white"
        axis.plot(100 * row.value, height, "o", ms=7, color=colour, mfc=face, mew=1.6)
        note(axis, 1.02, height, f"{100 * row.value:.1f}", ha="left", colour=colour)
    axis.set_yticks(range(len(rows)), [str(name) for name in rows.variant], fontsize=10.5)
    for label, row in zip(axis.get_yticklabels(), rows.itertuples(), strict=True):
        label.set_color(VERMILION if row.default else INK)
    axis.set(ylim=(len(rows) - 0.5, -0.7), xlim=limits)
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)
