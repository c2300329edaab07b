"""Evaluation: adapters on one base model, many at once, on the same held-out rows.

Letters: `n` rows of a task.
"""

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

STACK_SIZES = {"cpu": 1, "cuda": 16}  # adapters in one stack, by device


@dataclass(frozen=True)
class Outcome:
    """The answers of one adapter to `rows`.

    `likely` [n, labels] are log-likelihoods. For written answers they are [n, 1], of the
    correct answer, and `written` holds the extracted answers.
    """

    likely: Tensor
    rows: Sequence[Row]
    written: Sequence[str] | None = None

    @property
    def labels(self) -> Tensor:
        """[n] the correct label; 1 for written answers."""
        if self.written is not None:
            return torch.ones(len(self.rows), dtype=torch.long)
        return torch.tensor([row.label for row in self.rows])

    @property
    def predicted(self) -> Tensor:
        """[n] the most likely label; for written answers 1 if the answer is correct, else 0."""
        if self.written is not None:
            pairs = zip(self.written, self.rows, strict=True)
            return torch.tensor([int(_same_answer(answer, row.answer)) for answer, row in pairs])
        return self.likely.argmax(-1)

    @property
    def correct(self) -> Tensor:
        """[n] bool."""
        return self.predicted == self.labels

    @property
    def likelihood(self) -> float:
        """Mean log-likelihood of the correct answer, among the labels of the task."""
        if self.likely.shape[1] == 1:
            return self.likely.mean().item()
        labels = torch.tensor([[row.label] for row in self.rows])
        return self.likely.log_softmax(-1).gather(1, labels).mean().item()


@dataclass(frozen=True)
class Matched(Outcome):
    """Similarities `likely` [texts, images] of all distinct texts and images of `rows`.

    Its items are the texts and then the images, each as a query. `predicted` is the query's rank:
    the number of wrong candidates before its first correct one. Rank 0 is correct.
    """

    @cached_property
    def gallery(self) -> Gallery:
        return Gallery.of(self.rows)

    @cached_property
    def ranks(self) -> dict[str, Tensor]:
        """The ranks of all queries by direction, such as "text_to_image"."""
        return contrastive.retrieval_ranks(self.likely, self.gallery.matches)

    @property
    def queries(self) -> dict[str, str]:
        """The direction of each item, by the item's name such as "text_to_image/KEY"."""
        sides = zip(self.ranks, (self.gallery.texts, self.gallery.images), strict=True)
        return {
            f"{direction}/{self.rows[i].key}": direction for direction, rows in sides for i in rows
        }

    @property
    def labels(self) -> Tensor:
        return torch.zeros(sum(map(len, self.ranks.values())), dtype=torch.long)

    @property
    def predicted(self) -> Tensor:
        return torch.cat(list(self.ranks.values()))

    @property
    def likelihood(self) -> float:
        """Mean log-likelihood of a correct candidate, over both directions."""
        directions = (
            (self.likely, self.gallery.matches),
            (self.likely.T, self.gallery.matches.T),
        )
        means = [
            side.log_softmax(-1).masked_fill(~matches, -torch.inf).logsumexp(-1).mean()
            for side, matches in directions
        ]
        return (sum(means) / 2).item()


def _same_answer(answer: str, correct: str) -> bool:
    """Whether both are the same text; an empty answer is never correct."""
    return bool(answer.strip()) and answer == correct


