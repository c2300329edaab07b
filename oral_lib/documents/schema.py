"""JSON Schema with the messages of this project.

jsonschema is imported by the function that uses it.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

from oral_lib.documents.words import is_blank, short
from oral_lib.errors import closest

VISIBLE = {"type": "string", "visible": True}  # schema of a text that is not blank
_NAMES = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a map of names to values",
    "null": "null",
}
_LIMITS = {
    **dict.fromkeys(("minimum", "minItems", "minProperties", "minLength"), "at least"),
    **dict.fromkeys(("maximum", "maxItems", "maxProperties", "maxLength"), "at most"),
    **{"exclusiveMinimum": "more than", "exclusiveMaximum": "less than"},
}


@cache
def _validator_class() -> type:
    from jsonschema import Draft202012Validator, ValidationError, validators

    checker = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )  # 1.0 is not a whole number
    rules = {"visible": lambda _, rule, value, __: [ValidationError("")] if is_blank(value) else []}
    return validators.extend(Draft202012Validator, rules, type_checker=checker)


def validator(schema: Mapping[str, Any]) -> Any:
    """jsonschema's validator of `schema`, with the rule "visible"."""
    return _validator_class()(schema)


def unknown_key(fault: Any) -> str:
    """The first key that a map has and its schema has not."""
    return next(key for key in fault.instance if key not in fault.schema["properties"])


def refusal(fault: Any) -> str:
    """What a schema refuses, in the words of this project."""
    rule, limit, value = fault.validator, fault.validator_value, fault.instance
    if rule == "additionalProperties":
        keys, key = list(fault.schema["properties"]), unknown_key(fault)
        return f"unknown key {short(key)}.{closest(key, keys)} Known: {', '.join(keys)}."
    if rule == "required":
        return f"{next(key for key in limit if key not in value)!r} is missing."
    if rule == "uniqueItems":
        [(twice, count), *_] = Counter(map(short, value)).most_common(1)
        return f"{twice} is there {count} times."
    if rule == "visible":
        return f"must not be empty, got {short(value)}."
    if rule == "enum":
        near = closest(value, map(str, limit)) if isinstance(value, str) else ""
        return f"must be one of {', '.join(map(str, limit))}, got {short(value)}.{near}"
    if "description" in fault.schema:
        return f"must be {fault.schema['description']}, got {short(value)}."
    if rule == "type":
        names = [_NAMES[name] for name in ([limit] if isinstance(limit, str) else limit)]
        quotes = names == ["a text"] and not isinstance(value, list | dict)
        hint = ": put it in quotes" if quotes else ""
        return f"must be {' or '.join(names)}, got {short(value)}{hint}."
    if rule in _LIMITS and isinstance(value, int | float):
        return f"must be {_LIMITS[rule]} {limit}, got {short(value)}."
    if rule in _LIMITS:
        unit = "letters" if isinstance(value, str) else "entries"
        return f"must have {_LIMITS[rule]} {limit} {unit}, got {len(value)}."
    return f"is not as expected: {' '.join(fault.message.split())[:200]}."
