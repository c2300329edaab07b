"""The figures of training: loss curves, and the speed of training many LoRAs at once.

Every function returns a matplotlib Figure.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from oral_lib.report.figures.theme import (
    BLUE,
    INK,
    ORANGE,
    PALE,
    TINY_TEXT,
    YELLOW,
    extent,
    footnote,
    new_figure,
    note,
    styled,
    subplots,
)
from oral_lib.tasks.task import load_task, task_names

# ---------------------------------------------------------------- loss curves
_POINTS = np.linspace(0, 100, 101)  # shares of training, in percent
_FEW = 3  # panels in a row


class _Curve(NamedTuple):
    """The runs of one group: their losses [runs, points], and how they are drawn."""

    name: str
    losses: np.ndarray
    colour: str
    line: object
    steps: tuple[int, int]


_KINDS = {  # what is trained: panel, colour, line
    "generator": ("generator: denoising loss", ORANGE, "-"),
    "unconditional": ("generator: denoising loss", INK, (0, (4, 2))),
    "regression": ("regression: squared error", YELLOW, "-"),
    "multitask": ("multi-task LoRA: task loss", INK, "-"),
}
_GROUPS = {  # scoring of a task: group of the zoo, line
    "answer": ("written answers", (0, (1, 1.2))),
    "match": ("matching", (0, (4, 2))),
}


def loss_curves(curves: pd.DataFrame) -> Figure:
    """Training losses: the generators, and the median of each zoo with the band of its runs.

    A panel has one kind of loss. The curve of a zoo is the median over tasks and training seeds,
    separately for tasks with labels, with written answers and for matching; its band spans 80% of
    the runs. The curve of a generator is the mean over seeds, its band spans them.

    Args:
        curves: [series, step, loss] with series such as "zoo of minilm-l6/movie seed 0" and
            "generator/generator-1".
    """
    panels = _panels(curves)
    n_columns = 2 if len(panels) == 4 else min(_FEW, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with styled():
        figure, axes = subplots(n_rows, n_columns, height=0.9 + 2.1 * n_rows, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for i, (title, drawn) in enumerate(panels.items()):
            axis = axes.flat[i]
            for curve in drawn:
                _draw_curve(axis, curve, curve.name if len(drawn) > 1 else "")
            axis.set(yscale="log", xlim=(0, 100))
            axis.set_title(title, fontsize=9.5, pad=4)
            _loss_axis(axis)
            if len(drawn) > 1:
                axis.legend(fontsize=TINY_TEXT, handlelength=2.2, loc="best", borderpad=0.2)
            if i + n_columns >= len(panels):
                axis.set_xlabel("share of training, percent")
        footnote(figure, *_runs(panels))
    return figure


def _loss_axis(axis: Axes) -> None:
    """Few ticks on a logarithmic axis: powers of ten, or 1, 2, 5 or finer between them."""
    low, high = axis.get_ylim()
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for between in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6, 8), np.arange(1, 10, 0.5)):
        ticks = [x for x in np.outer(10.0**powers, between).ravel() if low <= x <= high]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: max(1, -(-len(ticks) // 6))]
    words = [f"{x:g}" if x > 2e-4 else f"$10^{{{np.log10(x):.0f}}}$" for x in ticks]
    axis.set_yticks(ticks, words)
    axis.yaxis.set_minor_locator(NullLocator())


def _panels(curves: pd.DataFrame) -> dict[str, list[_Curve]]:
    """The curves by panel title: generators first, then one panel per zoo."""
    runs: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for series, run in curves.groupby("series", sort=True):
        runs.setdefault(_group(str(series)), []).append(run)
    panels: dict[str, list[_Curve]] = {}
    order = [title for title, *_ in _KINDS.values()]
    ranks = {title: order.index(title) if title in order else len(order) for title, _ in runs}
    titles = sorted(runs, key=lambda k: (ranks[k[0]], k[0].partition(":")[0], k[1]))
    for title, name in titles:
        colour, line = BLUE, "-"
        for kind, (panel, *look) in _KINDS.items():
            if (panel, kind) == (title, name):
                colour, line = look
        for group, style in _GROUPS.values():
            line = style if group == name else line
        parts = [run.sort_values("step") for run in runs[title, name]]
        losses = np.stack([_smooth(run) for run in parts])
        steps = [int(run.step.max()) for run in parts]
        curve = _Curve(name, losses, colour, line, (min(steps), max(steps)))
        panels.setdefault(title, []).append(curve)
    return panels


def _group(series: str) -> tuple[str, str]:
    """(panel, name of the curve) of a series."""
    panel, _, name = series.rpartition("/")
    name = re.sub(r"( seed \d+|-\d+)$", "", name)
    if not panel.startswith("zoo"):
        return _KINDS[name][0] if name in _KINDS else panel, name
    scoring = load_task(name).scoring if name in task_names() else ""
    return f"zoo of {panel.removeprefix('zoo of ')}", _GROUPS.get(scoring, ("labels", "-"))[0]


def _smooth(run: pd.DataFrame) -> np.ndarray:
    """The smoothed losses of a run at `_POINTS`."""
    progress = 100 * run.step / max(1, run.step.max())
    loss = run.loss.ewm(span=max(1, len(run) // 12)).mean()
    return np.maximum(np.interp(_POINTS, progress, loss), 1e-12)


def _draw_curve(axis: Axes, curve: _Curve, label: str) -> None:
    """The curve and, over several runs, its band."""
    zoo = curve.colour == BLUE
    middle = np.median(curve.losses, axis=0) if zoo else np.exp(np.log(curve.losses).mean(axis=0))
    ends = np.quantile(curve.losses, [0.1, 0.9] if zoo else [0, 1], axis=0)
    if len(curve.losses) > 1:
        axis.fill_between(_POINTS, *ends, color=curve.colour, alpha=0.16, lw=0)
    axis.plot(_POINTS, middle, color=curve.colour, ls=curve.line, lw=1.8, label=label)


def _runs(panels: Mapping[str, list[_Curve]]) -> list[str]:
    """What curves and bands are, and the number of runs and steps of each panel."""
    words = []
    if any("zoo" in title for title in panels):
        words.append(
            "Zoo: task loss (cross-entropy in nats), median over tasks and training seeds, band: "
            "80% of the runs."
        )
    if any("generator" in title for title in panels):
        words.append("Generator: mean over seeds, band: all seeds.")
    counts = []
    for title, drawn in panels.items():
        runs = ", ".join(
            f"{len(c.losses)} ({c.name})" if len(drawn) > 1 else f"{len(c.losses)}" for c in drawn
        )
        steps = extent([step for curve in drawn for step in curve.steps])
        counts.append(f"{title.partition(':')[0]} {runs}, {steps} steps")
    return [*words, f"Runs: {'; '.join(counts)}."]


# ---------------------------------------------------------------- training speed
TRAINING = "train LoRAs"  # the benchmark that `training_speed` draws
RATE, SPEEDUP, PEAK = "adapters an hour", "speed over plain", "share of limit"  # metrics


def training_speed(benchmarks: pd.DataFrame) -> Figure:
    """Bars of adapters an hour: PEFT one by one, and S adapters at once.

    A panel has one base model on one device, measured with one version of the code, so its bars
    can be compared. The share of the device's peak is written at the bars.

    Args:
        benchmarks: rows of benchmarks.csv; of the benchmark "train LoRAs" the variants "plain" and
            "S at once" are drawn, in "adapters an hour" or, if not measured, "speed over plain".
    """
    rows = benchmarks[benchmarks.benchmark == TRAINING]
    size = rows.variant.str.extract(r"^(\d+) at once$")[0].astype(float)
    rows = rows.assign(size=size.where(rows.variant != "plain", 0)).dropna(subset="size")
    rate = RATE if (rows.metric == RATE).any() else SPEEDUP
    panels = list(rows.groupby(["device", "case", "commit"], sort=True))
    most = [part["size"].nunique() for _, part in panels]
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    heights = [max(most[i * n_columns : (i + 1) * n_columns]) + 2 for i in range(n_rows)]
    with styled():
        figure = new_figure(0.7 + 0.2 * sum(heights))
        grid = figure.add_gridspec(n_rows, n_columns, height_ratios=heights)
        for i, ((device, case, commit), part) in enumerate(panels):
            axis = figure.add_subplot(grid[i // n_columns, i % n_columns])
            title = f"{case.partition(', ')[0]}, {device}, {commit[:7]}"
            axis.set_title(title, fontsize=9.5, loc="left", pad=4)
            _bars(axis, part, rate)
            axis.set_ylim(heights[i // n_columns] - 2.4, -0.6)  # bars of a row are equally high
        repeats = f"n = {extent(rows.repeats)} repeats a bar." if "repeats" in rows else ""
        footnote(
            figure,
            f"{rate.capitalize()}; hollow: PEFT, one after the other; filled: S adapters at once.",
            "In brackets: speed over PEFT, and the share of the device's peak.",
            "Compare bars within a panel: panels differ in device or version of the code.",
            repeats,
        )
    return figure


def _bars(axis: Axes, rows: pd.DataFrame, rate: str) -> None:
    """The bars of a panel, from PEFT down to the most adapters at once."""
    values = rows[rows.metric == rate].set_index("size").value.sort_index()
    if rate == SPEEDUP:
        values[0.0] = 1.0
        values = values.sort_index()
    peaks = rows[rows.metric == PEAK].set_index("size").value
    plain = values.get(0.0)
    for y, (size, value) in enumerate(values.items()):
        face = "white" if size == 0 else BLUE
        axis.barh(y, value, height=0.62, color=face, edgecolor=BLUE, lw=1)
        remarks = [f"×{value / plain:.3g}"] if plain and size else []
        remarks += [f"{100 * peaks[size]:.2g}%"] if size in peaks else []
        brackets = f"  ({', '.join(remarks)})" if remarks else ""
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        share = value / values.max() / 1.6
        note(axis, share + 0.02, y, text + brackets, ha="left", colour=INK)
    names = ["PEFT" if size == 0 else f"S = {size:.0f}" for size in values.index]
    axis.set_yticks(range(len(values)), names, fontsize=TINY_TEXT)
    axis.set_xlim(0, 1.6 * values.max())
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines["bottom"].set_visible(False)
    axis.spines["left"].set_color(PALE)
