"""Tasks: no row is seen twice, splits never change, and what cannot be meant is refused."""

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from oral_lib import tasks
from oral_lib.errors import PreflightError, UsageError

PARTS = ("train", "validation", "test")
SOURCES = ("packages", "made")
PACKAGED = [name for name in tasks.names() if "packages" in tasks.load(name).sources]
ROWS = [(n, s) for n in tasks.names() for s in SOURCES if s == "made" or n in PACKAGED]


def bare(text):
    return " ".join(re.findall(r"\w+", text.casefold()))


@pytest.fixture(scope="module")
def splits():
    return {(name, source): tasks.rows(tasks.load(name), source) for name, source in ROWS}


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_no_text_of_the_evaluation_is_met_before(splits, name, source):
    split = splits[name, source]
    texts = [bare(row.text) for part in PARTS for row in getattr(split, part)]
    assert [text for text, times in Counter(texts).items() if times > 1] == []


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_a_split_is_the_same_at_every_call(splits, name, source):
    np.random.seed(123)  # no hidden state decides
    assert tasks.rows(tasks.load(name), source) == splits[name, source]


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_a_split_has_the_sizes_that_the_task_states(splits, name, source):
    wanted, least = tasks.load(name).split, 1.0 if source == "packages" else 0.95
    for part in PARTS:  # what is made on the spot repeats itself now and then
        assert least * wanted[part] <= len(getattr(splits[name, source], part)) <= wanted[part]


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_every_part_holds_both_labels_and_no_empty_text(splits, name, source):
    for part in PARTS:
        rows = getattr(splits[name, source], part)
        assert {row.label for row in rows} == set(range(len(tasks.load(name).labels)))
        assert 0.4 < np.mean([row.label for row in rows]) < 0.6
        assert all(row.text.strip() for row in rows)


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_a_key_names_one_row(splits, name, source):
    keys = [row.key for part in PARTS for row in getattr(splits[name, source], part)]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith(f"{name}-") for key in keys)


@pytest.mark.parametrize("name", tasks.names())
def test_unseen_wordings_are_unseen(name):
    task = tasks.load(name)
    assert len(set(task.paraphrases["train"])) >= 8
    assert len(set(task.paraphrases["test"])) >= 2
    assert task.training_texts[0] == task.description
    seen = {bare(text) for other in tasks.names() for text in tasks.load(other).training_texts}
    assert not seen & {bare(text) for text in task.paraphrases["test"]}


@pytest.mark.parametrize("name", tasks.names())
def test_made_rows_can_be_learned_from_one_word(splits, name):
    markers = [set(words) for words in tasks.load(name).made]
    assert not markers[0] & markers[1] and not (markers[0] | markers[1]) & set(tasks.FILLER)
    for part in PARTS:
        for row in getattr(splits[name, "made"], part):
            found = [bool(words & set(row.text.split())) for words in markers]
            assert found == [label == row.label for label in range(len(markers))]


def test_a_prompt_holds_the_text_as_it_is():
    task = tasks.load("movie")
    assert task.prompt("{0} {text} 100%") == task.template.replace("{text}", "{0} {text} 100%")


def test_an_unknown_task_suggests_the_nearest(refused):
    with refused(UsageError, "'moive'", "Did you mean 'movie'?"):
        tasks.load("moive")
    with refused(UsageError, "../tasks/movie"):
        tasks.load("../tasks/movie")


def test_a_source_that_a_task_has_not_is_refused(refused, tmp_path):
    with refused(UsageError, "'packagse'"):
        tasks.rows(tasks.load("movie"), "packagse")
    with refused(UsageError, "'sarcasm'", "'local'", "packages"):
        tasks.rows(tasks.load("sarcasm"), f"local:{tmp_path}")
    with refused(PreflightError, "nowhere"):
        tasks.rows(tasks.load("movie"), f"local:{tmp_path}/nowhere")
    with refused(PreflightError, "train.parquet"):
        tasks.rows(tasks.load("movie"), f"local:{tmp_path}")


@pytest.fixture
def local(tmp_path):
    """SST-2 in the column names of the hub, with a text that is in training and evaluation."""
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    train = {"idx": range(900), "sentence": [f"train {i} " for i in range(900)]}
    train["label"] = [i % 2 for i in range(900)]
    test = {"idx": range(40), "sentence": [f"held {i}" for i in range(39)] + ["Train 7!"]}
    test["label"] = [(i + 1) % 2 for i in range(40)]
    pd.DataFrame(train).to_parquet(folder / "train.parquet")
    pd.DataFrame(test).to_parquet(folder / "validation.parquet")
    return folder.parent


def test_a_local_folder_is_read_in_hub_column_names(local):
    split = tasks.rows(tasks.load("movie"), f"local:{local}")
    assert split.source == "local"
    assert len(split.test) == 40 and len(split.validation) == 600 and len(split.train) == 299
    assert {row.text for row in split.test} == {f"held {i}" for i in range(39)} | {"Train 7!"}
    assert all(row.label == (int(row.text.split()[1]) + 1) % 2 for row in split.test[:20]
               if row.text.startswith("held"))  # fmt: skip
    learned = [*split.train, *split.validation]
    assert "train 7" not in {row.text for row in learned}  # it is an evaluation text
    assert all(row.label == int(row.text.split()[1]) % 2 for row in learned)


PAIRS = {"sentence1": "Otters swim.", "sentence2": "Rivers {hold} otters."}
READ = {
    "mrpc": "Sentence 1: Otters swim.\nSentence 2: Rivers {hold} otters.",
    "rte": "Otters swim.\nQuestion: Rivers {hold} otters. True or False?",
    "wnli": "Otters swim.\nQuestion: Rivers {hold} otters. True or False?",
    "boolq": "Otters swim.\nQuestion: do otters swim?",
}


@pytest.mark.parametrize("name", READ)
def test_columns_of_the_hub_become_one_text(tmp_path, name):
    columns = dict.fromkeys(("train", "validation"), PAIRS | {"label": 1})
    if name == "boolq":
        row = {"passage": "Otters swim.", "question": "do otters swim", "answer": True}
        columns = dict.fromkeys(columns, row)
    (tmp_path / name).mkdir()
    for part, row in columns.items():
        pd.DataFrame([row]).to_parquet(tmp_path / name / f"{part}.parquet")
    split = tasks.rows(tasks.load(name), f"local:{tmp_path}")
    assert [(row.text, row.label) for row in split.test] == [(READ[name], 1)]
    assert split.train == ()  # the same text is in the test part


def test_a_local_folder_may_lie_in_the_home_folder(local, monkeypatch):
    monkeypatch.setenv("HOME", str(local.parent))
    task = tasks.load("movie")
    assert tasks.rows(task, "local:~/data") == tasks.rows(task, f"local:{local}")
