"""The rows of a task: read from a source, or synthetic, and split into three parts.

The rows are shuffled with the task's split seed. No two of them have one image and texts that
differ in case, blanks and punctuation only; a sign next to a number counts. The number of rows that
are left out is printed. `tables.py` reads the tables of a source.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from string import punctuation
from unicodedata import category, normalize
from zlib import crc32

import numpy as np
import pandas as pd

from oral_lib.assets import sources
from oral_lib.errors import PreflightError, UsageError
from oral_lib.tasks import images, tables
from oral_lib.tasks.task import PAIRED, Task, load_task


@dataclass(frozen=True)
class Row:
    """One text or image with its truth."""

    key: str  # stable across runs, so that the scores of two methods can be paired
    text: str
    label: int  # index of the right label or option
    options: tuple[tuple[str, str], ...] = ()  # (context, continuation) of scoring "option"
    answer: str = ""  # exact answer of scoring "answer"
    target: str = ""  # what training puts after the prompt of scoring "answer"
    image: bytes = field(default=b"", repr=False)  # image file
    kind: str = ""  # kind of question


@dataclass(frozen=True)
class Split:
    """The rows of one task from one source, in three parts."""

    source: str  # as in the result table
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]


def partition(
    source: str,
    sizes: dict[str, int],
    seed: int,
    rows: list[Row],
    test: list[Row] | None = None,
    validation: list[Row] | None = None,
    group: list | None = None,
) -> Split:
    """The three parts of a task's rows, each shuffled with `seed`.

    Args:
        source: source of the rows.
        sizes: maximum number of rows by part.
        seed: the task's split seed.
        rows: rows of all parts that have no list of their own.
        test: rows of the test part, if the source has them apart.
        validation: rows of the validation part, if the source has them apart.
        group: group of each of `rows`. All rows of a group go to one part: groups are assigned to
            test (unless `test` is given), then to validation, then to train, until each is full.
    """
    everything = [*rows, *(test or ()), *(validation or ())]
    train = _shuffled(rows, seed)
    test = train if test is None else _shuffled(test, seed)
    validation = train if validation is None else _shuffled(validation, seed)
    if group is not None:
        parts = ["test", "validation", "train"][test is not train :]
        part_of_group = _parts(group, sizes, seed, parts)
        part_of = {row.key: part_of_group[name] for row, name in zip(rows, group, strict=True)}
        by_part = {part: [row for row in train if part_of[row.key] == part] for part in parts}
        test = by_part.get("test", test)
        validation, train = by_part["validation"], by_part["train"]
    seen: set = set()  # test rows are chosen first, train rows last
    test_rows = _distinct(test, sizes["test"], seen)
    validation_rows = _distinct(
        _without_images_of(validation, test_rows), sizes["validation"], seen
    )
    others = test_rows + validation_rows
    train_rows = _distinct(_without_images_of(train, others), sizes["train"], seen)
    if source != "made":
        contents = [(row.image, comparable(row.text)) for row in everything]
        if repeats := len(contents) - len(set(contents)):
            _report_repeats(everything[0].key.split("-")[0], source, repeats, len(contents))
    return Split(source, train_rows, validation_rows, test_rows)


def _without_images_of(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """`rows` without those whose image one of `others` has."""
    images = {row.image for row in others if row.image}
    return [row for row in rows if row.image not in images]


def _parts(group: list, sizes: dict[str, int], seed: int, parts: list[str]) -> dict:
    """Part by group: whole groups in random order, until a part has enough rows."""
    counts = Counter(group)
    names = sorted(counts)
    part_of, unfilled = {}, list(parts)
    count = 0
    for i in np.random.default_rng(seed).permutation(len(names)):
        part_of[names[i]] = unfilled[0]
        count += counts[names[i]]
        if len(unfilled) > 1 and count >= sizes[unfilled[0]]:
            count = 0
            unfilled.pop(0)
    return part_of


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def _distinct(rows: Sequence[Row], n: int, seen: set) -> tuple[Row, ...]:
    """The first `n` rows whose image and text (`comparable`) are not in `seen`, to which they are
    added."""
    distinct = []
    for row in rows:
        content = row.image, comparable(row.text)
        if len(distinct) < n and content not in seen:
            seen.add(content)
            distinct.append(row)
    return tuple(distinct)


def comparable(text: str) -> tuple[str, ...]:
    """`text` without case, blanks and punctuation, and the signs next to its numbers. Vowel signs,
    accents and emoji are kept.

    >>> comparable("Isn't it  GOOD?") == comparable("isn't it good")
    True
    >>> comparable("3 + 4") == comparable("3 - 4")
    False
    """
    text = normalize("NFC", normalize("NFC", text).casefold())
    signs = (before or behind for before, behind in _sign_of_number().findall(text))
    if text.isascii():
        return " ".join(re.findall(r"\w+", text)), *signs
    return " ".join("".join(letter if _counts(letter) else " " for letter in text).split()), *signs


@cache
def _sign_of_number() -> re.Pattern:
    """Signs before and behind a number. A hyphen is one unless a letter precedes it (`covid-19`) or
    no number follows (`5-year-old`)."""
    letters = map(chr, range(sys.maxunicode + 1))
    signs = re.escape("".join(x for x in letters if category(x) in ("Sm", "Sc")) + "*/%^°‰")
    return re.compile(rf"((?:[{signs}]|(?<![^\W\d])-)+)(?=[\s(]*\d)|(?<=\d)\s*([{signs}])")


@cache
def _counts(letter: str) -> bool:
    """Whether texts that differ in this letter are different: it is not blank, not punctuation, not
    a sign of ASCII except "_", and not the sign of a currency."""
    kind = category(letter)
    ignored = kind[0] in "PZ" or kind in ("Cc", "Cf", "Cs", "Sc") or letter in punctuation
    return letter == "_" or not ignored


@cache
def _report_repeats(name: str, source: str, n: int, total: int) -> None:
    """Prints once how many rows of a task repeat others."""
    print(
        f"note: task {name}: {n:,} of {total:,} rows from {source} are left out: they repeat the "
        "text or image of others (up to case, blanks and punctuation).",
        file=sys.stderr,
    )


SYNTHETIC = {"train": 6000, "validation": 600, "test": 1500}  # rows of the source "made"
SYNTHETIC_IMAGES = {"train": 600, "validation": 100, "test": 300}
FILLER = tuple("the a of it and was in this that with for on but at from".split())  # noqa: SIM905


@lru_cache(maxsize=2)
def _source_rows(name: str, source: str) -> Split:
    """The rows of a task from which binary tasks are derived, read once."""
    return task_rows(load_task(name), source)


def task_rows(task: Task, source: str) -> Split:
    """The rows of a task, divided into train, validation and test.

    Args:
        task: the task.
        source: "packages", "local:DIR", "hub" or, for synthetic rows, "made".

    A source's own test split is used as a whole up to the size of the test part. Otherwise test,
    validation and train rows are taken from one list, in this order.

    Raises:
        UsageError: if the task has no rows in this source.
        PreflightError: if a row or a column is not as the task requires.

    >>> split = task_rows(load_task("movie"), "made")
    >>> len(split.test), split.test[0].label in (0, 1)
    (1500, True)
    """
    if task.of:
        return _binary_rows(task, source)
    kind, folder = sources.parse_source(source)
    seed = task.split["seed"]
    if kind == "made":
        sizes = SYNTHETIC_IMAGES if task.scoring in (*PAIRED, "style") else SYNTHETIC
        return partition(kind, sizes, seed, _synthetic(task, sum(sizes.values())))
    if kind not in task.sources:
        raise UsageError(
            f"task {task.name!r} has no rows in source {kind!r}; use {', '.join(task.sources)}."
        )
    spec, sizes = task.sources[kind], task.split[kind]
    if "part" in spec:
        frames = tables.package_frame(spec).groupby(spec["part"])
        parts = {part: _rows(task, frame, spec, part) for part, frame in frames}
        return partition(kind, sizes, seed, parts["train"], parts["test"], parts["validation"])
    if kind == "packages":
        frame = tables.package_frame(spec)
        group = tables.groups(task, frame, spec, "all")
        return partition(kind, sizes, seed, _rows(task, frame, spec, "all"), group=group)

    def frame_of(part: str) -> pd.DataFrame:
        if kind == "local":
            frame = sources.local_rows(folder, spec["set"], spec[part])
        else:
            frame = sources.hub_rows(spec["repo"], spec["config"], spec[part], spec["revision"])
        if task.scoring == "match":  # an image and all of its texts belong together
            frame = tables.one_row_a_text(task, frame, spec)
        return frame

    train, test = frame_of("train"), frame_of("test")
    group = tables.groups(task, train, spec, "train")
    parts = [_rows(task, train, spec, "train"), _rows(task, test, spec, "test")]
    return partition(kind, sizes, seed, *parts, group=group)


def full_rows(task: Task, source: str, parts: Sequence[str] = ("train", "validation")) -> Split:
    """`task_rows`, with at least one row in each of `parts`. Raises PreflightError if not."""
    split = task_rows(task, source)
    sizes = {part: len(getattr(split, part)) for part in parts}
    if not all(sizes.values()):
        counts = ", ".join(f"{n} {part}" for part, n in sizes.items())
        raise PreflightError(
            f"task {task.name!r}: too few different rows in source {source!r} ({counts}). "
            "Check the data set."
        )
    return split


def _binary_rows(task: Task, source: str) -> Split:
    """The rows of a binary task: label 1 for the positive classes of its source task."""
    split = _source_rows(task.of, source)
    parts = {
        part: tuple(
            replace(row, label=int(row.label in task.positive)) for row in getattr(split, part)
        )
        for part in ("train", "validation", "test")
    }
    return Split(split.source, **parts)


def _rows(task: Task, frame: pd.DataFrame, spec: dict, part: str) -> list[Row]:
    """The rows of `frame` in its order; `spec` is the entry of the source in the task's file."""
    fields = tables.row_fields(task, frame, spec, part)
    return [Row(f"{task.name}-{part}-{i}", **values) for i, values in enumerate(fields)]


