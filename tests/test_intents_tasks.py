"""Tasks of intents: what is held out stays out of training, and draws can be repeated."""

from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pandas
import pytest

from oral_lib.errors import PreflightError, UsageError
from oral_lib.tasks.intents import family as families
from oral_lib.tasks.intents import messages as rows
from oral_lib.tasks.intents import splits, texts
from oral_lib.tasks.intents.message import PARTS, Material, Message
from oral_lib.tasks.rows import comparable

N_UNIONS = 1000


def stored_family() -> families.IntentFamily:
    """A family with the intents, texts and splits of CLINC150 and BANKING77, and made messages."""
    messages = [
        Message(
            f"{name}-{part}-{i}", f"{name} {part} {i}", *name.split("."), domain.split(".")[1], part
        )
        for name, domain in rows.set_domains().items()
        for part, n in (("train", 4), ("validation", 2), ("test", 3))
        for i in range(n)
    ]
    split = splits.read_splits("splits")
    return families.build(
        "made", Material(messages, split, texts.stored_texts(), texts.stored_phrases())
    )


FAMILIES = {"made": families.load_family("made", "smoke"), "stored": stored_family()}


@pytest.fixture(params=FAMILIES)
def family(request) -> families.IntentFamily:
    return FAMILIES[request.param]


@cache
def training(family, without="L2", development=False) -> list[families.IntentTask]:
    options = {"without": without, "development": development}
    return [
        *family.tasks("train", **options),
        *families.training_unions(
            family, N_UNIONS if family.source != "made" else 40, 0, **options
        ),
    ]


def intents_of(family, tasks) -> set[str]:
    """The intents whose rows a model may read when it is trained on `tasks`."""
    return {family.intents[i] for task in tasks for i in (*task.positive, *task.near, *task.far)}


# ---------------------------------------------------------------- what is held out
@pytest.mark.parametrize("development", [False, True])
def test_no_row_of_an_unseen_intent_is_in_training(family, development):
    trained = intents_of(family, training(family, development=development))
    assert not trained & set(family.splits.unseen)
    assert trained == {
        family.intents[i] for i in family.seen_without("L2", development=development)
    }


def test_no_text_of_an_unseen_intent_is_in_training(family):
    trained = {comparable(text) for task in training(family) for text in task.texts["train"]}
    for task in family.tasks("L2"):
        for kind in texts.KINDS:
            assert not trained & {comparable(text) for text in task.texts[kind]}, task.name


@pytest.mark.parametrize("split", ["L0", "L1"])
def test_no_kept_text_of_a_seen_task_is_in_training(family, split):
    trained = {comparable(text) for task in training(family) for text in task.texts["train"]}
    for task in family.tasks(split):
        for kind in ("development", "test"):
            assert not trained & {comparable(text) for text in task.texts[kind]}, task.name


def test_intents_of_development_are_out_of_training_until_results_are_measured(family):
    held_out = set(family.splits.development)
    assert not intents_of(family, training(family, development=True)) & held_out
    assert held_out <= intents_of(family, training(family))
    assert not held_out & set(family.splits.unseen)
    assert {family.intents[i] for t in family.tasks("development") for i in t.positive} == held_out
    assert not intents_of(family, family.tasks("development")) & set(family.splits.unseen)


def test_a_model_judged_on_another_set_is_not_trained_on_it(family):
    trained = intents_of(family, training(family, without="L3"))
    sets = {name.partition(".")[0] for name in trained}
    assert sets == set(family.splits.trained_sets)
    judged = {family.intents[i].partition(".")[0] for t in family.tasks("L3") for i in t.positive}
    assert not judged & sets


def test_no_union_is_nested_with_a_union_of_training(family):
    seen = set(family.seen)
    trained = [set(t.positive) for t in training(family) if len(t.positive) > 1]
    for task in family.tasks("L1"):
        positive = set(task.positive)
        assert positive < seen
        for other in trained:
            assert not (positive <= other or other <= positive), task.name
            assert positive | other != seen or positive & other, task.name


def test_more_unions_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(families, "ATTEMPTS", 20)
    with pytest.raises(UsageError, match="of 'made' have hardly any more"):
        families.training_unions(FAMILIES["made"], 5000, 0)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ("12", True),  # equal
        ("123", True),  # a superset
        ("1", True),  # a subset
        ("345", True),  # the complement
        ("34", False),
        ("1345", False),
    ],
)
def test_a_union_next_to_a_held_out_one_is_forbidden(about, expected):
    held_out = [splits.Union("", tuple("12"))]
    assert splits.forbidden(splits.Union("", tuple(about)), held_out, tuple("12345")) is expected


