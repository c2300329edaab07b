"""Tasks: description, paraphrases, prompt template, labels, scoring and sources of rows.

`oral_lib/tasks/` has one YAML file a task, whose keys are the fields of `Task`. Binary tasks are
derived from a task with ten classes (`binary.py`).
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import resources

from oral_lib.documents.document import load_yaml
from oral_lib.documents.words import short
from oral_lib.errors import UsageError, closest
from oral_lib.tasks import binary
from oral_lib.tasks.task_schema import SCORINGS, check_task

PAIRED = ("question", "match")  # scorings of an image with a text
_NAME = "[a-z][a-z0-9_]*"  # of a task; a file of another name is not a task


@dataclass(frozen=True)
class Task:
    """A task as its YAML file defines it.

    The generators are trained on the paraphrases `train`. Choices are made on the paraphrases
    `development`. The paraphrases `test` are for the evaluation of a release only: no choice may
    depend on them.

    >>> task = load_task("movie")
    >>> task.labels, task.prompt("A fine film.").splitlines()[0]
    (['negative', 'positive'], 'Review: A fine film.')
    """

    name: str
    version: int
    family: str
    description: str
    paraphrases: dict[str, list[str]]  # train, development, test
    labels: list[str]
    metric: str
    split: dict  # the seed, and the maximum number of rows by source and part
    sources: dict[str, dict]
    template: str = ""  # prompt of a causal model, with {text}
    examples: list[dict] = field(default_factory=list)
    marker_words: list[list[str]] = field(default_factory=list)  # by class, of synthetic rows
    max_tokens: int = 64  # maximum number of tokens of a prompt
    scoring: str = "label"  # one of SCORINGS
    substitute: str = ""  # the task that replaces it in the source "packages"
    answer_pattern: str = ""  # regular expression whose group is the answer in a generated text
    max_new_tokens: int = 0  # maximum number of generated tokens
    stop_strings: list[str] = field(default_factory=list)  # strings that end a generated text
    of: str = ""  # of a binary task: the task that it is derived from
    positive: frozenset[int] = frozenset()  # of a binary task: the classes that mean yes

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise UsageError(
                f"task {self.name!r}: unknown scoring {self.scoring!r}; use {', '.join(SCORINGS)}."
            )
        if self.scoring == "answer" and not (self.answer_pattern and self.max_new_tokens > 0):
            raise UsageError(
                f"task {self.name!r}: scoring 'answer' requires `answer_pattern` and "
                "`max_new_tokens`."
            )
        if self.scoring in ("label", "option", "answer") and not self.template:
            raise UsageError(f"task {self.name!r}: scoring {self.scoring!r} requires a `template`.")
        if unsized := set(self.sources) - set(self.split):
            raise UsageError(
                f"task {self.name!r}: no sizes for the source {', '.join(sorted(unsized))}; "
                "put train, validation and test under its name in `split`."
            )

    def prompt(self, text: str) -> str:
        """The prompt that a causal model continues with a label word or an answer."""
        return self.template.format(text=text)

    def extracted(self, generated: str) -> str:
        """The answer in `generated` without commas, dollar signs and final full stop, or ""."""
        for stop in self.stop_strings:
            generated = generated.split(stop)[0]
        match = re.search(self.answer_pattern, generated)
        return re.sub(r"[,$]|\.$", "", match[1]) if match else ""

    @property
    def training_texts(self) -> list[str]:
        """Texts that a generator may be trained on: description and training paraphrases."""
        return [self.description, *self.paraphrases["train"]]


def task_names(family: str = "") -> list[str]:
    """The names of tasks, sorted.

    Args:
        family: only of this family, such as "language" or "vision"; empty: all.

    >>> task_names("vision")[:3]
    ['cifar10', 'digits', 'easy_vqa_colour']
    """
    files = [file.name for file in (resources.files("oral_lib") / "tasks").iterdir()]
    names = sorted(m[1] for file in files if (m := re.fullmatch(rf"({_NAME})\.yaml", file)))
    return [task.name for task in valid_tasks(family)] if family else names


def valid_tasks(family: str = "") -> list[Task]:
    """The tasks, sorted by name; a task whose file is invalid is left out with a warning.

    Args:
        family: only of this family; empty: all.
    """
    tasks = [task for name in task_names() if (task := _valid_task(name))]
    return [task for task in tasks if family in ("", task.family)]


@cache
def _valid_task(name: str) -> Task | None:
    try:
        return load_task(name)
    except UsageError as error:
        print(f"warning: the task {name!r} is left out: {error}", file=sys.stderr)
        return None


def wordings_hash(names: Iterable[str]) -> str:
    """SHA-256 over the training texts of the tasks `names`, in their order."""
    text = json.dumps([[name, load_task(name).training_texts] for name in names])
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def load_task(name: str) -> Task:
    """The task called `name`.

    Args:
        name: that of a YAML file in oral_lib/tasks, or of a binary task (`tasks.binary`).

    Raises:
        UsageError: there is no such task, or its file is invalid. The message has the closest
            name, or file and line.

    >>> load_task("rte").substitute
    'corr2cause'
    """
    if parts := binary.parse(name):
        return _binary_task(name, *parts)
    names = task_names()
    if name not in names:
        rule = ""
        files = (file.name for file in (resources.files("oral_lib") / "tasks").iterdir())
        if f"{name}.yaml" in files:
            rule = " A name has lower-case letters, digits and '_', and begins with a letter."
        raise UsageError(
            f"unknown task {short(name)}.{rule}{closest(name, names)} Known: {', '.join(names)}."
        )
    file = f"{name}.yaml"
    document = load_yaml(resources.files("oral_lib") / "tasks" / file, file)
    check_task(document, name)
    substitute = document.content.get("substitute", name)
    if substitute not in names:
        near = closest(substitute, names)
        raise document.error(f"there is no task {substitute!r}.{near}", "substitute")
    return Task(**document.content)


def _binary_task(name: str, of: str, positive: frozenset[int]) -> Task:
    """The task whose label is yes for the classes `positive` of the task `of`, else no."""
    sentence = partial(binary.sentence, of=of, positive=positive)
    return replace(
        load_task(of),
        name=name,
        description=sentence(binary.DESCRIPTION),
        paraphrases={part: [sentence(f) for f in forms] for part, forms in binary.WORDINGS.items()},
        labels=["no", "yes"],
        metric="balanced_accuracy",
        substitute="",
        of=of,
        positive=positive,
    )
