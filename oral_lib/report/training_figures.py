"""The figures of how results came about: losses, what each part is worth, what training costs.

Every function returns a closed matplotlib Figure, as those of `figures` do.
"""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from oral_lib.evaluation.schema import REFERENCE
from oral_lib.report.theme import (
    BLUE,
    CURVES,
    FAINT,
    GREY,
    INK,
    LINES,
    VERMILION,
    closed,
    note,
    styled,
)

TRAINING = "train LoRAs"  # the benchmark that `benchmarks` draws


def loss_curves(frame: pd.DataFrame) -> Figure:
    """Training losses, smoothed; frame: columns series, step, loss.

    A series called "zoo/movie seed 0" is drawn in the panel "zoo" under the name "movie", as one
    curve with its other seeds (the band holds them all), in the colour of that name elsewhere.
    """
    parts = frame.series.astype(str).str.extract(r"^(?:(.*?)/)?(.*?)(?: seed \d+)?$")
    frame = frame.assign(panel=parts[0].fillna(""), name=parts[1])
    panels = list(frame.groupby("panel", sort=True))
    names = dict.fromkeys(name for _, rows in panels for name in sorted(rows.name.unique()))
    looks = dict(zip(names, ((c, s) for s in LINES for c in CURVES), strict=False))
    most = max(rows.name.nunique() for _, rows in panels)
    wide = 1 if len(panels) == 1 else 2
    tall = -(-len(panels) // wide)
    with styled():
        size = (7.6 * wide, 0.6 + tall * max(2.9, 0.9 + 0.22 * most))
        figure, axes = plt.subplots(tall, wide, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (panel, rows) in zip(axes.flat, panels, strict=False):
            ends = [_curve(axis, one, *looks[one[0]]) for one in rows.groupby("name")]
            made = {about for _, _, about, _ in ends}
            title = panel
            if len(ends) > 3 and len(made) == 1:  # what all names share is said once
                title = f"{panel} ({made.pop()})"
                ends = [(height, name, "", colour) for height, name, _, colour in ends]
            axis.set(yscale="log", xlim=(0, 100), title=title, ylabel="loss")
            low, high = axis.get_ylim()
            between = (1, 2, 3, 5) if high < 300 * low else (1,)  # labels must not overlap
            axis.yaxis.set_major_locator(LogLocator(subs=between))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            _label_ends(figure, axis, ends)
        for axis in axes.flat[max(0, len(panels) - wide) : len(panels)]:
            axis.set_xlabel("share of training, percent")
    return closed(figure)


def _curve(axis, named: tuple[str, pd.DataFrame], colour: str, line) -> tuple[float, str, str, str]:
    """Draws the mean curve of a name and the band of its runs; last height, name, runs, colour."""
    name, rows = named
    share, smooth = np.linspace(0, 100, 201), []
    runs = [run.sort_values("step") for _, run in rows.groupby("series")]
    for run in runs:
        at = 100 * run.step / max(1, run.step.max())
        loss = run.loss.ewm(span=max(1, len(run) // 12)).mean()
        smooth.append(np.interp(share, at, loss))
        if len(runs) == 1:
            axis.plot(at, run.loss, color=colour, lw=0.8, alpha=0.22)
    if len(runs) > 1:
        band = (np.min(smooth, axis=0), np.max(smooth, axis=0))
        axis.fill_between(share, *band, color=colour, alpha=0.13, lw=0)
    mean = np.exp(np.mean(np.log(np.maximum(smooth, 1e-12)), axis=0))
    axis.plot(share, mean, color=colour, lw=2, ls=line)
    seeds = f"{len(runs)} seeds, " if len(runs) > 1 else ""
    return float(mean[-1]), name, f"{seeds}{rows.step.max():,} steps", colour


def _label_ends(figure: Figure, axis, ends: Sequence[tuple[float, str, str, str]]) -> None:
    """Names at the right of their curves, in the order of their ends, none over another."""
    figure.canvas.draw()  # the scale is only known once drawn
    points = axis.bbox.height * 72 / figure.dpi
    gap, top, spots = min(13.5 / points, 1 / max(1, len(ends) - 1)), 1.0, []
    places = axis.transData.transform([(0, height) for height, *_ in ends])
    heights = axis.transAxes.inverted().transform(places)[:, 1]
    order = np.argsort(heights)
    for place in order:  # pushed up where they would touch, then down again from the top
        spots.append(max(heights[place], spots[-1] + gap) if spots else heights[place])
    for i in reversed(range(len(spots))):
        spots[i] = min(spots[i], top)
        top = spots[i] - gap
    for spot, place in zip(spots, order, strict=True):
        _, name, about, colour = ends[place]
        lead = ([1.005, 1.03], [heights[place], spot])
        axis.plot(*lead, transform=axis.transAxes, color=colour, lw=0.8, clip_on=False)
        text = f"{name} ({about})" if about else name
        axis.annotate(
            text, (1.04, spot), xycoords="axes fraction", color=colour, va="center", fontsize=10,
            annotation_clip=False,
        )  # fmt: skip


def ablations(
    frame: pd.DataFrame, trained: float | None = None, label: str = "accuracy in percent"
) -> Figure:
    """What each part of the generator is worth: one panel a group, one row a variant.

    frame: columns group, variant, value, ci_low, ci_high (between 0 and 1) and default (bool), in
    the order in which they are shown. Rows of the group "reference" (trained, soup, base) are
    lines through all panels, as is `trained`; a base model far below is told in words.
    """
    lines = dict(frame[frame.group == "reference"].groupby("variant", sort=False).value.mean())
    lines |= {} if trained is None else {"trained": trained}
    frame = frame[frame.group != "reference"]
    groups = list(frame.groupby("group", sort=False))
    ends = [*frame.ci_low, *frame.ci_high, *(v for name, v in lines.items() if name != "base")]
    room = 0.04 * (max(ends) - min(ends)) or 0.01
    limits = (100 * (min(ends) - room), 100 * (max(ends) + room))
    told = "filled: the default at that commit; bar: 95% interval over items"
    if 100 * lines.get("base", 1) < limits[0]:
        told += f"; base model: {100 * lines.pop('base'):.1f}"
    half = len(frame) / 2 if len(groups) > 2 else len(frame)
    columns, count = [[]], 0
    for group in groups:  # two columns of about the same height
        if columns[0] and len(columns) == 1 and count + len(group[1]) / 2 > half:
            columns.append([])
        columns[-1].append(group)
        count += len(group[1])
    tall = max(sum(len(rows) + 1.4 for _, rows in column) for column in columns)
    with styled():
        figure = plt.figure(figsize=(6.2 * len(columns), 0.9 + 0.31 * tall), layout="constrained")
        outer = figure.add_gridspec(1, len(columns))
        for place, column in enumerate(columns):
            heights = [len(rows) + 0.4 for _, rows in column]
            spare = tall - sum(len(rows) + 1.4 for _, rows in column)
            ratios = heights + [spare] * (spare > 0)
            inner = outer[place].subgridspec(len(ratios), 1, height_ratios=ratios)
            for i, (group, rows) in enumerate(column):
                axis = figure.add_subplot(inner[i])
                _variants(axis, group, rows, lines, limits, named=i == 0)
                if i + 1 == len(column):
                    axis.set_xlabel(label)
                else:
                    axis.tick_params(labelbottom=False)
        figure.supxlabel(told, fontsize=10.5)
    return closed(figure)


def _variants(axis, group: str, rows: pd.DataFrame, lines, limits, named: bool) -> None:
    axis.set_title(f"{group}\n" if named and lines else group, fontsize=12)
    near, last = 0.08 * (limits[1] - limits[0]), -np.inf
    places = sorted(100 * value for value in lines.values())
    for name, value in sorted(lines.items(), key=lambda line: line[1]):
        colour, place = BLUE if name == "trained" else GREY, 100 * value
        axis.axvline(place, color=colour, lw=1.4, ls=(0, (4, 2)), zorder=0)
        touched = any(0 < other - place < near for other in places)  # names part where they touch
        side = "left" if place - last < near else "right" if touched else "center"
        if named:
            axis.annotate(
                name, (place, 1), (2 * (side == "left"), 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", color=colour, ha=side, fontsize=9.5,
            )  # fmt: skip
        last = place
    for place, row in enumerate(rows.itertuples()):
        colour = VERMILION if row.default else INK
        axis.axhline(place, color=FAINT, lw=1, zorder=-1)
        axis.plot([100 * row.ci_low, 100 * row.ci_high], [place] * 2, color=colour, lw=2)
        filled = colour if row.default else "white"
        axis.plot(100 * row.value, place, "o", ms=7, color=colour, mfc=filled, mew=1.6)
        note(axis, 1.02, place, f"{100 * row.value:.1f}", ha="left", colour=colour)
    axis.set_yticks(range(len(rows)), [str(name) for name in rows.variant], fontsize=10.5)
    for label, row in zip(axis.get_yticklabels(), rows.itertuples(), strict=True):
        label.set_color(VERMILION if row.default else INK)
    axis.set(ylim=(len(rows) - 0.5, -0.7), xlim=limits)
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)


def benchmarks(frame: pd.DataFrame) -> Figure:
    """How fast LoRAs are trained S at a time: adapters an hour, and the share of the device's peak.

    frame: rows of benchmarks.csv of the benchmark "train LoRAs": variant "S at once" or "plain"
    (one after the other by PEFT alone), metric "adapters an hour" (where there is none, "speed
    over plain") and "share of limit". One curve a base model and device.
    """
    frame = frame[frame.benchmark == TRAINING]
    size = frame.variant.str.extract(r"^(\d+) at once$")[0].astype(float)
    frame = frame.assign(size=size)
    rate = "adapters an hour" if (frame.metric == "adapters an hour").any() else "speed over plain"
    shares = frame[frame.metric == "share of limit"]
    with styled():
        wide = 2 if len(shares) else 1
        figure, axes = plt.subplots(
            1, wide, figsize=(6.6 * wide, 4.3), squeeze=False, layout="constrained"
        )
        curves = list(frame.dropna(subset="size").groupby(["case", "device"], sort=False))
        several = frame.device.nunique() > 1
        for colour, ((case, device), rows) in zip(cycle(CURVES), curves):
            name = f"{case}, {device}" if several else case
            for axis, metric, scale in zip(
                axes[0], (rate, "share of limit"), (1, 100), strict=False
            ):
                line = rows[rows.metric == metric].sort_values("size")
                if line.empty:
                    continue
                axis.plot(line["size"], scale * line.value, "o-", color=colour, lw=2, label=name)
                last, value = line["size"].iloc[-1], scale * line.value.iloc[-1]
                ends = frame[(frame.metric == metric) & (frame["size"] == last)].value * scale
                near = ends[(ends / value).between(0.9, 1.1)]  # itself among them
                lift = 12 * (near.lt(value).sum() - (len(near) - 1) / 2)
                axis.annotate(
                    f"{value:,.0f}" if value >= 100 else f"{value:.3g}", (last, value), (7, lift),
                    textcoords="offset points", color=colour, va="center", fontsize=10.5,
                    annotation_clip=False,
                )  # fmt: skip
            plain = frame[(frame.variant == "plain") & (frame.metric == rate)]
            plain = plain[(plain.case == case) & (plain.device == device)].value
            height = plain.iloc[0] if len(plain) else 1.0 if rate == "speed over plain" else None
            if height is not None:
                other = frame[(frame.variant == "plain") & (frame.metric == rate)].value / height
                below = other.between(1, 1.6, inclusive="right").any()  # no room above the line
                right = 0.99 - 0.4 * (other.lt(1).sum() % 2)  # neighbours stand side by side
                axes[0, 0].axhline(height, color=colour, lw=1.4, ls=(0, (4, 2)))
                axes[0, 0].annotate(
                    f"PEFT, one by one: {height:,.0f}" if rate != "speed over plain" else "PEFT",
                    (right, height), (0, -4 if below else 4), xycoords=("axes fraction", "data"),
                    color=colour, textcoords="offset points", ha="right", fontsize=9.5,
                    va="top" if below else "bottom",
                )  # fmt: skip
        sizes = sorted(frame["size"].dropna().unique())
        for axis in axes[0]:
            axis.set_xscale("log", base=2)
            axis.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
            axis.minorticks_off()
            axis.set_xlabel("adapters trained at once (S)")
            axis.grid(color=FAINT, lw=0.8)
            axis.set_axisbelow(True)
        axes[0, 0].set_title(rate)
        drawn = frame[frame.metric == rate].value
        if drawn.max() > 10 * drawn.min():
            axes[0, 0].set_yscale("log")
            axes[0, 0].set_ylim(drawn.min() / 2, None)
        else:
            axes[0, 0].set_ylim(0, None)
        axes[0, 0].yaxis.set_major_formatter("{x:,g}")
        if wide == 2:
            axes[0, 1].set(title="share of the device's peak, percent", ylim=(0, None))
        if len(curves) > 1:
            figure.legend(
                *axes[0, 0].get_legend_handles_labels(),
                loc="outside upper left", ncols=wide, frameon=False, fontsize=10.5,
            )  # fmt: skip
        if not several and len(frame):
            figure.supxlabel(str(frame.device.iloc[0]), fontsize=10.5)
    return closed(figure)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """[(group, variant), metrics]: means over tasks and bases, shares in percent; the default of a
    group is starred."""
    shares = ["accuracy", "spread", "unseen", "other", "zeros"]
    name = frame.variant.astype(str) + np.where(frame.default, " *", "")
    named = frame.assign(variant=name)
    wide = named.pivot_table(
        index=["group", "variant"], columns="metric", values="value", aggfunc="mean", sort=False
    )
    wide = wide.reindex(columns=[*shares, "denoising", "seconds", "parameters"])
    wide[shares] = 100 * wide[shares]
    return wide


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """[group, variant, default, value, ci_low, ci_high]: accuracy, the mean over tasks and bases.

    Tasks have rows of their own, so their intervals add up as independent errors do.
    """
    return ablation_table(frame[frame.metric == "accuracy"])


def words(frame: pd.DataFrame) -> list[str]:
    """One sentence a group: is a variant better than the default by more than the items explain?

    Intervals of variants are taken as independent, though all see the same rows: "more than the
    items explain" is said too seldom rather than too often.
    """
    said, every = [], means(frame)
    for group, rows in every[every.group != REFERENCE].groupby("group", sort=False):
        if not rows.default.any():
            said.append(f"{group}: the default is not measured yet.")
            continue
        own, best = rows[rows.default].iloc[0], rows.loc[rows.value.idxmax()]
        text = f"{group}: the default, {own.variant}, reaches {own.value:.1%}"
        if best.value <= own.value:
            said.append(f"{text}; no variant is above it.")
            continue
        if group == "statistics":
            other = frame[(frame.group == group) & ~frame.default & (frame.metric == "other")]
            told = f"{best.value:.1%}, and {other.value.mean():.1%} when told of another task"
            said.append(f"{text}; with statistics of each task {told}: there they carry the task.")
            continue
        gap = best.value - own.value
        unsure = np.hypot(own.ci_high - own.value, best.value - best.ci_low)
        sure = "more than" if gap > unsure else "within what"
        said.append(
            f"{text}; {best.variant} is {100 * gap:.1f} points above, {sure} the items explain."
        )
    return said


def ablation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a group and variant, in their order: the mean over base models, tasks and seeds.

    rows: group, variant, default, value, ci_low and ci_high of one metric and source. Tasks have
    items of their own, so the errors of their means add up as independent ones do; the seeds of a
    task share its items, so their intervals are averaged.
    """
    place = ["group", "variant", *(name for name in ("base", "task") if name in rows)]
    rows = rows.assign(below=rows.value - rows.ci_low, above=rows.ci_high - rows.value)
    how = {"value": "mean", "default": "all", "below": "mean", "above": "mean"}
    if len(place) > 2:
        rows = rows.groupby(place, as_index=False, sort=False).agg(how)
    rows = rows.assign(below=rows.below**2, above=rows.above**2, count=1)
    groups = rows.groupby(["group", "variant"], as_index=False, sort=False)
    found = groups.agg(how | {"below": "sum", "above": "sum", "count": "sum"})
    low = found.value - np.sqrt(found.below) / found["count"]
    high = found.value + np.sqrt(found.above) / found["count"]
    names = ["group", "variant", "default", "value"]
    return found[names].assign(ci_low=low, ci_high=high)
