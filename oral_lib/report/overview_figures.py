"""The figures of all cells of a source: one panel a base model, one row a task.

As in `figures`, every function returns a closed matplotlib Figure.
"""

import textwrap
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oral_lib.report.comparisons import silent_places
from oral_lib.report.tables import impossible, ordered
from oral_lib.report.theme import (
    BLUE,
    FAINT,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILION,
    closed,
    note,
    styled,
)
from oral_lib.tasks.binary import NOUNS
from oral_lib.tasks.task import Task, load_task


def parity(
    rows: pd.DataFrame,
    silent: Iterable[tuple[str, ...]] = (),
    label: str = "accuracy in percent",
) -> Figure:
    """Trained against generated in every cell: one panel a base model, one row a task.

    rows: `tables.pooled` of one experiment, source and metric; silent: `contrasts.without_signal`,
    whose cells are drawn pale. At the right: generated minus trained, in points. A metric that
    some tasks lack, as AUC, leaves these tasks out.
    """
    found = {(r.base, r.task, r.method, r.condition): r for r in rows.itertuples()}
    silent = {place[2:] for place in silent}
    low = np.floor(100 * rows.ci_low.min() / 10) * 10 - 3
    high = np.ceil(100 * rows.ci_high.max() / 10) * 10 + 3  # a mark at 100 is seen whole

    def draw(axis, base: str, task: str, place: int) -> bool:
        def row(method: str, condition: str = "none"):
            return found.get((base, task, method, condition))

        trained, generated = row("trained"), row("generated", "matched")
        faded = {"alpha": 0.35 if (base, task) in silent else 1}
        for one, mark, look in (
            (row("majority"), "|", {"ms": 9, "color": GREY, "mew": 1.4}),
            (row("base"), "o", {"ms": 7, "color": GREY, "mfc": "white", "mew": 1.6}),
            (row("soup_task"), "D", {"ms": 5.5, "color": INK, "mfc": "white", "mew": 1.2}),
        ):
            if one is not None:
                axis.plot(100 * one.value, place, mark, **look, **faded)
        for one, lift, colour in ((trained, -0.17, BLUE), (generated, 0.17, VERMILION)):
            if one is not None:
                ends = (100 * one.ci_low, 100 * one.ci_high)
                axis.plot(ends, [place + lift] * 2, color=colour, lw=2, **faded)
                axis.plot(100 * one.value, place + lift, "o", ms=6.5, color=colour, **faded)
        if trained is not None and generated is not None:
            gap = f"{100 * (generated.value - trained.value):+.1f}".replace("-", "−")
            note(axis, 1.03, place, gap, ha="left", colour=INK, **faded)
            if (base, task) in silent:
                note(axis, 1.03, place + 0.36, "no signal", ha="left", size=7.5)
        return any(key[:2] == (base, task) for key in found)

    handles = [
        _mark("o", BLUE, "trained, 95% interval"),
        _mark("o", VERMILION, "generated, 95% interval"),
        _mark("D", INK, "per-task soup", hollow=True),
        _mark("o", GREY, "base model", hollow=True),
        _mark("|", GREY, "majority class"),
    ]
    about = f"{label} (at the right: generated minus trained; pale: no signal)"
    names = None if (rows.metric == "accuracy").all() else list(rows.task.unique())
    return _grid(rows, draw, handles, about, (max(-3, low), min(104, high)), names)


def gaps(compared: pd.DataFrame) -> Figure:
    """Generated minus trained in points, with the paired 95% interval: one panel a base model.

    compared: `contrasts` of one experiment and source. The band is half a point either way, the
    target; what lies outside the panel is drawn at its edge as an arrow head.
    """
    edge = 4.0
    rows = compared[(compared.what == "generated") & (compared.against == "trained")]
    found = {(r.base, r.task): r for r in rows.itertuples()}
    soups = compared[(compared.what == "generated") & (compared.against == "soup_task")]
    soup = {(r.base, r.task): r.difference for r in soups.itertuples()}
    silent = {place[2:] for place in silent_places(compared)}

    def draw(axis, base: str, task: str, place: int) -> bool:
        row = found.get((base, task))
        if row is None:
            return False
        faded = {"alpha": 0.3 if (base, task) in silent else 1}
        value, *ends = (100 * x for x in (row.difference, row.ci_low, row.ci_high))
        if (base, task) in soup:
            mean = np.clip(value - 100 * soup[base, task], -edge, edge)
            look = {"ms": 5.5, "color": INK, "mfc": "white", "mew": 1.2, "clip_on": False}
            axis.plot(mean, place + 0.22, "D", **look, **faded)
        colour = VERMILION if row.ci_high < 0 and value < -0.5 else BLUE
        axis.plot(np.clip(ends, -edge, edge), [place - 0.1] * 2, color=colour, lw=2, **faded)
        mark = "o" if abs(value) <= edge else "<" if value < 0 else ">"
        look = {"ms": 6.5, "color": colour, "clip_on": False}
        axis.plot(np.clip(value, -edge, edge), place - 0.1, mark, **look, **faded)
        return True

    handles = [
        _mark("o", BLUE, "generated, 95% interval"),
        _mark("o", VERMILION, "the same, surely below"),
        _mark("D", INK, "per-task soup", hollow=True),
    ]
    about = "points above trained (band: half a point either way; pale: no signal; marks at an "
    figure = _grid(compared, draw, handles, f"{about}edge lie beyond it)", (-edge, edge))
    for axis in figure.axes:
        axis.axvspan(-0.5, 0.5, color=BLUE, alpha=0.12, lw=0, zorder=0)
        axis.axvline(0, color=GREY, lw=1, zorder=0.5)
        axis.set_xticks([-4, -2, 0, 2, 4], ["−4", "−2", "0", "+2", "+4"])
    return figure


