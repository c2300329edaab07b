"""Lists for people: the base models that adapters can be generated for, and the tasks.

Nothing here imports torch or pandas.
"""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oral_lib import scales
from oral_lib.assets import sources
from oral_lib.errors import OralError
from oral_lib.models import registry
from oral_lib.tasks import task as task_files
from oral_lib.tasks.task import Task
from oral_lib.zoo.run_folders import StoredGenerator

if TYPE_CHECKING:
    from oral_lib.prompting.answers import Answer

WIDTH = 100
LABELS = 4  # shown in the list


# ---------------------------------------------------------------- base models
def base_lines(generators: Sequence[StoredGenerator], where: str | Path) -> Iterator[str]:
    """The lines of the list of base models.

    Args:
        generators: the generators here, in the order of choice.
        where: the folder in which they were looked for.
    """
    usable = [generator for generator in generators if not generator.fault]
    names = list(dict.fromkeys(name for generator in usable for name in generator.bases))
    if names:
        yield "adapters can be generated for (as the files of the generators say):"
        rows = [("base model", "kind", "generators")]
        for name in names:
            runs = [generator.run for generator in usable if name in generator.bases]
            rows.append((_printable(name), _kind(name), ", ".join(runs)))
        yield from columns(rows)
        if len(usable) > 1:
            yield "of several generators the first is taken; --scale and --source choose another"
    else:
        yield f"there is no generator in {where}: run ./reproduce.sh to train one"
    for generator in generators:
        if generator.release:
            yield f"the released generator {generator.release} is in {generator.folder}"
        if generator.fault:
            yield f"not usable: {generator.folder}: {generator.fault}"
    yield "further base models, by the scale whose run trains a generator for them:"
    for scale in scales.SCALES:
        planned = [
            plan.base
            for experiment in scales.experiments(scale)
            for plan in scales.base_plans(scale, experiment=experiment)
        ]
        others = ", ".join(name for name in dict.fromkeys(planned) if name not in names)
        yield from textwrap.wrap(
            others or "none",
            WIDTH,
            initial_indent=f"  {scale:7}",
            subsequent_indent=9 * " ",
            break_on_hyphens=False,
        )
    yield "other sources (local:DIR, hub) have more: see ./reproduce.sh --list --source SOURCE"


def _kind(name: str) -> str:
    entry = registry.REGISTRY.get(name)
    return entry.family if entry else "your own"


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


# ---------------------------------------------------------------- tasks
def task_lines(source: str, generators: Sequence[StoredGenerator] = ()) -> Iterator[str]:
    """The lines of the list of tasks; a task whose file is broken is one line with the reason.

    Args:
        source: a source; whether its rows are on this machine is shown.
        generators: a mark shows the tasks whose adapters one of them was trained on.
    """
    kind, _ = sources.parse_source(source)
    zoo_tasks = {task for generator in generators for task in generator.tasks}
    head = ("task", "generated", "kind", "scoring", "labels", "sources", f"rows here ({kind})")
    rows, broken = [head], []
    for name in task_files.task_names():
        try:
            task = task_files.load_task(name)
        except OralError as error:
            broken.append(f"broken: {name}: {error}")
            continue
        cells = (
            name,
            "yes" if name in zoo_tasks else "-",
            task.family,
            task.scoring,
            label_list(task),
            ", ".join(task.sources),
        )
        rows.append((*cells, _rows_here(task, source)))
    yield from columns(rows)
    yield from broken
    yield "generated: a generator here makes adapters for the task"
    yield "every task also has made rows, for the scale smoke; `tasks NAME` shows one task"
    if kind == "packages":
        yield "`assets` downloads the rows of source packages"


def task_detail(task: Task, source: str) -> Iterator[str]:
    """The lines that describe one task."""
    yield f"{task.name}: {task.description}"
    rows = [
        ("kind", f"{task.family}, scored by {task.scoring} ({task.metric})"),
        ("labels", ", ".join(task.labels) or "none"),
        ("sources", ", ".join(task.sources) or "made"),
        ("rows here", f"{_rows_here(task, source)} ({source})"),
        ("wordings", _wordings(task)),
    ]
    if task.template:
        rows.append(("prompt", repr(task.template)))
    yield from columns(rows, heading=False)


def _wordings(task: Task) -> str:
    counts = [len(task.paraphrases[part]) for part in ("development", "test")]
    return "{} for training, {} for development, {} for test".format(
        len(task.training_texts), *counts
    )


def label_list(task: Task) -> str:
    """The labels of a task in a line, at most `LABELS` of them; "-" for a task without labels."""
    if not task.labels:
        return "-"
    if len(task.labels) > LABELS:
        return f"{task.labels[0]}, {task.labels[1]}, ... ({len(task.labels)})"
    return ", ".join(task.labels)


def _rows_here(task: Task, source: str) -> str:
    """Whether the rows of a task from `source` are on this machine."""
    kind, folder = sources.parse_source(source)
    if kind == "made":
        return "yes"
    if kind not in task.sources:
        return "-"
    entry = task.sources[kind]
    if kind == "packages" or "part" in entry:
        names = entry.get("sets") or [entry["set"]]
        return "yes" if all(map(sources.is_stored, names)) else "no"
    if kind == "hub":
        return "on the hub"
    files = [folder / entry["set"] / f"{entry[part]}.parquet" for part in ("train", "test")]
    return "yes" if all(file.is_file() for file in files) else "no"


# ---------------------------------------------------------------- answers
def answer_lines(
    rows: Sequence[Sequence["Answer"]], names: Sequence[str], images: Sequence[Path] | None = None
) -> Iterator[str]:
    """The lines of a table of answers.

    Args:
        rows: the answers to each input.
        names: what gave them, a column each.
        images: the image of each input, if there are any.
    """
    table = [("input", *names)]
    for number, answers in enumerate(rows):
        parts = [answers[0].text, *([str(images[number % len(images)])] if images else [])]
        words = " | ".join(part for part in parts if part)
        table.append((_cell(words), *(_cell(_best(answer)) for answer in answers)))
    yield from columns(table)


def _best(answer: "Answer") -> str:
    """The answer, with its probability if there are labels."""
    if not answer.probabilities:
        return str(answer)
    return f"{answer.answer} ({max(answer.probabilities.values()):.0%})"


def _cell(text: str, most: int = 60) -> str:
    """`text` in one line of at most `most` letters."""
    line = " ".join(_printable(" ".join(text.split())).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


# ---------------------------------------------------------------- tables
def columns(rows: Sequence[Sequence[str]], *, heading: bool = True) -> Iterator[str]:
    """The lines of a table in columns; the first row is its heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  " + "  ".join(cells).rstrip()
        if heading and number == 0:
            yield "  " + "  ".join("-" * width for width in widths)
