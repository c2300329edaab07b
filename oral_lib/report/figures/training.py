"""The figures of training: loss curves, and the speed of training many LoRAs at once.

Every function returns a matplotlib Figure.
"""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from oral_lib.report.figures.theme import CURVES, DASHED, FAINT, LINES, styled, subplots


# ---------------------------------------------------------------- loss curves
def loss_curves(curves: pd.DataFrame) -> Figure:
    """Smoothed training losses; `curves` has the columns series, step and loss.

    A series called "zoo/movie seed 0" is drawn in the panel "zoo" under the name "movie". It shares
    one curve with its other seeds, and the band spans all of them. A name has the same colour in
    all panels.
    """
    parts = curves.series.astype(str).str.extract(r"^(?:(.*?)/)?(.*?)(?: seed \d+)?$")
    curves = curves.assign(panel=parts[0].fillna(""), name=parts[1])
    panels = list(curves.groupby("panel", sort=True))
    names = dict.fromkeys(name for _, rows in panels for name in sorted(rows.name.unique()))
    looks = dict(zip(names, ((c, s) for s in LINES for c in CURVES), strict=False))
    most = max(rows.name.nunique() for _, rows in panels)
    n_columns = 1 if len(panels) == 1 else 2
    n_rows = -(-len(panels) // n_columns)
    with styled():
        size = (7.6 * n_columns, 0.6 + n_rows * max(2.9, 0.9 + 0.22 * most))
        figure, axes = subplots(n_rows, n_columns, figsize=size, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (panel, rows) in zip(axes.flat, panels, strict=False):
            ends = [_curve(axis, name, group, *looks[name]) for name, group in rows.groupby("name")]
            lengths = {length for _, _, length, _ in ends}
            title = panel
            if len(ends) > 3 and len(lengths) == 1:  # shared by all names: in the title only
                title = f"{panel} ({lengths.pop()})"
                ends = [(height, name, "", colour) for height, name, _, colour in ends]
            axis.set(yscale="log", xlim=(0, 100), title=title, ylabel="loss")
            low, high = axis.get_ylim()
            between = (1, 2, 3, 5) if high < 300 * low else (1,)  # labels must not overlap
            axis.yaxis.set_major_locator(LogLocator(subs=between))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            _label_ends(figure, axis, ends)
        for axis in axes.flat[max(0, len(panels) - n_columns) : len(panels)]:
            axis.set_xlabel("share of training, percent")
    return figure


def _curve(
    axis: Axes, name: str, rows: pd.DataFrame, colour: str, line
) -> tuple[float, str, str, str]:
    """(last height, name, "seeds, steps", colour) of the mean curve, drawn with its band."""
    share, smooth = np.linspace(0, 100, 201), []
    runs = [run.sort_values("step") for _, run in rows.groupby("series")]
    for run in runs:
        progress = 100 * run.step / max(1, run.step.max())
        loss = run.loss.ewm(span=max(1, len(run) // 12)).mean()
        smooth.append(np.interp(share, progress, loss))
        if len(runs) == 1:
            axis.plot(progress, run.loss, color=colour, lw=0.8, alpha=0.22)
    if len(runs) > 1:
        band = (np.min(smooth, axis=0), np.max(smooth, axis=0))
        axis.fill_between(share, *band, color=colour, alpha=0.13, lw=0)
    mean = np.exp(np.mean(np.log(np.maximum(smooth, 1e-12)), axis=0))
    axis.plot(share, mean, color=colour, lw=2, ls=line)
    seeds = f"{len(runs)} seeds, " if len(runs) > 1 else ""
    return float(mean[-1]), name, f"{seeds}{rows.step.max():,} steps", colour


def _label_ends(figure: Figure, axis: Axes, ends: Sequence[tuple[float, str, str, str]]) -> None:
    """Write the names right of their curves, in the order of the ends and without overlap."""
    figure.canvas.draw()  # the transforms are only valid once drawn
    points = axis.bbox.height * 72 / figure.dpi
    gap = min(13.5 / points, 1 / max(1, len(ends) - 1))
    pixels = axis.transData.transform([(0, height) for height, *_ in ends])
    heights = axis.transAxes.inverted().transform(pixels)[:, 1]
    order = np.argsort(heights)
    for label, i in zip(_apart(heights[order], gap), order, strict=True):
        _, name, length, colour = ends[i]
        lead = ([1.005, 1.03], [heights[i], label])
        axis.plot(*lead, transform=axis.transAxes, color=colour, lw=0.8, clip_on=False)
        text = f"{name} ({length})" if length else name
        axis.annotate(
            text, (1.04, label), xycoords="axes fraction", color=colour, va="center", fontsize=10,
            annotation_clip=False,
        )  # fmt: skip


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The ascending `heights`, moved up and then down from 1 until they are `gap` apart."""
    labels = []
    for height in heights:
        labels.append(max(height, labels[-1] + gap) if labels else height)
    top = 1.0
    for i in reversed(range(len(labels))):
        labels[i] = min(labels[i], top)
        top = labels[i] - gap
    return labels


# ---------------------------------------------------------------- training speed
TRAINING = "train LoRAs"  # the benchmark that `training_speed` draws
RATE, SPEEDUP, PEAK = "adapters an hour", "speed over plain", "share of limit"  # metrics


def training_speed(benchmarks: pd.DataFrame) -> Figure:
    """Speed of training S LoRAs at once, and the share of the device's peak: one curve per case.

    `benchmarks` are rows of benchmarks.csv. Of the benchmark "train LoRAs", the variants
    "S at once" are the curves, and "plain" (PEFT, one adapter after the other) is a dashed line.
    The left panel shows "adapters an hour", or "speed over plain" if that was not measured.
    """
    rows = benchmarks[benchmarks.benchmark == TRAINING]
    size = rows.variant.str.extract(r"^(\d+) at once$")[0].astype(float)
    rows = rows.assign(size=size)
    rate = RATE if (rows.metric == RATE).any() else SPEEDUP
    metrics = [rate, PEAK] if (rows.metric == PEAK).any() else [rate]
    curves = list(rows.dropna(subset="size").groupby(["case", "device"], sort=False))
    devices = list(rows.device.unique())
    with styled():
        width = 6.6 * len(metrics)
        figure, axes = subplots(1, len(metrics), figsize=(width, 4.3), squeeze=False)
        for colour, ((case, device), curve) in zip(cycle(CURVES), curves):
            label = f"{case}, {device}" if len(devices) > 1 else case
            for axis, metric in zip(axes[0], metrics, strict=True):
                _speed_curve(axis, metric, rows, curve, label, colour)
            _plain_line(axes[0, 0], rate, rows, case, device, colour)
        for axis in axes[0]:
            _size_axis(axis, sorted(rows["size"].dropna().unique()))
        _rate_axis(axes[0, 0], rate, rows[rows.metric == rate].value)
        if PEAK in metrics:
            axes[0, 1].set(title="share of the device's peak, percent", ylim=(0, None))
        if len(curves) > 1:
            figure.legend(
                *axes[0, 0].get_legend_handles_labels(),
                loc="outside upper left", ncols=len(metrics), frameon=False, fontsize=10.5,
            )  # fmt: skip
        if len(devices) == 1:
            figure.supxlabel(str(devices[0]), fontsize=10.5)
    return figure


def _speed_curve(
    axis: Axes, metric: str, rows: pd.DataFrame, curve: pd.DataFrame, label: str, colour: str
) -> None:
    """Draw a metric of a case over S and write the last value next to its end.

    `rows` are the rows of all cases, `curve` the rows of the case.
    """
    line = curve[curve.metric == metric].sort_values("size")
    if line.empty:
        return
    scale = 100 if metric == PEAK else 1
    axis.plot(line["size"], scale * line.value, "o-", color=colour, lw=2, label=label)
    last, value = line["size"].iloc[-1], scale * line.value.iloc[-1]
    ends = rows[(rows.metric == metric) & (rows["size"] == last)].value * scale
    close = ends[(ends / value).between(0.9, 1.1)]  # `value` is one of them
    lift = 12 * (close.lt(value).sum() - (len(close) - 1) / 2)
    axis.annotate(
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}", (last, value), (7, lift),
        textcoords="offset points", color=colour, va="center", fontsize=10.5,
        annotation_clip=False,
    )  # fmt: skip


def _plain_line(
    axis: Axes, rate: str, rows: pd.DataFrame, case: str, device: str, colour: str
) -> None:
    """Draw the rate of plain PEFT as a dashed line; its label avoids the labels of other cases.

    `rows` are the rows of all cases. A speed-up over plain that was not measured is 1.
    """
    plain = rows[(rows.variant == "plain") & (rows.metric == rate)]
    values = plain[(plain.case == case) & (plain.device == device)].value
    if values.empty and rate != SPEEDUP:
        return
    height = 1.0 if values.empty else values.iloc[0]
    ratios = plain.value / height
    below = ratios.between(1, 1.6, inclusive="right").any()  # no room above the line
    right = 0.99 - 0.4 * (ratios.lt(1).sum() % 2)  # neighbouring labels alternate
    axis.axhline(height, color=colour, lw=1.4, ls=DASHED)
    axis.annotate(
        "PEFT" if rate == SPEEDUP else f"PEFT, one by one: {height:,.0f}",
        (right, height), (0, -4 if below else 4), xycoords=("axes fraction", "data"),
        color=colour, textcoords="offset points", ha="right", fontsize=9.5,
        va="top" if below else "bottom",
    )  # fmt: skip


def _size_axis(axis: Axes, sizes: Sequence[float]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("adapters trained at once (S)")
    axis.grid(color=FAINT, lw=0.8)
    axis.set_axisbelow(True)


def _rate_axis(axis: Axes, title: str, values: pd.Series) -> None:
    """Title and scale of the left panel: logarithmic if the values span a factor of 10."""
    axis.set_title(title)
    if values.max() > 10 * values.min():
        axis.set_yscale("log")
        axis.set_ylim(values.min() / 2, None)
    else:
        axis.set_ylim(0, None)
    axis.yaxis.set_major_formatter("{x:,g}")
