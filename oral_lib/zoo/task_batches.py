"""The tasks of a zoo for training through the base model: texts and rows of each step, and losses.

S generated adapters of several tasks answer rows of their own task in one stacked forward pass. It
is what `method.training.through_base` calls `TaskBatches`, for every kind of scoring. Tasks that
cannot share a pass (`batches.step_group`) take turns: a group of tasks has a share of the steps
that is proportional to the number of its tasks.

Letters: S adapters of a step, n rows of each, T tasks of a group, e size of an embedding, v values
of an adapter.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from oral_lib import seeds
from oral_lib.evaluation import scoring
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.models.base import BaseModel
from oral_lib.tasks.rows import Split
from oral_lib.tasks.task import Task
from oral_lib.zoo.batches import StackBatches, StepRows, step_group
from oral_lib.zoo.training import COMPILED

Key = tuple[int, int, int]  # number of the group, width and tail of its rows


@dataclass(frozen=True, eq=False)
class _Group:
    """The steps of tasks that share a forward pass."""

    batches: StackBatches
    rows: StepRows
    texts: Tensor  # [steps, S] indices into the embedded texts


class ZooBatches:
    """The tasks of each step on one base model, in tensors that keep their addresses.

    Adapter s of a group's steps always has the same task, each task S / T of the adapters. Its text
    is drawn in every step; its rows are those that the run of a seed of its own would read, so that
    the rows of a step have similar lengths.

    The base model must be under the stack (`attached`) while losses are computed.

    Args:
        base: the base model.
        tasks: the tasks of its zoo.
        data: rows by name of the task; the rows for training are read.
        texts: [wordings, e] embedded training wordings by name of the task.
        steps: number of steps.
        size: S.
        rows: n, or fewer if a task has fewer.
        seed: of all draws.

    Attributes:
        text: [S, e] embeddings of a wording of each task.
        given: bool [S], all True.
        examples: None: generators of seen tasks are conditioned on the text only.
    """

    examples = None

    def __init__(
        self,
        base: BaseModel,
        tasks: Sequence[Task],
        data: Mapping[str, Split],
        texts: Mapping[str, Tensor],
        *,
        steps: int,
        size: int,
        rows: int,
        seed: int = 0,
    ):
        self.base, device = base, base.device
        self.stack = Stack(base.lora_init(), size, device, next(base.model.parameters()).dtype)
        first = dict(zip(texts, np.cumsum([0, *map(len, texts.values())]).tolist(), strict=False))
        self.embedded = torch.cat([*texts.values()]).to(device)
        self.text = torch.zeros(size, self.embedded.shape[1], device=device)
        self.given = torch.ones(size, dtype=torch.bool, device=device)
        together: dict[tuple, list[Task]] = {}
        for task in tasks:
            together.setdefault(step_group(base, task, data[task.name].train), []).append(task)
        parts = [
            group[i : i + size] for group in together.values() for i in range(0, len(group), size)
        ]
        self.turns = turns([len(part) for part in parts], steps)
        rng = np.random.default_rng(seeds.integer(seed, "zoo-batches", base.name))
        self.groups: list[_Group | None] = []
        for number, part in enumerate(parts):
            count = sum(group == number for group, _ in self.turns)
            if not count:  # there are fewer steps than tasks
                self.groups.append(None)
                continue
            slots = [part[s % len(part)] for s in range(size)]
            jobs = [(t, seeds.integer(seed, "slot", s)) for s, t in enumerate(slots)]
            fewest = min(rows, *(len(data[task.name].train) for task in part))
            batches = StackBatches.of(base, jobs, dict(data), steps=count, batch=fewest)
            begins = np.array([first[task.name] for task in slots])
            counts = np.array([len(texts[task.name]) for task in slots])
            drawn = begins + (rng.random((count, size)) * counts).astype(np.int64)
            group = _Group(batches, StepRows(batches), torch.from_numpy(drawn).to(device))
            self.groups.append(group)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The base model under the stack; compiled if it is large and on a GPU."""
        base = self.base
        large = base.weights > COMPILED
        scale = base.spec.alpha / base.spec.rank
        with (
            stacked.compiled(base.model) if large else nullcontext(),
            stacked.attached(base.model, self.stack, scale),
        ):
            yield

    def draw(self, step: int) -> Key:
        """Sets the tensors to the tasks and rows of `step`; returns what its shapes depend on."""
        number, i = self.turns[step]
        group = self.groups[number]
        group.rows.set(group.batches, i)
        self.text.copy_(self.embedded[group.texts[i]])
        return number, group.batches.widths[i], group.batches.tails[i]

    def losses(self, adapters: Tensor, key: Key) -> Tensor:
        """[S] mean losses of `adapters` [S, v] on the rows of the step, with a gradient."""
        number, width, tail = key
        group, base = self.groups[number], self.base
        rows, kind = group.rows, group.batches.scoring_kind

        def losses() -> Tensor:
            answers = rows.answers, rows.answer_ids
            about = base.model, base, kind, rows.batch.cut(width, tail), *answers
            return scoring.losses(*about, len(self.stack)).view(len(self.stack), -1).mean(1)

        return stacked.losses_of(adapters, self.stack, losses)


def turns(sizes: Sequence[int], steps: int) -> list[tuple[int, int]]:
    """For each step the group whose turn it is, and how many turns the group had before.

    A group has as many turns in a round as it has tasks, spread evenly over the round.

    Args:
        sizes: tasks of each group.
        steps: number of steps.

    >>> turns([4, 1], 6)
    [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (0, 4)]
    """
    places = [((i + 0.5) / size, g) for g, size in enumerate(sizes) for i in range(size)]
    order = [group for _, group in sorted(places)]
    before, out = [0] * len(sizes), []
    for step in range(steps):
        group = order[step % len(order)]
        out.append((group, before[group]))
        before[group] += 1
    return out
