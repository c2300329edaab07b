"""The training tasks of all methods that learn from many tasks, step by step.

A step has S tasks with n labelled rows of each, a text and a few examples. Generator and multi-task
models read the same stream. A task is a seen intent, a random union of seen intents, or an invented
topic, whose few messages were written for this project. Its text is a training wording or, in a
share of the draws, a message of the task: many different texts matter more than many rows. A task
may also be distilled: a text without rows of its own, and a teacher that reads the text says
which messages are about it.

All draws are made on the host before training, from the seed only.

Letters: S tasks of a step, n rows of a task, k examples of a task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from oral_lib import seeds
from oral_lib.errors import UsageError
from oral_lib.tasks.intents import texts as stored
from oral_lib.tasks.intents.family import IntentFamily, IntentTask, training_unions
from oral_lib.tasks.intents.message import Message
from oral_lib.tasks.intents.texts import Topic

UNIONS = 12  # different unions of a stream for each intent
_FOUND = 24, 240  # messages nearest to a text: most are about it, some may be
_TOPIC_SET = "topics"


@dataclass(frozen=True)
class Mixture:
    """Which tasks and texts a stream has.

    Args:
        unions: share of tasks that are unions of seen intents.
        topics: share of tasks that are invented topics.
        distilled: share of tasks that are texts of topics, on messages that a teacher labels.
        messages_as_texts: share of texts that are a message of the task; none of a union is.
        short: share of steps whose rows are all short, so that they have little padding.
        short_words: words of the longest row of such a step.
    """

    unions: float = 0.2
    topics: float = 0.2
    distilled: float = 0.0
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
        labels: float32 [steps, S, n] the probability of yes: 0 or 1 but for distilled tasks.
        texts: int64 [steps, S] indices into `TaskStream.all_texts`.
        example_rows: int64 [steps, S, k].
        example_labels: int64 [steps, S, k].
        distilled: bool [steps, S] tasks that a teacher labels.
    """

    rows: np.ndarray
    labels: np.ndarray
    texts: np.ndarray
    example_rows: np.ndarray
    example_labels: np.ndarray
    distilled: np.ndarray


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
    distilled: tuple[Pools, ...] = field(repr=False)
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
        topics: Sequence[Topic] | None = None,
        embed: Callable[[Sequence[str]], Tensor] | None = None,
    ) -> "TaskStream":
        """The stream of the seen intents of a family.

        Args:
            family: its training rows are read, and no row or text of a held-out intent.
            without: the split that is judged in the end, "L2" or "L3".
            development: also hold out the intents of development.
            mixture: default: `Mixture()`.
            seed: of all draws.
            topics: default: the invented topics of messages to assistants, but none for "L3",
                which has texts of one data set only.
            embed: embeddings of texts, by which distilled tasks find messages.

        Raises:
            UsageError: distilled tasks without `embed`.
        """
        mixture = mixture or Mixture()
        if mixture.distilled and embed is None:
            raise UsageError(f"distilled={mixture.distilled}: give `embed`, which finds messages.")
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
        if topics is None:
            foreign = family.source in ("made", "packages") or without == "L3"
            topics = () if foreign else stored.topics()
        if not mixture.topics and not mixture.distilled:
            topics = ()
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
        distilled: tuple[Pools, ...] = ()
        if mixture.distilled and topics:
            of_topics = shifted[2]
            rows = np.concatenate([seen, everything])
            near = embed([topic.texts[0] for topic in topics if topic.messages])
            near = near @ embed([messages[row].text for row in rows]).T
            near = rows[near.topk(min(_FOUND[1], len(rows)), dim=1).indices.cpu().numpy()]
            distilled = tuple(
                Pools(nearest[: _FOUND[0]], nearest, seen, np.concatenate([p.texts, p.positive]))
                for nearest, p in zip(near, of_topics, strict=True)
            )
        return cls(tuple(messages), tuple(wordings), *shifted, distilled, mixture, seed)

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
        labels = np.broadcast_to((np.arange(n) < yes).astype(np.float32), rows.shape)
        first = len(self.intents)
        union = (task >= first) & (task < first + len(self.unions))  # no message is about all of it
        distilled = task >= first + len(self.unions) + len(self.topics)
        as_message = ~union & ~distilled & (rng.random(shape) < self.mixture.messages_as_texts)
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
        return StreamSteps(
            rows, labels, text, example_rows, example_labels.astype(np.int64), distilled
        )

    def _drawn(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Random tasks: indices into intents, unions, topics and distilled ones in one sequence."""
        kinds = ("unions", "topics", "distilled")
        shares = {name: getattr(self.mixture, name) for name in kinds}
        sizes = {name: len(getattr(self, name)) for name in ("intents", *kinds)}
        kind, index = rng.random(shape), rng.random(shape)
        drawn = (index * sizes["intents"]).astype(np.int64)
        first, low = sizes["intents"], 0.0
        for name in kinds:
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

        tasks = [*self.intents, *self.unions, *self.topics, *self.distilled]
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
