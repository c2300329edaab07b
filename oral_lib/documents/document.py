"""YAML and JSON that people write: read strictly, and checked against a schema.

Each error is one line with file, line and key: `movie.yaml:12: labels[0]: ...`. A key is in a map
once. One rule holds for all words of YAML without quotes: a word that versions of YAML read in
different ways is refused (`no`, `on`, `y`, `012`, `1e3`, `2024-01-01`, `~`). Tags and
further documents in one file are refused, as are aliases that repeat more than a file's length.

yaml and jsonschema are imported by the functions that use them, so that the command line starts
without them.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from oral_lib.documents.schema import refusal, unknown_key, validator
from oral_lib.documents.strict_yaml import Reader
from oral_lib.documents.words import KeyPath, dotted, one_line, short
from oral_lib.errors import UsageError

YAML_BYTES = 1 << 20
JSON_BYTES = 1 << 26


@dataclass(frozen=True)
class Document:
    """The content of a YAML file, a JSON file or a JSON line, and where each value is written."""

    name: str  # of the file, as messages have it
    content: Any
    text: str = field(repr=False)
    is_yaml: bool
    first_line: int = 1  # line of the file in which `text` begins

    def error(self, message: str, *place: str | int) -> UsageError:
        """An error that names file, line and key.

        >>> parse_yaml("a:\\n  b: [1, 2]", "x.yaml").error("is odd", "a", "b", 1)
        UsageError('x.yaml:2: a.b[1]: is odd')
        """
        line = self.line(*place)
        keys = f"{dotted(place)}: " if place else ""
        return UsageError(one_line(f"{self.name}:{line}: {keys}{message}"))

    def line(self, *place: str | int) -> int:
        """The line of the value at `place`, or of the map or list where it is missing."""
        lines = self._lines
        while place and place not in lines:
            place = place[:-1]
        return lines.get(place, self.first_line)

    def check(self, schema: Mapping[str, Any]) -> None:
        """Raises UsageError for the first value in the file that JSON Schema `schema` refuses.

        A `description` in the schema says in the message what is expected.
        """
        errors = []
        for fault in validator(schema).iter_errors(self.content):
            place, text = tuple(fault.absolute_path), refusal(fault)
            misspelt = fault.validator == "additionalProperties"  # the cause of what is missing
            if misspelt:
                place = (*place, unknown_key(fault))
            errors.append((not misspelt, self.line(*place), len(errors), text, place))
        if errors:
            *_, text, place = min(errors)
            raise self.error(text, *place)

    @cached_property
    def _lines(self) -> dict[KeyPath, int]:
        """Line by place; empty for JSON that YAML does not read."""
        try:
            return Reader(self.name, self.text, self.is_yaml, self.first_line).lines
        except (UsageError, ValueError):
            return {}


# ---------------------------------------------------------------- reading
def load_yaml(path: Any, name: str = "") -> Document:
    """The document in the YAML file `path`.

    Args:
        path: a path, or a file of `importlib.resources`.
        name: of the file, for messages; default: the path.

    Raises:
        UsageError: the file is unreadable, empty or not strict YAML.
    """
    name = name or str(path)
    return parse_yaml(_text_of(path, name, YAML_BYTES), name)


def parse_yaml(text: str, name: str) -> Document:
    """The document in a text of YAML. Raises UsageError, as `load_yaml`."""
    reader = Reader(name, text, True, 1)
    return Document(name, reader.content, text, True)


def load_json(path: Any, name: str = "") -> Document:
    """The document in the JSON file `path`.

    Args:
        path: a path, or a file of `importlib.resources`.
        name: of the file, for messages; default: the path.

    Raises:
        UsageError: the file is unreadable, empty or not JSON, has a key twice, or a number that
            is not finite.
    """
    name = name or str(path)
    return parse_json(_text_of(path, name, JSON_BYTES), name)


def load_json_lines(path: Any, name: str = "") -> Iterator[Document]:
    """The document in each line of a JSON-lines file; lines without letters are skipped.

    Raises UsageError, as `load_json`.
    """
    name = name or str(path)
    for number, line in enumerate(_text_of(path, name, JSON_BYTES).split("\n"), 1):
        if line.strip():
            yield parse_json(line.rstrip("\r"), name, number)


def parse_json(text: str, name: str, first_line: int = 1) -> Document:
    """The document in a text of JSON. Raises UsageError, as `load_json`.

    Args:
        text: the JSON.
        name: of the file, for messages.
        first_line: line of the file in which the text begins.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise ValueError(f"the key {short(key)} is there twice")
            content[key] = value
        return content

    def number(written: str) -> float:
        if not math.isfinite(value := float(written)):
            raise ValueError(f"{written[:40]} is not a finite number")
        return value

    if not text.strip():
        raise UsageError(f"{name} is empty.")
    try:
        content = json.loads(
            text, object_pairs_hook=unique, parse_constant=number, parse_float=number
        )
        _require_text(content)
    except json.JSONDecodeError as error:
        line = first_line - 1 + error.lineno
        raise UsageError(f"{name}:{line}: is not valid JSON: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValueError) and len(text) <= YAML_BYTES:
            with suppress(ValueError):
                Reader(name, text, False, first_line)  # raises the same error with line and key
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"{name}:{first_line}: is not valid JSON: {reason}.") from error
    return Document(name, content, text, False, first_line)


def _text_of(path: Any, name: str, limit: int) -> str:
    """The text of a UTF-8 file of at most `limit` bytes."""
    path = Path(path) if isinstance(path, str) else path
    try:
        if not path.is_file():
            fault = "is not a file" if path.exists() else "does not exist"
            raise UsageError(f"{name} cannot be read: it {fault}.")
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{name} cannot be read ({error.strerror}).") from error
    if len(data) > limit:
        raise UsageError(f"{name} is larger than {limit >> 20} MB: name another file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{name}:{line}: is not UTF-8: save it in this encoding.") from error


def _require_text(content: Any) -> None:
    """ValueError if a text or key has half of a surrogate pair, which no file can store."""
    if isinstance(content, dict):
        for key, value in content.items():
            _require_text(key)
            _require_text(value)
    elif isinstance(content, list):
        for value in content:
            _require_text(value)
    elif isinstance(content, str):
        content.encode()
