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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib.errors import OralError

PREFIX = "base_model.model."  # of PEFT's saved names


@torch.library.custom_op("oral::lora", mutates_args=())
def _lora(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The equation above: x [S * b, ..., in] -> y [S * b, ..., out] and alpha / r x A^T.

    One operation for the compiler, which fuses what lies around the matrix products. The low-rank
    part comes first, so that the product with W adds to it and every result is written twice and
    read once; a bias, where there is one, is added by the product with W.
    """
    groups = x.reshape(len(lora_a), -1, x.shape[-1])
    low = _product(groups, lora_a.mT, scale)
    if bias is None:
        y = low @ lora_b.mT
        y.flatten(0, 1).addmm_(groups.flatten(0, 1), weight.T)
    else:
        y = F.linear(groups, weight, bias).baddbmm_(low, lora_b.mT)
    return y.view(*x.shape[:-1], len(weight)), low.view(*x.shape[:-1], lora_a.shape[1])


def _product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale left @ right [S, n, m] in one pass."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale)


@_lora.register_fake
def _(x, weight, bias, lora_a, lora_b, scale):
    lead = x.shape[:-1]
    return x.new_empty(*lead, weight.shape[0]), x.new_empty(*lead, lora_a.shape[1])


@torch.library.custom_op("oral::lora_backward", mutates_args=())
def _lora_backward(
    dy: Tensor, x: Tensor, low: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, A and B; the frozen W gets none, so backward costs what forward does."""
    s = len(lora_a)
    groups, low = x.reshape(s, -1, x.shape[-1]), low.view(s, -1, low.shape[-1])
    dy = dy.reshape(s, -1, dy.shape[-1])
    dlow = _product(dy, lora_b, scale)
    dx = dlow @ lora_a
    dx.flatten(0, 1).addmm_(dy.flatten(0, 1), weight)
    return dx.view(x.shape), dlow.mT @ groups, dy.mT @ low


@_lora_backward.register_fake
def _(dy, x, low, weight, lora_a, lora_b, scale):
    return x.new_empty(x.shape), torch.empty_like(lora_a), torch.empty_like(lora_b)


def _keep(ctx, inputs, output) -> None:
    x, weight, _, lora_a, lora_b, ctx.scale = inputs
    ctx.save_for_backward(x, output[1], weight, lora_a, lora_b)


def _gradients(ctx, dy, dlow):
    dx, da, db = _lora_backward(dy, *ctx.saved_tensors, ctx.scale)
    return dx, None, None, da, db, None


_lora.register_autograd(_gradients, setup_context=_keep)


class StackedLinear(nn.Module):
    """A linear layer under S LoRAs: x [S * b, ..., in] -> [S * b, ..., out], groups in order."""

    def __init__(self, base: nn.Linear, lora_a: Tensor, lora_b: Tensor, scale: float):
        super().__init__()
        self.base, self.lora_a, self.lora_b, self.scale = base, lora_a, lora_b, scale

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        return _lora(x, base.weight, base.bias, self.lora_a, self.lora_b, self.scale)[0]


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
    where `dtype` is another; those are views of a copy in it, renewed by every update.
    """

    def __init__(
        self,
        start: dict[str, Tensor],
        size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.names = sorted(start)
        self.shapes = [start[n].shape for n in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.values = self._flat(start).to(device).expand(size, -1).clone()
        self.read = self.values if dtype == torch.float32 else self.values.to(dtype)
        self.moments = torch.zeros(2, *self.values.shape, device=device)
        self.step = torch.zeros((), device=device)  # counted where the device can see it
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
            adamw = _adamw_compiled if grad.is_cuda else _adamw
            adamw(self.values, *self.moments, grad, share, lr[:, None], self.step, betas, eps)
            self._renew()


def _adamw(values, mean, square, grad, share, lr, step, betas, eps) -> None:
    """Of a `share` [S, 1] of `grad`, in place; all but `step` are [S, values] or [S, 1]."""
    grad = grad * share
    mean.lerp_(grad, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    scale = square.sqrt().div_((1 - betas[1] ** step).sqrt()).add_(eps)
    values.sub_(lr / (1 - betas[0] ** step) * mean / scale)


_adamw_compiled = torch.compile(_adamw, dynamic=True)  # one pass over memory instead of twelve


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
    replaced: dict[str, nn.Module] = {}
    try:
        for path, parts in modules.items():
            layer = model.get_submodule(path)
            replaced[path] = layer
            model.set_submodule(path, _stacked(path, layer, parts, scale))
        yield model
    finally:
        for path, layer in replaced.items():
            model.set_submodule(path, layer)


def _stacked(path: str, layer: nn.Module, parts: dict[str, Tensor], scale: float) -> nn.Module:
    kinds = {nn.Linear: StackedLinear, nn.Conv2d: StackedConv2d}
    if parts.keys() == {"A", "B"} and type(layer) in kinds:
        return kinds[type(layer)](layer, parts["A"], parts["B"], scale)
    if isinstance(layer, nn.Linear) and "weight" in parts and parts.keys() <= {"weight", "bias"}:
        return StackedHead(parts["weight"], parts.get("bias"))
    raise OralError(
        f"{path} is a {type(layer).__name__} with adapter parts {', '.join(sorted(parts))}: only "
        "LoRA on linear layers and convolutions, and linear heads, can be stacked."
    )
