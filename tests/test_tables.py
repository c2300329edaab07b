"""Tables that other writers left: rows as they are meant, or one line with file and row."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from oral_lib.errors import PreflightError
from oral_lib.tasks.rows import full_rows, task_rows
from oral_lib.tasks.task import load_task

N = 30
TEXTS = [f"row number {i}" for i in range(N)]
LABELS = [0, 1] * (N // 2)


def source(folder, sentence=TEXTS, label=LABELS, name="sst2", **more):
    """A local data set whose training part has these columns."""
    columns = {"sentence": sentence, "label": label} | more
    (folder / name).mkdir(exist_ok=True)
    table = pa.table({key: value for key, value in columns.items() if value is not None})
    parquet.write_table(table, folder / name / "train.parquet")
    good = pa.table({"sentence": [f"of the test {i}" for i in range(4)], "label": [0, 1, 0, 1]})
    parquet.write_table(good, folder / name / "validation.parquet")
    return f"local:{folder}"


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"sentence": pa.array(TEXTS, pa.large_string())},
        {"sentence": pa.array(TEXTS).dictionary_encode()},
        {"label": pa.array(LABELS, pa.int8())},
        {"label": pa.array(LABELS, pa.uint64())},
        {"label": pa.array(LABELS).dictionary_encode()},
        {"label": pa.array([float(label) for label in LABELS])},
        {"label": pa.array([bool(label) for label in LABELS])},
        {"label": pa.array([Decimal(label) for label in LABELS])},
        {"other": pa.array([[{"a": [1]}]] * N)},
        {"other": pa.array([b"\xff"] * N)},
        {"other": pa.array([None] * N)},
    ],
)
def test_columns_of_other_types_are_read_as_they_are_meant(tmp_path, columns):
    split = task_rows(load_task("sst2"), source(tmp_path, **columns))
    rows = [*split.train, *split.validation]
    assert {row.text: row.label for row in rows} == dict(zip(TEXTS, LABELS, strict=True))


def at(values, i, value):
    return [*values[:i], value, *values[i + 1 :]]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"sentence": at(TEXTS, 7, "")}, "row 7 of train"),
        ({"sentence": at(TEXTS, 7, " \n\t")}, "row 7 of train"),
        ({"sentence": at(TEXTS, 7, "\u200b\ufeff")}, "row 7 of train"),
        ({"sentence": at(TEXTS, 7, None)}, "row 7 of train"),
        ({"sentence": [text.encode() for text in TEXTS]}, "not a text (bytes)"),
        ({"sentence": [[text] for text in TEXTS]}, "not a text (ndarray)"),
        ({"sentence": [{"text": text} for text in TEXTS]}, "not a text (dict)"),
        ({"sentence": list(range(N))}, "not a text (int)"),
        ({"sentence": [datetime.datetime(2024, 1, 1)] * N}, "not a text (Timestamp)"),
        ({"sentence": pa.nulls(N)}, "row 0 of train"),
        ({"sentence": pa.nulls(N, pa.string())}, "row 0 of train"),
        ({"sentence": None, "text": TEXTS}, "no column 'sentence'; its columns: label, text"),
        ({"label": None}, "no column 'label'"),
        ({"label": at(LABELS, 3, None)}, "row 3 of train"),
        ({"label": at([float(n) for n in LABELS], 3, float("nan"))}, "row 3 of train"),
        ({"label": at(LABELS, 3, 2)}, "the label 2 is not one of 0, 1"),
        ({"label": at(LABELS, 3, -1)}, "the label -1 is not one of"),
        ({"label": [0.5] * N}, "the label 0.5 is not one of"),
        ({"label": [str(n) for n in LABELS]}, "the label '0' is not one of"),
        ({"label": [[n] for n in LABELS]}, "the label array([0]) is not one of"),
        ({"label": [{"a": n} for n in LABELS]}, "is not one of 0, 1"),
        ({"label": [datetime.datetime(2024, 1, 1)] * N}, "is not one of 0, 1"),
        ({"label": [b"0"] * N}, "the label b'0' is not one of"),
        ({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "has no rows"),
    ],
)  # fmt: skip
def test_a_cell_of_another_form_is_named_with_file_and_row(tmp_path, columns, words, refused):
    with refused(PreflightError, "'sst2'", "train.parquet", words):
        full_rows(load_task("sst2"), source(tmp_path, **columns))


def raw(texts, kind):
    """A column of texts that may be any bytes."""
    binary = pa.array(texts, pa.binary() if kind == pa.string() else pa.large_binary())
    return pa.Array.from_buffers(kind, len(binary), binary.buffers())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_text_that_is_not_utf_8_is_named_with_file_and_row(tmp_path, kind, refused):
    texts = [text.encode() for text in TEXTS]
    column = raw(at(texts, 11, b"caf\xe9"), kind)
    with refused(PreflightError, "train.parquet: row 11: the text in column 'sentence'"):
        task_rows(load_task("sst2"), source(tmp_path, sentence=column))
    with refused(PreflightError, "train.parquet: row 0: the text in column 'other'"):
        task_rows(load_task("sst2"), source(tmp_path, other=raw([b"\xff"] * N, kind)))


def test_two_columns_of_one_name_are_refused(tmp_path, refused):
    where = source(tmp_path)
    table = pa.Table.from_arrays([pa.array(TEXTS)] * 2, names=["sentence", "sentence"])
    parquet.write_table(table, tmp_path / "sst2" / "train.parquet")
    with refused(PreflightError, "train.parquet"):
        task_rows(load_task("sst2"), where)


def test_a_file_that_is_not_parquet_is_refused(tmp_path, refused):
    where, file = source(tmp_path), tmp_path / "sst2" / "train.parquet"
    good, stream = file.read_bytes(), np.random.default_rng(0)
    contents = [b"", b"PAR1", b"a,b\n1,2\n", b'{"a": 1}\n', good[:-1], good[: len(good) // 2]]
    for content in [*contents, b"PARE" + good[4:-4] + b"PARE", good[:-8] + b"\xff" * 4 + b"PAR1"]:
        file.write_bytes(content)
        with refused(PreflightError, str(file), "not a parquet file"):
            task_rows(load_task("sst2"), where)
    for _ in range(60):
        broken = bytearray(good)
        for place in stream.integers(0, len(good), 4):
            broken[place] = stream.integers(0, 256)
        file.write_bytes(broken)
        try:
            task_rows(load_task("sst2"), where)
        except PreflightError as error:
            assert len(str(error).splitlines()) == 1 and "train.parquet" in str(error)
    file.unlink()
    file.mkdir()
    with refused(PreflightError, str(file), "is not a file"):
        task_rows(load_task("sst2"), where)


def written(folder, name, part, **columns):
    (folder / name).mkdir(exist_ok=True)
    pd.DataFrame(columns).to_parquet(folder / name / f"{part}.parquet")


@pytest.mark.parametrize("answer", ["", " ", "\u200b", "#### ", "5 + 1\n#### ", "1\n#### $", None])
def test_an_empty_answer_is_not_an_answer(tmp_path, answer, refused):
    for part in ("train", "test"):
        answers = [f"{i} + 1\n#### {i + 1}" for i in range(20)]
        written(tmp_path, "gsm8k", part, question=[f"{part} {i}?" for i in range(20)],
                answer=at(answers, 3, answer))  # fmt: skip
    with refused(PreflightError, "'gsm8k'", "row 3 of train", "train.parquet"):
        task_rows(load_task("gsm8k"), f"local:{tmp_path}")


@pytest.mark.parametrize(
    "change", [{"option1": ""}, {"option2": " "}, {"sentence": None}, {"option1": b"cup"}]
)
def test_an_empty_option_is_not_an_option(tmp_path, change, refused):
    row = {"sentence": "The _ was big.", "option1": "cup", "option2": "box", "answer": "2"}
    for part in ("train", "validation"):
        frame = pd.DataFrame([row, row | change])
        (tmp_path / "winogrande").mkdir(exist_ok=True)
        frame.astype(object).iloc[1:].to_parquet(tmp_path / "winogrande" / f"{part}.parquet")
    with refused(PreflightError, "'winogrande'", "row 0 of train"):
        task_rows(load_task("winogrande"), f"local:{tmp_path}")


def test_an_empty_column_of_a_template_is_refused(tmp_path, refused):
    for part in ("train", "validation"):
        written(tmp_path, "boolq", part, passage=["a passage", " "], question=["one", "two"],
                answer=[True, False])  # fmt: skip
    with refused(PreflightError, "'boolq'", "row 1 of train", "'passage' is empty"):
        task_rows(load_task("boolq"), f"local:{tmp_path}")


def test_a_group_is_a_text_or_a_number(tmp_path, refused):
    image = b"not opened"
    for groups, row in ((["a", None], 1), ([["a"], ["b"]], 0), (["a", " "], 1)):
        for part in ("train", "test"):
            written(tmp_path, "nlvr", part, image=[image] * 2, sentence=groups, label=[0, 1])
        with refused(PreflightError, "'nlvr'", f"row {row} of train"):
            task_rows(load_task("nlvr"), f"local:{tmp_path}")


def test_rows_of_a_package_that_are_left_out_are_counted_aloud(tmp_path, capsys):
    from oral_lib.assets import datasets

    folder = tmp_path / ".sarcasm.1234.tmp"
    folder.mkdir()
    rows = [{"text": text, "label": 0} for text in ("a", "a ", "\u200b", "", "b&amp;c", "b&c")]
    datasets._write(folder, rows)
    assert pd.read_parquet(folder / datasets.ROWS)["text"].tolist() == ["a", "b&c"]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: sarcasm: 4 of 6 rows are left out")


# ---------------------------------------------------------------- what is one text
def kept(folder, texts):
    written(folder, "sst2", "train", sentence=TEXTS, label=LABELS)
    written(folder, "sst2", "validation", sentence=texts, label=[i % 2 for i in range(len(texts))])
    return {row.text for row in task_rows(load_task("sst2"), f"local:{folder}").test}


@pytest.mark.parametrize(
    "texts",
    [
        ["\u0915\u0932", "\u0915\u093e\u0932", "\u0915\u0940\u0932", "\u0915\u094b\u0932"],  # Hindi
        ["\u0e01\u0e31\u0e19", "\u0e01\u0e34\u0e19", "\u0e01\u0e38\u0e19"],  # Thai
        ["\u0643\u064e\u062a\u064e\u0628", "\u0643\u064f\u062a\u0650\u0628"],  # Arabic
        ["\u05d1\u05bc", "\u05d1\u05bf"],  # Hebrew
        ["e\u0301te", "ete"],
        ["\U0001f600", "\U0001f622", "\u2764"],
        ["good \U0001f600", "good \U0001f622"],
        ["\u4f60\u597d", "\u4f60\u574f"],
        ["a_b", "a b"],
        ["\u00d7 2", "\u00f7 2"],
        ["3 + 4", "3 - 4", "3-4-1", "3 4", "3 * 4", "3 \u2212 4"],
        ["it costs \u00a380", "it costs \u20ac80", "it costs 80%"],
        ["is x<3?", "is x>3?"],
    ],
)  # fmt: skip
def test_texts_that_differ_in_a_letter_or_sign_are_kept(tmp_path, texts, capsys):
    assert kept(tmp_path, texts) == set(texts)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "texts",
    [
        ["A good film.", "a  GOOD film", "a good\u00a0film!"],
        ["\u00e9t\u00e9", "e\u0301te\u0301", "\u00c9T\u00c9!"],
        ["stra\u00dfe", "STRASSE"],
        ["\u201cyes\u201d", '"yes"', "yes\u3002"],
        ["\u0915\u0932", "\u0915\u0932\u0964"],
        ["a 5-year-old with covid-19", "A 5 year old with COVID 19"],
        ["he paid 3, she 4", "he paid 3 - she 4?"],
    ],
)
def test_texts_that_differ_in_case_blanks_and_punctuation_are_one_and_counted(
    tmp_path, texts, capsys
):
    from oral_lib.tasks import rows

    rows._report_repeats.cache_clear()
    assert len(kept(tmp_path, texts)) == 1
    [line] = capsys.readouterr().err.splitlines()
    total = N + len(texts)
    assert f"task sst2: {len(texts) - 1} of {total} rows from local are left out" in line
