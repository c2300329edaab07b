"""Families of intents: tasks "is the message about X", their texts, splits and rows.

A task has a set of positive intents: one, a union of two to five, or "X but not Y". Its negatives
are messages of other intents. Half of the negatives of `draw_rows` are near: their intents have the
domain of a positive intent, or are Y.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from zlib import crc32

import numpy as np

from oral_lib.assets import sources
from oral_lib.errors import UsageError, closest
from oral_lib.tasks.intents import messages as rows
from oral_lib.tasks.intents import splits, texts
from oral_lib.tasks.intents.message import PARTS, Material, Message
from oral_lib.tasks.intents.splits import Splits, Union
from oral_lib.tasks.task import Task

ATTEMPTS = 1000  # rejected draws in a row, before there are too few unions
SPLITS = ("train", "development", "L0", "L1", "L2", "L3")
MESSAGE = Task(
    name="intents",
    version=1,
    family="intents",
    description="Say whether a message is about a topic.",
    paraphrases={"train": [], "development": [], "test": []},
    labels=["no", "yes"],
    metric="auc",
    split={},
    sources={},
    template="Message: {text}\nAnswer:",
    max_tokens=48,
)


@dataclass(frozen=True)
class IntentTask:
    """One task. Intents are indices of `IntentFamily.intents`."""

    name: str  # such as "L2/clinc150.travel_alert"
    split: str  # one of SPLITS
    positive: tuple[int, ...]
    near: tuple[int, ...]  # intents of near negatives
    far: tuple[int, ...]  # intents of all other negatives
    texts: Mapping[str, tuple[str, ...]] = field(hash=False, repr=False)
    """train, development and test texts; the first training text is the matched one"""


@dataclass(frozen=True, eq=False)
class IntentFamily:
    """All messages of a source with their intents, and the tasks on them."""

    source: str
    messages: tuple[Message, ...] = field(repr=False)
    intents: tuple[str, ...] = field(repr=False)  # such as "clinc150.alarm", sorted
    intent_of: np.ndarray = field(repr=False)  # [messages] int64 index of the intent
    part_of: np.ndarray = field(repr=False)  # [messages] int64 index in PARTS
    domains: tuple[str, ...] = field(repr=False)  # [intents] such as "clinc150.utility"
    splits: Splits = field(repr=False)
    intent_texts: tuple[Mapping[str, tuple[str, ...]], ...] = field(repr=False)  # [intents]
    phrases: Mapping[str, str] = field(repr=False)  # by intent

    @cached_property
    def seen(self) -> tuple[int, ...]:
        """Indices of the intents with rows in training, when results are measured."""
        return self.seen_without("L2")

    def seen_without(self, split: str, *, development: bool = False) -> tuple[int, ...]:
        """Indices of the intents with rows in the training of a model judged on `split`.

        Args:
            split: "L3" leaves out every set but the ones that L3's models are trained on.
            development: leave out the intents of development, too.
        """
        _check_split(split)
        excluded = {*self.splits.unseen, *(self.splits.development if development else ())}
        sets = self.splits.trained_sets
        return tuple(
            i
            for i, name in enumerate(self.intents)
            if name not in excluded and (split != "L3" or _set(name) in sets)
        )

    def tasks(
        self, split: str, *, without: str = "L2", development: bool = False
    ) -> tuple[IntentTask, ...]:
        """The tasks of a split.

        Args:
            split: "train", "development", "L0", "L1", "L2" or "L3".
            without: for "train" and "L0", the split that the model is judged on in the end.
            development: for "train", "L0" and "L1", leave the intents of development out.

        Raises:
            UsageError: for another split.
        """
        _check_split(split)
        if split in ("train", "L0", "L1"):
            allowed = self.seen_without(without, development=development)
        else:
            excluded = set(self.splits.unseen) if split == "development" else set()
            allowed = tuple(i for i, name in enumerate(self.intents) if name not in excluded)
        if split == "L1":
            return tuple(self._union_task(split, u, allowed) for u in self.splits.unions)
        names = {
            "development": self.splits.development,
            "L2": self.splits.unseen,
            "L3": self.splits.other_set,
        }.get(split)
        chosen = allowed if names is None else tuple(sorted(map(self.index, names)))
        return tuple(self._task(split, i, allowed) for i in chosen)

    def index(self, intent: str) -> int:
        """The index of an intent such as "clinc150.alarm". UsageError for an unknown one."""
        if intent not in self._index:
            raise UsageError(f"unknown intent {intent!r}.{closest(intent, self.intents)}")
        return self._index[intent]

    def rows_of(self, intents: tuple[int, ...], part: str) -> np.ndarray:
        """[n] int64 rows of the messages of `intents` in a part, in their order."""
        key = intents, part
        if key not in self._rows:
            chosen = np.isin(self.intent_of, intents) & (self.part_of == PARTS.index(part))
            self._rows[key] = chosen.nonzero()[0]
        return self._rows[key]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.intents)}

    @cached_property
    def _rows(self) -> dict[tuple, np.ndarray]:
        return {}

    @cached_property
    def _shared(self) -> tuple[set[int], ...]:
        """Intents of other sets that messages of an intent may be about as well, by intent."""
        shared: list[set[int]] = [set() for _ in self.intents]
        for name, others in self.splits.shared_subjects:
            inside = {i for i, intent in enumerate(self.intents) if _set(intent) == name}
            outside = set(map(self.index, others))
            for group, across in ((inside, outside), (outside, inside)):
                for i in group:
                    shared[i] |= across
        return tuple(shared)

    def _task(self, split: str, intent: int, allowed: tuple[int, ...]) -> IntentTask:
        near, far = self._negatives((intent,), allowed)
        name = f"{split}/{self.intents[intent]}"
        return IntentTask(name, split, (intent,), near, far, self.intent_texts[intent])

    def _union_task(self, split: str, union: Union, allowed: tuple[int, ...]) -> IntentTask:
        positive = tuple(sorted(map(self.index, union.about)))
        near, far = self._negatives(positive, allowed)
        if union.not_about:
            far = tuple(sorted({*near, *far} - set(map(self.index, union.not_about))))
            near = tuple(sorted(map(self.index, union.not_about)))
        rng = random.Random(f"{split} {union.about} {union.not_about}")
        composed = texts.union_texts(union, self.phrases, rng)
        return IntentTask(f"{split}/{union.name}", split, positive, near, far, composed)

    def _negatives(
        self, positive: tuple[int, ...], allowed: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(near, far) intents of the negatives."""
        domains = {self.domains[i] for i in positive}
        excluded = set(positive).union(*(self._shared[i] for i in positive))
        near = tuple(i for i in allowed if i not in excluded and self.domains[i] in domains)
        far = tuple(i for i in allowed if i not in excluded and self.domains[i] not in domains)
        return near, far


