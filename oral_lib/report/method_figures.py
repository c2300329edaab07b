"""Pictures of the method for the notebooks: tokens, schedule, prototypes and a token on its way;
and the pictures that a style's adapters paint.

Every function returns a closed matplotlib Figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from oral_lib.report.theme import BLUE, FAINT, GREY, INK, PADDING, VERMILION, closed, styled


def tokens_picture(
    values,
    owner: Sequence[int] | None = None,
    names: Sequence[str] = (),
    mask=None,
    column: str = "value",
) -> Figure:
    """An adapter as tokens: one row a token, one column a number of it, padding in grey; `column`
    says what such a number is.

    values `[l, k]`; owner `[l]` the group a token belongs to (its tensor, or its module type),
    named by `names`; mask `[l, k]` true where a value is real.
    """
    shown = _array(values)
    shown = shown if mask is None else np.where(_array(mask).astype(bool), shown, np.nan)
    with styled():
        figure, axis = plt.subplots(figsize=(9, 5.2), layout="constrained")
        axis.set_facecolor(PADDING)
        _heat(figure, axis, shown, column)
        axis.set(xlabel=f"{column} of the token", ylabel="token")
        axis.set_title(f"{shown.shape[0]} tokens of {shown.shape[1]} {column}s")
        if owner is not None:
            _bands(axis, _array(owner), names)
    return closed(figure)


def schedule_picture(abar) -> Figure:
    """How much of the token and how much noise is left at each diffusion step t; abar `[t]`."""
    abar = _array(abar)
    steps = np.arange(len(abar))
    with styled():
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
    return closed(figure)


def prototypes_picture(p, owner: Sequence[int] | None = None, names: Sequence[str] = ()) -> Figure:
    """The prototypes P `[l, m]`, and how alike they are: the cosine of every pair of tokens."""
    p = _array(p)
    unit = p / np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-12)
    with styled():
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.5, 5), layout="constrained", width_ratios=(1.1, 1)
        )
        _heat(figure, left, p, None)
        left.set(xlabel=f"width (m = {p.shape[1]})", ylabel="token", title="prototypes")
        _heat(figure, right, unit @ unit.T, "cosine", limit=1.0)
        right.set(xlabel="token", title="likeness of two tokens")
        if owner is not None:
            _bands(left, _array(owner), names)
    return closed(figure)


def denoising_picture(states, truth, steps: Sequence[int] | None = None, shown: int = 48) -> Figure:
    """One token on its way from noise to weights: states `[s, k]` in order, beside truth `[k]`.

    Six states at most, the first `shown` numbers of each, and the distance to the truth below.
    `steps` names the diffusion step t of each state.
    """
    states, truth = _array(states), _array(truth)
    steps = np.arange(len(states)) if steps is None else np.asarray(steps)
    chosen = np.unique(np.linspace(0, len(states) - 1, min(6, len(states))).round().astype(int))
    error = np.linalg.norm(states - truth, axis=1) / max(np.linalg.norm(truth), 1e-12)
    limit = 1.05 * max(np.abs(states[:, :shown]).max(), np.abs(truth[:shown]).max())
    with styled():
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
            "one token: the state on its way, over what it should become (grey)",
            fontsize=12, x=0.01, ha="left",
        )  # fmt: skip
    return closed(figure)


PAINTERS = {"base": GREY, "trained": BLUE, "generated": VERMILION}


def painted_picture(rows: Mapping[str, Sequence]) -> Figure:
    """Rows of pictures, each with its name at the left: the first holds real ones, which stand
    apart; those below it were painted, the pictures of a column from one noise.

    rows: uint8 [n, 3, h, w] by name, n the same for all.
    """
    shown = {name: np.moveaxis(np.asarray(row), 1, -1) for name, row in rows.items()}
    side, gap, left, above = 1.25, 0.07, 1.35, 0.36  # inches: of a picture, and beside it
    width = left + side * len(next(iter(shown.values())))
    tall = side * len(shown) + 2 * above
    with styled():
        figure = plt.figure(figsize=(width, tall))
        for place, (name, row) in enumerate(shown.items()):
            top = tall - side * place - (above if place == 0 else 2 * above) + gap
            said = {0: "held-out pictures", 1: "painted: a column shares its noise"}.get(place, "")
            figure.text(left / width, (top + 0.08) / tall, said, fontsize=10.5, color="#6b6b6b")
            figure.text(
                (left - 0.16) / width, (top - side / 2) / tall, name, ha="right", va="center",
                fontsize=13, weight="bold", color=PAINTERS.get(name, INK),
            )  # fmt: skip
            for column, picture in enumerate(row):
                corner = ((left + side * column) / width, (top - side + gap) / tall)
                axis = figure.add_axes((*corner, (side - gap) / width, (side - gap) / tall))
                axis.imshow(picture)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=True, color=PADDING, linewidth=0.8)
    return closed(figure)


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
