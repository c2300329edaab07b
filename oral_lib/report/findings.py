"""The judgements in words, whether they favour the generator or not.

The input are rows of `comparisons.judged`. Undecided cells are counted as such, never as equal.
Every count of the generator stands next to the counts of simpler methods by the same rule.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from oral_lib.evaluation.schema import EITHER, PLACE
from oral_lib.report.comparisons import (
    ADDED_TO,
    ALTERNATIVES,
    BELOW,
    CONTROLS,
    EQUAL,
    GENERATED_THROUGH_BASE,
    STATES,
    UNDECIDED,
    WITH_TEXTS,
)
from oral_lib.report.formats import (
    ABSENT,
    METHOD_WORDS,
    difference,
    listed,
    points_interval,
    share_interval,
    signed_points,
)
from oral_lib.report.outcomes import BASELINES, STORED, TRAINED, TRAINED_HELD_OUT, TRAINED_ZOO
from oral_lib.report.tables.judgements import COUNTED

SIMPLE = ["router", "retrieval", "regression", "soup_task"]  # methods without diffusion
UNSEEN = "unseen"  # the experiment whose tasks are not in the zoo
TEXT_WORDS = {
    "paraphrase": "a held-out paraphrase",
    "mismatched": "a wrong-task prompt",
    "random": "random words",
    "empty": "an empty prompt",
}
RULES = """\
A cell is a task on a base model. Intervals are 95%, over new items, adapters, generator seeds and \
samples. A cell has a signal if trained is above the better of base model and majority class, \
after Holm's correction over the cells of the table. Only cells with signal are counted.

- **equal**: the whole interval of the difference to trained lies above −1 point, and above \
−10% of the gain of training;
- **below**: the whole interval lies under 0, and the method is not equal;
- **undecided**: all else. It does not count as equal.

A mean over many samples is known better than a single one: generated has up to 30 samples a cell, \
router 8, Gaussian 5, average and regression 1. Compare these with *one generated sample*.
"""


def overview(judged: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment and source: cells equal to trained / undecided / below, by method.

    The last row adds up the experiments whose tasks are in the zoo, if there are several. A method
    that was not measured has a dash; one that was measured in some cells only, their number.
    Training through the base, complement and ridge have a column only if they were measured.
    """
    lines = [
        {"experiment": experiment, "source": source} | _counts(rows)
        for (experiment, source), rows in judged.groupby(PLACE[:2], sort=False, observed=True)
    ]
    seen = judged[judged.experiment != UNSEEN]
    if seen[PLACE[:2]].drop_duplicates().shape[0] > 1:
        lines.append({"experiment": "all seen tasks", "source": ""} | _counts(seen))
    table = pd.DataFrame(lines)
    later = [METHOD_WORDS[name] for name in (GENERATED_THROUGH_BASE, "complement", "ridge_bits")]
    return table.drop(columns=[name for name in later if (table[name] == ABSENT).all()])


def _counts(rows: pd.DataFrame) -> dict[str, str | int]:
    """The numbers of cells, with signal, and in each state by method."""
    cells, signal = (r.drop_duplicates(PLACE) for r in (rows, rows[rows.signal]))
    line = {"cells": len(cells), "with signal": len(signal)}
    for method in COUNTED:
        states = rows[(rows.what == method) & (rows.against == TRAINED) & rows.signal].state
        text = " / ".join(str((states == state).sum()) for state in STATES)
        text += f" (of {len(states)})" * (len(states) < len(signal))
        line[METHOD_WORDS[method]] = text if len(states) else ABSENT
    return line


def verdict(judged: pd.DataFrame) -> tuple[list[str], list[str]]:
    """(sentences of summary, one paragraph per base model and task).

    `judged` are the rows of one experiment and source. A sentence of the summary that names cells
    ends in a nested Markdown list of them.
    """
    cells = _cells(judged)
    return list(_summary(cells)), [" ".join(cell.sentences()) for cell in cells]


