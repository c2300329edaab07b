"""A LoRA adapter: tensors under the names of PEFT's saved state dict, and the checks on them.

    W = W0 + s B A,     s = alpha / r,  or alpha / sqrt(r) (rank-stabilised, arXiv 2312.03732)

An `Adapter` maps names to tensors. A pair of LoRA factors (LoRA, arXiv 2106.09685) carries the name
of its module; other tensors, such as a head, are used as they are.

>>> import torch
>>> adapter = {
...     "base_model.model.layers.0.q.lora_A.weight": torch.ones(2, 4),
...     "base_model.model.layers.0.q.lora_B.weight": torch.zeros(3, 2),
...     "base_model.model.head.weight": torch.zeros(2, 3),
... }
>>> for a, b in factors(adapter).items():
...     print(a, "->", b)
base_model.model.layers.0.q.lora_A.weight -> base_model.model.layers.0.q.lora_B.weight

Letters: r rank, A [r, in, ...], B [out, r, ...], s scale.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from oral_lib.documents.words import short
from oral_lib.errors import OralError
from oral_lib.lora import patterns

if TYPE_CHECKING:
    from peft import LoraConfig

Adapter = Mapping[str, Tensor]

PREFIX = "base_model.model."  # PEFT's, before the name of a module
PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
EXTRAS = (".lora_magnitude_vector", ".lora_B.bias")  # other LoRA tensors in a PEFT file
_ATTENTION_OUT = ".base_layer.out_proj"  # PEFT's name of a part of torch's MultiheadAttention
_ATTENTION_OUT_TIMES = 2  # peft.tuners.lora.layer.MultiheadAttention.merge, 0.21
_LONGEST_NAME = 300  # letters

_NUMBER = re.compile(r"(?:^|(?<=\.))[0-9]{1,9}(?=\.|$)")  # a whole part of a dotted name


# fields of PEFT under which an adapter's change of a weight is not s B A
_OTHER_CHANGES = (
    "alora_invocation_tokens",
    "arrow_config",
    "ensure_weight_tying",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base model, too
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_LARGEST_RANK = 1 << 20


@dataclass(frozen=True)
class LoraSettings:
    """Rank and scale of each adapted module: the part of a PEFT configuration that fixes them."""

    r: int = 8
    alpha: float = 8
    ranks: Mapping[str, int] | None = None  # PEFT's rank_pattern: regular expression -> r
    alphas: Mapping[str, float] | None = None  # PEFT's alpha_pattern
    stabilised: bool = False  # PEFT's use_rslora
    magnitudes: bool = False  # PEFT's use_dora

    @classmethod
    def of(cls, config: "LoraConfig | Mapping[str, Any]") -> "LoraSettings":
        """The settings in `config`, a LoraConfig or its fields.

        OralError for another kind of adapter, for a variant whose change is not s B A, and for
        invalid ranks, scales and patterns.
        """
        fields = config if isinstance(config, Mapping) else vars(config)
        if (kind := fields.get("peft_type", "LORA")) != "LORA":
            raise patterns.invalid(f"peft_type is {short(kind)}, not 'LORA'")
        for name in _OTHER_CHANGES:
            if fields.get(name):
                raise patterns.invalid(f"LoRA with {name} is not supported: use plain LoRA")
        init = fields.get("init_lora_weights", True)
        if not isinstance(init, str | bool | None) or init not in _INITS:
            raise patterns.invalid(
                f"init_lora_weights {short(init)} changes the base model, too: save the adapter "
                "with PEFT's path_initial_model_for_weight_conversion"
            )
        for name in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"):
            if type(fields.get(name) or False) is not bool:
                raise patterns.invalid(f"{name} is {short(fields[name])}, not true or false")
        for name in ("target_modules", "exclude_modules"):
            value = fields.get(name)
            parts = value if isinstance(value, list | tuple | set) else [value or ""]
            if any(not isinstance(part, str) for part in parts):
                raise patterns.invalid(f"{name} is {short(value)}, not a list of names")
        r, alpha = fields.get("r", cls.r), fields.get("lora_alpha", cls.alpha)
        ranks, alphas = _patterns(fields, "rank_pattern"), _patterns(fields, "alpha_pattern")
        for value in (r, *ranks.values()):
            if type(value) is not int or not 1 <= value <= _LARGEST_RANK:
                raise patterns.invalid(f"rank {short(value)} must be a whole number >= 1")
        for value in (alpha, *alphas.values()):
            if not _is_finite(value):
                raise patterns.invalid(f"lora_alpha {short(value)} must be a finite number")
        for name, texts in expressions(fields).items():
            for text in texts:
                patterns.check(name, text)
        flags = bool(fields.get("use_rslora")), bool(fields.get("use_dora"))
        return cls(r, alpha, ranks, alphas, *flags)

    def rank(self, module: str) -> int:
        """r of `module`, by its name in the base model."""
        return self._lookup("rank_pattern", self.ranks, module, self.r)

    def scale(self, module: str) -> float:
        """s of `module`, by its name in the base model: alpha / r, or alpha / sqrt(r)."""
        r = self.rank(module)
        alpha = self._lookup("alpha_pattern", self.alphas, module, self.alpha)
        return alpha / (sqrt(r) if self.stabilised else r)

    def _lookup(self, field: str, values: Mapping[str, Any] | None, module: str, default: Any):
        """The value of the first pattern that matches the end of `module`, as PEFT looks it up."""
        for pattern, expression in self._expressions[field]:
            if expression.match(module):
                return values[pattern]
        return default

    @cached_property
    def _expressions(self) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
        fields = {"rank_pattern": self.ranks or {}, "alpha_pattern": self.alphas or {}}
        return {
            field: [(text, patterns.expression(field, text)) for text in texts]
            for field, texts in fields.items()
        }


def _patterns(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise patterns.invalid(f"{name} is {short(value)}, not a mapping")
    return value or {}


def expressions(config: "LoraConfig | Mapping[str, Any]") -> dict[str, list[str]]:
    """The regular expressions in `config` that PEFT matches with names of modules, by field."""
    fields = config if isinstance(config, Mapping) else vars(config)
    listed = {name: list(_patterns(fields, name)) for name in ("rank_pattern", "alpha_pattern")}
    for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        value = fields.get(name)
        if isinstance(value, str) and not (name == "modules_to_save" or value == "all-linear"):
            listed[name] = [value]
        elif name in ("layers_pattern", "modules_to_save") and value is not None:
            if not isinstance(value, list | tuple | set):
                raise patterns.invalid(f"{name} is {short(value)}, not a list of names")
            listed[name] = list(value)
    return listed


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isfinite(value)
    except (TypeError, OverflowError):
        return False


def first_difference(tensors: Adapter, shapes: Mapping[str, Sequence[int]]) -> str:
    """The first difference in names or shapes between `tensors` and `shapes`, as a message.

    Tensors are compared in the order of layers and names. An empty string if they agree.
    """
    for name in sorted({*tensors, *shapes}, key=natural_key):
        if name not in tensors:
            return f"tensor {name!r} of shape {tuple(shapes[name])} is missing"
        shape = tuple(tensors[name].shape)
        if name not in shapes:
            return f"tensor {name!r} of shape {shape} is unexpected"
        if shape != tuple(shapes[name]):
            return f"tensor {name!r} has the shape {shape}, expected {tuple(shapes[name])}"
    return ""


def check_adapter(tensors: Adapter, reference: Adapter) -> None:
    """OralError with the first difference unless names and shapes equal the ones of `reference`.

    The reference is usually the shared LoRA initialisation of a base model.
    """
    if difference := first_difference(tensors, {n: t.shape for n, t in reference.items()}):
        raise OralError(f"This adapter does not fit the base model: {difference}.")


def factors(adapter: Mapping[str, Any]) -> dict[str, str]:
    """The name of each B by the name of its A. OralError for a factor without its partner."""
    pairs = {}
    for name in adapter:
        for end_a, end_b in PAIRS.items():
            for end, other in ((end_a, end_b), (end_b, end_a)):
                if name.endswith(end) and name.removesuffix(end) + other not in adapter:
                    raise OralError(f"Tensor {name!r} has no {other!r} next to it.")
            if name.endswith(end_a):
                pairs[name] = name.removesuffix(end_a) + end_b
    return pairs


class Factors(NamedTuple):
    """The LoRA of one module: its change of the weight is s B A."""

    a: Tensor
    b: Tensor
    scale: float


def factors_by_module(tensors: Adapter, settings: LoraSettings) -> dict[str, Factors]:
    """(A, B, s) by module name, after a check that `tensors` form a LoRA of `settings`.

    Rank and scale belong to the module that PEFT wraps. PEFT wraps an attention of torch as a
    whole and its `out_proj` with it, which therefore has the rank of the attention. PEFT adds the
    change of this `out_proj` twice, in forward as in merging; s is what it adds.

    OralError for invalid names, values that are not finite, factors without a partner, and shapes
    of another rank.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name.isprintable() or {*name} & {"/", "\\"}:
            raise OralError(f"{short(name)} is not a tensor name: dots divide its parts.")
        if len(name) > _LONGEST_NAME:
            raise OralError(f"Tensor {short(name)} has a name of over {_LONGEST_NAME} letters.")
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise OralError(
                f"Tensor {name!r} ({tensor.dtype}) contains NaN or infinity, or is not of floats."
            )
        ends = (*PAIRS, *PAIRS.values(), *EXTRAS)
        if ".lora_" in name and not name.endswith(ends):
            raise OralError(f"Tensor {name!r} is not a LoRA tensor under a name that PEFT saves.")
    pairs = list(_wrapped(tensors))
    if not pairs:
        raise OralError("These tensors contain no LoRA factors (lora_A and lora_B).")
    check_ranks({name: tuple(tensor.shape) for name, tensor in tensors.items()}, settings)
    modules = {}
    for module, outer, name_a, name_b in pairs:
        times = _ATTENTION_OUT_TIMES if outer != module else 1
        modules[module] = Factors(tensors[name_a], tensors[name_b], times * settings.scale(outer))
    return modules


