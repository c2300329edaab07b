"""What a sample is: its weights over the zoo and its errors, as tables and figures."""

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import (
    LOOKS,
    SMALL_TEXT,
    TINY_TEXT,
    extent,
    footnote,
    key,
    legend,
    mark_of,
    styled,
    subplots,
)
from oral_lib.report.names import task_words

_PLACE = ["base", "task"]
_KINDS = {"generated": LOOKS["generated"], "held_out": LOOKS["trained"]}


# ---------------------------------------------------------------- weights
def weights_figure(weights: pd.DataFrame) -> Figure:
    """The convex weights of samples over the adapters of the zoo, as a heat map.

    One row a sample, one column an adapter, grouped by task.

    Args:
        weights: rows of `samples.weights`.
    """
    tasks = list(dict.fromkeys(weights.task))
    table = weights.pivot_table("weight", ["text_of", "sample"], ["task", "seed"], sort=False)
    with styled():
        height = 1.3 + 0.16 * len(table) + 0.35
        figure, axis = subplots(height=height)
        image = axis.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        bar = figure.colorbar(image, ax=axis, fraction=0.03, aspect=25, label="weight")
        bar.outline.set_visible(False)
        places = (
            (axis.set_xticks, axis.axvline, [task for task, _ in table.columns]),
            (axis.set_yticks, axis.axhline, [text_of for text_of, _ in table.index]),
        )
        for ticks, line, names in places:
            cuts = [i for i in range(1, len(names)) if names[i] != names[i - 1]]
            for cut in cuts:
                line(cut - 0.5, color="white", lw=1)
            starts = [0, *cuts, len(names)]
            middles = [(a + b - 1) / 2 for a, b in itertools.pairwise(starts)]
            words = [task_words(name) for name in dict.fromkeys(names)]
            crowded = ticks == axis.set_xticks and len(tasks) > 4
            ticks(middles, words, rotation=45 if crowded else 0, fontsize=TINY_TEXT,
                  **({"ha": "right"} if crowded else {}))  # fmt: skip
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="adapters of the zoo, trained on", ylabel="samples for the text of")
        footnote(
            figure,
            f"Convex weights of the hull's point closest to each sample; mean share outside the "
            f"hull {100 * weights.outside.mean():.0f}%.",
            f"n: {table.shape[0]} samples, {table.shape[1]} adapters.",
        )
    return figure


def weights_table(weights: pd.DataFrame) -> pd.DataFrame:
    """Per text: the weight of the own task, of the largest adapter, and the effective number.

    Means over samples. The effective number of adapters is 1 / (sum of squared weights).
    """
    group = weights.groupby(["text_of", "sample"], sort=False)
    same_task = weights[weights.task == weights.text_of]
    rows = pd.DataFrame(
        {
            "own task": same_task.groupby(["text_of", "sample"], sort=False).weight.sum(),
            "largest adapter": group.weight.max(),
            "adapters, effective": 1 / group.weight.apply(lambda w: (w**2).sum()),
            "outside of the hull": group.outside.first(),
        }
    )
    return rows.groupby("text_of", sort=False).mean()


# ---------------------------------------------------------------- errors
def error_overlap(items: pd.DataFrame, held_out: int) -> pd.DataFrame:
    """How far samples repeat the errors of a zoo adapter: a row a base model, task and adapter.

    The overlap of two adapters is the share of rows that both answer wrongly among the rows that
    either does (intersection over union). For each adapter the largest overlap with any adapter of
    the zoo is taken. Adapters without any error have no overlap.

    Args:
        items: outcomes of one experiment and source.
        held_out: trained adapters of a task that no generator was trained on; the last samples.

    Returns:
        Columns base, task, kind, sample, overlap. Kinds: "generated" from the task's own text, and
        "held_out", an adapter trained with a seed that no generator has read.
    """
    rows = [
        {"base": base, "task": task} | row
        for (base, task), cell in items.groupby(_PLACE, observed=True, sort=False)
        for row in _overlaps(cell, held_out)
    ]
    return pd.DataFrame(rows, columns=["base", "task", "kind", "sample", "overlap"])


def _overlaps(cell: pd.DataFrame, held_out: int) -> Iterator[dict]:
    errors = {
        (method, condition): _errors(cell, method, condition)
        for method, condition in (("trained", "none"), ("generated", "matched"))
    }
    trained, generated = errors.values()
    n_zoo = len(trained) - held_out
    if n_zoo < 1 or trained.shape[1] != generated.shape[1]:
        return
    zoo, later = trained[:n_zoo], trained[n_zoo:]
    for kind, adapters in (("generated", generated), ("held_out", later)):
        for sample, wrong in enumerate(adapters):
            either = (wrong | zoo).sum(1)  # [n]
            if either.any():
                both = (wrong & zoo).sum(1) / np.maximum(either, 1)
                yield {"kind": kind, "sample": sample, "overlap": float(both.max())}


def _errors(cell: pd.DataFrame, method: str, condition: str) -> np.ndarray:
    """bool [adapters, rows]: wrong answers; rows in the order of their names."""
    rows = cell[(cell.method == method) & (cell.condition == condition)]
    wide = rows.pivot_table("correct", ["seed", "sample"], "item", observed=True, sort=True)
    return ~wide.to_numpy().astype(bool)


def overlap_figure(overlap: pd.DataFrame) -> Figure:
    """The largest overlap of errors with a zoo adapter, by task: samples next to held-out seeds.

    Args:
        overlap: rows of `error_overlap`.
    """
    cells = list(overlap.groupby(_PLACE, sort=False))
    with styled():
        figure, axis = subplots(height=1.5 + 0.26 * len(cells))
        for height, (_, rows) in enumerate(cells):
            for shift, (kind, look) in zip((-0.15, 0.15), _KINDS.items(), strict=True):
                values = 100 * rows[rows.kind == kind].overlap
                axis.plot(
                    values, [height + shift] * len(values), **mark_of(look, size=4, alpha=0.4)
                )
                if len(values):
                    axis.plot([values.mean()], [height + shift], **mark_of(look, size=7))
        names = [f"{task_words(task)}, {base}" for (base, task), _ in cells]
        axis.set_yticks(range(len(cells)), names, fontsize=TINY_TEXT)
        axis.set(ylim=(len(cells) - 0.4, -0.6), xlim=(-2, 102))
        axis.set_xlabel("rows that both answer wrongly / rows that either does, percent",
                        fontsize=SMALL_TEXT)  # fmt: skip
        labels = {"generated": "generated", "held_out": "trained, held-out seed"}
        legend(figure, [key(look, labels[kind]) for kind, look in _KINDS.items()])
        counts = overlap.groupby(["kind", *_PLACE]).size()
        numbers = [f"{extent(counts[kind])} {labels[kind]}" for kind in _KINDS if kind in counts]
        footnote(
            figure,
            "The largest overlap of an adapter's errors with any zoo adapter of the task.",
            f"Large marks: means. n a line: {' and '.join(numbers)}.",
        )
    return figure
