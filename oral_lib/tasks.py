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

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from importlib import resources
from string import Formatter
from zlib import crc32

import numpy as np
import pandas as pd
import yaml

from oral_lib import images, splits
from oral_lib.assets import sources as assets
from oral_lib.errors import PreflightError, UsageError, closest
from oral_lib.partition import Row, Split, cut

SCORINGS = ("label", "option", "answer", "image", "question", "match", "style")
PAIRED = ("question", "match")  # a picture and a text
MADE = {"train": 6000, "validation": 600, "test": 1500}  # rows that the smoke scale makes
MADE_PAIRS = {"train": 600, "validation": 100, "test": 300}
FILLER = tuple("the a of it and was in this that with for on but at from".split())  # noqa: SIM905


@dataclass(frozen=True)
class Task:
    """A task as its YAML file states it."""

    name: str
    version: int
    family: str
    description: str
    paraphrases: dict[str, list[str]]
    labels: list[str]
    metric: str
    split: dict  # the seed, and for each source how many rows train, tune and test at most
    sources: dict[str, dict]
    template: str = ""  # of what a causal model reads
    examples: list[dict] = field(default_factory=list)
    made: list[list[str]] = field(default_factory=list)  # marker words of made texts
    words: int = 64  # tokens that a prompt may hold
    scoring: str = "label"  # one of SCORINGS: how a model is asked
    stand_in: str = ""  # the task that stands in where only packages ship rows
    extract: str = ""  # the answer in a generated text: one group of a regular expression
    new_tokens: int = 0  # how many tokens an answer may take
    stops: list[str] = field(default_factory=list)  # where a generated text is cut off
    of: str = ""  # the task whose rows these are, where yes means `positive` classes of it
    positive: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise UsageError(
                f"task {self.name!r}: scoring {self.scoring!r} is none of {', '.join(SCORINGS)}."
            )
        if self.scoring == "answer" and not (self.extract and self.new_tokens > 0):
            raise UsageError(f"task {self.name!r}: an answer needs `extract` and `new_tokens`.")
        if self.scoring in ("label", "option", "answer") and not self.template:
            raise UsageError(f"task {self.name!r}: a task about texts needs a `template`.")
        if unsized := set(self.sources) - set(self.split):
            raise UsageError(
                f"task {self.name!r}: no sizes for the source {', '.join(sorted(unsized))}; "
                "put train, validation and test under its name in `split`."
            )

    def prompt(self, text: str) -> str:
        """The prompt that a causal model continues with one of the label words."""
        return self.template.format(text=text)

    def extracted(self, generated: str) -> str:
        """The final answer in `generated`, bare of commas, dollar signs and a full stop; or ""."""
        for stop in self.stops:
            generated = generated.split(stop)[0]
        found = re.search(self.extract, generated)
        return re.sub(r"[,$]|\.$", "", found[1]) if found else ""

    @property
    def training_texts(self) -> list[str]:
        """The wordings a generator may see: the description and its training paraphrases."""
        return [self.description, *self.paraphrases["train"]]


def names(family: str = "") -> list[str]:
    """All task names, or those of one family ("language", "vision"), sorted."""
    folder = resources.files("oral_lib") / "tasks"
    found = sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )
    return [name for name in found if load(name).family == family] if family else found


def told(known: Iterable[str]) -> str:
    """A hash of the wordings that a training on the tasks called `known` reads."""
    text = json.dumps([[name, load(name).training_texts] for name in known])
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def load(name: str) -> Task:
    """The task called `name`, of a file or a split (`splits.py`); `UsageError` with the nearest
    name if there is none."""
    if split := splits.parsed(name):
        return _split(name, *split)
    if name not in names():
        raise UsageError(
            f"unknown task {name!r}.{closest(name, names())} Known: {', '.join(names())}."
        )
    text = (resources.files("oral_lib") / "tasks" / f"{name}.yaml").read_text(encoding="utf-8")
    return Task(**yaml.safe_load(text))


def _split(name: str, of: str, positive: frozenset[int]) -> Task:
    """The task that says yes to the classes `positive` of the task called `of`."""

    def told(form: str) -> str:
        return splits.sentence(form, of, positive)

    return replace(
        load(of),
        name=name,
        description=told(splits.DESCRIPTION),
        paraphrases={part: [told(f) for f in forms] for part, forms in splits.WORDINGS.items()},
        labels=["no", "yes"],
        metric="balanced_accuracy",
        stand_in="",
        of=of,
        positive=positive,
    )


@lru_cache(maxsize=2)
def _whole(name: str, source: str) -> Split:
    """The rows of a task of which splits are made, read once."""
    return rows(load(name), source)


def rows(task: Task, source: str) -> Split:
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
    kind, folder = assets.parse_source(source)
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
            frame = assets.local_rows(folder, spec["set"], spec[part])
        else:
            frame = assets.hub_rows(spec["repo"], spec["config"], spec[part], spec["revision"])
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
    """`rows` of a task that is to be learnt: PreflightError where one of `parts` has none."""
    split = rows(task, source)
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
        frames = [assets.rows(name).assign(label=i) for i, name in enumerate(spec["sets"])]
        fewest = min(map(len, frames))
        return pd.concat([f.sample(fewest, random_state=0) for f in frames], ignore_index=True)
    frame = assets.rows(spec["set"])
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
