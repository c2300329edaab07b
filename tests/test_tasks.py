"""Tasks: no row is seen twice, splits never change, and what cannot be meant is refused."""

import re
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pandas as pd
import pytest

from oral_lib.assets import sources
from oral_lib.errors import PreflightError, UsageError
from oral_lib.tasks import binary
from oral_lib.tasks.rows import FILLER, SYNTHETIC, SYNTHETIC_IMAGES, full_rows, task_rows
from oral_lib.tasks.task import PAIRED, load_task, task_names

PARTS = ("train", "validation", "test")
SOURCES = ("packages", "made")
PACKAGED = [name for name in task_names() if "packages" in load_task(name).sources]
ROWS = [(n, s) for n in task_names() for s in SOURCES if s == "made" or n in PACKAGED]
TEXTS = task_names("language")


def bare(text):
    """The words of a text, and the signs of its numbers."""
    return " ".join(re.findall(r"\w+|(?<!\w)[-+<£€](?=\s*\d)", text.casefold()))


@pytest.fixture(scope="module")
def splits():
    return {(name, source): task_rows(load_task(name), source) for name, source in ROWS}


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_no_text_of_the_evaluation_is_met_before(splits, name, source):
    split = splits[name, source]
    rows = [row for part in PARTS for row in getattr(split, part)]
    texts = [(row.image, bare(row.text)) for row in rows]
    assert [text for text, times in Counter(texts).items() if times > 1] == []


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_a_split_is_the_same_at_every_call(splits, name, source):
    np.random.seed(123)  # no hidden state decides
    assert task_rows(load_task(name), source) == splits[name, source]


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_a_split_has_the_sizes_that_the_task_states(splits, name, source):
    task = load_task(name)
    few = task.scoring in (*PAIRED, "style")
    made = SYNTHETIC_IMAGES if few else SYNTHETIC
    wanted = task.split["packages"] if source == "packages" else made
    least = 1.0 if source == "packages" else 0.95
    for part in PARTS:  # what is made on the spot repeats itself now and then
        assert least * wanted[part] <= len(getattr(splits[name, source], part)) <= wanted[part]


@pytest.mark.parametrize("name", task_names())
def test_evaluation_stays_affordable_and_every_source_has_its_sizes(name):
    task = load_task(name)
    assert set(task.split) == {"seed", *task.sources}
    for kind in task.sources:
        assert task.split[kind]["test"] <= 1500 and task.split[kind]["validation"] <= 600


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_every_part_holds_every_label_and_no_empty_text(splits, name, source):
    task = load_task(name)
    low, high = (0.3, 0.7) if source == "packages" else (0.4, 0.6)  # real sets lean to one side
    for part in PARTS:
        rows = getattr(splits[name, source], part)
        assert all(row.image or row.text.strip() for row in rows)
        if task.scoring in ("image", *PAIRED):
            classes = len(task.labels) or len({row.label for row in splits[name, source].train})
            if task.scoring in PAIRED and source == "made":
                classes = 2 if classes == 2 else len(task.marker_words)
            assert {row.label for row in rows} == set(range(classes))
            continue
        if task.scoring in ("answer", "style"):
            assert {row.label for row in rows} == {0}
            assert all(row.answer or row.image for row in rows)
        else:
            assert {row.label for row in rows} == set(range(len(task.labels)))
            assert low < np.mean([row.label for row in rows]) < high


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_a_row_has_what_its_scoring_asks_for_and_no_more(splits, name, source):
    task = load_task(name)
    for row in (row for part in PARTS for row in getattr(splits[name, source], part)):
        assert len(row.options) == (len(task.labels) if task.scoring == "option" else 0)
        assert bool(row.target) == bool(row.answer) == (task.scoring == "answer")
        for context, rest in row.options:
            assert context and not context[-1].isspace() and rest[0] == " " and rest.strip()
        if task.scoring == "answer":  # a model that writes the target word for word is right
            assert row.target[0] == " " and task.extracted(row.target) == row.answer


@pytest.mark.parametrize("name", TEXTS)
def test_examples_look_like_rows(name):
    task = load_task(name)
    assert len(task.examples) == 2
    for example in task.examples:
        assert example["text"].strip()
        if task.scoring == "answer":
            assert task.extracted(" " + example["target"])
        else:
            assert example["label"] in range(len(task.labels))


