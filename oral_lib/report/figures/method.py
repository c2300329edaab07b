"""The figures of the method: tokens, schedule, prototypes, denoising; and images of a style.

Every function returns a matplotlib Figure. Arrays may be numpy or torch. Shapes: l tokens of
k values, m the width of a prototype, s states of the sampling chain.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import (
    BLUE,
    BROWN,
    DASHED,
    FAINT,
    FIGURE_WIDTH,
    INK,
    LOOKS,
    ORANGE,
    PADDING,
    PALE,
    new_figure,
    styled,
    subplots,
)


def tokens_figure(
    values,
    owner: Sequence[int] | None = None,
    names: Sequence[str] = (),
    mask=None,
    column: str = "value",
) -> Figure:
    """An adapter as tokens: one row per token, one column per value, padding in grey.

    Args:
        values: [l, k].
        owner: [l], the group of each token (its tensor or module type), as an index into `names`.
        names: the names of the groups.
        mask: [l, k], true where a value is not padding.
        column: the word for a value ("value" or "component").
    """
    values = _array(values)
    values = values if mask is None else np.where(_array(mask).astype(bool), values, np.nan)
    with styled():
        figure, axis = subplots(height=5.2)
        axis.set_facecolor(PADDING)
        _heat(figure, axis, values, column)
        axis.set(xlabel=f"{column} of the token", ylabel="token")
        axis.set_title(f"{values.shape[0]} tokens of {values.shape[1]} {column}s")
        if owner is not None:
            _bands(axis, _array(owner), names)
    return figure


def schedule_figure(abar) -> Figure:
    """The weights of token and noise at every diffusion step t; abar [t]."""
    abar = _array(abar)
    steps = np.arange(len(abar))
    with styled():
        figure, axis = subplots(height=4)
        middle = int(np.argmin(np.abs(abar - 0.5)))
        beside = (middle + len(steps)) // 2  # right of the crossing there is room for both names
        for curve, text, colour, lift in (
            (np.sqrt(abar), r"token  $\sqrt{\bar\alpha_t}$", BLUE, 9),
            (np.sqrt(1 - abar), r"noise  $\sqrt{1-\bar\alpha_t}$", BROWN, -11),
        ):
            axis.plot(steps, curve, color=colour, lw=2.6)
            axis.annotate(
                text, (beside, curve[beside]), (4, lift), textcoords="offset points", color=colour,
                va="bottom" if lift > 0 else "top", fontsize=13,
            )  # fmt: skip
        axis.axvline(middle, color=PALE, lw=1.2, ls=DASHED)
        axis.text(middle, 0.02, f"  equal weights at t = {middle}", color=PALE, fontsize=10)
        axis.set(xlabel="diffusion step t", ylabel="weight", xlim=(0, steps[-1]), ylim=(0, 1.05))
        axis.set_yticks([0, 0.5, 1])
    return figure


def prototypes_figure(
    prototypes, owner: Sequence[int] | None = None, names: Sequence[str] = ()
) -> Figure:
    """The prototypes P [l, m], and the cosine similarity [l, l] of every pair.

    `owner` and `names` as in `tokens_figure`.
    """
    prototypes = _array(prototypes)
    norms = np.linalg.norm(prototypes, axis=1, keepdims=True)  # [l, 1]
    unit = prototypes / np.maximum(norms, 1e-12)  # [l, m]
    with styled():
        figure, (left, right) = subplots(1, 2, height=4.2, width_ratios=(1.1, 1))
        _heat(figure, left, prototypes, None)
        left.set(xlabel=f"width (m = {prototypes.shape[1]})", ylabel="token", title="prototypes")
        _heat(figure, right, unit @ unit.T, "cosine", limit=1.0)
        right.set(xlabel="token", title="similarity of two tokens")
        if owner is not None:
            _bands(left, _array(owner), names)
    return figure


def denoising_figure(
    states, truth, steps: Sequence[int] | None = None, n_values: int = 48
) -> Figure:
    """One token from noise to weights: at most six states, and the distance to the truth below.

    Args:
        states: [s, k], in the order of sampling.
        truth: [k], the clean token.
        steps: [s], the diffusion step t of each state; 0, 1, ... by default.
        n_values: how many of the k values are drawn.
    """
    states, truth = _array(states), _array(truth)
    steps = np.arange(len(states)) if steps is None else np.asarray(steps)
    chosen = np.unique(np.linspace(0, len(states) - 1, min(6, len(states))).round().astype(int))
    error = np.linalg.norm(states - truth, axis=1) / max(np.linalg.norm(truth), 1e-12)
    target = truth[:n_values]
    limit = 1.05 * max(np.abs(states[:, :n_values]).max(), np.abs(target).max())
    with styled():
        figure = new_figure(4.4)
        grid = figure.add_gridspec(2, len(chosen), height_ratios=(1.5, 1))
        for i, state in enumerate(chosen):
            axis = figure.add_subplot(grid[0, i])
            x = np.arange(target.size)
            axis.fill_between(x, target, color=FAINT, step="mid", lw=0)
            axis.plot(x, target, color=PALE, lw=1.2, drawstyle="steps-mid")
            axis.plot(x, states[state, :n_values], color=ORANGE, lw=1.5, drawstyle="steps-mid")
            axis.set(ylim=(-limit, limit), xticks=[], yticks=[])
            axis.set_title(f"t = {steps[state]}", fontsize=10, weight="normal")
            axis.spines[:].set_visible(False)
        below = figure.add_subplot(grid[1, :])
        below.plot(error, color=ORANGE, lw=2.4)
        below.plot(chosen, error[chosen], "o", color=ORANGE, ms=7)
        below.set_xticks(chosen, [f"t = {steps[state]}" for state in chosen])
        below.set(ylim=(0, 1.1 * error.max()), ylabel="relative\ndistance")
        figure.suptitle(
            "one token: the state at step t, and the clean token (grey)",
            fontsize=10.5, x=0.01, ha="left",
        )  # fmt: skip
    return figure


def style_figure(rows: Mapping[str, Sequence]) -> Figure:
    """Rows of images, each with its name at the left; a gap below the first, which are real ones.

    The images below are generated by adapters; all in a column share their initial noise.
    `rows` are uint8 images [n, 3, h, w] by name, with the same n.
    """
    rows = {name: np.moveaxis(np.asarray(row), 1, -1) for name, row in rows.items()}  # [n, h, w, 3]
    gap, left, above = 0.07, 1.2, 0.36  # inches
    side = min(1.25, (FIGURE_WIDTH - left) / len(next(iter(rows.values()))))
    width = left + side * len(next(iter(rows.values())))
    height = side * len(rows) + 2 * above
    with styled():
        figure = new_figure(height, width=width, layout=None)
        for i, (name, row) in enumerate(rows.items()):
            top = height - side * i - (above if i == 0 else 2 * above) + gap
            text = {0: "held-out images", 1: "generated: a column shares its noise"}.get(i, "")
            figure.text(left / width, (top + 0.08) / height, text, fontsize=10.5, color="#6b6b6b")
            figure.text(
                (left - 0.16) / width, (top - side / 2) / height, name, ha="right", va="center",
                fontsize=11, weight="bold", color=_colour(name),
            )  # fmt: skip
            for column, image in enumerate(row):
                corner = ((left + side * column) / width, (top - side + gap) / height)
                axis = figure.add_axes((*corner, (side - gap) / width, (side - gap) / height))
                axis.imshow(image)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=True, color=PADDING, linewidth=0.8)
    return figure


def _colour(name: str) -> str:
    """The colour of a row's name; real images and the base model are written in black."""
    return LOOKS[name].colour if name in ("trained", "generated") else INK


