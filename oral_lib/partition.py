"""Rows of a data set, and how they are parted: no text or picture is in two parts."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Row:
    """One text or picture to judge; `key` is stable across runs, so any two methods can be paired.

    `label` is the place of the right label or option. A row of scoring "option" has its
    (context, continuation) pairs; one of scoring "answer" has the exact `answer` and the longer
    `target` that training puts after the prompt.
    """

    key: str
    text: str
    label: int
    options: tuple[tuple[str, str], ...] = ()
    answer: str = ""
    target: str = ""
    image: bytes = field(default=b"", repr=False)  # the picture's file
    kind: str = ""  # of a question


@dataclass(frozen=True)
class Split:
    """The rows of one task from one source; `source` is what the result table prints."""

    source: str
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]


def cut(
    source: str,
    sizes: dict[str, int],
    seed: int,
    rows: list[Row],
    test: list[Row] | None = None,
    validation: list[Row] | None = None,
    group: list | None = None,
) -> Split:
    """Rows for each part, shuffled by `seed`, from `rows` alone or with lists of their own for test
    and validation.

    Rows of one `group` go to one part: to the first that wants more of test, unless that has a list
    of its own, validation and train.
    """
    train = _shuffled(rows, seed)
    held = train if test is None else _shuffled(test, seed)
    validation = train if validation is None else _shuffled(validation, seed)
    if group is not None:
        wanting = ["test", "validation", "train"][test is not None :]
        part_of = _parts(group, sizes, seed, wanting)
        of = {row.key: part_of[name] for row, name in zip(rows, group, strict=True)}
        own = {part: [row for row in train if of[row.key] == part] for part in wanting}
        held, validation, train = own.get("test", held), own["validation"], own["train"]
    seen: set = set()  # grows in this order: the test rows choose first
    held = _fresh(held, sizes["test"], seen)
    validation = _fresh(_unseen(validation, held), sizes["validation"], seen)
    train = _fresh(_unseen(train, held + validation), sizes["train"], seen)
    return Split(source, train, validation, held)


def _unseen(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """The rows without a picture that `others` have, too."""
    known = {row.image for row in others if row.image}
    return [row for row in rows if row.image not in known]


def _parts(group: list, sizes: dict[str, int], seed: int, wanting: list[str]) -> dict:
    """The part of each group: whole groups, in an order of their own, until a part has enough."""
    counts = Counter(group)
    names = sorted(counts)
    part_of, open_parts = {}, list(wanting)
    held = 0
    for i in np.random.default_rng(seed).permutation(len(names)):
        part_of[names[i]] = open_parts[0]
        held += counts[names[i]]
        if len(open_parts) > 1 and held >= sizes[open_parts[0]]:
            held = 0
            open_parts.pop(0)
    return part_of


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def _fresh(rows: Sequence[Row], n: int, seen: set) -> tuple[Row, ...]:
    """The first `n` rows whose picture and text, whatever its case and punctuation, are not in
    `seen` yet."""
    chosen = []
    for row in rows:
        bare = row.image, " ".join(re.findall(r"\w+", row.text.casefold()))
        if len(chosen) < n and bare not in seen:
            seen.add(bare)
            chosen.append(row)
    return tuple(chosen)
