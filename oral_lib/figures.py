"""The figures: one style, colours that colour-blind readers tell apart, the same bytes every time.

Every function returns a closed matplotlib Figure: a notebook shows it once, `save` writes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from oral_lib.storage import replacing

# seaborn's "colorblind" palette (after Wong 2011); importing seaborn for it costs seconds
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"
BROWN, PINK, GREY, YELLOW, SKY = "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"
INK, FAINT, PADDING = "#2b2b2b", "#e9e9e9", "#c9c9c9"
CURVES = [VERMILION, BLUE, GREEN, PURPLE, ORANGE, BROWN, SKY, INK, PINK, GREY, YELLOW]
STYLE = {
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.dpi": 110,
    "font.family": "DejaVu Sans",  # matplotlib ships it: the same letters on every machine
    "font.size": 12,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "oral",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
NO_DATE = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}

METHODS = {  # from the top down: (method, label, colour)
    "generated": ("generated", VERMILION),
    "trained": ("trained", BLUE),
    "soup_task": ("per-task soup", INK),
    "retrieval": ("retrieval", INK),
    "regression": ("regression", INK),
    "soup_all": ("all-task soup", INK),
    "base": ("base model", GREY),
    "majority": ("majority class", GREY),
}
CONDITIONS = {
    "matched": ("own text", VERMILION),
    "paraphrase": ("unseen wording", ORANGE),
    "mismatched": ("another task's text", INK),
    "random": ("random words", INK),
    "empty": ("no text", INK),
}


@contextmanager
def _style() -> Iterator[None]:
    with plt.rc_context(STYLE):
        yield


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Writes the figure as PNG, PDF and SVG, the same bytes each time; returns the paths."""
    paths = []
    for kind, metadata in NO_DATE.items():
        path = Path(folder) / f"{name}.{kind}"
        with _style(), replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata=metadata, facecolor="white")
        paths.append(path)
    return paths


# ---------------------------------------------------------------- results
def methods(rows: pd.DataFrame, samples: pd.DataFrame | None = None) -> Figure:
    """One panel a base model and task: every method's accuracy with its 95% interval.

    rows: `tables.pooled` of one experiment, source and metric. samples: `tables.per_sample`, drawn
    as ticks below the dots of methods with several samples. The band is trained ± 2 points.
    """
    rows = rows[rows.condition.isin(["none", "matched"]) & rows.method.isin(METHODS)]
    return _dots(rows, "method", METHODS, samples, lines={})


def conditions(rows: pd.DataFrame, samples: pd.DataFrame | None = None) -> Figure:
    """One panel a base model and task: generated from its own and from other texts.

    Lines mark the base model and the trained LoRA. rows and samples as in `methods`.
    """
    lines = {"base": ("base", GREY), "trained": ("trained", BLUE)}
    return _dots(rows, "condition", CONDITIONS, samples, lines)


