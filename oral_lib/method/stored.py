"""The files of a generator, checked before use: they may come from anyone.

config.json has the configuration, the sampling options and, by base model, layout and PEFT
configuration. generator.safetensors has the tensors of the network. Each fault is one line that
names file and key.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from oral_lib.documents.document import Document
from oral_lib.documents.words import short
from oral_lib.errors import OralError
from oral_lib.lora import patterns
from oral_lib.lora.adapter import LoraSettings, check_ranks, first_difference
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.model import ORAL, BaseEntry
from oral_lib.method.tokenization import DTYPES, Layout

_MOST = 1 << 24  # of a size: larger than any that a network here has
_NAMES = {int: "integer", float: "number", str: "string", bool: "boolean", NoneType: "null"}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 300}


def _schema_of(kind: Any) -> dict[str, Any]:
    """The JSON Schema of what `dataclasses.asdict` writes of a dataclass, or of a field."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        properties = {f.name: _schema_of(hints[f.name]) for f in fields(kind)}
        return {"type": "object", "required": [*properties], "properties": properties} | {
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
    "required": ["sha256"],
    "properties": {
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "scale": {"type": "string", "maxLength": 60},
        "source": {"type": "string"},
        "zoo": {"type": "array", "items": _MEMBER},
        "adapters": {"type": "array"},
    },
}


def read_network(document: Document, state: Mapping[str, Tensor]) -> tuple[ORAL, SamplingConfig]:
    """The network and the sampling options of config.json, with the tensors of `state`.

    OralError, which names file and key, where config.json is invalid or does not describe `state`.
    """
    document.check(CONFIG_SCHEMA)
    content = document.content
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise document.error(f"does not describe tensor {short(name)}, which is {tensor.dtype}")
    place: tuple[str, ...] = ("generator",)
    try:
        config = GeneratorConfig.from_json(content["generator"])
        place = ("sampling",)
        sampling = SamplingConfig.from_json(content["sampling"])
        entries = {}
        for number, name in enumerate(sorted(content["bases"])):
            place = ("bases", name)
            entries[name] = _entry(content["bases"][name], state, f"entries.{number}")
        place = ("generator",)
        total = sum(tensor.numel() for tensor in state.values())
        if (least := _fewest_weights(config)) > total:
            raise OralError(f"a network of {least:,} weights or more, but there are {total:,}.")
        built = ORAL(config, entries)
        shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
        if difference := first_difference(state, shapes):
            raise OralError(f"{difference}.")
    except KeyError as error:
        raise document.error(f"tensor {error} is missing in the weights.", *place) from error
    except OralError as error:
        raise document.error(f"does not describe the weights: {error}", *place) from error
    built.load_state_dict(state)
    return built, sampling


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


def _entry(base: Mapping[str, Any], state: Mapping[str, Tensor], prefix: str) -> BaseEntry:
    """The entry of one base model."""
    layout = Layout.from_json(base["layout"])
    if layout.l * layout.k > state[f"{prefix}.center"].numel():
        raise OralError(f"{layout.l} tokens of {layout.k} values are more than the weights have")
    if config := base["peft_config"]:
        settings = LoraSettings.of(config)
        patterns.check_all({"rank_pattern": settings.ranks or {}}, layout.names)
        check_ranks(dict(zip(layout.names, layout.shapes, strict=True)), settings)
    return BaseEntry.restored(layout, state, prefix, config)
