"""Errors with an exit code. Each message says what was wrong, with which value, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class OralError(Exception):
    """A run failed (exit code 1)."""

    exit_code = 1


class UsageError(OralError):
    """Invalid name, parameter or configuration (exit code 2)."""

    exit_code = 2


class PreflightError(OralError):
    """A model, data set, disk space or lock that a run requires is missing (exit code 3)."""

    exit_code = 3


def closest(word: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` with the closest of `choices`, or the empty string."""
    near = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
