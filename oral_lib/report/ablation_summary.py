"""The ablations of the generator: their figure, tables and findings.

The input are rows of ablations.csv: one per group, variant, base model, task, seed and metric.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.evaluation.schema import REFERENCE
from oral_lib.report.theme import (
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

_SHARES = ["accuracy", "spread", "unseen", "other", "zeros"]  # metrics shown in percent


# ---------------------------------------------------------------- tables
def ablation_means(rows: pd.DataFrame) -> pd.DataFrame:
    """[group, variant, default, value, ci_low, ci_high]: mean accuracy over bases, tasks and seeds.

    Tasks have separate items, so the errors of their means add in quadrature. The seeds of a task
    share its items, so their intervals are averaged. The order of groups and variants is kept.
    """
    rows = rows[rows.metric == "accuracy"]
    place = ["group", "variant", *(name for name in ("base", "task") if name in rows)]
    rows = rows.assign(below=rows.value - rows.ci_low, above=rows.ci_high - rows.value)
    mean = {"value": "mean", "default": "all", "below": "mean", "above": "mean"}
    if len(place) > 2:
        rows = rows.groupby(place, as_index=False, sort=False).agg(mean)
    rows = rows.assign(below=rows.below**2, above=rows.above**2, count=1)
    groups = rows.groupby(["group", "variant"], as_index=False, sort=False)
    means = groups.agg(mean | {"below": "sum", "above": "sum", "count": "sum"})
    low = means.value - np.sqrt(means.below) / means["count"]
    high = means.value + np.sqrt(means.above) / means["count"]
    columns = ["group", "variant", "default", "value"]
    return means[columns].assign(ci_low=low, ci_high=high)


def ablation_metrics(rows: pd.DataFrame) -> pd.DataFrame:
    """Every metric as a column, indexed by [group, variant]: the mean over bases, tasks and seeds.

    Shares are in percent. The default of a group is marked with a star.
    """
    names = rows.variant.astype(str) + np.where(rows.default, " *", "")
    table = rows.assign(variant=names).pivot_table(
        index=["group", "variant"], columns="metric", values="value", aggfunc="mean", sort=False
    )
    table = table.reindex(columns=[*_SHARES, "denoising", "seconds", "parameters"])
    table[_SHARES] = 100 * table[_SHARES]
    return table


# ---------------------------------------------------------------- findings
def ablation_findings(rows: pd.DataFrame) -> list[str]:
    """One sentence per group: does a variant exceed the default by more than the item noise?

    The intervals of variants are treated as independent although all share the same items. The test
    is therefore conservative.
    """
    findings, means = [], ablation_means(rows)
    for group, variants in means[means.group != REFERENCE].groupby("group", sort=False):
        if not variants.default.any():
            findings.append(f"{group}: the default has not been measured.")
            continue
        default = variants[variants.default].iloc[0]
        best = variants.loc[variants.value.idxmax()]
        text = f"{group}: the default, {default.variant}, reaches {default.value:.1%}"
        if best.value <= default.value:
            findings.append(f"{text}; no variant is above it.")
            continue
        if group == "statistics":
            other = rows[(rows.group == group) & ~rows.default & (rows.metric == "other")]
            findings.append(
                f"{text}; with statistics per task {best.value:.1%}, and {other.value.mean():.1%} "
                "with a wrong-task prompt: the statistics encode the task."
            )
            continue
        gap = best.value - default.value
        error = np.hypot(default.ci_high - default.value, best.value - best.ci_low)
        within = "more than" if gap > error else "within"
        findings.append(
            f"{text}; {best.variant} is {100 * gap:.1f} points above, {within} the item noise."
        )
    return findings


# ---------------------------------------------------------------- figure
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
