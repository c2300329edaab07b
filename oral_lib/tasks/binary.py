"""Binary tasks: splits of a task's ten classes into yes and no.

The 2^10 - 2 = 1,022 tasks are RPG's test of unseen tasks (arXiv 2501.11587). There, the complement
of every held-out task is among the training tasks. With heads initialised at zero it is the same
LoRA with its two head rows exchanged, so the training set has the answer. Here a split stands for
itself and its complement: of the 511 splits up to complement, only the canonical side is a task.

`held_out_splits.json` decides what a split is used for. Three held-out classes were drawn at
random. A split belongs to one of four sets:

    train    the three held-out classes are on the other side than the canonical one
    pairs    likewise, but drawn at random and kept out of training with its complement
    classes  held-out classes are on both sides, and the split is listed
    unused   all other splits

No training task separates two held-out classes, and no training sentence names one.

A task is named by its source task, its set and one bit a class: `cifar10_yes_pairs_1001000000` is
yes for airplanes and cats. Names without a set, such as `cifar10_yes_1001000000`, exist for all
1,022 tasks: the first release and complements use them. A generator is conditioned on a sentence
about the task, never on the bits.
"""

import itertools
import json
import random
import re
from functools import cache
from importlib import resources

N_CLASSES = 10
_SEED = 0  # of the order of training tasks
SPLIT_SETS = ("train", "pairs", "classes")
HELD_OUT_SETS = ("pairs", "classes")  # the sets that no generator is trained on
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


def task_name(of: str, positive: set[int] | frozenset[int], part: str = "") -> str:
    """Name of the binary task whose positive classes are `positive`.

    Args:
        of: the source task.
        positive: indices of classes.
        part: one of `SPLIT_SETS`, or empty for a name without a set.
    """
    bits = "".join("1" if i in positive else "0" for i in range(N_CLASSES))
    return f"{of}_yes_{part}_{bits}" if part else f"{of}_yes_{bits}"


@cache
def _names() -> re.Pattern:
    source, part = "|".join(NOUNS), "|".join(SPLIT_SETS)
    return re.compile(rf"({source})_yes_(?:({part})_)?([01]{{{N_CLASSES}}})")


def parse(name: str) -> tuple[str, frozenset[int]] | None:
    """(source task, positive classes) of a binary task's name; None for any other name.

    A name with a set is valid only if its split belongs to that set.
    """
    match = _names().fullmatch(name)
    if not match or len(set(match[3])) < 2:  # neither all yes nor all no is a task
        return None
    positive = frozenset(i for i, bit in enumerate(match[3]) if bit == "1")
    if match[2] and positive not in splits(match[2]):
        return None
    return match[1], positive


def set_of(name: str) -> str:
    """The set in a binary task's name, one of `SPLIT_SETS`; empty for any other name."""
    match = _names().fullmatch(name)
    return (match[2] or "") if match else ""


def sentence(form: str, of: str, positive: frozenset[int]) -> str:
    """The template `form` with the nouns of the classes `positive` of the task `of`."""
    nouns = [NOUNS[of][i] for i in sorted(positive)]
    return form.format(and_=_listed(nouns, "and"), or_=_listed(nouns, "or"))


def _listed(words: list[str], last: str) -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# ---------------------------------------------------------------- up to complement
def complement(positive: frozenset[int]) -> frozenset[int]:
    """The classes that are not in `positive`."""
    return frozenset(range(N_CLASSES)) - positive


def canonical(positive: frozenset[int]) -> frozenset[int]:
    """The side of a split that stands for it: the smaller one, of two fives the one with class 0.

    >>> sorted(canonical(frozenset({0, 1, 2, 3, 4, 5, 6, 7})))
    [8, 9]
    """
    return min(positive, complement(positive), key=lambda side: (len(side), sorted(side)))


@cache
def canonical_splits() -> tuple[frozenset[int], ...]:
    """The canonical sides of all 511 splits, by size and then by class."""
    sizes = range(1, N_CLASSES // 2 + 1)
    sides = (frozenset(c) for n in sizes for c in itertools.combinations(range(N_CLASSES), n))
    return tuple(side for side in sides if side == canonical(side))


@cache
def _held_out() -> dict[str, tuple]:
    """The content of held_out_splits.json: classes by index, splits as sets of classes."""
    file = resources.files("oral_lib") / "tasks" / "held_out_splits.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    parts = {part: tuple(frozenset(side) for side in content[part]) for part in HELD_OUT_SETS}
    return parts | {"held_out_classes": tuple(content["held_out_classes"])}


def held_out_classes() -> frozenset[int]:
    """The classes that no training task separates from each other or names."""
    return frozenset(_held_out()["held_out_classes"])


@cache
def splits(part: str) -> tuple[frozenset[int], ...]:
    """The splits of one of `SPLIT_SETS` in a fixed order, as the positive classes of tasks."""
    if part in HELD_OUT_SETS:
        return _held_out()[part]
    pairs, classes = set(splits("pairs")), held_out_classes()
    sides = [s for s in canonical_splits() if s not in pairs and not s & classes]
    random.Random(_SEED).shuffle(sides)  # the first n tasks of a small run have all sizes
    return tuple(sides)


def training_tasks(of: str) -> tuple[str, ...]:
    """Names of the tasks that generators are trained on."""
    return tuple(task_name(of, positive, "train") for positive in splits("train"))


def held_out_tasks(of: str, part: str) -> tuple[str, ...]:
    """Names of the measured tasks of a set, one of `HELD_OUT_SETS`."""
    return tuple(task_name(of, positive, part) for positive in splits(part))


def complement_task(name: str) -> str:
    """The name, without a set, of the task whose positive classes are the negative ones of `name`.

    >>> complement_task("digits_yes_1000000000")
    'digits_yes_0111111111'
    """
    of, positive = parse(name)
    return task_name(of, complement(positive))
