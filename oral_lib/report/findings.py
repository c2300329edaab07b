"""What the paired comparisons say, in plain words and in both directions.

The targets, on every base model and task with signal: generated within half a point of trained, or
above it, or not to be told from it by the paired 95% interval; an unseen wording keeps at least 95%
of the gain over the better of base and majority; another task's text loses at least 80% of it.
"""

from collections.abc import Callable, Iterator

import pandas as pd

from oral_lib.evaluation.schema import PLACE
from oral_lib.report.comparisons import CONTROLS, FLOORS, RIVALS
from oral_lib.report.formats import ABSENT

CLOSE = 0.005  # generated is to lie at most half a point below trained, or inside the interval
KEPT = 0.95  # an unseen wording is to keep at least 95% of the gain
LOST = 0.80  # another task's text is to lose at least 80% of the gain
SIMPLE = ["soup_task", "retrieval", "regression"]  # rivals that know the task and need no diffusion
NAMES = {
    "soup_task": "the per-task soup",
    "soup_all": "the all-task soup",
    "retrieval": "retrieval",
    "regression": "plain regression",
    "gaussian": "the Gaussian of the task's adapters",
    "noise_small": "a trained adapter with little noise",
    "noise_large": "a trained adapter with much noise",
    "unconditional": "the generator without condition",
    "multitask": "one LoRA for all tasks",
    "linear_probe": "the linear probe",
    "base": "the base model",
    "majority": "the majority class",
    "paraphrase": "An unseen wording",
    "mismatched": "Another task's text",
    "random": "Random words",
    "empty": "No text",
}


def verdict(compared: pd.DataFrame) -> tuple[list[str], list[str]]:
    """`contrasts` in words: sentences of summary, and a paragraph a base model and task."""
    cells = [_Cell(*place[2:], rows) for place, rows in compared.groupby(PLACE, sort=False)]
    summary = _summary([cell for cell in cells if cell.signal])
    silent = [cell.name for cell in cells if cell.signal is False]
    if silent:
        summary.append(
            f"No signal, and so no part in these counts: {listed(silent)}. Where the trained LoRA "
            "is not surely better than the base model and the majority class, equalling it proves "
            "nothing."
        )
    unknown = [cell.name for cell in cells if cell.signal is None]
    if unknown:
        summary.append(f"Not judged, for want of base, trained or generated: {listed(unknown)}.")
    return summary, [" ".join(cell.words()) for cell in cells]


def overview(compared: pd.DataFrame) -> pd.DataFrame:
    """In how many cells with signal each target is reached: one row an experiment and source."""
    table = []
    for (experiment, source), rows in compared.groupby(PLACE[:2], sort=False):
        cells = [_Cell(*place[2:], own) for place, own in rows.groupby(PLACE, sort=False)]
        told = [cell for cell in cells if cell.signal]
        judged = {
            "reach trained": [cell.close for cell in told],
            "keep 95%, unseen wording": [c.enough_kept for c in told if "paraphrase" in c.ran],
            "lose 80%, other text": [c.enough_lost for c in told if "mismatched" in c.ran],
            "beat soup, retrieval and regression": [not c.as_good for c in told if c.rivals],
        }
        counts = {
            name: f"{sum(reached)} of {len(reached)}" if reached else ABSENT
            for name, reached in judged.items()
        }
        line = {"experiment": experiment, "source": source, "cells": len(cells)}
        table.append(line | {"with signal": len(told)} | counts)
    return pd.DataFrame(table)


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class _Cell:
    """The paired comparisons of one base model and task."""

    def __init__(self, base: str, task: str, rows: pd.DataFrame):
        self.name = f"{task} on {base}"
        found = {
            (row.what, row.against): row for row in rows.dropna(subset="difference").itertuples()
        }
        gains = (found.get(("trained", floor)) for floor in FLOORS)
        self.gain = next((row for row in gains if row is not None), None)
        self.gap = found.get(("generated", "trained"))
        judged = self.gain is not None and self.gap is not None
        self.signal = bool(self.gain.ci_low > 0) if judged else None
        self.near = judged and self.gap.difference >= -CLOSE
        self.level = judged and self.gap.ci_low <= 0 <= self.gap.ci_high
        self.lost = {what.split()[-1]: row for (what, _), row in found.items() if "lost" in what}
        self.ran = {what.split()[-1] for what in rows.what if what.startswith("lost")}
        self.rivals = {name: row for name in RIVALS if (row := found.get(("generated", name)))}

    @property
    def close(self) -> bool:
        return self.near or self.level

    @property
    def enough_kept(self) -> bool:
        row = self.lost.get("paraphrase")
        return row is not None and 1 - row.difference >= KEPT

    @property
    def enough_lost(self) -> bool:
        row = self.lost.get("mismatched")
        return row is not None and row.difference >= LOST

    @property
    def as_good(self) -> list[str]:
        """The simple rivals that the generator does not surely beat."""
        return [name for name in SIMPLE if name in self.rivals and self.rivals[name].ci_low <= 0]

    def words(self) -> Iterator[str]:
        yield f"**{self.name}**{' (no signal)' if self.signal is False else ''}."
        if self.gain is not None:
            floor = NAMES[self.gain.against]
            yield f"Trained over the better of base and majority ({floor}): {_points(self.gain)}."
        yield from self._gap()
        if self.signal is False:
            yield "Without a signal neither parity nor a loss means anything here."
            return
        yield from self._controls()
        yield from self._rivals()

    def _gap(self) -> Iterator[str]:
        if self.gap is None:
            yield "Generated and trained were not both run."
            return
        if self.gap.ci_low > 0:
            side = "above trained"
        elif self.near:
            side = "within half a point of trained"
        else:
            side = "not to be told from trained" if self.level else "below trained"
        yield f"Generated is **{side}**: {_points(self.gap)}, {self.gap.n_items} items."
        if self.close and self.gap.ci_low < -CLOSE:
            yield "The interval reaches below −0.5 points: these items cannot settle it."

    def _controls(self) -> Iterator[str]:
        if self.ran and not self.lost:
            yield "The generator's gain is not surely above zero: no text can be said to lose it."
        for name in CONTROLS:
            row = self.lost.get(name)
            if row is None:
                continue
            if name == "paraphrase":
                verb, share, wanted = "keeps", _share(row, keep=True), KEPT
                reached, doubt = self.enough_kept, row.ci_low <= 1 - KEPT <= row.ci_high
            else:
                verb, share, wanted = "lose" if name == "random" else "loses", _share(row), LOST
                reached, doubt = self.enough_lost, row.ci_low <= LOST <= row.ci_high
            end = "."
            if name in ("paraphrase", "mismatched"):
                end = f", target of {wanted:.0%} **{'reached' if reached else 'missed'}**"
                end += f" (the interval holds {wanted:.0%})." if doubt else "."
            yield f"{NAMES[name]} {verb} {share} of the gain{end}"

    def _rivals(self) -> Iterator[str]:
        sides = {"equals": [], "beats": [], "is below": []}
        for name, row in self.rivals.items():
            side = "beats" if row.ci_low > 0 else "is below" if row.ci_high < 0 else "equals"
            sides[side].append(f"{NAMES[name]} ({_signed(row.difference)})")
        for side, names in sides.items():
            if names:
                yield f"The generator {side} {listed(names)}."
        if self.as_good:
            yield "So this cell does not show that diffusion is needed."


