"""The tables of experiment intents as text, in percent and points.

The input are tables of `judgements`: values, judged and aims, and rows of intents_costs.csv.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from oral_lib.report.formats import ABSENT, METHOD_WORDS, difference, signed_points
from oral_lib.report.intents.judgements import DESCRIBED, GENERATED_METHODS, UNSEEN_SPLITS
from oral_lib.report.intents.outcomes import FEW_ROWS, costs_of, method_name
from oral_lib.report.outcomes import TRAINED

CONDITION_WORDS = {
    "paraphrase": "held-out wording",
    "mismatched": "another task's text",
    "random": "random words",
    "empty": "empty text",
    "matched_4": "sentence and 4 rows",
    "matched_16": "sentence and 16 rows",
    "rows_4": "4 rows, no sentence",
    "rows_16": "16 rows, no sentence",
}
_SUMMED = [f"{name}/matched_4" for name in GENERATED_METHODS]  # conditions in the summary
_COSTS = {  # heading and factor, by column of intents_costs.csv
    "ms_adapter": ("ms an adapter", 1.0),
    "ms_row": ("ms a row", 1.0),
    "flops_row": ("MFLOPs a row", 1e-6),
    "bytes": ("MB", 1e-6),
}


def method_in_words(name: str) -> str:
    """A method and its condition in words.

    >>> method_in_words("generated/matched_4")
    'generated, sentence and 4 rows'
    """
    method, _, condition = name.partition("/")
    words = METHOD_WORDS.get(method, method.replace("_", " "))
    return f"{words}, {CONDITION_WORDS.get(condition, condition)}" if condition else words


def rows_text(row, ends: tuple[int, int]) -> str:
    """Equivalent labelled rows with their interval: `12 (8 to > 32)`, `< 1 (< 1 to 2)`.

    Args:
        row: of `judgements.values`.
        ends: the first and the last number of rows of the curve.
    """
    if np.isnan(row.rows):
        return ABSENT
    value, low, high = (_count(x, ends) for x in (row.rows, row.rows_low, row.rows_high))
    return value if value == low == high else f"{value} ({low} to {high})"


def _count(rows: float, ends: tuple[int, int]) -> str:
    first, last = ends
    if rows == 0:
        return f"< {first}"
    if np.isinf(rows):
        return f"> {last}"
    return f"{rows:.2g}" if rows < 10 else f"{rows:.0f}"


def curve_ends(values: pd.DataFrame) -> tuple[int, int]:
    """The first and the last number of rows of the curve of `values`; (1, 1) without a curve."""
    few = values.method[values.method.str.fullmatch(rf"{FEW_ROWS}\d+")]
    counts = [int(name.removeprefix(FEW_ROWS)) for name in few] or [1]
    return min(counts), max(counts)


def percent(row) -> str:
    """A mean over tasks in percent with its interval: `96.2 (95.1 to 97.0)`."""
    return f"{100 * row.value:.1f} ({100 * row.ci_low:.1f} to {100 * row.ci_high:.1f})"


# ---------------------------------------------------------------- tables of methods
def method_tables(
    values: pd.DataFrame, judged: pd.DataFrame, costs: pd.DataFrame
) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """((base, split), table) for each base model and split: one row a method and condition.

    The columns are AUC and balanced accuracy in percent, equivalent labelled rows, differences in
    AUC with their verdict, and the costs that were measured. Columns without entry are left out.
    """
    for (base, split), rows in values.groupby(["base", "split"], sort=False):
        of_split = judged[
            (judged.base == base) & (judged.split == split) & (judged.metric == "auc")
        ]
        pairs = {(row.what, row.against): row for row in of_split.itertuples()}
        name = next((name for name in GENERATED_METHODS if name in set(rows.method)), "")
        of_base = costs_of(costs, base, split)
        ends, table = curve_ends(rows), []
        for method, entries in rows.groupby("method", sort=False):
            by_metric = {row.metric: row for row in entries.itertuples()}
            auc, balanced = by_metric.get("auc"), by_metric.get("balanced_accuracy")
            line = {
                "method": method_in_words(method),
                "AUC": percent(auc) if auc else ABSENT,
                "balanced accuracy": percent(balanced) if balanced else ABSENT,
                "equivalent rows": rows_text(auc, ends) if auc else ABSENT,
                "− description in the input": difference(pairs.get((method, DESCRIBED))),
                "− trained": difference(pairs.get((method, TRAINED))),
                "generated − it": difference(pairs.get((name, method))),
            }
            for column, (heading, factor) in _COSTS.items():
                cost = of_base[column].get(method, np.nan) if len(of_base) else np.nan
                line[heading] = ABSENT if np.isnan(cost) else _three_digits(factor * cost)
            table.append(line | {"tasks": (auc or balanced).n_tasks})
        frame = pd.DataFrame(table)
        empty = [column for column in frame if (frame[column] == ABSENT).all()]
        yield (base, split), frame.drop(columns=empty)


def summary_table(values: pd.DataFrame) -> pd.DataFrame:
    """One row per unseen split and method: AUC with interval / balanced accuracy, by base model.

    Without adapters trained on few rows. Conditions: the own text, and the own text with 4 rows.
    """
    rows = values[values.split.isin(UNSEEN_SPLITS)]
    rows = rows if len(rows) else values
    name = rows.method
    rows = rows[~name.str.startswith(FEW_ROWS) & ~name.str.contains("/") | name.isin(_SUMMED)]
    bases, table = list(dict.fromkeys(values.base)), []
    for (split, method), entries in rows.groupby(["split", "method"], sort=False):
        line = {"split": split, "method": method_in_words(method)}
        for base in bases:
            by_metric = {r.metric: r for r in entries[entries.base == base].itertuples()}
            auc, balanced = by_metric.get("auc"), by_metric.get("balanced_accuracy")
            texts = [percent(auc) if auc else ABSENT]
            texts.append(f"{100 * balanced.value:.1f}" if balanced else ABSENT)
            line[base] = " / ".join(texts) if auc or balanced else ABSENT
        table.append(line)
    return pd.DataFrame(table, columns=["split", "method", *bases])


def aims_table(aims: pd.DataFrame) -> pd.DataFrame:
    """One row per aim and split: value, interval and verdict for each base model and metric."""
    table: dict[tuple[str, str, str], dict[str, str]] = {}
    bases = list(dict.fromkeys(aims.base))
    for row in aims.itertuples():
        key = row.aim, row.split or "all", _METRIC_WORDS.get(row.metric, row.metric)
        line = table.setdefault(key, dict.fromkeys(bases, ABSENT))
        line[row.base] = f"{_figure(row)}: **{row.verdict}**"
    lines = [
        {"aim": aim, "split": split, "metric": metric} | line
        for (aim, split, metric), line in table.items()
    ]
    return pd.DataFrame(lines, columns=["aim", "split", "metric", *bases])


_METRIC_WORDS = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "flops_row": "FLOPs"}


def _figure(row) -> str:
    """The value of an aim with interval and margin: a share in percent, a difference in points."""
    if row.metric == "flops_row":
        return f"{100 * row.value:.0f}%"
    if row.bound > 0:
        return f"{100 * row.value:.0f}% ({100 * row.ci_low:.0f} to {100 * row.ci_high:.0f})"
    ends = (signed_points(x) for x in (row.value, row.ci_low, row.ci_high))
    margin = f", margin {-100 * row.bound:g}" if row.bound < 0 else ""
    return "{} ({} to {}){}".format(*ends, margin)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def costs_table(costs: pd.DataFrame) -> pd.DataFrame:
    """One row per base model, split and method: what an adapter and a row take."""
    table = []
    for row in costs.itertuples():
        name = method_name(row.method, row.condition)
        line = {"base model": row.base, "split": row.split, "method": method_in_words(name)}
        for column, (heading, factor) in _COSTS.items():
            value = getattr(row, column)
            line[heading] = ABSENT if np.isnan(value) else _three_digits(factor * value)
        table.append(line | {"device": row.device})
    return pd.DataFrame(table)
