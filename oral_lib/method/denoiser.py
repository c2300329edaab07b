"""Denoisers: from noised tokens and their prototypes to eps, x0 or v, each token for itself.

    pred = denoiser(x [b, s, k], t [b], p [b, s, m], c [b, m])    s: any subset of l tokens

x is what `Schedule.entry` makes of x_t: x_t itself, or its estimate of x_0 where that is predicted.

Tokens meet only in the recurrence. Here a token's result depends on its own values and prototype
and on its row's t and c, so training may send any subset of tokens, in any order. A row may be cut
into several rows of fewer tokens (c repeated) to draw more than one t for it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib.errors import OralError, UsageError, closest

KINDS = ("adanorm", "conv")


@dataclass(frozen=True)
class DenoiserConfig:
    """Which denoiser (`kind`), and its sizes; the rest belongs to one kind only.

    hidden    width of the residual stream (adanorm) and of the time embedding (both)
    depth     residual blocks (adanorm)
    expand    hidden layer of a block as a multiple of `hidden` (adanorm)
    skip      add a learned share of x to the prediction (adanorm): see AdaNormDenoiser
    channels  channels between the one that enters and the one that leaves (conv): an odd number of
              them, the same from either end
    kernel    taps of each convolution, odd (conv)
    """

    kind: str = "adanorm"
    hidden: int = 512
    depth: int = 4
    expand: int = 2
    skip: bool = True
    channels: tuple[int, ...] = (32, 64, 128, 64, 32)
    kernel: int = 7

    def __post_init__(self):
        if self.kind not in KINDS:
            near = closest(str(self.kind), KINDS)
            raise UsageError(f"kind={self.kind!r}: no such denoiser. Use one of {KINDS}.{near}")
        for name in ("hidden", "depth", "expand", "kernel"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"{name}={value!r}: must be a whole number of 1 or more.")
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
        angle = t[..., None].float() * self.rate.float()
        angle = torch.cat([angle.cos(), angle.sin()], -1)
        return self.layers(angle.to(self.layers[0].weight.dtype))


class Denoiser(nn.Module, ABC):
    """What both kinds share: the signature, the check of shapes, the count of operations."""

    def __init__(self, config: DenoiserConfig, k: int, m: int):
        super().__init__()
        self.config, self.k, self.m = config, k, m

    def forward(self, x: Tensor, t: Tensor, p: Tensor, c: Tensor) -> Tensor:
        """Prediction [b, s, k] for x [b, s, k], t [b] or [b, s], prototypes p [b, s, m], c [b, m].

        t [b] is much the cheaper: what follows from (t, c) is then computed once a row.
        OralError when the shapes do not fit together.
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
        """The same with t [b, 1] or [b, s] and c [b, 1, m]."""

    @abstractmethod
    def flops_per_token(self) -> int:
        """Floating-point operations of matrix products and convolutions, forward, for one token.

        A multiply-add counts two; what is computed once a row (time, condition) is left out. A
        training step costs about three times as much.
        """


class AdaNormDenoiser(Denoiser):
    """Residual MLP with adaptive layer norm: (t, c) set scale, shift and gate, the prototype enters
    at the input and again, through the same projection, as a shift and scale of every norm.

        h = in(x) + q,   q = project(p)
        h = h + gate_i * mlp_i( norm(h) * (1 + scale_i + g_i q) + shift_i + f_i q )
        pred = out( norm(h) * (1 + scale + g q) + shift + f q ) + skip * x

    scale, shift, gate and skip are linear in silu(time(t) + condition(c)), computed once a row for
    all blocks together; f and g are one learned number a channel. As in DiT (arXiv 2212.09748),
    gates and output start at zero: the first prediction is 0, and it takes two updates until a
    gradient reaches every parameter.

    skip, one number a row, leads the k values of x past the `hidden` < k channels. eps and v
    contain x itself: without it eps is not learned at all and v keeps leftover noise. With it the
    samples also spread round their mean; x0 without it gives little but the mean.
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
        row, skip = row.tensor_split([size * (3 * depth + 2)], -1)
        *parts, scale, shift = row.split(size, -1)
        q = self.project(p)  # [b, s, hidden]

        def modulated(h, i, scale, shift):
            scale = 1 + scale + self.scale_gain[i] * q
            return torch.addcmul(shift + self.shift_gain[i] * q, F.layer_norm(h, (size,)), scale)

        h = self.enter(x) + q
        for i, block in enumerate(self.blocks):
            block_scale, block_shift, gate = parts[3 * i : 3 * i + 3]
            h = torch.addcmul(h, gate, block(modulated(h, i, block_scale, block_shift)))
        pred = self.leave(modulated(h, depth, scale, shift))
        return pred + skip * x if self.config.skip else pred

    def flops_per_token(self) -> int:
        h, config = self.config.hidden, self.config
        return 2 * (2 * self.k * h + self.m * h + 2 * config.depth * config.expand * h * h)


class ConvDenoiser(Denoiser):
    """RPG's denoiser (arXiv 2501.11587): a 1-D CNN along the k values of one token.

        x = act_i( conv_i( (x + q) * time(t) ) ),   q = project(p) + condition(c)

    Channels 1-32-64-128-64-32-1, kernel 7, ELU; the way back adds the equally wide layers of the
    way in. Ours: c enters here too; group norm in place of RPG's batch norm, whose statistics tie
    the tokens of a batch together; the time factor starts near 1.
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
        h, way_in, half = x.reshape(b * s, 1, k), [], len(self.convs) // 2
        for i, conv in enumerate(self.convs):
            if i > half:
                h = h + way_in[len(self.convs) - 1 - i]
            h = conv((h + q) * factor)  # [b s, channels, k]
            if i < len(self.norms):
                h = F.elu(self.norms[i](h))
                way_in.append(h)
        return h.view(b, s, k)

    def flops_per_token(self) -> int:
        pairs = pairwise((1, *self.config.channels, 1))
        return 2 * self.k * (self.m + self.config.kernel * sum(a * b for a, b in pairs))


def denoiser(config: DenoiserConfig, k: int, m: int) -> Denoiser:
    """The denoiser that `config` describes, for tokens of k values and prototypes of width m."""
    return {"adanorm": AdaNormDenoiser, "conv": ConvDenoiser}[config.kind](config, k, m)
