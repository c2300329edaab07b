"""The figures of all cells of a source: one panel per base model, one line per task.

Every function returns a matplotlib Figure.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oral_lib.report.comparisons import without_signal
from oral_lib.report.figures.theme import (
    BLUE,
    FAINT,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILION,
    note,
    styled,
    subplots,
)
from oral_lib.report.formats import signed_points
from oral_lib.report.tables.grid import impossible, ordered
from oral_lib.tasks.binary import NOUNS
from oral_lib.tasks.task import Task, load_task


# ---------------------------------------------------------------- trained and generated
def parity(
    rows: pd.DataFrame,
    no_signal: Iterable[tuple[str, ...]] = (),
    label: str = "accuracy in percent",
) -> Figure:
    """Trained and generated in every cell, with their difference in points at the right.

    A metric that some tasks lack, such as AUC, leaves these tasks out.

    Args:
        rows: from `comparisons.pooled`, of one experiment, source and metric.
        no_signal: places without signal, which are drawn pale.
        label: of the horizontal axis.
    """
    values = {(r.base, r.task, r.method, r.condition): r for r in rows.itertuples()}
    pale = {place[2:] for place in no_signal}
    low = np.floor(100 * rows.ci_low.min() / 10) * 10 - 3
    high = np.ceil(100 * rows.ci_high.max() / 10) * 10 + 3  # a mark at 100 is not cut

    def draw(axis: Axes, base: str, task: str, y: int) -> bool:
        methods = {k[2]: r for k, r in values.items() if k[:2] == (base, task) and k[3] in OWN}
        alpha = 0.35 if (base, task) in pale else 1
        _draw_parity(axis, methods, y, alpha)
        if "trained" in methods and "generated" in methods:
            gap = signed_points(methods["generated"].value - methods["trained"].value)
            note(axis, 1.03, y, gap, ha="left", colour=INK, alpha=alpha)
            if (base, task) in pale:
                note(axis, 1.03, y + 0.36, "no signal", ha="left", size=7.5)
        return any(key[:2] == (base, task) for key in values)

    handles = [
        _mark("o", BLUE, "trained, 95% interval"),
        _mark("o", VERMILION, "generated, 95% interval"),
        _mark("D", INK, "adapter average (soup)", hollow=True),
        _mark("o", GREY, "base model", hollow=True),
        _mark("|", GREY, "majority class"),
    ]
    about = f"{label} (at the right: generated minus trained; pale: no signal)"
    tasks = None if (rows.metric == "accuracy").all() else list(rows.task.unique())
    return _grid(rows, draw, handles, about, (max(-3, low), min(104, high)), tasks)


OWN = ("none", "matched")  # the conditions of methods without text and with the task's own text


def _draw_parity(axis: Axes, methods: Mapping, y: int, alpha: float) -> None:
    """Marks of the rows in `methods` (by method): three without and two with their interval."""
    for method, mark, look in (
        ("majority", "|", {"ms": 9, "color": GREY, "mew": 1.4}),
        ("base", "o", {"ms": 7, "color": GREY, "mfc": "white", "mew": 1.6}),
        ("soup_task", "D", {"ms": 5.5, "color": INK, "mfc": "white", "mew": 1.2}),
    ):
        if method in methods:
            axis.plot(100 * methods[method].value, y, mark, **look, alpha=alpha)
    for method, lift, colour in (("trained", -0.17, BLUE), ("generated", 0.17, VERMILION)):
        if method in methods:
            row = methods[method]
            ends = (100 * row.ci_low, 100 * row.ci_high)
            axis.plot(ends, [y + lift] * 2, color=colour, lw=2, alpha=alpha)
            axis.plot(100 * row.value, y + lift, "o", ms=6.5, color=colour, alpha=alpha)


def gaps(compared: pd.DataFrame) -> Figure:
    """Generated minus trained in points, with the paired 95% interval.

    `compared` are rows of `judged` of one experiment and source. The band is the target, half a
    point either way. A value outside the panel is drawn at its edge as an arrow head.
    """
    edge = 4.0
    rows = compared[(compared.what == "generated") & (compared.against == "trained")]
    gap = {(r.base, r.task): r for r in rows.itertuples()}
    soups = compared[(compared.what == "generated") & (compared.against == "soup_task")]
    soup = {(r.base, r.task): r.difference for r in soups.itertuples()}
    pale = {place[2:] for place in without_signal(compared)}

    def draw(axis: Axes, base: str, task: str, y: int) -> bool:
        row = gap.get((base, task))
        if row is None:
            return False
        alpha = 0.3 if (base, task) in pale else 1
        value, *ends = (100 * x for x in (row.difference, row.ci_low, row.ci_high))
        if (base, task) in soup:
            mean = np.clip(value - 100 * soup[base, task], -edge, edge)
            look = {"ms": 5.5, "color": INK, "mfc": "white", "mew": 1.2, "clip_on": False}
            axis.plot(mean, y + 0.22, "D", **look, alpha=alpha)
        colour = VERMILION if row.ci_high < 0 and value < -0.5 else BLUE
        axis.plot(np.clip(ends, -edge, edge), [y - 0.1] * 2, color=colour, lw=2, alpha=alpha)
        mark = "o" if abs(value) <= edge else "<" if value < 0 else ">"
        look = {"ms": 6.5, "color": colour, "clip_on": False}
        axis.plot(np.clip(value, -edge, edge), y - 0.1, mark, **look, alpha=alpha)
        return True

    handles = [
        _mark("o", BLUE, "generated, 95% interval"),
        _mark("o", VERMILION, "target missed"),
        _mark("D", INK, "adapter average (soup)", hollow=True),
    ]
    about = "points above trained (band: half a point either way; pale: no signal; marks at an edge"
    figure = _grid(compared, draw, handles, f"{about} are outside the panel)", (-edge, edge))
    for axis in figure.axes:
        axis.axvspan(-0.5, 0.5, color=BLUE, alpha=0.12, lw=0, zorder=0)
        axis.axvline(0, color=GREY, lw=1, zorder=0.5)
        axis.set_xticks([-4, -2, 0, 2, 4], ["−4", "−2", "0", "+2", "+4"])
    return figure


# ---------------------------------------------------------------- held-out tasks
_UNSEEN = {  # (method, condition): label, marker, colour, hollow
    ("base", "none"): ("base model", "o", GREY, True),
    ("soup_all", "none"): ("all-task average (soup)", "D", INK, True),
    ("retrieval", "matched"): ("retrieval", "s", INK, True),
    ("regression", "matched"): ("regression", "^", INK, True),
    ("multitask", "matched"): ("multi-task LoRA", "v", SKY, False),
    ("trained", "none"): ("trained", "o", BLUE, False),
    ("generated", "matched"): ("generated, mean (ticks: samples)", "o", VERMILION, False),
}


def unseen(samples: pd.DataFrame) -> Figure:
    """Held-out yes/no tasks: the classes that mean yes, and the balanced accuracy of each method.

    `samples` are from `comparisons.per_sample` in balanced accuracy, of one experiment and source.
    The line is chance. A value far below it is drawn at the edge as an arrow head.
    """
    groups = samples.groupby(["base", "task", "method", "condition"], observed=True).value
    means, values = groups.mean(), {key: list(group) for key, group in groups}
    low = 46

    def draw(axis: Axes, base: str, task: str, y: int) -> bool:
        for entry, (_, mark, colour, hollow) in _UNSEEN.items():
            if (base, task, *entry) not in means:
                continue
            height = y + {"trained": -0.2, "generated": 0.2}.get(entry[0], 0)
            if entry[0] == "generated":
                ticks = [100 * value for value in values[base, task, *entry]]
                heights = [height] * len(ticks)
                axis.plot(ticks, heights, "|", ms=9, mew=1.1, color=colour, alpha=0.6)
            look = {"ms": 6.5, "color": colour, "mfc": "white" if hollow else colour, "mew": 1.4}
            value = 100 * means[base, task, *entry]
            if value < low:
                value, mark, look["clip_on"] = low, "<", False
            axis.plot(value, height, mark, **look)
        return any(key[:2] == (base, task) for key in values)

    handles = [
        _mark(mark, colour, label, hollow) for label, mark, colour, hollow in _UNSEEN.values()
    ]
    about = "balanced accuracy in percent (line: chance; marks at the edge are outside the panel)"
    figure = _grid(samples, draw, handles, about, (low, 101))
    figure.set_size_inches(max(11, figure.get_size_inches()[0]), figure.get_size_inches()[1])
    for axis in figure.axes:
        axis.axvline(50, color=GREY, lw=1.2, zorder=0.5)
    _classes(figure.axes[0], [load_task(name) for name in ordered(samples, "task")])
    return figure


def _classes(axis: Axes, tasks: Sequence[Task]) -> None:
    """Replace the task names at the left of `axis` by dots: dark for every class that means yes."""
    nouns = NOUNS[tasks[0].of]
    left = axis.inset_axes([-0.42, 0, 0.4, 1])
    for y, task in enumerate(tasks):
        positive = sorted(task.positive)
        left.plot(range(len(nouns)), [y] * len(nouns), "o", ms=5, color=FAINT)
        left.plot(positive, [y] * len(positive), "o", ms=7, color=INK)
    left.set(xlim=(-1.2, len(nouns) - 0.3), ylim=axis.get_ylim(), yticks=[])
    left.xaxis.tick_top()
    left.set_xticks(range(len(nouns)), nouns, rotation=45, ha="left", fontsize=10)
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    left.set_xlabel("classes that mean yes", fontsize=10.5)
    left.xaxis.set_label_position("bottom")
    axis.set_yticks([])


# ---------------------------------------------------------------- control texts
_CONTROLS = {  # control text: label, marker, colour
    "paraphrase": ("held-out paraphrase", "o", ORANGE),
    "mismatched": ("wrong-task prompt", "s", INK),
    "random": ("random words", "^", BLUE),
    "empty": ("empty prompt", "v", SKY),
}


def controls(compared: pd.DataFrame) -> Figure:
    """The share of the generator's gain that is kept with each control text.

    `compared` are rows of `judged` of one experiment and source. The bands are the targets: a
    held-out paraphrase keeps 95% or more, a wrong-task prompt 20% or less. A value outside the
    panel is drawn at its edge as an arrow head.
    """
    left, right = -75.0, 150.0
    rows = compared[compared.what.str.startswith("generated/") & (compared.against == "generated")]
    losses = {(r.base, r.task, r.what.split("/")[-1]): r for r in rows.itertuples()}
    no_signal = {place[2:] for place in without_signal(compared)}

    def draw(axis: Axes, base: str, task: str, y: int) -> bool:
        cell = {
            text: losses[base, task, text] for text in _CONTROLS if (base, task, text) in losses
        }
        defined = {text: row for text, row in cell.items() if np.isfinite(row.share)}
        if (base, task) in no_signal:
            note(axis, 0.5, y, "no signal")
            return True
        if cell and not defined:
            note(axis, 0.5, y, "interval of the gain not above 0")
            return True
        for i, (text, row) in enumerate(defined.items()):
            _, mark, colour = _CONTROLS[text]
            height = y + 0.2 * (i - (len(defined) - 1) / 2)
            value, *ends = (100 * (1 + x) for x in (row.share, row.share_low, row.share_high))
            axis.plot(np.clip(ends, left, right), [height] * 2, color=colour, lw=1.3, alpha=0.7)
            if left <= value <= right:
                axis.plot(value, height, mark, ms=6, color=colour)
            else:
                edge, head = (left, "<") if value < left else (right, ">")
                axis.plot(edge, height, head, ms=6, color=colour, mfc="white", clip_on=False)
        return bool(cell)

    measured = {text for *_, text in losses}
    handles = [
        _mark(mark, colour, label)
        for text, (label, mark, colour) in _CONTROLS.items()
        if text in measured
    ]
    about = "share of the gain over the baseline that is kept, percent (the task's own prompt: 100;"
    about += " bands: targets; hollow heads at an edge are outside the panel)"
    figure = _grid(compared, draw, handles, about, (left, right))
    for axis in figure.axes:
        axis.axvline(100, color=VERMILION, lw=1.4, zorder=0.5)
        axis.axvspan(95, right, color=ORANGE, alpha=0.10, lw=0, zorder=0)
        axis.axvspan(left, 20, color=INK, alpha=0.06, lw=0, zorder=0)
        axis.set_xticks([-50, 0, 50, 100])
    return figure


# ---------------------------------------------------------------- panels
def _grid(
    rows: pd.DataFrame,
    draw: Callable[[Axes, str, str, int], bool],
    handles: Sequence[Line2D],
    about: str,
    limits: tuple[float, float],
    tasks: Sequence[str] | None = None,
) -> Figure:
    """One panel per base model and one line per task.

    Args:
        rows: of one source, with the columns base and task.
        draw: draws a cell into (axis, base, task, y); False if the cell is missing.
        handles: of the legend.
        about: the label of the horizontal axis.
        limits: of the horizontal axis.
        tasks: the tasks, in order from the top; by default the tasks of the grid table.
    """
    bases, tasks = ordered(rows, "base"), tasks or ordered(rows, "task")
    with styled():
        size = (max(6.5, 1.9 + 2.6 * len(bases)), 1.5 + 0.5 * len(tasks))
        figure, axes = subplots(
            1, len(bases), figsize=size, sharex=True, sharey=True, squeeze=False,
        )  # fmt: skip
        for axis, base in zip(axes.flat, bases, strict=True):
            axis.set_title(base, fontsize=12, pad=8)
            for y, task in enumerate(tasks):
                if y % 2 == 0:
                    axis.axhspan(y - 0.5, y + 0.5, color="#f6f6f6", lw=0, zorder=-1)
                if not draw(axis, base, task, y):
                    text = "generates no text" if impossible(base, task) else "not run"
                    note(axis, 0.5, y, text)
            axis.set_yticks(range(len(tasks)), [name.replace("_", " ") for name in tasks])
            axis.set(ylim=(len(tasks) - 0.5, -0.5), xlim=limits)
            axis.grid(axis="x", color=FAINT, lw=0.8)
            axis.set_axisbelow(True)
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
        figure.supxlabel(textwrap.fill(about, int(13 * size[0])), fontsize=10.5)
        n_columns = min(len(handles), int(size[0] / 2.3))
        figure.legend(
            handles=handles, loc="outside upper left", ncols=n_columns,
            frameon=False, fontsize=10.5, handletextpad=0.4, columnspacing=1.6,
        )  # fmt: skip
    return figure


def _mark(mark: str, colour: str, label: str, hollow: bool = False) -> Line2D:
    """A legend entry."""
    look = {"ms": 7, "color": colour, "mfc": "white" if hollow else colour, "mew": 1.5}
    return Line2D([], [], marker=mark, ls="", label=label, **look)
