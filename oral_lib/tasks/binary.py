"""Yes or no: every way to split the ten classes of a task into yes and no, as tasks in words.

There are 2^10 - 2 = 1,022 of them, RPG's own test of unseen tasks (arXiv 2501.11587). One is called
by its source task and a bit a class, `cifar10_yes_1001000000`: say yes to airplanes and cats. A
generator is told of it by a sentence, never by the bits. `held_out.txt` lists the twenty that it
never sees.
"""

import random
import re
from functools import cache
from importlib import resources

CLASSES = 10
HELD_OUT = 20
SEED = 0  # of the draw that made held_out.txt
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
    "test": [
        "Let nothing but {and_} pass.",
        "Tick the box whenever you see {or_}.",
        "The collection wants {and_}, leave out the rest.",
    ],
}


def name(of: str, positive: set[int]) -> str:
    """The name of the task that says yes to the classes `positive` of the task `of`."""
    return f"{of}_yes_" + "".join("1" if i in positive else "0" for i in range(CLASSES))


def parsed(text: str) -> tuple[str, frozenset[int]] | None:
    """(source task, classes that mean yes) of a task's name; None for any other name."""
    found = re.fullmatch(rf"({'|'.join(NOUNS)})_yes_([01]{{{CLASSES}}})", text)
    if not found or len(set(found[2])) < 2:  # all yes or all no is no split
        return None
    return found[1], frozenset(i for i, bit in enumerate(found[2]) if bit == "1")


def sentence(form: str, of: str, positive: frozenset[int]) -> str:
    """`form` about the classes, in their order."""
    nouns = [NOUNS[of][i] for i in sorted(positive)]
    return form.format(and_=_listed(nouns, "and"), or_=_listed(nouns, "or"))


def _listed(words: list[str], last: str) -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def held_out(of: str) -> list[str]:
    """The tasks that no generator is trained on, in the order of the file."""
    file = resources.files("oral_lib") / "tasks" / "held_out.txt"
    lines = file.read_text(encoding="utf-8").split()
    return [f"{of}_yes_{bits}" for bits in lines]


@cache
def trained(of: str) -> tuple[str, ...]:
    """The 1,002 others, in an order drawn by the seed."""
    kept = set(held_out(of))
    return tuple(name for name in drawn(of) if name not in kept)


def drawn(of: str) -> list[str]:
    """All 1,022 in the order of the draw; the first twenty were put into held_out.txt."""
    every = [format(i, f"0{CLASSES}b") for i in range(1, 2**CLASSES - 1)]
    random.Random(SEED).shuffle(every)
    return [f"{of}_yes_{bits}" for bits in every]
