"""Tasks: what is asked in words, how a row becomes a prompt, and which rows train, tune and test.

One YAML file a task lies in `oral_lib/tasks/`. Rows come from the source that the user names; they
are shuffled by the task's own split seed; no text is used twice, whatever its case and punctuation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd
import yaml

from oral_lib import assets
from oral_lib.errors import UsageError, closest

SCORINGS = ("label", "option", "answer")
FILLER = tuple("the a of it and was in this that with for on but at from".split())  # noqa: SIM905


@dataclass(frozen=True)
class Row:
    """One text to judge; `key` is stable across runs, so any two methods can be paired.

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


@dataclass(frozen=True)
class Split:
    """The rows of one task from one source; `source` is what the result table prints."""

    source: str
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]


@dataclass(frozen=True)
class Task:
    """A task as its YAML file states it."""

    name: str
    version: int
    family: str
    description: str
    paraphrases: dict[str, list[str]]
    examples: list[dict]
    labels: list[str]
    template: str
    metric: str
    split: dict[str, int]
    sources: dict[str, dict]
    made: list[list[str]]
    words: int = 64  # tokens that a prompt may hold
    scoring: str = "label"  # one of SCORINGS: how a model is asked
    stand_in: str = ""  # the task that stands in where only packages ship rows
    extract: str = ""  # the answer in a generated text: one group of a regular expression
    new_tokens: int = 0  # how many tokens an answer may take

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise UsageError(
                f"task {self.name!r}: scoring {self.scoring!r} is none of {', '.join(SCORINGS)}."
            )
        if self.scoring == "answer" and not (self.extract and self.new_tokens > 0):
            raise UsageError(f"task {self.name!r}: an answer needs `extract` and `new_tokens`.")

    def prompt(self, text: str) -> str:
        """The prompt that a causal model continues with one of the label words."""
        return self.template.format(text=text)

    def extracted(self, generated: str) -> str:
        """The final answer in `generated`, bare of commas, dollar signs and a full stop; or ""."""
        found = re.search(self.extract, generated)
        return re.sub(r"[,$]|\.$", "", found[1]) if found else ""

    @property
    def training_texts(self) -> list[str]:
        """The wordings a generator may see: the description and its training paraphrases."""
        return [self.description, *self.paraphrases["train"]]


def names() -> list[str]:
    """All task names, sorted."""
    folder = resources.files("oral_lib") / "tasks"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


@cache
def load(name: str) -> Task:
    """The task called `name`; `UsageError` with the nearest name if there is none."""
    if name not in names():
        raise UsageError(
            f"unknown task {name!r}.{closest(name, names())} Known: {', '.join(names())}."
        )
    text = (resources.files("oral_lib") / "tasks" / f"{name}.yaml").read_text(encoding="utf-8")
    return Task(**yaml.safe_load(text))


def rows(task: Task, source: str) -> Split:
    """The rows of `task` from `source`: "packages", "local:DIR", "hub" or "made".

    Rows are shuffled by the split seed. Where the source has its own test split it is kept whole
    up to the size wanted; elsewhere test, validation and train are cut from one list in this order.
    """
    kind, folder = assets.parse_source(source)
    if kind == "made":
        return _cut(task, kind, _made(task, sum(v for k, v in task.split.items() if k != "seed")))
    if kind not in task.sources:
        raise UsageError(
            f"task {task.name!r} has no rows in source {kind!r}; it has {', '.join(task.sources)}."
        )
    spec = task.sources[kind]
    if kind == "packages":
        return _cut(task, kind, _packaged(spec))

    def read(part: str) -> pd.DataFrame:
        if kind == "local":
            frame = assets.local_rows(folder, spec["set"], spec[part])
        else:
            frame = assets.hub_rows(spec["repo"], spec["config"], spec[part], spec["revision"])
        return pd.DataFrame({"text": _texts(frame, spec["text"]), "label": frame[spec["label"]]})

    return _cut(task, kind, read("train"), read("test"))


def _texts(frame: pd.DataFrame, form: str) -> list[str]:
    """One text a row: the column called `form`, or the template `form` over the columns."""
    if "{" not in form:
        return frame[form].tolist()
    return [form.format_map(row) for row in frame.to_dict("records")]


def _packaged(spec: dict) -> pd.DataFrame:
    """[text, label] of one set with labels or mean ratings, or of sets whose place is the label."""
    if "sets" in spec:
        frames = [assets.rows(name).assign(label=i) for i, name in enumerate(spec["sets"])]
        fewest = min(map(len, frames))
        return pd.concat([f.sample(fewest, random_state=0) for f in frames], ignore_index=True)
    frame = assets.rows(spec["set"])
    if "rating" in spec:
        clear = frame[frame[spec["rating"]].abs() > spec["threshold"]]
        frame = clear.assign(label=(clear[spec["rating"]] > 0).astype(int))
    return frame


def _made(task: Task, n: int) -> pd.DataFrame:
    """`n` short texts for the smoke scale: one marker word of a class among fillers."""
    rng = np.random.default_rng(task.split["seed"])
    labels = rng.integers(0, len(task.made), n)
    texts = []
    for label in labels:
        words = list(rng.choice(FILLER, size=rng.integers(3, 7)))
        words.insert(int(rng.integers(0, len(words))), str(rng.choice(task.made[label])))
        texts.append(" ".join(words))
    return pd.DataFrame({"text": texts, "label": labels})


def _cut(task: Task, source: str, frame: pd.DataFrame, test: pd.DataFrame | None = None) -> Split:
    seed, sizes = task.split["seed"], task.split
    keep = _listed(task, frame, seed, "train" if test is not None else "all")
    held = keep if test is None else _listed(task, test, seed, "test")
    seen: set[str] = set()  # grows in this order: the test rows choose first
    return Split(
        source,
        test=_fresh(held, sizes["test"], seen),
        validation=_fresh(keep, sizes["validation"], seen),
        train=_fresh(keep, sizes["train"], seen),
    )


def _fresh(rows: Sequence[Row], n: int, seen: set[str]) -> tuple[Row, ...]:
    """The first `n` rows whose text is not in `seen` yet, whatever its case and punctuation."""
    chosen = []
    for row in rows:
        bare = " ".join(re.findall(r"\w+", row.text.casefold()))
        if len(chosen) < n and bare not in seen:
            seen.add(bare)
            chosen.append(row)
    return tuple(chosen)


def _listed(task: Task, frame: pd.DataFrame, seed: int, part: str) -> Sequence[Row]:
    order = np.random.default_rng(seed).permutation(len(frame))
    texts, labels = frame["text"].tolist(), frame["label"].tolist()
    return [Row(f"{task.name}-{part}-{i}", texts[i].strip(), int(labels[i])) for i in order]
