"""The words of the project: the field's terms, names of contents, sentences of bearable length."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from oral_lib.storage import list_paths

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = list_paths(ROOT / "oral_lib", "**/*.py")
NOTEBOOKS = list_paths(ROOT / "notebooks", "*.py")
PAPERS = [ROOT / "README.md", ROOT / "DEVIATIONS.md", ROOT / "env" / "README.md"]
PAPERS += list_paths(ROOT / "docs", "**/*.md")
SETTINGS = [*list_paths(ROOT / "oral_lib" / "tasks", "*.yaml"), ROOT / "Snakefile"]
SETTINGS += [*list_paths(ROOT / "notebooks" / "sweeps", "*.yaml"), ROOT / "reproduce.sh"]

# pattern -> what to write instead; matched in lower and upper case against running text
PHRASES = {
    r"\bnone below\b": "non-negative, or `must be >= ...`",
    r"\btold\b": "represented by, conditioned on, distinguished by",
    r"\b(hears?|heard)\b": "is conditioned on",
    r"\b(feels?|felt)\b": "depends on",
    r"\bwants\b": "requires",
    r"\b(cannot|could|can) be had\b|\bbe had\b": "is unavailable",
    r"\basked for here\b": "re-exported, or nothing",
    r"\bcannot be meant\b": "invalid",
    r"(?<!there )\b(is|are) (?-i:none)\b(?= ?([.,:;)]|$))": "is not a valid ...",
    r"(?<!there )\bis no (?!longer\b|more\b|less\b)[a-z]": "is not a ...",
    r"\bno whole\b": "truncated or invalid",
    r"\bmay lack\b": "may be missing",
    r"\bwhat( \w+)? lacks\b|\bstill lacks\b": "what is missing",
    r"\bas( far as)? can be\b": "as closely as possible",
    r"\bha(s|ve) yet to be\b": "has not been ...",
    r"\bstands? in\b(?! for)": "is stored in, is in",
    r"\bsurely\b": "significantly, with its interval",
    r"\bunread wording": "held-out paraphrase",
    r"\bno training read\b": "held-out",
    r"\bthose of\b": "the noun again",
    r"\bbeside\b": "next to, in addition to",
    r"\balone\b": "only, by itself",
    r"\banew\b": "again",
    r"\bdear\b": "expensive",
    r"\bsilent\b": "without signal",
    r"\b(likeness|likenesses)\b": "alignment",
    r"\bwarmth\b": "temperature",
    r"\bblur(red|s)?\b": "embedding noise",
}
NOUNS = {r"\bpictures?\b": "image"}  # not in messages, where a task's own wording may have them
TASK_WORDINGS = {"The collection wants {and_}, leave out the rest."}  # texts that generators read
PARTICIPLES = {"found", "told", "known", "made", "held", "asked", "shown", "how", "own", "some"}
CELL_WORDS = 60
SENTENCE_WORDS = 40
ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "vs.", "cf.", "al.", "approx.", "fig.", "eq.", "no.")


class Prose(NamedTuple):
    """One comment, docstring, message or paragraph, with the line that it starts in."""

    line: int
    text: str
    message: bool = False


def comments(source: str) -> Iterator[Prose]:
    """The comments of Python code; lines of comment that follow each other are one text."""
    start, end, parts = 0, 0, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if parts and token.start[0] != end + 1:
            yield Prose(start, " ".join(parts))
            parts = []
        start = start if parts else token.start[0]
        end = token.start[0]
        parts.append(token.string.lstrip("#%: "))
    if parts:
        yield Prose(start, " ".join(parts))


def strings(source: str) -> Iterator[Prose]:
    """The strings of Python code, docstrings and messages; `...` is where values are inserted."""
    inner, docstrings = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr):
            docstrings.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            inner.update(id(part) for part in node.values)
            parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
            yield Prose(node.lineno, "".join(parts), message=True)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner
        ):
            yield Prose(node.lineno, node.value, message=id(node) not in docstrings)


def hash_comments(source: str) -> Iterator[Prose]:
    """The comments of a file of settings or of a shell script."""
    for number, line in enumerate(source.splitlines(), 1):
        if match := re.search(r"(?:^|\s)#+\s(.*)", line):
            yield Prose(number, match[1])


def paragraphs(source: str) -> Iterator[Prose]:
    """The running text of a Markdown file: its paragraphs, headings and list items, no code."""
    start, parts, fenced = 0, [], False
    for number, line in enumerate([*source.splitlines(), ""], 1):
        stripped = line.strip()
        fence = stripped.startswith("```")
        fenced ^= fence
        item = re.match(r"([-*+]|\d+[.)])\s+", stripped)
        ends = not stripped or fence or fenced or stripped[0] in "|#" or item
        if ends and parts:
            yield Prose(start, " ".join(parts))
            parts = []
        if not stripped or fence or fenced or stripped.startswith("|"):
            continue
        start = start if parts else number
        parts.append(stripped[item.end() :] if item else stripped.lstrip("#> "))
        if stripped.startswith("#"):
            yield Prose(start, " ".join(parts))
            parts = []


def cells(source: str) -> Iterator[Prose]:
    """The cells of the tables of a Markdown file."""
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        fenced ^= line.strip().startswith("```")
        if line.strip().startswith("|") and not fenced:
            for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")):
                yield Prose(number, cell)


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph. Inline code and the target of a link are one word each."""
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[^>]*>", " ", text)
    pieces, parts = [], re.split(r"""(?<=[.!?])(?=[\s)"'*_])""", text)
    for part in parts:
        last = pieces[-1].split()[-1].lower().lstrip("(") if pieces and pieces[-1].split() else ""
        starts = re.match(r"""[\s)"'*_]+["'(*\[]*[A-Z0-9†×±*]|[\s)"'*_]*code\b|[\s)"'*_]*$""", part)
        if pieces and (last in ABBREVIATIONS or not starts):
            pieces[-1] += part
        else:
            pieces.append(part)
    return [piece for piece in pieces if words(piece)]


