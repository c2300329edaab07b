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

import math
import re
from collections.abc import Iterable
from numbers import Number
from string import Formatter
from typing import Any

import pandas as pd

from oral_lib.assets import sources
from oral_lib.documents.words import is_blank
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
    if not frame.columns.is_unique:
        names = frame.columns[frame.columns.duplicated()]
        raise PreflightError(
            f"task {task.name!r}: {_origin(frame, part)} has the column {names[0]!r} twice."
        )
    if not len(frame):
        raise PreflightError(f"task {task.name!r}: {_origin(frame, part)} has no rows.")
    fields = []
    for i, cells in enumerate(frame.to_dict("records")):
        try:
            fields.append(_content(task, cells, spec) | _truth(task, cells, spec))
        except KeyError as error:
            require_columns(task, frame, error.args)
            raise
        except CellError as error:
            raise _invalid(task, frame, part, i, f"{error}. Its cells: {_short(cells)}") from error
    return fields


def groups(task: Task, frame: pd.DataFrame, spec: dict, part: str) -> list | None:
    """The group of each row, or None for a source without groups. PreflightError for an empty cell
    and for one that is neither a text nor a number."""
    if "group" not in spec:
        return None
    require_columns(task, frame, [spec["group"]])
    cells = frame[spec["group"]].tolist()
    kinds = {str if isinstance(cell, str) else Number for cell in cells if _is_value(cell)}
    for i, cell in enumerate(cells):
        if not _is_value(cell) or len(kinds) > 1:
            fault = f"{spec['group']!r} is not a group: {_quoted(cell)}"
            raise _invalid(task, frame, part, i, fault)
    return cells


def one_row_a_text(task: Task, frame: pd.DataFrame, spec: dict) -> pd.DataFrame:
    """A table of images with several texts each as one row a text; the label is the image."""
    require_columns(task, frame, [spec["text"]])
    origin, column = frame.attrs, frame[spec["text"]].astype(object)
    frame = frame.assign(**{"label": range(len(frame)), spec["text"]: column})
    frame = frame.explode(spec["text"], ignore_index=True)
    frame.attrs = origin
    return frame


def _origin(frame: pd.DataFrame, part: str) -> str:
    """The name of a part, with the file that it was read from."""
    file = frame.attrs.get("file")
    return f"{part} ({file})" if file else part


def _invalid(task: Task, frame: pd.DataFrame, part: str, row: int, fault: str) -> PreflightError:
    return PreflightError(
        f"task {task.name!r}: row {row} of {_origin(frame, part)} is invalid: {fault}. Check the "
        "data set."
    )


def _is_value(cell: Any) -> bool:
    """Whether a cell is a number or a text that is not blank: no None, NaN, list or bytes."""
    if isinstance(cell, str):
        return not is_blank(cell)
    return isinstance(cell, Number | bool) and cell == cell


def _content(task: Task, cells: dict, spec: dict) -> dict:
    """Text and image of a row, as fields of `Row`."""
    if task.scoring in ("image", "style"):
        return {"text": "", "image": images.file_bytes(cells[spec["image"]])}
    if task.scoring in PAIRED:
        kind = cells.get("kind")
        image = {"image": images.file_bytes(cells[spec["image"]])}
        image["kind"] = kind if isinstance(kind, str) else ""
        return {"text": _filled(spec["text"], cells)} | image
    return {"text": _filled(spec["text"], cells)}


def require_columns(task: Task, frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raises PreflightError for the first of `columns` that `frame` does not have."""
    if missing := [name for name in columns if name not in frame.columns]:
        raise PreflightError(
            f"task {task.name!r}: {_origin(frame, 'the data set')} has no column {missing[0]!r}; "
            f"its columns: {', '.join(map(str, frame.columns))[:300]}."
        )


def _short(cells: dict) -> str:
    """The cells of a row in one line."""
    return ", ".join(f"{name}: {_quoted(cell)}" for name, cell in cells.items())


def _quoted(cell: Any, most: int = 60) -> str:
    """A cell in one line of at most `most` letters."""
    text = " ".join(repr(cell).split())
    return text if len(text) <= most else f"{text[:most]}..."


def _filled(form: str, cells: dict) -> str:
    """The column `form`, or the template `form` over the columns. CellError for an empty cell."""
    if "{" not in form:
        return _text(cells, form)
    for _, name, *_ in Formatter().parse(form):
        if name and not _is_value(cells[name]):
            raise CellError(f"{name!r} is {_fault(cells[name])}")
    return form.format_map(cells)


def _text(cells: dict, column: str) -> str:
    """The text in `column`. CellError if it is not a text, or blank."""
    if not isinstance(cells[column], str) or is_blank(cells[column]):
        raise CellError(f"{column!r} is {_fault(cells[column])}")
    return cells[column]


def _fault(cell: Any) -> str:
    """What is wrong with a cell that should be a text."""
    if is_blank(cell) or cell is None or cell is pd.NA or cell is pd.NaT:
        return "empty"
    if isinstance(cell, float) and math.isnan(cell):
        return "empty"
    return f"not a text ({type(cell).__name__})"


def _truth(task: Task, cells: dict, spec: dict) -> dict:
    """Label and options, or answer and target of a row, as fields of `Row`."""
    if task.scoring == "answer":
        solution = _solution(_text(cells, spec["answer"]))
        if is_blank(solution["answer"]):
            raise CellError(f"{spec['answer']!r} has no answer")
        return {"label": 0} | solution
    if task.scoring == "style":
        return {"label": 0}
    column = spec.get("label", "label")
    label = cells[column]
    if task.scoring == "match":
        if not isinstance(label, int):
            raise CellError(f"{column!r} is not an integer")
        return {"label": label}
    values = spec.get("values", range(len(task.labels)))
    if not _is_value(label) or label not in values:
        raise CellError(f"the label {_quoted(label)} is not one of {', '.join(map(str, values))}")
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
            raise CellError(f"the sentence {before[:60]!r} has no _ to fill")
        return tuple((before + option, " " + rest.strip()) for option in options)
    context = _filled(spec["context"], cells)
    return tuple((context, " " + option) for option in options)


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
