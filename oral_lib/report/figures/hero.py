"""The figure at the top of the README: one sentence, and the answers before and after.

Every function returns a matplotlib Figure.
"""

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import (
    BAND,
    INK,
    LOOKS,
    PALE,
    SMALL_TEXT,
    footnote,
    mark_of,
    styled,
    subplots,
)

_ORDER = ["base", "generated", "router"]
_RIGHT, _WRONG = "✓", "✗"
_INPUT, _SENTENCE = 44, 52  # characters of a line


def hero_figure(answers: pd.DataFrame, *, base: str, remark: str = "") -> Figure:
    """One panel per sentence: the same inputs answered by the base model and by adapters.

    The base model answers without an adapter, `generated` and `router` with the adapter that each
    makes or picks from the sentence. ✓ and ✗ say whether the answer is right.

    Args:
        answers: rows of `small_tables.ANSWERS` on one base model, one per sentence, input and
            method.
        base: the name of the base model.
        remark: sentences of the footnote: where the inputs come from, and what was counted.
    """
    panels = list(answers.groupby("sentence", sort=False))
    methods = [name for name in _ORDER if name in set(answers.method)]
    wrapped = {text: textwrap.wrap(text, _INPUT) for text in dict.fromkeys(answers.input)}
    wrapped = {text: [*lines[:3]] for text, lines in wrapped.items()}
    n_lines = [sum(_units(wrapped[text]) for text in part.input.unique()) for _, part in panels]
    heads = [len(textwrap.wrap(sentence, _SENTENCE)) for sentence, _ in panels]
    with styled():
        height = 0.5 + sum(
            0.175 * n + 0.2 * head + 0.5 for n, head in zip(n_lines, heads, strict=True)
        )
        ratios = [0.175 * n + 0.3 for n in n_lines]
        figure, axes = subplots(
            len(panels), 1, height=height, squeeze=False, height_ratios=ratios,
        )  # fmt: skip
        for axis, (sentence, part) in zip(axes[:, 0], panels, strict=True):
            title = "\n".join(textwrap.wrap(f"“{sentence}”", _SENTENCE + 20))
            axis.set_title(title, fontsize=11.5, pad=4)
            _panel(axis, part, methods, wrapped)
        counts = {name: part for name, part in answers.groupby("method")}
        right = ", ".join(
            f"{LOOKS[name].label} {int((part.answer == part.truth).sum())} of {len(part)}"
            for name in methods
            for part in [counts[name]]
        )
        footnote(
            figure,
            f"{base}: the sentence above each panel is all that generator and router are given.",
            f"{_RIGHT} right, {_WRONG} wrong, with the probability of the answer.",
            f"Right here: {right}.",
            remark,
        )
    return figure


def _units(lines: list[str]) -> float:
    """The height of an input, in lines."""
    return len(lines) + 0.5


def _panel(axis: Axes, rows: pd.DataFrame, methods: list[str], wrapped: dict) -> None:
    """Inputs at the left, one column of answers per method."""
    places = [0.49 + 0.51 * i / len(methods) for i in range(len(methods))]
    total = sum(_units(wrapped[text]) for text in rows.input.unique())
    axis.set(xlim=(0, 1), ylim=(total, -1.1), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.text(0.008, -0.55, "input", color=PALE, fontsize=SMALL_TEXT, va="center")
    for x, name in zip(places, methods, strict=True):
        look = LOOKS[name]
        axis.plot(x + 0.012, -0.55, **mark_of(look, size=7))
        axis.text(x + 0.035, -0.55, look.label, fontsize=SMALL_TEXT, weight="bold", va="center")
    top = 0.0
    for i, text in enumerate(rows.input.unique()):
        height = _units(wrapped[text])
        if i % 2 == 0:
            axis.axhspan(top, top + height, color=BAND, lw=0, zorder=-1)
        middle = top + height / 2
        words = "\n".join(wrapped[text])
        axis.text(0.008, middle, words, fontsize=SMALL_TEXT, va="center", linespacing=1.15)
        entries = rows[rows.input == text].set_index("method")
        for x, name in zip(places, methods, strict=True):
            if name in entries.index:
                entry = entries.loc[name]
                right = entry.answer == entry.truth
                words = (
                    f"{_RIGHT if right else _WRONG} {entry.answer}  {100 * entry.probability:.0f}%"
                )
                look = {"weight": "bold" if right else "normal", "color": INK}
                axis.text(x + 0.003, middle, words, fontsize=SMALL_TEXT, va="center", **look)
        top += height
