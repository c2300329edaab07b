"""Prototypes P from a causal recurrent model: Mamba-2 and the variants it is compared with.

    p_j, state_j = f(u_j, state_{j-1})        u_j contains positions and condition

A network may also let u_j contain the noised token j (`GeneratorConfig.recurrence_reads`).

This is the recurrent model of RPG (arXiv 2501.11587) and ORAL (arXiv 2503.24354). Mamba-2 is
state-space duality (arXiv 2405.21060): the recurrence of one head

    S_j = exp(dt_j A) S_{j-1} + B_j (dt_j x_j)^T,     y_j = C_j^T S_j

is a lower-triangular matrix applied to the sequence, so it runs as matrix products, chunk by chunk.

Letters: b batch, l tokens, m width, n state size, h heads, p values a head, c chunks, q tokens a
chunk; A, B, C, D, dt, x and y are those symbols in the Mamba-2 paper.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib.errors import OralError, PreflightError, UsageError, closest

RECURRENCES = ("mamba2", "lstm", "transformer", "bidirectional", "none")
TRANSFORMERS = ("transformer", "bidirectional")
BACKENDS = ("auto", "torch", "mamba_ssm")


@dataclass(frozen=True)
class RecurrenceConfig:
    """The kind and sizes of a recurrence. Some fields belong to some kinds only.

    Args:
        kind: "mamba2", "lstm", "transformer", "bidirectional" (a Transformer that also reads later
            tokens) or "none" (a per-token MLP: the ablation without memory).
        width: m.
        layers: number of layers.
        state: n, values of the state for each channel (mamba2).
        head: p, channels a head; divides expand * width (mamba2) or width (both Transformers).
        expand: inner width as a multiple of m (mamba2; hidden layer of Transformers and none).
        conv: taps of the causal depthwise convolution (mamba2).
        chunk: q, tokens a block of the matrix form (mamba2); affects speed and memory, not values.

    Raises:
        UsageError: an invalid value.

    >>> RecurrenceConfig("lstm", width=32).layers
    2
    >>> RecurrenceConfig("mamba3")
    Traceback (most recent call last):
    oral_lib.errors.UsageError: kind='mamba3': unknown recurrence. Use one of ('mamba2', ...
    """

    kind: str = "mamba2"
    width: int = 512
    layers: int = 2
    state: int = 64
    head: int = 64
    expand: int = 2
    conv: int = 4
    chunk: int = 64

    def __post_init__(self):
        if self.kind not in RECURRENCES:
            near = closest(str(self.kind), RECURRENCES)
            raise UsageError(
                f"kind={self.kind!r}: unknown recurrence. Use one of {RECURRENCES}.{near}"
            )
        for name in ("width", "layers", "state", "head", "expand", "conv", "chunk"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"{name}={value!r}: must be a whole number >= 1.")
        widths = dict.fromkeys(TRANSFORMERS, self.width) | {"mamba2": self.expand * self.width}
        split = widths.get(self.kind)
        if split is not None and split % self.head:
            product = "expand * width" if self.kind == "mamba2" else "width"
            raise UsageError(
                f"head={self.head!r}: must divide {product} = {split}. Choose a divisor of {split}."
            )


# ---------------------------------------------------------------- state-space duality


def segment_sum(a: Tensor) -> Tensor:
    """[..., q, q] with entry (i, j) = a_{j+1} + ... + a_i for j <= i, and -inf above the diagonal.

    a [..., q]. Only the terms in between are added. The difference of two running sums is cheaper,
    but loses its digits in float32 once the sums are large.
    """
    q = a.shape[-1]
    ones = torch.ones(q, q, dtype=torch.bool, device=a.device)
    terms = a[..., :, None].expand(*a.shape, q).masked_fill(~ones.tril(-1), 0)  # [..., q, q]
    # The mask comes before any exp: exp of the upper half would overflow, and 0 * inf is NaN.
    return terms.cumsum(-2).masked_fill(~ones.tril(), -math.inf)


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int = 64) -> Tensor:
    """y [b, l, h, p] in the dtype of x: the recurrence above in its chunked matrix form.

    Listing 1 of arXiv 2405.21060. Decays are logarithms, and all sums are in float32 (float64 for
    float64), also under autocast. Time O(l chunk), memory O(l chunk + (l / chunk)^2) a head.

    Args:
        x: [b, l, h, p], any l.
        dt: [b, l, h] > 0, step sizes.
        A: [h] < 0, decay rates.
        B: [b, l, n], shared by all heads.
        C: [b, l, n], shared by all heads.
        chunk: q.
    """
    dtype, work = x.dtype, torch.promote_types(x.dtype, torch.float32)
    (_, tokens, h, p), n = x.shape, B.shape[-1]
    q = min(chunk, tokens)
    c = -(-tokens // q)

    def chunked(v: Tensor) -> Tensor:  # [b, l, ...] -> [b, c, q, ...]
        v = F.pad(v, (0, 0) * (v.ndim - 2) + (0, c * q - tokens))  # dt = 0: no decay and no input
        return v.unflatten(1, (c, q))

    with torch.autocast(x.device.type, enabled=False):
        dt = dt.to(work)
        a = chunked(dt * A.to(work)).transpose(2, 3)  # [b, c, h, q]
        x = chunked(x.to(work) * dt[..., None])  # [b, c, q, h, p]
        B, C = chunked(B.to(work)), chunked(C.to(work))  # [b, c, q, n]

        # 1. Inside a chunk: y_i = sum_{j <= i} (C_i . B_j) exp(a_{j+1} + ... + a_i) x_j
        decay = segment_sum(a).exp()  # [b, c, h, q, q]
        scores = (C @ B.mT)[:, :, None] * decay  # [b, c, h, q, q]
        y = (scores @ x.transpose(2, 3)).transpose(2, 3)  # [b, c, q, h, p]
        if c > 1:
            # 2. The state after each chunk, if it had started from zero
            states = x * decay[..., -1, :].transpose(2, 3)[..., None]  # [b, c, q, h, p]
            states = (B.mT @ states.flatten(3))[:, :-1]  # [b, c-1, n, h p]
            # 3. The same recurrence over chunks gives the state at the start of each later chunk
            between = segment_sum(a.sum(-1)[:, :-1].mT).exp()  # [b, h, c-1, c-1]
            states = states.unflatten(3, (h, p)).permute(0, 3, 1, 2, 4)  # [b, h, c-1, n, p]
            start = (between @ states.flatten(3)).unflatten(3, (n, p))  # [b, h, c-1, n, p]
            start = start.permute(0, 2, 3, 1, 4).flatten(3)  # [b, c-1, n, h p]
            # 4. The contribution of that state inside the chunk
            later = (C[:, 1:] @ start).unflatten(3, (h, p))  # [b, c-1, q, h, p]
            later = later * a[:, 1:].cumsum(-1).exp().transpose(2, 3)[..., None]
            y = torch.cat([y[:, :1], y[:, 1:] + later], 1)  # [b, c, q, h, p]
        return y.flatten(1, 2)[:, :tokens].to(dtype)


def ssd_ref(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y [b, l, h, p] as of `ssd`, one token at a time in float64: slow on purpose, for tests."""
    dtype = x.dtype
    x, dt, A, B, C = (v.double() for v in (x, dt, A, B, C))
    state = x.new_zeros(x.shape[0], x.shape[2], B.shape[-1], x.shape[3])  # [b, h, n, p]
    y = []
    for j in range(x.shape[1]):
        # S_j = exp(dt_j A) S_{j-1} + B_j (dt_j x_j)^T,   y_j = C_j^T S_j
        entering = torch.einsum("bn,bhp->bhnp", B[:, j], x[:, j] * dt[:, j, :, None])
        state = state * (dt[:, j] * A).exp()[:, :, None, None] + entering
        y.append(torch.einsum("bn,bhnp->bhp", C[:, j], state))
    return torch.stack(y, 1).to(dtype)


def mamba_ssm_scan(kernel: Callable) -> Callable[..., Tensor]:
    """A function with the signature of `ssd` over mamba_ssm's `mamba_chunk_scan_combined`."""

    def scan(x, dt, A, B, C, chunk=64):
        # The kernel needs one dtype for x, B and C, and a group axis. 256 is its default chunk.
        # It multiplies float32 as TF32: 1.5e-3 relative from `ssd` (mamba_ssm 2.3.2 on an H200).
        B, C = B.to(x.dtype)[:, :, None], C.to(x.dtype)[:, :, None]  # [b, l, 1, n]
        return kernel(x, dt.float(), A.float(), B, C, chunk_size=256)

    return scan


def fused_scan(backend: str) -> Callable[..., Tensor] | None:
    """The CUDA scan for `backend`, or None for plain torch, which tensors on a CPU always use.

    auto: mamba_ssm where CUDA and the package are available. torch: None. mamba_ssm: the package is
    required.

    Raises:
        UsageError: an unknown backend.
        PreflightError: backend "mamba_ssm", and the package cannot be imported.
    """
    if backend not in BACKENDS:
        near = closest(str(backend), BACKENDS)
        raise UsageError(f"backend={backend!r}: unknown backend. Use one of {BACKENDS}.{near}")
    if backend == "torch" or (backend == "auto" and not torch.cuda.is_available()):
        return None
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError as error:
        if backend == "auto":
            return None
        raise PreflightError(
            f"backend='mamba_ssm': the package cannot be imported ({error}). With CUDA: "
            "pip install --no-build-isolation 'oral-lora[kernels]'. Or use backend='auto', "
            "which uses plain torch where mamba_ssm is missing."
        ) from error
    return mamba_ssm_scan(mamba_chunk_scan_combined)


# ---------------------------------------------------------------- one layer of each kind


class Mamba2(nn.Module):
    """Mamba-2 layer, [b, l, m] -> [b, l, m] (figure 6 of arXiv 2405.21060), one group of B and C.

    in_proj -> causal depthwise convolution -> SSD -> gated RMS norm -> out_proj. Parameters have
    the names and initialisation of mamba_ssm's Mamba2 and are the same for every backend.
    """

    def __init__(self, config: RecurrenceConfig, backend: str = "auto"):
        super().__init__()
        self.inner = config.expand * config.width  # h p
        self.heads, self.head = self.inner // config.head, config.head
        self.state, self.chunk = config.state, config.chunk
        mixed = self.inner + 2 * config.state  # x, B and C go through the convolution
        self.in_proj = nn.Linear(config.width, self.inner + mixed + self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, config.conv, groups=mixed)
        dt = torch.empty(self.heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(dt.expm1().log())  # softplus(dt_bias) = dt
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out_proj = nn.Linear(self.inner, config.width, bias=False)
        self.backend, self.fused = backend, fused_scan(backend)

    def forward(self, u: Tensor) -> Tensor:
        """[b, l, m] from u [b, l, m]."""
        sizes = [self.inner, self.inner + 2 * self.state, self.heads]
        z, mixed, dt = self.in_proj(u).split(sizes, -1)  # [b, l, h p], [b, l, h p + 2 n], [b, l, h]
        mixed = F.silu(self.convolve(mixed))
        x, B, C = mixed.split([self.inner, self.state, self.state], -1)  # [b, l, h p], [b, l, n]
        x = x.unflatten(-1, (self.heads, self.head))  # [b, l, h, p]
        dt = F.softplus(dt.float() + self.dt_bias)  # [b, l, h]
        # y_j = C_j^T S_j + D x_j
        y = self.scan(x, dt, -self.A_log.float().exp(), B, C) + self.D[:, None] * x
        y = y.flatten(2) * F.silu(z)  # [b, l, h p]
        return self.out_proj(self.norm(y.to(self.norm.weight.dtype)))

    def convolve(self, v: Tensor) -> Tensor:
        """Causal depthwise convolution of v [b, l, channels], in the same shape."""
        v = F.pad(v.mT, (self.conv1d.kernel_size[0] - 1, 0))  # [b, channels, taps - 1 + l]
        return self.conv1d(v).mT

    def scan(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """y [b, l, h, p] by the kernel or `ssd`; OralError for a required kernel without CUDA."""
        if self.fused is not None and x.is_cuda:
            return self.fused(x, dt, A, B, C, self.chunk)
        if self.backend == "mamba_ssm":
            raise OralError(
                f"backend='mamba_ssm' got tensors on {x.device}: its kernels need CUDA. Move the "
                "module and its input there, or use backend='auto'."
            )
        return ssd(x, dt, A, B, C, self.chunk)


class Lstm(nn.LSTM):
    """LSTM layer, [b, l, m] -> [b, l, m]: nn.LSTM without the returned state."""

    def __init__(self, width: int):
        super().__init__(width, width, batch_first=True)

    def forward(self, u: Tensor) -> Tensor:
        return super().forward(u)[0]


class Attention(nn.Module):
    """Multi-head attention, [b, l, m] -> [b, l, m]: over all tokens, or where `causal` over earlier
    tokens and the token itself.

    No positional encoding: u contains the positions.
    """

    def __init__(self, width: int, head: int, causal: bool):
        super().__init__()
        self.head, self.causal = head, causal
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        parts = self.in_proj(u).chunk(3, -1)  # [b, l, m] each
        query, key, value = (v.unflatten(-1, (-1, self.head)).transpose(1, 2) for v in parts)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)  # [b, h, l, p]
        return self.out_proj(y.transpose(1, 2).flatten(2))  # [b, l, m]


def mlp(width: int, expand: int) -> nn.Module:
    """Two linear layers with SiLU in between, [..., m] -> [..., m], on single tokens."""
    return nn.Sequential(
        nn.Linear(width, expand * width), nn.SiLU(), nn.Linear(expand * width, width)
    )


class Residual(nn.Module):
    """u + layer(norm(u))."""

    def __init__(self, width: int, layer: nn.Module):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.layer = layer

    def forward(self, u: Tensor) -> Tensor:
        return u + self.layer(self.norm(u))


class Recurrence(nn.Module):
    """Prototypes [b, l, m] from inputs u [b, l, m]; output j depends on u_1 .. u_j only, except
    with the kind "bidirectional".

    Residual, pre-normed layers of one kind and a final RMS norm.

    Args:
        config: kind and sizes.
        backend: of the scan of mamba2: "auto", "torch" or "mamba_ssm". It is not in the config,
            because the weights do not depend on it.

    Raises:
        UsageError: an unknown backend.
        PreflightError: the backend "mamba_ssm" is not installed.
        OralError: u has another shape (when called).

    >>> recurrence = Recurrence(RecurrenceConfig(width=8, head=4, state=4))
    >>> u = torch.randn(2, 5, 8)
    >>> prototypes = recurrence(u)
    >>> prototypes.shape
    torch.Size([2, 5, 8])
    >>> torch.allclose(recurrence(u[:, :3]), prototypes[:, :3], atol=1e-5)  # causal
    True
    """

    def __init__(self, config: RecurrenceConfig, backend: str = "auto"):
        super().__init__()
        self.config = config
        m, kind = config.width, config.kind
        layers: list[nn.Module] = []
        for _ in range(config.layers):
            if kind == "mamba2":
                layers.append(Mamba2(config, backend))
            elif kind == "lstm":
                layers.append(Lstm(m))
            elif kind in TRANSFORMERS:
                layers.append(Attention(m, config.head, causal=kind == "transformer"))
            if kind in (*TRANSFORMERS, "none"):
                layers.append(mlp(m, config.expand))
        self.blocks = nn.Sequential(*(Residual(m, layer) for layer in layers))
        self.norm = nn.RMSNorm(m, eps=1e-5)

    def forward(self, u: Tensor) -> Tensor:
        if u.ndim != 3 or u.shape[1] < 1 or u.shape[2] != self.config.width:
            raise OralError(
                f"Recurrence got u of shape {tuple(u.shape)}; it needs "
                f"[batch, tokens >= 1, {self.config.width}]."
            )
        # Under autocast the layers return bf16; the residual stream stays in float32.
        return self.norm(self.blocks(u.to(self.norm.weight.dtype)))

    def twice(self, u: Tensor) -> Tensor:
        """Prototypes [b, l, m] that depend on all of u [b, l, m].

        A causal model reads u once more, so that it knows all tokens before each (as in "Just read
        twice", arXiv 2407.05483). The kinds "bidirectional" and "none" read it once.
        """
        if self.config.kind in ("bidirectional", "none"):
            return self(u)
        return self(torch.cat([u, u], 1))[:, u.shape[1] :]