UNSEEN = {  # (method, condition): label, marker, colour, hollow
    ("base", "none"): ("base model", "o", GREY, True),
    ("soup_all", "none"): ("all-task soup", "D", INK, True),
    ("retrieval", "matched"): ("retrieval", "s", INK, True),
    ("regression", "matched"): ("regression", "^", INK, True),
    ("multitask", "matched"): ("multi-task LoRA", "v", SKY, False),
    ("trained", "none"): ("trained", "o", BLUE, False),
    ("generated", "matched"): ("generated, mean (ticks: samples)", "o", VERMILION, False),
}


def unseen(samples: pd.DataFrame) -> Figure:
    """Held-out tasks of yes and no, a row each: which classes mean yes, and trained beside what
    never saw the task.

    samples: `tables.per_sample` of one experiment and source, in balanced accuracy. The line is
    chance. What lies further below it than a little is drawn at the edge as an arrow head.
    """
    groups = samples.groupby(["base", "task", "method", "condition"], observed=True).value
    found, every = groups.mean(), {key: list(values) for key, values in groups}
    low = 46

    def draw(axis, base: str, task: str, place: int) -> bool:
        for way, (_, mark, colour, hollow) in UNSEEN.items():
            if (base, task, *way) not in found:
                continue
            high = place + {"trained": -0.2, "generated": 0.2}.get(way[0], 0)
            if way[0] == "generated":
                ticks = [100 * value for value in every[base, task, *way]]
                marks = [high] * len(ticks)
                axis.plot(ticks, marks, "|", ms=9, mew=1.1, color=colour, alpha=0.6)
            look = {"ms": 6.5, "color": colour, "mfc": "white" if hollow else colour, "mew": 1.4}
            value = 100 * found[base, task, *way]
            if value < low:
                value, mark, look["clip_on"] = low, "<", False
            axis.plot(value, high, mark, **look)
        return any(key[:2] == (base, task) for key in every)

    handles = [
        _mark(mark, colour, label, hollow) for label, mark, colour, hollow in UNSEEN.values()
    ]
    about = "balanced accuracy in percent (line: chance; marks at the edge lie beyond it)"
    figure = _grid(samples, draw, handles, about, (low, 101))
    figure.set_size_inches(max(11, figure.get_size_inches()[0]), figure.get_size_inches()[1])
    for axis in figure.axes:
        axis.axvline(50, color=GREY, lw=1.2, zorder=0.5)
    _classes(figure.axes[0], [load_task(name) for name in ordered(samples, "task")])
    return figure


def _classes(axis, told: Sequence[Task]) -> None:
    """Left of `axis`, in place of the tasks' names: a dot for every class that means yes."""
    nouns = NOUNS[told[0].of]
    left = axis.inset_axes([-0.42, 0, 0.4, 1])
    for place, task in enumerate(told):
        yes = sorted(task.positive)
        left.plot(range(len(nouns)), [place] * len(nouns), "o", ms=5, color=FAINT)
        left.plot(yes, [place] * len(yes), "o", ms=7, color=INK)
    left.set(xlim=(-1.2, len(nouns) - 0.3), ylim=axis.get_ylim(), yticks=[])
    left.xaxis.tick_top()
    left.set_xticks(range(len(nouns)), nouns, rotation=45, ha="left", fontsize=10)
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    left.set_xlabel("classes that mean yes", fontsize=10.5)
    left.xaxis.set_label_position("bottom")
    axis.set_yticks([])


