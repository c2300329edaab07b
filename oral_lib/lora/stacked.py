"""Many LoRAs on one frozen model at once.

S adapters share the weights of their base, so S groups of rows go through one forward pass: group s
of every batch belongs to adapter s, and only the low-rank products differ,

    y[s] = x[s] W^T + alpha / r (x[s] A[s]^T) B[s]^T    x[s] [rows, in], A[s] [r, in], B[s] [out, r]

All adapters lie in one tensor [S, values]; A, B and heads are views of it. The optimizer is then a
handful of operations on [S, values], with a learning rate and a gradient norm of its own for every
adapter: each is trained as if it were alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib.errors import OralError
from oral_lib.lora.adapter import PREFIX

SIBLINGS = (  # linear layers of one module that read the same x
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
)


@torch.library.custom_op("oral::lora", mutates_args=())
def _lora(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    lora_a: Tensor,
    lora_b: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """The equation above of layers that read the same x, and what backward reads.

    x [S * b, ..., in], W and B of each, `biases` of each or none, A [S, sum of r, in] of all, one
    below the other -> y [S * b, ..., out] of each, and alpha / r x A^T [S, rows, sum of r].

    One operation for the compiler, which fuses what lies around the matrix products. The low-rank
    part comes first, so that the product with W adds to it: a result is written twice, read once.
    """
    groups = x.reshape(len(lora_a), -1, x.shape[-1])
    low, results = _product(groups, lora_a.mT, scale), []
    for i, (weight, b, part) in enumerate(zip(weights, lora_b, _parts(low, lora_b), strict=True)):
        if biases:
            y = F.linear(groups, weight, biases[i]).baddbmm_(part, b.mT)
        else:
            y = part @ b.mT
            y.flatten(0, 1).addmm_(groups.flatten(0, 1), weight.T)
        results.append(y.view(*x.shape[:-1], len(weight)))
    return [*results, low]


@_lora.register_fake
def _(x, weights, biases, lora_a, lora_b, scale):
    rows = prod(x.shape[:-1]) // lora_a.shape[0]
    low = x.new_empty(lora_a.shape[0], rows, lora_a.shape[1])
    return [*(x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights), low]


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale left @ right [S, n, m] in one pass."""
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
    groups, dlow = x.reshape(s, -1, x.shape[-1]), torch.empty_like(low)
    dys = [dy.reshape(s, -1, dy.shape[-1]) for dy in results]
    for dy, b, part in zip(dys, lora_b, _parts(dlow, lora_b), strict=True):
        _product(dy, b, scale, part)
    dx = dlow @ lora_a
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

    It is one of `Siblings`, of all that read the same x or of itself alone.
    """

    def __init__(self, siblings: "Siblings", place: int):
        super().__init__()
        self.siblings, self.place = siblings, place

    def forward(self, x: Tensor) -> Tensor:
        return self.siblings(x, self.place)


class Siblings(nn.Module):
    """Linear layers under S LoRAs that read the same x [S * b, ..., in]: it is read once, and its
    gradient is made once.

    The first layer that is asked makes y [S * b, ..., out] of all; those of the others are `held`
    until they are asked. A layer that reads another x is right, too, but gains nothing.
    """

    def __init__(
        self, layers: Sequence[nn.Linear], parts: Sequence[dict[str, Tensor]], scale: float
    ):
        super().__init__()
        self.layers, self.scale = nn.ModuleList(layers), scale
        self.lora_a = nn.ParameterList(part["A"] for part in parts)
        self.lora_b = nn.ParameterList(part["B"] for part in parts)
        self.read: Tensor | None = None
        self.held: dict[int, Tensor] = {}

    def forward(self, x: Tensor, place: int) -> Tensor:
        if self.read is not x or place not in self.held:
            biases = [layer.bias for layer in self.layers if layer.bias is not None]
            lora_a = self.lora_a[0] if len(self.lora_a) == 1 else torch.cat(list(self.lora_a), 1)
            weights = [layer.weight for layer in self.layers]
            *results, _ = _lora(x, weights, biases, lora_a, list(self.lora_b), self.scale)
            self.read, self.held = x, dict(enumerate(results))
        y = self.held.pop(place)
        if not self.held:
            self.read = None
        return y


class StackedConv2d(nn.Module):
    """A convolution under S LoRAs: x [S * b, in, h, w] -> [S * b, out, h', w'], groups in order.

    lora_a [S, r, in, kh, kw] moves like the convolution itself, lora_b [S, out, r, 1, 1] mixes. A
    pointwise convolution is two matrix products at every place.
    """

    def __init__(self, base: nn.Conv2d, lora_a: Tensor, lora_b: Tensor, scale: float):
        super().__init__()
        if base.groups != 1:
            raise OralError(f"a convolution of {base.groups} groups cannot carry stacked LoRAs.")
        self.base, self.lora_a, self.lora_b, self.scale = base, lora_a, lora_b, scale
        how = (base.kernel_size, base.stride, base.padding)
        self.pointwise = how == ((1, 1), (1, 1), (0, 0))

    def forward(self, x: Tensor) -> Tensor:
        y, s = self.base(x), len(self.lora_a)
        if self.pointwise:
            places = x.to(self.lora_a.dtype).unflatten(0, (s, -1)).flatten(3)  # [S, b, in, h w]
            low = self.lora_a.flatten(2)[:, None] @ places  # [S, b, r, h w]
            wide = self.lora_b.flatten(2)[:, None] @ low  # [S, b, out, h w]
            return (y + self.scale * wide.view_as(y)).to(y.dtype)
        side = x.to(self.lora_a.dtype).unflatten(0, (s, -1)).transpose(0, 1).flatten(1, 2)
        how = (self.base.stride, self.base.padding, self.base.dilation)
        low = F.conv2d(side, self.lora_a.flatten(0, 1), None, *how, groups=s)  # [b, S r, h', w']
        wide = F.conv2d(low, self.lora_b.flatten(0, 1), groups=s)  # [b, S out, h', w']
        wide = wide.unflatten(1, (s, -1)).transpose(0, 1).flatten(0, 1)
        return (y + self.scale * wide).to(y.dtype)


class StackedHead(nn.Module):
    """S linear heads: x [S * b, ..., in] -> [S * b, ..., out], groups in order."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        s, out, _ = self.weight.shape
        y = x.reshape(s, -1, x.shape[-1]).to(self.weight.dtype) @ self.weight.mT
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.view(*x.shape[:-1], out)


