"""Names of tasks in words, for figures and tables."""

import textwrap

from oral_lib.tasks.binary import NOUNS
from oral_lib.tasks.task import load_task

_LINE = 34  # characters of a label


def task_words(name: str) -> str:
    """The task in words: `review topic`; for a yes/no task its classes, perhaps on two lines.

    >>> task_words("review_topic")
    'review topic'
    >>> task_words("cifar10_yes_1001000000")
    'airplanes, cats'
    >>> task_words("cifar10_yes_1111111110")
    'all but trucks'
    """
    if "_yes_" not in name:
        return name.replace("_", " ")
    task = load_task(name)
    nouns = NOUNS[task.of]
    positive = [noun for i, noun in enumerate(nouns) if i in task.positive]
    others = [noun for noun in nouns if noun not in positive]
    words = ", ".join(positive) if len(positive) <= len(others) else f"all but {', '.join(others)}"
    return "\n".join(textwrap.wrap(words, _LINE))
