"""The messages of a source: read, without repetitions, in three parts."""

import random
from collections import Counter
from collections.abc import Iterable
from zlib import crc32

from oral_lib.assets import sources
from oral_lib.errors import PreflightError, UsageError
from oral_lib.tasks.intents.message import Message
from oral_lib.tasks.rows import FILLER, comparable

SETS = ("clinc150", "banking77")
NO_INTENT = "out_of_scope"  # label of messages that have none of the intents
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


def read_messages(source: str) -> tuple[Message, ...]:
    """The messages of CLINC150 and BANKING77 that have an intent, without repetitions.

    Where messages of several parts or intents have the same words (`distinct`), test messages are
    kept before validation messages, and these before training messages. BANKING77 has no validation
    part: a quarter of each intent's training messages, and at most `VALIDATION`, become one.

    Args:
        source: "local:DIR".

    Raises:
        UsageError: for a source without these sets.
        PreflightError: if a file is missing, damaged or without a column.
    """
    kind, folder = sources.parse_source(source)
    if kind != "local":
        raise UsageError(
            f"source {source!r} has no rows of CLINC150 and BANKING77: no revision of them is "
            "pinned on the hub. Use --source local:DIR with DIR/clinc150 and DIR/banking77."
        )
    messages = []
    for name in SETS:
        for part in ("test", "validation", "train") if name == "clinc150" else ("test", "train"):
            frame = sources.local_rows(folder, name, part)
            if missing := {"text", "label", "domain"} - set(frame.columns):
                file = frame.attrs.get("file", f"{name}/{part}")
                raise PreflightError(f"{file} has no column {min(missing)!r}: check the data set.")
            messages += [
                Message(f"{name}-{part}-{i}", text.strip(), name, label.rstrip("?"), domain, part)
                for i, (text, label, domain) in enumerate(
                    frame[["text", "label", "domain"]].itertuples(index=False, name=None)
                )
                if label != NO_INTENT
            ]
    return with_validation(distinct(messages))


def distinct(messages: Iterable[Message]) -> list[Message]:
    """`messages` without those that repeat the words of an earlier one of another part or intent.

    Case, blanks and punctuation do not count. Repetitions within one part of one intent are kept:
    they move nothing from one part to another.
    """
    first: dict[tuple, Message] = {}
    return [
        message
        for message in messages
        if (other := first.setdefault(comparable(message.text), message)) is message
        or (other.name, other.part) == (message.name, message.part)
    ]


def with_validation(messages: Iterable[Message]) -> tuple[Message, ...]:
    """`messages` with a validation part in every set, taken from training where there is none."""
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
    return tuple(
        Message(m.key, m.text, m.set, m.intent, m.domain, "validation") if m.key in moved else m
        for m in messages
    )


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


def made_texts() -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """(four sentences, phrase) of each intent of the made messages, by name."""
    sentences, phrases = {}, {}
    for name, domains in MADE.items():
        for markers in (text.split() for intents in domains.values() for text in intents):
            a, b, c = markers
            key = f"{name}.{a}"
            sentences[key] = (
                f"Is there a word such as {a} , {b} or {c} in the message?",
                f"Find messages with {c} , {a} or {b} .",
                f"Does somebody say {b} or {a} ?",
                f"Tell if the text has {a} or {c} in it.",
            )
            phrases[key] = f"{a} , {b} and {c}"
    return sentences, phrases
