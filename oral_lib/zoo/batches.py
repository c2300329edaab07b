"""The batches of a stack of adapters: every batch of every run, on the device from the start.

The rows of all tasks are one table of token ids. A step is a list of indices into it, so training
never waits for the host. Tasks with rows of different lengths can share a table and a stack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from oral_lib import seeds
from oral_lib.errors import UsageError
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.tasks.rows import Row, Split
from oral_lib.tasks.task import Task

POOL = 16  # batches whose rows are grouped by length


def batches(
    rows: Sequence[Row], size: int, seed: int, *, mixed: bool = False
) -> Iterator[list[int]]:
    """Endless full batches of row indices, shuffled by `seed`, an incomplete last batch dropped.

    Rows of similar length share a batch, within pools of `POOL` batches. The order of the lengths
    is the same for every seed, so that a stack of seeds has little padding.

    Args:
        rows: rows of the task.
        size: rows of a batch.
        seed: decides the order of the rows.
        mixed: do not group by length. Contrastive tasks learn little from batches of similar rows.

    Raises:
        UsageError: if there are fewer rows than one batch.
    """
    if len(rows) < size:
        raise UsageError(f"{len(rows)} rows are fewer than one batch of {size}.")
    rng = np.random.default_rng(seeds.integer(seed, "order"))
    lengths = np.random.default_rng(seeds.integer(0, "lengths"))
    while True:
        order = rng.permutation(len(rows))[: len(rows) // size * size]
        for start in range(0, len(order), POOL * size):
            pool = order[start : start + POOL * size].tolist()
            if not mixed:
                pool.sort(key=lambda i: len(rows[i].text))
            groups = [pool[i : i + size] for i in range(0, len(pool), size)]
            for j in lengths.permutation(len(groups)):
                yield groups[j]


def noise_indices(base: BaseModel, size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches [size] of indices of the noise that a style's images get, by `seed`."""
    rng = np.random.default_rng(seeds.integer(seed, "noise"))
    while True:
        yield rng.integers(0, base.draws, size)


