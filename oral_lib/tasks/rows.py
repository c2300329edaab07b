"""Tasks: what is asked in words, how a row becomes a prompt, and which rows train, tune and test.

One YAML file a task lies in `oral_lib/tasks/`. Rows come from the source that the user names; they
are shuffled by the task's own split seed; no text is used twice, whatever its case and punctuation.

How a source's rows are read stands in its entry under `sources`: `text` is a column, or a template
over the columns; `label` a column of class numbers, or of one of `values`; `rating` a column that
is a class above `threshold` and another below its negative. An option task names its two `options`
and either the column with a `blank` that they fill, or the `context` that they follow. An answer
task names its `answer`. Rows that share their `group` stay in one part. A task of scoring "image"
names the column `image` with the pictures' files, and so do one of scoring "style", whose pictures
are to be painted and have no labels, and those about pictures and texts: a
"question" about a picture, and a "match" of pictures with their texts, whose rows of one `label`
belong together; a list of texts makes a row of each. `part` is a column that parts the rows.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from string import Formatter
from zlib import crc32

import numpy as np
import pandas as pd

from oral_lib.assets import sources
from oral_lib.errors import PreflightError, UsageError
from oral_lib.tasks import images
from oral_lib.tasks.task import PAIRED, Task, load_task


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


MADE = {"train": 6000, "validation": 600, "test": 1500}  # rows that the smoke scale makes
MADE_PAIRS = {"train": 600, "validation": 100, "test": 300}
FILLER = tuple("the a of it and was in this that with for on but at from".split())  # noqa: SIM905


@lru_cache(maxsize=2)
def _whole(name: str, source: str) -> Split:
    """The rows of a task of which splits are made, read once."""
    return task_rows(load_task(name), source)


def task_rows(task: Task, source: str) -> Split:
    """The rows of `task` from `source`: "packages", "local:DIR", "hub" or "made".

    Rows are shuffled by the split seed. Where the source has its own test split it is kept whole
    up to the size wanted; elsewhere test, validation and train are cut from one list in this order.
    """
    if task.of:
        whole, parts = _whole(task.of, source), ("train", "validation", "test")
        return Split(
            whole.source,
            **{
                part: tuple(
                    replace(row, label=int(row.label in task.positive))
                    for row in getattr(whole, part)
                )
                for part in parts
            },
        )
    kind, folder = sources.parse_source(source)
    if kind == "made":
        sizes = MADE_PAIRS if task.scoring in (*PAIRED, "style") else MADE
        return cut(kind, sizes, task.split["seed"], _made(task, sum(sizes.values())))
    if kind not in task.sources:
        raise UsageError(
            f"task {task.name!r} has no rows in source {kind!r}; it has {', '.join(task.sources)}."
        )
    spec, sizes = task.sources[kind], task.split[kind]
    if "part" in spec:
        frame = _packaged(spec)
        parts = {part: _read(task, some, spec, part) for part, some in frame.groupby(spec["part"])}
        return cut(
            kind, sizes, task.split["seed"], parts["train"], parts["test"], parts["validation"]
        )
    if kind == "packages":
        frame = _packaged(spec)
        group = frame[spec["group"]].tolist() if "group" in spec else None
        return cut(kind, sizes, task.split["seed"], _read(task, frame, spec, "all"), group=group)

    def frame_of(part: str) -> pd.DataFrame:
        if kind == "local":
            frame = sources.local_rows(folder, spec["set"], spec[part])
        else:
            frame = sources.hub_rows(spec["repo"], spec["config"], spec[part], spec["revision"])
        if task.scoring == "match":  # a picture and all of its texts belong together
            _check_columns(task, frame, [spec["text"]])
            frame = frame.assign(label=range(len(frame))).explode(spec["text"], ignore_index=True)
        return frame

    train, test = frame_of("train"), frame_of("test")
    _check_columns(task, train, [spec["group"]] if "group" in spec else [])
    group = train[spec["group"]].tolist() if "group" in spec else None
    parts = [_read(task, train, spec, "train"), _read(task, test, spec, "test")]
    return cut(kind, sizes, task.split["seed"], *parts, group=group)


def full_rows(task: Task, source: str, parts: Sequence[str] = ("train", "validation")) -> Split:
    """`task_rows` of a task that is to be learnt: PreflightError where one of `parts` has none."""
    split = task_rows(task, source)
    sizes = {part: len(getattr(split, part)) for part in parts}
    if not all(sizes.values()):
        there = ", ".join(f"{n} {part}" for part, n in sizes.items())
        raise PreflightError(
            f"task {task.name!r}: too few different rows in source {source!r} ({there}). "
            "Check the data set."
        )
    return split


def _read(task: Task, frame: pd.DataFrame, spec: dict, part: str) -> list[Row]:
    """The rows of `frame` in its order, read as the source's `spec` says.

    PreflightError that names the row for one that is not as the task's rows are.
    """

    def shown(row: dict) -> dict:
        if task.scoring in ("image", "style"):
            return {"text": "", "image": images.encoded(row[spec["image"]])}
        if task.scoring in PAIRED:
            about = {"image": images.encoded(row[spec["image"]]), "kind": row.get("kind", "")}
            return {"text": _filled(spec["text"], row)} | about
        return {"text": _filled(spec["text"], row)}

    found = []
    for i, row in enumerate(frame.to_dict("records")):
        try:
            found.append(Row(f"{task.name}-{part}-{i}", **shown(row), **_truth(task, row, spec)))
        except KeyError as error:
            _check_columns(task, frame, error.args)
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise PreflightError(
                f"task {task.name!r}: row {i} of {part} cannot be read ({error}). It holds "
                f"{_short(row)}. Check the data set."
            ) from error
    return found


def _check_columns(task: Task, frame: pd.DataFrame, wanted: Iterable[str]) -> None:
    """PreflightError for a column that is not there."""
    if lacking := [name for name in wanted if name not in frame.columns]:
        raise PreflightError(
            f"task {task.name!r}: the data set has no column {lacking[0]!r}; it has "
            f"{', '.join(map(str, frame.columns))}."
        )


def _short(row: dict, most: int = 60) -> str:
    """The cells of a row, long ones cut."""
    cells = {name: repr(cell) for name, cell in row.items()}
    return ", ".join(f"{n}: {c if len(c) <= most else c[:most] + '...'}" for n, c in cells.items())


def _filled(form: str, row: dict) -> str:
    """The column called `form`, or the template `form` over the columns; TypeError for an empty
    cell."""
    names = [name for _, name, *_ in Formatter().parse(form) if name] if "{" in form else [form]
    for name in names:
        if row[name] is None or row[name] != row[name]:  # NaN
            raise TypeError(f"{name!r} is empty")
    text = form.format_map(row) if "{" in form else row[form]
    if not isinstance(text, str):
        raise TypeError(f"{form!r} is no text")
    return text


def _truth(task: Task, row: dict, spec: dict) -> dict:
    """What a row says beside its text: label and options, or answer and target."""
    if task.scoring == "answer":
        return {"label": 0} | _solved(row[spec["answer"]])
    if task.scoring == "style":
        return {"label": 0}
    found = row[spec.get("label", "label")]
    if task.scoring == "match":
        return {"label": int(found)}
    known = spec.get("values", range(len(task.labels)))
    if found not in known:
        raise PreflightError(
            f"task {task.name!r}: a row has the label {found!r}, which is none of "
            f"{', '.join(map(str, known))}. Check the data set."
        )
    return {"label": known.index(found), "options": _options(task, row, spec)}


def _options(task: Task, row: dict, spec: dict) -> tuple[tuple[str, str], ...]:
    """((context, continuation), ...) as lm-evaluation-harness has them; () of a label task.

    Where a sentence has a blank, each context ends with an option and the continuation is the
    same: the rest of the sentence. Elsewhere the context is the same.
    """
    if task.scoring != "option":
        return ()
    options = [row[column] for column in spec["options"]]
    if "blank" in spec:
        before, blank, rest = row[spec["blank"]].partition("_")
        if not blank:
            raise PreflightError(
                f"task {task.name!r}: the sentence {before[:60]!r} has no _ to fill. "
                "Check the data set."
            )
        return tuple((before + option, " " + rest.strip()) for option in options)
    return tuple((spec["context"].format_map(row), " " + option) for option in options)


def _solved(text: str) -> dict[str, str]:
    """Answer and target of a solution that ends with "#### " and its number, or is that number.

    Notes of a calculator, <<3*4=12>>, are left out: a model that reads has none.
    """
    if not isinstance(text, str):
        raise TypeError("the answer is no text")
    steps, mark, last = text.rpartition("####")
    answer = re.sub("[,$]", "", last.strip())
    steps = re.sub("<<.*?>>", "", steps).strip()
    return {"answer": answer, "target": f" {steps}\n#### {answer}" if mark else f" {answer}"}


def _packaged(spec: dict) -> pd.DataFrame:
    """One set with labels, answers or mean ratings, or sets whose place is the label."""
    if "sets" in spec:
        frames = [sources.package_rows(name).assign(label=i) for i, name in enumerate(spec["sets"])]
        fewest = min(map(len, frames))
        return pd.concat([f.sample(fewest, random_state=0) for f in frames], ignore_index=True)
    frame = sources.package_rows(spec["set"])
    if "names" in spec:  # of the labels, for the texts
        frame = frame.assign(name=[spec["names"][label] for label in frame["label"]])
    if "only" in spec:  # the values that some columns may have
        frame = frame[frame[list(spec["only"])].isin(spec["only"]).all(axis=1)]
    if "rating" in spec:
        clear = frame[frame[spec["rating"]].abs() > spec["threshold"]]
        frame = clear.assign(label=(clear[spec["rating"]] > 0).astype(int))
    return frame


def _made(task: Task, n: int) -> list[Row]:
    """`n` short texts for the smoke scale, one marker word of a class among fillers; or pictures.

    The options of a made row are the class names, its answer is the first marker of its class.
    """
    rng = np.random.default_rng(task.split["seed"])
    if task.scoring == "image":
        many, turn = len(task.labels), crc32(task.name.encode()) / 2**32
        classes = rng.integers(0, many, n).tolist()
        files = [images.made(label, many, rng, turn) for label in classes]
        return [
            Row(f"{task.name}-all-{i}", "", label, image=file)
            for i, (label, file) in enumerate(zip(classes, files, strict=True))
        ]
    if task.scoring == "style":
        turn = crc32(task.name.encode()) / 2**32
        files = [images.styled(rng, turn) for _ in range(n)]
        return [Row(f"{task.name}-all-{i}", "", 0, image=file) for i, file in enumerate(files)]
    if task.scoring in PAIRED:
        return [_made_pair(task, f"{task.name}-all-{i}", rng) for i in range(n)]
    classes = rng.integers(0, len(task.made), n)
    made = []
    for i, label in enumerate(classes.tolist()):
        words = list(rng.choice(FILLER, size=rng.integers(3, 7)))
        words.insert(int(rng.integers(0, len(words))), str(rng.choice(task.made[label])))
        text, answer = " ".join(words), task.made[label][0]
        mark = "#### " if "####" in task.extract else ""
        truth = {"label": 0, "answer": answer, "target": f" {mark}{answer}"}
        if task.scoring != "answer":
            context = task.prompt(text)
            options = [(context, f" {word}") for word in task.labels]
            truth = {"label": label, "options": tuple(options) if task.scoring == "option" else ()}
        made.append(Row(f"{task.name}-all-{i}", text, **truth))
    return made


def _made_pair(task: Task, key: str, rng: np.random.Generator) -> Row:
    """A picture of a class, and a text with a marker word: of the same class where they match or
    the answer is the second of two, of another where it is the first. Of more than two answers the
    class is the right one, and the text asks for nothing else."""
    many = len(task.made)
    shown = int(rng.integers(0, many))
    named, label = shown, shown
    if len(task.labels) == 2:
        label = int(rng.integers(0, 2))
        named = shown if label else int(shown + rng.integers(1, many)) % many
    words = [*rng.choice(FILLER, size=3), rng.choice(task.made[named])]
    if len(task.labels) > 2:
        words = list(rng.choice(FILLER, size=4))
    turn = crc32(task.name.encode()) / 2**32
    return Row(key, " ".join(words), label, image=images.made(shown, many, rng, turn), kind="made")
