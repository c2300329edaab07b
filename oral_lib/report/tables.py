"""The tables of a result: the main one, every interval, and one for each kind of study.

All take the rows of `metrics.csv` and the items of `items.parquet`; nothing is scored here.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from oral_lib.evaluation.schema import PLACE, SHARES, of_parts
from oral_lib.report.comparisons import per_sample, pooled, spreads_of, without_signal
from oral_lib.report.formats import ABSENT, CANNOT, NO_SIGNAL, aligned
from oral_lib.scales import PAPER_TASKS
from oral_lib.tasks.task import load_task, task_names

HEADINGS = {  # (method, condition): how the main table calls it
    ("majority", "none"): "majority",
    ("base", "none"): "base",
    ("linear_probe", "none"): "linear probe",
    ("trained", "none"): "trained",
    ("soup_task", "none"): "per-task soup",
    ("soup_all", "none"): "all-task soup",
    ("multitask", "matched"): "multi-task LoRA",
    ("retrieval", "matched"): "retrieval",
    ("regression", "matched"): "regression",
    ("generated", "matched"): "generated",
    ("generated", "paraphrase"): "unseen wording",
    ("generated", "mismatched"): "other text",
    ("generated", "random"): "random words",
    ("generated", "empty"): "no text",
    ("gaussian", "none"): "Gaussian",
    ("noise_small", "none"): "small noise",
    ("noise_large", "none"): "large noise",
    ("unconditional", "none"): "unconditional",
}
# shown when they were run; every other column is always there
OPTIONAL = [
    "linear probe", "multi-task LoRA", "unseen wording", "Gaussian", "small noise", "large noise",
    "unconditional",
]  # fmt: skip


def main_table(
    frame: pd.DataFrame,
    source: str,
    items: pd.DataFrame | None = None,
    metric: str = "accuracy",
    *,
    silent: set[tuple[str, ...]] | None = None,
) -> pd.DataFrame:
    """One row a base model and task, in percent: the columns of HEADINGS, n and the standard error.

    With `items`, values of several samples carry ± their standard deviation over samples, and
    tasks without signal are marked †: the trained LoRA is not surely better than base and majority.
    `n` is the number of items; where some columns were scored on fewer, "most / fewest". `s.e.` is
    the largest standard error over items among the columns with that n, in the same order.
    `silent` is `without_signal(items)` where that is known already.
    """
    rows = pooled(frame[(frame.source == source) & (frame.metric == metric)])
    spreads = {}
    if items is not None:
        items = items[items.source == source]
        spreads = spreads_of(items, metric)
        silent = without_signal(items) if silent is None else silent
    silent = silent or set()
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


def targets_table(compared: pd.DataFrame) -> pd.DataFrame:
    """What `contrasts` says of the targets, one row a base model and task, in points and percent.

    The floor is the better of base and majority; kept and lost are shares of the generator's gain.
    """
    table = []
    for place, rows in compared.groupby(PLACE, sort=False):
        found = {(row.what, row.against): row for row in rows.itertuples()}
        floor = next((row.against for row in rows.itertuples() if row.what == "trained"), "")
        line = dict(zip(PLACE, place, strict=True)) | {"floor": floor or ABSENT}
        for heading, key in (
            ("trained over floor", ("trained", floor)),
            ("generated over floor", ("generated", floor)),
            ("generated over trained", ("generated", "trained")),
        ):
            line[heading] = _points(found.get(key))
        for control, heading in SHARES_SHOWN.items():
            keep = heading.startswith("kept")
            line[heading] = _share(found.get((f"lost with {control}", floor)), keep)
        table.append(line)
    shown = pd.DataFrame(table, columns=list(table[0]) if table else PLACE)
    return shown.drop(columns=["experiment", "source"]).rename(columns={"base": "base model"})


SHARES_SHOWN = {
    "paraphrase": "kept, unseen wording",
    "mismatched": "lost, other text",
    "random": "lost, random words",
    "empty": "lost, no text",
}


def _points(row) -> str:
    if row is None:
        return ABSENT
    value, low, high = (f"{100 * x:+.1f}" for x in (row.difference, row.ci_low, row.ci_high))
    return f"{value} ({low} to {high})".replace("-", "−")


def _share(row, keep: bool) -> str:
    if row is None or np.isnan(row.difference):
        return ABSENT
    ends = (row.difference, row.ci_low, row.ci_high)
    value, *ends = (100 * (1 - x if keep else x) for x in ends)
    return f"{value:.0f}% ({min(ends):.0f} to {max(ends):.0f})".replace("-", "−")


UNSEEN = {  # (method, condition): the columns of `unseen_table` between best of n and base
    ("generated", "matched"): "mean",
    ("generated", "paraphrase"): "unseen wording",
    ("regression", "matched"): "regression",
    ("retrieval", "matched"): "retrieval",
    ("multitask", "matched"): "multi-task LoRA",
    ("soup_all", "none"): "all-task soup",
    ("base", "none"): "base",
}


def unseen_table(items: pd.DataFrame) -> pd.DataFrame:
    """One row a held-out task of yes and no: balanced accuracy in percent, trained beside all that
    never saw the task, then the mean, and its share of trained's gain over chance.

    "best" is the best generated sample on these very rows, as RPG reports it: a ceiling, no choice
    that a user could make.
    """
    samples = per_sample(items, "balanced_accuracy")
    groups = samples.groupby(["task", "method", "condition"], sort=False, observed=True).value
    mean, best = groups.mean(), groups.max()
    table = []
    for name in dict.fromkeys(samples.task):
        row = {"task": load_task(name).description}
        row |= {"trained": mean.get((name, "trained", "none"), np.nan)}
        row |= {"best": best.get((name, "generated", "matched"), np.nan)}
        row |= {about: mean.get((name, *key), np.nan) for key, about in UNSEEN.items()}
        table.append(row)
    frame = pd.DataFrame(table)
    means = frame.drop(columns="task").mean()
    shares = (means - 0.5) / (means.trained - 0.5)
    frame = pd.concat([frame, means.to_frame().T.assign(task="mean")], ignore_index=True)
    shown = frame.set_index("task").map(lambda x: ABSENT if np.isnan(x) else f"{100 * x:.1f}")
    shown.loc["share of the gain over chance"] = [
        ABSENT if np.isnan(x) else f"{100 * x:.0f}%" for x in shares
    ]
    return shown.reset_index()


def novelty_table(novelty: pd.DataFrame, source: str) -> pd.DataFrame:
    """Rows of novelty.csv of one source: distances on dW, and their ratio to those of held-out
    seeds; means over generator seeds, but the smallest ratio of all."""
    rows = novelty[novelty.source == source]
    numbers = {name: "mean" for name in ("ratio", "generated", "held_out", "seeds", "samples")}
    key = ["base", "task", "method"]
    rows = rows.groupby(key, as_index=False, sort=False).agg(numbers | {"ratio_low": "min"})
    shown = {
        "ratio": "ratio", "ratio_low": "smallest ratio", "generated": "to nearest trained on",
        "held_out": "held-out seed to nearest", "seeds": "two seeds", "samples": "two samples",
    }  # fmt: skip
    texts = {about: rows[name].map(_three_digits) for name, about in shown.items()}
    return rows[key].rename(columns={"base": "base model"}).assign(**texts)


def _three_digits(value: float) -> str:
    return ABSENT if np.isnan(value) else f"{value:.3g}"


def parts_table(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Recall@k both ways and the accuracy of each kind of items, in percent: a row each, with the
    methods that were scored on all items as columns; without rows where there is no such thing."""
    rows = pooled(frame[(frame.source == source) & of_parts(frame)])
    table = []
    for (base, task, metric), cell in rows.groupby(["base", "task", "metric"], sort=False):
        found = {(row.method, row.condition): 100 * row.value for row in cell.itertuples()}
        line = {"base model": base, "task": task, "metric": metric, "n": cell.n_items.max()}
        told = {h: found.get(key) for key, h in HEADINGS.items() if key[1] in ("none", "matched")}
        table.append(line | {h: ABSENT if v is None else f"{v:.1f}" for h, v in told.items()})
    shown = pd.DataFrame(table)
    return shown.drop(columns=[n for n in shown if (shown[n] == ABSENT).all()])