def grouped(name, key):
    """The groups of each part of a package set: `key` reads one off a text."""
    split = task_rows(load_task(name), "packages")
    return [{key(row.text) for row in getattr(split, part)} for part in PARTS]


def test_no_premise_schema_or_template_is_in_two_parts(splits):
    whole = {
        "corr2cause": lambda text: text.split("\nClaim:")[0],
        "winograd_schemas": lambda text: text[:25],
        "pararule": lambda text: text.split("\nQuestion:")[0],
    }
    for name, key in whole.items():
        train, validation, test = grouped(name, key)
        assert not (train & validation or train & test or validation & test)
    frame = sources.package_rows("school_maths").set_index("question")["template"]
    held = {
        part: {frame[row.text] for row in getattr(splits["school_maths", "packages"], part)}
        for part in PARTS
    }
    assert [len(held[part]) for part in PARTS] == [65, 6, 14]
    assert len(set().union(*held.values())) == 85


def test_every_task_of_the_paper_has_a_task_that_stands_in_where_only_packages_are():
    paper = [n for n in TEXTS if {"local", "hub"} <= set(load_task(n).sources)]
    assert paper == ["boolq", "gsm8k", "mrpc", "rte", "sst2", "winogrande", "wnli"]
    for task in map(load_task, paper):
        other = load_task(task.substitute)
        assert set(other.sources) == {"packages"} and other.scoring == task.scoring
        assert task.sources["hub"]["text"] == task.sources["local"]["text"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 3 * 4 = 12.\n#### 12", "12"),
        (" so it is $1,234.50.\n#### $1,234.50", "1234.50"),
        ("#### -7.\nQuestion: Next? #### 8", "-7"),
        (" 3 * 4 is 12, less 2 is 10.", "10"),  # the last number where no mark was made
        (" I have 5\nQuestion: How many are 6?", "5"),
        (" none at all", ""),
        ("", ""),
    ],
)
def test_the_answer_is_found_in_what_a_model_writes(text, answer):
    assert load_task("gsm8k").extracted(text) == answer


@pytest.mark.parametrize(("name", "source"), ROWS)
def test_a_key_names_one_row(splits, name, source):
    keys = [row.key for part in PARTS for row in getattr(splits[name, source], part)]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith(f"{name}-") for key in keys)


@pytest.mark.parametrize("name", TEXTS)
def test_made_rows_can_be_learned_from_one_word(splits, name):
    task = load_task(name)
    markers = [set(words) for words in task.marker_words]
    assert not markers[0] & markers[1] and not (markers[0] | markers[1]) & set(FILLER)
    for part in PARTS:
        for row in getattr(splits[name, "made"], part):
            found = [bool(words & set(row.text.split())) for words in markers]
            right = row.label
            if task.scoring == "answer":
                right = [words[0] for words in task.marker_words].index(row.answer)
            elif task.scoring == "option":
                assert row.options[right][1] == f" {task.labels[right]}"
            assert found == [label == right for label in range(len(markers))]


@pytest.mark.parametrize("name", TEXTS)
def test_the_tiny_models_know_every_word_of_a_made_row(splits, name):
    from oral_lib.models.text import word_tokenizer

    tokenizer, task = word_tokenizer(), load_task(name)
    for row in splits[name, "made"].test[:50]:
        rest = [row.target, *chain(*row.options)]
        for text in (task.prompt(row.text), *rest):
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_a_prompt_holds_the_text_as_it_is():
    task = load_task("movie")
    assert task.prompt("{0} {text} 100%") == task.template.replace("{text}", "{0} {text} 100%")


def test_an_unknown_task_suggests_the_nearest(refused):
    with refused(UsageError, "'moive'", "Did you mean 'movie'?"):
        load_task("moive")
    with refused(UsageError, "../tasks/movie"):
        load_task("../tasks/movie")


def test_a_source_that_a_task_has_not_is_refused(refused, tmp_path):
    with refused(UsageError, "'packagse'"):
        task_rows(load_task("movie"), "packagse")
    with refused(UsageError, "'sarcasm'", "'local'", "packages"):
        task_rows(load_task("sarcasm"), f"local:{tmp_path}")
    with refused(UsageError, "'sst2'", "'packages'", "local, hub"):
        task_rows(load_task("sst2"), "packages")
    with refused(PreflightError, "nowhere"):
        task_rows(load_task("sst2"), f"local:{tmp_path}/nowhere")
    with refused(PreflightError, "train.parquet"):
        task_rows(load_task("sst2"), f"local:{tmp_path}")


