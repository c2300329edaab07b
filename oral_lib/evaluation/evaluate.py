"""Evaluation: adapters on a base model, judged on the same held-out rows, many at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from oral_lib.evaluation import scoring
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models import contrastive
from oral_lib.models.base import BaseModel
from oral_lib.models.contrastive import Gallery
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import Task

GROUPS = {"cpu": 1, "cuda": 16}  # adapters that read at once


@dataclass(frozen=True)
class Outcome:
    """What one adapter answered to `rows`.

    `likely` [n, labels] are log-likelihoods. Where an answer had to be written they are [n, 1],
    those of the right one, and `written` holds what was written, bare.
    """

    likely: Tensor
    rows: Sequence[Row]
    written: Sequence[str] | None = None

    @property
    def labels(self) -> Tensor:
        """[n] the right label; 1 where an answer had to be written."""
        if self.written is not None:
            return torch.ones(len(self.rows), dtype=torch.long)
        return torch.tensor([row.label for row in self.rows])

    @property
    def predicted(self) -> Tensor:
        """[n] the likeliest label; 1 where the written answer is the right one, else 0."""
        if self.written is not None:
            pairs = zip(self.written, self.rows, strict=True)
            return torch.tensor([int(said == row.answer) for said, row in pairs])
        return self.likely.argmax(-1)

    @property
    def correct(self) -> Tensor:
        """[n] bool."""
        return self.predicted == self.labels

    @property
    def likelihood(self) -> float:
        """The mean log-likelihood of the right answer among those asked for."""
        if self.likely.shape[1] == 1:
            return self.likely.mean().item()
        right = torch.tensor([[row.label] for row in self.rows])
        return self.likely.log_softmax(-1).gather(1, right).mean().item()


@dataclass(frozen=True)
class Matched(Outcome):
    """How close every text is to every picture; `likely` [texts, pictures] of those of `rows`.

    Its items are the texts and then the pictures, each a query: `predicted` is its rank, the number
    of wrong candidates before its first right one, and rank 0 is correct.
    """

    @cached_property
    def gallery(self) -> Gallery:
        return Gallery.of(self.rows)

    @cached_property
    def ranks(self) -> dict[str, Tensor]:
        """The rank of each text's picture and of each picture's text, by the way it was asked."""
        return contrastive.both_ways(self.likely, self.gallery.belongs)

    @property
    def queries(self) -> dict[str, str]:
        """The way that each item is asked, by the item: "text_to_image" of a text's row."""
        places = zip(self.ranks, (self.gallery.texts, self.gallery.pictures), strict=True)
        return {f"{way}/{self.rows[i].key}": way for way, rows in places for i in rows}

    @property
    def labels(self) -> Tensor:
        return torch.zeros(sum(map(len, self.ranks.values())), dtype=torch.long)

    @property
    def predicted(self) -> Tensor:
        return torch.cat(list(self.ranks.values()))

    @property
    def likelihood(self) -> float:
        """The mean log-likelihood of finding one of its own, over both ways."""
        ways = ((self.likely, self.gallery.belongs), (self.likely.T, self.gallery.belongs.T))
        found = [side.log_softmax(-1).masked_fill(~own, -torch.inf).logsumexp(-1).mean()
                 for side, own in ways]  # fmt: skip
        return (sum(found) / 2).item()


def accuracy_of(outcome: Outcome) -> float | None:
    """The share of right answers; None where answers were to be written and were not."""
    unwritten = outcome.written is None and outcome.likely.shape[1] == 1
    return None if unwritten else outcome.correct.float().mean().item()


def evaluate(
    base: BaseModel,
    task: Task,
    rows: Sequence[Row],
    adapters: Sequence[dict[str, Tensor]],
    *,
    groups: int = 0,
    write: bool = True,
) -> Iterator[Outcome]:
    """Yields an `Outcome` for each of `adapters` on the same `rows`, `groups` of them at a time.

    With `write` off, answers are scored by likelihood and not written.
    """
    most = min(groups or GROUPS[base.device.type], len(adapters))
    if not most:
        return
    dtype = next(base.model.parameters()).dtype
    stack = Stack(adapters[0], most, base.device, dtype)
    how = scoring.scoring_kind(base, task)
    with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank) as model:
        for first in range(0, len(adapters), most):
            chosen = list(adapters[first : first + most])
            stack.put(chosen + chosen[:1] * (most - len(chosen)))
            likely = scoring.score(model, base, task, rows, groups=most)
            written = [None] * most
            if how == "answer" and write:
                said = scoring.write(model, base, task, rows, groups=most)
                written = [[task.extracted(text) for text in texts] for texts in said]
            for one, texts, _ in zip(likely, written, chosen, strict=False):
                yield Matched(one, rows) if how == "match" else Outcome(one, rows, texts)


def compare(
    base: BaseModel, task: Task, rows: Sequence[Row], adapters: Mapping[str, dict[str, Tensor]]
) -> tuple[pd.DataFrame, pd.Series]:
    """A table [text, truth, what each adapter said and how sure], and the accuracy of each.

    Of what matches it has a row for each picture: the text that is closest to it, told as the
    truth where that is one of its own.
    """
    if scoring.scoring_kind(base, task) == "match":
        return _matches(base, task, rows, adapters)
    answers = scoring.scoring_kind(base, task) == "answer"
    truth = [row.answer if answers else task.labels[row.label] for row in rows]
    table, right = {"text": [row.text for row in rows], "truth": truth}, {}
    outcomes = evaluate(base, task, rows, list(adapters.values()))
    for name, outcome in zip(adapters, outcomes, strict=True):
        if answers:
            table[name] = list(outcome.written)
        else:
            sure = outcome.likely.softmax(-1).amax(-1).tolist()
            said = [task.labels[i] for i in outcome.predicted.tolist()]
            table[name] = [f"{word} ({p:.0%})" for word, p in zip(said, sure, strict=True)]
        right[name] = outcome.correct.float().mean().item()
    return pd.DataFrame(table), pd.Series(right, name="accuracy")


def _matches(
    base: BaseModel, task: Task, rows: Sequence[Row], adapters: Mapping[str, dict[str, Tensor]]
) -> tuple[pd.DataFrame, pd.Series]:
    gallery = Gallery.of(rows)
    truth = [rows[i].text for i in gallery.pictures]
    table, right = {"text": truth, "truth": truth}, {}
    outcomes = evaluate(base, task, rows, list(adapters.values()))
    for name, outcome in zip(adapters, outcomes, strict=True):
        sure, found = outcome.likely.softmax(0).max(0)
        own = gallery.belongs[found, torch.arange(len(found))].tolist()
        texts = [rows[gallery.texts[i]].text for i in found.tolist()]
        said = [t if ok else text for t, ok, text in zip(truth, own, texts, strict=True)]
        table[name] = [f"{text} ({p:.0%})" for text, p in zip(said, sure.tolist(), strict=True)]
        right[name] = outcome.correct.float().mean().item()
    return pd.DataFrame(table), pd.Series(right, name="accuracy")
