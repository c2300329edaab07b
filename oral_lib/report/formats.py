"""Tables as Markdown, LaTeX or aligned columns; numbers and lists as words."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

ABSENT, NO_SIGNAL, IMPOSSIBLE = "–", "†", "×"
METHOD_WORDS = {
    "majority": "majority class",
    "base": "base model",
    "trained": "trained",
    "trained_zoo": "trained, zoo seeds",
    "trained_held_out": "trained, held-out seeds",
    "soup_task": "soup",
    "soup_all": "all-task soup",
    "multitask": "multi-task LoRA",
    "retrieval": "retrieval",
    "router": "router",
    "regression": "regression",
    "generated": "generated",
    "generated_one": "one generated sample",
    "generated_span": "generated, span",
    "generated_free": "generated, no projection",
    "gaussian": "Gaussian",
    "noise_small": "small noise",
    "noise_large": "large noise",
    "unconditional": "unconditional",
    "linear_probe": "linear probe",
    "multitask_described": "description in the input",
    "zero_shot": "zero-shot cosine",
    "prompted": "description in the prompt",
    "prompted_4": "prompt with 4 examples",
    "soup_nearest": "soup of nearest",
    "mixture": "span mixture",
    "complement": "complement",
    "ridge_bits": "ridge on class bits",
    "generated_through_base": "generated, through the base",
    **{f"few_shot_{k}": f"LoRA on {k} row{'s' * (k > 1)}" for k in (1, 2, 4, 8, 16, 32)},
}
BRACKETS = re.compile(r" (\[[^]]+\])(?!\()")  # the base model in a cell of the grid; no link
TEXT_COLUMNS = ("experiment", "base model", "base", "task")


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown; text in brackets goes on a second line, in small print."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    text = "\n".join(f"| {' | '.join(_plain(cell, '|') for cell in row)} |" for row in rows)
    return BRACKETS.sub(r"<br><sub>\1</sub>", text) + "\n"


def latex(table: pd.DataFrame) -> str:
    """The table as a LaTeX tabular for booktabs, every special character escaped."""
    head, *body = (
        " & ".join(tex(_plain(cell)) for cell in row) + r" \\"
        for row in [list(table.columns), *table.to_numpy().tolist()]
    )
    n_text = sum(name in TEXT_COLUMNS for name in table.columns)
    columns = "l" * n_text + "r" * (table.shape[1] - n_text)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    text = "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
    return BRACKETS.sub(r" {\\footnotesize \1}", text)


def tex(text: str) -> str:
    """`text` with LaTeX's special characters escaped."""
    escapes = {sign: f"\\{sign}" for sign in "&%$#_{}"}
    escapes |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escapes |= {NO_SIGNAL: r"\dag{}", IMPOSSIBLE: r"$\times$"}
    escapes |= {"±": r"$\pm$", "–": "--", "−": "$-$", "<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(escapes.get(sign, sign) for sign in text)


def _plain(cell, forbidden: str = "") -> str:
    """A table cell as text, with `forbidden` escaped by a backslash."""
    text = (ABSENT if np.isnan(cell) else f"{cell:.4g}") if isinstance(cell, float) else str(cell)
    return text.replace(forbidden, f"\\{forbidden}") if forbidden else text


def aligned_lines(table: pd.DataFrame) -> list[str]:
    """The lines of the table in columns of equal width: names left, numbers right."""
    rows = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    left = [name in ("experiment", "base model", "task") for name in table.columns]

    def line(row: Sequence) -> str:
        cells = zip(row, widths, left, strict=True)
        return "  ".join(f"{cell!s:{'<' if to_left else '>'}{w}}" for cell, w, to_left in cells)

    rule = "  ".join("-" * width for width in widths)
    return [line(rows[0]), rule, *(line(row) for row in rows[1:])]


# ---------------------------------------------------------------- numbers and lists
def listed(words: Sequence) -> str:
    """`a, b and c`."""
    words = [str(word) for word in words]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def signed_points(share: float) -> str:
    """A difference of two shares in percentage points, with its sign: `+1.2`, `−0.3` or `0.0`."""
    text = f"{100 * share:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def points_interval(row) -> str:
    """The ends of a difference's interval in points: `−1.2 to +0.3`."""
    return f"{signed_points(row.ci_low)} to {signed_points(row.ci_high)}"


def difference(row) -> str:
    """A row of `judged` in points, with interval and state: `−0.4 (−1.2 to +0.3) undecided`.

    A missing row is a dash.
    """
    if row is None:
        return ABSENT
    return f"{signed_points(row.difference)} ({points_interval(row)}) {row.state}".rstrip()


def share_interval(row, *, kept: bool = False) -> str:
    """The share of the gain that is lost (or kept), and its interval: `96% (91 to 101)`."""
    value, *ends = (100 * (kept + (1 if kept else -1) * x) for x in
                    (row.share, row.share_low, row.share_high))  # fmt: skip
    low, high = sorted(ends)
    return f"{value:z.0f}% ({low:z.0f} to {high:z.0f})".replace("-", "−")
