"""The tables of a result: accuracy by method, by base model and task, targets, novelty, intervals.

The input are rows of `metrics.csv` and items; nothing is scored here. A place is
(experiment, source, base, task).
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from oral_lib.evaluation.schema import PLACE, SHARES, of_parts
from oral_lib.report.comparisons import (
    per_sample,
    pooled,
    spreads_of,
    without_signal,
)
from oral_lib.report.contrasts import trained_gains
from oral_lib.report.formats import (
    ABSENT,
    IMPOSSIBLE,
    NO_SIGNAL,
    aligned_lines,
    points_interval,
    share_interval,
    signed_points,
)
from oral_lib.scales import PAPER_TASKS
from oral_lib.tasks.task import load_task, task_names

HEADINGS = {  # (method, condition): column of the main table
    ("majority", "none"): "majority",
    ("base", "none"): "base",
    ("linear_probe", "none"): "linear probe",
    ("trained", "none"): "trained",
    ("soup_task", "none"): "adapter average (soup)",
    ("soup_all", "none"): "all-task average (soup)",
    ("multitask", "matched"): "multi-task LoRA",
    ("retrieval", "matched"): "retrieval",
    ("regression", "matched"): "regression",
    ("generated", "matched"): "generated",
    ("generated", "paraphrase"): "held-out paraphrase",
    ("generated", "mismatched"): "wrong-task prompt",
    ("generated", "random"): "random words",
    ("generated", "empty"): "empty prompt",
    ("gaussian", "none"): "Gaussian",
    ("noise_small", "none"): "small noise",
    ("noise_large", "none"): "large noise",
    ("unconditional", "none"): "unconditional",
}
# columns that appear only if measured; every other column of HEADINGS is always present
_OPTIONAL = [
    "linear probe", "multi-task LoRA", "held-out paraphrase", "Gaussian", "small noise",
    "large noise", "unconditional",
]  # fmt: skip


def main_table(
    metrics: pd.DataFrame,
    source: str,
    items: pd.DataFrame | None = None,
    metric: str = "accuracy",
    *,
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
        no_signal: places without signal; computed from `items` if None.
    """
    rows = pooled(metrics[(metrics.source == source) & (metrics.metric == metric)])
    spreads = {}
    if items is not None:
        items = items[items.source == source]
        spreads = spreads_of(items, metric)
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
            text = f"{100 * values[key]:.1f}" if key in values else ABSENT
            spread = spreads.get((*place, *key))
            line[heading] = text if spread is None else f"{text} ± {100 * spread:.1f}"
        line["s.e."] = " / ".join(f"{100 * error:.1f}" for error in errors.values())
        table.append(line)
    columns = ["experiment", "base model", "task", "n", *HEADINGS.values(), "s.e."]
    table = pd.DataFrame(table, columns=columns)
    unused = [name for name in _OPTIONAL if (table[name] == ABSENT).all()]
    if table.experiment.nunique() < 2:
        unused.append("experiment")
    return table.drop(columns=unused)


# ---------------------------------------------------------------- targets
SHARE_HEADINGS = {
    "paraphrase": "kept, held-out paraphrase",
    "mismatched": "lost, wrong-task prompt",
    "random": "lost, random words",
    "empty": "lost, empty prompt",
}


def targets_table(compared: pd.DataFrame) -> pd.DataFrame:
    """One row per base model and task: differences in points and shares of the gain in percent.

    `compared` are rows of `contrasts`. Each value carries its 95% interval. The baseline is the
    better of base model and majority class; kept and lost are shares of the generator's gain.
    """
    table = []
    for place, rows in compared.groupby(PLACE, sort=False):
        contrast = {(row.what, row.against): row for row in rows.itertuples()}
        baseline = next((row.against for row in rows.itertuples() if row.what == "trained"), "")
        line = dict(zip(PLACE, place, strict=True)) | {"baseline": baseline or ABSENT}
        for heading, key in (
            ("trained − baseline", ("trained", baseline)),
            ("generated − baseline", ("generated", baseline)),
            ("generated − trained", ("generated", "trained")),
        ):
            line[heading] = _points(contrast.get(key))
        for control, heading in SHARE_HEADINGS.items():
            row = contrast.get((f"lost with {control}", baseline))
            line[heading] = _share(row, kept=heading.startswith("kept"))
        table.append(line)
    table = pd.DataFrame(table, columns=list(table[0]) if table else PLACE)
    return table.drop(columns=["experiment", "source"]).rename(columns={"base": "base model"})