def test_a_task_without_sizes_for_a_source_is_refused(refused):
    task = load_task("movie")
    with refused(UsageError, "'movie'", "no sizes", "packages", "`split`"):
        replace(task, split={"seed": 0})
    with refused(UsageError, "'movie'", "'guess'", "label, option, answer"):
        replace(task, scoring="guess")
    with refused(UsageError, "'movie'", "`answer_pattern`", "`max_new_tokens`"):
        replace(task, scoring="answer")


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
    split = task_rows(load_task("sst2"), f"local:{local}")
    assert split.source == "local"
    assert len(split.test) == 40 and len(split.validation) == 600 and len(split.train) == 299
    assert {row.text for row in split.test} == {f"held {i}" for i in range(39)} | {"Train 7!"}
    assert all(row.label == (int(row.text.split()[1]) + 1) % 2 for row in split.test[:20]
               if row.text.startswith("held"))  # fmt: skip
    learned = [*split.train, *split.validation]
    assert "train 7 " not in {row.text for row in learned}  # it is an evaluation text
    assert {row.text[-1] for row in learned} == {" "}  # read as it is, as others read it
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
    split = task_rows(load_task(name), f"local:{tmp_path}")
    assert [(row.text, row.label) for row in split.test] == [(READ[name], 1)]
    assert split.train == ()  # the same text is in the test part


def written(folder, name, parts, *rows):
    """A local data set of the same `rows` in each part."""
    (folder / name).mkdir()
    for part in parts:
        pd.DataFrame(rows).to_parquet(folder / name / f"{part}.parquet")
    return f"local:{folder}"


def test_a_blank_is_filled_by_each_option_and_the_rest_is_scored(tmp_path, refused):
    row = {
        "sentence": "The cup missed the box as the _ was big.",
        "option1": "cup",
        "option2": "box",
        "answer": "2",
    }
    source = written(tmp_path, "winogrande", ("train", "validation"), row)
    [found] = task_rows(load_task("winogrande"), source).test
    assert found.label == 1
    assert found.text == f"{row['sentence']}\nFirst: cup\nSecond: box"
    assert found.options == (
        ("The cup missed the box as the cup", " was big."),
        ("The cup missed the box as the box", " was big."),
    )
    for i, (change, words) in enumerate(
        [({"answer": ""}, ("''", "1, 2")), ({"sentence": "No gap."}, ("'No gap.'", "no _"))]
    ):
        (tmp_path / str(i)).mkdir()
        source = written(tmp_path / str(i), "winogrande", ("train", "validation"), row | change)
        with refused(PreflightError, "'winogrande'", *words):
            task_rows(load_task("winogrande"), source)


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("sst2", {"sentence": None, "label": 1}, ("row 0 of train", "'sentence' is empty")),
        ("sst2", {"text": "fine", "label": 1}, ("no column 'sentence'", "text, label")),
        ("sst2", {"sentence": "fine"}, ("no column 'label'",)),
        ("sst2", {"sentence": 7, "label": 1}, ("'sentence' is not a text", "sentence: 7")),
        ("mrpc", {"sentence1": "a", "sentence2": None, "label": 1}, ("'sentence2' is empty",)),
        ("gsm8k", {"question": "2+2?", "answer": 12}, ("'answer' is not a text", "answer: 12")),
        ("nlvr", {"image": None, "label": 1}, ("no column 'sentence'", "image, label")),
        ("flickr8k", {"image": None, "label": 1}, ("no column 'captions'", "image, label")),
        ("cifar10", {"image": None, "label": 1}, ("'cifar10'", "does not contain bytes")),
        ("cifar10", {"image": {"bytes": None, "path": "/etc/x"}, "label": 1}, ("contain bytes",)),
    ],
)  # fmt: skip
def test_a_damaged_row_is_named_by_its_index(tmp_path, refused, name, row, words):
    spec = load_task(name).sources["local"]
    source = written(tmp_path, spec["set"], {spec["train"], spec["test"]}, row)
    with refused(PreflightError, f"'{name}'", *words):
        task_rows(load_task(name), source)


