"""The figures of one cell, or of a few: methods, prompts, and example images with answers.

Every figure function returns a matplotlib Figure: a notebook shows it once,
`theme.save_figure` writes it.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import (
    BLUE,
    DASHED,
    FAINT,
    GREY,
    INK,
    ORANGE,
    VERMILION,
    styled,
    subplots,
)
from oral_lib.tasks import images
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import Task, load_task

_METHODS = {  # in order from the top: (label, colour)
    "generated": ("generated", VERMILION),
    "trained": ("trained", BLUE),
    "soup_task": ("adapter average (soup)", INK),
    "retrieval": ("retrieval", INK),
    "regression": ("regression", INK),
    "gaussian": ("Gaussian", INK),
    "noise_small": ("small noise", INK),
    "soup_all": ("all-task average (soup)", INK),
    "noise_large": ("large noise", INK),
    "unconditional": ("unconditional", INK),
    "multitask": ("multi-task LoRA", INK),
    "linear_probe": ("linear probe", INK),
    "base": ("base model", GREY),
    "majority": ("majority class", GREY),
}
_CONDITIONS = {
    "matched": ("task's own prompt", VERMILION),
    "paraphrase": ("held-out paraphrase", ORANGE),
    "mismatched": ("wrong-task prompt", INK),
    "random": ("random words", INK),
    "empty": ("empty prompt", INK),
}


# ---------------------------------------------------------------- accuracy with intervals
def methods(rows: pd.DataFrame, samples: pd.DataFrame | None = None) -> Figure:
    """One panel per base model and task: every method's accuracy with its 95% interval.

    `rows` are from `comparisons.pooled`, of one experiment, source and metric. `samples` are from
    `comparisons.per_sample`; they are drawn as ticks below methods with several samples. The band
    is trained ± half a point.
    """
    rows = rows[rows.condition.isin(["none", "matched"]) & rows.method.isin(_METHODS)]
    return _interval_panels(rows, "method", _METHODS, samples, references={})


def conditions(rows: pd.DataFrame, samples: pd.DataFrame | None = None) -> Figure:
    """One panel per base model and task: generated from the task's own and from other prompts.

    Lines mark the base model and the trained LoRA. Arguments as in `methods`.
    """
    references = {"base": ("base", GREY), "trained": ("trained", BLUE)}
    return _interval_panels(rows, "condition", _CONDITIONS, samples, references)


def _interval_panels(
    rows: pd.DataFrame,
    column: str,
    labels: Mapping[str, tuple[str, str]],
    samples: pd.DataFrame | None,
    references: Mapping[str, tuple[str, str]],
) -> Figure:
    """One panel per base model and task, one line per value of `column`.

    Args:
        rows: pooled metrics.
        column: "method" or "condition" (of generated only).
        labels: (label, colour) of each value of `column`.
        samples: values per sample, drawn as ticks.
        references: (label, colour) of methods drawn as vertical lines.
    """
    drawn = rows if column == "method" else rows[rows.method == "generated"]
    labels = {name: look for name, look in labels.items() if name in set(drawn[column])}
    cells = list(rows.groupby(["base", "task"], sort=False))
    n_columns = 2 if len(cells) == 4 else min(3, max(1, len(cells)))
    n_rows = -(-len(cells) // n_columns)
    low = np.floor(100 * rows.ci_low.min() / 10 - 0.2) * 10
    high = np.ceil(100 * rows.ci_high.max() / 10 + 0.2) * 10
    with styled():
        size = (2.2 + 3.1 * n_columns, n_rows * (1.35 + 0.4 * len(labels)))
        figure, axes = subplots(
            n_rows, n_columns, figsize=size, sharex=True, sharey=True, squeeze=False,
        )  # fmt: skip
        figure.get_layout_engine().set(hspace=0.06)
        for axis in axes.flat[len(cells) :]:
            axis.set_visible(False)
        for axis, ((base, task), cell) in zip(axes.flat, cells, strict=False):
            _title_panel(axis, base, task, lift=22 if references else 6)
            _references(axis, cell, references)
            entries = drawn.loc[drawn.index.isin(cell.index)]
            for height, (name, (_, colour)) in enumerate(labels.items()):
                axis.axhline(height, color=FAINT, lw=1, zorder=0)
                for row in entries[entries[column] == name].itertuples():
                    _interval(axis, row, height, colour)
                    if samples is not None:
                        _ticks(axis, samples, row, height, colour)
            axis.set_yticks(range(len(labels)), [label for label, _ in labels.values()])
            axis.set(ylim=(len(labels) - 0.4, -0.6), xlim=(max(0, low), min(100, high)))
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
        legend = "dot: mean, bar: 95% interval over items, ticks: single samples"
        legend += "" if references else ",\nband: within half a point of trained"
        figure.supxlabel(f"accuracy in percent ({legend})", fontsize=10.5)
    return figure


def _title_panel(axis: Axes, base: str, task: str, lift: float) -> None:
    """The task as title and the base model below it, `lift` points above the panel."""
    axis.set_title(f"{task.replace('_', ' ')}\n", pad=lift)
    position = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axis.annotate(base, (0, 1), (0, lift + 2), color="#6b6b6b", **position)


def _references(axis: Axes, cell: pd.DataFrame, references: Mapping[str, tuple[str, str]]) -> None:
    """Labelled vertical lines at the methods of `references`; else a band around trained."""
    for method, (label, colour) in references.items():
        for value in 100 * cell[cell.method == method].value:
            axis.axvline(value, color=colour, lw=1.6, ls=DASHED, zorder=1)
            axis.annotate(
                label, (value, 1), (0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", color=colour, ha="center", fontsize=10,
            )  # fmt: skip
    for value in [] if references else 100 * cell[cell.method == "trained"].value:
        axis.axvspan(value - 0.5, value + 0.5, color=BLUE, alpha=0.12, lw=0, zorder=0)


def _interval(axis: Axes, row, height: int, colour: str) -> None:
    value, ends = 100 * row.value, (100 * row.ci_low, 100 * row.ci_high)
    axis.plot(ends, [height, height], color=colour, lw=2.4, solid_capstyle="butt")
    face = "white" if colour == GREY else colour
    axis.plot(value, height, "o", ms=8, color=colour, mfc=face, mew=1.8)
    axis.annotate(
        f"{value:.1f}", (1.02, height), xycoords=("axes fraction", "data"), va="center",
        fontsize=10.5, color=colour, weight="bold" if colour == VERMILION else "normal",
    )  # fmt: skip


def _ticks(axis: Axes, samples: pd.DataFrame, row, height: int, colour: str) -> None:
    """A tick per sample of the row's method, if there are several."""
    columns = ["base", "task", "method", "condition"]
    values = samples[(samples[columns] == [getattr(row, c) for c in columns]).all(axis=1)].value
    if len(values) > 1:
        heights = np.full(len(values), height + 0.3)
        axis.plot(100 * values, heights, "|", ms=7, mew=1.2, color=colour, alpha=0.75)


