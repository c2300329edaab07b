"""Every method next to each other: the main table, its parts, styles, unseen tasks, intervals.

The input are rows of `metrics.csv` and items. A place is (experiment, source, base, task).
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from oral_lib.evaluation.schema import PLACE, SHARES, of_parts
from oral_lib.report.comparisons import (
    per_sample,
    pooled,
    trained_gains,
    with_trained_parts,
    without_signal,
)
from oral_lib.report.formats import ABSENT, METHOD_WORDS, NO_SIGNAL, aligned_lines
from oral_lib.report.intents.outcomes import INTENTS, TASK_METRICS, split_of
from oral_lib.report.outcomes import TRAINED_HELD_OUT, TRAINED_ZOO
from oral_lib.report.tables.grid import SIGNS
from oral_lib.tasks.binary import SPLIT_SETS, set_of
from oral_lib.tasks.task import load_task

HEADINGS = {  # (method, condition): column of the main table
    ("majority", "none"): "majority",
    ("base", "none"): "base",
    ("linear_probe", "none"): "linear probe",
    ("trained", "none"): "trained",
    (TRAINED_ZOO, "none"): "trained, zoo seeds",
    (TRAINED_HELD_OUT, "none"): "trained, held-out seeds",
    ("soup_task", "none"): "adapter average (soup)",
    ("soup_all", "none"): "all-task average (soup)",
    ("multitask", "matched"): "multi-task LoRA",
    ("retrieval", "matched"): "retrieval",
    ("router", "matched"): "router",
    ("regression", "matched"): "regression",
    ("generated", "matched"): "generated",
    ("generated", "paraphrase"): "held-out paraphrase",
    ("generated", "mismatched"): "wrong-task prompt",
    ("generated", "random"): "random words",
    ("generated", "empty"): "empty prompt",
    ("generated_span", "matched"): "generated, span",
    ("generated_free", "matched"): "generated, no projection",
    ("generated_through_base", "matched"): "through the base",
    ("gaussian", "none"): "Gaussian",
    ("noise_small", "none"): "small noise",
    ("noise_large", "none"): "large noise",
    ("unconditional", "none"): "unconditional",
}
# columns that appear only if measured; every other column of HEADINGS is always present
_OPTIONAL = [
    "linear probe", "trained, zoo seeds", "trained, held-out seeds", "multi-task LoRA", "router",
    "held-out paraphrase", "generated, span", "generated, no projection", "through the base",
    "Gaussian",
    "small noise", "large noise", "unconditional",
]  # fmt: skip


def main_table(
    metrics: pd.DataFrame,
    source: str,
    items: pd.DataFrame | None = None,
    metric: str = "accuracy",
    *,
    held_out: int = 0,
    no_signal: set[tuple[str, ...]] | None = None,
) -> pd.DataFrame:
    """One row per base model and task, in percent: the columns of HEADINGS, n and standard error.

    `n` is the number of items: "most / fewest" where columns differ. `s.e.` is the largest standard
    error over items among the columns with that n, in the same order.

    Args:
        metrics: rows of metrics.csv.
        source: the data source whose rows are used.
        items: one outcome a sample and held-out row. With them, a value of several samples
            carries ± its standard deviation over samples, and tasks without signal are marked †.
        metric: the metric of the cells.
        held_out: the last so many trained adapters of a cell are the held-out ones. If any,
            `items` give the columns of the zoo seeds and of the held-out seeds.
        no_signal: places without signal; computed from `items` if None.
    """
    rows = pooled(metrics[(metrics.source == source) & (metrics.metric == metric)])
    means, spreads = {}, {}
    if items is not None:
        items = items[items.source == source]
        samples = with_trained_parts(per_sample(items, metric), held_out)
        groups = samples.groupby([*PLACE, "method", "condition"], observed=True).value
        means, spreads = groups.mean().to_dict(), groups.std().dropna().to_dict()
        no_signal = without_signal(trained_gains(items)) if no_signal is None else no_signal
    no_signal = no_signal or set()
    table = []
    for place, cell in rows.groupby(PLACE, sort=False):
        errors = cell.groupby("n_items").stderr.max().iloc[[-1, 0]].to_dict()  # most, fewest items
        line = dict(zip(["experiment", "source", "base model", "task"], place, strict=True))
        line["task"] += f" {NO_SIGNAL}" if place in no_signal else ""
        line["n"] = " / ".join(str(count) for count in errors)
        values = {(row.method, row.condition): row.value for row in cell.itertuples()}
        for key, heading in HEADINGS.items():
            value, spread = values.get(key, means.get((*place, *key))), spreads.get((*place, *key))
            text = ABSENT if value is None else f"{100 * value:.1f}"
            line[heading] = text if spread is None else f"{text} ± {100 * spread:.1f}"
        line["s.e."] = " / ".join(f"{100 * error:.1f}" for error in errors.values())
        table.append(line)
    columns = ["experiment", "base model", "task", "n", *HEADINGS.values(), "s.e."]
    table = pd.DataFrame(table, columns=columns)
    unused = [name for name in _OPTIONAL if (table[name] == ABSENT).all()]
    if table.experiment.nunique() < 2:
        unused.append("experiment")
    return table.drop(columns=unused)


# ---------------------------------------------------------------- further studies
_UNSEEN = {  # (method, condition): columns of `unseen_table` after trained and best
    ("generated", "matched"): "mean",
    ("generated", "paraphrase"): "held-out paraphrase",
    ("generated_through_base", "matched"): "through the base",
    ("generated_through_base", "paraphrase"): "through the base, held-out paraphrase",
    ("regression", "matched"): "regression",
    ("ridge_bits", "none"): "ridge on class bits",
    ("retrieval", "matched"): "retrieval",
    ("multitask", "matched"): "multi-task LoRA",
    ("soup_all", "none"): "all-task average (soup)",
    ("complement", "none"): "complement",
    ("base", "none"): "base",
}
_IF_MEASURED = ("generated_through_base", "ridge_bits", "complement")  # no empty columns of these
FIRST_RELEASE = "first release"  # the set of tasks whose names have none


def unseen_sets(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Held-out yes/no tasks by set, in the order of the table.

    Names without a set are of the first release, whose training set had the opposite of each.

    >>> unseen_sets(["cifar10_yes_0000100011"])
    {'first release': ['cifar10_yes_0000100011']}
    """
    names = list(dict.fromkeys(tasks))
    groups = {part: [n for n in names if set_of(n) == part] for part in (*SPLIT_SETS, "")}
    return {part or FIRST_RELEASE: group for part, group in groups.items() if group}


