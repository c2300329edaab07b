"""oral.json, the form of an adapter's answers: template, labels and scoring of a task.

An adapter answers in the form of the task that it was trained on. A generated adapter answers in
the form of the nearest adapter of the zoo. The file stands next to the weights, so that the adapter
can be used where the task's file has changed or is missing. It may come from anyone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oral_lib.documents.document import load_json
from oral_lib.errors import OralError, UsageError
from oral_lib.lora.peft_folder import FORM, inside
from oral_lib.tasks.task import Task
from oral_lib.tasks.task_schema import FORM_KEYS, check_form


def form_of(task: Task) -> dict[str, Any]:
    """The content of oral.json for `task`."""
    values = {key: getattr(task, key) for key in FORM_KEYS}
    kept = ("labels", "max_tokens", "scoring")
    return {key: value for key, value in values.items() if value or key in kept}


def read_form(folder: str | Path) -> Task | None:
    """The task in oral.json of an adapter's folder, without rows; None if it has no such file.

    OralError, with file and line, if the file is not the form of a task.
    """
    folder = Path(folder)
    if not (folder / FORM).exists():
        return None
    try:
        document = load_json(inside(folder, FORM), str(folder / FORM))
        check_form(document)
        return _task(document.content)
    except UsageError as error:  # the fault of a file, not of an argument
        raise OralError(str(error)) from error


def without_wordings(task: Task) -> Task:
    """The part of `task` that oral.json has: the form of its answers, no sentence about it."""
    return _task(form_of(task))


def _task(form: Mapping[str, Any]) -> Task:
    unused = {"description": "", "paraphrases": {}, "metric": "", "split": {}, "sources": {}}
    return Task(**{**unused, **form})
