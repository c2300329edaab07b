"""Texts of tasks: sentences about one intent, and set language for several intents."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from oral_lib import storage
from oral_lib.tasks.intents.splits import Union

KINDS = ("train", "development", "test")
UNION_FORMS = {  # {or_} and {and_} list phrases such as "setting an alarm"
    "train": (
        "Is the message about {or_}?",
        "Find messages about {or_}.",
        "Say yes if somebody writes about {or_}, and no otherwise.",
        "Messages about {and_} count, all others do not.",
        "Does the user's message concern {or_}?",
        "Pick out everything about {and_}.",
        "The topic is {or_}.",
        "Tell messages on {and_} from the rest.",
        "We collect messages about {and_}.",
        "Anything about {or_} is a yes.",
        "Check if this is about {or_}.",
        "Route messages to this team if they are about {or_}.",
        "True for messages about {or_}.",
        "Label a message yes when its subject is {or_}.",
        "{or_}",
        "Only {and_}, nothing else.",
    ),
    "development": (
        "Would you file this message under {or_}?",
        "Keep whatever deals with {or_} and drop the other messages.",
        "i need all the messages where people talk about {or_}",
    ),
    "test": (
        "Has the sender brought up {or_}?",
        "Affirmative for utterances on the subject of {and_}; negative for any other utterance.",
        "somebody's asking about {or_}, right?",
    ),
}
UNION_FORMS_WITHOUT = {  # {not_} lists what the message must not be about
    "train": (
        "Is the message about {or_}, but not about {not_}?",
        "Find messages about {or_}, except those about {not_}.",
        "Messages about {and_} count, messages about {not_} do not.",
        "{or_}, but not {not_}",
        "Say yes to {or_} and no to {not_}.",
        "Everything about {and_} without {not_}.",
        "We collect messages about {and_}; leave out {not_}.",
        "Yes if the topic is {or_} rather than {not_}.",
        "Accept {and_}, reject {not_}.",
        "Check if this is about {or_} and not about {not_}.",
    ),
    "development": (
        "File this under {or_}, unless it deals with {not_}.",
        "Keep whatever deals with {or_}, but drop what is on {not_}.",
        "i need the messages on {or_}, not the ones on {not_}",
    ),
    "test": (
        "Has the sender brought up {or_} instead of {not_}?",
        "Affirmative for utterances on {and_}; an utterance on {not_} is negative.",
        "somebody's asking about {or_} and definitely not about {not_}, right?",
    ),
}
UNION_TEXTS = 6  # training texts of a union


@dataclass(frozen=True)
class Topic:
    """An invented topic, which is not an intent of any set; a model may be trained on it."""

    name: str
    phrase: str
    texts: tuple[str, ...]
    messages: tuple[str, ...]  # invented messages about it


def intent_texts(
    name: str, sentences: Sequence[str], phrase: str, wordings: Sequence[str]
) -> Mapping[str, tuple[str, ...]]:
    """The texts of one intent, by kind.

    Args:
        name: name of the intent, which decides the form of one further training text.
        sentences: at least four; the last is for testing, the one before it for development.
        phrase: what "about ..." continues with.
        wordings: further texts for training.
    """
    rng = random.Random(name)
    composed = _filled(rng.choice(UNION_FORMS["train"]), [phrase], [])
    return {
        "train": tuple(dict.fromkeys((*sentences[:-2], *wordings, composed))),
        "development": (sentences[-2],),
        "test": (sentences[-1],),
    }


def union_texts(
    union: Union, phrases: Mapping[str, str], rng: random.Random
) -> Mapping[str, tuple[str, ...]]:
    """The texts of a union, by kind: forms filled with the phrases of its intents in random order.

    The first form is always among them.

    Args:
        union: the union.
        phrases: the phrase of each intent, by name.
        rng: random numbers for forms and order.
    """
    forms = UNION_FORMS_WITHOUT if union.not_about else UNION_FORMS
    texts = {}
    for kind in KINDS:
        first, *others = forms[kind]
        chosen = [first, *(rng.sample(others, UNION_TEXTS - 1) if kind == "train" else others)]
        texts[kind] = tuple(
            _filled(
                form,
                [phrases[name] for name in rng.sample(union.about, len(union.about))],
                [phrases[name] for name in rng.sample(union.not_about, len(union.not_about))],
            )
            for form in chosen
        )
    return texts


@cache
def stored_texts() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """The texts of the intents of CLINC150 and BANKING77, by name and kind."""
    phrases = stored_phrases()
    wordings = {name: entry["train"] for name, entry in _by_intent("phrases.json").items()}
    return {
        name: intent_texts(name, sentences, phrases[name], wordings.get(name, ()))
        for name, sentences in stored_sentences().items()
    }


@cache
def stored_sentences() -> Mapping[str, tuple[str, ...]]:
    """Four sentences an intent of CLINC150 and BANKING77, by the intent's name."""
    return {name: tuple(texts) for name, texts in _by_intent("descriptions.json").items()}


@cache
def stored_phrases() -> Mapping[str, str]:
    """What "about ..." continues with for each intent of CLINC150 and BANKING77, by name."""
    entries = _by_intent("phrases.json")
    return {
        name: entries[name]["phrase"] if name in entries else words_of(name)
        for name in stored_sentences()
    }


@cache
def topics() -> tuple[Topic, ...]:
    """The invented topics of the package. Their author knew the names of the intents."""
    return tuple(
        Topic(
            entry["name"], entry["phrase"], tuple(entry["texts"]), tuple(entry.get("messages", ()))
        )
        for entry in _stored("topics.json", [])
    )


def words_of(intent: str) -> str:
    """The name of an intent as words, where there is no phrase.

    >>> words_of("clinc150.travel_alert")
    'travel alert'
    """
    return intent.partition(".")[2].replace("_", " ").strip("? ").lower()


def _by_intent(file: str) -> dict:
    """The entries of a file of the package, by the name of the intent."""
    return {
        f"{name}.{intent.rstrip('?')}": entry
        for name, entries in _stored(file, {}).items()
        for intent, entry in entries.items()
    }


def _stored(file: str, default: list | dict) -> list | dict:
    path = resources.files("oral_lib") / "tasks" / "intents" / file
    return storage.read_json(path) if path.is_file() else default


def _filled(form: str, about: Sequence[str], not_about: Sequence[str]) -> str:
    parts = {"or_": _listed(about, "or"), "and_": _listed(about, "and")}
    return form.format(**parts, not_=_listed(not_about, "or"))


def _listed(words: Sequence[str], last: str) -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