def _synthetic(task: Task, n: int) -> list[Row]:
    """`n` rows of the smoke scale: a marker word of the class among filler words, or an image.

    The options of such a row are the class names, its answer is the first marker of its class.
    """
    rng = np.random.default_rng(task.split["seed"])
    keys = [f"{task.name}-all-{i}" for i in range(n)]
    hue = crc32(task.name.encode()) / 2**32  # another one for each task
    if task.scoring == "image":
        labels = rng.integers(0, len(task.labels), n).tolist()
        return [
            Row(key, "", label, image=images.square(label, len(task.labels), rng, hue))
            for key, label in zip(keys, labels, strict=True)
        ]
    if task.scoring == "style":
        return [Row(key, "", 0, image=images.styled_square(rng, hue)) for key in keys]
    if task.scoring in PAIRED:
        return [_synthetic_pair(task, key, rng, hue) for key in keys]
    labels = rng.integers(0, len(task.marker_words), n).tolist()
    rows = []
    for key, label in zip(keys, labels, strict=True):
        words = list(rng.choice(FILLER, size=rng.integers(3, 7)))
        words.insert(int(rng.integers(0, len(words))), str(rng.choice(task.marker_words[label])))
        text, answer = " ".join(words), task.marker_words[label][0]
        mark = "#### " if "####" in task.answer_pattern else ""
        truth = {"label": 0, "answer": answer, "target": f" {mark}{answer}"}
        if task.scoring != "answer":
            context = task.prompt(text)
            options = [(context, f" {word}") for word in task.labels]
            truth = {"label": label, "options": tuple(options) if task.scoring == "option" else ()}
        rows.append(Row(key, text, **truth))
    return rows


def _synthetic_pair(task: Task, key: str, rng: np.random.Generator, hue: float) -> Row:
    """An image of a class and a text with a marker word.

    With two answers the marker is that of the image's class if the label is 1, else that of another
    class. With more answers the label is the image's class, and the text has filler words only.
    """
    n = len(task.marker_words)
    image_class = int(rng.integers(0, n))
    text_class, label = image_class, image_class
    if len(task.labels) == 2:
        label = int(rng.integers(0, 2))
        text_class = image_class if label else int(image_class + rng.integers(1, n)) % n
    words = [*rng.choice(FILLER, size=3), rng.choice(task.marker_words[text_class])]
    if len(task.labels) > 2:
        words = list(rng.choice(FILLER, size=4))
    image = images.square(image_class, n, rng, hue)
    return Row(key, " ".join(words), label, image=image, kind="made")