def _points(row) -> str:
    return ABSENT if row is None else f"{signed_points(row.difference)} ({points_interval(row)})"


def _share(row, kept: bool) -> str:
    return ABSENT if row is None or np.isnan(row.difference) else share_interval(row, kept=kept)


# ---------------------------------------------------------------- further studies
_UNSEEN = {  # (method, condition): columns of `unseen_table` after trained and best
    ("generated", "matched"): "mean",
    ("generated", "paraphrase"): "held-out paraphrase",
    ("regression", "matched"): "regression",
    ("retrieval", "matched"): "retrieval",
    ("multitask", "matched"): "multi-task LoRA",
    ("soup_all", "none"): "all-task average (soup)",
    ("base", "none"): "base",
}


def unseen_table(items: pd.DataFrame) -> pd.DataFrame:
    """One row per held-out yes/no task of one place: balanced accuracy in percent; then their mean.

    The last row is each method's share of the trained adapters' mean gain over chance (0.5). "best"
    is the best sample on these same rows, as in RPG: an upper bound that no user can select.
    """
    samples = per_sample(items, "balanced_accuracy")
    groups = samples.groupby(["task", "method", "condition"], sort=False, observed=True).value
    mean, best = groups.mean(), groups.max()
    table = []
    for name in dict.fromkeys(samples.task):
        row = {"task": load_task(name).description}
        row |= {"trained": mean.get((name, "trained", "none"), np.nan)}
        row |= {"best": best.get((name, "generated", "matched"), np.nan)}
        row |= {heading: mean.get((name, *key), np.nan) for key, heading in _UNSEEN.items()}
        table.append(row)
    values = pd.DataFrame(table)
    means = values.drop(columns="task").mean()
    shares = (means - 0.5) / (means.trained - 0.5)
    values = pd.concat([values, means.to_frame().T.assign(task="mean")], ignore_index=True)
    texts = values.set_index("task").map(lambda x: ABSENT if np.isnan(x) else f"{100 * x:.1f}")
    texts.loc["share of the gain over chance"] = [
        ABSENT if np.isnan(x) else f"{100 * x:.0f}%" for x in shares
    ]
    return texts.reset_index()


def novelty_table(novelty: pd.DataFrame, source: str) -> pd.DataFrame:
    """Distances on dW for one source, and their ratio to the distances of held-out seeds.

    `novelty` are rows of novelty.csv. Values are means over generator seeds; the smallest ratio is
    the smallest over all seeds.
    """
    rows = novelty[novelty.source == source]
    numbers = {name: "mean" for name in ("ratio", "generated", "held_out", "seeds", "samples")}
    key = ["base", "task", "method"]
    rows = rows.groupby(key, as_index=False, sort=False).agg(numbers | {"ratio_low": "min"})
    headings = {
        "ratio": "ratio", "ratio_low": "smallest ratio", "generated": "generated to nearest",
        "held_out": "held-out seed to nearest", "seeds": "between seeds",
        "samples": "between samples",
    }  # fmt: skip
    texts = {heading: rows[name].map(_three_digits) for name, heading in headings.items()}
    return rows[key].rename(columns={"base": "base model"}).assign(**texts)


def _three_digits(value: float) -> str:
    return ABSENT if np.isnan(value) else f"{value:.3g}"


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
    blocks = []
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


# ---------------------------------------------------------------- tasks by base models
FEW = 3  # a run of at most so many tasks is a partial one
MODELS = {  # the language models of the lab scale, in the order of the grid's columns
    "smollm2-135m": "causal", "smollm2-135m-t4": "causal", "gemma-3-270m": "causal",
    "minilm-l6": "encoder", "minilm-l3": "encoder",
}  # fmt: skip
GRID_ENTRIES = [("trained", "none"), ("generated", "matched"), ("base", "none")]
SIGNS = {
    NO_SIGNAL: "the interval of trained minus baseline is not above 0",
    IMPOSSIBLE: "impossible, an encoder generates no text",
    ABSENT: "not run, or no mean because a task is missing",
}


