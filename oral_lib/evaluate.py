"""Evaluation: an adapter on a base model, judged on held-out rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from oral_lib import bases, scoring
from oral_lib.bases import BaseModel
from oral_lib.tasks import Row, Task


@dataclass(frozen=True)
class Outcome:
    """What one adapter answered: log-likelihoods [n, labels] and the rows it was asked."""

    likely: Tensor
    rows: Sequence[Row]

    @property
    def labels(self) -> Tensor:
        return torch.tensor([row.label for row in self.rows])

    @property
    def predicted(self) -> Tensor:
        return self.likely.argmax(-1)

    @property
    def correct(self) -> Tensor:
        """[n] bool."""
        return self.predicted == self.labels


def evaluate(
    base: BaseModel, task: Task, rows: Sequence[Row], adapters: Iterable[dict[str, Tensor]]
) -> Iterator[Outcome]:
    """Yields an `Outcome` for each of `adapters` on the same `rows`; the base is attached once."""
    with base.attach() as model:
        for adapter in adapters:
            bases.put(model, adapter)
            yield Outcome(scoring.score(model, base, task, rows), rows)


def compare(
    base: BaseModel, task: Task, rows: Sequence[Row], adapters: Mapping[str, dict[str, Tensor]]
) -> tuple[pd.DataFrame, pd.Series]:
    """A table [text, truth, what each adapter said and how sure], and the accuracy of each."""
    table = {"text": [row.text for row in rows], "truth": [task.labels[row.label] for row in rows]}
    right = {}
    outcomes = evaluate(base, task, rows, adapters.values())
    for name, outcome in zip(adapters, outcomes, strict=True):
        sure = outcome.likely.softmax(-1).amax(-1).tolist()
        said = [task.labels[i] for i in outcome.predicted.tolist()]
        table[name] = [f"{word} ({p:.0%})" for word, p in zip(said, sure, strict=True)]
        right[name] = outcome.correct.float().mean().item()
    return pd.DataFrame(table), pd.Series(right, name="accuracy")
