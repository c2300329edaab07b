"""Whether a drawn figure can be read: what its texts cover, what is cut off, how small they are."""

import re
from contextlib import contextmanager
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SHOWN_WIDTH, SMALLEST = 900, 10  # pixels: of a figure in a README, of its smallest letters


@contextmanager
def _recorded(figure: Figure):
    """The texts that are drawn, each with its box in pixels."""
    texts, draw = [], Text.draw

    def record(self, renderer, *args, **options):
        if self.get_visible() and self.get_text().strip():
            texts.append((self, Text.get_window_extent(self, renderer)))
        return draw(self, renderer, *args, **options)

    Text.draw = record
    try:
        yield texts
    finally:
        Text.draw = draw


def faults(figure: Figure) -> list[str]:
    """What is wrong with the texts and marks of `figure`; empty if it can be read."""
    with _recorded(figure) as texts:
        figure.canvas.draw()
    words = [(text.get_text().replace("\n", " / "), _inner(box)) for text, box in texts]
    faulty = [
        f"{first!r} and {second!r} overlap"
        for (first, a), (second, b) in combinations(words, 2)
        if a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1
    ]
    width, height = figure.bbox.size
    faulty += [
        f"{text!r} is cut off"
        for text, box in words
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    scale = SHOWN_WIDTH / figure.get_figwidth() / 72
    faulty += [
        f"{text.get_text()!r} has {text.get_fontsize() * scale:.1f} pixels"
        for text, _ in texts
        if text.get_fontsize() * scale < SMALLEST
    ]
    faulty += [
        "a mark may lie outside of its panel"
        for axis in figure.axes
        for line in axis.lines
        if not line.get_clip_on() and line.get_marker() not in ("None", None)
    ]
    zeros = [word for word, _ in words if re.search(r"[-−]0(\.0+)?\b(?!\.)", word)]
    faulty += [f"{word!r} has a negative zero" for word in zeros]
    return faulty


def says_n(figure: Figure) -> bool:
    """Whether the figure names the numbers that it is made of."""
    words = " ".join(text.get_text() for text in figure.findobj(Text))
    return bool(re.search(r"\bn( a \w+)?[:=]? |\bn = |\bRuns: ", words))


def _inner(box: Bbox) -> Bbox:
    """The box without the room above and below the letters."""
    room = 0.15 * box.height if box.height < box.width else 0.0
    aside = 0.15 * box.width if box.height >= box.width else 0.0
    return Bbox([[box.x0 + aside, box.y0 + room], [box.x1 - aside, box.y1 - room]])


# ---------------------------------------------------------------- readers without all cones
DEFICIENCIES = {  # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip


def seen(colour: str, deficiency: str) -> np.ndarray:
    """The colour in CIELAB [3], as a reader with the deficiency sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = _XYZ @ np.clip(DEFICIENCIES[deficiency] @ linear, 0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
