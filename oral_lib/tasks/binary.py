"""Binary tasks: all splits of a task's ten classes into yes and no.

The 2^10 - 2 = 1,022 splits are RPG's test of unseen tasks (arXiv 2501.11587). A binary task is
named by its source task and one bit a class: `cifar10_yes_1001000000` is yes for airplanes and
cats. A generator is conditioned on a sentence about the task, never on the bits. `held_out.txt`
lists the twenty tasks that no generator is trained on.
"""

import random
import re
from functools import cache
from importlib import resources

_CLASSES = 10
HELD_OUT = 20
_SEED = 0  # of the order that held_out.txt is taken from
NOUNS = {
    "cifar10": [
        "airplanes", "automobiles", "birds", "cats", "deer", "dogs", "frogs", "horses", "ships",
        "trucks",
    ],
    "digits": [
        "zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines",
    ],
}  # fmt: skip
DESCRIPTION = "Say yes to {and_}."
WORDINGS = {
    "train": [
        "Answer yes if the picture shows {or_}, and no otherwise.",
        "Accept {and_} and reject everything else.",
        "Only {and_} count as yes.",
        "Is this one of {or_}?",
        "Yes for {and_}, no for all other things.",
        "Pick out the pictures of {and_}.",
        "We are looking for {and_}.",
        "Positive examples are {and_}.",
        "Respond with yes for {and_} and with no for the rest.",
        "The answer is yes for {and_}.",
        "Pictures of {and_} are the ones to keep.",
        "Does this picture show {or_}?",
        "Flag every picture in which there are {or_}.",
        "Sort the pictures: {and_} to one side, all else to the other.",
        "Here {and_} are wanted, nothing else is.",
        "Tell {and_} from everything else.",
    ],
    "development": [
        "Let nothing but {and_} pass.",
        "Tick the box whenever you see {or_}.",
        "The collection wants {and_}, leave out the rest.",
    ],
    "test": [
        "Could you say yes whenever there are {or_} in it, and no if not?",
        "Retain {and_}, discard what remains.",
        "i'm after {and_}, give me a yes for those please",
        "My album is meant for {and_}, so I need a yes or no on each photo that comes in.",
        "The output is to be affirmative for images of {and_} and negative in all remaining cases.",
    ],
}


def task_name(of: str, positive: set[int]) -> str:
    """Name of the binary task whose positive classes are `positive`, of the task `of`."""
    return f"{of}_yes_" + "".join("1" if i in positive else "0" for i in range(_CLASSES))


def parse(name: str) -> tuple[str, frozenset[int]] | None:
    """(source task, positive classes) of a binary task's name; None for any other name."""
    match = re.fullmatch(rf"({'|'.join(NOUNS)})_yes_([01]{{{_CLASSES}}})", name)
    if not match or len(set(match[2])) < 2:  # neither all yes nor all no is a task
        return None
    return match[1], frozenset(i for i, bit in enumerate(match[2]) if bit == "1")


def sentence(form: str, of: str, positive: frozenset[int]) -> str:
    """The template `form` with the nouns of the classes `positive` of the task `of`."""
    nouns = [NOUNS[of][i] for i in sorted(positive)]
    return form.format(and_=_listed(nouns, "and"), or_=_listed(nouns, "or"))


def _listed(words: list[str], last: str) -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def held_out(of: str) -> list[str]:
    """Names of the tasks that no generator is trained on, in the order of held_out.txt."""
    file = resources.files("oral_lib") / "tasks" / "held_out.txt"
    lines = file.read_text(encoding="utf-8").split()
    return [f"{of}_yes_{bits}" for bits in lines]


@cache
def training_tasks(of: str) -> tuple[str, ...]:
    """Names of the other 1,002 tasks in a random, fixed order."""
    excluded = set(held_out(of))
    return tuple(name for name in all_tasks(of) if name not in excluded)


def all_tasks(of: str) -> list[str]:
    """Names of all 1,022 tasks in a random, fixed order; the first twenty are in held_out.txt."""
    bits = [format(i, f"0{_CLASSES}b") for i in range(1, 2**_CLASSES - 1)]
    random.Random(_SEED).shuffle(bits)
    return [f"{of}_yes_{text}" for text in bits]
