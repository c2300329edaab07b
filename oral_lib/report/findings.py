"""The paired comparisons in words, whether they favour the generator or not.

Targets, for every base model and task with signal:

- generated is at most half a point below trained, or the paired 95% interval contains 0;
- a held-out paraphrase keeps at least 95% of the gain over the baseline;
- a wrong-task prompt loses at least 80% of the gain.

The baseline is the better of base model and majority class.
"""

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from oral_lib.evaluation.schema import PLACE
from oral_lib.report.comparisons import ALTERNATIVES, CONTROLS
from oral_lib.report.formats import (
    ABSENT,
    listed,
    points_interval,
    share_interval,
    signed_points,
)
from oral_lib.report.outcomes import BASELINES

CLOSE = 0.005  # largest shortfall against trained, as a share
KEPT = 0.95  # smallest share of the gain that a held-out paraphrase keeps
LOST = 0.80  # smallest share of the gain that a wrong-task prompt loses
SIMPLE = ["soup_task", "retrieval", "regression"]  # methods without diffusion
NAMES = {
    "soup_task": "soup",
    "soup_all": "all-task soup",
    "retrieval": "retrieval",
    "regression": "regression",
    "gaussian": "Gaussian",
    "noise_small": "small noise",
    "noise_large": "large noise",
    "unconditional": "unconditional",
    "multitask": "multi-task LoRA",
    "linear_probe": "linear probe",
    "base": "base model",
    "majority": "majority class",
    "paraphrase": "A held-out paraphrase",
    "mismatched": "A wrong-task prompt",
    "random": "A prompt of random words",
    "empty": "An empty prompt",
}


def verdict(compared: pd.DataFrame) -> tuple[list[str], list[str]]:
    """(sentences of summary, one paragraph per base model and task).

    `compared` are rows of `contrasts`. A sentence of the summary that names cells ends in a nested
    Markdown list of them.
    """
    cells = _cells(compared)
    summary = _summary([cell for cell in cells if cell.signal])
    if excluded := [cell for cell in cells if cell.signal is False]:
        summary.append(
            "Cells without signal are excluded from these counts: the interval of trained minus "
            "baseline is not above 0, so matching trained proves nothing."
            + _nested(_by_base(excluded))
        )
    if incomplete := [cell for cell in cells if cell.signal is None]:
        summary.append(
            "Not evaluated, because base, trained or generated is missing:"
            + _nested(_by_base(incomplete))
        )
    return summary, [" ".join(cell.sentences()) for cell in cells]


