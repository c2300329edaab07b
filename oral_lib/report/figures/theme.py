"""The look of all figures: one meaning a colour, marks for states, byte-stable files.

A colour stands for a method, in every figure. Colours differ for readers with deuteranopia,
protanopia and tritanopia; each method also has its own mark. The state of a comparison is drawn by
the shape and filling of a mark, never by a colour.
"""

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from oral_lib.storage import replacing

FIGURE_WIDTH = 9.0  # inches: 9 points are 11 pixels when a figure is shown 900 pixels wide
SMALL_TEXT, TINY_TEXT = 9.5, 8.5  # sizes of text, in points
ORANGE, BLUE, GREEN, SKY = "#d9640a", "#0b3b85", "#078c51", "#7cc4ef"
MAGENTA, YELLOW, GREY, BROWN = "#c532c5", "#f0b90b", "#a6a6a6", "#4a2f0d"
INK, PALE, FAINT, PADDING, BAND = "#1a1a1a", "#6b6b6b", "#e9e9e9", "#c9c9c9", "#f5f5f5"
DASHED = (0, (4, 2))  # reference lines


class Look(NamedTuple):
    """How a method or a text is drawn: its name in words, colour and mark."""

    label: str
    colour: str
    mark: str


LOOKS = {
    "generated": Look("generated", ORANGE, "o"),
    "generated_span": Look("generated, projection span", ORANGE, "P"),
    "generated_free": Look("generated, no projection", ORANGE, "X"),
    "generated_through_base": Look("generated, through the base", ORANGE, "*"),
    "trained": Look("trained", BLUE, "s"),
    "few_shot": Look("LoRA on few rows", BLUE, "o"),
    "router": Look("router", GREEN, "*"),
    "retrieval": Look("retrieval", SKY, ">"),
    "soup_task": Look("adapter average (soup)", MAGENTA, "D"),
    "soup_all": Look("all-task average (soup)", MAGENTA, "d"),
    "soup_nearest": Look("soup of nearest", MAGENTA, "p"),
    "mixture": Look("span mixture", GREEN, "P"),
    "regression": Look("regression", YELLOW, "^"),
    "multitask": Look("multi-task LoRA", INK, "p"),
    "multitask_described": Look("description in the input", INK, "D"),
    "zero_shot": Look("zero-shot cosine", BROWN, "h"),
    "prompted": Look("description in the prompt", GREY, "d"),
    "prompted_4": Look("prompt with 4 examples", GREY, "P"),
    "linear_probe": Look("linear probe", INK, "h"),
    "unconditional": Look("unconditional", INK, "<"),
    "gaussian": Look("Gaussian", BROWN, "+"),
    "noise_small": Look("small noise", BROWN, "1"),
    "noise_large": Look("large noise", BROWN, "2"),
    "base": Look("base model", GREY, "x"),
    "majority": Look("majority class", GREY, "|"),
}
TEXT_LOOKS = {  # the text that the generator is conditioned on
    "matched": Look("task's own prompt", ORANGE, "o"),
    "paraphrase": Look("held-out paraphrase", ORANGE, "D"),
    "mismatched": Look("wrong-task prompt", ORANGE, "X"),
    "random": Look("random words", ORANGE, "^"),
    "empty": Look("empty prompt", ORANGE, "s"),
}
STATE_MARKS = {"equal": "o", "undecided": "o", "below": "v", "": "."}  # mark; undecided is hollow
STYLE = {
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": INK,
    "axes.labelsize": SMALL_TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",  # part of matplotlib: the same glyphs on every machine
    "font.size": 10,
    "legend.fontsize": SMALL_TEXT,
    "legend.frameon": False,
    "lines.markersize": 6,
    "svg.hashsalt": "oral",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": SMALL_TEXT,
    "ytick.color": INK,
    "ytick.labelsize": SMALL_TEXT,
}
_DPI = 100  # 900 pixels: the width of a page; SVG has the details
_PALETTE = 256  # colours of a PNG, at most: the most frequent ones
_PHOTO = 20_000  # a figure of more colours has photographs
_CHANGE, _CHANGED = 32, 0.002  # of 255; share of the pixels: edges of marks that overlap
DENSE = (
    "answers-",
    "loss-",
    "texts-",
    "textmap-",
    "dots-",
)  # photographs, long curves, fields of colour, many marks
NO_DATE = {"png": {"Software": None}, "svg": {"Date": None}}