def test_a_set_that_leaves_nothing_to_learn_from_is_refused(tmp_path, refused):
    rows = [{"sentence": f"text {i}", "label": i % 2} for i in range(20)]
    source = written(tmp_path, "sst2", ("train", "validation"), *rows)
    with refused(PreflightError, "'sst2'", "too few", "0 train"):
        full_rows(load_task("sst2"), source)


def test_a_solution_becomes_a_target_without_notes_and_a_bare_answer(tmp_path):
    row = {
        "question": "How much?",
        "answer": "He has 3*400=<<3*400=1200>>1200 coins.\nThat is $1,200.\n#### $1,200",
    }
    source = written(tmp_path, "gsm8k", ("train", "test"), row)
    [found] = task_rows(load_task("gsm8k"), source).test
    assert (found.text, found.answer, found.label) == ("How much?", "1200", 0)
    assert found.target == " He has 3*400=1200 coins.\nThat is $1,200.\n#### 1200"


def test_the_options_of_a_question_follow_one_context():
    row = task_rows(load_task("quartz"), "packages").test[0]
    question, first, second = row.text.split("\n")
    context = f"Question: {question}\nAnswer:"
    assert row.options == (
        (context, first.removeprefix("First:")),
        (context, second.removeprefix("Second:")),
    )


def test_a_local_folder_may_lie_in_the_home_folder(local, monkeypatch):
    monkeypatch.setenv("HOME", str(local.parent))
    task = load_task("sst2")
    assert task_rows(task, "local:~/data") == task_rows(task, f"local:{local}")


# ---------------------------------------------------------------- yes or no
def test_there_are_511_splits_up_to_complement_and_each_has_one_canonical_side():
    sides = binary.canonical_splits()
    assert len(set(sides)) == len(sides) == 511
    for side in sides:
        assert binary.canonical(side) == binary.canonical(binary.complement(side)) == side
        assert len(side) < 5 or (len(side) == 5 and 0 in side)
    for of in binary.NOUNS:
        assert len(binary.NOUNS[of]) == len(load_task(of).labels) == binary.N_CLASSES


def test_every_split_is_in_at_most_one_set_in_its_canonical_form():
    parts = {part: binary.splits(part) for part in binary.SPLIT_SETS}
    assert len(parts["pairs"]) == len(parts["classes"]) == 40
    together = [side for part in parts.values() for side in part]
    assert len(set(together)) == len(together)
    assert set(together) <= set(binary.canonical_splits())
    unused = set(binary.canonical_splits()) - set(together)
    classes = binary.held_out_classes()
    assert all(side & classes for side in unused)


@pytest.mark.parametrize("name", ["cifar10_yes_train_1111111110", "cifar10_yes_0000000000"])
def test_a_split_that_is_not_in_the_set_of_its_name_is_no_task(name):
    assert binary.parse(name) is None


def test_names_of_the_first_release_are_still_tasks():
    task = load_task("cifar10_yes_1111110110")
    assert binary.set_of(task.name) == "" and len(task.positive) == 8
    assert binary.parse(binary.complement_task(task.name))[1] == {6, 9}


def test_a_split_is_told_in_words_and_shares_the_rows_of_its_source():
    task = load_task("cifar10_yes_1001000000")
    assert task.description == "Say yes to airplanes and cats." and task.labels == ["no", "yes"]
    assert task.metric == "balanced_accuracy" and task.family == "vision"
    texts = [*task.training_texts, *task.paraphrases["development"], *task.paraphrases["test"]]
    assert all("airplanes" in text and "cats" in text for text in texts)
    assert not any("1001" in text for text in texts) and len(set(texts)) == 25
    own, whole = task_rows(task, "made"), task_rows(load_task("cifar10"), "made")
    for part in PARTS:
        for row, other in zip(getattr(own, part), getattr(whole, part), strict=True):
            assert (row.key, row.image) == (other.key, other.image)
            assert row.label == int(other.label in (0, 3))


@pytest.mark.parametrize(
    "name", ["cifar10_yes_0000000000", "cifar10_yes_1", "movie_yes_1000000000"]
)
def test_what_is_no_split_is_no_task(name, refused):
    with refused(UsageError, name):
        load_task(name)
