"""Tasks by base models in one table: trained, generated and the base model in each cell."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from oral_lib.planning.tables import PAPER_TASKS
from oral_lib.report.comparisons import pooled, spreads_of
from oral_lib.report.formats import ABSENT, IMPOSSIBLE, NO_SIGNAL
from oral_lib.tasks.task import load_task, task_names

FEW = 3  # a run of at most so many tasks is a partial one
MODELS = {  # the language models of the lab scale, in the order of the grid's columns
    "smollm2-135m": "causal", "smollm2-135m-t4": "causal", "gemma-3-270m": "causal",
    "minilm-l6": "encoder", "minilm-l3": "encoder",
}  # fmt: skip
GRID_ENTRIES = [("trained", "none"), ("generated", "matched"), ("base", "none")]
SIGNS = {
    NO_SIGNAL: "trained is not above the baseline after Holm's correction",
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
