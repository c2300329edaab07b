"""Every message of a family as one base model reads it, on its device.

A batch is a list of row numbers. Lengths are known on the host, so a step knows its width without
waiting for the device, and steps of few widths share few CUDA graphs.

Letters: S adapters, n rows of each, b = S n rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import Task
from oral_lib.zoo.batches import rounded_width


class Text(Protocol):
    """A message: its key and its text."""

    key: str
    text: str


@dataclass(frozen=True)
class MessageTable:
    """Messages as `base` reads them, right-padded.

    Attributes:
        base: the base model.
        table: all messages, on the device of `base`.
        answer_ids: [2] columns of the logits of no and yes.
        lengths: int64 [messages] tokens of each message, on the host.
    """

    base: BaseModel
    table: EncodedRows
    answer_ids: Tensor
    lengths: np.ndarray

    @classmethod
    def of(cls, base: BaseModel, messages: Sequence[Text], task: Task) -> "MessageTable":
        """The table of `messages`.

        Args:
            base: the base model.
            messages: the messages, in the order of their row numbers.
            task: template, the labels no and yes, and the maximum number of tokens of a row.

        Raises:
            UsageError: the base model cannot read the task.
        """
        rows = [Row(message.key, message.text, 0) for message in messages]
        table = base.encode_rows(task, rows)
        return cls(base, table, base.answer_ids(task), table.lengths.cpu().numpy())

    def __len__(self) -> int:
        return len(self.lengths)

    def width(self, rows: np.ndarray) -> int:
        """Tokens that a batch of these rows is cut to: its longest row, rounded up."""
        return min(rounded_width(int(self.lengths[rows].max())), self.table.ids.shape[1])

    def batch(self, rows: Tensor, width: int | None = None) -> EncodedRows:
        """The rows [b] on the device, cut to `width` tokens (default: the width of the table)."""
        table = self.table
        ids = table.ids[:, : table.ids.shape[1] if width is None else width]
        lengths = table.lengths.index_select(0, rows)
        return EncodedRows(ids.index_select(0, rows), lengths, lengths)

    def losses(self, rows: Tensor, labels: Tensor, width: int | None = None) -> Tensor:
        """Losses [b] of the rows [b] under attached adapters: cross-entropy of no and yes.

        Args:
            rows: row numbers on the device, adapter by adapter.
            labels: [b] on the device, the probability of yes: 0 for no and 1 for yes.
            width: tokens that the rows are cut to.
        """
        logits = self.base.answer_logits(self.base.model, self.batch(rows, width))
        no, yes = logits.log_softmax(-1).index_select(1, self.answer_ids).unbind(1)
        return -torch.lerp(no, yes, labels.to(no.dtype))

    def scores(self, rows: Tensor, width: int | None = None) -> Tensor:
        """Logit of yes minus logit of no, float32 [b], under attached adapters."""
        logits = self.base.answer_logits(self.base.model, self.batch(rows, width))
        no, yes = logits.index_select(1, self.answer_ids).unbind(1)
        return yes - no


def in_steps(
    rows: np.ndarray, labels: np.ndarray, lengths: np.ndarray, pool: int = 16, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The same rows [steps, S, n] and labels, with rows of similar length in one step.

    Rows move within pools of `pool` steps, and only between columns of the last axis that have one
    label in all steps of the pool, so that a step keeps its numbers of yes and no. The steps of a
    pool are then shuffled, alike for all adapters.

    Args:
        rows: row numbers.
        labels: of the rows.
        lengths: tokens by row number.
        pool: steps.
        seed: of the order of steps.
    """
    rows, labels = rows.copy(), labels.copy()
    order = np.random.default_rng([seed, len(rows)])
    for start in range(0, len(rows), pool):
        part, answers = rows[start : start + pool], labels[start : start + pool]  # views
        steps, adapters, _ = part.shape
        for s in range(adapters):
            constant = (answers[:, s] == answers[0, s]).all(0)
            for label in (0, 1):
                columns = np.flatnonzero(constant & (answers[0, s] == label))
                block = part[:, s, columns]
                by_length = block.ravel()[np.argsort(lengths[block].ravel(), kind="stable")]
                part[:, s, columns] = by_length.reshape(block.shape)
        shuffled = order.permutation(steps)
        part[:], answers[:] = part[shuffled], answers[shuffled]
    return rows, labels
