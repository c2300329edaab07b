"""The training tasks of all methods that learn from many tasks, step by step.

A step has S tasks with n labelled rows of each, a text and a few examples. Generator and multi-task
models read the same stream. A task is a seen intent, a random union of seen intents, or an invented
topic, whose few messages were written for this project. Its text is a training wording or, in a
share of the draws, a message of the task: many different texts matter more than many rows.

All draws are made on the host before training, from the seed only.

Letters: S tasks of a step, n rows of a task, k examples of a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from oral_lib import seeds
from oral_lib.errors import UsageError
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.lora import stacked
from oral_lib.lora.stacked import Stack
from oral_lib.method.conditioning import Examples
from oral_lib.tasks.intents import texts as stored
from oral_lib.tasks.intents.family import IntentFamily, IntentTask, training_unions
from oral_lib.tasks.intents.message import Message

MEMORY = 0.4  # of a GPU, for a group of adapters: the rest is for graphs and the network
UNIONS = 12  # different unions of a stream for each intent
_TOPIC_SET = "topics"


@dataclass(frozen=True)
class Mixture:
    """Which tasks and texts a stream has.

    Args:
        unions: share of tasks that are unions of seen intents.
        topics: share of tasks that are invented topics.
        messages_as_texts: share of texts that are a message of the task; none of a union is.
        short: share of steps whose rows are all short, so that they have little padding.
        short_words: words of the longest row of such a step.
    """

    unions: float = 0.2
    topics: float = 0.2
    messages_as_texts: float = 0.5
    short: float = 0.8
    short_words: int = 12


@dataclass(frozen=True)
class Pools:
    """The rows and texts of one task: indices into the messages and the texts of a stream."""

    positive: np.ndarray
    near: np.ndarray
    far: np.ndarray
    texts: np.ndarray


@dataclass(frozen=True)
class StreamSteps:
    """The tasks of every step.

    Args:
        rows: int64 [steps, S, n] row numbers of messages; the first half of n is positive.
        labels: int64 [steps, S, n] 1 for yes and 0 for no.
        texts: int64 [steps, S] indices into `TaskStream.all_texts`.
        example_rows: int64 [steps, S, k].
        example_labels: int64 [steps, S, k].
    """

    rows: np.ndarray
    labels: np.ndarray
    texts: np.ndarray
    example_rows: np.ndarray
    example_labels: np.ndarray


@dataclass(frozen=True, eq=False)
class TaskStream:
    """Training tasks with their messages and texts.

    `all_texts` are the texts that a task may be described with: every message, in the order of row
    numbers, then every wording. `messages` are the messages of the family, then of the topics.
    """

    messages: tuple[Message, ...] = field(repr=False)
    wordings: tuple[str, ...] = field(repr=False)
    intents: tuple[Pools, ...] = field(repr=False)
    unions: tuple[Pools, ...] = field(repr=False)
    topics: tuple[Pools, ...] = field(repr=False)
    mixture: Mixture
    seed: int

    @property
    def all_texts(self) -> list[str]:
        return [*(message.text for message in self.messages), *self.wordings]

    @classmethod
    def of(
        cls,
        family: IntentFamily,
        *,
        without: str = "L2",
        development: bool = False,
        mixture: Mixture | None = None,
        seed: int = 0,
    ) -> "TaskStream":
        """The stream of the seen intents of a family.

        Args:
            family: its training rows are read, and no row or text of a held-out intent.
            without: the split that is judged in the end, "L2" or "L3".
            development: also hold out the intents of development.
            mixture: default: `Mixture()`.
            seed: of all draws.
        """
        mixture = mixture or Mixture()
        wordings: list[str] = []
        messages = list(family.messages)

        def indices(texts: Sequence[str]) -> np.ndarray:
            wordings.extend(texts)
            return len(wordings) - len(texts) + np.arange(len(texts))

        def pools(task: IntentTask) -> Pools:
            parts = (task.positive, task.near, task.far)
            return Pools(
                *(family.rows_of(part, "train") for part in parts), indices(task.texts["train"])
            )

        options = {"without": without, "development": development}
        intents = tuple(map(pools, family.tasks("train", **options)))
        unions: tuple[Pools, ...] = ()
        if mixture.unions:
            unions = tuple(
                map(pools, training_unions(family, UNIONS * len(intents), seed, **options))
            )
        foreign = family.source == "made" or without == "L3"  # L3: no text but of one data set
        topics = () if foreign or not mixture.topics else stored.topics()
        drawn = []
        seen = family.rows_of(family.seen_without(without, development=development), "train")
        for topic in topics:
            first = len(messages)
            for i, text in enumerate(topic.messages):
                key = f"{_TOPIC_SET}-{topic.name}-{i}"
                messages.append(Message(key, text, _TOPIC_SET, topic.name, _TOPIC_SET, "train"))
            drawn.append((np.arange(first, len(messages)), indices(topic.texts)))
        everything = np.concatenate([rows for rows, _ in drawn]) if drawn else seen[:0]
        topic_pools = tuple(
            Pools(rows, np.setdiff1d(everything, rows), seen, texts)
            for rows, texts in drawn
            if len(rows)
        )
        shifted = [
            tuple(Pools(p.positive, p.near, p.far, p.texts + len(messages)) for p in part)
            for part in (intents, unions, topic_pools)
        ]
        return cls(tuple(messages), tuple(wordings), *shifted, mixture, seed)

    def steps(self, steps: int, size: int, n: int, examples: int = 0) -> StreamSteps:
        """The tasks of `steps` steps, `size` of them in each, the same for the same seed.

        Args:
            steps: number of steps.
            size: S.
            n: rows of a task, at least 2; half are positive and a quarter near.
            examples: k, labelled examples of a task; a random number of them, from 1 to k - 1, is
                positive.
        """
        rng = np.random.default_rng(seeds.integer(self.seed, "intent-stream"))
        shape = steps, size
        task = self._drawn(shape, rng)  # [steps, S]
        short = np.broadcast_to(rng.random((steps, 1)) < self.mixture.short, shape)
        table, yes = self._table, n // 2
        near = (n - yes) // 2
        counts = {"positive": yes, "near": near, "far": n - yes - near}
        rows = np.concatenate(
            [
                np.where(
                    short[..., None],
                    table[f"short {name}"].drawn(task, count, rng),
                    table[name].drawn(task, count, rng),
                )
                for name, count in counts.items()
            ],
            axis=2,
        )
        labels = np.broadcast_to((np.arange(n) < yes).astype(np.int64), rows.shape)
        first = len(self.intents)
        union = (task >= first) & (task < first + len(self.unions))  # no message is about all of it
        as_message = ~union & (rng.random(shape) < self.mixture.messages_as_texts)
        wording = table["texts"].drawn(task, 1, rng)[..., 0]
        text = np.where(as_message, table["positive"].drawn(task, 1, rng)[..., 0], wording)
        example_labels = np.arange(examples) < rng.integers(1, max(2, examples), (*shape, 1))
        negative = np.where(
            rng.random((*shape, examples)) < 0.5,
            table["near"].drawn(task, examples, rng),
            table["far"].drawn(task, examples, rng),
        )
        positive = table["positive"].drawn(task, examples, rng)
        example_rows = np.where(example_labels, positive, negative)
        return StreamSteps(rows, labels, text, example_rows, example_labels.astype(np.int64))

    def _drawn(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Random tasks, as indices into intents, unions and topics in one sequence."""
        shares = {"topics": self.mixture.topics, "unions": self.mixture.unions}
        sizes = {"intents": len(self.intents), "unions": len(self.unions)}
        sizes["topics"] = len(self.topics)
        kind, index = rng.random(shape), rng.random(shape)
        drawn = (index * sizes["intents"]).astype(np.int64)
        first, low = sizes["intents"], 0.0
        for name in ("unions", "topics"):
            if sizes[name]:
                here = (kind >= low) & (kind < low + shares[name])
                drawn = np.where(here, first + (index * sizes[name]).astype(np.int64), drawn)
                low += shares[name]
            first += sizes[name]
        return drawn

    @cached_property
    def _table(self) -> dict[str, "Ragged"]:
        """The pools of all tasks by kind; a task without near or far rows has the other kind."""
        words = np.array([len(message.text.split()) for message in self.messages])
        limit = self.mixture.short_words

        def shortest(pool: np.ndarray) -> np.ndarray:
            short = pool[words[pool] <= limit]
            return short if len(short) else pool[np.argsort(words[pool])[:8]]

        tasks = [*self.intents, *self.unions, *self.topics]
        pools = {
            "positive": [task.positive for task in tasks],
            "near": [task.near if len(task.near) else task.far for task in tasks],
            "far": [task.far if len(task.far) else task.near for task in tasks],
        }
        short = {f"short {name}": [*map(shortest, part)] for name, part in pools.items()}
        texts = {"texts": [task.texts for task in tasks]}
        return {name: Ragged.of(part) for name, part in (pools | short | texts).items()}