def accuracy_of(outcome: Outcome) -> float | None:
    """The share of correct answers; None if answers were scored but not written."""
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
    """Yields an `Outcome` for each adapter on the same rows.

    Args:
        groups: number of adapters in a stack; 0: `STACK_SIZES` of the device.
        write: whether answers of answer tasks are generated as well as scored.
    """
    size = min(groups or STACK_SIZES[base.device.type], len(adapters))
    if not size:
        return
    dtype = next(base.model.parameters()).dtype
    stack = Stack(adapters[0], size, base.device, dtype)
    kind = base.scoring_kind(task)
    with stacked.attached(base.model, stack, base.spec.alpha / base.spec.rank) as model:
        for first in range(0, len(adapters), size):
            chosen = list(adapters[first : first + size])
            stack.put(chosen + chosen[:1] * (size - len(chosen)))
            likely = scoring.score(model, base, task, rows, groups=size)
            written = [None] * size
            if kind == "answer" and write:
                generated = scoring.write_answers(model, base, task, rows, groups=size)
                written = [[task.extracted(text) for text in texts] for texts in generated]
            for values, answers, _ in zip(likely, written, chosen, strict=False):
                if kind == "match":
                    yield Matched(values, rows)
                else:
                    yield Outcome(values, rows, answers)


def compare(
    base: BaseModel, task: Task, rows: Sequence[Row], adapters: Mapping[str, dict[str, Tensor]]
) -> tuple[pd.DataFrame, pd.Series]:
    """A table [text, truth, answer and confidence of each adapter], and the accuracy of each.

    Args:
        base: the base model.
        task: the task of the rows.
        rows: the rows to answer.
        adapters: tensors by PEFT's saved names, for each name of a column.

    Raises:
        UsageError: the base model cannot be scored on the task.

    For a matching task it has a row for each image with the most similar text. Where that text
    matches the image, the row's truth is printed in its place.

    >>> import oral_lib
    >>> base = oral_lib.load_base("tiny-encoder", source="made")
    >>> task = oral_lib.load_task("movie")
    >>> rows = oral_lib.task_rows(task, "made").test[:8]
    >>> table, accuracy = compare(base, task, rows, {"initial LoRA": base.lora_init()})
    >>> list(table.columns), len(table), list(accuracy.index)
    (['text', 'truth', 'initial LoRA'], 8, ['initial LoRA'])
    """
    kind = base.scoring_kind(task)
    if kind == "match":
        return _matches(base, task, rows, adapters)
    truth = [row.answer if kind == "answer" else task.labels[row.label] for row in rows]
    table, accuracy = {"text": [row.text for row in rows], "truth": truth}, {}
    outcomes = evaluate(base, task, rows, list(adapters.values()))
    for name, outcome in zip(adapters, outcomes, strict=True):
        if kind == "answer":
            table[name] = list(outcome.written)
        else:
            confidence = outcome.likely.softmax(-1).amax(-1).tolist()
            words = [task.labels[i] for i in outcome.predicted.tolist()]
            table[name] = _with_confidence(words, confidence)
        accuracy[name] = outcome.correct.float().mean().item()
    return pd.DataFrame(table), pd.Series(accuracy, name="accuracy")


def _matches(
    base: BaseModel, task: Task, rows: Sequence[Row], adapters: Mapping[str, dict[str, Tensor]]
) -> tuple[pd.DataFrame, pd.Series]:
    gallery = Gallery.of(rows)
    truth = [rows[i].text for i in gallery.images]
    table, accuracy = {"text": truth, "truth": truth}, {}
    outcomes = evaluate(base, task, rows, list(adapters.values()))
    for name, outcome in zip(adapters, outcomes, strict=True):
        confidence, best = outcome.likely.softmax(0).max(0)
        correct = gallery.matches[best, torch.arange(len(best))].tolist()
        texts = [rows[gallery.texts[i]].text for i in best.tolist()]
        texts = [t if ok else text for t, ok, text in zip(truth, correct, texts, strict=True)]
        table[name] = _with_confidence(texts, confidence.tolist())
        accuracy[name] = outcome.correct.float().mean().item()
    return pd.DataFrame(table), pd.Series(accuracy, name="accuracy")


def _with_confidence(texts: Sequence[str], confidence: Sequence[float]) -> list[str]:
    return [f"{text} ({p:.0%})" for text, p in zip(texts, confidence, strict=True)]
