"""Many LoRAs on one frozen model at once.

S adapters share the weights of their base model, so S groups of rows go through one forward pass.
Group s of every batch belongs to adapter s, and only the low-rank products differ:

    y[s] = x[s] W^T + alpha / r (x[s] A[s]^T) B[s]^T    x[s] [rows, in], A[s] [r, in], B[s] [out, r]

All adapters are stored in one tensor [S, values]; A, B and heads are views of it. The optimizer is
then a handful of operations on [S, values]. Each adapter has its own learning rate and gradient
norm, and is trained as if it were the only one. `stacked_layers` holds the layers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from oral_lib.errors import OralError
from oral_lib.lora.adapter import PREFIX
from oral_lib.lora.stacked_layers import Siblings, StackedLinear, stacked_layer

SIBLINGS = (  # linear layers of one module with the same input x
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
)


class Stack:
    """S adapters as one tensor `values` float32 [S, values], with AdamW's moments.

    `parts` [S, *shape] by name are the parameters that a model reads, views of `values`. Where
    `dtype` is not float32, LoRA factors are views of a copy in it, renewed by every update.

    Args:
        start: the adapter that all S start from, by PEFT's saved names.
        size: S.
        device: where the stack is stored.
        dtype: the dtype in which a model reads LoRA factors.
        ratio: the learning rate of B and heads over that of A (LoRA+, arXiv 2402.12354).

    >>> start = {
    ...     "base_model.model.0.lora_A.weight": torch.ones(2, 4),
    ...     "base_model.model.0.lora_B.weight": torch.zeros(3, 2),
    ... }
    >>> stack = Stack(start, size=5)
    >>> len(stack), tuple(stack.values.shape)
    (5, (5, 14))
    >>> torch.equal(stack.adapters()[4]["base_model.model.0.lora_A.weight"], torch.ones(2, 4))
    True
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
        self.step = torch.zeros((), device=device)  # on the device, for CUDA graphs
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
        """Sets the values to S adapters, in place. OralError for another number of adapters."""
        if len(adapters) != len(self):
            raise OralError(
                f"Got {len(adapters)} adapters for a stack of {len(self)}: give as many."
            )
        self.values.copy_(torch.stack([self._flat(adapter) for adapter in adapters]))
        self._renew()

    @torch.no_grad()
    def set(self, values: Tensor) -> None:
        """Sets the values [S, values], in place."""
        self.values.copy_(values)
        self._renew()

    @torch.no_grad()
    def restart(self, start: dict[str, Tensor]) -> None:
        """Resets every adapter to `start`, with zero moments and step 0, in place."""
        self.values.copy_(self._flat(start).expand_as(self.values))
        self.moments.zero_()
        self.step.zero_()
        self._renew()

    def _renew(self) -> None:
        if self.read is not self.values:
            self.read.copy_(self.values)

    def adapters(self, values: Tensor | None = None) -> list[dict[str, Tensor]]:
        """Each adapter by PEFT's saved names, float32, on the CPU; from `values` if given."""
        values = (self.values if values is None else values).detach().cpu()
        parts = dict(zip(self.names, self._views(values), strict=True))
        return [{n: v[s].clone() for n, v in parts.items()} for s in range(len(self))]

    def state(self) -> dict[str, Tensor]:
        """The tensors that training resumes from, not copied."""
        return {"values": self.values.detach(), "moments": self.moments, "step": self.step}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Resumes from `state`. OralError for the state of a stack of another shape."""
        current = self.state()
        for name, value in current.items():
            if state[name].shape != value.shape:
                shapes = f"{tuple(state[name].shape)}, expected {tuple(value.shape)}"
                raise OralError(f"This state is of a stack of another shape: {name} {shapes}.")
        for name, value in current.items():
            value.copy_(state[name])
        self._renew()

    def update(
        self, loss: Tensor, lr: Tensor, clip: float, betas=(0.9, 0.999), eps: float = 1e-8
    ) -> None:
        """One AdamW step without weight decay, in place.

        Each adapter's gradient is clipped by its own norm. Nothing here waits for the device, so a
        step may be captured as a CUDA graph.

        Args:
            loss: scalar, a sum over adapters.
            lr: [S] learning rates.
            clip: largest gradient norm of an adapter.
            betas: decay rates of the two moments.
            eps: added to the root of the second moment.
        """
        parts = torch.autograd.grad(loss, list(self.parts.values()), materialize_grads=True)
        with torch.no_grad():
            self.step += 1
            grad = torch.cat([part.flatten(1) for part in parts], 1).float()  # [S, values]
            factor = (clip / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)  # [S, 1]
            rates = lr[:, None], self.pace
            adamw = _adamw_compiled() if grad.is_cuda else _adamw
            adamw(self.values, *self.moments, grad, factor, *rates, self.step, betas, eps)
            self._renew()


def _adamw(values, mean, square, grad, factor, lr, pace, step, betas, eps) -> None:
    """AdamW in place, on `grad` times `factor` [S, 1], at rates `lr` [S, 1] * `pace` [values]."""
    grad = grad * factor
    mean.lerp_(grad, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    scale = square.sqrt().div_((1 - betas[1] ** step).sqrt()).add_(eps)
    values.sub_(lr / (1 - betas[0] ** step) * pace * mean / scale)


@cache
def _adamw_compiled():
    """One pass over memory instead of twelve; compiled at the first use, which takes seconds."""
    return torch.compile(_adamw, dynamic=True)


class _Losses(torch.autograd.Function):
    """Losses of the values of a stack, whose gradient is computed together with them."""

    @staticmethod
    def forward(ctx, values: Tensor, stack: Stack, losses: Callable[[], Tensor]) -> Tensor:
        stack.set(values)
        with torch.enable_grad():
            each = losses()  # [S]
            parts = list(stack.parts.values())
            gradients = torch.autograd.grad(each.sum(), parts, materialize_grads=True)
        ctx.save_for_backward(torch.cat([part.flatten(1) for part in gradients], 1).float())
        return each.detach().float()

    @staticmethod
    def backward(ctx, upstream: Tensor):
        [gradient] = ctx.saved_tensors  # [S, values]
        return upstream[:, None] * gradient, None, None


def losses_of(values: Tensor, stack: Stack, losses: Callable[[], Tensor]) -> Tensor:
    """[S] float32 losses of the adapters `values` [S, values], with a gradient to them.

    The stack is a place to compute at: its values are set to `values`. Adapter s must decide loss s
    only. Everything that the model computes is freed before this returns, so the backward pass
    through the network that wrote `values` needs no memory of it. Nothing waits for the device.

    Args:
        values: the tensors of each adapter one after another, in the order of `stack.names`.
        stack: S adapters, attached to a model.
        losses: the losses [S] of the adapters that are in the stack.

    >>> start = {
    ...     "base_model.model.0.lora_A.weight": torch.ones(2, 4),
    ...     "base_model.model.0.lora_B.weight": torch.zeros(3, 2),
    ... }
    >>> net, stack, x = nn.Sequential(nn.Linear(4, 3)), Stack(start, size=5), torch.randn(10, 4)
    >>> values = torch.randn(5, 14, requires_grad=True)
    >>> with attached(net, stack, scale=2.0) as model:
    ...     each = losses_of(values, stack, lambda: model(x).square().view(5, -1).mean(1))
    >>> each.sum().backward()
    >>> each.shape, values.grad.shape
    (torch.Size([5]), torch.Size([5, 14]))
    """
    return _Losses.apply(values, stack, losses)


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks of `model`; of several lists the one with most weights.

    An image tower may have more blocks than the language model behind it.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=())


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Compiles the repeated blocks of `model` on a GPU: one code for all blocks and any width."""
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
    """`model` with the adapters of `stack` in place of the layers they adapt; restored on exit.

    Its batches are S groups of rows, one after another: group s belongs to adapter s.

    Args:
        model: the frozen base model, changed in place.
        stack: S adapters whose names begin with PEFT's prefix.
        scale: s = alpha / r.

    Raises:
        OralError: an adapter part that is neither LoRA on a linear layer or convolution nor a
            linear head.

    >>> net = nn.Sequential(nn.Linear(4, 3))
    >>> start = {
    ...     "base_model.model.0.lora_A.weight": torch.ones(2, 4),
    ...     "base_model.model.0.lora_B.weight": torch.zeros(3, 2),
    ... }
    >>> x = torch.randn(10, 4)  # 5 adapters, 2 rows each
    >>> plain = net(x)
    >>> with attached(net, Stack(start, size=5), scale=2.0) as stacked:
    ...     torch.allclose(stacked(x), plain, atol=1e-5)  # B is zero
    True
    >>> type(net[0]).__name__
    'Linear'
    """
    modules: dict[str, dict[str, nn.Parameter]] = {}
    for name, part in stack.parts.items():
        path, _, kind = name.removeprefix(PREFIX).rpartition(".")
        if ".lora_" in path:  # ...q_proj.lora_A.weight
            path, _, kind = path.rpartition(".lora_")
        modules.setdefault(path, {})[kind] = part
    layers = {path: model.get_submodule(path) for path in modules}
    replaced: dict[str, nn.Module] = {}
    groups: list[Siblings] = []
    hooks = []

    def clear(*_) -> None:  # a skipped layer must not keep its siblings' activations
        for group in groups:
            group.clear()

    try:
        for paths in _siblings(layers, modules):
            group = Siblings([layers[p] for p in paths], [modules[p] for p in paths], scale)
            groups.append(group)
            replaced |= {path: StackedLinear(group, index) for index, path in enumerate(paths)}
        for path in layers.keys() - replaced.keys():
            replaced[path] = stacked_layer(path, layers[path], modules[path], scale)
        for path, layer in replaced.items():
            model.set_submodule(path, layer)
        for path in _above_blocks(replaced):
            module = model.get_submodule(path)
            hooks.append(module.register_forward_hook(clear, always_call=True))
        yield model
    finally:
        for hook in hooks:
            hook.remove()
        clear()
        for path in replaced:
            model.set_submodule(path, layers[path])


def _above_blocks(paths: Iterable[str]) -> list[str]:
    """Paths of the modules that contain `paths`, down to the list of blocks.

    Callers run any of them, not only the whole model. Blocks themselves get no hook: they may be
    compiled.
    """
    above = {""}
    for path in paths:
        parts = path.split(".")[:-1]
        depth = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        above |= {".".join(parts[:i]) for i in range(1, depth + 1)}
    return sorted(above)


def _siblings(layers: dict[str, nn.Module], modules: dict[str, dict]) -> list[list[str]]:
    """Paths of the linear layers under LoRA; layers with the same input form one group."""
    groups: dict[tuple, list[str]] = {}
    for path, layer in layers.items():
        if type(layer) is nn.Linear and modules[path].keys() == {"A", "B"}:
            parent, _, name = path.rpartition(".")
            kind = next((names for names in SIBLINGS if name in names), name)
            groups.setdefault((parent, kind, layer.bias is None), []).append(path)
    return list(groups.values())
