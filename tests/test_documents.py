"""YAML and JSON that people write: one reading or one line with file, line and key."""

import subprocess
import sys

import pytest

from oral_lib.documents.document import (
    load_json,
    load_json_lines,
    load_yaml,
    parse_json,
    parse_yaml,
)
from oral_lib.documents.schema import VISIBLE
from oral_lib.documents.words import is_blank
from oral_lib.errors import UsageError


def read(text):
    return parse_yaml(text, "x.yaml").content


def test_what_every_version_of_yaml_reads_alike_is_read():
    text = "a: [1, -2, 0.5, 1.0e-3, true, False]\n'no': \"yes\"\nb: |\n  no\nc: plain words\n"
    assert read(text) == {
        "a": [1, -2, 0.5, 0.001, True, False], "no": "yes", "b": "no\n", "c": "plain words",
    }  # fmt: skip
    assert read("\ufeffa: 1".encode().decode("utf-8-sig")) == {"a": 1}


WORDS = "no No NO yes on off y n Y N ~ null Null 012 0x1f 0b1 0o17 1_000 1:30 1e3 1e-3 .5 1. .inf"
WORDS += " .nan 2024-01-01 = <<"


@pytest.mark.parametrize("word", WORDS.split())
def test_a_word_that_yaml_reads_in_several_ways_is_refused(word, refused):
    with refused(UsageError, "x.yaml:2: labels[1]: ", "put a text in quotes", repr(word)):
        read(f"name: a\nlabels: [a, {word}]")
    with refused(UsageError, "x.yaml:3: "):
        read(f"a: 1\n\n{word}: 2" if word != "=" else "a: 1\n\n= : 2")
    assert read(f'labels: [a, "{word}"]') == {"labels": ["a", word]}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", 5, "b.c: the key 'c' is there twice, first in line"),
        ("a: 1\n'a': 2\n", 2, "the key 'a' is there twice"),
        ("a: 1\nb:\n", 2, "b: has no value"),
        ("a: 1\nb: *x\n", 2, "undefined alias"),
        ("a: 1\nb: &x [*x]\n", 2, "aliases (*) repeat too much"),
        ("<<: {a: 1}", 1, "'<<' is read in several ways"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "tags (!) are not supported"),
        ("a: 1\nb: !!str 2\n", 2, "tags (!)"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins"),
        ("a: 1\nb:\n\tc: 2\n", 3, "a tab: indent with spaces"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "is not valid YAML"),
        ("a: 1\n? [x]\n: 2\n", 2, "a key must be a text"),
        ("a: 1\n2: 2\n", 2, "the key 2 must be a text"),
        ("a: 1\nb: \x07\n", 2, "has the character '\\x07'"),
        ('a: 1\nb: "\\ud800"\n', 2, "half of a character"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2, "is not valid YAML"),
        ("a: " + "[" * 100 + "]" * 100, 1, "more than 40 lists and maps are nested"),
        ("a: " + "9" * 5000, 1, "is read in several ways"),
        ("a: 1\nb: 1.0e+999\n", 2, "is read in several ways"),
    ],
)
def test_yaml_that_is_not_plain_is_refused_with_line_and_key(text, line, words, refused):
    with refused(UsageError, f"x.yaml:{line}: ", words):
        read(text)


def test_a_bomb_is_refused_at_once(refused):
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30))]
    with refused(UsageError, "aliases (*) repeat too much"):
        read("\n".join(lines))
    assert read("a: &a {b: [1]}\nc: *a\n") == {"a": {"b": [1]}, "c": {"b": [1]}}