# ---------------------------------------------------------------- example images
EXAMPLE_METHODS = {"base": "none", "trained": "none", "generated": "matched"}  # with condition
EXAMPLE_PIXELS = 96  # pixels
IMAGE_QUERY = "text_to_image/"  # matching: item keys of the direction in which a text is the query


def examples(
    items: pd.DataFrame, source: str, number: int = 4
) -> "tuple[np.ndarray, pd.DataFrame] | None":
    """(images, answers) of `number` held-out images per task, as `example_images` takes them.

    None if no image was scored with every method. For matching, the answer is the rank of the
    text's own image.

    Args:
        items: outcomes of image tasks on one base model, by one generator seed.
        source: the data source of the images; raises PreflightError if they are missing.
        number: images per task.

    Returns:
        Images, uint8 [n, SIDE, SIDE, 3], and a table of n rows.
    """
    files, answers = [], []
    for name in items.task.drop_duplicates():
        task = load_task(name)
        cell = items[(items.task == name) & (items["sample"] == 0)]
        predictions = {
            method: cell[(cell.method == method) & (cell.condition == condition)]
            .set_index("item")
            .predicted
            for method, condition in EXAMPLE_METHODS.items()
        }
        prefix = IMAGE_QUERY if task.scoring == "match" else ""
        scored = set.intersection(*(set(series.index) for series in predictions.values()))
        for row in _first(task_rows(task, source).test, scored, prefix, number):
            files.append(row.image)
            predicted = {method: s[prefix + row.key] for method, s in predictions.items()}
            answers.append(_answers(task, row, predicted))
    return (images.pad_to_square(files, EXAMPLE_PIXELS), pd.DataFrame(answers)) if files else None