def check_ranks(shapes: Mapping[str, tuple[int, ...]], settings: LoraSettings) -> None:
    """OralError unless the shapes of all LoRA factors have the ranks of `settings`.

    A is [r, in, ...] and B [out, r, ...]. The B of a grouped convolution is [out, r / groups, ...]:
    PEFT does not group A.
    """
    pairs = list(_wrapped(shapes))
    fields = {"rank_pattern": settings.ranks or {}, "alpha_pattern": settings.alphas or {}}
    patterns.check_all(fields, (outer for _, outer, *_ in pairs))
    for _, outer, name_a, name_b in pairs:
        a, b, r = shapes[name_a], shapes[name_b], settings.rank(outer)
        fits = len(a) == len(b) >= 2 and a[0] == r
        if not fits or not (b[1] == r or (len(b) > 2 and b[1] and r % b[1] == 0)):
            raise OralError(
                f"Tensor {name_a!r}: A {a} and B {b} are not a LoRA of rank {r}, which needs A "
                f"({r}, in) and B (out, {r})."
            )


def _wrapped(names: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(module, module that PEFT wraps, name of A, name of B) of each pair of LoRA factors."""
    modules = {}
    for name_a, name_b in factors(names).items():
        end = next(end for end in PAIRS if name_a.endswith(end))
        modules[name_a.removesuffix(end).removeprefix(PREFIX)] = name_a, name_b
    for module, pair in modules.items():
        outer = module.removesuffix(_ATTENTION_OUT)
        yield module, outer if outer in modules else module, *pair


def split_name(name: str) -> tuple[str, int, str]:
    """(container, layer, kind) of a tensor name without PEFT's prefix and suffix.

    The layer is 1 + the first whole number in the dotted name, or 0 for a name without a number.
    """
    name = re.sub(r"(\.lora_[AB])\.weight$", r"\1", name.removeprefix(PREFIX))
    if not (number := _NUMBER.search(name)):
        return "", 0, name
    return name[: number.start()].rstrip("."), 1 + int(number[0]), name[number.end() :].lstrip(".")


def natural_key(name: str) -> tuple[int, str, str]:
    """Sorts tensor names by layer, then by name, with numbers in the order of their values."""
    padded = re.sub("[0-9]+", lambda digits: digits[0].zfill(9), name)
    return split_name(name)[1], padded, name
