"""lora.adapter."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from oral_lib.errors import OralError

Adapter = Mapping[str, Tensor]  # tensors under the names of PEFT's saved state dict

PREFIX = "base_model.model."

_NUMBER = re.compile(r"(?:^|(?<=\.))[0-9]{1,9}(?=\.|$)")  # a whole part of a dotted name


def first_difference(tensors: Adapter, shapes: Mapping[str, Sequence[int]]) -> str:
    """The first tensor, by layer and name, in which `tensors` is not as `shapes` says, in words;
    an empty string when there is none."""
    for name in sorted({*tensors, *shapes}, key=_natural):
        if name not in tensors:
            return f"tensor {name!r} of shape {tuple(shapes[name])} is missing"
        if name not in shapes:
            return f"tensor {name!r} of shape {tuple(tensors[name].shape)} is unexpected"
        if tuple(tensors[name].shape) != tuple(shapes[name]):
            found, wanted = tuple(tensors[name].shape), tuple(shapes[name])
            return f"tensor {name!r} has the shape {found}, expected {wanted}"
    return ""


def _cut(name: str) -> tuple[str, int, str]:
    """(name before the layer number, layer, name after it) without PEFT's prefix and suffix."""
    name = re.sub(r"(\.lora_[AB])\.weight$", r"\1", name.removeprefix(PREFIX))
    if not (number := _NUMBER.search(name)):
        return "", 0, name
    return name[: number.start()].rstrip("."), 1 + int(number[0]), name[number.end() :].lstrip(".")


def _natural(name: str) -> tuple[int, str, str]:
    return _cut(name)[1], re.sub("[0-9]+", lambda digits: digits[0].zfill(9), name), name


def check(tensors: Adapter, reference: Adapter) -> None:
    """Nothing when names and shapes are those of `reference` (the shared LoRA initialisation of a
    base model), else OralError with the first difference."""
    if difference := first_difference(tensors, {n: t.shape for n, t in reference.items()}):
        raise OralError(f"This adapter does not fit the base model: {difference}.")


PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}


def factors(adapter: Adapter) -> dict[str, str]:
    """The name of B by that of its A. OralError if a factor stands alone, or where nothing can turn
    (grouped convolutions)."""
    pairs = {
        name: name.removesuffix(end) + PAIRS[end]
        for name in adapter
        for end in PAIRS
        if name.endswith(end)
    }
    for a, b in pairs.items():
        if b not in adapter:
            raise OralError(f"Tensor {a!r} has no {b!r} beside it.")
        shape = adapter[b].shape
        if shape[1] != len(adapter[a]) or shape[2:].numel() != 1:
            raise OralError(
                f"{a!r} {tuple(adapter[a].shape)} and {b!r} {tuple(shape)} are no B A of matrices."
            )
    return pairs
