"""The messages of a source: read, without repetitions, in three parts."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING
from zlib import crc32

from oral_lib import storage
from oral_lib.assets import sources
from oral_lib.documents.words import is_blank, short
from oral_lib.errors import PreflightError, UsageError
from oral_lib.tasks.intents.message import Message
from oral_lib.tasks.rows import FILLER, comparable

if TYPE_CHECKING:
    from pandas import DataFrame

SETS = ("clinc150", "banking77")
# set -> repository, configuration, revision, column of the intent, columns of class numbers
HUB_SETS = {
    "clinc150": (
        *("clinc/clinc_oos", "plus", "155b9c710419136e17307b80d0a13e68cd46b4ec"),
        *("intent", ("intent",)),
    ),
    "banking77": (
        *("mteb/banking77", "default", "0fd18e25b25c072e09e0d92ab615fda904d66300"),
        *("label_text", ()),
    ),
}
NO_INTENT = ("out_of_scope", "oos")  # labels of messages that have none of the intents
VALIDATION = 20  # at most this many validation messages an intent, of a set without that part

# set -> domain -> marker words of each intent, which the tokenizers of the tiny models contain
MADE = {
    "made": {
        "films": (
            *("bleak clumsy stale", "warm clever fresh"),
            *("dull awful boring", "moving superb funny"),
        ),
        "logic": (
            *("wrong broken absurd", "proven derived valid"),
            *("maybe perhaps likely", "barred refuted denied"),
        ),
        "things": (
            *("river lamp violin", "cable printer helmet"),
            *("actor scene plot", "battery camera router"),
        ),
        "news": (
            *("senate market police", "unicorn sandwich couch"),
            *("proof therefore indeed", "unrelated doubt elsewhere"),
        ),
    },
    "other": {
        "goods": (
            *("useless flimsy noisy", "sturdy handy excellent", "more higher louder"),
            *("less lower quieter", "twin mirror echo", "same equal alike"),
        )
    },
}
MADE_ROWS = {"train": 40, "validation": 10, "test": 30}  # made messages an intent


@cache
def set_domains() -> dict[str, str]:
    """The domain of each intent of CLINC150 and BANKING77, as "set.domain", by name.

    >>> set_domains()["clinc150.alarm"]
    'clinc150.utility'
    """
    file = resources.files("oral_lib") / "tasks" / "intents" / "domains.json"
    return {
        f"{name}.{intent}": f"{name}.{domain}"
        for name, domains in storage.read_json(file).items()
        for domain, intents in domains.items()
        for intent in intents
    }


def read_messages(source: str) -> tuple[Message, ...]:
    """The messages of CLINC150 and BANKING77 that have an intent, without repetitions.

    Of messages with the same words (`distinct`), test messages are kept before validation messages,
    and these before training messages. BANKING77 has no validation part: a quarter of each intent's
    training messages, and at most `VALIDATION`, become one.

    Args:
        source: "local:DIR" or "hub".

    Raises:
        UsageError: for a source without these sets.
        PreflightError: if a file or part is missing, damaged or not as expected.
    """
    kind, folder = sources.parse_source(source)
    if kind not in ("local", "hub"):
        raise UsageError(
            f"source {source!r} has no messages of CLINC150 and BANKING77: use --source local:DIR "
            "or --source hub."
        )
    messages = []
    for name in SETS:
        for part in ("test", "validation", "train") if name == "clinc150" else ("test", "train"):
            if kind == "hub":
                repo, config, revision, column, named = HUB_SETS[name]
                frame = sources.hub_rows(repo, config, part, revision, named)
            else:
                column, frame = "label", sources.local_rows(folder, name, part)
            messages += _messages(frame, name, part, column)
    return with_validation(distinct(messages))


def _messages(frame: "DataFrame", name: str, part: str, column: str) -> list[Message]:
    """The messages of one part of a set that have an intent. PreflightError for a column that is
    missing and for a cell that is not a text or not an intent of the set."""
    file, domains = frame.attrs.get("file", f"{name}/{part}"), set_domains()
    if missing := [c for c in ("text", column) if c not in frame.columns]:
        raise PreflightError(f"{file} has no column {missing[0]!r}: check the data set.")
    messages = []
    for i, (text, label) in enumerate(zip(frame["text"], frame[column], strict=True)):
        if label in NO_INTENT:
            continue
        intent = str(label).rstrip("?")
        if not isinstance(text, str) or is_blank(text) or f"{name}.{intent}" not in domains:
            raise PreflightError(
                f"row {i} of {file} is invalid: the text is empty or {short(label)} is not an "
                f"intent of {name}. Check the data set."
            )
        domain = domains[f"{name}.{intent}"].partition(".")[2]
        messages.append(Message(f"{name}-{part}-{i}", text.strip(), name, intent, domain, part))
    return messages


def distinct(messages: Iterable[Message]) -> list[Message]:
    """`messages` without those that repeat the words of an earlier one.

    Case, blanks and punctuation do not count. Repetitions among the test messages of one intent are
    kept, so that every intent has as many test messages as in the published sets.
    """
    first: dict[tuple, Message] = {}
    return [
        message
        for message in messages
        if (other := first.setdefault(comparable(message.text), message)) is message
        or (other.name, other.part) == (message.name, message.part) == (message.name, "test")
    ]


def with_validation(messages: Iterable[Message]) -> tuple[Message, ...]:
    """`messages` with a validation part in every set. A set without one gives training messages."""
    messages = tuple(messages)
    have = {message.set for message in messages if message.part == "validation"}
    count = Counter(m.name for m in messages if m.part == "train" and m.set not in have)
    left = {name: min(VALIDATION, n // 4) for name, n in count.items()}
    order = sorted(messages, key=lambda message: crc32(message.key.encode()))
    moved = set()
    for message in order:
        if message.part == "train" and left.get(message.name, 0):
            left[message.name] -= 1
            moved.add(message.key)
    return tuple(replace(m, part="validation") if m.key in moved else m for m in messages)


def made_messages() -> tuple[Message, ...]:
    """Synthetic messages: filler words and one marker word of the intent."""
    rng = random.Random(0)
    messages, seen = [], set()
    for name, domains in MADE.items():
        for domain, intents in domains.items():
            for markers in map(str.split, intents):
                for part, n in MADE_ROWS.items():
                    for i in range(n):
                        text = ""
                        while not text or text in seen:
                            words = rng.choices(FILLER, k=rng.randint(3, 6))
                            words.insert(rng.randint(0, len(words)), rng.choice(markers))
                            text = " ".join(words)
                        seen.add(text)
                        key = f"{name}-{markers[0]}-{part}-{i}"
                        messages.append(Message(key, text, name, markers[0], domain, part))
    return tuple(messages)


def made_texts() -> tuple[dict[str, dict[str, tuple[str, ...]]], dict[str, str]]:
    """(texts by kind, phrase) of each intent of the made messages, by name."""
    texts, phrases = {}, {}
    for name, domains in MADE.items():
        for markers in (text.split() for intents in domains.values() for text in intents):
            a, b, c = markers
            texts[f"{name}.{a}"] = {
                "train": (
                    f"Is there a word such as {a} , {b} or {c} in the message?",
                    f"Find messages with {c} , {a} or {b} .",
                    f"The text is about {b} or {c} .",
                ),
                "development": (f"Does somebody say {b} or {a} ?",),
                "test": (f"Tell if the text has {a} or {c} in it.",),
            }
            phrases[f"{name}.{a}"] = f"{a} , {b} and {c}"
    return texts, phrases
