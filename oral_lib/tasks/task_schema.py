"""What a task file contains: a JSON Schema, and the rules that relate one key to another."""

import re
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from oral_lib.documents.document import Document
from oral_lib.documents.schema import VISIBLE
from oral_lib.lora import patterns

SCORINGS = ("label", "option", "answer", "image", "question", "match", "style")
_FAMILIES = ("language", "vision", "multimodal", "style")
_METRICS = ("accuracy", "balanced_accuracy", "frechet", "recall")
_TEXTS = {"type": "array", "items": VISIBLE, "minItems": 1}
_DISTINCT = _TEXTS | {"uniqueItems": True}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 10_000_000}


def _record(required: Iterable[str], **properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a map with these keys only."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_PARTS = ("train", "validation", "test")
_WORDINGS = ("train", "development", "test")  # of paraphrases
_SIZES = _record(_PARTS, **dict.fromkeys(_PARTS, _COUNT))
_COLUMNS = {
    "text": VISIBLE,
    "label": VISIBLE,
    "rating": VISIBLE,
    "threshold": {"type": "number", "minimum": 0},
    "options": _DISTINCT | {"minItems": 2},
    "blank": VISIBLE,
    "context": VISIBLE,
    "answer": VISIBLE,
    "group": VISIBLE,
    "image": VISIBLE,
    "part": VISIBLE,
    "values": {
        "type": "array",
        "items": {"type": ["string", "integer", "boolean"]},
        "uniqueItems": True,
        "minItems": 2,
    },
    "names": _TEXTS,
    "only": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"type": "array", "minItems": 1},
    },
}
_FOLDER = {"train": VISIBLE, "test": VISIBLE}
_REVISION = {
    "type": "string",
    "pattern": "^[0-9a-f]{40}$",
    "description": "the 40 hexadecimal digits of a commit",
}
_SOURCES = _record(
    (),
    packages=_record((), set=VISIBLE, sets=_DISTINCT | {"minItems": 2}, **_COLUMNS),
    local=_record(("set",), set=VISIBLE, **_FOLDER, **_COLUMNS),
    hub=_record(
        ("repo", "config", "revision", "train", "test"),
        repo=VISIBLE,
        config=VISIBLE,
        revision=_REVISION,
        **_FOLDER,
        **_COLUMNS,
    ),
) | {"minProperties": 1}
_EXAMPLE = _record(("text",), text=VISIBLE, label={"type": "integer", "minimum": 0}, target=VISIBLE)
TASK = _record(
    "name version family description paraphrases labels metric split sources".split(),  # noqa: SIM905
    name=VISIBLE,
    version=_COUNT,
    family={"enum": list(_FAMILIES)},
    description=VISIBLE,
    paraphrases=_record(_WORDINGS, **dict.fromkeys(_WORDINGS, _TEXTS)),
    labels=_DISTINCT | {"minItems": 0},
    metric={"enum": list(_METRICS)},
    split={
        "type": "object",
        "required": ["seed"],
        "properties": {
            "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
            **dict.fromkeys(("packages", "local", "hub"), _SIZES),
        },
        "additionalProperties": False,
    },
    sources=_SOURCES,
    template=VISIBLE,
    examples={"type": "array", "items": _EXAMPLE},
    marker_words={"type": "array", "items": _TEXTS},
    max_tokens=_COUNT,
    scoring={"enum": list(SCORINGS)},
    substitute=VISIBLE,
    answer_pattern=VISIBLE,
    max_new_tokens=_COUNT,
    stop_strings={"type": "array", "items": {"type": "string", "minLength": 1}},
)
FORM_KEYS = (  # of a task: how a text is put to a model, and what it answers
    *("name", "version", "family", "scoring", "labels", "template", "max_tokens"),
    *("answer_pattern", "max_new_tokens", "stop_strings"),
)
_FORM = _record(
    ("name", "version", "family", "scoring", "labels", "max_tokens"),
    **{key: TASK["properties"][key] for key in FORM_KEYS}
    | {key: _COUNT | {"maximum": 1 << 15} for key in ("max_tokens", "max_new_tokens")},
)
_ANSWER_LETTERS, _ANSWER_WAYS = 1000, 1e10  # of a generated text: `lora.patterns.cost`
_NEEDS = {  # keys and columns by scoring; of keys in one group, one is enough
    "label": (("template", "marker_words"), [("text",), ("label", "rating", "sets")]),
    "option": (
        ("template", "marker_words"),
        [("text",), ("label",), ("options",), ("blank", "context")],
    ),
    "answer": (
        ("template", "marker_words", "answer_pattern", "max_new_tokens"),
        [("text",), ("answer",)],
    ),
    "image": ((), [("image",), ("label",)]),
    "question": (("marker_words",), [("image",), ("text",), ("label",)]),
    "match": (("marker_words",), [("image",), ("text",)]),
    "style": ((), [("image",)]),
}


