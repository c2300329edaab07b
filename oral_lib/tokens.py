"""Tokens: a PEFT adapter as rows of `k` values, and back, bit for bit.

Letters: b batch (adapters), l tokens, k values a token.

Every tensor starts a token of its own and is padded with zeros at its end; the `mask` tells values
from padding (RPG, arXiv 2501.11587, marks padding with NaN). Tokens are float32, which holds every
bfloat16 and float16 value exactly; float64 does not fit and is refused.

Cost: no index is built. One concatenation (encode) or split (decode) an adapter moves the values:
10^8 of them are 0.4 GB of tokens, 0.1 GB of mask and as much again as the tokens while they move.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib.errors import OralError, UsageError

Adapter = Mapping[str, Tensor]  # tensors under the names of PEFT's saved state dict

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREFIX = "base_model.model."
_NUMBER = re.compile(r"(?:^|(?<=\.))[0-9]{1,9}(?=\.|$)")  # a whole part of a dotted name


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
        names = sorted(tensors, key=_natural)
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
        cut = [_cut(name) for name in self.names]
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


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class Statistics:
    """What takes values [b, l, k] to tokens of unit size and back: values = scale * token + center.

    Shared by all tasks of a base model: statistics of one task would return that task's mean
    adapter from all-zero tokens, and the condition would leak.

    With a `basis` a token is told by its first r principal components over the zoo instead of k
    values, values = scale * (token @ basis) + center: adapters of one start differ in few
    directions, other ones in every token, and a network need not find them. Each token's are
    turned so that an adapter has, as far as can be, the same r numbers in all of its tokens; of a
    token of fewer directions they are smaller. Tokens of zeros alone stay the center.
    """

    center: Tensor  # float32 [l, k], padding 0
    scale: Tensor  # float32 [l, 1], above 0, one number a tensor
    basis: Tensor | None = None  # float32 [l, r, k], zero for components that the zoo lacks

    def __post_init__(self) -> None:
        center, scale = tuple(self.center.shape), tuple(self.scale.shape)
        if len(center) != 2 or scale != (center[0], 1):
            raise UsageError(f"Statistics want center [l, k], scale [l, 1]: got {center}, {scale}.")
        if not self.center.isfinite().all() or not self.scale.isfinite().all():
            raise OralError("Statistics hold NaN or infinite values: fit them again.")
        if not (self.scale > 0).all():
            raise OralError("Statistics hold a scale of zero or below: fit them again.")
        if self.basis is not None:
            shape = tuple(self.basis.shape)
            if len(shape) != 3 or (shape[0], shape[2]) != center:
                raise UsageError(f"Statistics of {center} want a basis [l, r, k]: got {shape}.")
            if not self.basis.isfinite().all():
                raise OralError("Statistics hold NaN or infinite values: fit them again.")

    @classmethod
    def fit(
        cls,
        layout: Layout,
        values: Tensor,
        center: Tensor | None = None,
        components: int = 0,
        *,
        turned: bool = True,
    ) -> "Statistics":
        """Statistics of `values` [b, l, k], all tasks and seeds of a base model together; with a
        basis of that many principal components a token, if `components` is not 0; without `turned`
        each token's stay as they are, alike in none.

        `center` [l, k] is the shared LoRA initialisation, `encode(layout, [init])[0]`: all-zero
        tokens then decode to it exactly, that is, to the base model. Without it the center of a
        tensor is its mean (RPG). The scale of a tensor is the root mean square of (value - center)
        over all adapters and its unpadded values, and 1 where that is rounding noise.
        """
        if values.ndim != 3 or values.shape[1:] != (layout.l, layout.k) or not len(values):
            raise UsageError(
                f"Statistics want values {('b', layout.l, layout.k)} of one adapter or more, "
                f"got {tuple(values.shape)}."
            )
        if center is not None and tuple(center.shape) != (layout.l, layout.k):
            raise UsageError(
                f"The center has the shape {tuple(center.shape)}, the layout wants "
                f"{(layout.l, layout.k)}: use encode(layout, [init])[0]."
            )
        mask, _, owner = layout.on(values.device)
        values = torch.where(mask, values.float(), 0.0)
        if center is None:
            mean = _mean(layout, values.sum((0, 2), dtype=torch.float64), len(values))
            center = mean[owner, None].float()
        center = torch.where(mask, center.to(values.device, torch.float32), 0.0)
        rms = _rms(layout, values - center)
        noise = 1e-6 * _rms(layout, values) + 1e-12  # a constant tensor leaves float32 rounding
        scale = torch.where(rms > noise, rms, 1.0)[owner, None]
        plain = cls(center, scale.float())
        if not components:
            return plain
        return cls(center, plain.scale, _basis(plain.normalise(values), components, turned))

    def normalise(self, values: Tensor) -> Tensor:
        """Tokens [b, l, k or r] of `values` [b, l, k]; padding stays 0."""
        plain = (values - self.center) / self.scale
        if self.basis is None:
            return plain
        gram = self.basis @ self.basis.mT  # [l, r, r] a projection, but for one number a token
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        size = gram.square().sum((1, 2)) / trace.where(trace > 0, 1.0)
        found = torch.einsum("blk,lrk->blr", plain, self.basis)
        return found / size.where(trace > 0, 1.0)[:, None]

    def denormalise(self, tokens: Tensor) -> Tensor:
        """float32 values [b, l, k] of `tokens` [b, l, k or r]."""
        tokens = tokens.float()
        if self.basis is not None:
            tokens = torch.einsum("blr,lrk->blk", tokens, self.basis)
        return torch.addcmul(self.center, tokens, self.scale)

    def mask(self, layout: Layout) -> Tensor:
        """bool [l, k or r]: what of a token means something."""
        return layout.mask if self.basis is None else self.basis.cpu().square().sum(-1) > 0

    def to(self, device: str | torch.device) -> "Statistics":
        """The same statistics on `device`."""
        basis = self.basis if self.basis is None else self.basis.to(device)
        return Statistics(self.center.to(device), self.scale.to(device), basis)


def _basis(tokens: Tensor, components: int, turned: bool) -> Tensor:
    """[l, components, k] principal directions of `tokens` [b, l, k] about zero, as long as gives
    components of unit size; zero where b adapters have no more of them.

    By the Gram matrices of the adapters [l, b, b], which are small where tokens are long. Principal
    directions are known up to a turn: each token's are turned (orthogonal Procrustes) to bring the
    components of the adapters in it, [b, r], as near as can be to those in all tokens together, the
    strongest first. A network then has one thing to learn and not l of them.
    """
    gram = torch.einsum("alk,blk->lab", tokens, tokens).double()
    energy, mixes = _strongest(gram, components)
    found = energy > 1e-6 * energy[:, :1].clamp_min(1e-12)
    root = torch.where(found, energy.clamp_min(1e-30).sqrt(), 0.0)
    turn = torch.eye(root.shape[1], dtype=root.dtype, device=root.device).expand(len(root), -1, -1)
    if turned:
        joint, shared = _strongest(gram.mean(0), components)
        shared = shared * joint.clamp_min(0).sqrt()  # [b, r] what every token's are to be like
        left, _, right = torch.linalg.svd((mixes * root[:, None]).mT @ shared)
        real = joint > 1e-6 * joint[:1].clamp_min(1e-12)  # there may be fewer than asked for
        turn = left @ right * real  # [l, r, r]
    turn = torch.where(found[..., None], turn, 0.0)
    mixes = mixes / root.where(found, 1.0)[:, None] @ turn
    basis = torch.einsum("lar,alk->lrk", mixes.float(), tokens)
    size = (energy[found].sum() / (found.sum() * len(tokens)).clamp_min(1)).sqrt()
    return F.pad(basis * size.float(), (0, 0, 0, components - basis.shape[1]))


def _strongest(gram: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(values [..., m], vectors [..., b, m]) of the m = min(n, b) largest eigenvalues."""
    energy, mixes = torch.linalg.eigh(gram)
    return energy[..., -n:].flip(-1), mixes[..., -n:].flip(-1)


