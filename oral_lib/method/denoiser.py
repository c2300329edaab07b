"""Denoisers: from noised tokens and their prototypes to eps, x0 or v, one token at a time.

    pred = denoiser(x, t, p, c)

Tokens exchange information only in the recurrence. Here the output of a token depends on its values
and prototype and on t and c of its row, so training may send any subset of tokens in any order. A
row may be cut into several rows of fewer tokens (c repeated) to draw more than one t for it.

Letters: b batch, s tokens (any subset of the l tokens), k numbers a token, m width, t diffusion
steps [b], x [b, s, k] noised tokens as `Diffusion.denoiser_input` scales them, p [b, s, m]
prototypes, c [b, m] condition, h width of the hidden layers.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib.errors import OralError, UsageError, closest

DENOISERS = ("adanorm", "conv")


@dataclass(frozen=True)
class DenoiserConfig:
    """The kind and sizes of a denoiser. Some fields belong to one kind only.

    Args:
        kind: "adanorm" (residual MLP with adaptive layer norm) or "conv" (RPG's CNN).
        hidden: h, width of the residual stream (adanorm) and of the time embedding (both).
        depth: residual blocks (adanorm).
        expand: hidden layer of a block as a multiple of `hidden` (adanorm).
        skip: add a learned multiple of x to the prediction (adanorm); see `AdaNormDenoiser`.
        channels: of the inner layers (conv); an odd number of them, the same from either end.
        kernel: taps of each convolution, odd (conv).

    Raises:
        UsageError: an invalid value.

    >>> DenoiserConfig(hidden=64, depth=2).kind
    'adanorm'
    >>> DenoiserConfig(kernel=6)
    Traceback (most recent call last):
    oral_lib.errors.UsageError: kernel=6: must be odd, so that k values stay k values.
    """

    kind: str = "adanorm"
    hidden: int = 512
    depth: int = 4
    expand: int = 2
    skip: bool = True
    channels: tuple[int, ...] = (32, 64, 128, 64, 32)
    kernel: int = 7

    def __post_init__(self):
        if self.kind not in DENOISERS:
            near = closest(str(self.kind), DENOISERS)
            raise UsageError(f"kind={self.kind!r}: unknown denoiser. Use one of {DENOISERS}.{near}")
        for name in ("hidden", "depth", "expand", "kernel"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"{name}={value!r}: must be a whole number >= 1.")
        if type(self.skip) is not bool:
            raise UsageError(f"skip={self.skip!r}: must be true or false.")
        if self.kernel % 2 == 0:
            raise UsageError(
                f"kernel={self.kernel!r}: must be odd, so that k values stay k values."
            )
        channels = tuple(self.channels)  # JSON brings a list
        object.__setattr__(self, "channels", channels)
        whole = all(type(n) is int and n >= 1 for n in channels)
        if not whole or len(channels) % 2 == 0 or channels != channels[::-1]:
            raise UsageError(
                f"channels={channels!r}: must be an odd number of whole numbers that read the same "
                "from either end, such as (32, 64, 128, 64, 32)."
            )


class TimeEmbedding(nn.Module):
    """Embedding [..., width] of steps t [...]: sinusoids of 128 frequencies, then two layers."""

    def __init__(self, width: int, frequencies: int = 128):
        super().__init__()
        rate = torch.exp(-math.log(10_000) * torch.arange(frequencies) / frequencies)
        self.register_buffer("rate", rate, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        angle = t[..., None].float() * self.rate.float()  # [..., frequencies]
        waves = torch.cat([angle.cos(), angle.sin()], -1)  # [..., 2 frequencies]
        return self.layers(waves.to(self.layers[0].weight.dtype))


class Denoiser(nn.Module, ABC):
    """A denoiser of either kind; `denoiser(config, k, m)` builds it.

    Args:
        config: kind and sizes.
        k: numbers a token.
        m: width of prototypes and condition.

    >>> net = denoiser(DenoiserConfig(hidden=16, depth=1), k=12, m=8)
    >>> x, p, c = torch.randn(2, 5, 12), torch.randn(2, 5, 8), torch.randn(2, 8)
    >>> net(x, torch.tensor([0, 999]), p, c).shape
    torch.Size([2, 5, 12])
    """

    def __init__(self, config: DenoiserConfig, k: int, m: int):
        super().__init__()
        self.config, self.k, self.m = config, k, m

    def forward(self, x: Tensor, t: Tensor, p: Tensor, c: Tensor) -> Tensor:
        """The prediction [b, s, k].

        Args:
            x: [b, s, k] scaled noised tokens.
            t: long [b] or [b, s] diffusion steps. [b] is much cheaper: all that depends on (t, c)
                is then computed once a row.
            p: [b, s, m] prototypes.
            c: [b, m] condition.

        Raises:
            OralError: the shapes do not fit together.
        """
        if x.ndim == 3:
            b, s, _ = x.shape
            fit = x.shape[2] == self.k and p.shape == (b, s, self.m) and c.shape == (b, self.m)
            if fit and t.shape in ((b,), (b, s)):
                return self.predict(x, t if t.ndim == 2 else t[:, None], p, c[:, None])
        shapes = ", ".join(
            f"{n} {tuple(v.shape)}" for n, v in zip("xtpc", (x, t, p, c), strict=True)
        )
        raise OralError(
            f"{type(self).__name__} got {shapes}; it needs x [b, s, {self.k}], t [b] or [b, s], "
            f"p [b, s, {self.m}], c [b, {self.m}]."
        )

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, p: Tensor, c: Tensor) -> Tensor:
        """The prediction [b, s, k] for t [b, 1] or [b, s] and c [b, 1, m]."""

    @abstractmethod
    def flops_per_token(self) -> int:
        """FLOP of the matrix products and convolutions of one token, forward.

        A multiply-add counts as two. Layers computed once a row (time, condition) are left out. A
        training step costs about three times as much.
        """


class AdaNormDenoiser(Denoiser):
    """Residual MLP with adaptive layer norm.

        h = in(x) + q,   q = project(p)
        h = h + gate_i * mlp_i( norm(h) * (1 + scale_i + g_i q) + shift_i + f_i q )
        pred = out( norm(h) * (1 + scale + g q) + shift + f q ) + skip * x

    (t, c) set scale, shift, gate and skip: all are linear in silu(time(t) + condition(c)) and
    computed once a row for all blocks. The prototype enters at the input and, through the same
    projection, in every norm; f and g are one learned number a channel. As in DiT
    (arXiv 2212.09748), gates and output start at zero. The first prediction is therefore 0, and a
    gradient reaches every parameter after two updates.

    skip, one number a row, passes the k values of x around the `hidden` < k channels. The targets
    eps and v contain x itself: without skip, eps is not learned and v retains noise. With it,
    samples also spread around their mean; the objective x0 without skip gives little more than the
    mean.
    """

    def __init__(self, config: DenoiserConfig, k: int, m: int):
        super().__init__(config, k, m)
        h, depth = config.hidden, config.depth
        self.time = TimeEmbedding(h)
        self.condition = nn.Linear(m, h)
        self.project = nn.Linear(m, h, bias=False)
        self.enter = nn.Linear(k, h)
        self.modulation = nn.Linear(h, 3 * h * depth + 2 * h + config.skip)
        self.shift_gain = nn.Parameter(torch.ones(depth + 1, h))
        self.scale_gain = nn.Parameter(torch.zeros(depth + 1, h))
        inner = config.expand * h
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(h, inner), nn.SiLU(), nn.Linear(inner, h)) for _ in range(depth)
        )
        self.leave = nn.Linear(h, k)
        for layer in (self.modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def scale_input_init(self, active: int) -> None:
        """Rescales the input layer's initialisation for `active` non-zero inputs of k.

        If most inputs are always zero, activations start too small and the network first learns the
        mean token.
        """
        self.enter.weight.mul_((self.k / active) ** 0.5)

    def predict(self, x: Tensor, t: Tensor, p: Tensor, c: Tensor) -> Tensor:
        size, depth = self.config.hidden, self.config.depth
        row = self.modulation(F.silu(self.time(t) + self.condition(c)))  # [b, 1 or s, ...]
        row, skip = row.tensor_split([size * (3 * depth + 2)], -1)  # skip [b, 1 or s, 1 or 0]
        *block_terms, scale, shift = row.split(size, -1)  # [b, 1 or s, h] each
        q = self.project(p)  # [b, s, h]

        def modulated(h, i, scale, shift):
            # norm(h) * (1 + scale_i + g_i q) + shift_i + f_i q
            scale = 1 + scale + self.scale_gain[i] * q
            return torch.addcmul(shift + self.shift_gain[i] * q, F.layer_norm(h, (size,)), scale)

        # h = in(x) + q
        h = self.enter(x) + q  # [b, s, h]
        for i, block in enumerate(self.blocks):
            # h = h + gate_i * mlp_i(modulated(h))
            block_scale, block_shift, gate = block_terms[3 * i : 3 * i + 3]
            h = torch.addcmul(h, gate, block(modulated(h, i, block_scale, block_shift)))
        # pred = out(modulated(h)) + skip * x
        pred = self.leave(modulated(h, depth, scale, shift))  # [b, s, k]
        return pred + skip * x if self.config.skip else pred

    def flops_per_token(self) -> int:
        h, config = self.config.hidden, self.config
        return 2 * (2 * self.k * h + self.m * h + 2 * config.depth * config.expand * h * h)


class ConvDenoiser(Denoiser):
    """RPG's denoiser (arXiv 2501.11587): a 1-D CNN along the k values of one token.

        x = act_i( conv_i( (x + q) * time(t) ) ),   q = project(p) + condition(c)

    Channels 1-32-64-128-64-32-1, kernel 7, ELU; each layer of the second half adds the output of
    the equally wide layer of the first half. Three choices differ from RPG. c enters here, too.
    Group norm replaces batch norm, whose statistics couple the tokens of a batch. The time factor
    starts near 1.
    """

    def __init__(self, config: DenoiserConfig, k: int, m: int):
        super().__init__(config, k, m)
        self.time = TimeEmbedding(config.hidden)
        self.factor = nn.Linear(config.hidden, k)
        nn.init.ones_(self.factor.bias)
        self.condition = nn.Linear(m, k)
        self.project = nn.Linear(m, k, bias=False)
        pairs = list(pairwise((1, *config.channels, 1)))
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, config.kernel, padding=config.kernel // 2) for a, b in pairs
        )
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(8, b), b) for _, b in pairs[:-1])

    def predict(self, x: Tensor, t: Tensor, p: Tensor, c: Tensor) -> Tensor:
        b, s, k = x.shape
        factor = self.factor(F.silu(self.time(t))).expand(b, s, k).reshape(b * s, 1, k)
        q = (self.project(p) + self.condition(c)).view(b * s, 1, k)
        h, outputs, half = x.reshape(b * s, 1, k), [], len(self.convs) // 2
        for i, conv in enumerate(self.convs):
            if i > half:
                h = h + outputs[len(self.convs) - 1 - i]
            # x = act_i(conv_i((x + q) * time(t)))
            h = conv((h + q) * factor)  # [b s, channels, k]
            if i < len(self.norms):
                h = F.elu(self.norms[i](h))
                outputs.append(h)
        return h.view(b, s, k)

    def flops_per_token(self) -> int:
        pairs = pairwise((1, *self.config.channels, 1))
        return 2 * self.k * (self.m + self.config.kernel * sum(a * b for a, b in pairs))


def denoiser(config: DenoiserConfig, k: int, m: int) -> Denoiser:
    """The denoiser of `config` for tokens of k numbers and prototypes of width m."""
    return {"adanorm": AdaNormDenoiser, "conv": ConvDenoiser}[config.kind](config, k, m)
