"""Wordings: what generators are trained on, what choices are made on, what a release is judged on.

The wordings `test` are compared as strings only. No test passes them to an encoder or a generator:
a choice could then depend on them.
"""

import re

import pytest

from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks import binary
from oral_lib.tasks.task import load_task, task_names

STYLES = task_names("style")
BINARY = "binary"  # the sentences about every binary task, with a place for its classes
FEWEST, MOST = 4, 40  # words of a test wording
RUN = 5  # this many words in a row are not repeated
SHARED = 0.4  # largest part of their words that two wordings of a task have in common


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder("minilm-l6")


def words(text):
    return re.findall(r"\w+", text.casefold())


def runs(text):
    sequence = words(text)
    return {tuple(sequence[i : i + RUN]) for i in range(len(sequence) - RUN + 1)}


def shared(text, other):
    a, b = set(words(text)), set(words(other))
    return len(a & b) / len(a | b)


def labels_in(text, task):
    return {x for x in task.labels if re.search(rf"\b{re.escape(x)}\b", text, re.IGNORECASE)}


def seen_and_new(name):
    """(wordings that have been evaluated, test wordings) of a task, or of all binary tasks."""
    if name == BINARY:
        forms = binary.WORDINGS
        return [binary.DESCRIPTION, *forms["train"], *forms["development"]], forms["test"]
    task = load_task(name)
    return [*task.training_texts, *task.paraphrases["development"]], task.paraphrases["test"]


@pytest.mark.parametrize("name", task_names())
def test_every_task_has_wordings_of_three_kinds(name):
    task = load_task(name)
    assert list(task.paraphrases) == ["train", "development", "test"]
    assert len(task.paraphrases["train"]) == (9 if name in STYLES else 80)
    assert len(task.paraphrases["development"]) >= 3 and len(task.paraphrases["test"]) == 5
    assert task.training_texts == [task.description, *task.paraphrases["train"]]


def test_no_wording_occurs_twice():
    texts = [
        " ".join(re.findall(r"\w+|(?<!\w)[-+<£€](?=\s*\d)", text.casefold()))
        for name in (*task_names(), BINARY)
        for part in seen_and_new(name)
        for text in part
    ]
    assert sorted(t for t in set(texts) if texts.count(t) > 1) == []


@pytest.mark.parametrize("name", task_names())
def test_development_wordings_are_no_echo_of_the_training_wordings(name, encoder):
    task = load_task(name)
    trained = encoder.encode(task.training_texts)
    kept = encoder.encode(task.paraphrases["development"])
    assert (kept @ trained.T).max() < 0.81


@pytest.mark.parametrize("name", [*task_names(), BINARY])
def test_test_wordings_are_no_copies(name):
    seen, new = seen_and_new(name)
    for text in new:
        for other in seen:
            assert not runs(text) & runs(other), (text, other)
            assert shared(text, other) <= SHARED, (text, other)


@pytest.mark.parametrize("name", [*task_names(), BINARY])
def test_test_wordings_of_a_task_differ_in_length_and_words(name):
    _, texts = seen_and_new(name)
    lengths = [len(words(text)) for text in texts]
    assert min(lengths) >= FEWEST and max(lengths) <= MOST
    assert max(lengths) >= 1.5 * min(lengths)
    pairs = [(a, b) for a in texts for b in texts if a < b]
    assert not [pair for pair in pairs if shared(*pair) > SHARED]


@pytest.mark.parametrize("name", task_names())
def test_test_wordings_name_labels_as_training_wordings_do(name):
    task = load_task(name)
    named = [labels_in(text, task) for text in task.training_texts]
    for text in task.paraphrases["test"]:
        labels = labels_in(text, task)
        assert not labels or any(labels <= others for others in named), text
