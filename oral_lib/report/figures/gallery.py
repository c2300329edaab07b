"""The figure of example images with the answers of base, trained and generated adapters."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oral_lib.report.figures.theme import SMALL_TEXT, TINY_TEXT, footnote, styled, subplots
from oral_lib.tasks import images
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import Task, load_task

EXAMPLE_METHODS = {"base": "none", "trained": "none", "generated": "matched"}  # with condition
EXAMPLE_PIXELS = 96  # pixels
_IMAGE_QUERY, _TEXT_QUERY = "text_to_image/", "image_to_text/"  # matching: prefixes of item keys
_RIGHT, _WRONG = "✓", "✗"
_LINE = 32  # characters


def examples(
    items: pd.DataFrame, source: str, number: int = 4
) -> "tuple[np.ndarray, pd.DataFrame] | None":
    """(images, answers) of `number` held-out images per task, as `example_images` takes them.

    None if no image was scored with every method. For matching, the answer is the rank of the
    text's own image among all candidates.

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
        prefix = _IMAGE_QUERY if task.scoring == "match" else ""
        scored = set.intersection(*(set(series.index) for series in predictions.values()))
        n_candidates = max(sum(key.startswith(p) for key in scored) for p in (_TEXT_QUERY, prefix))
        for row in _first(task_rows(task, source).test, scored, prefix, number):
            files.append(row.image)
            predicted = {method: s[prefix + row.key] for method, s in predictions.items()}
            answers.append(_answers(task, row, predicted, n_candidates))
    return (images.pad_to_square(files, EXAMPLE_PIXELS), pd.DataFrame(answers)) if files else None


def example_images(
    thumbnails, answers: pd.DataFrame, n_columns: int = 4, remark: str = ""
) -> Figure:
    """Images with the right answer above, and each adapter's answer below, marked ✓ or ✗.

    Args:
        thumbnails: uint8 images [n, h, w, 3].
        answers: n rows with the column "truth" and one column per adapter, which holds "answer" or
            "answer (confidence%)". An optional "text" is written above the right answer.
        n_columns: images per row.
        remark: sentences of the footnote, such as the numbers of seeds and samples.
    """
    n_rows = -(-len(answers) // n_columns)
    adapters = [name for name in answers.columns if name not in ("truth", "text")]
    rows = answers.to_dict("records")
    titles = [_title(row) for row in rows]
    lines = [
        max(title.count("\n") + 1 for title in titles[i * n_columns : (i + 1) * n_columns])
        for i in range(n_rows)
    ]
    with styled():
        height = 0.5 + sum(1.35 + 0.17 * n + 0.18 * len(adapters) for n in lines)
        figure, axes = subplots(n_rows, n_columns, height=height, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, image, row, title in zip(axes.flat, thumbnails, rows, titles, strict=False):
            axis.imshow(np.asarray(image))
            axis.set_title(title, fontsize=TINY_TEXT, weight="normal", loc="center", pad=3)
            for line, name in enumerate(adapters):
                _answer(axis, name, row, line)
        base = "base: its classification head, if the task requires one, is untrained."
        footnote(
            figure,
            "Above an image: the input's text and the right answer;",
            f"{_RIGHT}: right, {_WRONG}: wrong.",
            base if "base" in adapters else "",
            "place: rank of the text's own image." if _ranked(answers) else "",
            remark,
        )
    return figure


def _ranked(answers: pd.DataFrame) -> bool:
    return answers.truth.str.startswith("place 1 of ").any()


def _answer(axis: Axes, name: str, row: Mapping[str, str], line: int) -> None:
    """The answer of the adapter `name`, on the given line below the image."""
    text = row[name]
    answer, bracket, confidence = text.rpartition(" (") if text.endswith("%)") else (text, "", "")
    sign = _RIGHT if answer == row["truth"] else _WRONG
    text = textwrap.shorten(answer, 20, placeholder=" ...") + bracket + confidence
    size = SMALL_TEXT if len(text) < 18 else TINY_TEXT
    axis.annotate(
        f"{sign} {name}: {text}", (0.5, 0), (0, -4 - 12.5 * line), ha="center", va="top",
        xycoords="axes fraction", textcoords="offset points", fontsize=size,
        annotation_clip=False,
    )  # fmt: skip


def _title(row: Mapping[str, str]) -> str:
    """The title of an image: its text, shortened and wrapped, and the right answer."""
    text = row.get("text", "")
    lines = textwrap.wrap(textwrap.shorten(str(text), 100, placeholder=" ..."), _LINE)
    if not re.match(r"place 1( of |$)", row["truth"]):
        lines += textwrap.wrap(f"right answer: {row['truth']}", _LINE)
    return "\n".join(lines).replace("\n.", " .")  # a full stop does not start a line


def _first(rows: Sequence[Row], scored: set[str], prefix: str, number: int) -> Iterator[Row]:
    """The first `number` rows with different images whose key is in `scored`."""
    seen: set[bytes] = set()
    for row in rows:
        if len(seen) < number and row.image not in seen and prefix + row.key in scored:
            seen.add(row.image)
            yield row


def _answers(
    task: Task, row: Row, predicted: Mapping[str, int], n_candidates: int
) -> dict[str, str]:
    """Text, right answer and each method's answer, from its predicted label or rank."""
    if task.scoring == "match":
        places = {m: f"place {1 + rank} of {n_candidates}" for m, rank in predicted.items()}
        return {"text": row.text, "truth": f"place 1 of {n_candidates}"} | places
    labels = {method: task.labels[label] for method, label in predicted.items()}
    return {"text": row.text, "truth": task.labels[row.label]} | labels
