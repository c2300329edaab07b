"""The tables of a result: the main one, every interval, and the paired comparisons.

All take the rows of `metrics.csv` and the items of `items.parquet`; nothing is scored here.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from oral_lib import stats
from oral_lib.errors import OralError
from oral_lib.results import SHARES, matrix

HEADINGS = {  # (method, condition): how the main table calls it
    ("majority", "none"): "majority",
    ("base", "none"): "base",
    ("trained", "none"): "trained",
    ("soup_task", "none"): "per-task soup",
    ("soup_all", "none"): "all-task soup",
    ("retrieval", "matched"): "retrieval",
    ("regression", "matched"): "regression",
    ("generated", "matched"): "generated",
    ("generated", "paraphrase"): "unseen wording",
    ("generated", "mismatched"): "other text",
    ("generated", "random"): "random words",
    ("generated", "empty"): "no text",
}
OPTIONAL = ["unseen wording"]  # shown when it was run; every other column is always there
RIVALS = ["soup_task", "soup_all", "retrieval", "regression"]
CONTROLS = ["mismatched", "random", "empty"]
PLACE = ["experiment", "source", "base", "task"]
FOUND = stats.Difference._fields
FLOORS = ["base", "majority"]
ABSENT, NO_SIGNAL = "–", "†"


def pooled(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row a base, task, method, condition and metric: the mean over seeds.

    The seeds share their held-out items, so intervals and standard errors are averaged too: more
    seeds do not shrink what is unknown about new items.
    """
    numbers = {name: "mean" for name in ("value", "stderr", "ci_low", "ci_high")}
    key = [*PLACE, "method", "condition", "metric"]
    counts = {"n_items": "min", "n_samples": "sum"}
    return metrics.groupby(key, as_index=False, sort=False).agg(numbers | counts)