def overview(compared: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment and source: how many cells with signal reach each target."""
    table = []
    for (experiment, source), rows in compared.groupby(PLACE[:2], sort=False):
        cells = _cells(rows)
        counted = [cell for cell in cells if cell.signal]
        targets = {
            "match trained": [cell.close for cell in counted],
            "held-out paraphrase keeps 95%": [
                cell.enough_kept for cell in counted if "paraphrase" in cell.controls
            ],
            "wrong-task prompt loses 80%": [
                cell.enough_lost for cell in counted if "mismatched" in cell.controls
            ],
            "beat soup, retrieval and regression": [
                not cell.as_good for cell in counted if cell.alternatives
            ],
        }
        counts = {
            target: f"{sum(reached)} of {len(reached)}" if reached else ABSENT
            for target, reached in targets.items()
        }
        line = {"experiment": experiment, "source": source, "cells": len(cells)}
        table.append(line | {"with signal": len(counted)} | counts)
    return pd.DataFrame(table)


# ---------------------------------------------------------------- one cell
class _Cell:
    """The paired comparisons of one base model and task.

    `signal` is None where base, trained or generated is missing.
    """

    def __init__(self, base: str, task: str, rows: pd.DataFrame):
        self.base, self.task, self.name = base, task, f"{task} on {base}"
        contrast = {
            (row.what, row.against): row for row in rows.dropna(subset="difference").itertuples()
        }
        gains = (contrast.get(("trained", baseline)) for baseline in BASELINES)
        self.gain = next((row for row in gains if row is not None), None)
        self.gap = contrast.get(("generated", "trained"))
        complete = self.gain is not None and self.gap is not None
        self.signal = bool(self.gain.ci_low > 0) if complete else None
        self.near = complete and self.gap.difference >= -CLOSE
        self.contains_zero = complete and self.gap.ci_low <= 0 <= self.gap.ci_high
        self.lost = {what.split()[-1]: row for (what, _), row in contrast.items() if "lost" in what}
        self.controls = {what.split()[-1] for what in rows.what if what.startswith("lost")}
        self.alternatives = {
            name: row for name in ALTERNATIVES if (row := contrast.get(("generated", name)))
        }

    @property
    def close(self) -> bool:
        return self.near or self.contains_zero

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
        """The simple methods that generated does not beat: the interval is not above 0."""
        return [
            name
            for name in SIMPLE
            if name in self.alternatives and self.alternatives[name].ci_low <= 0
        ]

    def sentences(self) -> Iterator[str]:
        yield f"**{self.name}**{' (no signal)' if self.signal is False else ''}."
        if self.gain is not None:
            yield f"Trained minus baseline ({NAMES[self.gain.against]}): {_points(self.gain)}."
        yield from self._gap()
        if self.signal is False:
            yield "Without signal, neither a match nor a loss can be interpreted."
            return
        yield from self._controls()
        yield from self._alternatives()

    def _gap(self) -> Iterator[str]:
        if self.gap is None:
            yield "Generated and trained were not both measured."
            return
        if self.gap.ci_low > 0:
            side = "above trained"
        elif self.near:
            side = "within half a point of trained"
        else:
            side = "not significantly below trained" if self.contains_zero else "below trained"
        yield f"Generated is **{side}**: {_points(self.gap)}, {self.gap.n_items} items."
        if self.close and self.gap.ci_low < -CLOSE:
            yield "The interval extends below −0.5 points: these items are too few to decide."

    def _controls(self) -> Iterator[str]:
        if self.controls and not self.lost:
            yield "The interval of the gain is not above 0, so no share of it is defined."
        for name in CONTROLS:
            row = self.lost.get(name)
            if row is None:
                continue
            kept = name == "paraphrase"
            target, reached = (KEPT, self.enough_kept) if kept else (LOST, self.enough_lost)
            limit = 1 - KEPT if kept else LOST
            end = "."
            if name in ("paraphrase", "mismatched"):
                end = f", target of {target:.0%} **{'reached' if reached else 'missed'}**"
                within = row.ci_low <= limit <= row.ci_high
                end += f" (the interval contains {target:.0%})." if within else "."
            verb = "keeps" if kept else "loses"
            yield f"{NAMES[name]} {verb} {share_interval(row, kept=kept)} of the gain{end}"

    def _alternatives(self) -> Iterator[str]:
        sides = {"equals": [], "beats": [], "is below": []}
        for name, row in self.alternatives.items():
            side = "beats" if row.ci_low > 0 else "is below" if row.ci_high < 0 else "equals"
            sides[side].append(f"{NAMES[name]} ({signed_points(row.difference)})")
        for side, names in sides.items():
            if names:
                yield f"The generator {side} {listed(names)}."
        if self.as_good:
            yield "This cell does not show that diffusion is needed."


def _cells(compared: pd.DataFrame) -> list[_Cell]:
    return [_Cell(*place[2:], rows) for place, rows in compared.groupby(PLACE, sort=False)]


# ---------------------------------------------------------------- all cells
def _summary(cells: list[_Cell]) -> list[str]:
    """Sentences about the cells with signal."""
    if not cells:
        return ["No cell has a signal: nothing follows about the generator."]
    near = sum(cell.near for cell in cells)
    close = sum(cell.close for cell in cells)
    counts = (
        f" By the mean: {near}; by the interval only: {close - near}; by neither: "
        f"{len(cells) - close}."
    )
    sentences = [
        _target(
            "Generated is at most half a point below trained, or the paired 95% interval "
            "contains 0,",
            cells,
            lambda cell: cell.close,
            lambda cell: f"{signed_points(cell.gap.difference)}, {points_interval(cell.gap)}",
            counts,
        )
    ]
    for name, what, reached in (
        (
            "paraphrase",
            "Held-out paraphrases keep at least 95% of the gain",
            lambda cell: cell.enough_kept,
        ),
        (
            "mismatched",
            "Wrong-task prompts lose at least 80% of the gain",
            lambda cell: cell.enough_lost,
        ),
    ):
        measured = [cell for cell in cells if name in cell.controls]
        if measured:
            row = _target(what, measured, reached, lambda cell, name=name: _missed(cell, name))
            sentences.append(row)
        else:
            sentences.append(f"{NAMES[name]} was not measured.")
    sentences += _simple(cells)
    return sentences


def _target(
    what: str,
    cells: list[_Cell],
    reached: Callable[[_Cell], bool],
    figures: Callable[[_Cell], str],
    counts: str = "",
) -> str:
    """How many cells reach a target, and a list of those that miss it, with their figures."""
    missed = [f"{cell.name} ({figures(cell)})" for cell in cells if not reached(cell)]
    result = "missed" if missed else "reached"
    text = f"{what} in {len(cells) - len(missed)} of {len(cells)} cells with signal."
    text += f"{counts} Target **{result}**"
    return f"{text} by:{_nested(missed)}" if missed else f"{text}."


def _missed(cell: _Cell, name: str) -> str:
    row = cell.lost.get(name)
    if row is None:
        return "the interval of its gain is not above 0"
    kept = name == "paraphrase"
    return f"{'keeps' if kept else 'loses'} {share_interval(row, kept=kept)}"


def _simple(cells: list[_Cell]) -> Iterator[str]:
    """Whether the soup, retrieval or regression equals the generator, each and together."""
    equal, total = sum(bool(cell.as_good) for cell in cells), len(cells)
    if equal:
        counts = []
        for name in SIMPLE:
            measured = [cell for cell in cells if name in cell.alternatives]
            if measured:
                count = sum(name in cell.as_good for cell in measured)
                of = f" of {len(measured)}" * (len(measured) < total)
                counts.append(f"{NAMES[name]} in {count}{of}")
        yield (
            f"In {equal} of {total} cells a method without diffusion is as good as the generator: "
            f"{listed(counts)}. Matching trained therefore does not show that diffusion is needed."
        )
    elif all(cell.alternatives for cell in cells):
        yield "The generator beats soup, retrieval and regression in every cell."


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
