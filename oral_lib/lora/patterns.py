r"""Regular expressions of a PEFT configuration, which may come from anyone: are they cheap?

PEFT looks ranks and scales up with `re`, which backtracks: `([a-z.]+)+!` does not end within a
lifetime. Here a pattern is parsed and its worst cost is bounded before anything runs it. d parts
that repeat without limit try at most C(n + d, d) ways to divide a name of n letters; such a part
inside another one has no useful bound and is refused.

>>> check("rank_pattern", r"layers\.\d+\.self_attn\.(q|v)_proj")
>>> check("rank_pattern", "([a-z.]+)+!")
Traceback (most recent call last):
oral_lib.errors.OralError: Invalid LoRA configuration: rank_pattern '([a-z.]+)+!' can take for ...
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from math import comb, inf
from re import _constants as ops
from re import _parser
from typing import Any

from oral_lib.errors import OralError

# how PEFT completes each pattern (0.21): get_pattern_key and check_target_module_exists
FORMS = {
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
    "target_modules": "{}",  # where it is one text; a list has plain names
    "exclude_modules": "{}",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
}
_LETTERS = 64  # of a module's name, about as long as they are
_LONGEST = 2000  # letters of a pattern
_WAYS = 2e6  # for one name of _LETTERS letters; milliseconds
_ALL_WAYS = 1e8  # for all names and patterns of an adapter; a second


def check(field: str, pattern: str) -> None:
    """OralError unless `pattern`, completed as PEFT does, is a valid and cheap expression."""
    ways = cost(FORMS[field].replace("{}", _text(field, pattern)), _LETTERS)
    if ways > _WAYS:
        raise invalid(
            f"{field} {pattern[:200]!r} can take for ever to match: use plain names of modules, "
            "and no repetition inside a repetition"
        )


def check_all(patterns: Mapping[str, Iterable[str]], names: Iterable[str]) -> None:
    """OralError if it takes too long to match every pattern with every module name of `names`.

    Args:
        patterns: by the field of a PEFT configuration that has them; each passed `check`.
        names: of modules.
    """
    names = list(names)
    letters = max(map(len, names), default=0)
    ways = sum(
        cost(FORMS[field].replace("{}", pattern), letters)
        for field, texts in patterns.items()
        for pattern in texts
    )
    if ways * len(names) > _ALL_WAYS:
        raise invalid(
            f"{sum(map(len, patterns.values()))} patterns for {len(names)} modules, whose names "
            f"have up to {letters} letters, can take for ever to match: use fewer patterns"
        )


def cost(expression: str, letters: int) -> float:
    """Upper bound of the ways in which `re` tries `expression` on a text of `letters` letters.

    OralError for an invalid expression.
    """
    factor, degree = _ways_of(expression)
    return factor * comb(letters + degree, degree) if factor < inf else inf


def expression(field: str, pattern: str) -> re.Pattern[str]:
    """`pattern`, which passed `check`, compiled as PEFT completes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return re.compile(FORMS[field].replace("{}", pattern))


def invalid(reason: str) -> OralError:
    """The error for a configuration of LoRA."""
    return OralError(f"Invalid LoRA configuration: {reason}.")


def _text(field: str, pattern: Any) -> str:
    if not isinstance(pattern, str) or not pattern.isprintable():
        raise invalid(f"{field} has the pattern {str(pattern)[:200]!r}, not a line of text")
    if len(pattern) > _LONGEST:
        raise invalid(f"{field} {pattern[:60]!r}... has more than {_LONGEST} letters")
    return pattern


@cache
def _ways_of(expression: str) -> tuple[float, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            tree = _parser.parse(expression)
            re.compile(expression)
            return _ways(tree)
    except (re.error, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split()) if isinstance(error, re.error) else "it is too large"
        raise invalid(f"pattern {expression[:200]!r}: {reason}") from error


def _ways(tree: Iterable[tuple[Any, Any]]) -> tuple[float, int]:
    """(factor, d): at most factor times C(n + d, d) ways to match n letters."""
    factor, degree = 1.0, 0
    for op, argument in tree:
        f, d = _ways_of_part(op, argument)
        factor, degree = factor * f, degree + d
        if degree > 6 or factor > _WAYS:
            return inf, 0
    return factor, degree


def _ways_of_part(op: Any, argument: Any) -> tuple[float, int]:
    if op in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN, ops.AT):
        return 1.0, 0
    if op is ops.SUBPATTERN:
        return _ways(argument[-1])
    if op is ops.ATOMIC_GROUP:
        return _ways(argument)
    if op in (ops.ASSERT, ops.ASSERT_NOT):
        return _ways(argument[1])
    if op is ops.BRANCH:
        return _ways_of_choice(argument[1])
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
        least, most, tree = argument
        factor, degree = _ways(tree)
        if (factor, degree) == (1, 0) and tree.getwidth()[0] > 0:
            return (most - least + 1.0, 0) if most - least < 8 else (1.0, 1)
        if most <= 4:
            return sum(factor**n for n in range(least, most + 1)), degree * most
    return inf, 0  # a repetition inside a repetition; a reference to a group


def _ways_of_choice(choices: list[Any]) -> tuple[float, int]:
    if all(op is ops.LITERAL for choice in choices for op, _ in choice):
        words = [tuple(letter for _, letter in choice) for choice in choices]
        # words that fit one place begin with one another
        return float(max(sum(w[: len(v)] == v for v in words) for w in words)), 0
    ways = [_ways(choice) for choice in choices]
    return sum(factor for factor, _ in ways), max(degree for _, degree in ways)