def check_task(document: Document, name: str) -> None:
    """Raises UsageError, with file and line, unless the document is a task called `name`."""
    document.check(TASK)
    task = document.content
    if task["name"] != name:
        raise document.error(f"must be {name!r}, as the file is called.", "name")
    _check_scoring(document, task, task.get("scoring", "label"))
    for kind in task["sources"]:
        if kind not in task["split"]:
            raise document.error(
                f"no sizes for the source {kind!r}: put train, validation and test there.", "split"
            )
    for kind in task["split"]:
        if kind not in ("seed", *task["sources"]):
            raise document.error("there is no such source in `sources`.", "split", kind)
    _check_texts(document)


def check_form(document: Document) -> None:
    """Raises UsageError, with file and line, unless the document has the `FORM_KEYS` of a task."""
    document.check(_FORM)
    form = document.content
    for key in _NEEDS[form["scoring"]][0]:
        if key in FORM_KEYS and key not in form:
            raise document.error(f"scoring {form['scoring']!r} requires `{key}`.")
    _check_labels(document, form["labels"], form["scoring"])
    _check_texts(document)


def _check_texts(document: Document) -> None:
    """Raises UsageError unless template and answer's pattern are of use, and cheap."""
    if "template" in document.content and set(_fields(document, "template")) != {"text"}:
        raise document.error("must contain {text}, and no other field.", "template")
    if "answer_pattern" in document.content:
        _check_pattern(document, document.content["answer_pattern"])


def _check_labels(document: Document, labels: list[str], scoring: str) -> None:
    """Raises UsageError unless the scoring has as many labels as it needs, each without blanks."""
    if scoring in ("answer", "match", "style") and labels:
        raise document.error(f"scoring {scoring!r} has no labels: write [].", "labels")
    if scoring not in ("answer", "match", "style") and len(labels) < 2:
        raise document.error(f"scoring {scoring!r} requires at least two labels.", "labels")
    for i, label in enumerate(labels):
        if label != label.strip():
            raise document.error(f"must not begin or end with a blank, got {label!r}.", "labels", i)


def _check_scoring(document: Document, task: dict, scoring: str) -> None:
    """Raises UsageError unless the task has what its scoring requires."""
    keys, columns = _NEEDS[scoring]
    for key in keys:
        if key not in task:
            raise document.error(f"scoring {scoring!r} requires `{key}`.")
    labels, markers = task["labels"], task.get("marker_words", [])
    _check_labels(document, labels, scoring)
    if "marker_words" in keys and len(markers) < 2:
        raise document.error("must have at least two lists of words.", "marker_words")
    if scoring in ("label", "option") and len(markers) != len(labels):
        counts = f"{len(labels)} labels and {len(markers)} lists"
        raise document.error(f"must have one list for each label, got {counts}.", "marker_words")
    for i, example in enumerate(task.get("examples", [])):
        if scoring == "answer" and "target" not in example:
            raise document.error("'target' is missing.", "examples", i)
        if scoring != "answer" and example.get("label", len(labels)) >= len(labels):
            fault = f"must have a `label` below {len(labels)}, the number of labels."
            raise document.error(fault, "examples", i)
    for kind, spec in task["sources"].items():
        _check_source(document, kind, spec, columns, len(labels))


def _check_source(
    document: Document, kind: str, spec: dict, columns: list[tuple[str, ...]], labels: int
) -> None:
    """Raises UsageError unless the entry of a source has the columns that a scoring requires."""
    place = ("sources", kind)
    if kind == "packages":
        columns = [("set", "sets"), *columns]
    elif "part" not in spec:
        columns = [("train",), ("test",), *columns]
    for group in columns:
        if not spec.keys() & set(group):
            raise document.error(f"{' or '.join(map(repr, group))} is missing.", *place)
    if "rating" in spec and "threshold" not in spec:
        raise document.error("'threshold' is missing.", *place)
    for key in ("values", "options", "sets"):
        if key in spec and labels and len(spec[key]) != labels:
            fault = f"must have an entry for each of {labels} labels, got {len(spec[key])}."
            raise document.error(fault, *place, key)
    for key in ("text", "context"):
        if "{" in spec.get(key, "") or "}" in spec.get(key, ""):
            _fields(document, *place, key)


def _fields(document: Document, *place: str) -> list[str]:
    """The fields of the template at `place`: plain names only, each put in as it is."""
    template = document.content
    for key in place:
        template = template[key]
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise document.error(f"is not a template: {error}. Write {{{{ for a brace.", *place) from (
            error
        )
    fields = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name or name.isdigit() or re.search(r"[.\[\]]", name) or form or conversion:
            raise document.error(f"has the field {{{name[:40]}}}: write a plain name.", *place)
        fields.append(name)
    if not fields:
        raise document.error("has no field in braces.", *place)
    return fields


def _check_pattern(document: Document, pattern: str) -> None:
    """Raises UsageError unless the answer's pattern is a cheap regular expression with a group."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        fault = f"is not a regular expression: {error}."
        raise document.error(fault, "answer_pattern") from error
    if groups < 1:
        raise document.error("must have a group (...), which is the answer.", "answer_pattern")
    if patterns.cost(pattern, _ANSWER_LETTERS) > _ANSWER_WAYS:
        raise document.error(
            "can take for ever to match: at most three repetitions, and none inside another.",
            "answer_pattern",
        )
