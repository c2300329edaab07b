"""The look of all figures: one style, colours for colour-blind readers, byte-stable files."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from oral_lib.storage import replacing

# seaborn's "colorblind" palette (after Wong 2011); importing seaborn takes seconds
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"
BROWN, GREY, SKY = "#ca9161", "#949494", "#56b4e9"
INK, FAINT, PADDING = "#2b2b2b", "#e9e9e9", "#c9c9c9"
CURVES = [VERMILION, BLUE, GREEN, PURPLE, ORANGE, BROWN, SKY, INK, GREY]
LINES = ["-", (0, (5, 1.5)), ":"]  # line styles, for more names than colours
DASHED = (0, (4, 2))  # reference lines
STYLE = {
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.dpi": 110,
    "font.family": "DejaVu Sans",  # part of matplotlib: the same glyphs on every machine
    "font.size": 12,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "oral",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
NO_DATE = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


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
        data = io.BytesIO()
        with styled():
            self.savefig(data, format="png", dpi=self.dpi, bbox_inches="tight")
        return data.getvalue()


def new_figure(*, figsize: tuple[float, float], layout: str | None = "constrained") -> Figure:
    """An empty figure of a size in inches; call it within `styled`."""
    figure = StyledFigure(figsize=figsize, layout=layout)
    FigureCanvasAgg(figure)  # measures texts, in the same way everywhere
    return figure


def subplots(
    n_rows: int = 1, n_columns: int = 1, *, figsize: tuple[float, float], **options
) -> tuple[Figure, Any]:
    """A new figure and its axes, as of `matplotlib.figure.Figure.subplots` with `options`."""
    figure = new_figure(figsize=figsize)
    return figure, figure.subplots(n_rows, n_columns, **options)


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """The paths of the figure, written as PNG, PDF and SVG with the same bytes each time."""
    paths = []
    for kind, metadata in NO_DATE.items():
        path = Path(folder) / f"{name}.{kind}"
        with styled(), replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata=metadata, facecolor="white")
        paths.append(path)
    return paths


def note(axis, x: float, y: float, words: str, *, ha="center", size=9.0, colour="#8a8a8a", **look):
    """Write `words` at the share x of the width and the data value y, perhaps outside the axes."""
    axis.annotate(
        words, (x, y), xycoords=("axes fraction", "data"), ha=ha, va="center", fontsize=size,
        color=colour, annotation_clip=False, **look,
    )  # fmt: skip
