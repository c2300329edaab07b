"""The figure of what an adapter costs: accuracy against labelled rows and seconds.

Every function returns a matplotlib Figure.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from oral_lib.report.figures.theme import (
    FAINT,
    LOOKS,
    extent,
    footnote,
    key,
    legend,
    mark_of,
    styled,
    subplots,
)

_ORDER = ["base", "router", "generated", "trained"]
_KEY = ["base", "task", "method"]
_AXES = {"labelled_rows": "labelled rows of the task", "seconds": "seconds to make one adapter"}


def accuracy_and_cost(rows: pd.DataFrame, costs: pd.DataFrame) -> Figure | None:
    """Accuracy against the labelled rows and the seconds that an adapter of a method takes.

    Large marks are means over cells, small ones single cells. None if no method has both.

    Args:
        rows: from `comparisons.pooled`, of one experiment and source in accuracy.
        costs: rows of costs.csv, of the same experiment and source.
    """
    rows = rows[rows.condition.isin(["none", "matched"]) & rows.method.isin(_ORDER)]
    cells = rows[[*_KEY, "value", "n_items", "n_samples"]].merge(costs, on=_KEY)
    measured = cells.groupby(["base", "task"]).method.transform("nunique")
    cells = cells[measured == cells.method.nunique()]  # means over the same cells
    if cells.empty:
        return None
    means = cells.groupby("method")[["value", *_AXES]].mean()
    drawn = [name for name in _ORDER if name in means.index]
    with styled():
        figure, axes = subplots(1, len(_AXES), height=3.7, sharey=True)
        for axis, (column, label) in zip(axes, _AXES.items(), strict=True):
            aside = 0.02 * cells[column].max() if column == "labelled_rows" else 0.0
            for i, name in enumerate(drawn):
                part, mean = cells[cells.method == name], means.loc[name]
                shift = 0.0 if mean[column] else aside * (i - 1)  # several methods need no rows
                small = mark_of(LOOKS[name], size=3.5, alpha=0.35)
                axis.plot(part[column] + shift, 100 * part.value, **small)
                axis.plot(mean[column] + shift, 100 * mean.value, **mark_of(LOOKS[name], size=9))
            axis.set_xlabel(label)
            axis.grid(color=FAINT, lw=0.8)
            axis.set_axisbelow(True)
        axes[0].xaxis.set_major_formatter("{x:,.0f}")
        _logarithmic(axes[1], cells.seconds)
        axes[0].set_ylabel("accuracy, percent")
        legend(figure, [key(LOOKS[name], size=8) for name in drawn])
        values = ", ".join(f"{LOOKS[n].label} {100 * means.value[n]:.1f}" for n in drawn)
        footnote(
            figure,
            f"Large: mean over cells ({values}); small: single cells.",
            "Marks at 0 rows are set apart.",
            "Rows and seconds of the zoo and of training the generator are not included.",
            f"n = {len(cells) // len(drawn)} cells, {extent(cells.n_items)} test rows each;",
            f"seconds on {' and '.join(cells.device.unique())}.",
        )
    return figure


def _logarithmic(axis: Axes, values: pd.Series) -> None:
    """A logarithmic axis that has a place for 0, with few ticks."""
    above = values[values > 0]
    least = float(10 ** np.floor(np.log10(above.min()))) if len(above) else 1.0
    axis.set_xscale("symlog", linthresh=least, linscale=0.6)
    axis.set_xlim(-0.3 * least, 2.5 * max(values.max(), least))
    most = int(np.ceil(np.log10(max(values.max(), least) / least)))
    powers = [least * 10**i for i in range(0, most + 1, 1 if most < 6 else 2)]
    ticks = [0.0, *(tick for tick in powers if tick <= 2.5 * values.max())]
    axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