def _dots(
    rows: pd.DataFrame,
    column: str,
    kinds: Mapping[str, tuple[str, str]],
    samples: pd.DataFrame | None,
    lines: Mapping[str, tuple[str, str]],
) -> Figure:
    shown = rows if column == "method" else rows[rows.method == "generated"]
    kinds = {name: look for name, look in kinds.items() if name in set(shown[column])}
    cells = list(rows.groupby(["base", "task"], sort=False))
    wide = 2 if len(cells) == 4 else min(3, max(1, len(cells)))
    tall = -(-len(cells) // wide)
    low = np.floor(100 * rows.ci_low.min() / 10 - 0.2) * 10
    high = np.ceil(100 * rows.ci_high.max() / 10 + 0.2) * 10
    with _style():
        size = (2.2 + 3.1 * wide, tall * (1.35 + 0.4 * len(kinds)))
        figure, axes = plt.subplots(
            tall, wide, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        figure.get_layout_engine().set(hspace=0.06)
        for axis in axes.flat[len(cells) :]:
            axis.set_visible(False)
        for axis, ((base, task), cell) in zip(axes.flat, cells, strict=False):
            lift = 22 if lines else 6  # points; the lines are named between title and panel
            axis.set_title(f"{task.replace('_', ' ')}\n", pad=lift)
            spot = {"xycoords": "axes fraction", "textcoords": "offset points"}
            axis.annotate(base, (0, 1), (0, lift + 2), color="#6b6b6b", **spot)
            for method, (label, colour) in lines.items():
                for value in 100 * cell[cell.method == method].value:
                    axis.axvline(value, color=colour, lw=1.6, ls=(0, (4, 2)), zorder=1)
                    axis.annotate(
                        label, (value, 1), (0, 2), xycoords=("data", "axes fraction"),
                        textcoords="offset points", color=colour, ha="center", fontsize=10,
                    )  # fmt: skip
            for value in [] if lines else 100 * cell[cell.method == "trained"].value:
                axis.axvspan(value - 2, value + 2, color=BLUE, alpha=0.12, lw=0, zorder=0)
            own = shown.loc[shown.index.isin(cell.index)]
            for place, (name, (_, colour)) in enumerate(kinds.items()):
                axis.axhline(place, color=FAINT, lw=1, zorder=0)
                for row in own[own[column] == name].itertuples():
                    value, ends = 100 * row.value, (100 * row.ci_low, 100 * row.ci_high)
                    axis.plot(ends, [place, place], color=colour, lw=2.4, solid_capstyle="butt")
                    filled = "white" if colour == GREY else colour
                    axis.plot(value, place, "o", ms=8, color=colour, mfc=filled, mew=1.8)
                    axis.annotate(
                        f"{value:.1f}", (1.02, place), xycoords=("axes fraction", "data"),
                        va="center", fontsize=10.5, color=colour,
                        weight="bold" if colour == VERMILION else "normal",
                    )  # fmt: skip
                    if samples is not None:
                        _ticks(axis, samples, row, place, colour)
            axis.set_yticks(range(len(kinds)), [label for label, _ in kinds.values()])
            axis.set(ylim=(len(kinds) - 0.4, -0.6), xlim=(max(0, low), min(100, high)))
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
        legend = "dot: mean, bar: 95% interval over items, ticks: single samples"
        legend += "" if lines else ",\nband: within 2 points of trained"
        figure.supxlabel(f"accuracy in percent ({legend})", fontsize=10.5)
    return _closed(figure)


def _ticks(axis, samples: pd.DataFrame, row, place: int, colour: str) -> None:
    names = ["base", "task", "method", "condition"]
    own = samples[(samples[names] == [getattr(row, name) for name in names]).all(axis=1)]
    if len(own) > 1:
        marks = np.full(len(own), place + 0.3)
        axis.plot(100 * own.value, marks, "|", ms=7, mew=1.2, color=colour, alpha=0.75)


def loss_curves(frame: pd.DataFrame) -> Figure:
    """Training losses, smoothed; frame: columns series, step, loss.

    A series called "zoo/movie seed 0" is drawn in the panel "zoo" under the name "movie", in one
    colour with its other seeds and with that name in other panels.
    """
    parts = frame.series.astype(str).str.extract(r"^(?:(.*?)/)?(.*?)(?: seed \d+)?$")
    frame = frame.assign(panel=parts[0].fillna(""), name=parts[1])
    panels = list(frame.groupby("panel", sort=True))
    names = dict.fromkeys(name for _, rows in panels for name in sorted(rows.name.unique()))
    colours = dict(zip(names, cycle(CURVES)))
    with _style():
        size = (9, 0.6 + 3.4 * len(panels))
        figure, axes = plt.subplots(
            len(panels), 1, figsize=size, squeeze=False, layout="constrained"
        )
        for axis, (panel, rows) in zip(axes.flat, panels, strict=True):
            ends = [_curves(axis, one, colours[one[0]]) for one in rows.groupby("name")]
            axis.set(yscale="log", xlim=(0, 100), title=panel, ylabel="loss")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            _label_ends(figure, axis, ends)
        axis.set_xlabel("share of training, percent")
    return _closed(figure)


def _curves(axis, named: tuple[str, pd.DataFrame], colour: str) -> tuple[float, str, str]:
    """Draws the curves of a name; their mean last height, their label and colour."""
    name, rows = named
    runs = [run.sort_values("step") for _, run in rows.groupby("series")]
    ends = []
    for run in runs:
        share = 100 * run.step / max(1, run.step.max())
        smooth = run.loss.ewm(span=max(1, len(run) // 12)).mean()
        if len(runs) == 1:
            axis.plot(share, run.loss, color=colour, lw=0.8, alpha=0.22)
        axis.plot(share, smooth, color=colour, lw=2.2 if len(runs) == 1 else 1.5)
        ends.append(smooth.iloc[-1])
    seeds = f"{len(runs)} seeds, " if len(runs) > 1 else ""
    return float(np.mean(ends)), f"{name} ({seeds}{rows.step.max():,} steps)", colour


def _label_ends(figure: Figure, axis, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right of their curves, pushed apart where they would touch."""
    figure.canvas.draw()  # the scale is only known once drawn
    heights = [axis.transData.transform((0, height))[1] for height, _, _ in ends]
    gap, last = 1.4 * 10 * figure.dpi / 72, -np.inf
    for place in np.argsort(heights):
        last = max(heights[place], last + gap)
        _, text, colour = ends[place]
        spot = (1.01, (last - axis.bbox.y0) / axis.bbox.height)
        axis.annotate(text, spot, xycoords="axes fraction", color=colour, va="center", fontsize=10)


# ---------------------------------------------------------------- the method, for the notebooks
def tokens_picture(
    values, owner: Sequence[int] | None = None, names: Sequence[str] = (), mask=None
) -> Figure:
    """An adapter as tokens: one row a token, one column a value, padding in grey.

    values `[l, k]`; owner `[l]` the group a token belongs to (its tensor, or its module type),
    named by `names`; mask `[l, k]` true where a value is real.
    """
    shown = _array(values)
    shown = shown if mask is None else np.where(_array(mask).astype(bool), shown, np.nan)
    with _style():
        figure, axis = plt.subplots(figsize=(9, 5.2), layout="constrained")
        axis.set_facecolor(PADDING)
        _heat(figure, axis, shown, "value")
        axis.set(xlabel=f"value within the token (k = {shown.shape[1]})", ylabel="token")
        axis.set_title(f"{shown.shape[0]} tokens of {shown.shape[1]} values")
        if owner is not None:
            _bands(axis, _array(owner), names)
    return _closed(figure)


def schedule_picture(abar) -> Figure:
    """How much of the token and how much noise is left at each diffusion step t; abar `[t]`."""
    abar = _array(abar)
    steps = np.arange(len(abar))
    with _style():
        figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
        middle = int(np.argmin(np.abs(abar - 0.5)))
        place = (middle + len(steps)) // 2  # right of the crossing both names have room
        for curve, text, colour, lift in (
            (np.sqrt(abar), r"token  $\sqrt{\bar\alpha_t}$", BLUE, 9),
            (np.sqrt(1 - abar), r"noise  $\sqrt{1-\bar\alpha_t}$", VERMILION, -11),
        ):
            axis.plot(steps, curve, color=colour, lw=2.6)
            axis.annotate(
                text, (place, curve[place]), (4, lift), textcoords="offset points", color=colour,
                va="bottom" if lift > 0 else "top", fontsize=13,
            )  # fmt: skip
        axis.axvline(middle, color=GREY, lw=1.2, ls=(0, (4, 2)))
        axis.text(middle, 0.02, f"  half and half at t = {middle}", color=GREY, fontsize=11)
        axis.set(xlabel="diffusion step t", ylabel="weight", xlim=(0, steps[-1]), ylim=(0, 1.05))
        axis.set_yticks([0, 0.5, 1])
    return _closed(figure)


def prototypes_picture(p, owner: Sequence[int] | None = None, names: Sequence[str] = ()) -> Figure:
    """The prototypes P `[l, m]`, and how alike they are: the cosine of every pair of tokens."""
    p = _array(p)
    unit = p / np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-12)
    with _style():
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.5, 5), layout="constrained", width_ratios=(1.1, 1)
        )
        _heat(figure, left, p, None)
        left.set(xlabel=f"width (m = {p.shape[1]})", ylabel="token", title="prototypes")
        _heat(figure, right, unit @ unit.T, "cosine", limit=1.0)
        right.set(xlabel="token", title="likeness of two tokens")
        if owner is not None:
            _bands(left, _array(owner), names)
    return _closed(figure)


def denoising_picture(states, truth, steps: Sequence[int] | None = None, shown: int = 48) -> Figure:
    """One token on its way from noise to weights: states `[s, k]` in order, beside truth `[k]`.

    Six states at most, the first `shown` values of each, and the distance to the truth below.
    `steps` names the diffusion step t of each state.
    """
    states, truth = _array(states), _array(truth)
    steps = np.arange(len(states)) if steps is None else np.asarray(steps)
    chosen = np.unique(np.linspace(0, len(states) - 1, min(6, len(states))).round().astype(int))
    error = np.linalg.norm(states - truth, axis=1) / max(np.linalg.norm(truth), 1e-12)
    limit = 1.05 * max(np.abs(states[:, :shown]).max(), np.abs(truth[:shown]).max())
    with _style():
        figure = plt.figure(figsize=(12, 5), layout="constrained")
        grid = figure.add_gridspec(2, len(chosen), height_ratios=(1.5, 1))
        for place, state in enumerate(chosen):
            axis = figure.add_subplot(grid[0, place])
            x = np.arange(truth[:shown].size)
            axis.fill_between(x, truth[:shown], color=FAINT, step="mid", lw=0)
            axis.plot(x, truth[:shown], color=GREY, lw=1.2, drawstyle="steps-mid")
            axis.plot(x, states[state, :shown], color=VERMILION, lw=1.5, drawstyle="steps-mid")
            axis.set(ylim=(-limit, limit), xticks=[], yticks=[])
            axis.set_title(f"t = {steps[state]}", fontsize=12, weight="normal")
            axis.spines[:].set_visible(False)
        below = figure.add_subplot(grid[1, :])
        below.plot(error, color=VERMILION, lw=2.4)
        below.plot(chosen, error[chosen], "o", color=VERMILION, ms=7)
        below.set_xticks(chosen, [f"t = {steps[state]}" for state in chosen])
        below.set(ylim=(0, 1.1 * error.max()), ylabel="relative\ndistance")
        figure.suptitle(
            "one token: the state on its way, over the weights it should become (grey)",
            fontsize=12, x=0.01, ha="left",
        )  # fmt: skip
    return _closed(figure)


def _heat(figure: Figure, axis, values: np.ndarray, label: str | None, limit: float | None = None):
    finite = np.abs(values[np.isfinite(values)])
    limit = limit or (float(np.quantile(finite, 0.99)) if finite.size else 0.0) or 1.0
    look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "aspect": "auto"}
    image = axis.imshow(values, interpolation="nearest", **look)
    bar = figure.colorbar(image, ax=axis, fraction=0.04, aspect=30, label=label)
    bar.outline.set_visible(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _bands(axis, owner: np.ndarray, names: Sequence[str]) -> None:
    """Runs of tokens with one owner: a line between them, their name at the left where it fits."""
    cuts = np.flatnonzero(np.diff(owner)) + 1
    for cut in cuts if len(cuts) < 60 else []:
        axis.axhline(cut - 0.5, color=INK, lw=0.8)
    if len(names):
        ticks, labels = [], []
        for start, end in zip([0, *cuts], [*cuts, len(owner)], strict=True):
            middle = (start + end - 1) / 2
            if not ticks or middle - ticks[-1] > len(owner) / 30:  # else they would overlap
                ticks.append(middle)
                labels.append(names[owner[start]])
        axis.set_yticks(ticks, labels, fontsize=10)
        axis.set_ylabel("")


def _array(values) -> np.ndarray:
    values = values.detach().cpu().float() if hasattr(values, "detach") else values
    return np.asarray(values)


def _closed(figure: Figure) -> Figure:
    plt.close(figure)  # else a notebook shows it twice
    return figure