def grid_table(
    metrics: pd.DataFrame,
    source: str,
    items: pd.DataFrame | None = None,
    *,
    no_signal: Iterable[tuple[str, ...]] = (),
) -> pd.DataFrame:
    """Tasks by base models, accuracy in percent: "trained ± / generated ± [base]" in each cell.

    The seven tasks of the paper and the five models of the lab scale keep their rows and columns if
    only some were run. The last row is the mean of the models that have every task.

    Args:
        metrics: rows of metrics.csv.
        source: the data source whose rows are used.
        items: one outcome a sample and held-out row, for the standard deviations (±).
        no_signal: places without signal, marked †. A cell that was not run holds –, an impossible
            one ×.
    """
    rows = pooled(metrics[(metrics.source == source) & (metrics.metric == "accuracy")])
    spreads = {} if items is None else spreads_of(items[items.source == source])
    values = {tuple(row[:6]): row.value for row in rows.itertuples(index=False)}
    bases, tasks = ordered(rows, "base"), ordered(rows, "task")
    experiment = rows.experiment.iloc[0]
    table, measured = [], {base: [] for base in bases}
    for task in tasks:
        line = {"task": task}
        for base in bases:
            place = (experiment, source, base, task)
            keys = [(*place, *entry) for entry in GRID_ENTRIES]
            if not any(key in values for key in keys):
                line[base] = IMPOSSIBLE if impossible(base, task) else ABSENT
                continue
            measured[base].append([values.get(key, np.nan) for key in keys])
            texts = []
            for key in keys[:2]:
                spread = f" ± {100 * spreads[key]:.1f}" if key in spreads else ""
                texts.append(f"{100 * values[key]:.1f}{spread}" if key in values else ABSENT)
            before = f" [{100 * values[keys[2]]:.1f}]" if keys[2] in values else ""
            line[base] = f"{' / '.join(texts)}{f' {NO_SIGNAL}' * (place in no_signal)}{before}"
        table.append(line)
    complete = {base: np.mean(v, axis=0) for base, v in measured.items() if len(v) == len(tasks)}
    if complete and len(tasks) > 1:
        means = {b: "{:.1f} / {:.1f} [{:.1f}]".format(*(100 * m)) for b, m in complete.items()}
        means = {base: text.replace("nan", ABSENT) for base, text in means.items()}
        table.append({"task": "mean"} | dict.fromkeys(bases, ABSENT) | means)
    return pd.DataFrame(table, columns=["task", *bases])


def ordered(rows: pd.DataFrame, column: str) -> list[str]:
    """The base models or tasks of one source, in the order of the grid.

    The paper's tasks and the lab's models are listed even if not run, except in a partial run
    (scale desk), where missing models are not gaps.
    """
    names = list(rows[column].unique())
    paper = set(rows.source) <= {"local", "hub"} and set(rows.experiment) <= {"language"}
    if column == "base":
        complete = set(names) & set(MODELS) and (paper or rows.task.nunique() > FEW)
        first = [name for name in MODELS if complete or name in names]
    else:
        first = PAPER_TASKS if paper else []
    return [*first, *(name for name in names if name not in first)]


def impossible(base: str, task: str) -> bool:
    """Whether the base model cannot do the task: an encoder generates no text."""
    written = task in task_names() and load_task(task).scoring == "answer"
    return written and MODELS.get(base) == "encoder"


def grid_legend(table: pd.DataFrame) -> str:
    """The meaning of the cells and signs of a `grid_table`."""
    text = " ".join(table.iloc[:, 1:].to_numpy().ravel())
    sentences = ["Accuracy in percent on held-out items: trained / generated, [base model]."]
    if "±" in text:
        sentences.append(
            "± is the standard deviation over adapters (trained) or over samples and generator "
            "seeds (generated)."
        )
    for sign, meaning in SIGNS.items():
        if sign in text.split():
            sentences.append(f"{sign} {'no signal: ' * (sign == NO_SIGNAL)}{meaning}.")
    return " ".join(sentences)
