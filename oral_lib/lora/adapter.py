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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any

from torch import Tensor

from oral_lib.errors import OralError

if TYPE_CHECKING:
    from peft import LoraConfig

Adapter = Mapping[str, Tensor]

PREFIX = "base_model.model."  # PEFT's, before the name of a module
PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
EXTRAS = (".lora_magnitude_vector", ".lora_B.bias")  # other LoRA tensors in a PEFT file

_NUMBER = re.compile(r"(?:^|(?<=\.))[0-9]{1,9}(?=\.|$)")  # a whole part of a dotted name


@dataclass(frozen=True)
class LoraSettings:
    """Rank and scale of each adapted module: the part of a PEFT configuration that fixes them."""

    r: int = 8
    alpha: float = 8
    ranks: Mapping[str, int] | None = None  # PEFT's rank_pattern: regular expression -> r
    alphas: Mapping[str, float] | None = None  # PEFT's alpha_pattern
    stabilised: bool = False  # PEFT's use_rslora

    @classmethod
    def of(cls, config: "LoraConfig | Mapping[str, Any]") -> "LoraSettings":
        """The settings in `config`, a LoraConfig or its fields.

        OralError for another kind of adapter and for invalid ranks, scales and patterns.
        """
        fields = config if isinstance(config, Mapping) else vars(config)
        if (kind := fields.get("peft_type", "LORA")) != "LORA":
            raise _invalid(f"peft_type is {kind!r}, not 'LORA'")
        if fields.get("target_parameters"):
            raise _invalid("LoRA on bare parameters (target_parameters) is not supported")
        r, alpha = fields.get("r", cls.r), fields.get("lora_alpha", cls.alpha)
        ranks, alphas = fields.get("rank_pattern") or {}, fields.get("alpha_pattern") or {}
        for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
            if not isinstance(pattern, Mapping):
                raise _invalid(f"{name} is {pattern!r}, not a mapping")
        for value in (r, *ranks.values()):
            if type(value) is not int or value < 1:
                raise _invalid(f"rank {value!r} must be a whole number >= 1")
        for value in (alpha, *alphas.values()):
            if not _is_finite(value):
                raise _invalid(f"lora_alpha {str(value)[:40]!r} must be a finite number")
        for pattern in (*ranks, *alphas):
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise _invalid(f"pattern {pattern!r}: {error}") from error
        return cls(r, alpha, ranks, alphas, bool(fields.get("use_rslora")))

    def rank(self, module: str) -> int:
        """r of `module`."""
        return _by_pattern(self.ranks, module, self.r)

    def scale(self, module: str) -> float:
        """s of `module`: alpha / r, or alpha / sqrt(r)."""
        r = self.rank(module)
        return _by_pattern(self.alphas, module, self.alpha) / (sqrt(r) if self.stabilised else r)


def _is_finite(value: Any) -> bool:
    try:
        return isfinite(value)
    except (TypeError, OverflowError):
        return False


def _invalid(reason: str) -> OralError:
    return OralError(f"Invalid LoRA configuration: {reason}.")


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of `module`, as PEFT picks it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


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


def factors(adapter: Adapter) -> dict[str, str]:
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


def factors_by_module(tensors: Adapter, settings: LoraSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by module name, after a check that `tensors` form a LoRA with the ranks of `settings`.

    OralError for invalid names, values that are not finite, factors without a partner, and shapes
    of another rank.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name.isprintable() or {*name} & {"/", "\\"}:
            raise OralError(f"{name!r} is not a tensor name: its parts are divided by dots only.")
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise OralError(
                f"Tensor {name!r} ({tensor.dtype}) contains NaN or infinity, or is not of floats."
            )
        ends = (*PAIRS, *PAIRS.values(), *EXTRAS)
        if ".lora_" in name and not name.endswith(ends):
            raise OralError(f"Tensor {name!r} is not a LoRA tensor under a name that PEFT saves.")
    pairs = {}
    for name_a, name_b in factors(tensors).items():
        end = next(end for end in PAIRS if name_a.endswith(end))
        module = name_a.removesuffix(end).removeprefix(PREFIX)
        pairs[module] = tensors[name_a], tensors[name_b]
        _check_rank(name_a, *pairs[module], settings.rank(module))
    if not pairs:
        raise OralError("These tensors contain no LoRA factors (lora_A and lora_B).")
    return pairs


def _check_rank(name: str, a: Tensor, b: Tensor, r: int) -> None:
    """OralError unless A is [r, in, ...] and B [out, r, ...].

    The B of a grouped convolution is [out, r / groups, ...]: PEFT does not group A.
    """
    fits = a.ndim == b.ndim >= 2 and a.shape[0] == r
    if not fits or not (b.shape[1] == r or (b.ndim > 2 and b.shape[1] and r % b.shape[1] == 0)):
        raise OralError(
            f"Tensor {name!r}: A {tuple(a.shape)} and B {tuple(b.shape)} are not a LoRA of rank "
            f"{r}, which needs A ({r}, in) and B (out, {r})."
        )


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
