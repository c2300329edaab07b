"""Intents of the source `packages`: is the message the definition of a kind of bird?

A message is the definition of a noun of WordNet 3.0 without the noun. Its intent is the one of 231
broader nouns in `glosses.json` that the noun is a kind or an instance of; a noun under several of
them is left out. The names of the intent are masked in its own messages. There is one set of
messages, so the split L3 is empty.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from oral_lib import storage
from oral_lib.assets import sources
from oral_lib.tasks.intents import splits
from oral_lib.tasks.intents.message import Material, Message

if TYPE_CHECKING:
    from pandas import DataFrame

SET = "glosses"
LEAST = 60  # messages that an intent needs
TEST, CHOSEN_ON, TRAIN = 30, 20, 100  # messages an intent; validation is a third of train at most
LEAST_WORDS = 3  # of a message, the mask not counted
MASK = "one"
RULE = splits.Rule(
    seed=0,
    domains=3,
    single={SET: 24},
    development={SET: 20},
    unions=42,
    without=24,
    trained_sets=(SET,),
)
DESK_DOMAINS, DESK_SEEN, DESK_UNSEEN, DESK_DEVELOPMENT = 9, 60, 12, 6
GLOSS_FORMS = {  # {a}, {b}, {c}: names; {gloss}: their definition; {like}: three examples
    "train": (
        "The message defines some {a}.",  # the matched text
        "Does the text explain what some {b} is?",
        "Say yes if the thing described is {gloss}.",
        "A dictionary entry under {a}, for instance {like}.",
        "Decide if the definition belongs to some {b}, such as {like}.",
        "Definitions of any {a}, whatever its name",
        "{a}: {gloss}",
        "Anything that counts as {b} is a yes.",
        "Is some {a} meant here?",
        "The word that is explained is the name of some {b}.",
        "We collect entries on every {a}, be it {like}.",
        "Yes for each {b} ({gloss}), no for other things.",
    ),
    "development": (
        "Would a glossary list the thing described under {a}?",
        "Keep descriptions that fit some {b}, drop the remaining ones.",
        "i need all the entries that define some {a} or other",
    ),
    "test": (
        "Could that which is characterised here pass for {c}?",
        "Affirmative when a lexicon has its headword among {c}; negative in all remaining cases.",
        "somebody is describing {c}, right?",
    ),
}
GLOSS_TEXTS = {"train": 9, "development": 2, "test": 2}  # texts an intent


class Noun(NamedTuple):
    """One row of the asset, as `assets.wordnet.nouns` describes it."""

    synset: str
    names: str
    kind_of: str
    instance_of: str
    text: str


@dataclass(frozen=True)
class Intent:
    """One intent as `glosses.json` defines it."""

    domain: str
    name: str
    synsets: tuple[str, ...]  # whose kinds it has
    without: tuple[str, ...]  # whose kinds it does not have
    instances: bool  # whether instances, such as Paris, belong to it
    names: tuple[str, ...]  # two that the training texts have, one that only test texts have
    masked: tuple[str, ...]  # further words to mask in its messages

    @property
    def full_name(self) -> str:
        """The name with the set in front, as `Message.name` has it."""
        return f"{SET}.{self.name}"


@cache
def intents() -> tuple[Intent, ...]:
    """The intents of the package."""
    return tuple(
        Intent(
            domain,
            name,
            tuple(entry["synsets"]),
            tuple(entry.get("without", ())),
            entry.get("instances", False),
            tuple(entry["names"]),
            tuple(entry.get("masked", ())),
        )
        for domain, entries in _stored("glosses")["domains"].items()
        for name, entry in entries.items()
    )


def load(scale: str = "lab") -> Material:
    """Messages, texts and splits; the scale `desk` has 72 intents only.

    Raises:
        PreflightError: if the asset `glosses` is missing or damaged.
    """
    content = splits.read_splits("splits_glosses_desk" if scale == "desk" else "splits_glosses")
    chosen = intents()
    if scale == "desk":
        names = set(_stored("splits_glosses_desk")["intents"])
        chosen = tuple(intent for intent in chosen if intent.full_name in names)
    return material(sources.package_rows(SET), chosen, content)


def material(
    frame: "DataFrame", chosen: Sequence[Intent], content: splits.Splits, least: int = LEAST
) -> Material:
    """The material of a family.

    Args:
        frame: rows as `assets.wordnet.nouns` writes them.
        chosen: the intents. A noun is left out if it is under another intent of the package, too.
        content: the splits.
        least: an intent with fewer messages is refused.

    Raises:
        ValueError: if an intent has fewer messages than `least`.
    """
    columns = (frame[name].tolist() for name in Noun._fields)
    nouns = {row[0]: Noun(*row) for row in zip(*columns, strict=True)}
    members = _members(nouns)
    messages, texts = [], {}
    for intent in chosen:
        written = _messages(intent, nouns, members[intent.name])
        if len(written) < least:
            raise ValueError(
                f"the intent {intent.name!r} has {len(written)} messages, not {least}."
            )
        messages += written
        trained = (m.key.removeprefix(f"{SET}-") for m in written if m.part == "train")
        like = [nouns[synset].names.split("|")[0] for synset in trained]
        texts[intent.full_name] = _texts(intent, nouns[intent.synsets[0]].text, like)
    phrases = {intent.full_name: f"any {intent.names[0]}" for intent in chosen}
    return Material(_unambiguous(messages), content, texts, phrases)


def _unambiguous(messages: Sequence[Message]) -> list[Message]:
    """The messages whose text no other intent has."""
    owners = defaultdict(set)
    for message in messages:
        owners[message.text.casefold()].add(message.intent)
    return [message for message in messages if len(owners[message.text.casefold()]) == 1]


def _members(nouns: Mapping[str, Noun]) -> dict[str, list[str]]:
    """The synsets whose definition occurs under one intent only, by the name of the intent."""
    kinds, examples = defaultdict(list), defaultdict(list)
    for noun in nouns.values():
        for broader in noun.kind_of.split():
            kinds[broader].append(noun.synset)
        for broader in noun.instance_of.split():
            examples[broader].append(noun.synset)

    def under(synsets: Iterable[str], instances: bool) -> set[str]:
        reached, waiting = set(), list(synsets)
        while waiting:
            synset = waiting.pop()
            if synset not in reached:
                reached.add(synset)
                waiting += kinds[synset]
        return reached | {e for s in reached for e in examples[s]} if instances else reached

    owners = defaultdict(list)
    for intent in intents():
        inside = under(intent.synsets, intent.instances) - set(intent.synsets)
        for synset in inside - under(intent.without, intent.instances):
            owners[synset].append(intent.name)
    with_text = defaultdict(set)
    for synset, names in owners.items():
        with_text[nouns[synset].text].update(names)
    members = defaultdict(list)
    for synset, names in owners.items():
        if len(with_text[nouns[synset].text]) == 1:
            members[names[0]].append(synset)
    return members


def _messages(intent: Intent, nouns: Mapping[str, Noun], synsets: Iterable[str]) -> list[Message]:
    """The messages of one intent in random, fixed order: test, then validation, then train."""
    names = [name for synset in intent.synsets for name in nouns[synset].names.split("|")]
    mask = masking(names, intent.masked)
    texts: dict[str, tuple[str, str]] = {}  # (synset, text) by the words of the text
    for synset in sorted(synsets, key=lambda synset: (crc32(synset.encode()), synset)):
        text = masked(nouns[synset].text, mask)
        words = re.findall(r"\w+", text.casefold())
        if sum(word != MASK for word in words) >= LEAST_WORDS:
            texts.setdefault(" ".join(words), (synset, text))
        if len(texts) == TEST + CHOSEN_ON + TRAIN:
            break
    n = min(CHOSEN_ON, (len(texts) - TEST) // 4)
    parts = ["test"] * TEST + ["validation"] * n + ["train"] * len(texts)
    return [
        Message(f"{SET}-{synset}", text, SET, intent.name, intent.domain, part)
        for (synset, text), part in zip(texts.values(), parts, strict=False)
    ]


def masking(names: Sequence[str], further: Sequence[str] = ()) -> re.Pattern:
    """What is masked: every word of the first name, the last word of all names, and further words.

    A word is masked in the plural as well, and at the end of a longer word if it has four letters.
    """
    words = {*re.findall(r"\w{3,}", names[0]), *further}
    words |= {re.split(r" (?:of|for|in) ", name)[0].split()[-1] for name in names}
    words -= {"and", "the", "for", "other"}
    forms = []
    for word in sorted(words):
        stem = re.escape(word)
        if word.endswith("y"):
            stem = f"{re.escape(word[:-1])}(?:y|ie)"
        elif word.endswith("us"):
            stem = f"{re.escape(word[:-2])}(?:us|era|i)"
        elif word.endswith("um"):
            stem = f"{re.escape(word[:-2])}(?:um|a)"
        start = r"\w*" if len(word) > 3 else ""
        forms.append(rf"{start}{stem}(?:s|es)?")
    return re.compile(rf"\b(?:{'|'.join(forms)})\b", re.IGNORECASE)


def masked(text: str, mask: re.Pattern) -> str:
    """`text` with `MASK` in place of what `mask` matches; repetitions become one.

    >>> masked("small songbird; a bird of Europe", masking(["bird"]))
    'small one; a one of Europe'
    """
    return re.sub(rf"\b{MASK}(?:[ -]{MASK}\b)+", MASK, mask.sub(MASK, text))


def _texts(intent: Intent, definition: str, like: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The texts of one intent, by kind: filled forms, the first of each kind always among them."""
    rng = random.Random(intent.full_name)
    gloss = re.sub(r"^\([^)]*\) ", "", definition).split(";")[0]
    a, b, c = intent.names

    def filled(form: str) -> str:
        examples = " or ".join(rng.sample(like, min(3, len(like))))
        return form.format(a=a, b=b, c=c, gloss=gloss, like=examples)

    written = {}
    for kind, n in GLOSS_TEXTS.items():
        first, *others = GLOSS_FORMS[kind]
        written[kind] = tuple(filled(form) for form in (first, *rng.sample(others, n - 1)))
    return written