@dataclass(frozen=True)
class Ragged:
    """Pools of different lengths, in one sequence in `values`."""

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, pools: Sequence[np.ndarray]) -> "Ragged":
        lengths = np.array([len(pool) for pool in pools])
        return cls(np.concatenate(pools), np.cumsum(lengths) - lengths, lengths)

    def drawn(self, pool: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """[*shape, n] random values of the pools with the indices `pool` [*shape]."""
        lengths, starts = self.lengths[pool][..., None], self.starts[pool][..., None]
        return self.values[starts + (rng.random((*pool.shape, n)) * lengths).astype(np.int64)]


class StreamBatches:
    """The tasks of a stream on one base model: `TaskBatches` of training through the base.

    The base model must be under `stack` (`attached`) while losses are computed.

    Args:
        table: the messages of the stream as the base model reads them.
        steps: the tasks of every step.
        texts: [texts, e] embeddings of `TaskStream.all_texts`, on the device.
        examples: whether examples are supplied.
        group: adapters that go through the base model at once, a divisor of S; default: all S. A
            smaller group takes less memory and more time, and changes no result.
    """

    def __init__(
        self,
        table: MessageTable,
        steps: StreamSteps,
        texts: Tensor,
        examples: bool,
        group: int | None = None,
    ):
        base, device = table.base, texts.device
        self.table, self.embedded = table, texts
        size, n = steps.rows.shape[1:]
        group = group or size
        if size % group:
            raise UsageError(f"Groups of {group} adapters do not divide {size}: give a divisor.")
        self.stack = Stack(base.lora_init(), group, device, next(base.model.parameters()).dtype)
        self.widths = [table.width(rows) for rows in steps.rows]
        arrays = steps.rows, steps.labels, steps.texts, steps.example_rows, steps.example_labels
        self.steps = [torch.from_numpy(array.copy()).to(device) for array in arrays]
        self.rows, self.labels = (
            torch.zeros(size * n, dtype=torch.long, device=device) for _ in "ab"
        )
        self.text = torch.zeros(size, texts.shape[1], device=device)
        self.given = torch.ones(size, dtype=torch.bool, device=device)
        self.examples = None
        if examples:
            k = steps.example_rows.shape[2]
            self.examples = Examples(
                torch.zeros(size, k, texts.shape[1], device=device),
                torch.zeros(size, k, dtype=torch.long, device=device),
                torch.ones(size, k, dtype=torch.bool, device=device),
            )

    def draw(self, step: int) -> int:
        """Sets the tensors to the tasks of `step`. Returns the width of its rows."""
        rows, labels, texts, example_rows, example_labels = (part[step] for part in self.steps)
        self.rows.copy_(rows.flatten())
        self.labels.copy_(labels.flatten())
        self.text.copy_(self.embedded[texts])
        if self.examples is not None:
            self.examples.embeddings.copy_(self.embedded[example_rows])  # messages come first
            self.examples.labels.copy_(example_labels)
        return self.widths[step]

    def losses(self, adapters: Tensor, key: int) -> Tensor:
        """[S] mean losses of `adapters` [S, v] on the rows of the step, with a gradient."""
        size = len(self.stack)
        n = len(self.rows) // len(adapters)

        def losses(rows: Tensor, labels: Tensor) -> Tensor:
            return self.table.losses(rows, labels, size, key).view(size, n).mean(1)

        parts = zip(
            adapters.split(size),
            self.rows.split(size * n),
            self.labels.split(size * n),
            strict=True,
        )
        return torch.cat(  # each group's activations are freed before the next group
            [stacked.losses_of(a, self.stack, partial(losses, r, y)) for a, r, y in parts]
        )


def fitting_group(table: MessageTable, steps: StreamSteps, texts: Tensor) -> int:
    """The most adapters, S or S halved, whose losses and gradients on the widest step take at most
    `MEMORY` of the GPU. On a CPU all S.

    Raises:
        torch.OutOfMemoryError: not even the smallest group fits.
    """
    group, base, device = steps.rows.shape[1], table.base, texts.device
    if device.type != "cuda":
        return group
    widest = max(range(len(steps.rows)), key=lambda step: table.width(steps.rows[step]))
    scale = base.spec.alpha / base.spec.rank
    while True:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            batches = StreamBatches(table, steps, texts, False, group)
            values = batches.stack.values.repeat(len(batches.text) // group, 1)
            with stacked.attached(base.model, batches.stack, scale):
                batches.losses(values, batches.draw(widest))
            peak = torch.cuda.max_memory_allocated(device)
            if peak <= MEMORY * torch.cuda.mem_get_info(device)[1] or group % 2:
                return group
        except torch.OutOfMemoryError:
            if group % 2:
                raise
        group //= 2