class Stack:
    """S adapters: `values` [S, values] in float32, and AdamW's moments of them.

    `parts` [S, *shape] by name are what a model reads: views of `values`, but for LoRA factors
    where `dtype` is another; those are views of a copy in it, renewed by every update. The learning
    rate of A is 1 / `ratio` of that of all else (LoRA+, arXiv 2402.12354): `pace` [values].
    """

    def __init__(
        self,
        start: dict[str, Tensor],
        size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        ratio: float = 1.0,
    ):
        self.names = sorted(start)
        self.shapes = [start[n].shape for n in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.values = self._flat(start).to(device).expand(size, -1).clone()
        self.read = self.values if dtype == torch.float32 else self.values.to(dtype)
        self.moments = torch.zeros(2, *self.values.shape, device=device)
        self.step = torch.zeros((), device=device)  # counted where the device can see it
        pace = [1 / ratio if ".lora_A" in n else 1.0 for n in self.names]
        sizes = torch.tensor(self.sizes)
        self.pace = torch.tensor(pace).repeat_interleave(sizes).to(device)  # [values]
        self.parts: dict[str, nn.Parameter] = {}
        views = zip(self.names, self._views(self.values), self._views(self.read), strict=True)
        for name, exact, rounded in views:
            self.parts[name] = nn.Parameter(rounded if ".lora_" in name else exact)

    def __len__(self) -> int:
        return len(self.values)

    def _flat(self, adapter: dict[str, Tensor]) -> Tensor:
        return torch.cat([adapter[n].flatten().float() for n in self.names])

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        for piece, shape in zip(flat.split(self.sizes, -1), self.shapes, strict=True):
            yield piece.unflatten(-1, shape)

    @torch.no_grad()
    def put(self, adapters: Sequence[dict[str, Tensor]]) -> None:
        """Takes the values of S adapters in place of its own; OralError for another number."""
        if len(adapters) != len(self):
            raise OralError(f"{len(adapters)} adapters for a stack of {len(self)}.")
        self.values.copy_(torch.stack([self._flat(adapter) for adapter in adapters]))
        self._renew()

    @torch.no_grad()
    def restart(self, start: dict[str, Tensor]) -> None:
        """As new, every adapter with the values of `start`."""
        self.values.copy_(self._flat(start).expand_as(self.values))
        self.moments.zero_()
        self.step.zero_()
        self._renew()

    def _renew(self) -> None:
        if self.read is not self.values:
            self.read.copy_(self.values)

    def adapters(self, values: Tensor | None = None) -> list[dict[str, Tensor]]:
        """Every adapter by PEFT's saved names, float32, on the CPU: of now, or of kept `values`."""
        values = (self.values if values is None else values).detach().cpu()
        parts = dict(zip(self.names, self._views(values), strict=True))
        return [{n: v[s].clone() for n, v in parts.items()} for s in range(len(self))]

    def state(self) -> dict[str, Tensor]:
        """All that training goes on from, as it is now."""
        return {"values": self.values.detach(), "moments": self.moments, "step": self.step}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state`; OralError if it is that of another stack."""
        own = self.state()
        if any(state[n].shape != v.shape for n, v in own.items()):
            raise OralError("this state belongs to a stack of another shape.")
        for name, value in own.items():
            value.copy_(state[name])
        self._renew()

    def update(
        self, loss: Tensor, lr: Tensor, clip: float, betas=(0.9, 0.999), eps: float = 1e-8
    ) -> None:
        """One AdamW step without weight decay: `loss` is a sum over adapters, `lr` [S].

        Each adapter's gradient is clipped by its own norm, as if it were trained alone. Nothing
        here waits for the device, so a step may be captured as a CUDA graph.
        """
        parts = torch.autograd.grad(loss, list(self.parts.values()), materialize_grads=True)
        with torch.no_grad():
            self.step += 1
            grad = torch.cat([part.flatten(1) for part in parts], 1).float()  # [S, values]
            share = (clip / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
            rates = lr[:, None], self.pace
            adamw = _adamw_compiled() if grad.is_cuda else _adamw
            adamw(self.values, *self.moments, grad, share, *rates, self.step, betas, eps)
            self._renew()


def _adamw(values, mean, square, grad, share, lr, pace, step, betas, eps) -> None:
    """Of a `share` [S, 1] of `grad`, in place, at rate `lr` [S, 1] times `pace` [values]."""
    grad = grad * share
    mean.lerp_(grad, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    scale = square.sqrt().div_((1 - betas[1] ** step).sqrt()).add_(eps)
    values.sub_(lr / (1 - betas[0] ** step) * pace * mean / scale)


@cache
def _adamw_compiled():
    """One pass over memory instead of twelve; made at a first use, since that takes seconds."""
    return torch.compile(_adamw, dynamic=True)


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks of `model`; of several lists that of most weights, since an image tower
    may have more blocks than the language model behind it."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=())


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """On a GPU the repeated blocks of `model` run compiled: one code for all of them, any width."""
    repeated = blocks(model)
    if not repeated or next(model.parameters()).device.type != "cuda":
        yield
        return
    for block in repeated:
        block.compile(dynamic=True)
    try:
        with torch._dynamo.config.patch(recompile_limit=64):
            yield
    finally:
        for block in repeated:
            block._compiled_call_impl = None


@contextmanager
def attached(model: nn.Module, stack: Stack, scale: float) -> Iterator[nn.Module]:
    """`model` with `stack` in place of the layers that its names speak of; as it was on exit.

    OralError for a name that is neither LoRA on a linear layer or a convolution nor a linear head.
    """
    modules: dict[str, dict[str, nn.Parameter]] = {}
    for name, part in stack.parts.items():
        path, _, kind = name.removeprefix(PREFIX).rpartition(".")
        if ".lora_" in path:  # ...q_proj.lora_A.weight
            path, _, kind = path.rpartition(".lora_")
        modules.setdefault(path, {})[kind] = part
    layers = {path: model.get_submodule(path) for path in modules}
    replaced: dict[str, nn.Module] = {}
    try:
        for paths in _siblings(layers, modules):
            group = Siblings([layers[p] for p in paths], [modules[p] for p in paths], scale)
            replaced |= {p: StackedLinear(group, place) for place, p in enumerate(paths)}
        for path in layers.keys() - replaced.keys():
            replaced[path] = _stacked(path, layers[path], modules[path], scale)
        for path, layer in replaced.items():
            model.set_submodule(path, layer)
        yield model
    finally:
        for path in replaced:
            model.set_submodule(path, layers[path])


def _siblings(layers: dict[str, nn.Module], modules: dict[str, dict]) -> list[list[str]]:
    """Paths of the linear layers under LoRA, those together that read the same x."""
    groups: dict[tuple, list[str]] = {}
    for path, layer in layers.items():
        if type(layer) is nn.Linear and modules[path].keys() == {"A", "B"}:
            parent, _, own = path.rpartition(".")
            among = next((names for names in SIBLINGS if own in names), own)
            groups.setdefault((parent, among, layer.bias is None), []).append(path)
    return list(groups.values())


def _stacked(path: str, layer: nn.Module, parts: dict[str, Tensor], scale: float) -> nn.Module:
    if parts.keys() == {"A", "B"} and type(layer) is nn.Conv2d:
        return StackedConv2d(layer, parts["A"], parts["B"], scale)
    if isinstance(layer, nn.Linear) and "weight" in parts and parts.keys() <= {"weight", "bias"}:
        return StackedHead(parts["weight"], parts.get("bias"))
    raise OralError(
        f"{path} is a {type(layer).__name__} with adapter parts {', '.join(sorted(parts))}: only "
        "LoRA on linear layers and convolutions, and linear heads, can be stacked."
    )
