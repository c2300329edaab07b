"""Many LoRAs on one frozen model at once.

S adapters share the weights of their base, so S groups of rows go through one forward pass: group s
of every batch belongs to adapter s, and only the low-rank products differ,

    y[s] = x[s] W^T + alpha / r (x[s] A[s]^T) B[s]^T    x[s] [rows, in], A[s] [r, in], B[s] [out, r]

All adapters lie in one tensor [S, values]; A, B and heads are views of it. The optimizer is then a
handful of operations on [S, values], with a learning rate and a gradient norm of its own for every
adapter: each is trained as if it were alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib.errors import OralError

PREFIX = "base_model.model."  # of PEFT's saved names


class StackedLinear(nn.Module):
    """A linear layer under S LoRAs: x [S * b, ..., in] -> [S * b, ..., out], groups in order."""

    def __init__(self, base: nn.Linear, lora_a: Tensor, lora_b: Tensor, scale: float):
        super().__init__()
        self.base, self.lora_a, self.lora_b, self.scale = base, lora_a, lora_b, scale

    def forward(self, x: Tensor) -> Tensor:
        y, s = self.base(x), len(self.lora_a)
        low = x.reshape(s, -1, x.shape[-1]).to(self.lora_a.dtype) @ self.lora_a.mT
        wide = y.reshape(s, -1, y.shape[-1]).to(low.dtype)
        return torch.baddbmm(wide, low, self.lora_b.mT, alpha=self.scale).view_as(y).to(y.dtype)


class StackedConv2d(nn.Module):
    """A convolution under S LoRAs: x [S * b, in, h, w] -> [S * b, out, h', w'], groups in order.

    lora_a [S, r, in, kh, kw] moves like the convolution itself, lora_b [S, out, r, 1, 1] mixes.
    """

    def __init__(self, base: nn.Conv2d, lora_a: Tensor, lora_b: Tensor, scale: float):
        super().__init__()
        if base.groups != 1:
            raise OralError(f"a convolution of {base.groups} groups cannot carry stacked LoRAs.")
        self.base, self.lora_a, self.lora_b, self.scale = base, lora_a, lora_b, scale

    def forward(self, x: Tensor) -> Tensor:
        y, s = self.base(x), len(self.lora_a)
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
    """S adapters: `values` [S, values], `parts` its views [S, *shape] by name, AdamW's moments."""

    def __init__(self, start: dict[str, Tensor], size: int, device: torch.device | str = "cpu"):
        self.names = sorted(start)
        self.shapes = [start[n].shape for n in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]
        flat = torch.cat([start[n].flatten().float() for n in self.names])
        self.values = flat.to(device).expand(size, -1).clone()
        self.moments = torch.zeros(2, *self.values.shape, device=device)
        self.step = 0
        views = map(nn.Parameter, self._views(self.values))
        self.parts: dict[str, nn.Parameter] = dict(zip(self.names, views, strict=True))

    def __len__(self) -> int:
        return len(self.values)

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        for piece, shape in zip(flat.split(self.sizes, -1), self.shapes, strict=True):
            yield piece.unflatten(-1, shape)

    def adapters(self, values: Tensor | None = None) -> list[dict[str, Tensor]]:
        """Every adapter by PEFT's saved names, float32, on the CPU: of now, or of kept `values`."""
        values = (self.values if values is None else values).detach().cpu()
        parts = dict(zip(self.names, self._views(values), strict=True))
        return [{n: v[s].clone() for n, v in parts.items()} for s in range(len(self))]

    def state(self) -> dict[str, Tensor]:
        """All that training goes on from, as it is now."""
        return {
            "values": self.values.detach(),
            "moments": self.moments,
            "step": torch.tensor(self.step),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state`; OralError if it is that of another stack."""
        if any(state[n].shape != v.shape for n, v in self.state().items()):
            raise OralError("this state belongs to a stack of another shape.")
        self.values.copy_(state["values"])
        self.moments.copy_(state["moments"])
        self.step = int(state["step"])

    def update(
        self, loss: Tensor, lr: Tensor, clip: float, betas=(0.9, 0.999), eps: float = 1e-8
    ) -> None:
        """One AdamW step without weight decay: `loss` is a sum over adapters, `lr` [S].

        Each adapter's gradient is clipped by its own norm, as if it were trained alone.
        """
        parts = torch.autograd.grad(loss, list(self.parts.values()))
        with torch.no_grad():
            self.step += 1
            grad = torch.cat([part.flatten(1) for part in parts], 1)  # [S, values]
            grad.mul_((clip / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0))
            mean, square = self.moments
            mean.lerp_(grad, 1 - betas[0])
            square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
            scale = square.sqrt().div_(math.sqrt(1 - betas[1] ** self.step)).add_(eps)
            rate = lr[:, None] / (1 - betas[0] ** self.step)
            self.values.sub_(rate * mean / scale)


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
