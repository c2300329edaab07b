"""A table as text: in Markdown, in LaTeX and in aligned columns; and the signs in its cells."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

ABSENT, NO_SIGNAL, CANNOT = "–", "†", "×"
BRACKETS = re.compile(r" (\[[^]]+\])")  # the base model in a cell of the grid: small print


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown; what is in brackets goes below, in small print."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    text = "\n".join(f"| {' | '.join(_plain(cell, '|') for cell in row)} |" for row in rows)
    return BRACKETS.sub(r"<br><sub>\1</sub>", text) + "\n"


def latex(table: pd.DataFrame) -> str:
    """The table as a LaTeX tabular for booktabs, every special character escaped."""
    head, *body = (
        " & ".join(tex(_plain(cell)) for cell in row) + r" \\"
        for row in [list(table.columns), *table.to_numpy().tolist()]
    )
    words = sum(name in ("experiment", "base model", "base", "task") for name in table.columns)
    columns = "l" * words + "r" * (table.shape[1] - words)
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    text = "\n".join([*parts, r"\bottomrule", r"\end{tabular}"]) + "\n"
    return BRACKETS.sub(r" {\\footnotesize \1}", text)


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    escapes = {sign: f"\\{sign}" for sign in "&%$#_{}"}
    escapes |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escapes |= {NO_SIGNAL: r"\dag{}", CANNOT: r"$\times$"}
    escapes |= {"±": r"$\pm$", "–": "--", "−": "$-$", "<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(escapes.get(sign, sign) for sign in text)


def _plain(cell, forbidden: str = "") -> str:
    text = (ABSENT if np.isnan(cell) else f"{cell:.4g}") if isinstance(cell, float) else str(cell)
    return text.replace(forbidden, f"\\{forbidden}") if forbidden else text


def aligned(table: pd.DataFrame) -> list[str]:
    """The lines of the table in columns of equal width, names to the left, numbers to the right."""
    rows = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    names = {"experiment", "base model", "task"}
    left = [name in names for name in table.columns]

    def line(row: Sequence) -> str:
        cells = zip(row, widths, left, strict=True)
        return "  ".join(f"{cell!s:{'<' if to_left else '>'}{w}}" for cell, w, to_left in cells)

    rule = "  ".join("-" * width for width in widths)
    return [line(rows[0]), rule, *(line(row) for row in rows[1:])]