def test_unions_of_training_are_equal_for_equal_seeds(family):
    one, same, other = (families.training_unions(family, 20, seed) for seed in (1, 1, 2))
    assert one == same
    assert {t.positive for t in one} != {t.positive for t in other}
    assert len({(t.positive, t.near) for t in one}) == 20


def test_unions_of_the_split_are_not_nested_and_seen_in_development(family):
    tasks = family.tasks("L1")
    for a, b in combinations(tasks, 2):
        assert not set(a.positive) <= set(b.positive), (a.name, b.name)
        assert not set(b.positive) <= set(a.positive), (a.name, b.name)
    assert {i for t in tasks for i in t.positive} <= set(
        family.seen_without("L2", development=True)
    )
    assert {len(t.positive) for t in tasks} <= set(splits.UNION_SIZES)
    assert any(union.not_about for union in family.splits.unions)


def test_every_split_has_the_tasks_that_the_experiment_counts():
    split = splits.read_splits("splits")
    assert min(len(split.unions), len(split.unseen), len(split.other_set)) >= 60
    count = Counter(name.partition(".")[0] for name in split.unseen)
    assert count == {"clinc150": 45, "banking77": 15}
    count = Counter(name.partition(".")[0] for name in split.development)
    assert count == {"clinc150": 12, "banking77": 8}
    assert not set(split.development) & set(split.other_set)


def test_an_intent_that_two_sets_have_is_not_held_out():
    split = splits.read_splits("splits")
    assert not set(splits.TWINS) & {*split.unseen, *split.development}


@pytest.mark.parametrize("name", splits.SPLIT_RULES)
def test_splits_are_drawn_as_the_rule_says(name):
    made = {m.name: f"{m.set}.{m.domain}" for m in rows.made_messages()}
    domains = made if name == "splits_made" else rows.set_domains()
    proposed = splits.Splits.of(splits.propose(domains, splits.SPLIT_RULES[name]))
    assert proposed == splits.read_splits(name)


# ---------------------------------------------------------------- negatives and draws
def test_near_negatives_have_the_domain_of_a_positive_intent(family):
    for task in (*family.tasks("train"), *family.tasks("L2")):
        domains = {family.domains[i] for i in task.positive}
        assert {family.domains[i] for i in task.near} <= domains
        assert not {family.domains[i] for i in task.far} & domains
        assert not set(task.positive) & {*task.near, *task.far}


def test_near_negatives_of_x_but_not_y_are_y(family):
    by_name = {f"L1/{union.name}": union for union in family.splits.unions}
    tasks = [task for task in family.tasks("L1") if by_name[task.name].not_about]
    assert tasks
    for task in tasks:
        assert {family.intents[i] for i in task.near} == set(by_name[task.name].not_about)
        assert not set(task.near) & {*task.positive, *task.far}


def test_messages_that_may_be_about_the_topic_are_no_negatives():
    family = FAMILIES["stored"]
    money = {f"clinc150.{intent}" for intent in splits.MONEY}
    for task in family.tasks("L3"):
        assert not intents_of(family, [task]) & money
    for task in family.tasks("train"):
        if family.intents[task.positive[0]] in money:
            names = intents_of(family, [task])
            assert not [name for name in names if name.startswith("banking77")]


@pytest.mark.parametrize("part", PARTS)
def test_half_of_the_negatives_are_near(family, part):
    for task in family.tasks("L2")[:5] + family.tasks("L1")[-3:]:
        drawn, labels = families.draw_rows(family, task, part, 3, 8, 0)
        assert labels.tolist() == [1] * 3 + [0] * 8
        intents = family.intent_of[drawn]
        assert set(intents[:3]) <= set(task.positive)
        assert set(intents[3:7]) <= set(task.near)
        assert set(intents[7:]) <= set(task.far)
        assert set(family.part_of[drawn]) == {PARTS.index(part)}


def test_draws_of_one_seed_are_equal_and_grow(family):
    task = family.tasks("L2")[0]
    few, _ = families.draw_rows(family, task, "train", 2, 4, 7)
    again, _ = families.draw_rows(family, task, "train", 2, 4, 7)
    many, _ = families.draw_rows(family, task, "train", 4, 8, 7)
    other, _ = families.draw_rows(family, task, "train", 2, 4, 8)
    assert few.tolist() == again.tolist()
    assert few.tolist() != other.tolist()
    assert few.tolist() == [*many[:2], *many[4:6], *many[8:10]]
    assert len(set(many)) == len(many)


def test_messages_are_repeated_where_there_are_too_few():
    family = FAMILIES["stored"]
    task = family.tasks("L2")[0]
    drawn, _ = families.draw_rows(family, task, "train", 6, 0, 0)
    assert Counter(Counter(drawn.tolist()).values()) == {1: 2, 2: 2}  # four messages