def unseen_table(items: pd.DataFrame) -> pd.DataFrame:
    """One row per held-out yes/no task of one place: balanced accuracy in percent; then their mean.

    The last row is each method's share of the trained adapters' mean gain over chance (0.5). "best"
    is the best sample on these same rows, as in RPG: an upper bound that no user can select. With
    tasks of several sets, the first column is the set, and each set has its own mean and share.
    """
    samples = per_sample(items, "balanced_accuracy")
    groups = samples.groupby(["task", "method", "condition"], sort=False, observed=True).value
    columns = {("trained", "none"): "trained", ("generated", "best"): "best"}
    best, means = groups.max().to_dict(), groups.mean().to_dict()
    measured = {key[1:] for key in means}
    columns |= {k: v for k, v in _UNSEEN.items() if k in measured or k[0] not in _IF_MEASURED}
    values = means | {
        (name, "generated", "best"): best.get((name, "generated", "matched"), np.nan)
        for name in set(samples.task)
    }
    sets, tables = unseen_sets(samples.task), {}
    for part, names in sets.items():
        rows = [[values.get((name, *key), np.nan) for key in columns] for name in names]
        tables[part] = _with_shares(
            pd.DataFrame(rows, columns=list(columns.values())),
            [load_task(name).description for name in names],
        )
    if len(sets) == 1:
        return next(iter(tables.values()))
    return pd.concat(tables, names=["set", None]).reset_index("set").reset_index(drop=True)


