"""The part of a page that experiment intents has of its own: what was measured, and findings."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from oral_lib.report.figures.theme import extent
from oral_lib.report.formats import listed, markdown, points_interval, signed_points
from oral_lib.report.intents.judgements import (
    DESCRIBED,
    MISSED,
    OTHER_TEXTS,
    REACHED,
    RIVALS,
    UNDECIDED,
    UNSEEN_SPLITS,
    judged_method,
)
from oral_lib.report.intents.tables import curve_ends, method_in_words, rows_text
from oral_lib.report.outcomes import TRAINED

if TYPE_CHECKING:
    from oral_lib.report.intents.results import IntentsResults

SPLIT_WORDS = {
    "L0": "seen tasks, wordings held out",
    "L1": "unseen combinations of seen intents",
    "L2": "unseen intents",
    "L3": "an unseen data set",
    "development": "intents held out for choices",
}
OTHER_TEXT_WORDS = {
    "paraphrase": "a held-out wording",
    "mismatched": "another task's text",
    "random": "random words",
    "empty": "an empty text",
}
METHOD = """\
A task is "is the message about X". Values are means over the tasks of a split, in percent. \
Intervals are 95%, over new tasks, rows, generator seeds and samples; differences are paired over \
all of them. Balanced accuracy is at the adapter's own threshold. Equivalent labelled rows: the \
number of rows on which a LoRA must be trained to reach the AUC of a method. Generators have \
several training seeds. Rivals are trained once, so intervals hold no noise of their training.

- **above**: the whole interval of a difference lies above 0;
- **equal**: it lies above −1 point, and not above 0;
- **below**: it lies under 0, and the method is not equal;
- **undecided**: all else. It does not count as equal.

An aim is **reached** if the whole interval lies on the right side of its bound, **missed** if it \
lies on the wrong side, and **undecided** otherwise. Aims were stated before the measurement. \
Margins to the description in the input are 0.5 points of AUC and 2 of balanced accuracy for \
encoders, 1 and 4 for causal models.
"""


def body(results: "IntentsResults") -> list[str]:
    """The blocks of Markdown between the title of the page and its figures."""
    lines = ["\n".join(measured(results)), ""]
    lines += [markdown(results.summary), "AUC with its interval / balanced accuracy.\n"]
    if len(results.aims):
        lines += ["## Aims\n", markdown(results.aims_table)]
    sentences = results.findings.splitlines()
    lines += ["## Findings\n", "\n".join(f"- {text}" for text in sentences), ""]
    return [*lines, METHOD]


def caption_sizes(values: pd.DataFrame) -> str:
    """The numbers of tasks, rows and generator seeds, for a caption."""
    seeds = int(values.n_seeds.max())
    return (
        f"n = {extent(values.n_tasks)} tasks a split, {extent(values.n_rows)} rows each, "
        f"{seeds} generator seed{'s' * (seeds > 1)}"
    )


def measured(results: "IntentsResults") -> Iterator[str]:
    """List items: base models, splits with their numbers of tasks and rows, and seeds."""
    values = results.values
    yield f"- Base models: {listed(values.base.unique())}."
    sizes = []
    for split, rows in values.groupby("split"):
        words = SPLIT_WORDS.get(split, "")
        count = f"{rows.n_tasks.max()} tasks, {rows.n_rows.max()} rows each"
        sizes.append(f"{split} ({words}: {count})" if words else f"{split} ({count})")
    yield f"- Splits: {listed(sizes)}."
    yield f"- Generator seeds: {values.n_seeds.max()}."


def findings(results: "IntentsResults") -> Iterator[str]:
    """Sentences about aims, description, trained, rivals, texts and equivalent rows."""
    aims = results.aims
    if len(aims):
        counts = [f"{(aims.verdict == v).sum()} {v}" for v in (REACHED, UNDECIDED, MISSED)]
        yield f"Of {len(aims)} aims, {listed(counts)}."
    for (base, split), of_split in results.outcomes.items():
        name = judged_method(of_split)
        if name is not None and split in UNSEEN_SPLITS:
            yield f"**{split}, {base}.** {' '.join(_sentences(results, base, split, name))}"


def _sentences(results: "IntentsResults", base: str, split: str, name: str) -> Iterator[str]:
    """The comparisons in AUC of the method `name` on one split, in words."""
    values, judged = (
        table[(table.base == base) & (table.split == split) & (table.metric == "auc")]
        for table in (results.values, results.judged)
    )
    value = next(values[values.method == name].itertuples())
    pairs = {(row.what, row.against): row for row in judged.itertuples()}
    yield f"{method_in_words(name).capitalize()}: AUC {100 * value.value:.1f}"
    yield f"({100 * value.ci_low:.1f} to {100 * value.ci_high:.1f})."
    rows = rows_text(value, curve_ends(values))
    if pd.notna(value.rows):
        yield f"Equivalent labelled rows: {rows}."
    for against in (DESCRIBED, TRAINED):
        if row := pairs.get((name, against)):
            yield f"Minus {method_in_words(against)}: {_points(row)}: **{row.state}**."
    rivals = [row for rival in RIVALS if (row := pairs.get((name, rival)))]
    if rivals:
        texts = [
            f"{method_in_words(row.against)} {signed_points(row.difference)}" for row in rivals
        ]
        above = sum(row.ci_low > 0 for row in rivals)
        yield f"It is above {above} of {len(rivals)} rivals by the whole interval: {listed(texts)}."
    for text in OTHER_TEXTS:
        if row := pairs.get((f"{name}/{text}", name)):
            yield f"With {OTHER_TEXT_WORDS[text]}: {_points(row)}."


def _points(row) -> str:
    return f"{signed_points(row.difference)} points ({points_interval(row)})"
