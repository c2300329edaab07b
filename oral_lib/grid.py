"""The grid: tasks by base models, trained beside generated in every cell."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from oral_lib.markup import ABSENT, CANNOT, NO_SIGNAL
from oral_lib.scales import PAPER_TASKS
from oral_lib.tables import pooled, spreads_of
from oral_lib.tasks import task as tasks_task

FEW = 3  # tasks
MODELS = {  # the language models of the lab scale, in the order of the grid's columns
    "smollm2-135m": "causal", "smollm2-135m-t4": "causal", "gemma-3-270m": "causal",
    "minilm-l6": "encoder", "minilm-l3": "encoder",
}  # fmt: skip
SHOWN = [("trained", "none"), ("generated", "matched"), ("base", "none")]  # in a cell of the grid


def grid_table(
    frame: pd.DataFrame,
    source: str,
    items: pd.DataFrame | None = None,
    *,
    silent: Iterable[tuple[str, ...]] = (),
) -> pd.DataFrame:
    """Tasks by base models, accuracy in percent: "trained ± / generated ± [base]" in each cell.

    ± as in `main_table`; `silent` is what `without_signal` found, marked †. A cell that was not run
    holds –, and × where it cannot be: an encoder writes no answers. The seven tasks of the paper
    and the five models of the lab keep their rows and columns; the last row is the mean of the
    models that have every task.
    """
    rows = pooled(frame[(frame.source == source) & (frame.metric == "accuracy")])
    spreads = {} if items is None else spreads_of(items[items.source == source])
    found = {tuple(row[:6]): row.value for row in rows.itertuples(index=False)}
    bases, names = ordered(rows, "base"), ordered(rows, "task")
    experiment = rows.experiment.iloc[0]
    table, whole = [], {base: [] for base in bases}
    for task in names:
        line = {"task": task}
        for base in bases:
            place, shown = (experiment, source, base, task), []
            keys = [(*place, *way) for way in SHOWN]
            if not any(key in found for key in keys):
                line[base] = CANNOT if impossible(base, task) else ABSENT
                continue
            whole[base].append([found.get(key, np.nan) for key in keys])
            for key in keys[:2]:
                spread = f" ± {100 * spreads[key]:.1f}" if key in spreads else ""
                shown.append(f"{100 * found[key]:.1f}{spread}" if key in found else ABSENT)
            start = f" [{100 * found[keys[2]]:.1f}]" if keys[2] in found else ""
            line[base] = f"{' / '.join(shown)}{f' {NO_SIGNAL}' * (place in silent)}{start}"
        table.append(line)
    means = {base: np.mean(whole[base], axis=0) for base in bases if len(whole[base]) == len(names)}
    if means and len(names) > 1:
        text = {b: "{:.1f} / {:.1f} [{:.1f}]".format(*(100 * m)) for b, m in means.items()}
        text = {base: words.replace("nan", ABSENT) for base, words in text.items()}
        table.append({"task": "mean"} | dict.fromkeys(bases, ABSENT) | text)
    return pd.DataFrame(table, columns=["task", *bases])


def ordered(rows: pd.DataFrame, column: str) -> list[str]:
    """The base models or tasks of one source in the order of the grid, whole where it is known.

    Where only a few tasks of packages were run (scale desk), models that were not are no gap.
    """
    found = list(rows[column].unique())
    paper = set(rows.source) <= {"local", "hub"} and set(rows.experiment) <= {"language"}
    if column == "base":
        whole = set(found) & set(MODELS) and (paper or rows.task.nunique() > FEW)
        known = [name for name in MODELS if whole or name in found]
    else:
        known = PAPER_TASKS if paper else []
    return [*known, *(name for name in found if name not in known)]


def impossible(base: str, task: str) -> bool:
    """Whether the base model cannot do the task: an encoder writes no answers."""
    written = task in tasks_task.names() and tasks_task.load(task).scoring == "answer"
    return written and MODELS.get(base) == "encoder"


def grid_legend(table: pd.DataFrame) -> str:
    """What the cells and signs of `grid_table` mean."""
    text = " ".join(table.iloc[:, 1:].to_numpy().ravel())
    parts = ["Accuracy in percent on held-out items: trained / generated, base model in brackets."]
    if "±" in text:
        parts.append(
            "± is the standard deviation over adapters (trained) or over samples and generator "
            "seeds (generated)."
        )
    signs = {
        NO_SIGNAL: "no signal, trained is not surely above base and majority",
        CANNOT: "cannot be, an encoder writes no answers",
        ABSENT: "not run, or without a mean because a task is missing",
    }
    signs = [f"{sign} {words}" for sign, words in signs.items() if sign in text.split()]
    return " ".join([*parts, f"{'; '.join(signs)}." if signs else ""]).strip()
