"""The nodes of a YAML text, read strictly, and the lines that they are written in.

yaml is imported by the functions that use it.
"""

import math
import re
from functools import cache
from typing import Any

from oral_lib.documents.words import KeyPath, dotted, one_line, short
from oral_lib.errors import UsageError

DEPTH = 40  # of maps and lists in each other


class Reader:
    """Content and lines of a YAML text, or the lines of a JSON text, which is YAML, too."""

    def __init__(self, name: str, text: str, is_yaml: bool, first_line: int) -> None:
        import yaml

        self.name, self.is_yaml, self.first_line = name, is_yaml, first_line
        self.lines: dict[KeyPath, int] = {}
        try:
            # JSON allows tabs between values, YAML does not; within a text neither does
            loader = _loader()(text if is_yaml else text.replace("\t", " "))
            node = loader.get_single_node()
        except yaml.YAMLError as error:
            if not is_yaml:
                raise ValueError("JSON that is not YAML") from error
            line, fault = _yaml_fault(error, text)
            raise self.error(line, (), fault) from error
        except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF"
            line = loader.get_mark().line + 1
            raise self.error(line, (), f"is not valid YAML: {error}.") from error
        if node is None:
            raise UsageError(f"{name} is empty.")
        self.values_left = len(text)  # each takes a letter, unless an alias repeats it
        self.content = self._read(node, ())

    def error(self, line: int, place: KeyPath, message: str) -> UsageError:
        keys = f"{dotted(place)}: " if place else ""
        return UsageError(one_line(f"{self.name}:{self.first_line - 1 + line}: {keys}{message}"))

    def _read(self, node: Any, place: KeyPath) -> Any:
        """The content of a node at `place`; notes the lines of all that is in it."""
        import yaml

        self.lines.setdefault(place, self.first_line + node.start_mark.line)
        self.values_left -= 1
        if self.values_left < 0 or len(place) > DEPTH:
            raise self.error(
                node.start_mark.line + 1, (), "aliases (*) repeat too much: write less."
            )
        if isinstance(node, yaml.SequenceNode):
            return [self._read(value, (*place, i)) for i, value in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._word(node, place)
        content: dict[str, Any] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(line, place, "a key must be a text, not a list or a map.")
            key = self._word(key_node, place)
            if not isinstance(key, str):
                raise self.error(
                    line, place, f"the key {short(key)} must be a text: put it in quotes."
                )
            if key in content:
                first = self.lines[*place, key]
                fault = f"the key {short(key)} is there twice, first in line {first}."
                raise self.error(line, (*place, key), fault)
            self.lines[*place, key] = self.first_line - 1 + line
            content[key] = self._read(value, (*place, key))
        return content

    def _word(self, node: Any, place: KeyPath) -> Any:
        """The text, number or truth value of a scalar."""
        word, kind = node.value, node.tag.rpartition(":")[2]
        line = node.start_mark.line + 1
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise self.error(line, place, "has half of a character (a surrogate).") from error
        if not self.is_yaml and node.style is None:
            if word in ("NaN", "Infinity", "-Infinity") or (
                re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", word) and math.isinf(float(word))
            ):
                raise self.error(line, place, f"{word[:40]} is not a finite number.")
            return word
        if node.style is not None or (kind == "str" and not _AMBIGUOUS.fullmatch(word)):
            return word
        if kind == "null" and not word:
            raise self.error(line, place, "has no value.")
        if kind == "bool" and word.lower() in ("true", "false"):
            return word.lower() == "true"
        if kind == "int" and re.fullmatch("[-+]?(0|[1-9][0-9]{0,17})", word):
            return int(word)
        if kind == "float" and re.fullmatch(_DECIMAL, word) and math.isfinite(float(word)):
            return float(word)
        fault = f"{short(word)} is read in several ways: put a text in quotes, "
        raise self.error(line, place, f"{fault}write a number as 12, 0.5 or 1.0e-3.")


_DECIMAL = r"[-+]?(0|[1-9][0-9]*)\.[0-9]+([eE][-+][0-9]+)?"
# texts for PyYAML, values for other versions of YAML
_AMBIGUOUS = re.compile(r"[yYnN]|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+")


@cache
def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        """Composes the nodes of a document without tags."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event, fault = self.peek_event(), None
            if getattr(event, "tag", None):
                fault = "tags (!) are not supported: put a text in quotes"
            elif self.depth >= DEPTH:
                fault = f"more than {DEPTH} lists and maps are nested"
            if fault:
                raise yaml.MarkedYAMLError(problem=fault, problem_mark=event.start_mark)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return Loader


def _yaml_fault(error: Any, text: str) -> tuple[int, str]:
    """(line, message) of an error of yaml."""
    if hasattr(error, "position"):  # of its reader
        line = text.count("\n", 0, error.position) + 1
        return line, f"has the character {chr(error.character)!r}: delete it."
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or "it cannot be read").split())[:200]
    if "another document" in problem:
        problem = "a second document begins: one file has one document"
    elif "'\\t'" in problem:
        problem += " (a tab: indent with spaces)"
    return mark.line + 1 if mark else 1, f"is not valid YAML: {problem}."
