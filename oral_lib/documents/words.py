"""Words of documents: what is blank, and how messages quote keys and values."""

import re
import unicodedata
from typing import Any

KeyPath = tuple[str | int, ...]  # keys and indices that lead to a value
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters without ink


def is_blank(value: Any) -> bool:
    """True for a text without a visible letter: empty, white space, zero-width characters.

    >>> is_blank(" \\u200b\\n"), is_blank(" - ")
    (True, False)
    """
    return isinstance(value, str) and all(
        letter.isspace() or letter in _FILLERS or unicodedata.category(letter)[0] in "CZ"
        for letter in value
    )


def dotted(place: KeyPath) -> str:
    """`split.packages[0]`"""
    parts = [f"[{key}]" if isinstance(key, int) else f".{_plain(key)}" for key in place]
    return "".join(parts).removeprefix(".")


def _plain(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,60}", key) else short(key)


def one_line(text: str) -> str:
    """`text` with line ends and runs of blanks as one blank."""
    return " ".join(text.split())


def short(value: Any, most: int = 60) -> str:
    """`value` in quotes, at most `most` letters of it."""
    text = value[:most] if isinstance(value, str) else value
    written = repr(text)
    return written if len(written) <= most and text == value else f"{written[:most]}..."
