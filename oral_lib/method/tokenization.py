"""Tokens K: a PEFT adapter as l rows of k values, and back, bit for bit.

    token i of a tensor = its flattened values i k to (i + 1) k, padded with zeros at its end

Every tensor starts a new token. The `mask` distinguishes values from padding; RPG
(arXiv 2501.11587, parameter tokenization) marks padding with NaN. Tokens are float32, which
represents every bfloat16 and float16 value exactly; float64 is refused.

Cost: no index is built. One concatenation (encode) or split (decode) of each adapter moves the
values. 10^8 values are 0.4 GB of tokens and 0.1 GB of mask, and another 0.4 GB while they move.

Letters: b batch (adapters), l tokens, k values a token.
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
    """Mask, positions and tensor index of the tokens of a layout, on one device."""

    mask: Tensor  # bool [l, k]: a value, not padding
    positions: Tensor  # long [l, 3]: layer, index of the token within its tensor, tensor type
    owner: Tensor  # long [l]: index of the tensor that the token belongs to


@dataclass(frozen=True)
class Layout:
    """The ordered tensors of an adapter and their division into `l` tokens of `k` values.

    Args:
        names: of the tensors, as PEFT saves them, by layer, then by name.
        shapes: of the tensors.
        dtypes: of the tensors: float32, bfloat16 or float16.
        k: values a token.

    Raises:
        UsageError: `k` below 1, invalid shapes or dtypes, no values, or names that differ in
            nothing but PEFT's prefix.

    >>> adapter = {
    ...     "base_model.model.layers.0.q.lora_A.weight": torch.randn(2, 5),
    ...     "base_model.model.layers.0.q.lora_B.weight": torch.zeros(3, 2),
    ... }
    >>> layout = Layout.of(adapter, k=4)
    >>> layout.l, layout.types  # 10 values fill 3 tokens, 6 values fill 2
    (5, ('q.lora_A', 'q.lora_B'))
    >>> layout.mask.sum(1).tolist()
    [4, 4, 2, 4, 2]
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    k: int

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise UsageError(f"Values a token k={self.k!r}: must be a whole number >= 1.")
        for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True):
            if any(type(size) is not int or size < 0 for size in shape):
                raise UsageError(f"Tensor {name!r} has the shape {shape}: sizes must be >= 0.")
            _check_dtype(name, dtype)
        if not sum(self.sizes):
            raise UsageError("An adapter without values has no tokens: pass its PEFT state dict.")
        (layer, kind), times = Counter(self._layers_and_kinds).most_common(1)[0]
        if times > 1:
            raise UsageError(
                f"{times} tensors are {kind!r} of layer {layer}: tensor names must differ in more "
                "than PEFT's prefix."
            )

    @classmethod
    def of(cls, tensors: Adapter, k: int) -> "Layout":
        """The layout of adapters like `tensors`, in the order of layers and names.

        The order of the mapping does not matter. UsageError as for the class.
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
    def _layers_and_kinds(self) -> tuple[tuple[int, str], ...]:
        """(layer, type) of each tensor."""
        parts = [split_name(name) for name in self.names]
        single = len({container for container, layer, _ in parts if layer}) == 1
        return tuple(
            (layer, kind if single or not layer else f"{container}.*.{kind}")
            for container, layer, kind in parts
        )

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The tensor types, sorted, e.g. "attention.self.query.lora_A".

        A type is a name without PEFT's prefix and the layer number. Where all layers are in one
        container, its name is left out. No two tensors share both layer and type.
        """
        return tuple(sorted({kind for _, kind in self._layers_and_kinds}))

    @property
    def mask(self) -> Tensor:
        """bool [l, k] on the CPU: a value, not padding."""
        return self.on("cpu").mask

    @property
    def positions(self) -> Tensor:
        """long [l, 3] on the CPU: layer, index of the token within its tensor, index into `types`.

        The layer is 1 + the first whole number in the dotted name, or 0 for a name without one.
        """
        return self.on("cpu").positions

    @property
    def owner(self) -> Tensor:
        """long [l] on the CPU: index into `names`."""
        return self.on("cpu").owner

    def on(self, device: str | torch.device) -> Buffers:
        """Mask, positions and owner on `device`, computed or copied once a device."""
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
        rows = torch.tensor([(layer, kinds[kind]) for layer, kind in self._layers_and_kinds])
        owner = torch.arange(len(counts)).repeat_interleave(counts)  # [l]
        index = torch.arange(self.l) - (counts.cumsum(0) - counts)[owner]  # [l]
        mask = torch.arange(self.k) < (sizes[owner] - index * self.k)[:, None]  # [l, k]
        positions = torch.stack([rows[owner, 0], index, rows[owner, 1]], dim=1)  # [l, 3]
        return Buffers(mask, positions, owner)

    def to_json(self) -> dict[str, Any]:
        """The layout as plain JSON values; `from_json` gives an equal layout back."""
        dtypes = [str(dtype).removeprefix("torch.") for dtype in self.dtypes]
        rows = zip(self.names, map(list, self.shapes), dtypes, strict=True)
        return {"k": self.k, "tensors": [list(row) for row in rows]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Layout":
        """The layout that `to_json` wrote. OralError for other content."""
        try:
            names, shapes, dtypes = zip(*content["tensors"], strict=True)
            parsed = tuple(DTYPES[dtype] for dtype in dtypes)
            return cls(tuple(map(str, names)), tuple(map(tuple, shapes)), parsed, content["k"])
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise OralError(f"Invalid layout of tokens: {type(error).__name__} {error}.") from error


def encode(
    layout: Layout, adapters: Sequence[Adapter], device: str | torch.device = "cpu"
) -> Tensor:
    """Tokens float32 [b, l, k]: the values of `adapters`, padding 0.

    Args:
        layout: the division into tokens.
        adapters: b adapters, each on any one device.
        device: where the tokens are created.

    Raises:
        UsageError: a tensor is missing, unexpected, or of another shape or dtype than in `layout`.
        OralError: a value is not finite.

    >>> adapter = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.zeros(2, 2)}
    >>> encode(Layout.of(adapter, k=4), [adapter])
    tensor([[[1., 1., 1., 1.],
             [1., 1., 0., 0.],
             [0., 0., 0., 0.]]])
    """
    values = torch.zeros(len(adapters), layout.l, layout.k, device=device)
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    for row, adapter in zip(values, adapters, strict=True):
        if difference := first_difference(adapter, shapes):
            raise UsageError(f"This adapter does not fit the layout: {difference}.")
        source = adapter[layout.names[0]].device
        pieces = []
        for name, dtype, (_, padding) in zip(
            layout.names, layout.dtypes, _extents(layout), strict=True
        ):
            if adapter[name].dtype != dtype:
                raise UsageError(
                    f"Tensor {name!r} is {adapter[name].dtype}, the layout has {dtype}: cast it "
                    "first, or use a layout of such adapters."
                )
            pieces.append(adapter[name].detach().to(source, torch.float32).flatten())
            pieces.append(torch.zeros(padding, device=source))
        row.copy_(torch.cat(pieces).view_as(row))  # [l, k]
    _refuse_nonfinite(layout, values, "Cannot encode an adapter")
    return values


def decode(layout: Layout, values: Tensor) -> list[dict[str, Tensor]]:
    """The b adapters in `values` [b, l, k], on their device; padding is ignored.

    Each tensor has the shape and dtype of the layout and its own memory.

    Args:
        layout: the division into tokens.
        values: float [b, l, k], as `encode` returns them.

    Raises:
        UsageError: `values` has another shape.
        OralError: a value is not finite.

    >>> adapter = {"q.lora_A.weight": torch.randn(2, 3), "q.lora_B.weight": torch.zeros(2, 2)}
    >>> layout = Layout.of(adapter, k=4)
    >>> [restored] = decode(layout, encode(layout, [adapter]))
    >>> all(torch.equal(restored[name], tensor) for name, tensor in adapter.items())
    True
    """
    if values.ndim != 3 or values.shape[1:] != (layout.l, layout.k):
        raise UsageError(
            f"Tokens have the shape {tuple(values.shape)}, the layout needs "
            f"{('b', layout.l, layout.k)}: encode and decode with one layout."
        )
    _refuse_nonfinite(layout, values, "Cannot decode tokens")
    flat = values.flatten(1)  # [b, l * k]
    extents = [size for extent in _extents(layout) for size in extent]
    pieces = flat.split(extents, dim=1)[::2]  # [b, values] of each tensor
    adapters: list[dict[str, Tensor]] = [{} for _ in range(len(values))]
    for name, shape, dtype, piece in zip(
        layout.names, layout.shapes, layout.dtypes, pieces, strict=True
    ):
        for adapter, row in zip(adapters, piece, strict=True):
            # a copy: views would keep all tokens alive and count as tied weights on disk
            adapter[name] = row.reshape(shape).to(dtype, copy=True)
    return adapters


def flat(layout: Layout, values: Tensor) -> Tensor:
    """[b, v] the values of b adapters, differentiable, on the device of `values` [b, l, k].

    Padding is left out. Tensors are in the order of their sorted names, as in `lora.stacked.Stack`.

    >>> adapter = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.zeros(2, 2)}
    >>> layout = Layout.of(adapter, k=4)
    >>> flat(layout, encode(layout, [adapter])).shape
    torch.Size([1, 10])
    """
    extents = [size for extent in _extents(layout) for size in extent]
    pieces = values.flatten(1).split(extents, dim=1)[::2]  # [b, values] of each tensor
    order = sorted(range(len(layout.names)), key=layout.names.__getitem__)
    return torch.cat([pieces[i] for i in order], 1)  # [b, v]


def _extents(layout: Layout) -> list[tuple[int, int]]:
    """(number of values, length of padding) of each tensor in the flat tokens."""
    return [
        (size, count * layout.k - size)
        for size, count in zip(layout.sizes, layout.counts, strict=True)
    ]


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        raise UsageError(
            f"Tensor {name!r} is float64, and float32 tokens cannot represent it: cast it first."
        )
    if dtype not in DTYPES.values():
        raise UsageError(f"Tensor {name!r} is {dtype}: tokens represent only {', '.join(DTYPES)}.")


def _refuse_nonfinite(layout: Layout, values: Tensor, what: str) -> None:
    mask, _, owner = layout.on(values.device)
    bad = (~values.isfinite() & mask).any(-1)  # [b, l]
    if bad.any():
        adapter, token = bad.nonzero()[0].tolist()
        name = layout.names[owner[token]]
        raise OralError(f"{what}: tensor {name!r} of adapter {adapter} contains NaN or infinity.")