# ---------------------------------------------------------------- one cell
class _Cell:
    """The comparisons of one base model and task; `signal` is None if trained was not measured."""

    def __init__(self, base: str, task: str, rows: pd.DataFrame):
        self.base, self.task, self.name = base, task, f"{task} on {base}"
        self._rows = {(row.what, row.against): row for row in rows.itertuples()}
        self.gain = next(filter(None, (self.row(TRAINED, name) for name in BASELINES)), None)
        self.signal = None if self.gain is None else bool(self.gain.signal)

    def row(self, what: str, against: str):
        """A row of `judged`, or None."""
        return self._rows.get((what, against))

    def text_row(self, method: str, text: str):
        """The row of a method with another text against its own text, or None."""
        return self.row(f"{method}/{text}", f"{method}/matched" if method in EITHER else method)

    def sentences(self) -> Iterator[str]:
        """The comparisons of this cell in words."""
        yield f"**{self.name}**{' (no signal)' if self.signal is False else ''}."
        if self.gain is not None:
            against = METHOD_WORDS[self.gain.against]
            yield f"Trained minus baseline ({against}): {_points(self.gain)}."
        gap = self.row("generated", TRAINED)
        if gap is None:
            yield "Generated and trained were not both measured."
            return
        state = f": **{gap.state}**" if gap.state else ""
        yield f"Generated minus trained: {_points(gap)}, {gap.n_items} items{state}."
        if self.signal is False:
            yield "Without signal, neither equality nor a loss can be interpreted."
            return
        if row := self.row("generated", TRAINED_HELD_OUT):
            yield f"Generated minus held-out seeds of trained: {difference(row)}."
        if others := self._others():
            yield f"By the same rule: {listed(others)}."
        yield from self._texts()
        yield from self._alternatives()

    def _others(self) -> list[str]:
        rows = {name: self.row(name, TRAINED) for name in COUNTED[1:]}
        return [f"{METHOD_WORDS[name]} {row.state}" for name, row in rows.items() if row]

    def _texts(self) -> Iterator[str]:
        for method in ("generated", "router"):
            for text in CONTROLS:
                row = self.text_row(method, text)
                if row is None:
                    continue
                kept = text == "paraphrase"
                share = f"; it {'keeps' if kept else 'loses'} {share_interval(row, kept=kept)} of "
                share = f"{share}its gain" if np.isfinite(row.share) else ""
                changed = f"{signed_points(row.difference)} points ({points_interval(row)})"
                with_text = f"{METHOD_WORDS[method].capitalize()} with {TEXT_WORDS[text]}"
                yield f"{with_text}: {changed}{share}."

    def _alternatives(self) -> Iterator[str]:
        sides: dict[str, list[str]] = {side: [] for side in _SIDES}
        for name in ALTERNATIVES:
            row = self.row("generated", name)
            if row is not None:
                words = f"{METHOD_WORDS[name]} ({signed_points(row.difference)})"
                sides[_side(row)].append(words)
        for side, names in sides.items():
            if names:
                yield f"The generator {side} {listed(names)}."


_SIDES = {  # of a sentence; in a count
    "is above": "above", "is not distinguished from": "interval contains 0", "is below": "below",
}  # fmt: skip


def _side(row) -> str:
    """On which side of 0 the interval of a difference lies."""
    above, neither, below = _SIDES
    return above if row.ci_low > 0 else below if row.ci_high < 0 else neither


def _cells(judged: pd.DataFrame) -> list[_Cell]:
    groups = judged.groupby(PLACE, sort=False, observed=True)
    return [_Cell(*place[2:], rows) for place, rows in groups]


# ---------------------------------------------------------------- all cells
def _summary(cells: Sequence[_Cell]) -> Iterator[str]:
    """Sentences about the cells of one experiment and source."""
    measured = [cell for cell in cells if cell.signal is not None]
    signal = [cell for cell in measured if cell.signal]
    if not signal:
        yield "No cell has a signal: nothing follows about the generator."
    else:
        yield from _against_trained(signal)
        yield from _against_simple(signal)
        yield from _through_base(signal)
        yield from _under_texts(signal)
    if weak := [cell for cell in measured if not cell.signal]:
        yield (
            "Cells without signal are excluded from these counts: after Holm's correction, trained "
            f"is not above the baseline, so a match proves nothing.{_nested(_by_base(weak))}"
        )
    if missing := [cell for cell in cells if cell.row("generated", TRAINED) is None]:
        yield f"Not evaluated, because trained or generated is missing:{_nested(_by_base(missing))}"


def _states(cells: Sequence[_Cell], what: str, against: str) -> dict[str, list[_Cell]]:
    """The cells in each state; empty if no cell has this comparison."""
    states: dict[str, list[_Cell]] = {state: [] for state in STATES}
    for cell in cells:
        if row := cell.row(what, against):
            states[row.state].append(cell)
    return states if any(states.values()) else {}


def _counted(states: Mapping[str, Sequence[_Cell]]) -> str:
    counts = [f"{state} in {len(states[state])}" for state in STATES]
    return f"{listed(counts)} of {sum(map(len, states.values()))}"


