"""The figures of one cell, or a few: methods, texts, pictures.

Every function returns a closed matplotlib Figure: a notebook shows it once, `style.save` writes it.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from oral_lib.report.theme import BLUE, FAINT, GREY, INK, ORANGE, VERMILION, closed, styled
from oral_lib.tasks import images
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import Task, load_task

METHODS = {  # from the top down: (method, label, colour)
    "generated": ("generated", VERMILION),
    "trained": ("trained", BLUE),
    "soup_task": ("per-task soup", INK),
    "retrieval": ("retrieval", INK),
    "regression": ("regression", INK),
    "gaussian": ("Gaussian", INK),
    "noise_small": ("small noise", INK),
    "soup_all": ("all-task soup", INK),
    "noise_large": ("large noise", INK),
    "unconditional": ("unconditional", INK),
    "multitask": ("multi-task LoRA", INK),
    "linear_probe": ("linear probe", INK),
    "base": ("base model", GREY),
    "majority": ("majority class", GREY),
}
CONDITIONS = {
    "matched": ("own text", VERMILION),
    "paraphrase": ("unseen wording", ORANGE),
    "mismatched": ("another task's text", INK),
    "random": ("random words", INK),
    "empty": ("no text", INK),
}


def methods(rows: pd.DataFrame, samples: pd.DataFrame | None = None) -> Figure:
    """One panel a base model and task: every method's accuracy with its 95% interval.

    rows: `tables.pooled` of one experiment, source and metric. samples: `tables.per_sample`, drawn
    as ticks below the dots of methods with several samples. The band is trained ± half a point.
    """
    rows = rows[rows.condition.isin(["none", "matched"]) & rows.method.isin(METHODS)]
    return _dots(rows, "method", METHODS, samples, lines={})


def conditions(rows: pd.DataFrame, samples: pd.DataFrame | None = None) -> Figure:
    """One panel a base model and task: generated from its own and from other texts.

    Lines mark the base model and the trained LoRA. rows and samples as in `methods`.
    """
    lines = {"base": ("base", GREY), "trained": ("trained", BLUE)}
    return _dots(rows, "condition", CONDITIONS, samples, lines)


def _dots(
    rows: pd.DataFrame,
    column: str,
    kinds: Mapping[str, tuple[str, str]],
    samples: pd.DataFrame | None,
    lines: Mapping[str, tuple[str, str]],
) -> Figure:
    shown = rows if column == "method" else rows[rows.method == "generated"]
    kinds = {name: look for name, look in kinds.items() if name in set(shown[column])}
    cells = list(rows.groupby(["base", "task"], sort=False))
    wide = 2 if len(cells) == 4 else min(3, max(1, len(cells)))
    tall = -(-len(cells) // wide)
    low = np.floor(100 * rows.ci_low.min() / 10 - 0.2) * 10
    high = np.ceil(100 * rows.ci_high.max() / 10 + 0.2) * 10
    with styled():
        size = (2.2 + 3.1 * wide, tall * (1.35 + 0.4 * len(kinds)))
        figure, axes = plt.subplots(
            tall, wide, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        figure.get_layout_engine().set(hspace=0.06)
        for axis in axes.flat[len(cells) :]:
            axis.set_visible(False)
        for axis, ((base, task), cell) in zip(axes.flat, cells, strict=False):
            lift = 22 if lines else 6  # points; the lines are named between title and panel
            axis.set_title(f"{task.replace('_', ' ')}\n", pad=lift)
            spot = {"xycoords": "axes fraction", "textcoords": "offset points"}
            axis.annotate(base, (0, 1), (0, lift + 2), color="#6b6b6b", **spot)
            for method, (label, colour) in lines.items():
                for value in 100 * cell[cell.method == method].value:
                    axis.axvline(value, color=colour, lw=1.6, ls=(0, (4, 2)), zorder=1)
                    axis.annotate(
                        label, (value, 1), (0, 2), xycoords=("data", "axes fraction"),
                        textcoords="offset points", color=colour, ha="center", fontsize=10,
                    )  # fmt: skip
            for value in [] if lines else 100 * cell[cell.method == "trained"].value:
                axis.axvspan(value - 0.5, value + 0.5, color=BLUE, alpha=0.12, lw=0, zorder=0)
            own = shown.loc[shown.index.isin(cell.index)]
            for place, (name, (_, colour)) in enumerate(kinds.items()):
                axis.axhline(place, color=FAINT, lw=1, zorder=0)
                for row in own[own[column] == name].itertuples():
                    value, ends = 100 * row.value, (100 * row.ci_low, 100 * row.ci_high)
                    axis.plot(ends, [place, place], color=colour, lw=2.4, solid_capstyle="butt")
                    filled = "white" if colour == GREY else colour
                    axis.plot(value, place, "o", ms=8, color=colour, mfc=filled, mew=1.8)
                    axis.annotate(
                        f"{value:.1f}", (1.02, place), xycoords=("axes fraction", "data"),
                        va="center", fontsize=10.5, color=colour,
                        weight="bold" if colour == VERMILION else "normal",
                    )  # fmt: skip
                    if samples is not None:
                        _ticks(axis, samples, row, place, colour)
            axis.set_yticks(range(len(kinds)), [label for label, _ in kinds.values()])
            axis.set(ylim=(len(kinds) - 0.4, -0.6), xlim=(max(0, low), min(100, high)))
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
        legend = "dot: mean, bar: 95% interval over items, ticks: single samples"
        legend += "" if lines else ",\nband: within half a point of trained"
        figure.supxlabel(f"accuracy in percent ({legend})", fontsize=10.5)
    return closed(figure)


def _ticks(axis, samples: pd.DataFrame, row, place: int, colour: str) -> None:
    names = ["base", "task", "method", "condition"]
    own = samples[(samples[names] == [getattr(row, name) for name in names]).all(axis=1)]
    if len(own) > 1:
        marks = np.full(len(own), place + 0.3)
        axis.plot(100 * own.value, marks, "|", ms=7, mew=1.2, color=colour, alpha=0.75)


def pictures(shown, said: pd.DataFrame, wide: int = 4) -> Figure:
    """Pictures [n, h, w, 3] of bytes, the truth above and below what each adapter answered.

    said: column truth, perhaps one of a text that goes with it or of a title in its place, then one
    an adapter with "word" or "word (how sure)"; a wrong answer is orange.
    """
    tall = -(-len(said) // wide)
    names = [name for name in said.columns if name not in ("truth", "text", "title")]
    with styled():
        size = (3.1 * wide, tall * (2.5 + 0.28 * len(names)))
        figure, axes = plt.subplots(tall, wide, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat:
            axis.set_axis_off()
        rows = said.to_dict("records")
        titles = [_title(row) for row in rows]
        large = 12 if max(map(len, titles)) < 25 else 9
        for axis, picture, row, title in zip(axes.flat, shown, rows, titles, strict=False):
            axis.imshow(np.asarray(picture))
            axis.set_title(title, fontsize=large, loc="center")
            for place, name in enumerate(names):
                told = row[name]
                word, opens, sure = told.rpartition(" (") if told.endswith("%)") else (told, "", "")
                words = textwrap.shorten(word, 36, placeholder=" ...") + opens + sure
                axis.annotate(
                    f"{name}: {words}", (0.5, 0), (0, -6 - 14 * place), ha="center", va="top",
                    xycoords="axes fraction", textcoords="offset points",
                    fontsize=10 if len(words) < 25 else 8,
                    color=INK if word == row["truth"] else VERMILION, annotation_clip=False,
                )  # fmt: skip
    return closed(figure)


def _title(row: dict[str, str]) -> str:
    """What stands above a picture: its text, cut short and broken into lines, and the truth."""
    told = dict.fromkeys((row.get("text", row["truth"]), row["truth"]))
    told = row["title"].splitlines() if "title" in row else told
    short = [textwrap.shorten(text, 150, placeholder=" ...") for text in told]
    lines = [line for text in short for line in textwrap.wrap(text, 40)]
    return "\n".join(lines).replace("\n.", " .")  # a full stop is no line


SHOWN = {"base": "none", "trained": "none", "generated": "matched"}  # a condition a method

SIDE = 96  # pixels

FOUND = "text_to_image/"  # of matching: which picture a text finds


def answers(
    items: pd.DataFrame, source: str, number: int = 4
) -> "tuple[np.ndarray, pd.DataFrame] | None":
    """(uint8 [n, SIDE, SIDE, 3], said) of `number` pictures a task, as `figures.pictures` shows
    them; None where no picture was shown to an adapter of each method.

    `items` [task, method, condition, sample, item, predicted] are outcomes of tasks of pictures on
    one base model, by one generator seed. Of matching the answer is the place at which the text's
    own picture is found. PreflightError where the pictures are not there.
    """
    files, said = [], []
    for task in items.task.drop_duplicates():
        spec = load_task(task)
        own = items[(items.task == task) & (items["sample"] == 0)]
        heard = {
            method: own[(own.method == method) & (own.condition == condition)]
            .set_index("item")
            .predicted
            for method, condition in SHOWN.items()
        }
        place = FOUND if spec.scoring == "match" else ""
        asked = set.intersection(*(set(told.index) for told in heard.values()))
        for row in _first(task_rows(spec, source).test, asked, place, number):
            told = {method: one[place + row.key] for method, one in heard.items()}
            files.append(row.image)
            said.append(_said(spec, row, told))
    if not files:
        return None
    return images.pad_to_square(files, SIDE), pd.DataFrame(said)


def _first(rows: Sequence[Row], asked: set[str], place: str, number: int) -> Iterator[Row]:
    seen: set[bytes] = set()
    for row in rows:
        if len(seen) < number and row.image not in seen and place + row.key in asked:
            seen.add(row.image)
            yield row


def _said(spec: Task, row: Row, told: dict[str, int]) -> dict[str, str]:
    if spec.scoring == "match":
        found = {method: f"place {1 + rank}" for method, rank in told.items()}
        return {"title": row.text, "truth": "place 1"} | found
    truth = spec.labels[row.label]
    title = f"{row.text}\n{truth}".strip()
    return {"title": title, "truth": truth} | {m: spec.labels[i] for m, i in told.items()}