# ---------------------------------------------------------------- figures and files
@contextmanager
def styled() -> Iterator[None]:
    """A context in which matplotlib draws in the style of the report.

    It starts from matplotlib's defaults, whatever matplotlibrc or style the user has.
    """
    with matplotlib.rc_context():  # restores the user's settings
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


class StyledFigure(Figure):
    """A figure outside of pyplot: no backend and no setting of the user draws it."""

    def _repr_png_(self) -> bytes:
        """The image that a notebook shows."""
        return _png(self, self.dpi)


def new_figure(height: float, *, width: float = FIGURE_WIDTH, layout: str | None = "constrained"):
    """An empty figure of a size in inches; call it within `styled`."""
    figure = StyledFigure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)  # measures texts, in the same way everywhere
    return figure


def subplots(
    n_rows: int = 1, n_columns: int = 1, *, height: float, width: float = FIGURE_WIDTH, **options
) -> tuple[Figure, Any]:
    """A new figure and its axes, as of `matplotlib.figure.Figure.subplots` with `options`."""
    figure = new_figure(height, width=width)
    return figure, figure.subplots(n_rows, n_columns, **options)


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """The paths of the figure, written as PNG and SVG with the same bytes each time.

    Figures with the names in `DENSE` are PNG only: an SVG of them is larger and shows no more.
    """
    paths = []
    for kind, metadata in NO_DATE.items():
        if kind == "svg" and name.startswith(DENSE):
            continue
        path = Path(folder) / f"{name}.{kind}"
        with styled(), replacing(path) as temporary:
            if kind == "png":
                Path(temporary).write_bytes(_png(figure, _DPI))
            else:
                figure.savefig(temporary, format=kind, metadata=metadata, facecolor="white")
        paths.append(path)
    return paths


def _png(figure: Figure, dpi: float) -> bytes:
    """The figure as PNG, with a palette if that changes no colour much: a third of the size."""
    full, small = io.BytesIO(), io.BytesIO()
    with styled():
        figure.savefig(full, format="png", dpi=dpi, metadata=NO_DATE["png"], facecolor="white")
    image = Image.open(full).convert("RGB")
    if (colours := image.getcolors(_PHOTO)) is not None:
        image = _with_palette(image, colours)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def _with_palette(image: Image.Image, colours: list[tuple[int, tuple[int, ...]]]) -> Image.Image:
    """`image` in the colours of methods and its most frequent others, each pixel in the nearest.

    `colours` has counts and colours. The image itself is returned if more than `_CHANGED` of the
    pixels would change by more than `_CHANGE` in a channel.
    """
    looks = [tuple(round(255 * x) for x in to_rgb(look.colour)) for look in LOOKS.values()]
    frequent = [colour for _, colour in sorted(colours, reverse=True)]
    palette = np.array(list(dict.fromkeys([*looks, *frequent]))[:_PALETTE])  # [p, 3]
    every = np.array([colour for _, colour in colours])  # [u, 3]
    nearest = ((every[:, None] - palette) ** 2).sum(-1).argmin(1)  # [u]
    counts = np.array([count for count, _ in colours])
    changed = counts[np.abs(palette[nearest] - every).max(1) > _CHANGE].sum()
    if changed > _CHANGED * counts.sum():
        return image
    weights = np.array([65536, 256, 1])
    order = np.argsort(every @ weights)
    codes = np.asarray(image).astype(np.int32) @ weights  # [h, w]
    index = order[np.searchsorted((every @ weights)[order], codes)]  # [h, w]
    reduced = Image.fromarray(nearest[index].astype(np.uint8), "P")
    reduced.putpalette(palette.astype(np.uint8).tobytes())
    return reduced