def _summary(cells: list[_Cell]) -> list[str]:
    """Sentences about the cells with signal."""
    if not cells:
        return ["No cell with a signal could be judged: nothing follows about the generator."]
    total = len(cells)
    near = sum(cell.near for cell in cells)
    level = sum(cell.close for cell in cells) - near
    words = [
        _target(
            "Generated lies within half a point of trained, or above it, or the paired 95% "
            "interval holds no difference",
            cells,
            lambda cell: cell.close,
            lambda cell: f"{_signed(cell.gap.difference)}, {_ends(cell.gap)}",
        )
        + f" Of the {total}, {near} are near or above by their means, {level} by the interval "
        f"alone (these items cannot tell them apart), and {total - near - level} lie surely below "
        "trained by more than that."
    ]
    for name, what, reached in (
        (
            "paraphrase",
            "Wordings never used in training keep at least 95% of the gain",
            lambda cell: cell.enough_kept,
        ),
        (
            "mismatched",
            "Another task's text loses at least 80% of the gain",
            lambda cell: cell.enough_lost,
        ),
    ):
        ran = [cell for cell in cells if name in cell.ran]
        if ran:
            words.append(_target(what, ran, reached, lambda cell, name=name: _missed(cell, name)))
        else:
            costs = {"paraphrase": "an unseen wording", "mismatched": "another task's text"}
            words.append(f"What {costs[name]} costs was not measured.")
    words += _simple(cells)
    return words


def _target(
    what: str, cells: list[_Cell], reached: Callable[[_Cell], bool], figures: Callable[[_Cell], str]
) -> str:
    """How many cells reach a target, and those that do not by name with their figures."""
    missed = [f"{cell.name} ({figures(cell)})" for cell in cells if not reached(cell)]
    total, verdict = len(cells), "missed" if missed else "reached"
    text = f"{what} in {total - len(missed)} of {total} cells with signal. Target **{verdict}**"
    return f"{text} by {listed(missed)}." if missed else f"{text}."


def _missed(cell: _Cell, name: str) -> str:
    row = cell.lost.get(name)
    if row is None:
        return "its own gain is not surely above zero"
    return f"keeps {_share(row, keep=True)}" if name == "paraphrase" else f"loses {_share(row)}"


def _simple(cells: list[_Cell]) -> Iterator[str]:
    """Whether soup, retrieval or regression does as well, each by itself and together."""
    equal = sum(bool(cell.as_good) for cell in cells)
    total = len(cells)
    if equal:
        each = []
        for name in SIMPLE:
            ran = [cell for cell in cells if name in cell.rivals]
            if ran:
                count = sum(name in cell.as_good for cell in ran)
                each.append(f"{NAMES[name]} in {count}" + f" of {len(ran)}" * (len(ran) < total))
        yield (
            f"In {equal} of {total} cells the per-task soup, retrieval or plain regression does as "
            f"well as the generator ({listed(each)}): parity with trained does not show that "
            "diffusion is needed."
        )
    elif all(cell.rivals for cell in cells):
        yield "The generator beats per-task soup, retrieval and regression in every cell."


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _ends(row) -> str:
    return f"{_signed(row.ci_low)} to {_signed(row.ci_high)}"


def _points(row) -> str:
    p = "p < 0.001" if row.p < 0.001 else f"p = {row.p:.2g}"
    return f"{_signed(row.difference)} points (95% interval {_ends(row)}, {p})"


def _share(row, keep: bool = False) -> str:
    """The share of the gain that is lost, or kept, with its interval."""
    value, low, high = row.difference, row.ci_low, row.ci_high
    if keep:
        value, low, high = 1 - value, 1 - high, 1 - low
    return f"{100 * value:.0f}% ({100 * low:.0f} to {100 * high:.0f})".replace("-", "−")