def training_unions(
    family: IntentFamily,
    n: int,
    seed: int,
    *,
    without: str = "L2",
    development: bool = False,
    share_without: float = 0.3,
) -> tuple[IntentTask, ...]:
    """`n` random unions of seen intents, for training; none is nested with a union of L1.

    Args:
        family: the family.
        n: number of tasks.
        seed: seed of the draw.
        without: the split that the model is judged on in the end.
        development: leave the intents of development out.
        share_without: share of the tasks that are "X but not Y".

    Raises:
        UsageError: if the seen intents do not have that many unions.
    """
    allowed = family.seen_without(without, development=development)
    domains = {family.intents[i]: family.domains[i] for i in allowed}
    rng = random.Random(f"training unions {seed}")
    tasks, drawn, rejected = [], set(), 0
    while len(tasks) < n:
        union = splits.draw_union(domains, rng, without=rng.random() < share_without)
        if union in drawn or splits.forbidden(union, family.splits.unions, tuple(domains)):
            rejected += 1
            if rejected > ATTEMPTS:
                raise UsageError(
                    f"{len(tasks)} unions for training instead of {n}: the {len(allowed)} seen "
                    f"intents of {family.source!r} have hardly any more. Choose a smaller number."
                )
            continue
        rejected = 0
        drawn.add(union)
        name = f"{_set(union.about[0])}.union-{seed}-{len(tasks):05d}"
        tasks.append(family._union_task("train", replace(union, name=name), allowed))
    return tuple(tasks)


