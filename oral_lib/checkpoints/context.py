"""Tokens of a context and of what follows it: where one ends and the other begins.

    ids = special tokens in front, tokens of the context, tokens of the continuation

A tokenizer may cut a word differently behind a context than by itself: SentencePiece puts a space
mark before each text. It may also add special tokens behind a text. So a continuation is cut
together with its context, and the place where it begins is checked against the text.

Equal to lm-evaluation-harness, except where that counts tokens and does not look at the text: a
token that spans the boundary, or an end-of-text token behind the context.
"""

from collections.abc import Sequence
from typing import NamedTuple

from oral_lib.errors import UsageError


class Cut(NamedTuple):
    """Token ids of a text: special tokens in front, the context, and its continuation."""

    front: list[int]
    context: list[int]
    continuation: list[int]

    def row(self, longest: int, end: Sequence[int] = ()) -> tuple[list[int], int]:
        """All ids and `end` behind them, and the index at which the continuation begins.

        A row of more than `longest` ids loses the beginning of its context.
        """
        ids = self.context + self.continuation + [*end]
        dropped = max(0, len(self.front) + len(ids) - longest)
        return self.front + ids[dropped:], len(self.front) + len(self.context) - dropped


def cut_contexts(tokenizer, texts: Sequence[str]) -> list[Cut]:
    """The tokens of each text, with special tokens in front and none behind."""
    plain = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    front = _special_tokens_in_front(tokenizer, texts, plain)
    return [Cut(front, ids, []) for ids in plain]


def cut_pairs(tokenizer, pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> list[Cut]:
    """The tokens of each (context, continuation).

    The continuation's tokens are those that follow the context's tokens in the whole text. If a
    token of the whole text spans the boundary, the continuation is cut by itself.

    Args:
        tokenizer: a tokenizer of transformers.
        pairs: texts; no continuation may be empty.
        names: what an error calls each pair: task, row and base model.

    Raises:
        UsageError: a continuation has no tokens, or cannot be separated from its context.
    """
    texts = list(dict.fromkeys(context for context, _ in pairs))
    plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids_of = dict(zip(texts, plain, strict=True))
    wholes = [context + continuation for context, continuation in pairs]
    spans = tokenizer.is_fast
    cut = tokenizer(wholes, add_special_tokens=False, return_offsets_mapping=spans)
    offsets = cut["offset_mapping"] if spans else [None] * len(pairs)
    front = _special_tokens_in_front(tokenizer, wholes, cut["input_ids"])
    cuts = []
    for pair, name, whole, offset in zip(pairs, names, cut["input_ids"], offsets, strict=True):
        if not pair[1].strip():
            raise UsageError(f"{name}: nothing follows {pair[0][-24:]!r}: give the row an answer.")
        context = ids_of[pair[0]]
        rest = whole[len(context) :]
        if not _is_clean(context, whole, offset, len(pair[0])):
            rest = _cut_alone(tokenizer, context, pair[1], whole)
        if not rest:
            raise UsageError(
                f"{name}: the tokenizer has no token boundary between {pair[0][-24:]!r} and "
                f"{pair[1][:24]!r}: use a base model whose tokens end there, or change the text."
            )
        first = front if front or context else _first_token(tokenizer, name)
        cuts.append(Cut(first, context, rest))
    return cuts


def _special_tokens_in_front(
    tokenizer, texts: Sequence[str], plain: Sequence[list[int]]
) -> list[int]:
    """The special tokens that are put in front of each text, such as BOS.

    `plain` are the ids of `texts` without special tokens. UsageError if these are not among the ids
    with special tokens.
    """
    first = next((i for i, ids in enumerate(plain) if ids), None)
    if first is None:
        return []
    text, whole = plain[first], tokenizer(texts[first])["input_ids"]
    for n in range(len(whole) - len(text) + 1):
        if whole[n : n + len(text)] == text:
            return whole[:n]
    raise UsageError(
        f"the tokenizer {type(tokenizer).__name__} cuts {texts[first][:24]!r} differently when it "
        "adds special tokens: use the released tokenizer files."
    )


def _is_clean(
    context: list[int], whole: list[int], spans: list[tuple[int, int]] | None, end: int
) -> bool:
    """Whether the ids `whole` begin with the ids of the context, and no token spans its `end`."""
    n = len(context)
    if whole[:n] != context:
        return False
    if spans is None:
        return True
    return all(stop <= end for _, stop in spans[:n]) and all(start >= end for start, _ in spans[n:])


def _cut_alone(tokenizer, context: list[int], continuation: str, whole: list[int]) -> list[int]:
    """The ids of `continuation` by itself; [] if they do not read as the same text behind the
    context: some tokenizers put a space before each text."""
    rest = tokenizer(continuation, add_special_tokens=False)["input_ids"]

    def letters(ids: list[int]) -> str:
        return "".join(tokenizer.convert_ids_to_tokens(ids))

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    core = getattr(tokenizer, "backend_tokenizer", None)
    decodes = core is None or core.decoder is not None  # else decoding puts spaces between tokens
    same = letters(context + rest) == letters(whole)
    return rest if same and (not decodes or text(context + rest) == text(whole)) else []


def _first_token(tokenizer, name: str) -> list[int]:
    """The token in front of a text without context: BOS, else end-of-text."""
    first = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    if first is None:
        raise UsageError(
            f"{name}: the context is empty and the tokenizer has no token that begins a text: put "
            "a text before it."
        )
    return [first]