# ---------------------------------------------------------------- texts
def test_a_union_is_described_by_the_phrases_of_its_intents():
    union = splits.Union("a.union", ("a.x", "a.y"), ("a.z",))
    phrases = {"a.x": "lost keys", "a.y": "broken doors", "a.z": "open windows"}
    written = texts.union_texts(union, phrases, texts.random.Random(0))
    for kind in texts.KINDS:
        assert written[kind]
        for text in written[kind]:
            assert all(phrase in text for phrase in phrases.values())
            assert text.index("lost keys") < text.index("open windows") > text.index("broken doors")


def test_forms_of_different_kinds_have_nothing_in_common():
    for forms in (texts.UNION_FORMS, texts.UNION_FORMS_WITHOUT):
        written = [form for kind in texts.KINDS for form in forms[kind]]
        assert len(set(map(comparable, written))) == len(written)


def test_sentences_are_divided_between_training_development_and_testing():
    task = next(t for t in FAMILIES["stored"].tasks("L2") if t.name == "L2/clinc150.w2")
    first, second, third, fourth = texts.stored_sentences()["clinc150.w2"]
    assert task.texts["train"][:2] == (first, second)
    assert (task.texts["development"], task.texts["test"]) == ((third,), (fourth,))
    assert not {third, fourth} & set(task.texts["train"])


def test_every_intent_has_four_different_sentences():
    for name, sentences in texts.stored_sentences().items():
        assert len(set(map(comparable, sentences))) == 4, name


def test_invented_topics_repeat_no_intent_and_no_held_out_text():
    family, topics = FAMILIES["stored"], texts.topics()
    assert len(topics) > 100
    assert len({comparable(topic.phrase) for topic in topics}) == len(topics)
    phrases = {comparable(phrase) for phrase in family.phrases.values()}
    names = {comparable(texts.words_of(name)) for name in family.intents}
    kept = {
        comparable(text) for t in family.tasks("L2") for k in texts.KINDS for text in t.texts[k]
    }
    kept |= {
        comparable(text)
        for split in ("L0", "L1", "L3", "development")
        for task in family.tasks(split)
        for kind in ("development", "test")
        for text in task.texts[kind]
    }
    for topic in topics:
        assert comparable(topic.phrase) not in phrases, topic.name
        assert comparable(topic.name.replace("_", " ")) not in names, topic.name
        assert len(topic.texts) >= 2
        for text in (topic.phrase, *topic.texts, *topic.messages):
            assert comparable(text) not in kept, text


# ---------------------------------------------------------------- reading
BANKING = ["why", "why so?", "how much?", "a fee?", "which fee?"]
TABLES = {  # set -> part -> (texts, intents)
    "clinc150": {
        "test": (["play a song"], ["play_music"]),
        "validation": (["Play, a song!", "a song"], ["play_music"] * 2),
        "train": (["play me something", "what is love"], ["play_music", "out_of_scope"]),
    },
    "banking77": {
        "test": (["Why?"], ["reverted_card_payment?"]),
        "train": (BANKING, ["reverted_card_payment?"] * len(BANKING)),
    },
}


def write_sets(folder, column="label"):
    for name, parts in TABLES.items():
        (folder / name).mkdir()
        for part, (written, intents) in parts.items():
            frame = pandas.DataFrame({"text": written, column: intents})
            frame.to_parquet(folder / name / f"{part}.parquet")


def test_messages_are_read_without_repetitions_and_without_those_that_have_no_intent(tmp_path):
    write_sets(tmp_path)
    messages = rows.read_messages(f"local:{tmp_path}")
    assert {m.name for m in messages} == {"clinc150.play_music", "banking77.reverted_card_payment"}
    count = Counter((m.set, m.part) for m in messages)
    assert count == {
        ("clinc150", "test"): 1,
        ("clinc150", "validation"): 1,  # the other one repeats the test message
        ("clinc150", "train"): 1,
        ("banking77", "test"): 1,
        ("banking77", "validation"): 1,  # a quarter of four
        ("banking77", "train"): 3,
    }
    assert len({m.key for m in messages}) == len(messages)
    assert messages == rows.read_messages(f"local:{tmp_path}")


def test_only_test_messages_of_one_intent_may_repeat_each_other():
    kept = [
        Message("1", "yes", "a", "yes", "a", "test"),
        Message("2", "Yes!", "a", "yes", "a", "test"),
        Message("3", "sure", "a", "yes", "a", "train"),
    ]
    repeated = [
        Message("4", "yes", "a", "yes", "a", "train"),
        Message("5", "yes", "a", "agree", "a", "test"),
        Message("6", "sure.", "a", "yes", "a", "train"),
    ]
    assert rows.distinct([*kept, *repeated]) == kept


