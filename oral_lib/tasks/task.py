"""tasks.task."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources

import yaml

from oral_lib.errors import UsageError, closest
from oral_lib.tasks import binary

SCORINGS = ("label", "option", "answer", "image", "question", "match", "style")

PAIRED = ("question", "match")  # a picture and a text


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


def task_names(family: str = "") -> list[str]:
    """All task names, or those of one family ("language", "vision"), sorted."""
    folder = resources.files("oral_lib") / "tasks"
    found = sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )
    return [name for name in found if load_task(name).family == family] if family else found


def wordings_hash(known: Iterable[str]) -> str:
    """A hash of the wordings that a training on the tasks called `known` reads."""
    text = json.dumps([[name, load_task(name).training_texts] for name in known])
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def load_task(name: str) -> Task:
    """The task called `name`, of a file or a split (`splits.py`); `UsageError` with the nearest
    name if there is none."""
    if split := binary.parsed(name):
        return _split(name, *split)
    if name not in task_names():
        raise UsageError(
            f"unknown task {name!r}.{closest(name, task_names())} Known: {', '.join(task_names())}."
        )
    text = (resources.files("oral_lib") / "tasks" / f"{name}.yaml").read_text(encoding="utf-8")
    return Task(**yaml.safe_load(text))


def _split(name: str, of: str, positive: frozenset[int]) -> Task:
    """The task that says yes to the classes `positive` of the task called `of`."""

    def told(form: str) -> str:
        return binary.sentence(form, of, positive)

    return replace(
        load_task(of),
        name=name,
        description=told(binary.DESCRIPTION),
        paraphrases={part: [told(f) for f in forms] for part, forms in binary.WORDINGS.items()},
        labels=["no", "yes"],
        metric="balanced_accuracy",
        stand_in="",
        of=of,
        positive=positive,
    )