def example_images(thumbnails, answers: pd.DataFrame, n_columns: int = 4) -> Figure:
    """Images with the truth above, and each adapter's answer below; wrong answers are coloured.

    Args:
        thumbnails: uint8 images [n, h, w, 3].
        answers: n rows with the column "truth" and one column per adapter, which holds "answer" or
            "answer (confidence%)". An optional "text" is written above the truth, an optional
            "title" replaces it.
        n_columns: images per row.
    """
    n_rows = -(-len(answers) // n_columns)
    adapters = [name for name in answers.columns if name not in ("truth", "text", "title")]
    with styled():
        size = (3.1 * n_columns, n_rows * (2.5 + 0.28 * len(adapters)))
        figure, axes = subplots(n_rows, n_columns, figsize=size, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        rows = answers.to_dict("records")
        titles = [_title(row) for row in rows]
        fontsize = 12 if max(map(len, titles)) < 25 else 9
        for axis, image, row, title in zip(axes.flat, thumbnails, rows, titles, strict=False):
            axis.imshow(np.asarray(image))
            axis.set_title(title, fontsize=fontsize, loc="center")
            for line, name in enumerate(adapters):
                _answer(axis, name, row, line)
    return figure


def _answer(axis: Axes, name: str, row: Mapping[str, str], line: int) -> None:
    """The answer of the adapter `name`, on the given line below the image."""
    text = row[name]
    answer, bracket, confidence = text.rpartition(" (") if text.endswith("%)") else (text, "", "")
    text = textwrap.shorten(answer, 36, placeholder=" ...") + bracket + confidence
    axis.annotate(
        f"{name}: {text}", (0.5, 0), (0, -6 - 14 * line), ha="center", va="top",
        xycoords="axes fraction", textcoords="offset points", fontsize=10 if len(text) < 25 else 8,
        color=INK if answer == row["truth"] else VERMILION, annotation_clip=False,
    )  # fmt: skip


def _title(row: Mapping[str, str]) -> str:
    """The title of an image: its text, shortened and wrapped, and the truth."""
    lines = dict.fromkeys((row.get("text", row["truth"]), row["truth"]))
    lines = row["title"].splitlines() if "title" in row else lines
    short = [textwrap.shorten(text, 150, placeholder=" ...") for text in lines]
    wrapped = [line for text in short for line in textwrap.wrap(text, 40)]
    return "\n".join(wrapped).replace("\n.", " .")  # a full stop does not start a line


def _first(rows: Sequence[Row], scored: set[str], prefix: str, number: int) -> Iterator[Row]:
    """The first `number` rows with different images whose key is in `scored`."""
    seen: set[bytes] = set()
    for row in rows:
        if len(seen) < number and row.image not in seen and prefix + row.key in scored:
            seen.add(row.image)
            yield row


def _answers(task: Task, row: Row, predicted: Mapping[str, int]) -> dict[str, str]:
    """Title, truth and each method's answer, from its predicted label or rank."""
    if task.scoring == "match":
        places = {method: f"place {1 + rank}" for method, rank in predicted.items()}
        return {"title": row.text, "truth": "place 1"} | places
    truth = task.labels[row.label]
    title = f"{row.text}\n{truth}".strip()
    labels = {method: task.labels[label] for method, label in predicted.items()}
    return {"title": title, "truth": truth} | labels
