"""What a stack of adapters is trained on: every batch of every run, laid out on the device at once.

The rows of all tasks lie in one table of token ids; a step is a list of places in it, so that
training waits for nothing from the host. Ragged tasks share a table and, if need be, a stack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from oral_lib import seeds
from oral_lib.errors import UsageError
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.tasks.rows import Row, Split
from oral_lib.tasks.task import Task


def batches(
    rows: Sequence[Row], size: int, seed: int, *, mixed: bool = False
) -> Iterator[list[int]]:
    """Endless full batches: shuffled by `seed`, grouped by length within pools of 16 batches.

    What is left of an epoch is dropped. Which length comes when is the same for every seed, so that
    a stack of seeds needs little padding. `mixed` ones are not grouped: where rows are told from
    each other, alike ones teach little. UsageError for fewer rows than a batch holds.
    """
    if len(rows) < size:
        raise UsageError(f"{len(rows)} rows are fewer than one batch of {size}.")
    rng = np.random.default_rng(seeds.integer(seed, "order"))
    lengths = np.random.default_rng(seeds.integer(0, "lengths"))
    while True:
        order = rng.permutation(len(rows))[: len(rows) // size * size]
        for start in range(0, len(order), 16 * size):
            pool = order[start : start + 16 * size].tolist()
            if not mixed:
                pool.sort(key=lambda i: len(rows[i].text))
            groups = [pool[i : i + size] for i in range(0, len(pool), size)]
            for j in lengths.permutation(len(groups)):
                yield groups[j]


def noises(base: BaseModel, size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches [size] of draws: which noise a style's pictures get, chosen by `seed`."""
    rng = np.random.default_rng(seeds.integer(seed, "noise"))
    while True:
        yield rng.integers(0, base.draws, size)


def rounded(width: int) -> int:
    """`width` in steps of 8, 16 or 32: few shapes, where every shape is captured once."""
    stride = 8 if width <= 64 else 16 if width <= 128 else 32
    return -(-width // stride) * stride


@dataclass(frozen=True)
class StackBatches:
    """All batches of S runs that are scored in one way and read as many rows a step."""

    how: str  # one of `tasks.SCORINGS`: see `BaseModel.scoring_kind`
    table: EncodedRows  # every row of every task; tasks about the same rows share them
    # [steps, S * batch] labels of a step's rows, places in their task's labels; of a style, draws
    answers: Tensor
    words: Tensor  # [S, labels] what the model is asked for: classes, or first tokens of words
    rows: Tensor  # [steps, S * batch] rows of a step, group by group
    widths: list[int]  # tokens of a step's longest row, rounded up on a GPU
    tails: list[int]  # scored tokens of a step's rows at most, the same for steps of one width

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
        """The batches that runs of (task, seed) `jobs` would read one by one; `data` by task.

        Rows of the table are padded to `longest` at least, so that feeds can follow one another.
        """
        how, parts, labels, first, count = base.scoring_kind(jobs[0][0]), [], {}, {}, 0
        known: dict[tuple[str, ...], int] = {}  # keys of a task's rows: where they begin
        for task in {task.name: task for task, _ in jobs}.values():
            rows = data[task.name].train
            labels[task.name] = np.array([row.label for row in rows])
            keys = tuple(row.key for row in rows)
            if keys not in known:
                parts.append(base.encode_rows(task, rows))
                known[keys], count = count, count + len(rows)
            first[task.name] = known[keys]
        table = _joined(parts, longest)
        order = np.empty((steps, len(jobs), batch), dtype=np.int64)
        answers = np.empty_like(order)
        for s, (task, seed) in enumerate(jobs):
            stream = batches(data[task.name].train, batch, seed, mixed=how == "match")
            noise = noises(base, batch, seed) if how == "style" else None
            for step in range(steps):
                chosen = next(stream)
                order[step, s] = np.add(chosen, first[task.name])
                answers[step, s] = next(noise) if noise else labels[task.name][chosen]
        rows = torch.from_numpy(order).flatten(1)
        lengths, begins = table.lengths.cpu(), table.begins.cpu()
        length = lengths.view(count, -1).amax(1)[rows].amax(1)
        tail = (lengths - begins).view(count, -1).amax(1)[rows].amax(1).tolist()
        widths, most = length.tolist(), table.ids.shape[1]
        if base.device.type == "cuda":
            widths = [min(rounded(width), most) for width in widths]
        longest_tail = {w: max(t for t, x in zip(tail, widths, strict=True) if x == w)
                        for w in set(widths)}  # fmt: skip
        words = [base.answer_ids(task) for task, _ in jobs]
        return cls(
            how,
            table,
            torch.from_numpy(answers).flatten(1).to(base.device),
            torch.nn.utils.rnn.pad_sequence(words, batch_first=True),
            rows.to(base.device),
            widths,
            [longest_tail[w] for w in widths],
        )

    def step(self, i: int) -> tuple[EncodedRows, Tensor, Tensor]:
        """(token rows, answers [S * batch], words [S * batch, labels]) of step `i`."""
        rows = self.rows[i]
        read = self.table[rows].cut(self.widths[i], self.tails[i])
        return read, self.answers[i], self.words_of(len(rows))

    def words_of(self, rows: int) -> Tensor:
        """[rows, labels] what the model is asked for in each of a step's rows."""
        return self.words.repeat_interleave(rows // len(self.words), 0)

    @property
    def padding(self) -> float:
        """The share of all tokens read that are padding."""
        options = self.table.options
        read = sum(self.widths) * self.rows.shape[1] * options
        return 1 - self.table.lengths.view(-1, options).sum(1)[self.rows].sum().item() / read


def _joined(parts: Sequence[EncodedRows], longest: int) -> EncodedRows:
    most = max(longest, *(part.ids.shape[1] for part in parts))
    image_index = images = None
    if parts[0].images is not None:
        first = np.cumsum([0, *(len(part.images) for part in parts)])
        image_index = torch.cat(
            [part.image_index + int(n) for part, n in zip(parts, first, strict=False)]
        )
        images = torch.cat([part.images for part in parts])
    return EncodedRows(
        torch.cat([pad(part.ids, (0, most - part.ids.shape[1])) for part in parts]),
        torch.cat([part.lengths for part in parts]),
        torch.cat([part.begins for part in parts]),
        parts[0].options,
        max(part.tail for part in parts),
        image_index,
        images,
    )
