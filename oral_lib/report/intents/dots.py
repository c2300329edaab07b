"""The figure of single tasks: a dot for each unseen task, by method and base model.

Every function returns a matplotlib Figure.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import (
    BAND,
    FAINT,
    INK,
    LOOKS,
    TINY_TEXT,
    extent,
    footnote,
    mark_of,
    note,
    styled,
    subplots,
)
from oral_lib.report.intents.outcomes import SplitOutcomes

ORDER = [  # from the top
    "trained", "generated_through_base", "generated", "multitask_described", "multitask",
    "zero_shot", "regression", "soup_nearest", "mixture", "retrieval", "prompted_4", "prompted",
    "base",
]  # fmt: skip
_LEAST = 40.0  # left edge, in percent; dots below it are drawn on it


def task_dots(split: str, outcomes: Mapping[str, SplitOutcomes], values: pd.DataFrame) -> Figure:
    """The AUC of every task of a split: one panel a base model, one line a method.

    Args:
        split: the name of the split.
        outcomes: by base model.
        values: of `judgements.values`, for the means and their intervals.
    """
    rows = values[(values.split == split) & (values.metric == "auc")]
    means = {(row.base, row.method): row for row in rows.itertuples()}
    names = [name for name in ORDER if name in set(rows.method)]
    random, far = np.random.default_rng(0), 0
    with styled():
        figure, axes = subplots(
            1, len(outcomes), height=1.5 + 0.36 * len(names), sharey=True, squeeze=False
        )
        for axis, (base, of_base) in zip(axes.flat, outcomes.items(), strict=True):
            for y, name in enumerate(names):
                if y % 2 == 0:
                    axis.axhspan(y - 0.5, y + 0.5, color=BAND, lw=0, zorder=-1)
                if (base, name) not in means:
                    note(axis, 0.5, y, "not run", ground="white" if y % 2 else BAND)
                    continue
                dots = 100 * of_base.by_task(name).dropna().to_numpy()
                far += int((dots < _LEAST).sum())
                heights = y + 0.3 * (2 * random.random(len(dots)) - 1)
                colour = LOOKS[name].colour
                axis.scatter(
                    np.clip(dots, _LEAST, 100), heights, s=9, color=colour, alpha=0.4, lw=0
                )
                row = means[base, name]
                axis.plot([100 * row.ci_low, 100 * row.ci_high], [y, y], color=INK, lw=1.8)
                axis.plot(100 * row.value, y, **mark_of(LOOKS[name], size=7))
            axis.set_title(base, fontsize=9.5, pad=4)
            axis.set(ylim=(len(names) - 0.5, -0.5), xlim=(_LEAST - 1, 101.5))
            axis.set_xticks([50, 75, 100], ["50", "75", "100"], fontsize=TINY_TEXT)
            axis.grid(axis="x", color=FAINT, lw=0.8)
            axis.set_axisbelow(True)
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
        axes[0, 0].set_yticks(range(len(names)), [LOOKS[name].label for name in names])
        footnote(
            figure,
            f"AUC in percent on the tasks of {split}. Small: a task, mean over generator seeds, at",
            "a random height. Large: mean over tasks; line: its 95% interval over tasks, rows,",
            "seeds.",
            f"{far} dots below {_LEAST:.0f} are drawn at {_LEAST:.0f}." if far else "",
            f"n = {extent(rows.n_tasks)} tasks, {extent(rows.n_rows)} rows each.",
        )
    return figure
