"""A message with its intent, and what a family of intents is built from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from oral_lib.tasks.intents.splits import Splits

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Message:
    """One message, such as a question to an assistant, with its intent."""

    key: str  # stable across runs, so that the scores of two methods can be paired
    text: str
    set: str  # "clinc150", "banking77" or another set's name
    intent: str
    domain: str
    part: str  # one of PARTS

    @property
    def name(self) -> str:
        """The intent with its set in front, such as "clinc150.alarm"."""
        return f"{self.set}.{self.intent}"


@dataclass(frozen=True)
class Material:
    """Messages, texts and splits from which `family.build` makes a family.

    Intents are named as by `Message.name`.
    """

    messages: Sequence[Message]
    splits: Splits
    texts: Mapping[str, Mapping[str, Sequence[str]]]  # train, development and test, by intent
    phrases: Mapping[str, str] = field(default_factory=dict)  # what "about ..." continues with
