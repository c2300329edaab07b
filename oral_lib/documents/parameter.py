"""A parameter of a notebook: its comment says which values are allowed.

    steps = 20  # 1 or more; of the sampler
    weight = 0.5  # 0 to 1
    recurrence = "mamba2"  # one of mamba2, lstm, transformer, none

The rule also holds for the elements of a list. Further words follow a semicolon. A comment in
another form allows every value.
"""

import re
from dataclasses import dataclass
from typing import Any

from oral_lib.documents.words import short
from oral_lib.errors import UsageError, closest

_CHOICES = re.compile(r"one of ([^;]+)")
_RANGE = re.compile(r"(-?[\d.]+) (?:or more|to (-?[\d.]+))(?:;|$)")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook.

    Args:
        name: in the notebook.
        default: its value there; None if that is not a literal.
        comment: says which values are allowed.

    >>> Parameter("steps", 20, "1 or more; of the sampler").check(0)
    Traceback (most recent call last):
    oral_lib.errors.UsageError: parameter steps must be 1 or more, got 0.
    """

    name: str
    default: Any
    comment: str = ""

    def check(self, value: Any) -> None:
        """Raises UsageError for a value that the comment does not allow."""
        for element in value if isinstance(value, list) else [value]:
            near, valid = "", True
            if match := _CHOICES.match(self.comment):
                choices = match[1].split(", ")
                valid, near = str(element) in choices, closest(str(element), choices)
            elif match := _RANGE.match(self.comment):
                low, high = float(match[1]), float(match[2] or "inf")
                valid = isinstance(element, (int, float)) and low <= element <= high
            if not valid:
                rule, got = match[0].rstrip(";"), short(element)
                raise UsageError(f"parameter {self.name} must be {rule}, got {got}.{near}")