def _mean(layout: Layout, of_tokens: Tensor, adapters: int) -> Tensor:
    """float64 [tensors]: sums over tokens [l] of `adapters`, divided by the number of values."""
    sizes = torch.tensor(layout.sizes, device=of_tokens.device, dtype=torch.float64)
    sums = torch.zeros_like(sizes).index_add_(0, layout.on(of_tokens.device).owner, of_tokens)
    return sums / (sizes * adapters).clamp_min(1)


def _rms(layout: Layout, values: Tensor) -> Tensor:
    """float64 [tensors]: root mean square of `values` [b, l, k] whose padding is 0."""
    norms = torch.linalg.vector_norm(values, dim=(0, 2), dtype=torch.float64)
    return _mean(layout, norms**2, len(values)).sqrt()


def _cuts(layout: Layout) -> list[tuple[int, int]]:
    """(values, padding) of each tensor in the flat tokens."""
    return [
        (size, count * layout.k - size)
        for size, count in zip(layout.sizes, layout.counts, strict=True)
    ]


def _cut(name: str) -> tuple[str, int, str]:
    """(name before the layer number, layer, name after it) without PEFT's prefix and suffix."""
    name = re.sub(r"(\.lora_[AB])\.weight$", r"\1", name.removeprefix(PREFIX))
    if not (number := _NUMBER.search(name)):
        return "", 0, name
    return name[: number.start()].rstrip("."), 1 + int(number[0]), name[number.end() :].lstrip(".")


def _natural(name: str) -> tuple[int, str, str]:
    return _cut(name)[1], re.sub("[0-9]+", lambda digits: digits[0].zfill(9), name), name


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