def per_sample(items: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """`value` of each sample and seed, with the columns that name its place in the tables."""
    key = [*PLACE, "method", "condition", "seed", "sample"]
    groups = items.groupby(key, sort=False)
    if metric == "accuracy":
        values = groups.correct.mean()
    elif metric == "auc":
        values = groups[["label", "score"]].apply(lambda one: stats.auc(one.label, one.score))
    else:
        raise OralError(f"No per-sample values for metric {metric!r}: use accuracy or auc.")
    return values.rename("value").reset_index()


def main_table(
    frame: pd.DataFrame, source: str, items: pd.DataFrame | None = None, metric: str = "accuracy"
) -> pd.DataFrame:
    """One row a base model and task, in percent: the columns of HEADINGS, n and the standard error.

    With `items`, values of several samples carry ± their standard deviation over samples, and
    tasks without signal are marked †: the trained LoRA is not surely better than base and majority.
    `n` is the number of items; where some columns were scored on fewer, "most / fewest". `s.e.` is
    the largest standard error over items among the columns with that n, in the same order.
    """
    rows = pooled(frame[(frame.source == source) & (frame.metric == metric)])
    spreads, silent = {}, set()
    if items is not None:
        items = items[items.source == source]
        samples = per_sample(items, metric)
        spreads = samples.groupby([*PLACE, "method", "condition"]).value.std().dropna().to_dict()
        silent = without_signal(items)
    table = []
    for place, cell in rows.groupby(PLACE, sort=False):
        errors = cell.groupby("n_items").stderr.max().iloc[[-1, 0]].to_dict()  # most, fewest items
        line = dict(zip(["experiment", "source", "base model", "task"], place, strict=True))
        line["task"] += f" {NO_SIGNAL}" if place in silent else ""
        line["n"] = " / ".join(str(count) for count in errors)
        found = {(row.method, row.condition): row for row in cell.itertuples()}
        for key, heading in HEADINGS.items():
            text = f"{100 * found[key].value:.1f}" if key in found else ABSENT
            spread = spreads.get((*place, *key))
            line[heading] = text if spread is None else f"{text} ± {100 * spread:.1f}"
        line["s.e."] = " / ".join(f"{100 * error:.1f}" for error in errors.values())
        table.append(line)
    names = ["experiment", "base model", "task", "n", *HEADINGS.values(), "s.e."]
    shown = pd.DataFrame(table, columns=names)
    idle = [name for name in OPTIONAL if (shown[name] == ABSENT).all()]
    if shown.experiment.nunique() < 2:
        idle.append("experiment")
    return shown.drop(columns=idle)


def interval_table(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Every pooled row with standard error, 95% interval, items and samples; shares in percent."""
    rows = pooled(frame[frame.source == source])
    scale = np.where(rows.metric.isin(SHARES), 100, 1)
    low, high, value, stderr = (
        (rows[name] * scale).map("{:.1f}".format)
        for name in ("ci_low", "ci_high", "value", "stderr")
    )
    numbers = {"value": value, "stderr": stderr, "95% interval": low + " to " + high}
    names = ["base", "task", "method", "condition", "metric"]
    return rows[names].assign(**numbers, items=rows.n_items, samples=rows.n_samples)


def short_table(frame: pd.DataFrame, items: pd.DataFrame | None = None) -> str:
    """The main table for a terminal, about 100 columns wide; `items` only mark missing signal."""
    left_out = ["all-task soup", "retrieval", *OPTIONAL, "random words", "no text", "s.e."]
    short = {"per-task soup": "soup", "regression": "regr.", "generated": "GENERATED"}
    parts = []
    for source in frame.source.unique():
        table = main_table(frame, source).drop(columns=left_out, errors="ignore")
        if items is not None:
            table["task"] = main_table(frame, source, items).task
        lines = [f"Accuracy in percent, source {source}", *_aligned(table.rename(columns=short))]
        if table.task.str.endswith(NO_SIGNAL).any():
            lines.append(f"{NO_SIGNAL} no signal: trained is not surely above base and majority")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _aligned(table: pd.DataFrame) -> list[str]:
    rows = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    names = {"experiment", "base model", "task"}
    left = [name in names for name in table.columns]

    def line(row: Sequence) -> str:
        cells = zip(row, widths, left, strict=True)
        return "  ".join(f"{cell!s:{'<' if to_left else '>'}{w}}" for cell, w, to_left in cells)

    rule = "  ".join("-" * width for width in widths)
    return [line(rows[0]), rule, *(line(row) for row in rows[1:])]


# ---------------------------------------------------------------- paired comparisons
def contrasts(items: pd.DataFrame) -> pd.DataFrame:
    """Paired comparisons of every cell, over the items that both sides were scored on.

    `what` minus `against` in accuracy: trained and generated against the better of base and
    majority, generated against trained and its rivals. And for each control text, `what` =
    "lost with <control>": the share of the generator's gain over the better of base and majority
    that goes with the text; NaN when the gain is not above zero for sure.
    """
    lines = []
    for place, cell in items.groupby(PLACE, sort=False):
        here = dict(zip(PLACE, place, strict=True))
        generated, trained = matrix(cell, "generated", "matched"), matrix(cell, "trained", "none")
        name, floor = _floor(cell)
        pairs = [("trained", trained, name, floor), ("generated", generated, name, floor)]
        pairs += [("generated", generated, "trained", trained)]
        for rival in RIVALS:
            condition = next(text for method, text in HEADINGS if method == rival)
            pairs.append(("generated", generated, rival, matrix(cell, rival, condition)))
        for what, first, against, second in pairs:
            series = _common(first, second)
            if series[0].size:
                found = stats.paired_bootstrap(*series)._asdict()
                lines.append(here | {"what": what, "against": against} | found)
                lines[-1]["n_items"] = series[0].shape[1]
        for control in CONTROLS:
            series = _common(generated, matrix(cell, "generated", control), floor)
            if series[0].size:
                found = share_lost(*series)._asdict()
                lines.append(here | {"what": f"lost with {control}", "against": name} | found)
                lines[-1]["n_items"] = series[0].shape[1]
    return pd.DataFrame(lines, columns=[*PLACE, "what", "against", *FOUND, "n_items"])


def without_signal(items: pd.DataFrame) -> set[tuple[str, ...]]:
    """The places (experiment, source, base, task) where trained is not surely above its floor."""
    silent = set()
    for place, cell in items.groupby(PLACE, sort=False):
        series = _common(matrix(cell, "trained", "none"), _floor(cell)[1])
        if series[0].size and stats.paired_bootstrap(*series).ci_low <= 0:
            silent.add(place)
    return silent


def _floor(cell: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The better of base and majority: its name and its outcomes."""
    found = {name: matrix(cell, name, "none") for name in FLOORS}
    best = max(FLOORS, key=lambda name: found[name].to_numpy().mean() if found[name].size else -1)
    return best, found[best]


def _common(*frames: pd.DataFrame) -> list[np.ndarray]:
    """Outcomes on the items that all frames share."""
    shared = [item for item in frames[0] if all(item in frame for frame in frames[1:])]
    return [frame[shared].to_numpy() for frame in frames]


def share_lost(generated: np.ndarray, other: np.ndarray, floor: np.ndarray) -> stats.Difference:
    """(generated - other) / (generated - floor) with its bootstrap interval; p is left NaN."""
    own, control, low = (stats.item_means(series).mean() for series in (generated, other, floor))
    draws = stats.resampled_means(generated, other, floor)
    gains = draws[0] - draws[2]
    if np.quantile(gains, 0.025) <= 0:
        return stats.Difference(*[np.nan] * 4)
    gains = np.where(gains > 0, gains, np.nan)
    shares = (draws[0] - draws[1]) / gains
    found = stats.interval((own - control) / (own - low), shares[np.isfinite(shares)])
    return stats.Difference(*found, p=np.nan)


# ---------------------------------------------------------------- as text
def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(_plain(cell, '|') for cell in row)} |" for row in rows) + "\n"


def latex(table: pd.DataFrame) -> str:
    """The table as a LaTeX tabular for booktabs, every special character escaped."""
    head, *body = (
        " & ".join(tex(_plain(cell)) for cell in row) + r" \\"
        for row in [list(table.columns), *table.to_numpy().tolist()]
    )
    words = sum(name in ("experiment", "base model", "base", "task") for name in table.columns)
    columns = "l" * words + "r" * (table.shape[1] - words)
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}"]) + "\n"


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    escapes = {sign: f"\\{sign}" for sign in "&%$#_{}"}
    escapes |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escapes |= {"±": r"$\pm$", "–": "--", "−": "$-$", "<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(escapes.get(sign, sign) for sign in text)


def _plain(cell, forbidden: str = "") -> str:
    text = (ABSENT if np.isnan(cell) else f"{cell:.4g}") if isinstance(cell, float) else str(cell)
    return text.replace(forbidden, f"\\{forbidden}") if forbidden else text