KEPT = {  # text: label, marker, colour
    "paraphrase": ("unseen wording", "o", ORANGE),
    "mismatched": ("another task's text", "s", INK),
    "random": ("random words", "^", BLUE),
    "empty": ("no text", "v", SKY),
}


def controls(compared: pd.DataFrame) -> Figure:
    """The share of the generator's gain that other texts keep: one panel a base model.

    compared: `contrasts` of one experiment and source. The bands are the targets: an unseen
    wording keeps 95% or more, another task's text 20% or less. What lies outside is drawn at the
    edge as an arrow head.
    """
    left, right = -75.0, 150.0
    rows = compared[compared.what.str.startswith("lost with ")]
    found = {(r.base, r.task, r.what.split()[-1]): r for r in rows.itertuples()}
    silent = {place[2:] for place in silent_places(compared)}

    def draw(axis, base: str, task: str, place: int) -> bool:
        own = {text: found[base, task, text] for text in KEPT if (base, task, text) in found}
        sure = {text: row for text, row in own.items() if np.isfinite(row.difference)}
        if (base, task) in silent or (own and not sure):
            words = "no signal" if (base, task) in silent else "no sure gain"
            note(axis, 0.5, place, words)
            return True
        for step, (text, row) in enumerate(sure.items()):
            _, mark, colour = KEPT[text]
            high = place + 0.2 * (step - (len(sure) - 1) / 2)
            value, *ends = (100 * (1 - x) for x in (row.difference, row.ci_high, row.ci_low))
            axis.plot(np.clip(ends, left, right), [high] * 2, color=colour, lw=1.3, alpha=0.7)
            if left <= value <= right:
                axis.plot(value, high, mark, ms=6, color=colour)
            else:
                edge, head = (left, "<") if value < left else (right, ">")
                axis.plot(edge, high, head, ms=6, color=colour, mfc="white", clip_on=False)
        return bool(own)

    asked = {text for *_, text in found}
    handles = [
        _mark(mark, colour, label) for t, (label, mark, colour) in KEPT.items() if t in asked
    ]
    about = "share of the gain over base and majority that is kept, percent (own text: 100; bands: "
    about += "targets; hollow heads at an edge lie beyond it)"
    figure = _grid(compared, draw, handles, about, (left, right))
    for axis in figure.axes:
        axis.axvline(100, color=VERMILION, lw=1.4, zorder=0.5)
        axis.axvspan(95, right, color=ORANGE, alpha=0.10, lw=0, zorder=0)
        axis.axvspan(left, 20, color=INK, alpha=0.06, lw=0, zorder=0)
        axis.set_xticks([-50, 0, 50, 100])
    return figure


def _grid(
    rows: pd.DataFrame,
    draw: Callable[[object, str, str, int], bool],
    handles: Sequence[Line2D],
    about: str,
    limits: tuple[float, float],
    names: Sequence[str] | None = None,
) -> Figure:
    """One panel a base model and one row a task (of `names`, else all); `draw` says whether the
    cell was there."""
    bases, names = ordered(rows, "base"), names or ordered(rows, "task")
    with styled():
        size = (max(6.5, 1.9 + 2.6 * len(bases)), 1.5 + 0.5 * len(names))
        figure, axes = plt.subplots(
            1, len(bases), figsize=size, sharex=True, sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axis, base in zip(axes.flat, bases, strict=True):
            axis.set_title(base, fontsize=12, pad=8)
            for place, task in enumerate(names):
                if place % 2 == 0:
                    axis.axhspan(place - 0.5, place + 0.5, color="#f6f6f6", lw=0, zorder=-1)
                if not draw(axis, base, task, place):
                    words = "writes no answers" if impossible(base, task) else "not run"
                    note(axis, 0.5, place, words)
            axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
            axis.set(ylim=(len(names) - 0.5, -0.5), xlim=limits)
            axis.grid(axis="x", color=FAINT, lw=0.8)
            axis.set_axisbelow(True)
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
        figure.supxlabel(textwrap.fill(about, int(13 * size[0])), fontsize=10.5)
        wide = size[0] / 2.3
        figure.legend(
            handles=handles, loc="outside upper left", ncols=min(len(handles), int(wide)),
            frameon=False, fontsize=10.5, handletextpad=0.4, columnspacing=1.6,
        )  # fmt: skip
    return closed(figure)


def _mark(mark: str, colour: str, label: str, hollow: bool = False) -> Line2D:
    look = {"ms": 7, "color": colour, "mfc": "white" if hollow else colour, "mew": 1.5}
    return Line2D([], [], marker=mark, ls="", label=label, **look)