def _with_shares(values: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """The rows of tasks in percent, then their mean and its share of the trained gain."""
    means = values.mean()
    shares = (means - 0.5) / (means.trained - 0.5)
    values = pd.concat([values, means.to_frame().T], ignore_index=True)
    texts = values.map(lambda x: ABSENT if np.isnan(x) else f"{100 * x:.1f}")
    texts.loc[len(texts)] = [ABSENT if np.isnan(x) else f"{100 * x:.0f}%" for x in shares]
    texts.insert(0, "task", [*tasks, "mean", "share of the gain over chance"])
    return texts


def parts_table(metrics: pd.DataFrame, source: str) -> pd.DataFrame:
    """Recall@k in both directions and accuracy per kind of item, in percent.

    One row per metric, with the methods that were scored on all items as columns. The table is
    empty where no metric concerns a part of the items.
    """
    rows = pooled(metrics[(metrics.source == source) & of_parts(metrics)])
    table = []
    for (base, task, metric), cell in rows.groupby(["base", "task", "metric"], sort=False):
        values = {(row.method, row.condition): 100 * row.value for row in cell.itertuples()}
        line = {"base model": base, "task": task, "metric": metric, "n": cell.n_items.max()}
        for key, heading in HEADINGS.items():
            if key[1] in ("none", "matched"):
                line[heading] = f"{values[key]:.1f}" if key in values else ABSENT
        table.append(line)
    table = pd.DataFrame(table)
    return table.drop(columns=[name for name in table if (table[name] == ABSENT).all()])


def style_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per method and condition of a style's cell: image distance and denoising error.

    Each number carries its standard error. The first row, if measured, is the distance between two
    sets of real images: the training images against the held-out ones.
    """
    rows = pooled(metrics)
    [distance] = set(rows.metric) - {"frechet_floor", "denoising_error"}
    rows.loc[rows.metric == "frechet_floor", ["method", "metric"]] = "real", distance
    columns = {distance: distance, "denoising_error": "denoising error"}
    least = rows[rows.method != "real"].groupby("metric").value.min().clip(1e-5)
    digits = {name: max(0, 2 - int(np.floor(np.log10(least[name])))) for name in columns}
    headings, table = {("real", "none"): "training images"} | HEADINGS, []
    for (method, condition), heading in headings.items():
        entries = rows[(rows.method == method) & (rows.condition == condition)]
        if len(entries):
            line = {"method": heading} | dict.fromkeys(columns.values(), ABSENT)
            for row in entries.itertuples():
                numbers = (f"{x:.{digits[row.metric]}f}" for x in (row.value, row.stderr))
                line[columns[row.metric]] = " ± ".join(numbers)
            table.append(line | {"adapters": "" if method == "real" else entries.n_samples.max()})
    return pd.DataFrame(table)


def interval_table(metrics: pd.DataFrame, source: str) -> pd.DataFrame:
    """Every pooled row with standard error, 95% interval, number of items and of samples.

    Shares are in percent, all other metrics have three digits.
    """
    rows = pooled(metrics[metrics.source == source])
    share = rows.metric.isin(SHARES) | of_parts(rows)
    low, high, value, stderr = (
        (rows[name] * 100).map("{:.1f}".format).where(share, rows[name].map("{:.3g}".format))
        for name in ("ci_low", "ci_high", "value", "stderr")
    )
    numbers = {"value": value, "stderr": stderr, "95% interval": low + " to " + high}
    columns = ["base", "task", "method", "condition", "metric"]
    return rows[columns].assign(**numbers, items=rows.n_items, samples=rows.n_samples)


def means_of_tasks(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per split and method of experiment intents: mean over tasks, by base model."""
    rows = metrics[metrics.metric.isin(TASK_METRICS) & metrics.condition.isin(["none", "matched"])]
    rows = rows.assign(split=rows.task.map(split_of))
    key = ["split", "method", "base", "metric"]
    means = rows.groupby(key, sort=False).value.mean().map(lambda x: f"{100 * x:.1f}").to_dict()
    table: dict[tuple[str, str], dict[str, str]] = {}
    for split, method, base in dict.fromkeys(name[:3] for name in means):
        texts = (means.get((split, method, base, metric), ABSENT) for metric in TASK_METRICS)
        line = table.setdefault((split, METHOD_WORDS.get(method, method)), {})
        line[base] = " / ".join(texts)
    lines = [{"task": f"{split} {method}"} | line for (split, method), line in table.items()]
    return pd.DataFrame(lines).fillna(ABSENT)


def short_table(metrics: pd.DataFrame, items: pd.DataFrame | None = None) -> str:
    """The main table for a terminal, at most 100 columns wide, then the table of every style.

    `items` are used only to mark tasks without signal.
    """
    left_out = [
        "all-task average (soup)", "retrieval", *_OPTIONAL, "random words", "empty prompt", "s.e.",
    ]  # fmt: skip
    short = {
        "adapter average (soup)": "soup", "regression": "regr.", "generated": "GENERATED",
        "wrong-task prompt": "wrong task",
    }  # fmt: skip
    blocks, of_tasks = [], metrics[metrics.experiment == INTENTS]
    metrics = metrics[metrics.experiment != INTENTS]
    for source, rows in of_tasks.groupby("source", sort=False):
        lines = aligned_lines(means_of_tasks(rows))
        blocks.append([f"Mean over tasks, AUC / balanced accuracy, source {source}", *lines])
    for source in metrics.source.unique():
        table = main_table(metrics, source).drop(columns=left_out, errors="ignore")
        if len(table):
            if items is not None:
                table["task"] = main_table(metrics, source, items).task
            lines = [
                f"Accuracy in percent, source {source}",
                *aligned_lines(table.rename(columns=short)),
            ]
            if table.task.str.endswith(NO_SIGNAL).any():
                lines.append(f"{NO_SIGNAL} no signal: {SIGNS[NO_SIGNAL]}")
            blocks.append(lines)
        styles = metrics[(metrics.source == source) & (metrics.experiment == "style")]
        for (base, task), cell in styles.groupby(["base", "task"], sort=False):
            rows = aligned_lines(style_table(cell))
            blocks.append([f"Style {task} on {base}, source {source}", *rows])
    return "\n\n".join("\n".join(lines) for lines in blocks)
