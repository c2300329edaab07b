"""The tasks of a split on one base model, with their test rows and the texts of each condition.

Letters: T tasks, n rows of each, s samples (texts of a condition), V values of an adapter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from oral_lib import seeds
from oral_lib.experiments import conditions
from oral_lib.experiments.intents import rivals, stored
from oral_lib.experiments.intents.messages import MessageTable
from oral_lib.experiments.intents.methods.from_text import Embedder, TextZoo
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.models.base import BaseModel
from oral_lib.tasks.intents.family import MESSAGE, IntentFamily, IntentTask, draw_rows, load_family

# test rows of a task that are positive; twice as many are not
POSITIVE = {"smoke": 10, "desk": 15, "lab": 30}
PARAPHRASES = 2  # texts of a task under the condition "paraphrase", at most
# of the base model that was used last
_tables: WeakKeyDictionary[ModelCache, tuple[IntentFamily, MessageTable]] = WeakKeyDictionary()
_embedders: WeakKeyDictionary[ModelCache, Embedder] = WeakKeyDictionary()


@dataclass(frozen=True)
class Texts:
    """The texts of one condition: `samples` [s] lists of T texts."""

    condition: str
    samples: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SplitCell:
    """What a cell is measured with.

    Attributes:
        split: the split, or "development".
        model: the base model.
        table: the messages as the base model reads them.
        family: the intents.
        embed: of texts and messages.
        root: the folder of the run.
        scale: of the run.
        wordings: which paraphrases are read: "development", or "test" for a release.
    """

    split: str
    model: BaseModel
    table: MessageTable
    family: IntentFamily
    embed: Embedder
    root: Path
    scale: str
    wordings: str = "development"

    @property
    def development(self) -> bool:
        return self.split == "development"

    @cached_property
    def tasks(self) -> tuple[IntentTask, ...]:
        return self.family.tasks(self.split)

    @cached_property
    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows [T, n] and labels [n]: as many as there are for every task without repetition."""
        part = "validation" if self.development else "test"
        most = POSITIVE[self.scale]
        for positive in range(most, 0, -1):
            drawn = [draw_rows(self.family, t, part, positive, 2 * positive, 0) for t in self.tasks]
            rows = np.stack([rows for rows, _ in drawn])
            if all(len(np.unique(each)) == len(each) for each in rows):
                break
        return rows, drawn[0][1]

    @cached_property
    def questions(self) -> tuple[Texts, ...]:
        """The texts of each condition, "matched" first.

        The split L0 has tasks that were trained on, in wordings that were not.
        """
        tasks = self.tasks
        kind = self.wordings if self.split == "L0" else "train"
        matched = tuple(task.texts[kind][0] for task in tasks)
        count = min(PARAPHRASES, *(len(task.texts[self.wordings]) for task in tasks))
        paraphrases = [tuple(t.texts[self.wordings][i] for t in tasks) for i in range(count)]
        others = [(i + 1 + seeds.integer(0, t.name) % (len(tasks) - 1)) % len(tasks)
                  for i, t in enumerate(tasks)]  # fmt: skip
        nonsense = tuple(
            conditions.random_words(self.embed.encoder, seeds.integer(i, "intents"))
            for i in range(len(tasks))
        )
        questions = (
            Texts("matched", (matched,)),
            Texts("paraphrase", tuple(paraphrases)),
            Texts("mismatched", (tuple(matched[i] for i in self._disjoint(others)),)),
            Texts("random", (nonsense,)),
            Texts("empty", (("",) * len(tasks),)),
        )
        return tuple(q for q in questions if q.condition != "paraphrase" or self.split != "L0")

    def _disjoint(self, others: Sequence[int]) -> Iterator[int]:
        """The next task from `others` on that shares no positive intent, by task."""
        total = len(self.tasks)
        for task, start in zip(self.tasks, others, strict=True):
            ring = [(start + i) % total for i in range(total)]
            apart = (i for i in ring if not {*task.positive} & {*self.tasks[i].positive})
            yield next(apart, start)

    @cached_property
    def zoo(self) -> TextZoo:
        """The adapters of seen tasks."""
        options = {"development": self.development}
        unions = rivals.preset(self.scale, self.model.name).zoo_unions
        scope = rivals.scope_of(self.split)
        tasks = rivals.seen_tasks(self.family, scope, unions, **options)
        return rivals.text_zoo(self.root, self.model.name, tasks, scope, self.embed, **options)

    def rival(self, name: str) -> tuple[dict[str, Tensor], dict]:
        """A trained rival of the models that are judged on this split."""
        name = rivals.suffixed(name, self.split)
        return stored.read_rival(self.root, self.model.name, name, development=self.development)

    @cached_property
    def trained(self) -> tuple[Tensor, float]:
        """Adapters [T, V] trained on the tasks' own rows, and seconds of each."""
        about = {"development": self.development}
        name = "train" if self.split == "L0" else self.split
        names, values, info = stored.read_set(self.root, self.model.name, name, **about)
        place = {task.partition("/")[2]: i for i, task in enumerate(names)}
        index = [place[task.name.partition("/")[2]] for task in self.tasks]
        return values[index], info["seconds_adapter"]


def cell_of(split: str, base: str, *, scale: str, cache: ModelCache, wordings: str) -> SplitCell:
    """The cell of a split and base model, with the models and texts of a run."""
    family = load_family(cache.source, scale)
    model = cache.base(base, len(MESSAGE.labels))
    read, table = _tables.get(cache, (None, None))
    if read is not family or table.base is not model:
        table = MessageTable.of(model, family.messages, MESSAGE)
        _tables[cache] = family, table
    if cache not in _embedders:
        _embedders[cache] = Embedder(rivals.text_encoder(scale, cache.source), cache.device)
    embed = _embedders[cache]
    return SplitCell(split, model, table, family, embed, cache.root, scale, wordings)