def _against_trained(cells: Sequence[_Cell]) -> Iterator[str]:
    """Generated, and every other method by the same rule, against trained."""
    states = _states(cells, "generated", TRAINED)
    if not states:
        return
    lines = [
        f"{cell.name}: {difference(cell.row('generated', TRAINED))}"
        for cell in (*states[BELOW], *states[UNDECIDED])
    ]
    yield f"Against trained, generated is {_counted(states)} cells with signal.{_nested(lines)}"
    others = {name: _states(cells, name, TRAINED) for name in COUNTED[1:]}
    lines = [f"{METHOD_WORDS[name]}: {_counted(s)}" for name, s in others.items() if s]
    if lines:
        yield f"Other methods by the same rule:{_nested(lines)}"
    for part in (TRAINED_ZOO, TRAINED_HELD_OUT):
        states = {name: _states(cells, name, part) for name in ("generated", *STORED, TRAINED_ZOO)}
        lines = [f"{METHOD_WORDS[name]}: {_counted(s)}" for name, s in states.items() if s]
        if lines:
            yield f"Against {METHOD_WORDS[part].replace(', ', ' with ')} only:{_nested(lines)}"


def _against_simple(cells: Sequence[_Cell]) -> Iterator[str]:
    """Generated against each simple method, and where both are equal to trained."""
    lines = []
    for name in SIMPLE:
        for ending, texts in (("", ""), ("/paraphrase", ", both with a held-out paraphrase")):
            rows = [row for cell in cells if (row := cell.row(f"generated{ending}", name + ending))]
            sides = [_side(row) for row in rows]
            counts = [f"{words} in {sides.count(side)}" for side, words in _SIDES.items()]
            if rows:
                lines.append(f"{METHOD_WORDS[name]}{texts}: {listed(counts)} of {len(rows)}")
    if lines:
        yield f"Generated against methods without diffusion:{_nested(lines)}"
    equal = _states(cells, "generated", TRAINED).get(EQUAL, [])
    also = {id(cell) for name in SIMPLE for cell in _states(equal, name, TRAINED).get(EQUAL, [])}
    if equal:
        yield (
            f"In {len(also)} of the {len(equal)} cells where generated equals trained, a method "
            "without diffusion does, too."
        )


def _through_base(cells: Sequence[_Cell]) -> Iterator[str]:
    """Whether training through the base adds to what methods without diffusion give."""
    measured = [cell for cell in cells if cell.row(GENERATED_THROUGH_BASE, TRAINED)]
    if not measured:
        return
    rows = {
        id(cell): [cell.row(GENERATED_THROUGH_BASE, name) for name in ADDED_TO] for cell in measured
    }
    above = sum(all(row and row.ci_low > 0 for row in of_cell) for of_cell in rows.values())
    below = len(_states(measured, GENERATED_THROUGH_BASE, TRAINED)[BELOW])
    names = listed([METHOD_WORDS[name] for name in ADDED_TO])
    yield (
        f"Trained through the base, generated is above each of {names} in {above} of "
        f"{len(measured)} cells (aim: a quarter), and below trained in {below} (aim: none)."
    )


def _under_texts(cells: Sequence[_Cell]) -> Iterator[str]:
    """What a paraphrase keeps and what other texts lose, by method."""
    for text in CONTROLS:
        lines = []
        for method in WITH_TEXTS:
            rows = [row for cell in cells if (row := cell.text_row(method, text))]
            if not rows:
                continue
            counts = [f"{state} in {sum(r.state == state for r in rows)}" for state in STATES]
            line = f"{METHOD_WORDS[method]}: {listed(counts)} of {len(rows)}"
            shares = [-row.share for row in rows if np.isfinite(row.share)]
            if shares:
                sign, verb = (1, "lost") if text != "paraphrase" else (-1, "kept")
                value = 100 * ((sign < 0) + sign * float(np.median(shares)))
                line += f"; median share of the gain {verb} {value:z.0f}% ({len(shares)} cells)"
            lines.append(line)
        if lines:
            yield f"With {TEXT_WORDS[text]}, against the own text:{_nested(lines)}"


def _by_base(cells: Sequence[_Cell]) -> list[str]:
    """One line per base model: its tasks among `cells`."""
    tasks: dict[str, list[str]] = {}
    for cell in cells:
        tasks.setdefault(cell.base, []).append(cell.task)
    return [f"{base}: {listed(names)}" for base, names in tasks.items()]


def _nested(lines: Sequence[str]) -> str:
    """A nested Markdown list that continues an item of a list."""
    return "".join(f"\n  - {line}" for line in lines)


def _points(row) -> str:
    p = "p < 0.001" if row.p < 0.001 else f"p = {row.p:.2g}"
    return f"{signed_points(row.difference)} points (95% interval {points_interval(row)}, {p})"
