"""The files of a generator, checked before use: they may come from anyone.

config.json has the configuration, the sampling options and, by base model, layout and PEFT
configuration. manifest.json has the hash of each file of weights. Each fault is one line that names
file and key.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from oral_lib.documents.document import Document
from oral_lib.errors import OralError
from oral_lib.lora import patterns
from oral_lib.lora.adapter import LoraSettings, check_ranks
from oral_lib.method.config import ADDED, GeneratorConfig, SamplingConfig
from oral_lib.method.model import ORAL
from oral_lib.method.stored import compression, shards
from oral_lib.method.tokenization import DTYPES, Layout

_MOST = 1 << 24  # of a size: larger than any that a network here has
_NAMES = {int: "integer", float: "number", str: "string", bool: "boolean", NoneType: "null"}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 300}


def _schema_of(kind: Any) -> dict[str, Any]:
    """The JSON Schema of what `dataclasses.asdict` writes of a dataclass, or of a field."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        properties = {f.name: _schema_of(hints[f.name]) for f in fields(kind)}
        required = [name for name in properties if name not in ADDED]
        return {"type": "object", "required": required, "properties": properties} | {
            "additionalProperties": False
        }
    if kind in _NAMES:
        limits = {"maximum": _MOST} if kind is int else {"maxLength": 300} if kind is str else {}
        return {"type": _NAMES[kind]} | limits
    if kind == tuple[int, ...]:
        return {"type": "array", "items": _schema_of(int), "maxItems": 100}
    first, _ = get_args(kind)  # X | None
    schema = _schema_of(first)
    return schema | {"type": [schema["type"], "null"]}


_TENSOR = {
    "description": "[name, [sizes], dtype]",
    "type": "array",
    "prefixItems": [
        _TEXT,
        {"type": "array", "maxItems": 8, "items": _schema_of(int) | {"minimum": 0}},
        {"enum": [*DTYPES]},
    ],
    "minItems": 3,
    "maxItems": 3,
}
_LAYOUT = {
    "type": "object",
    "required": ["k", "tensors"],
    "properties": {
        "k": _schema_of(int) | {"minimum": 1},
        "tensors": {"type": "array", "minItems": 1, "items": _TENSOR},
    },
}
_BASE = {
    "type": "object",
    "required": ["layout", "peft_config"],
    "properties": {
        "layout": _LAYOUT,
        "peft_config": {
            "type": "object",
            "properties": {"base_model_name_or_path": {"type": ["string", "null"]}},
        },
    },
}
CONFIG_SCHEMA = {
    "type": "object",
    "required": ["generator", "sampling", "bases"],
    "properties": {
        "generator": _schema_of(GeneratorConfig),
        "sampling": _schema_of(SamplingConfig),
        "bases": {"type": "object", "minProperties": 1, "additionalProperties": _BASE},
    },
}
_HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_MEMBER = {
    "type": "object",
    "required": ["base", "task", "seed", "sha256"],
    "properties": {
        "base": _TEXT,
        "task": _TEXT,
        "seed": {"type": ["integer", "string"], "minimum": 0, "maximum": 1 << 62},
        "sha256": {"type": "string"},
    },
}
MANIFEST_SCHEMA = {
    "type": "object",
    "required": ["sha256", "files"],
    "properties": {
        "sha256": _HASH,
        "files": {
            "description": "hash of each file of weights",
            "type": "object",
            "minProperties": 1,
            "maxProperties": 10_000,
            "propertyNames": {"pattern": shards.NAME.pattern},
            "additionalProperties": _HASH,
        },
        "scale": {"type": "string", "maxLength": 60},
        "source": {"type": "string"},
        "zoo": {"type": "array", "items": _MEMBER},
        "adapters": {"type": "array"},
    },
}


def read_network(document: Document, stored: Mapping[str, Tensor]) -> tuple[ORAL, SamplingConfig]:
    """The network and the sampling options of config.json, with the tensors that files store.

    OralError, which names file and key, where config.json is invalid or does not describe `stored`.
    """
    document.check(CONFIG_SCHEMA)
    content = document.content
    place: tuple[str, ...] = ("generator",)
    try:
        config = GeneratorConfig.from_json(content["generator"])
        place = ("sampling",)
        sampling = SamplingConfig.from_json(content["sampling"])
        bases = {}
        for name, base in content["bases"].items():
            place = ("bases", name)
            bases[name] = _layout(base), base["peft_config"]
        place = ("generator",)
        total = sum(t.numel() * (1 + (t.dtype == torch.uint8)) for t in stored.values())
        if (least := _fewest_weights(config)) > total:
            raise OralError(f"a network of {least:,} weights or more, but there are {total:,}.")
        network = compression.restore(config, bases, stored)
    except OralError as error:
        raise document.error(f"does not describe the weights: {error}", *place) from error
    return network, sampling


def _fewest_weights(config: GeneratorConfig) -> int:
    """A lower bound of the weights of a network: nothing larger than its file is built."""
    part, m = config.recurrence, config.width
    per_layer = m * m
    if part.kind != "lstm":
        per_layer *= part.expand
    if part.kind == "mamba2":
        per_layer += part.expand * m * part.conv + m * part.state
    net = config.denoiser
    if net.kind == "adanorm":
        read = net.hidden * config.size + net.depth * net.expand * net.hidden**2
    else:
        read = net.hidden**2 + net.kernel * sum(a * b for a, b in pairwise(net.channels))
    return part.layers * per_layer + read


def _layout(base: Mapping[str, Any]) -> Layout:
    """The layout of one base model. OralError if its PEFT configuration has other ranks."""
    layout = Layout.from_json(base["layout"])
    if config := base["peft_config"]:
        settings = LoraSettings.of(config)
        patterns.check_all({"rank_pattern": settings.ranks or {}}, layout.names)
        check_ranks(dict(zip(layout.names, layout.shapes, strict=True)), settings)
    return layout