def words(text: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in text.split())


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> list[Prose]:
    """All running text of a file, in the way of its kind."""
    source = read(path)
    if path.suffix == ".py":
        return [*comments(source), *strings(source)]
    if path.suffix == ".md":
        return [*paragraphs(source), *cells(source)]
    return [*hash_comments(source)]


def phrases(path: Path) -> list[str]:
    """`file:line: the phrase, and what to write` for every phrase that is not to be used."""
    hits = []
    for line, text, message in prose(path):
        if text in TASK_WORDINGS:
            continue
        text = re.sub(r"`[^`]*`", "``", " ".join(text.split()))  # names of code are not prose
        for pattern, instead in (PHRASES if message else PHRASES | NOUNS).items():
            for match in re.finditer(pattern, text, flags=re.IGNORECASE):
                near = text[max(0, match.start() - 30) : match.end() + 30]
                hits.append(f"{path.relative_to(ROOT)}:{line}: {near!r} (write: {instead})")
    return hits


def bindings(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of all that Python code binds: variables, parameters, attributes, functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            yield node.lineno, node.name or ""
        elif isinstance(node, ast.alias) and node.asname:
            yield getattr(node, "lineno", 0), node.asname


@pytest.mark.parametrize(
    "path", [*LIBRARY, *NOTEBOOKS, *PAPERS, *SETTINGS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_words_are_the_field_s(path):
    assert phrases(path) == []


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_name_says_what_it_holds(path):
    bound = [f"{path.name}:{n}: {name}" for n, name in bindings(read(path)) if name in PARTICIPLES]
    assert bound == []


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_cell_of_a_table_is_an_essay(path):
    counts = [(line, len(text.split())) for line, text, _ in cells(read(path))]
    assert [(line, n) for line, n in counts if n > CELL_WORDS] == []


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_sentence_is_long(path):
    texts = [(line, s) for line, text, _ in prose(path) for s in sentences(text)]
    assert [(line, words(s), s) for line, s in texts if words(s) > SENTENCE_WORDS] == []


def test_sentences_end_where_a_reader_ends_them():
    text = "It has 0.5 of it, e.g. this. See `a. b` now! (A note.) **Bold.** Then [a b](c.md)?"
    text += " At D-DIF-2. 30 steps."
    assert sentences(text) == [
        "It has 0.5 of it, e.g. this.",
        " See code now!",
        " (A note.",
        ") **Bold.",
        "** Then a b?",
        " At D-DIF-2.",
        " 30 steps.",
    ]
    source = "# Head\nOne\ntwo.\n- three\n  four\n1. five\n\n```\ncode\n```\n| a | b |\n"
    assert [text for _, text, _ in paragraphs(source)] == ["Head", "One two.", "three four", "five"]
    assert [text.strip() for _, text, _ in cells(source)] == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "shares, none below 0", "what is told by the text", "a direction cannot be had",
        "a distance of -1 is none: use 0", "names which may lack", "whatever was asked for here",
        "it is no task of this run", "the weights of those of the last one",
    ],
)  # fmt: skip
def test_a_phrase_that_is_not_to_be_used_is_seen(text, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    for name, written in {
        "a.py": f'def f():\n    """{text}"""\n', "b.py": f"x = 1  # {text}\n",
        "c.py": f'raise ValueError(f"{{x}}" f"{text[:9]}"\n    "{text[9:]}")\n',
        "d.md": text.replace(" ", "\n"), "e.md": f"| {text} |\n", "f.yaml": f"a: 1  # {text}\n",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.write_text(written)
        assert phrases(path), name


@pytest.mark.parametrize(
    "code",
    [
        "found = 1", "a, found = 1, 2", "for found in x: pass", "with x as found: pass",
        "(found := 1)", "def f(found): pass", "def f(*, found=1): pass", "f = lambda found: 1",
        "[1 for found in x]", "self.found = 1", "found: int = 1", "found += 1", "def found(): pass",
        "import a as found",
    ],
)  # fmt: skip
def test_a_participle_that_is_bound_is_seen(code):
    assert "found" in [name for _, name in bindings(code)]


def test_no_phrase_is_seen_in_plain_words():
    plain = "None of these tasks is None; if there is none: there is no GPU, no longer a stand-in."
    assert not [p for p in PHRASES if re.search(p, plain, flags=re.IGNORECASE)]
