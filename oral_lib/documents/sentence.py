"""The text that a person prompts with."""

import unicodedata

from oral_lib.documents.words import is_blank
from oral_lib.errors import UsageError

LETTERS = 2000  # about what the text encoders read
_BREAKS = "\t\n\r"


def check_sentence(text: str) -> str:
    """`text`, if it is readable and short enough for a text encoder.

    Raises UsageError for an empty or longer text, for control characters and for halves of
    characters (surrogates).

    >>> check_sentence("Is it good news?")
    'Is it good news?'
    """
    if not isinstance(text, str) or is_blank(text):
        raise UsageError("the task is an empty sentence: describe what the adapter should do.")
    if len(text) > LETTERS:
        raise UsageError(
            f"the text has {len(text):,} letters: text encoders read the first {LETTERS:,} at "
            "most. Describe the task in a few sentences."
        )
    for place, letter in enumerate(text):
        if unicodedata.category(letter) in ("Cc", "Cs") and letter not in _BREAKS:
            raise UsageError(
                f"the text has the control character {letter!a} at position {place}: leave it out."
            )
    return text