def propose_glosses() -> tuple[dict, dict]:
    """The contents of `splits_glosses.json` and `splits_glosses_desk.json`."""
    domains = {intent.full_name: f"{SET}.{intent.domain}" for intent in intents()}
    full = splits.propose(domains, RULE)
    return full, propose_desk(domains, full)


def propose_desk(domains: Mapping[str, str], full: Mapping) -> dict:
    """A small share of the splits `full`: unseen intents stay unseen and seen ones seen.

    The unseen intents are one whole domain, as far as the number allows, and single ones.
    """
    rng = random.Random(RULE.seed)
    whole = rng.choice(full["domains"])
    others = sorted(set(domains.values()) - set(full["domains"]))
    chosen = set(rng.sample(others, DESK_DOMAINS - 1))
    unseen = rng.sample(sorted(n for n in domains if domains[n] == whole), DESK_UNSEEN // 2)
    single = sorted(n for n in full["L2"] if domains[n] in chosen)
    unseen += rng.sample(single, DESK_UNSEEN - len(unseen))
    development = sorted(n for n in full["development"] if domains[n] in chosen)
    development = rng.sample(development, min(DESK_DEVELOPMENT, len(development)))
    usable = sorted(
        n
        for n, domain in domains.items()
        if domain in chosen and n not in {*full["L2"], *full["development"]}
    )
    seen = {n: domains[n] for n in rng.sample(usable, DESK_SEEN - len(development))}
    unions: list[splits.Union] = []
    while len(unions) < DESK_UNSEEN:
        union = splits.draw_union(seen, rng, without=len(unions) >= 8)
        if not any(splits.nested(union, other) for other in unions):
            unions.append(union)
    return {
        "seed": RULE.seed,
        "domains": [whole],
        "intents": sorted({*seen, *development, *unseen}),
        "development": sorted(development),
        "L1": [
            {"name": f"{SET}.union-{i:03d}", "about": u.about, "not_about": u.not_about}
            for i, u in enumerate(unions)
        ],
        "L2": sorted(unseen),
        "L3": [],
        "L3_trained_on": [SET],
    }


def _stored(name: str) -> dict:
    return storage.read_json(resources.files("oral_lib") / "tasks" / "intents" / f"{name}.json")