def painted_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What a cell of a style measured: a row a method and condition, in the order of the main
    table, each number with its standard error. First, where the cell has it, the floor of the
    distance: what as many real training pictures have."""
    rows = pooled(metrics)
    [distance] = set(rows.metric) - {"frechet_floor", "denoising_error"}
    rows.loc[rows.metric == "frechet_floor", ["method", "metric"]] = "floor", distance
    columns = {distance: distance, "denoising_error": "denoising error"}
    least = rows[rows.method != "floor"].groupby("metric").value.min().clip(1e-5)
    places = {m: max(0, 2 - int(np.floor(np.log10(least[m])))) for m in columns}
    headings, table = {("floor", "none"): "training pictures"} | HEADINGS, []
    for (method, condition), heading in headings.items():
        own = rows[(rows.method == method) & (rows.condition == condition)]
        if len(own):
            line = {"method": heading} | dict.fromkeys(columns.values(), ABSENT)
            for row in own.itertuples():
                numbers = (f"{x:.{places[row.metric]}f}" for x in (row.value, row.stderr))
                line[columns[row.metric]] = " ± ".join(numbers)
            table.append(line | {"adapters": "" if method == "floor" else own.n_samples.max()})
    return pd.DataFrame(table)


def interval_table(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Every pooled row with standard error, 95% interval, items and samples; shares in percent, all
    else with three digits."""
    rows = pooled(frame[frame.source == source])
    share = rows.metric.isin(SHARES) | of_parts(rows)
    low, high, value, stderr = (
        (rows[name] * 100).map("{:.1f}".format).where(share, rows[name].map("{:.3g}".format))
        for name in ("ci_low", "ci_high", "value", "stderr")
    )
    numbers = {"value": value, "stderr": stderr, "95% interval": low + " to " + high}
    names = ["base", "task", "method", "condition", "metric"]
    return rows[names].assign(**numbers, items=rows.n_items, samples=rows.n_samples)


def short_table(frame: pd.DataFrame, items: pd.DataFrame | None = None) -> str:
    """The main table for a terminal, about 100 columns wide, and after it what each style measured;
    `items` only mark missing signal."""
    left_out = ["all-task soup", "retrieval", *OPTIONAL, "random words", "no text", "s.e."]
    short = {"per-task soup": "soup", "regression": "regr.", "generated": "GENERATED"}
    parts = []
    for source in frame.source.unique():
        table = main_table(frame, source).drop(columns=left_out, errors="ignore")
        if len(table):
            if items is not None:
                table["task"] = main_table(frame, source, items).task
            rows = aligned(table.rename(columns=short))
            parts.append(lines := [f"Accuracy in percent, source {source}", *rows])
            if table.task.str.endswith(NO_SIGNAL).any():
                lines.append(
                    f"{NO_SIGNAL} no signal: trained is not surely above base and majority"
                )
        styles = frame[(frame.source == source) & (frame.experiment == "style")]
        for (base, task), cell in styles.groupby(["base", "task"], sort=False):
            rows = aligned(painted_table(cell))
            parts.append([f"Style {task} on {base}, source {source}", *rows])
    return "\n\n".join("\n".join(lines) for lines in parts)


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
    written = task in task_names() and load_task(task).scoring == "answer"
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
