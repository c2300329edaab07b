"""The look of all figures: one style, colours that colour-blind readers tell apart, and the same
bytes every time a figure is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from oral_lib.storage import replacing

# seaborn's "colorblind" palette (after Wong 2011); importing seaborn for it costs seconds
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"
BROWN, GREY, SKY = "#ca9161", "#949494", "#56b4e9"
INK, FAINT, PADDING = "#2b2b2b", "#e9e9e9", "#c9c9c9"
CURVES = [VERMILION, BLUE, GREEN, PURPLE, ORANGE, BROWN, SKY, INK, GREY]
LINES = ["-", (0, (5, 1.5)), ":"]  # more names than colours
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


@contextmanager
def styled() -> Iterator[None]:
    with plt.rc_context(STYLE):
        yield


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Writes the figure as PNG, PDF and SVG, the same bytes each time; returns the paths."""
    paths = []
    for kind, metadata in NO_DATE.items():
        path = Path(folder) / f"{name}.{kind}"
        with styled(), replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata=metadata, facecolor="white")
        paths.append(path)
    return paths


def closed(figure: Figure) -> Figure:
    plt.close(figure)  # else a notebook shows it twice
    return figure


def note(axis, x: float, y: float, words: str, *, ha="center", size=9.0, colour="#8a8a8a", **look):
    """Writes `words` at the share x of the width and the value y, perhaps outside the axes."""
    axis.annotate(
        words, (x, y), xycoords=("axes fraction", "data"), ha=ha, va="center", fontsize=size,
        color=colour, annotation_clip=False, **look,
    )  # fmt: skip
