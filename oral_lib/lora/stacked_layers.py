"""Layers of a frozen model under S LoRAs at once: linear layers, convolutions and heads.

    y[s] = x[s] W^T + scale (x[s] A[s]^T) B[s]^T

Letters: S adapters, b rows of each, s one adapter, r rank, x [S * b, ..., in], W [out, in],
A [S, r, in], B [S, out, r], low = scale x A^T [S, rows, r].
"""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib.errors import OralError


@torch.library.custom_op("oral::lora", mutates_args=())
def _lora(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    lora_a: Tensor,
    lora_b: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """[y of each layer, ..., low]: the equation above for layers with the same input x.

    It is one operation for the compiler, which fuses the code around the matrix products. The
    low-rank part comes first, so that the product with W adds to it: a result is written twice and
    read once.

    Args:
        x: [S * b, ..., in].
        weights: W [out, in] of each layer.
        biases: [out] of each layer, or empty.
        lora_a: [S, sum of r, in], the A of all layers one below the other.
        lora_b: B [S, out, r] of each layer.
        scale: s = alpha / r.

    Returns:
        y [S * b, ..., out] of each layer, then low = s x A^T [S, rows, sum of r] for backward.
    """
    groups = x.reshape(len(lora_a), -1, x.shape[-1])  # [S, rows, in]
    low, results = _product(groups, lora_a.mT, scale), []
    for i, (weight, b, part) in enumerate(zip(weights, lora_b, _parts(low, lora_b), strict=True)):
        if biases:
            y = F.linear(groups, weight, biases[i]).baddbmm_(part, b.mT)  # [S, rows, out]
        else:
            y = part @ b.mT  # [S, rows, out]
            y.flatten(0, 1).addmm_(groups.flatten(0, 1), weight.T)
        results.append(y.view(*x.shape[:-1], len(weight)))
    return [*results, low]


@_lora.register_fake
def _(x, weights, biases, lora_a, lora_b, scale):
    rows = prod(x.shape[:-1]) // lora_a.shape[0]
    low = x.new_empty(lora_a.shape[0], rows, lora_a.shape[1])
    return [*(x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights), low]


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * left @ right [S, n, m] in one pass."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale, out=out)


def _parts(low: Tensor, lora_b: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """[S, rows, r] of each layer, views of `low` [S, rows, sum of r]."""
    return low.split([b.shape[2] for b in lora_b], 2)


@torch.library.custom_op("oral::lora_backward", mutates_args=())
def _lora_backward(
    results: Sequence[Tensor],
    x: Tensor,
    low: Tensor,
    weights: Sequence[Tensor],
    lora_a: Tensor,
    lora_b: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """Gradients of x, A and every B; W is frozen, so backward costs what forward does."""
    s = len(lora_a)
    groups, dlow = x.reshape(s, -1, x.shape[-1]), torch.empty_like(low)  # [S, rows, in or r]
    dys = [dy.reshape(s, -1, dy.shape[-1]) for dy in results]  # [S, rows, out] each
    for dy, b, part in zip(dys, lora_b, _parts(dlow, lora_b), strict=True):
        _product(dy, b, scale, part)
    dx = dlow @ lora_a  # [S, rows, in]
    for dy, weight in zip(dys, weights, strict=True):
        dx.flatten(0, 1).addmm_(dy.flatten(0, 1), weight)
    dbs = [dy.mT @ part for dy, part in zip(dys, _parts(low, lora_b), strict=True)]
    return [dx.view(x.shape), dlow.mT @ groups, *dbs]


@_lora_backward.register_fake
def _(results, x, low, weights, lora_a, lora_b, scale):
    return [x.new_empty(x.shape), *(torch.empty_like(part) for part in (lora_a, *lora_b))]


def _keep(ctx, inputs, output) -> None:
    x, weights, biases, lora_a, lora_b, ctx.scale = inputs
    ctx.layers, ctx.biases = len(weights), len(biases)
    ctx.save_for_backward(x, output[-1], lora_a, *weights, *lora_b)


def _gradients(ctx, results):
    x, low, lora_a, *rest = ctx.saved_tensors
    weights, lora_b = rest[: ctx.layers], rest[ctx.layers :]
    dx, da, *dbs = _lora_backward(results[:-1], x, low, weights, lora_a, lora_b, ctx.scale)
    return dx, [None] * ctx.layers, [None] * ctx.biases, da, dbs, None


_lora.register_autograd(_gradients, setup_context=_keep)


class StackedLinear(nn.Module):
    """A linear layer under S LoRAs: x [S * b, ..., in] -> [S * b, ..., out], groups in order.

    It belongs to a `Siblings` group: all layers with the same input, or this layer by itself.
    """

    def __init__(self, siblings: "Siblings", index: int):
        super().__init__()
        self.siblings, self.index = siblings, index

    def forward(self, x: Tensor) -> Tensor:
        return self.siblings(x, self.index)


class Siblings(nn.Module):
    """Linear layers under S LoRAs with the same input x [S * b, ..., in], computed together.

    x is read once and its gradient is computed once. The first layer called computes
    y [S * b, ..., out] of all layers; `outputs` keeps each until its layer is called. `attached`
    clears them after every forward pass, in case a layer was skipped. A layer called with another x
    is correct, too, but gains nothing.
    """

    def __init__(
        self, layers: Sequence[nn.Linear], parts: Sequence[dict[str, Tensor]], scale: float
    ):
        super().__init__()
        self.layers, self.scale = nn.ModuleList(layers), scale
        self.lora_a = nn.ParameterList(part["A"] for part in parts)
        self.lora_b = nn.ParameterList(part["B"] for part in parts)
        self.input: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}

    def forward(self, x: Tensor, index: int) -> Tensor:
        if self.input is not x or index not in self.outputs:
            biases = [layer.bias for layer in self.layers if layer.bias is not None]
            lora_a = self.lora_a[0] if len(self.lora_a) == 1 else torch.cat(list(self.lora_a), 1)
            weights = [layer.weight for layer in self.layers]
            *results, _ = _lora(x, weights, biases, lora_a, list(self.lora_b), self.scale)
            self.input, self.outputs = x, dict(enumerate(results))
        y = self.outputs.pop(index)
        if not self.outputs:
            self.input = None
        return y

    def clear(self) -> None:
        """Drops the outputs that no layer asked for."""
        self.input, self.outputs = None, {}


class StackedConv2d(nn.Module):
    """A convolution under S LoRAs: x [S * b, in, h, w] -> [S * b, out, h', w'], groups in order.

    lora_a [S, r, in, kh, kw] slides over x like the convolution itself, lora_b [S, out, r, 1, 1]
    mixes its channels. A pointwise convolution is two matrix products at every pixel.
    """

    def __init__(self, base: nn.Conv2d, lora_a: Tensor, lora_b: Tensor, scale: float):
        super().__init__()
        if base.groups != 1:
            raise OralError(
                f"A convolution of {base.groups} groups cannot have stacked LoRAs: use one group."
            )
        self.base, self.lora_a, self.lora_b, self.scale = base, lora_a, lora_b, scale
        geometry = (base.kernel_size, base.stride, base.padding)
        self.pointwise = geometry == ((1, 1), (1, 1), (0, 0))

    def forward(self, x: Tensor) -> Tensor:
        y, s = self.base(x), len(self.lora_a)
        if self.pointwise:
            pixels = x.to(self.lora_a.dtype).unflatten(0, (s, -1)).flatten(3)  # [S, b, in, h w]
            low = self.lora_a.flatten(2)[:, None] @ pixels  # [S, b, r, h w]
            wide = self.lora_b.flatten(2)[:, None] @ low  # [S, b, out, h w]
            return (y + self.scale * wide.view_as(y)).to(y.dtype)
        side = x.to(self.lora_a.dtype).unflatten(0, (s, -1)).transpose(0, 1)  # [b, S, in, h, w]
        side = side.flatten(1, 2)  # [b, S in, h, w]
        geometry = (self.base.stride, self.base.padding, self.base.dilation)
        low = F.conv2d(side, self.lora_a.flatten(0, 1), None, *geometry, groups=s)
        wide = F.conv2d(low, self.lora_b.flatten(0, 1), groups=s)  # [b, S out, h', w']
        wide = wide.unflatten(1, (s, -1)).transpose(0, 1).flatten(0, 1)  # [S b, out, h', w']
        return (y + self.scale * wide).to(y.dtype)


class StackedHead(nn.Module):
    """S linear heads: x [S * b, ..., in] -> [S * b, ..., out], groups in order."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        s, out, _ = self.weight.shape
        y = x.reshape(s, -1, x.shape[-1]).to(self.weight.dtype) @ self.weight.mT  # [S, rows, out]
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.view(*x.shape[:-1], out)


def stacked_layer(path: str, layer: nn.Module, parts: dict[str, Tensor], scale: float) -> nn.Module:
    """The layer that replaces `layer` under S adapters; OralError for a kind without one."""
    if parts.keys() == {"A", "B"} and type(layer) is nn.Conv2d:
        return StackedConv2d(layer, parts["A"], parts["B"], scale)
    if isinstance(layer, nn.Linear) and "weight" in parts and parts.keys() <= {"weight", "bias"}:
        return StackedHead(parts["weight"], parts.get("bias"))
    raise OralError(
        f"{path} is a {type(layer).__name__} with adapter parts {', '.join(sorted(parts))}: only "
        "LoRA on linear layers and convolutions, and linear heads, can be stacked."
    )
