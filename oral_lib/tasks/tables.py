"""The tables of a source: how their cells become text, label and image of a task's rows.

An entry under `sources` says how the rows of a source are read:

- `text`: a column, or a template over the columns.
- `label`: a column of class numbers, or of one of `values`.
- `rating`: a column; class 1 is above `threshold`, class 0 below `-threshold`, others are dropped.
- `options`: the two columns of an option task. Either they fill the `blank` of a column, or they
  follow a `context`.
- `answer`: the column of an answer task.
- `group`: rows that are equal in this column stay in one part.
- `image`: the column with image files, for tasks of scoring "image", "style", "question" and
  "match". Rows of "style" have no labels. Rows of "match" with one `label` belong together; a list
  of texts becomes one row a text.
- `part`: the column that states the part of a row.
"""

import re
from collections.abc import Iterable
from string import Formatter

import pandas as pd

from oral_lib.assets import sources
from oral_lib.errors import PreflightError
from oral_lib.tasks import images
from oral_lib.tasks.images import CellError
from oral_lib.tasks.task import PAIRED, Task


def row_fields(task: Task, frame: pd.DataFrame, spec: dict, part: str) -> list[dict]:
    """Fields of `Row`, without its key, of each row of `frame`.

    Args:
        task: the task that the rows belong to.
        frame: a table of the source.
        spec: the entry of the source in the task's file.
        part: name of the part, for messages.

    Raises:
        PreflightError: if a column is missing, or a cell is not as the task requires. The message
            quotes the row.
    """
    fields = []
    for i, cells in enumerate(frame.to_dict("records")):
        try:
            fields.append(_content(task, cells, spec) | _truth(task, cells, spec))
        except KeyError as error:
            require_columns(task, frame, error.args)
            raise
        except CellError as error:
            raise PreflightError(
                f"task {task.name!r}: row {i} of {part} is invalid: {error}. Its cells: "
                f"{_short(cells)}. Check the data set."
            ) from error
    return fields


def _content(task: Task, cells: dict, spec: dict) -> dict:
    """Text and image of a row, as fields of `Row`."""
    if task.scoring in ("image", "style"):
        return {"text": "", "image": images.file_bytes(cells[spec["image"]])}
    if task.scoring in PAIRED:
        image = {"image": images.file_bytes(cells[spec["image"]]), "kind": cells.get("kind", "")}
        return {"text": _filled(spec["text"], cells)} | image
    return {"text": _filled(spec["text"], cells)}


def require_columns(task: Task, frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raises PreflightError for the first of `columns` that `frame` does not have."""
    if missing := [name for name in columns if name not in frame.columns]:
        raise PreflightError(
            f"task {task.name!r}: the data set has no column {missing[0]!r}; its columns: "
            f"{', '.join(map(str, frame.columns))}."
        )


def _short(cells: dict, most: int = 60) -> str:
    """The cells of a row in one line, each of at most `most` letters."""
    texts = {name: repr(cell) for name, cell in cells.items()}
    return ", ".join(f"{n}: {c if len(c) <= most else c[:most] + '...'}" for n, c in texts.items())


def _filled(form: str, cells: dict) -> str:
    """The column `form`, or the template `form` over the columns. CellError for an empty cell."""
    names = [name for _, name, *_ in Formatter().parse(form) if name] if "{" in form else [form]
    for name in names:
        if cells[name] is None or cells[name] != cells[name]:  # NaN
            raise CellError(f"{name!r} is empty")
    return form.format_map(cells) if "{" in form else _text(cells, form)


def _text(cells: dict, column: str) -> str:
    """The text in `column`. CellError if it is not a text."""
    if not isinstance(cells[column], str):
        raise CellError(f"{column!r} is not a text")
    return cells[column]


def _truth(task: Task, cells: dict, spec: dict) -> dict:
    """Label and options, or answer and target of a row, as fields of `Row`."""
    if task.scoring == "answer":
        return {"label": 0} | _solution(_text(cells, spec["answer"]))
    if task.scoring == "style":
        return {"label": 0}
    column = spec.get("label", "label")
    label = cells[column]
    if task.scoring == "match":
        if not isinstance(label, int):
            raise CellError(f"{column!r} is not an integer")
        return {"label": label}
    values = spec.get("values", range(len(task.labels)))
    if label not in values:
        raise PreflightError(
            f"task {task.name!r}: a row has the label {label!r}, which is not one of "
            f"{', '.join(map(str, values))}. Check the data set."
        )
    return {"label": values.index(label), "options": _options(task, cells, spec)}


def _options(task: Task, cells: dict, spec: dict) -> tuple[tuple[str, str], ...]:
    """((context, continuation), ...) as in lm-evaluation-harness; () for label tasks.

    In a sentence with a blank, each context ends with an option, and the rest of the sentence is
    the continuation of all. Otherwise the options are continuations of one context.
    """
    if task.scoring != "option":
        return ()
    options = [_text(cells, column) for column in spec["options"]]
    if "blank" in spec:
        before, blank, rest = _text(cells, spec["blank"]).partition("_")
        if not blank:
            raise PreflightError(
                f"task {task.name!r}: the sentence {before[:60]!r} has no _ to fill. "
                "Check the data set."
            )
        return tuple((before + option, " " + rest.strip()) for option in options)
    return tuple((spec["context"].format_map(cells), " " + option) for option in options)


def _solution(text: str) -> dict[str, str]:
    """Answer and target of a solution: steps that end with "#### " and a number, or a number only.

    Calculator annotations such as <<3*4=12>> are removed.
    """
    steps, mark, last = text.rpartition("####")
    answer = re.sub("[,$]", "", last.strip())
    steps = re.sub("<<.*?>>", "", steps).strip()
    return {"answer": answer, "target": f" {steps}\n#### {answer}" if mark else f" {answer}"}


def package_frame(spec: dict) -> pd.DataFrame:
    """The table of a package-shipped set, or of several sets whose index is the label."""
    if "sets" in spec:
        frames = [sources.package_rows(name).assign(label=i) for i, name in enumerate(spec["sets"])]
        fewest = min(map(len, frames))
        return pd.concat([f.sample(fewest, random_state=0) for f in frames], ignore_index=True)
    frame = sources.package_rows(spec["set"])
    if "names" in spec:  # label words, for the texts
        frame = frame.assign(name=[spec["names"][label] for label in frame["label"]])
    if "only" in spec:  # allowed values by column
        frame = frame[frame[list(spec["only"])].isin(spec["only"]).all(axis=1)]
    if "rating" in spec:
        clear = frame[frame[spec["rating"]].abs() > spec["threshold"]]
        frame = clear.assign(label=(clear[spec["rating"]] > 0).astype(int))
    return frame
