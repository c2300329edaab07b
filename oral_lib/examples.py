"""Examples: held-out pictures beside what was measured of them, for the report.

Nothing is asked anew and nothing is picked: of each task the first pictures of its held-out rows,
with the answers that items.parquet holds of one adapter a method.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from oral_lib.tasks import images
from oral_lib.tasks import rows as tasks
from oral_lib.tasks import task as tasks_task
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import Task

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
        spec = tasks_task.load(task)
        own = items[(items.task == task) & (items["sample"] == 0)]
        heard = {
            method: own[(own.method == method) & (own.condition == condition)]
            .set_index("item")
            .predicted
            for method, condition in SHOWN.items()
        }
        place = FOUND if spec.scoring == "match" else ""
        asked = set.intersection(*(set(told.index) for told in heard.values()))
        for row in _first(tasks.rows(spec, source).test, asked, place, number):
            told = {method: one[place + row.key] for method, one in heard.items()}
            files.append(row.image)
            said.append(_said(spec, row, told))
    if not files:
        return None
    return images.framed(files, SIDE), pd.DataFrame(said)


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