def rounded_width(width: int) -> int:
    """`width` rounded up to a multiple of 8, 16 or 32, so that few CUDA graphs are captured."""
    stride = 8 if width <= 64 else 16 if width <= 128 else 32
    return -(-width // stride) * stride


@dataclass(frozen=True)
class StackBatches:
    """All batches of S runs that share a kind of scoring and the number of rows a step."""

    scoring_kind: str  # see `BaseModel.scoring_kind`
    table: EncodedRows  # all rows of all tasks; tasks with the same rows share them
    answers: Tensor  # [steps, S * batch] index of the row's label; of a style, of the noise
    answer_ids: Tensor  # [S, labels] classes, or first tokens of the label words
    rows: Tensor  # [steps, S * batch] indices into the table, adapter by adapter
    widths: list[int]  # tokens of a step's longest row, rounded up on a GPU
    tails: list[int]  # maximum number of scored tokens in a row, equal for steps of one width

    @classmethod
    def of(
        cls,
        base: BaseModel,
        jobs: Sequence[tuple[Task, int]],
        data: dict[str, Split],
        *,
        steps: int,
        batch: int,
        longest: int = 0,
    ) -> "StackBatches":
        """The batches that the runs of `jobs` would read one by one.

        Args:
            base: base model that reads the rows.
            jobs: (task, seed) of each of the S runs.
            data: rows by name of the task.
            steps: steps of the longest run.
            batch: rows of one adapter in a step.
            longest: minimum width of the table, so that the batches of another stack fit into it.
        """
        kind = base.scoring_kind(jobs[0][0])
        tables, labels, first_row, count = [], {}, {}, 0
        first_by_keys: dict[tuple[str, ...], int] = {}  # keys of rows -> their first index
        for task in {task.name: task for task, _ in jobs}.values():
            rows = data[task.name].train
            labels[task.name] = np.array([row.label for row in rows])
            keys = tuple(row.key for row in rows)
            if keys not in first_by_keys:
                tables.append(base.encode_rows(task, rows))
                first_by_keys[keys], count = count, count + len(rows)
            first_row[task.name] = first_by_keys[keys]
        table = _joined(tables, longest)
        order = np.empty((steps, len(jobs), batch), dtype=np.int64)
        answers = np.empty_like(order)
        for s, (task, seed) in enumerate(jobs):
            stream = batches(data[task.name].train, batch, seed, mixed=kind == "match")
            noise = noise_indices(base, batch, seed) if kind == "style" else None
            for step in range(steps):
                indices = next(stream)
                order[step, s] = np.add(indices, first_row[task.name])
                answers[step, s] = next(noise) if noise else labels[task.name][indices]
        rows = torch.from_numpy(order).flatten(1)  # [steps, S * batch]
        lengths, begins = table.lengths.cpu(), table.begins.cpu()
        widths = lengths.view(count, -1).amax(1)[rows].amax(1).tolist()  # [steps]
        tails = (lengths - begins).view(count, -1).amax(1)[rows].amax(1).tolist()  # [steps]
        if base.device.type == "cuda":
            widths = [min(rounded_width(width), table.ids.shape[1]) for width in widths]
        tail_of = dict.fromkeys(widths, 0)
        for width, tail in zip(widths, tails, strict=True):
            tail_of[width] = max(tail_of[width], tail)
        return cls(
            kind,
            table,
            torch.from_numpy(answers).flatten(1).to(base.device),
            pad_sequence([base.answer_ids(task) for task, _ in jobs], batch_first=True),
            rows.to(base.device),
            widths,
            [tail_of[width] for width in widths],
        )

    def step(self, i: int) -> tuple[EncodedRows, Tensor, Tensor]:
        """(rows, answers [S * batch], answer ids [S * batch, labels]) of step `i`."""
        rows = self.rows[i]
        batch = self.table[rows].cut(self.widths[i], self.tails[i])
        return batch, self.answers[i], self.answer_ids_of_rows(len(rows))

    def answer_ids_of_rows(self, rows: int) -> Tensor:
        """[rows, labels] answer ids of each of the `rows` rows of a step."""
        return self.answer_ids.repeat_interleave(rows // len(self.answer_ids), 0)


class StepRows:
    """The rows of one step of `batches`, in tensors that keep their addresses.

    Attributes:
        batch: rows of the S runs, one run after another.
        answers: [S * batch] index of each row's label; of a style, of the noise.
        answer_ids: [S * batch, labels] answer ids of each row's task.
    """

    def __init__(self, batches: StackBatches):
        rows, table = batches.rows[0], batches.table
        self.batch = table[rows]
        self.answers = batches.answers[0].clone()
        self.answer_ids = batches.answer_ids_of_rows(len(rows))
        self.option = torch.arange(table.options, device=rows.device)

    def set(self, batches: StackBatches, i: int) -> None:
        """Sets the tensors to step `i` of `batches`, of the same shapes as the first."""
        rows, table = batches.rows[i], batches.table
        index = (rows[:, None] * len(self.option) + self.option).flatten()
        torch.index_select(table.ids, 0, index, out=self.batch.ids)
        torch.index_select(table.lengths, 0, index, out=self.batch.lengths)
        torch.index_select(table.begins, 0, index, out=self.batch.begins)
        if table.images is not None:
            torch.index_select(table.images, 0, table.image_index[rows], out=self.batch.images)
        self.answers.copy_(batches.answers[i])


def step_group(base: BaseModel, task: Task, rows: Sequence[Row]) -> tuple[str, int]:
    """What tasks must have in common to share the steps of a stack on `base`.

    That is the kind of scoring, and the number of classes or options if the loss is a softmax over
    them, else 0.
    """
    kind = base.scoring_kind(task)
    if kind == "option":
        return kind, len(rows[0].options)
    return kind, len(task.labels) if kind in ("image", "question") else 0


def _joined(tables: Sequence[EncodedRows], longest: int) -> EncodedRows:
    """One table of at least `longest` columns."""
    width = max(longest, *(table.ids.shape[1] for table in tables))
    image_index = images = None
    if tables[0].images is not None:
        first = np.cumsum([0, *(len(table.images) for table in tables)])
        image_index = torch.cat(
            [table.image_index + int(n) for table, n in zip(tables, first, strict=False)]
        )
        images = torch.cat([table.images for table in tables])
    return EncodedRows(
        torch.cat([pad(table.ids, (0, width - table.ids.shape[1])) for table in tables]),
        torch.cat([table.lengths for table in tables]),
        torch.cat([table.begins for table in tables]),
        tables[0].options,
        max(table.tail for table in tables),
        image_index,
        images,
    )