# ---------------------------------------------------------------- marks and words
def mark_of(look: Look, *, state: str | None = None, size: float = 6.5, alpha: float = 1.0) -> dict:
    """The arguments of `plot` for one mark of a method or text, or of a comparison's `state`."""
    shape = look.mark if state is None else STATE_MARKS[state]
    face = "white" if state == "undecided" else look.colour
    line = shape in "x|+12"  # has no inside
    edge = look.colour if line or state == "undecided" else INK
    look_of_edge = {"mec": edge, "mew": 1.8 if line or state == "undecided" else 0.5}
    size += 2.5 if shape == "*" else 0
    return {"marker": shape, "ls": "", "ms": size, "mfc": face, "alpha": alpha} | look_of_edge


def key(look: Look, label: str | None = None, **options) -> Line2D:
    """The entry of a legend for `mark_of(look, **options)`."""
    return Line2D([], [], label=label or look.label, **mark_of(look, **options))


def state_keys(rows: Iterable, against: str, look: Look = LOOKS["generated"]) -> list[Line2D]:
    """Entries of a legend for the states of `rows` of `comparisons.judged` that occur."""
    words = {
        "equal": f"{look.label}: equal to {against}",
        "undecided": f"{look.label}: undecided",
        "below": f"{look.label}: below {against}",
        "": f"{look.label}: no signal",
    }
    states = {row.state for row in rows}
    return [key(look, text, state=state) for state, text in words.items() if state in states]


def legend(figure: Figure, handles: Iterable, n_columns: int | None = None) -> None:
    """A legend above the panels, in rows as wide as the figure."""
    handles = list(handles)
    if n_columns is None:
        longest = max(len(handle.get_label()) for handle in handles)
        n_columns = max(1, int(14.5 * figure.get_figwidth() / (longest + 5)))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(n_columns, len(handles)),
        handletextpad=0.3, columnspacing=1.4, borderpad=0.2,
    )  # fmt: skip


def footnote(figure: Figure, *sentences: str) -> None:
    """Write sentences below the panels, among them the numbers of rows, samples and seeds."""
    text = " ".join(sentence for sentence in sentences if sentence)
    width = int(figure.get_figwidth() * 14.2)
    words = textwrap.fill(text, width)
    figure.supxlabel(words, x=0.01, ha="left", fontsize=SMALL_TEXT, color=INK)


def note(
    axis: Axes,
    x: float,
    y: float,
    words: str,
    *,
    ha="center",
    size=TINY_TEXT,
    colour=PALE,
    ground="none",
):
    """Write `words` at the share x of the width and the data value y, perhaps outside the axes."""
    axis.annotate(
        words, (x, y), xycoords=("axes fraction", "data"), ha=ha, va="center", fontsize=size,
        color=colour, annotation_clip=False, bbox={"fc": ground, "ec": "none", "pad": 1},
    )  # fmt: skip


def spaced(name: str) -> str:
    """A task's name in words: `review_topic` becomes `review topic`."""
    return str(name).replace("_", " ")


def extent(values: Iterable[float]) -> str:
    """The numbers in words: `600`, or `300 to 600`."""
    low, high = min(values), max(values)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def sizes(judged: pd.DataFrame, what: Sequence[str] = ("generated",), against="trained") -> str:
    """Rows, samples and adapters of comparisons in `comparisons.judged`, as a sentence."""
    rows = judged[judged.what.isin(what) & (judged.against == against)]
    if rows.empty:
        return ""
    counts = {"generated": extent(rows.n_what), against: extent(rows.n_against)}
    if against == "generated":  # one method under two texts
        counts = {
            "samples under a control text": extent(rows.n_what),
            "under the own": counts[against],
        }
        words = ", ".join(f"{count} {noun}" for noun, count in counts.items())
    else:
        words = f"{counts['generated']} generated samples, {counts[against]} {against} adapters"
    return f"n a cell: {extent(rows.n_items)} rows, {words}."


def signed_tick(value: float, _=None) -> str:
    """The label of a tick of differences: `−2`, `0` or `+2`."""
    return f"{value:+g}".replace("-", "−") if value else "0"
