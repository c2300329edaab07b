"""The figure of the ablations: one panel per group of variants."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.evaluation.schema import REFERENCE
from oral_lib.report.figures.theme import (
    FAINT,
    INK,
    LOOKS,
    extent,
    footnote,
    key,
    legend,
    mark_of,
    new_figure,
    note,
    signed_tick,
    styled,
)
from oral_lib.report.studies.ablation_summary import ablation_differences

_LOOKS = {name: LOOKS[name] for name in ("trained", "base")} | {"soup": LOOKS["soup_task"]}
_DEFAULT = LOOKS["generated"]._replace(label="default")
_VARIANT = LOOKS["generated"]._replace(label="variant", mark=".")
_WORDS = {  # published names in the field's words
    "a draw an adapter": "noise per adapter",
    "a draw a token": "noise per token",
    "the mean is read": "mean as input",
    "not turned": "not rotated",
    "shares of the zoo": "hull",
    "any shares": "span",
    "each token by itself": "none",
    "x_t as it is": "x_t unscaled",
}
_EDGES = (1, 1.5, 2, 3, 4, 6, 10)  # half the width of the panels, in points


def ablation_figure(rows: pd.DataFrame) -> Figure:
    """The effect of each part of the generator: variants minus the default, in points.

    Every variant is compared with the default on its own tasks and generator seeds (see
    `ablation_differences`). The first group has the adapters that the generator is measured by.

    Args:
        rows: of ablations.csv, of one source.
    """
    rows = rows[rows.metric == "accuracy"]
    table = ablation_differences(rows)
    groups = [(name, part) for name, part in table.groupby("group", sort=False)]
    groups.sort(key=lambda group: group[0] != REFERENCE)
    ends = [100 * abs(x) for x in (*table.difference, *table.low, *table.high)]
    most = float(np.quantile(ends, 0.85)) if ends else 1.0
    edge = next((step for step in _EDGES if step >= most), _EDGES[-1])
    columns = _columns(groups)
    height = max(sum(len(part) + 1.5 for _, part in column) for column in columns)
    with styled():
        figure = new_figure(1.3 + 0.21 * height)
        outer = figure.add_gridspec(1, len(columns))
        for side, column in enumerate(columns):
            ratios = [len(part) + 0.4 for _, part in column]
            spare = height - sum(len(part) + 1.5 for _, part in column)
            ratios += [spare] * (spare > 0)
            inner = outer[side].subgridspec(len(ratios), 1, height_ratios=ratios)
            for i, (group, part) in enumerate(column):
                axis = figure.add_subplot(inner[i])
                axis.set_title(group, pad=3)
                _variants(axis, part, edge)
                if i + 1 < len(column):
                    axis.tick_params(labelbottom=False)
        handles = [key(_DEFAULT), key(_VARIANT, size=9)]
        handles += [key(_LOOKS[name], name) for name in _LOOKS if name in set(table.variant)]
        legend(figure, handles)
        footnote(
            figure,
            "Validation accuracy minus that of the default on the same tasks and generator seeds,",
            "in points. Line: conservative 95% interval. Right: accuracy in percent, and seeds.",
            "Groups of more seeds have another accuracy of the default."
            if table[table.default].n_seeds.nunique() > 1
            else "",
            f"Marks at ±{edge:g} lie further out." if max(ends, default=0) > edge else "",
            _counts(rows),
        )
    return figure


def _counts(rows: pd.DataFrame) -> str:
    """The numbers of base models, tasks, rows and samples, as a sentence."""
    words = [f"{rows[name].nunique()} {noun}" for name, noun in _UNITS.items() if name in rows]
    if "n_items" in rows:
        words.append(f"{extent(rows.n_items)} rows a task")
    if "n_samples" in rows:
        words.append(f"{extent(rows[rows.default].n_samples)} samples")
    return f"n: {', '.join(words)}." if words else ""


_UNITS = {"base": "base model(s)", "task": "tasks"}


def _columns(groups: list[tuple[str, pd.DataFrame]]) -> list[list[tuple[str, pd.DataFrame]]]:
    """The groups in one column, or from three groups on in two of about the same height."""
    sizes = [len(part) + 1.5 for _, part in groups]
    if len(groups) < 3:
        return [groups]
    cut = min(range(1, len(groups)), key=lambda i: max(sum(sizes[:i]), sum(sizes[i:])))
    return [groups[:cut], groups[cut:]]


def _variants(axis: Axes, rows: pd.DataFrame, edge: float) -> None:
    """The variants of a group: differences, intervals, and at the right accuracy and seeds."""
    axis.axvline(0, color=INK, lw=0.8, zorder=0)
    for y, row in enumerate(rows.itertuples()):
        look = _DEFAULT if row.default else _LOOKS.get(row.variant, _VARIANT)
        axis.axhline(y, color=FAINT, lw=1, zorder=-1)
        if not row.default:
            ends = np.clip([100 * row.low, 100 * row.high], -edge, edge)
            axis.plot(ends, [y, y], color=look.colour, lw=1.4)
        x = np.clip(100 * row.difference, -0.95 * edge, 0.95 * edge)
        axis.plot(x, y, **mark_of(look, size=9 if look is _VARIANT else 6))
        note(axis, 1.03, y, f"{100 * row.value:.1f}  ({row.n_seeds})", ha="left", colour=INK)
    axis.set_yticks(range(len(rows)), [_words(row) for row in rows.itertuples()], fontsize=9)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-edge, edge))
    axis.xaxis.set_major_formatter(signed_tick)
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)


def _words(row) -> str:
    """The name of a variant; the default is marked."""
    name = str(row.variant)
    for published, words in _WORDS.items():
        name = name.replace(published, words)
    return f"{name} (default)" if row.default else name
