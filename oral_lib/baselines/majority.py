"""The most frequent label of a task's training rows as the answer to every row."""

from collections import Counter
from collections.abc import Sequence

import torch

from oral_lib.evaluation.evaluate import Outcome
from oral_lib.tasks.rows import Row


def majority(train: Sequence[Row], rows: Sequence[Row], n_labels: int) -> Outcome:
    """The outcome of always predicting the most frequent label, or written answer, of `train`.

    Rows of a task have either labels or answers. Of equally frequent labels the lowest is
    predicted, of answers the first in `train`.
    """
    if any(row.answer for row in rows):
        answers = Counter(row.answer for row in train if row.answer.strip())
        best = max(answers, key=lambda answer: answers[answer], default="")
        return Outcome(torch.zeros(len(rows), 1), rows, [best] * len(rows))
    counts = Counter(row.label for row in train)
    best = max(range(n_labels), key=lambda label: counts[label])
    likely = torch.zeros(len(rows), n_labels)
    likely[:, best] = 1.0
    return Outcome(likely, rows)
