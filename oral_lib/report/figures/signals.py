"""The figure of all cells with a signal, sorted: generated against trained and simple methods."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.evaluation.schema import PLACE
from oral_lib.report.figures.theme import (
    BAND,
    FAINT,
    INK,
    LOOKS,
    ORANGE,
    TINY_TEXT,
    footnote,
    key,
    legend,
    mark_of,
    signed_tick,
    sizes,
    state_keys,
    styled,
    subplots,
)
from oral_lib.report.names import task_words

_SIMPLE = ["router", "soup_task", "retrieval", "regression"]  # without diffusion
_EDGE = 4.0  # points, of the panels


def signals(judged: pd.DataFrame) -> Figure:
    """All cells with a signal, from the largest gap to the largest lead over trained.

    The left panel has generated minus trained, with the two-level interval and the state. The
    right panel has generated minus the best simple method of the cell: router, average, retrieval
    or regression, whichever has the highest accuracy.

    Args:
        judged: rows of `comparisons.judged` in accuracy, of any experiments and sources.
    """
    judged = judged[judged.signal].reset_index(drop=True)  # tables of several sources
    gaps = judged[(judged.what == "generated") & (judged.against == "trained")]
    gaps = gaps.sort_values("difference", kind="stable")
    simple = judged[(judged.what == "generated") & judged.against.isin(_SIMPLE)]
    best = simple.loc[simple.groupby(PLACE, observed=True).difference.idxmin()]
    rivals = {tuple(row[name] for name in PLACE): row for row in best.to_dict("records")}
    places = list(gaps[PLACE].itertuples(index=False, name=None))
    with styled():
        height = 1.9 + 0.185 * len(gaps)
        figure, axes = subplots(1, 2, height=height, sharey=True, width_ratios=(1, 1))
        for y, row in enumerate(gaps.to_dict("records")):
            _line(axes[0], row, y, mark_of(LOOKS["generated"], state=row["state"], size=5.5))
            if rival := rivals.get(places[y]):
                _line(axes[1], rival, y, mark_of(LOOKS[rival["against"]], size=5.5))
        names = _names(places)
        axes[0].set_yticks(range(len(places)), names, fontsize=TINY_TEXT - 0.5)
        titles = ("generated minus trained", "generated minus best simple method")
        for axis, title in zip(axes, titles, strict=True):
            _frame(axis, title, len(places))
        drawn = dict.fromkeys(row["against"] for row in rivals.values())
        rows = gaps.itertuples()
        handles = [
            *state_keys(rows, "trained"),
            *(key(LOOKS[n]) for n in _SIMPLE if n in drawn),
        ]
        legend(figure, handles, 4)
        counts = gaps.state.value_counts()
        states = ", ".join(
            f"{counts[s]} {s}" for s in ("equal", "undecided", "below") if s in counts
        )
        footnote(
            figure,
            f"Accuracy in points; line: two-level 95% interval. {len(gaps)} cells with signal:",
            f"{states}.",
            f"Right: ahead of the best simple method in {_ahead(rivals.values())}, behind in",
            f"{_behind(rivals.values())} of {len(rivals)} cells (by the whole interval).",
            "Which simple method is best was chosen on the same rows.",
            f"Marks at ±{_EDGE:g} lie further out." if _far([*rivals.values()], gaps) else "",
            sizes(gaps),
        )
    return figure


def _names(places: Sequence[tuple[str, ...]]) -> list[str]:
    """Task and base model of each place; its source, too, where two have the same."""
    names = [f"{task_words(task)}, {base}" for *_, base, task in places]
    return [
        f"{name} ({source})" if names.count(name) > 1 else name
        for name, (_, source, *_) in zip(names, places, strict=True)
    ]


def _ahead(rows: Iterable[dict]) -> int:
    return sum(row["ci_low"] > 0 for row in rows)


def _behind(rows: Iterable[dict]) -> int:
    return sum(row["ci_high"] < 0 for row in rows)


def _far(rivals: Sequence[dict], gaps: pd.DataFrame) -> bool:
    values = [*gaps.ci_low, *gaps.ci_high, *(r[e] for r in rivals for e in ("ci_low", "ci_high"))]
    return bool(100 * np.max(np.abs(values)) > _EDGE)


def _line(axis: Axes, row: dict, y: int, look: dict) -> None:
    """One comparison: its interval and its mark."""
    ends = np.clip([100 * row["ci_low"], 100 * row["ci_high"]], -_EDGE, _EDGE)
    axis.plot(ends, [y, y], color=ORANGE, lw=1.4)
    axis.plot(np.clip(100 * row["difference"], -0.98 * _EDGE, 0.98 * _EDGE), y, **look)


def _frame(axis: Axes, title: str, n_lines: int) -> None:
    for y in range(0, n_lines, 2):
        axis.axhspan(y - 0.5, y + 0.5, color=BAND, lw=0, zorder=-1)
    axis.axvline(0, color=INK, lw=0.8, zorder=0.5)
    axis.grid(axis="x", color=FAINT, lw=0.8)
    axis.set_axisbelow(True)
    axis.set(xlim=(-_EDGE, _EDGE), ylim=(n_lines - 0.5, -0.5), title=title)
    axis.set_xticks([-4, -2, 0, 2, 4])
    axis.xaxis.set_major_formatter(signed_tick)
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)
