"""What the paired comparisons say, in plain words and in both directions."""

from collections.abc import Iterator

import pandas as pd

from oral_lib.tables import CONTROLS, PLACE, RIVALS

CLOSE = 0.02  # generated is to lie at most 2 points below trained
LOST = 0.80  # another task's text is to lose at least 80% of the gain
NAMES = {
    "soup_task": "the per-task soup",
    "soup_all": "the all-task soup",
    "retrieval": "retrieval",
    "regression": "plain regression",
    "base": "the base model",
    "majority": "the majority class",
    "mismatched": "Another task's text",
    "random": "Random words",
    "empty": "No text",
}


def verdict(compared: pd.DataFrame) -> tuple[list[str], list[str]]:
    """`tables.contrasts` in words: sentences of summary, and a paragraph a base model and task."""
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
        self.gain = next((row for (what, _), row in found.items() if what == "trained"), None)
        self.gap = found.get(("generated", "trained"))
        judged = self.gain is not None and self.gap is not None
        self.signal = bool(self.gain.ci_low > 0) if judged else None
        self.close = judged and self.gap.difference >= -CLOSE
        self.lost = {what.split()[-1]: row for (what, _), row in found.items() if "lost" in what}
        self.controls_ran = rows.what.str.startswith("lost").any()
        self.rivals = {name: row for name in RIVALS if (row := found.get(("generated", name)))}

    @property
    def enough_lost(self) -> bool:
        return "mismatched" in self.lost and self.lost["mismatched"].difference >= LOST

    @property
    def as_good(self) -> list[str]:
        """The simple rivals that the generator does not surely beat."""
        simple = [name for name in self.rivals if name != "soup_all"]
        return [name for name in simple if self.rivals[name].ci_low <= 0]

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
        side = "within 2 points of trained" if self.close else "more than 2 points below trained"
        side = "above trained" if self.gap.difference > CLOSE else side
        yield f"Generated is **{side}**: {_points(self.gap)}, {self.gap.n_items} items."
        if self.close and self.gap.ci_low < -CLOSE:
            yield "The interval reaches below −2 points: these items cannot settle it."
        elif not self.close and self.gap.ci_high >= -CLOSE:
            yield "The interval still admits 2 points: these items cannot settle it."

    def _controls(self) -> Iterator[str]:
        if self.controls_ran and not self.lost:
            yield "The generator's gain is not surely above zero: no text can be said to lose it."
        for name in CONTROLS:
            if name in self.lost:
                row, end = self.lost[name], "."
                if name == "mismatched":
                    doubt = row.ci_low < LOST if self.enough_lost else row.ci_high >= LOST
                    end = f", target of 80% **{'reached' if self.enough_lost else 'missed'}**"
                    end += " (the interval holds 80%)." if doubt else "."
                verb = "lose" if name == "random" else "loses"
                yield f"{NAMES[name]} {verb} {_share(row)} of the gain{end}"

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
    close = sum(cell.close for cell in cells)
    sure = sum(cell.close and cell.gap.ci_low >= -CLOSE for cell in cells)
    lost = sum(cell.enough_lost for cell in cells)
    equal = sum(bool(cell.as_good) for cell in cells)
    words = [
        f"Generated lies within 2 points of trained, or above it, in {close} of {total} cells with "
        f"signal; the whole 95% interval does in {sure}. "
        f"Target **{'reached' if close == total else 'missed'}**."
    ]
    if any(cell.controls_ran for cell in cells):
        words.append(
            f"Another task's text loses at least 80% of the gain in {lost} of {total} cells with "
            f"signal. Target **{'reached' if lost == total else 'missed'}**."
        )
    else:
        words.append("What another task's text costs was not measured.")
    if equal:
        words.append(
            f"In {equal} of {total} cells the per-task soup, retrieval or plain regression does as "
            "well as the generator: parity with trained does not show that diffusion is needed."
        )
    elif all(cell.rivals for cell in cells):
        words.append("The generator beats per-task soup, retrieval and regression in every cell.")
    return words


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _points(row) -> str:
    p = "p < 0.001" if row.p < 0.001 else f"p = {row.p:.2g}"
    ends = f"{_signed(row.ci_low)} to {_signed(row.ci_high)}"
    return f"{_signed(row.difference)} points (95% interval {ends}, {p})"


def _share(row) -> str:
    ends = f"{100 * row.ci_low:.0f} to {100 * row.ci_high:.0f}"
    return f"{100 * row.difference:.0f}% ({ends})".replace("-", "−")