def _heat(
    figure: Figure, axis: Axes, values: np.ndarray, label: str | None, limit: float | None = None
) -> None:
    """A heat map with a colour bar; the colours span ±`limit`, by default the 99% quantile."""
    finite = np.abs(values[np.isfinite(values)])
    limit = limit or (float(np.quantile(finite, 0.99)) if finite.size else 0.0) or 1.0
    look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "aspect": "auto"}
    image = axis.imshow(values, interpolation="nearest", **look)
    bar = figure.colorbar(image, ax=axis, fraction=0.04, aspect=30, label=label)
    bar.outline.set_visible(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _bands(axis: Axes, owner: np.ndarray, names: Sequence[str]) -> None:
    """Lines between runs of tokens with one owner, and names at the left where they fit."""
    cuts = np.flatnonzero(np.diff(owner)) + 1
    for cut in cuts if len(cuts) < 60 else []:
        axis.axhline(cut - 0.5, color=INK, lw=0.8)
    if len(names):
        ticks, labels = [], []
        for start, end in zip([0, *cuts], [*cuts, len(owner)], strict=True):
            middle = (start + end - 1) / 2
            if not ticks or middle - ticks[-1] > len(owner) / 30:  # names must not overlap
                ticks.append(middle)
                labels.append(names[owner[start]])
        axis.set_yticks(ticks, labels, fontsize=10)
        axis.set_ylabel("")


def _array(values) -> np.ndarray:
    """A numpy array of an array or tensor."""
    values = values.detach().cpu().float() if hasattr(values, "detach") else values
    return np.asarray(values)
