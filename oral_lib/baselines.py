"""Baselines that every results table carries: what a generated adapter has to be better than.

A soup is a plain mean of weights, which only makes sense because a zoo shares its LoRA start.
Plain regression on the condition is a generator without diffusion: see `GeneratorConfig.diffusion`.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from oral_lib import tasks
from oral_lib.condition import TextEncoder
from oral_lib.errors import OralError
from oral_lib.evaluate import Outcome
from oral_lib.tasks import Row
from oral_lib.zoo import Member


def majority(train: Sequence[Row], rows: Sequence[Row], labels: int) -> Outcome:
    """The outcome of always answering the most frequent label of the training rows."""
    counts = Counter(row.label for row in train)
    best = max(range(labels), key=lambda label: counts[label])
    likely = torch.zeros(len(rows), labels)
    likely[:, best] = 1.0
    return Outcome(likely, rows)


def soup(adapters: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of adapters, tensor by tensor. OralError if there is none."""
    if not adapters:
        raise OralError("a soup of no adapters: the zoo of this task is empty.")
    return {name: torch.stack([a[name] for a in adapters]).mean(0) for name in adapters[0]}


def soup_all(members: Sequence[Member]) -> dict[str, Tensor]:
    """The mean of the per-task soups, so that every task weighs the same."""
    names = sorted({m.task for m in members})
    return soup([soup([m.tensors for m in members if m.task == name]) for name in names])


def nearest_task(text: str, known: Sequence[str], encoder: TextEncoder) -> str:
    """The task of `known` whose description is nearest to `text` (cosine of embeddings)."""
    descriptions = encoder.encode([tasks.load(name).description for name in known])
    return known[int((descriptions @ encoder.encode([text])[0]).argmax())]
