"""Errors with an exit code. Each message says what was wrong, with which value, and what to do."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class OralError(Exception):
    """A run failed (exit code 1).

    >>> OralError("The disk is full: free 2 GB.").exit_code
    1
    """

    exit_code = 1


class UsageError(OralError):
    """Invalid name, parameter or configuration (exit code 2).

    >>> import oral_lib
    >>> oral_lib.load_task("moive")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    oral_lib.errors.UsageError: unknown task 'moive'. Did you mean 'movie'? ...
    """

    exit_code = 2


class PreflightError(OralError):
    """A model, data set, disk space or lock that a run requires is missing (exit code 3).

    >>> import oral_lib
    >>> oral_lib.load_base("smollm2-135m", source="local:no-such-folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    oral_lib.errors.PreflightError: ...
    """

    exit_code = 3


def memory_fault(error: Exception) -> PreflightError | None:
    """An error of too little memory in one line with what to do; None for other errors.

    >>> memory_fault(MemoryError()).exit_code
    3
    >>> memory_fault(RuntimeError("shapes differ")) is None
    True
    """
    first = (str(error).splitlines() or [""])[0]
    if not isinstance(error, MemoryError) and not re.search(
        r"out of memory|(can't|cannot) allocate memory|not enough memory", first, re.IGNORECASE
    ):
        return None
    what = f"out of memory ({first})" if first else "out of memory"
    return PreflightError(f"{what}: close other programs, or use a machine with more memory.")


def closest(word: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` with the closest of `choices`, or the empty string."""
    near = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
