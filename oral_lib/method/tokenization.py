"""Tokens: a PEFT adapter as rows of `k` values, and back, bit for bit.

Letters: b batch (adapters), l tokens, k values a token.

Every tensor starts a token of its own and is padded with zeros at its end; the `mask` tells values
from padding (RPG, arXiv 2501.11587, marks padding with NaN). Tokens are float32, which holds every
bfloat16 and float16 value exactly; float64 does not fit and is refused.

Cost: no index is built. One concatenation (encode) or split (decode) an adapter moves the values:
10^8 of them are 0.4 GB of tokens, 0.1 GB of mask and as much again as the tokens while they move.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oral_lib.errors import OralError, UsageError
from oral_lib.lora.adapter import Adapter, first_difference, natural_key, split_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Buffers(NamedTuple):
    """What the tokens of a layout are, on one device."""

    mask: Tensor  # bool [l, k]: a value, not padding
    positions: Tensor  # long [l, 3]: layer, index of the token within its tensor, tensor type
    owner: Tensor  # long [l]: which tensor the token belongs to


@dataclass(frozen=True)
class Layout:
    """The ordered tensors of an adapter and how they are cut into `l` tokens of `k` values."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    k: int

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise UsageError(f"Values a token k={self.k!r}: use a whole number from 1 upwards.")
        for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True):
            if any(type(size) is not int or size < 0 for size in shape):
                raise UsageError(f"Tensor {name!r} has the shape {shape}: sizes are 0 or above.")
            _known_dtype(name, dtype)
        if not sum(self.sizes):
            raise UsageError("An adapter without values has no tokens: pass its PEFT state dict.")
        (layer, kind), times = Counter(self._places).most_common(1)[0]
        if times > 1:
            raise UsageError(
                f"{times} tensors are {kind!r} of layer {layer}: names of tensors must differ in "
                "more than PEFT's prefix."
            )

    @classmethod
    def of(cls, tensors: Adapter, k: int) -> "Layout":
        """The layout of adapters like `tensors`: by layer, then by name, whatever the dict's order.

        UsageError for `k` below 1, for a dtype that float32 cannot hold, for no values at all and
        for names that differ in nothing but PEFT's prefix.
        """
        names = sorted(tensors, key=natural_key)
        shapes = tuple(tuple(tensors[name].shape) for name in names)
        return cls(tuple(names), shapes, tuple(tensors[name].dtype for name in names), k)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Values of each tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each tensor."""
        return tuple(-(-size // self.k) for size in self.sizes)

    @property
    def l(self) -> int:  # noqa: E743 - the letter of the method
        """Tokens of an adapter."""
        return sum(self.counts)

    @cached_property
    def _places(self) -> tuple[tuple[int, str], ...]:
        """(layer, type) of each tensor."""
        cut = [split_name(name) for name in self.names]
        single = len({before for before, layer, _ in cut if layer}) == 1
        return tuple(
            (layer, after if single or not layer else f"{before}.*.{after}")
            for before, layer, after in cut
        )

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The kinds of tensor, sorted, e.g. "attention.self.query.lora_A": names without PEFT's
        prefix, the layer number and, where all layers live in one container, its name. No two
        tensors share both layer and type."""
        return tuple(sorted({kind for _, kind in self._places}))

    @property
    def mask(self) -> Tensor:
        """bool [l, k] on the CPU: a value, not padding."""
        return self.on("cpu").mask

    @property
    def positions(self) -> Tensor:
        """long [l, 3] on the CPU: layer (1 + the first whole number in the dotted name, 0 for names
        without one), index of the token within its tensor, index into `types`."""
        return self.on("cpu").positions

    @property
    def owner(self) -> Tensor:
        """long [l] on the CPU: index into `names`."""
        return self.on("cpu").owner

    def on(self, device: str | torch.device) -> Buffers:
        """Mask, positions and owner on `device`, made or copied once a device."""
        device = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
        if device not in self._cache:
            self._cache[device] = Buffers(*(buffer.to(device) for buffer in self._buffers))
        return self._cache[device]

    @cached_property
    def _cache(self) -> dict[torch.device, Buffers]:
        return {}

    @cached_property
    def _buffers(self) -> Buffers:
        counts, sizes = torch.tensor(self.counts), torch.tensor(self.sizes)
        kinds = {kind: index for index, kind in enumerate(self.types)}
        places = torch.tensor([(layer, kinds[kind]) for layer, kind in self._places])
        owner = torch.arange(len(counts)).repeat_interleave(counts)
        index = torch.arange(self.l) - (counts.cumsum(0) - counts)[owner]
        mask = torch.arange(self.k) < (sizes[owner] - index * self.k)[:, None]  # [l, k]
        positions = torch.stack([places[owner, 0], index, places[owner, 1]], dim=1)
        return Buffers(mask, positions, owner)

    def to_json(self) -> dict[str, Any]:
        """The layout as plain JSON values; `from_json` gives an equal layout back."""
        dtypes = [str(dtype).removeprefix("torch.") for dtype in self.dtypes]
        rows = zip(self.names, map(list, self.shapes), dtypes, strict=True)
        return {"k": self.k, "tensors": [list(row) for row in rows]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Layout":
        """The layout that `to_json` wrote. OralError when `content` is something else."""
        try:
            names, shapes, dtypes = zip(*content["tensors"], strict=True)
            known = tuple(DTYPES[dtype] for dtype in dtypes)
            return cls(tuple(map(str, names)), tuple(map(tuple, shapes)), known, content["k"])
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise OralError(f"No layout of tokens: {type(error).__name__} {error}.") from error


def encode(
    layout: Layout, adapters: Sequence[Adapter], device: str | torch.device = "cpu"
) -> Tensor:
    """float32 [b, l, k] on `device`: the values of `adapters`, padding 0.

    UsageError when a tensor is missing, unexpected or of another shape or dtype than in `layout`;
    OralError when one is not finite.
    """
    values = torch.zeros(len(adapters), layout.l, layout.k, device=device)
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    for row, adapter in zip(values, adapters, strict=True):
        if difference := first_difference(adapter, shapes):
            raise UsageError(f"This adapter does not fit the layout: {difference}.")
        home = adapter[layout.names[0]].device
        pieces = []
        for name, dtype, (_, padding) in zip(
            layout.names, layout.dtypes, _cuts(layout), strict=True
        ):
            if adapter[name].dtype != dtype:
                raise UsageError(
                    f"Tensor {name!r} is {adapter[name].dtype}, the layout has {dtype}: "
                    "cast it first, or make a layout of its own."
                )
            pieces.append(adapter[name].detach().to(home, torch.float32).flatten())
            pieces.append(torch.zeros(padding, device=home))
        row.copy_(torch.cat(pieces).view_as(row))
    _refuse_nonfinite(layout, values, "Cannot encode an adapter")
    return values


def decode(layout: Layout, values: Tensor) -> list[dict[str, Tensor]]:
    """The adapters in `values` [b, l, k], each tensor in its own shape and dtype, on the device of
    `values`; padding is ignored.

    UsageError for another shape than [b, l, k]; OralError when a value is not finite.
    """
    if values.ndim != 3 or values.shape[1:] != (layout.l, layout.k):
        raise UsageError(
            f"Tokens have the shape {tuple(values.shape)}, the layout wants "
            f"{('b', layout.l, layout.k)}: encode and decode with one layout."
        )
    _refuse_nonfinite(layout, values, "Cannot decode tokens")
    flat = values.flatten(1)  # [b, l * k]
    pieces = flat.split([size for cut in _cuts(layout) for size in cut], dim=1)[::2]
    adapters: list[dict[str, Tensor]] = [{} for _ in range(len(values))]
    for name, shape, dtype, piece in zip(
        layout.names, layout.shapes, layout.dtypes, pieces, strict=True
    ):
        for adapter, row in zip(adapters, piece, strict=True):
            # a copy: views would keep all tokens alive and count as tied weights on disk
            adapter[name] = row.reshape(shape).to(dtype, copy=True)
    return adapters


def _cuts(layout: Layout) -> list[tuple[int, int]]:
    """(values, padding) of each tensor in the flat tokens."""
    return [
        (size, count * layout.k - size)
        for size, count in zip(layout.sizes, layout.counts, strict=True)
    ]


def _known_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        raise UsageError(
            f"Tensor {name!r} is float64, which float32 tokens cannot hold: cast it to float32."
        )
    if dtype not in DTYPES.values():
        raise UsageError(f"Tensor {name!r} is {dtype}: tokens hold {', '.join(DTYPES)} only.")


def _refuse_nonfinite(layout: Layout, values: Tensor, what: str) -> None:
    mask, _, owner = layout.on(values.device)
    bad = (~values.isfinite() & mask).any(-1)  # [b, l]
    if bad.any():
        adapter, token = bad.nonzero()[0].tolist()
        name = layout.names[owner[token]]
        raise OralError(f"{what}: tensor {name!r} of adapter {adapter} holds NaN or infinity.")