def draw_rows(
    family: IntentFamily,
    task: IntentTask,
    part: str,
    n_positive: int,
    n_negative: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Random rows of a task with their labels; equal arguments give equal rows.

    Half of the negatives are near where there are both kinds. A larger draw of the same seed
    contains the smaller one. Where a part has fewer messages than required, they are repeated.

    Args:
        family: the family.
        task: one of its tasks.
        part: "train", "validation" or "test".
        n_positive: number of positive rows, which come first.
        n_negative: number of negative rows: near ones, then far ones.
        seed: seed of the draw.

    Returns:
        (rows, labels), each [n_positive + n_negative] int64. Rows are indices of
        `family.messages`. Labels are 0 or 1.

    Raises:
        UsageError: if there is no message to draw from.
    """
    n_near = n_negative if not task.far else n_negative // 2 if task.near else 0
    groups = {
        "positive": (task.positive, n_positive),
        "near": (task.near, n_near),
        "far": (task.far, n_negative - n_near),
    }
    drawn = []
    for kind, (intents, n) in groups.items():
        pool = family.rows_of(intents, part)
        if n and not len(pool):
            raise UsageError(f"task {task.name!r}: no {kind} messages in {part!r}.")
        rng = np.random.default_rng([seed, crc32(f"{task.name} {part} {kind}".encode())])
        drawn.append(np.resize(pool[rng.permutation(len(pool))], n) if n else pool[:0])
    labels = np.repeat(np.array([1, 0], dtype=np.int64), [n_positive, n_negative])
    return np.concatenate(drawn), labels


@cache
def load_family(source: str, scale: str) -> IntentFamily:
    """The intents of a source.

    Args:
        source: "local:DIR" and "hub" have CLINC150 and BANKING77; "made" and "packages" have
            families of their own.
        scale: scale of the run; a source other than "made" cannot be read at the scale "smoke".

    Raises:
        UsageError: if the source has no intents.
        PreflightError: if files of the source are missing or damaged.
    """
    kind, _ = sources.parse_source(source)
    if kind == "made" or scale == "smoke":
        written, phrases = rows.made_texts()
        split = splits.read_splits("splits_made")
        return build("made", Material(rows.made_messages(), split, written, phrases))
    if kind == "packages":
        from oral_lib.tasks.intents import glosses

        return build(source, glosses.load(scale))
    split = splits.read_splits("splits")
    return build(
        source,
        Material(rows.read_messages(source), split, texts.stored_texts(), texts.stored_phrases()),
    )


def build(source: str, material: Material) -> IntentFamily:
    """The family of `material`, with intents in the order of their names.

    Raises:
        UsageError: if an intent has no text of a kind, or a held-out intent has no message.
    """
    domain_of = {m.name: f"{m.set}.{m.domain}" for m in material.messages}
    intents = tuple(sorted(domain_of))
    index = {name: i for i, name in enumerate(intents)}
    for name in intents:
        if without := [k for k in texts.KINDS if not material.texts.get(name, {}).get(k)]:
            raise UsageError(f"the intent {name!r} has no texts for {without[0]}.")
    phrases = {name: material.phrases.get(name) or texts.words_of(name) for name in intents}
    split = material.splits
    unions = [name for union in split.unions for name in (*union.about, *union.not_about)]
    for name in (*split.development, *split.unseen, *split.other_set, *unions):
        if name not in index:
            raise UsageError(f"source {source!r} has no messages of the held-out intent {name!r}.")
    return IntentFamily(
        source=source,
        messages=tuple(material.messages),
        intents=intents,
        intent_of=np.array([index[m.name] for m in material.messages], dtype=np.int64),
        part_of=np.array([PARTS.index(m.part) for m in material.messages], dtype=np.int64),
        domains=tuple(domain_of[name] for name in intents),
        splits=split,
        intent_texts=tuple(
            {kind: tuple(material.texts[name][kind]) for kind in texts.KINDS} for name in intents
        ),
        phrases=phrases,
    )


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}: use {', '.join(SPLITS)}.")


def _set(name: str) -> str:
    return name.partition(".")[0]