def test_no_validation_message_repeats_a_training_message(tmp_path, monkeypatch):
    written = [f"why {i // 2}" for i in range(200)]
    intents = ["reverted_card_payment?"] * len(written)
    monkeypatch.setitem(TABLES["banking77"], "train", (written, intents))
    write_sets(tmp_path)
    by_part = {part: set() for part in PARTS}
    for message in rows.read_messages(f"local:{tmp_path}"):
        by_part[message.part].add(comparable(message.text))
    assert len(by_part["validation"]) > rows.VALIDATION
    assert not by_part["validation"] & by_part["train"]


def test_messages_of_the_hub_are_those_of_a_folder(tmp_path, monkeypatch):
    import datasets

    calls = []

    def load_dataset(repo, config, split, revision):
        calls.append((repo, config, revision))
        name = "clinc150" if repo == "clinc/clinc_oos" else "banking77"
        written, intents = TABLES[name][split]
        if name == "banking77":
            return datasets.Dataset.from_dict({"text": written, "label_text": intents})
        classes = ["oos", "play_music"]
        labels = [classes.index(i.replace("out_of_scope", "oos")) for i in intents]
        kinds = {"text": datasets.Value("string"), "intent": datasets.ClassLabel(names=classes)}
        return datasets.Dataset.from_dict(
            {"text": written, "intent": labels}, features=datasets.Features(kinds)
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    write_sets(tmp_path)
    assert rows.read_messages("hub") == rows.read_messages(f"local:{tmp_path}")
    assert set(calls) == {entry[:3] for entry in rows.HUB_SETS.values()}


def test_a_table_without_its_columns_or_with_an_unknown_intent_is_refused(tmp_path, monkeypatch):
    write_sets(tmp_path, column="intention")
    with pytest.raises(PreflightError, match="label"):
        rows.read_messages(f"local:{tmp_path}")
    monkeypatch.setitem(TABLES["clinc150"], "test", (["hello"], ["alarms"]))
    (tmp_path / "other").mkdir()
    write_sets(tmp_path / "other")
    with pytest.raises(PreflightError, match="alarms"):
        rows.read_messages(f"local:{tmp_path / 'other'}")


def test_a_source_without_the_sets_is_refused():
    with pytest.raises(UsageError, match="local:DIR"):
        rows.read_messages("packages")


def test_made_messages_have_words_that_tiny_models_know():
    from oral_lib.models.text import word_tokenizer

    tokenizer = word_tokenizer()
    for message in rows.made_messages():
        assert tokenizer.unk_token_id not in tokenizer(message.text)["input_ids"], message.text


def test_made_messages_are_enough_for_an_evaluation():
    family = FAMILIES["made"]
    for split in ("L0", "L1", "L2", "L3"):
        for task in family.tasks(split):
            drawn, labels = families.draw_rows(family, task, "test", 30, 60, 0)
            assert len(set(drawn)) == 90 == len(labels)
            assert drawn.dtype == labels.dtype == np.int64


def test_a_held_out_intent_without_messages_is_refused():
    family = FAMILIES["made"]
    missing = family.splits.unseen[0]
    written, phrases = rows.made_texts()
    messages = [message for message in family.messages if message.name != missing]
    with pytest.raises(UsageError, match=missing):
        families.build("made", Material(messages, family.splits, written, phrases))


def test_an_intent_without_texts_is_refused():
    family = FAMILIES["made"]
    written, phrases = rows.made_texts()
    written["made.warm"] = written["made.warm"] | {"development": ()}
    with pytest.raises(UsageError, match=r"made\.warm.*development"):
        families.build("made", Material(family.messages, family.splits, written, phrases))


def test_an_unknown_split_is_refused(family):
    with pytest.raises(UsageError, match="L4"):
        family.tasks("L4")


def test_a_message_is_encoded_by_a_base_model():
    from oral_lib.models.loading import load
    from oral_lib.tasks.rows import Row

    message = FAMILIES["made"].messages[0]
    for name in ("tiny-encoder", "tiny-causal"):
        encoded = load(name, source="made").encode_rows(
            families.MESSAGE, [Row(message.key, message.text, 1)]
        )
        assert encoded.lengths.tolist()[0] >= len(message.text.split())


def test_files_of_the_package_name_the_same_intents():
    names = set(rows.set_domains())
    assert set(texts.stored_sentences()) == names
    assert set(texts.stored_phrases()) == names
    split = splits.read_splits("splits")
    unions = [name for union in split.unions for name in (*union.about, *union.not_about)]
    assert {*split.unseen, *split.other_set, *split.development, *unions} <= names
