"""Judgements cell by cell: against trained, under other texts, and between projections.

The input are rows of `comparisons.judged`. Differences are in points with their 95% interval. A
state follows where there is one; shares of a gain follow where the gain carries them.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from oral_lib.evaluation.schema import EITHER, PLACE
from oral_lib.report.comparisons import (
    CONTROLS,
    GENERATED_THROUGH_BASE,
    GENERATORS,
    WITH_TEXTS,
    without_signal,
)
from oral_lib.report.formats import ABSENT, METHOD_WORDS, NO_SIGNAL, difference, share_interval
from oral_lib.report.outcomes import BASELINES, TRAINED, TRAINED_HELD_OUT, TRAINED_ZOO

COUNTED = [  # methods that the same rule judges
    "generated", "generated_one", "router", "retrieval", "regression", "soup_task", "gaussian",
    "noise_small", GENERATED_THROUGH_BASE, "complement", "ridge_bits",
]  # fmt: skip
TEXT_HEADINGS = {
    "paraphrase": "held-out paraphrase",
    "mismatched": "wrong-task prompt",
    "random": "random words",
    "empty": "empty prompt",
}
PROJECTION_WORDS = {"generated": "hull", "generated_span": "span", "generated_free": "none"}
Comparisons = Mapping[tuple[str, str], object]  # rows of a cell by (what, against)


def targets_table(judged: pd.DataFrame) -> pd.DataFrame:
    """One row per base model and task: trained minus the baseline, and methods minus trained.

    "trained" are all trained adapters. The last columns compare with the held-out seeds only.
    """
    pairs = {f"{METHOD_WORDS[name]} − trained": (name, TRAINED) for name in COUNTED}
    pairs["generated − trained, held-out seeds"] = "generated", TRAINED_HELD_OUT
    pairs["trained, zoo seeds − held-out seeds"] = TRAINED_ZOO, TRAINED_HELD_OUT
    table = []
    for line, rows in _cells(judged):
        baseline = next((name for what, name in rows if what == TRAINED and name in BASELINES), "")
        line["baseline"] = METHOD_WORDS.get(baseline, ABSENT)
        line["trained − baseline"] = difference(rows.get((TRAINED, baseline)))
        table.append(line | {name: difference(rows.get(pair)) for name, pair in pairs.items()})
    return _without_empty(table)


def conditions_table(judged: pd.DataFrame) -> pd.DataFrame:
    """One row per base model, task and method: its own text minus the baseline, and other texts
    minus its own text.

    Where the method's gain carries shares, the share of the gain follows that is kept with a
    paraphrase, or lost with another text. Methods that were measured with their own text only are
    left out.
    """
    table = []
    for line, rows in _cells(judged):
        for method in WITH_TEXTS:
            usual = f"{method}/matched" if method in EITHER else method
            texts = {name: rows.get((f"{method}/{name}", usual)) for name in CONTROLS}
            if not any(texts.values()):
                continue
            against = [rows.get((method, name)) for name in BASELINES]
            cells = {"own text − baseline": difference(next(filter(None, against), None))}
            for name, row in texts.items():
                words = difference(row)
                if row is not None and np.isfinite(row.share):
                    kept = name == "paraphrase"
                    words += f"; {share_interval(row, kept=kept)} {'kept' if kept else 'lost'}"
                cells[TEXT_HEADINGS[name]] = words
            table.append(line | {"method": METHOD_WORDS[method]} | cells)
    return _without_empty(table)


def projections_table(judged: pd.DataFrame) -> pd.DataFrame:
    """One row per base model and task: samples of each projection against trained and each other.

    It has no rows where only the default projection was measured.
    """
    table = []
    for line, rows in _cells(judged):
        if not any(("generated", name) in rows for name in GENERATORS[1:]):
            continue
        for name in GENERATORS:
            line[f"{PROJECTION_WORDS[name]} − trained"] = difference(rows.get((name, TRAINED)))
        for name in GENERATORS[1:]:
            words = f"hull − {PROJECTION_WORDS[name]}"
            line[words] = difference(rows.get(("generated", name)))
        for name in GENERATORS:
            words = f"{PROJECTION_WORDS[name]}, paraphrase − own text"
            line[words] = difference(rows.get((f"{name}/paraphrase", name)))
        table.append(line)
    return _without_empty(table)


def _cells(judged: pd.DataFrame) -> Iterator[tuple[dict[str, str], Comparisons]]:
    """(the first columns of a row, its comparisons) of every cell."""
    no_signal = without_signal(judged)
    for place, rows in judged.groupby(PLACE, sort=False, observed=True):
        line = {"base model": place[2], "task": place[3]}
        line["task"] += f" {NO_SIGNAL}" * (place in no_signal)
        yield line, {(row.what, row.against): row for row in rows.itertuples()}


def _without_empty(lines: list[dict[str, str]]) -> pd.DataFrame:
    """The table of `lines` without columns that have no entry."""
    table = pd.DataFrame(lines, columns=list(lines[0]) if lines else ["base model", "task"])
    return table.drop(
        columns=[name for name in table if len(table) and (table[name] == ABSENT).all()]
    )
