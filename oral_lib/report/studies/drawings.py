"""The weight changes of the toy, as drawings."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import PADDING, SMALL_TEXT, styled, subplots


def drawings_figure(rows: Mapping[str, Sequence], columns: Sequence[str]) -> Figure:
    """Weight changes of the toy as drawings: one row for each name, one column for each text.

    Args:
        rows: arrays [24, 24] by name, as many for each.
        columns: a title for each column.
    """
    side = 1.15  # inches
    with styled():
        width, height = 1.7 + side * len(columns), 0.5 + side * len(rows)
        figure, axes = subplots(len(rows), len(columns), height=height, width=width, squeeze=False)
        for line, (name, row) in zip(axes, rows.items(), strict=True):
            for axis, drawing in zip(line, row, strict=True):
                axis.imshow(np.asarray(drawing), cmap="gray_r", vmin=-0.2, vmax=1.2)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=True, color=PADDING)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=SMALL_TEXT)
        for axis, title in zip(axes[0], columns, strict=True):
            axis.set_title(title, fontsize=SMALL_TEXT, weight="normal", loc="center")
    return figure