def test_files_that_cannot_be_read_are_refused(tmp_path, refused):
    file = tmp_path / "x.yaml"
    with refused(UsageError, str(file), "does not exist"):
        load_yaml(file)
    with refused(UsageError, str(tmp_path), "is not a file"):
        load_yaml(tmp_path)
    file.write_bytes(b"a: 1\nb: caf\xe9\n")
    with refused(UsageError, f"{file}:2: ", "not UTF-8"):
        load_yaml(file)
    file.write_text("a: b\n", encoding="utf-16")
    with refused(UsageError, f"{file}:1: ", "not UTF-8"):
        load_json(file)
    file.write_bytes(b"# only\n")
    with refused(UsageError, f"{file} is empty"):
        load_yaml(file)
    file.write_bytes(b" \n")
    with refused(UsageError, f"{file} is empty"):
        load_json(file)
    file.write_bytes(b"#" * ((1 << 20) + 1))
    with refused(UsageError, str(file), "larger than 1 MB"):
        load_yaml(file)
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert load_yaml(str(file)).content == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"a": 1,\n\t"b": {"c": 1,\n"c": 2}}', 3, "b.c: the key 'c' is there twice"),
        ('{"a":1,\n"b":[0,NaN]}', 2, "b[1]: NaN is not a finite number"),
        ('{"a": 1,\n"b": -Infinity}', 2, "b: -Infinity is not a finite"),
        ('{"a": 1,\n"b": 1e999}', 2, "b: 1e999 is not a finite"),
        ('{"a": 1,\n"b": ' + "9" * 5000 + "}", 2, "b: 999"),
        ('{"a": 1,\n"b": "\\ud800"}', 2, "b: has half of a character"),
        ('{"a": 1, "\x7f": 2,\n"a": 3}', 1, "the key 'a' is there twice"),
        ('{"a": 1,\n"b": }', 2, "is not valid JSON: Expecting value"),
        ("[" * 100_000, 1, "nested too deeply"),
    ],
)
def test_json_that_is_not_plain_is_refused_with_line_and_key(text, line, words, refused):
    with refused(UsageError, f"x.json:{line}: ", words):
        parse_json(text, "x.json")


def test_lines_of_json_have_their_number(tmp_path, refused):
    file = tmp_path / "m.jsonl"
    file.write_text('{"a": "\u2028"}\r\n\n{"a": 2}\n')
    one, two = load_json_lines(file)
    assert (one.content, two.content) == ({"a": "\u2028"}, {"a": 2})
    with refused(UsageError, f"{file}:3: a: must be a text, got 2: put it in quotes."):
        two.check({"properties": {"a": {"type": "string"}}})
    file.write_text('{"a": 1}\n{"a": 1, "a": 2}\n')
    with refused(UsageError, f"{file}:2: ", "there twice"):
        list(load_json_lines(file))


SCHEMA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": VISIBLE,
        "version": {"type": "integer", "minimum": 1},
        "kind": {"enum": ["label", "image"]},
        "labels": {"type": "array", "items": VISIBLE, "uniqueItems": True, "minItems": 2},
        "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "key": {"type": "string", "pattern": "^[a-z]+$", "description": "a word in lower case"},
    },
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1", "x.yaml:1: 'name' is missing."),
        ("[a]", "x.yaml:1: must be a map of names to values, got ['a']."),
        (
            "name: a\nversoin: 1",
            "x.yaml:2: versoin: unknown key 'versoin'. Did you mean 'version'?",
        ),
        ('name: " "', "x.yaml:1: name: must not be empty, got ' '."),
        ("name: 1", "x.yaml:1: name: must be a text, got 1: put it in quotes."),
        ("name: a\nversion: 1.0", "x.yaml:2: version: must be a whole number, got 1.0."),
        ("name: a\nversion: true", "x.yaml:2: version: must be a whole number, got True."),
        ("name: a\nversion: 0", "x.yaml:2: version: must be at least 1, got 0."),
        ("name: a\nshare: 0", "x.yaml:2: share: must be more than 0, got 0."),
        ("name: a\nshare: 1.5", "x.yaml:2: share: must be at most 1, got 1.5."),
        ("name: a\nkind: lable", "x.yaml:2: kind: must be one of label, image, got 'lable'. Did"),
        ("name: a\nlabels:\n- a\n- a", "x.yaml:2: labels: 'a' is there 2 times."),
        ("name: a\nlabels: [a]", "x.yaml:2: labels: must have at least 2 entries, got 1."),
        ("name: a\nlabels:\n- a\n- ''", "x.yaml:4: labels[1]: must not be empty, got ''."),
        ("name: a\nkey: A", "x.yaml:2: key: must be a word in lower case, got 'A'."),
    ],
)
def test_a_value_that_the_schema_refuses_is_named_with_its_line(text, message, refused):
    with refused(UsageError, message):
        parse_yaml(text, "x.yaml").check(SCHEMA)


def test_json_is_checked_with_lines(refused):
    with refused(UsageError, "x.json:3: version: must be at least 1, got 0."):
        parse_json('{\n"name": "a",\n"version": 0}', "x.json").check(SCHEMA)


def test_blank_is_what_shows_no_letter():
    blank = ["", " ", "\n\t", "\u200b", "\ufeff \u00a0", "\u2800", "\u3164", "\u2060\u00ad"]
    assert all(map(is_blank, blank))
    assert not any(map(is_blank, ["a", "-", "0", "\U0001f600", "\u0915\u093f", None, 0]))


def test_it_starts_without_its_libraries():
    code = "import sys, oral_lib.documents.document; print('yaml' in sys.modules, "
    code += "'jsonschema' in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr
