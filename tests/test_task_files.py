"""Task files: a fault is one line with file, line and key, and breaks no other task."""

import shutil
from functools import cache
from importlib import resources
from pathlib import Path

import pytest
import yaml

from oral_lib.errors import UsageError
from oral_lib.tasks import task as tasks
from oral_lib.tasks.task import load_task, task_names, valid_tasks

SHIPPED = Path(str(resources.files("oral_lib"))) / "tasks"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the task files, of which tasks are loaded."""
    copy = tmp_path / "tasks"
    shutil.copytree(SHIPPED, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(tasks.resources, "files", lambda _: tmp_path)
    for name in ("load_task", "_valid_task"):
        monkeypatch.setattr(tasks, name, cache(getattr(tasks, name).__wrapped__))
    return copy


def changed(folder, name, old, new):
    """Changes a task's file; the line of the change."""
    file = folder / f"{name}.yaml"
    text = file.read_text()
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize("name", task_names())
def test_a_shipped_file_is_read_as_any_yaml_library_reads_it(name):
    content = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    assert {key: getattr(load_task(name), key) for key in content} == content


LABELS, SIZES = "labels: [negative, positive]", "{train: 6000, validation: 600, test: 1500}"
SOURCE = "{set: movie_snippets, text: text, rating: rating, threshold: 0.5}"
TEMPLATE = 'template: "Review: {text}\\nSentiment:"'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (LABELS, "labels: [no, yes]", "labels[0]: 'no' is read in several ways"),
        (LABELS, "labels: [on, off]", "labels[0]: 'on' is read"),
        (LABELS, "labels: [a, y]", "labels[1]: 'y' is read"),
        (LABELS, "labels: [1.0, 2.0]", "labels[0]: must be a text, got 1.0: put it in quotes"),
        (LABELS, "labels: [1, 2]", "labels[0]: must be a text, got 1: put it in quotes"),
        (LABELS, "labels: [true, false]", "labels[0]: must be a text, got True"),
        (LABELS, "labels: [012, a]", "labels[0]: '012' is read in several ways"),
        (LABELS, "labels: [2024-01-01, a]", "labels[0]: '2024-01-01' is read"),
        (LABELS, "labels: [null, ~]", "labels[0]: 'null' is read"),
        (LABELS, "labels: [a, a]", "labels: 'a' is there 2 times"),
        (LABELS, 'labels: [a, " "]', "labels[1]: must not be empty"),
        (LABELS, "labels: negative", "labels: must be a list, got 'negative'"),
        (LABELS, "labels: [negative]", "labels: scoring 'label' requires at least two labels"),
        (LABELS, "labels: [a, b, c]", "one list for each label, got 3 labels and 2 lists"),
        (LABELS, "lables: [a, b]", "lables: unknown key 'lables'. Did you mean 'labels'?"),
        (LABELS, f"{LABELS}\nlabels: [a, b]", "labels: the key 'labels' is there twice"),
        ("version: 1", "version: 1.0", "version: must be a whole number, got 1.0"),
        ("version: 1", "version: 0", "version: must be at least 1, got 0"),
        ("version: 1", "version: '1'", "version: must be a whole number, got '1'"),
        ("family: language", "family: langage", "family: must be one of language"),
        ("metric: accuracy", "metric: acuracy", "Did you mean 'accuracy'?"),
        ("name: movie", "name: film", "name: must be 'movie', as the file is called"),
        ("name: movie", "name: movie\nof: digits", "of: unknown key 'of'"),
        (SIZES, "{train: 0, validation: 600, test: 1500}", "packages.train: must be at least 1"),
        (SIZES, "{train: 1e3, validation: 600, test: 1500}", "split.packages.train: '1e3' is read"),
        (SIZES, "{train: 10, validation: 600}", "split.packages: 'test' is missing"),
        (SIZES, "{train: 1, train: 2, validation: 1, test: 1}", "the key 'train' is there twice"),
        (SIZES, f"{SIZES}, hub: {SIZES}", "split.hub: there is no such source"),
        ("seed: 0", "seed: -1", "split.seed: must be at least 0"),
        ("packages: {train", "local: {train", "split: no sizes for the source 'packages'"),
        (SOURCE, "{set: movie_snippets, text: text}", "'label' or 'rating' or 'sets' is missing"),
        (SOURCE, "{text: text, label: label}", "sources.packages: 'set' or 'sets' is missing"),
        (SOURCE, "{set: a, text: '{x.__class__}', label: b}", "text: has the field {x.__class__}"),
        (SOURCE, "{set: a, text: '{x[0]}', label: b}", "text: has the field {x[0]}"),
        (SOURCE, "{set: a, text: '{0}', label: b}", "text: has the field {0}"),
        (SOURCE, "{set: a, text: '{x!r}', label: b}", "text: has the field {x}"),
        (SOURCE, "{set: a, text: '{x', label: b}", "text: is not a template"),
        (SOURCE, "{set: a, text: b, label: c, values: [1, 2, 3]}", "an entry for each of 2 labels"),
        (SOURCE, "{set: a, text: b, rating: c}", "sources.packages: 'threshold' is missing"),
        (TEMPLATE, 'template: "Review:"', "template: has no field in braces"),
        (TEMPLATE, 'template: "{text} {label}"', "template: must contain {text}, and no other"),
        (TEMPLATE, 'template: "{txt}"', "template: must contain {text}"),
        (TEMPLATE, 'template: "{text.__class__}"', "template: has the field {text.__class__}"),
        (TEMPLATE, 'template: "{text:>9999999999}"', "template: has the field {text}"),
        (TEMPLATE, 'template: "{text} }"', "template: is not a template"),
        (TEMPLATE, 'max_tokens: 5', "scoring 'label' requires `template`"),
        (TEMPLATE, f"{TEMPLATE}\nmax_tokens: 010", "max_tokens: '010' is read in several ways"),
        (TEMPLATE, f"{TEMPLATE}\nscoring: lable", "scoring: must be one of label, option"),
        (TEMPLATE, f"{TEMPLATE}\nsubstitute: moive", "substitute: there is no task 'moive'. Did"),
        (TEMPLATE, f"{TEMPLATE}\nanswer_pattern: '(a'", "answer_pattern: is not a regular"),
        (TEMPLATE, f"{TEMPLATE}\nanswer_pattern: 'a'", "answer_pattern: must have a group"),
        (TEMPLATE, f"{TEMPLATE}\nanswer_pattern: '(a+)+$'", "answer_pattern: can take for ever"),
        (TEMPLATE, f"{TEMPLATE}\nanswer_pattern: '(.*.*.*.*=)'", "answer_pattern: can take for"),
        ("labels: [negative", 'labels: [" negative"', "must not begin or end with a blank"),
        ("performances, label: 1}", "performances, label: 2}", "examples[0]: must have a `label`"),
        ("  - [moving, superb, funny, strong]\n", "", "must have at least two lists of words"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line_and_breaks_no_other_task(
    folder, old, new, words, refused, capsys
):
    line = changed(folder, "movie", old, new)
    with refused(UsageError, "movie.yaml:", words):
        tasks.load_task("movie")
    with pytest.raises(UsageError) as caught:
        tasks.load_task("movie")
    number = int(str(caught.value).split(":")[1])
    assert number == 1 or abs(number - line) <= 12
    assert tasks.load_task("sarcasm").name == "sarcasm"
    assert "movie" in task_names() and "movie" not in task_names("language")
    names = [task.name for task in valid_tasks()]
    assert len(names) == len(task_names()) - 1
    [warning] = capsys.readouterr().err.splitlines()
    assert "'movie' is left out" in warning and words in warning


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "movie.yaml is empty"),
        (b"- a\n- b\n", "movie.yaml:1: must be a map of names to values, got ['a', 'b']"),
        (b"name: movie\n---\nname: b\n", "movie.yaml:2: is not valid YAML: a second document"),
        (b"name: movie\nversion:\n\t1\n", "movie.yaml:3: is not valid YAML"),
        (b"name: caf\xe9\n", "movie.yaml:1: is not UTF-8"),
        (b"name: !!python/name:os.system\n", "movie.yaml:1: is not valid YAML: tags"),
        (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c,*c,*c,*c]\n", "repeat too much"),
    ],
)
def test_a_file_of_another_form_is_refused(folder, content, words, refused):
    (folder / "movie.yaml").write_bytes(content)
    with refused(UsageError, words):
        tasks.load_task("movie")
    assert tasks.load_task("sarcasm").name == "sarcasm"


def test_scorings_that_need_a_pattern_or_options_say_so(folder, refused):
    changed(folder, "gsm8k", "max_new_tokens: 220\n", "")
    with refused(UsageError, "gsm8k.yaml:1: scoring 'answer' requires `max_new_tokens`"):
        tasks.load_task("gsm8k")
    changed(folder, "quartz", "options: [option1, option2], ", "")
    with refused(UsageError, "quartz.yaml:", "sources.packages: 'options' is missing"):
        tasks.load_task("quartz")


def test_what_editors_and_systems_leave_is_not_a_task(folder, refused):
    before = task_names()
    for name in (
        "._movie.yaml", ".#movie.yaml", "movie.yaml~", "#movie.yaml#", ".movie.yaml.swp",
        ".DS_Store", "Thumbs.db", "desktop.ini", "movie (1).yaml", "movie copy.yaml",
        "movie.yaml.bak", "MOVIE.yaml", "movie.sync-conflict-20260101-120000-ABC.yaml",
        ".nfs0000001.yaml", "..yaml", "My Task.yaml", "a-b.yaml", "1a.yaml", "movie.yml",
        "\u00e9.yaml", ".yaml",
    ):  # fmt: skip
        (folder / name).write_bytes(b"\0\5\x16\7 not a task")
    assert task_names() == before
    with refused(UsageError, "'My Task'", "A name has lower-case letters"):
        tasks.load_task("My Task")
