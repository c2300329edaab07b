"""The noise schedule: how tokens are noised, what the denoiser predicts, how tokens are sampled.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,      t = 0 .. T-1, abar falling

It holds numbers and no network: any callable (x_t, t) -> prediction can be sampled with it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from oral_lib.errors import OralError, UsageError, closest

KINDS = ("linear", "cosine")
OBJECTIVES = ("eps", "x0", "v")
SAMPLERS = ("ddim", "ddpm")


@dataclass(frozen=True)
class DiffusionConfig:
    """The chain (`steps` T, `kind`, betas of the linear kind) and what is learned on it.

    objective          eps: the noise; x0: the tokens; v = sqrt(abar) eps - sqrt(1 - abar) x0
                       (arXiv 2202.00512)
    min_snr_gamma      None: every step weighs 1; else min-SNR weights (arXiv 2303.09556), often 5
    zero_terminal_snr  rescale so that the last step is pure noise (arXiv 2305.08891). Without it
                       the linear chain keeps abar = 4e-5 there: sampling starts from noise that
                       training never quite saw.
    scale_input        x0 only: the denoiser reads sqrt(abar_t) x_t (`Schedule.entry`), not x_t

    Refused with the rescaling: eps, because x_0 = (x_t - eps) / 0 at the last step, and min-SNR
    weights, because they are 0 there and the first sampling step would never be trained.
    """

    steps: int = 1000
    kind: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    objective: str = "eps"
    min_snr_gamma: float | None = None
    zero_terminal_snr: bool = False
    scale_input: bool = True

    def __post_init__(self):
        if type(self.steps) is not int or self.steps < 2:
            raise UsageError(f"steps={self.steps!r}: must be a whole number of 2 or more.")
        _one_of("kind", self.kind, KINDS)
        _one_of("objective", self.objective, OBJECTIVES)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UsageError(
                f"beta_start={self.beta_start!r}, beta_end={self.beta_end!r}: "
                "need 0 < beta_start <= beta_end < 1."
            )
        gamma = self.min_snr_gamma
        if gamma is not None and not 0 < gamma < math.inf:
            raise UsageError(f"min_snr_gamma={gamma!r}: must be a number above 0, or None.")
        if self.zero_terminal_snr and self.objective == "eps":
            raise UsageError(
                "zero_terminal_snr=True with objective='eps': x0 cannot be had from eps where no "
                "signal is left. Use objective='v' or 'x0'."
            )
        if self.zero_terminal_snr and gamma is not None:
            raise UsageError(
                f"zero_terminal_snr=True with min_snr_gamma={gamma!r}: the last step would weigh 0 "
                "and never be trained. Drop one of the two."
            )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = closest(str(value), choices)
        raise UsageError(f"{name}={value!r}: unknown. Use one of {choices}.{near}")


def signal(config: DiffusionConfig) -> Tensor:
    """abar [T] in float64, falling: the share of the variance that is still signal at step t.

    Linear: DDPM (arXiv 2006.11239). Cosine: arXiv 2102.09672. UsageError when more than 1% of the
    signal is left at the end, as with few steps and the betas of a thousand.
    """
    steps = config.steps
    if config.kind == "linear":
        beta = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float64)
    else:
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    abar = torch.cumprod(1 - beta, 0)
    if config.zero_terminal_snr:
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    if abar[-1] > 0.01:
        raise UsageError(
            f"steps={steps!r} with beta_end={config.beta_end!r}: {abar[-1]:.0%} of the signal is "
            "left at the last step, but sampling starts from pure noise. Use more steps, a larger "
            "beta_end or kind='cosine'."
        )
    return abar


class Diffusion:
    """Noising, targets, conversions, weights and samplers of one `ScheduleConfig`.

    t is long, [b] or as many leading axes of x as it has; x [b, ...]. Coefficients are computed in
    float64 and kept in float32 on each device where they were asked for, whatever the dtype of the
    network.
    """

    def __init__(self, config: DiffusionConfig):
        self.config = config
        self.steps = config.steps
        self.abar = signal(config)
        self._tables: dict[torch.device, Tensor] = {}

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), each shaped to multiply `like`."""
        table = self._tables.get(t.device)
        if table is None:
            table = torch.stack([self.abar.sqrt(), (1 - self.abar).sqrt()], 1).float()
            table = self._tables[t.device] = table.to(t.device)
        rows = table[t].view(*t.shape, *(1,) * (like.ndim - t.ndim), 2)
        return rows[..., 0], rows[..., 1]

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t, shaped as x0: sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""
        a, s = self._coefficients(t, x0)
        return a * x0 + s * eps

    def entry(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the denoiser reads of x_t: x_t itself, or sqrt(abar_t) x_t where it predicts x_0.

        For x_0 of mean 0 and variance 1 that is its linear least-squares estimate: where nothing
        but noise is left nothing is read, and the prediction is one from the condition alone.
        """
        scaled = self.config.scale_input and self.config.objective == "x0"
        return x_t * self._coefficients(t, x_t)[0] if scaled else x_t

    def middle(self, x_t: Tensor, t: Tensor) -> Tensor:
        """[b, 1, k]: what the mean of the s tokens of x_t [b, s, k], noised each by itself, says of
        the mean of their x_0. For one of mean 0 and variance 1, its linear least-squares estimate.
        """
        a, s = self._coefficients(t, x_t)
        return x_t.mean(1, keepdim=True) * (a / (a.square() + s.square() / x_t.shape[1]))

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should return at x_t: eps, x_0 or v."""
        a, s = self._coefficients(t, x0)
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0}[self.config.objective]

    def to_x0(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 that a prediction at x_t stands for."""
        return self._x0(pred, x_t, *self._coefficients(t, x_t))

    def to_eps(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The eps that a prediction at x_t stands for."""
        return self._eps(pred, x_t, *self._coefficients(t, x_t))

    def _x0(self, pred, x_t, a, s):
        if self.config.objective == "eps":
            return (x_t - s * pred) / a
        return pred if self.config.objective == "x0" else a * x_t - s * pred

    def _eps(self, pred, x_t, a, s):
        if self.config.objective == "x0":
            return (x_t - a * pred) / s
        return pred if self.config.objective == "eps" else s * x_t + a * pred

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight of the squared error at step t, float32, shaped as t.

        1, or min(SNR, gamma) on the error of x_0, which is min(SNR, gamma) / SNR on that of eps and
        min(SNR, gamma) / (SNR + 1) on that of v. SNR = abar / (1 - abar).
        """
        gamma, objective = self.config.min_snr_gamma, self.config.objective
        if gamma is None:
            return torch.ones(t.shape, device=t.device)
        a, s = self._coefficients(t, t)
        snr = (a / s) ** 2
        return snr.clamp(max=gamma) / {"x0": 1, "eps": snr, "v": snr + 1}[objective]

    def timesteps(self, n: int) -> list[int]:
        """n steps, strictly falling, evenly spaced, the first always T-1; n = T gives all of them.

        UsageError unless 1 <= n <= T. ("Trailing" spacing, table 2 of arXiv 2305.08891.)
        """
        if type(n) is not int or not 1 <= n <= self.steps:
            raise UsageError(f"{n!r} sampling steps: need a whole number from 1 to {self.steps}.")
        return [self.steps - 1 - i * self.steps // n for i in range(n)]

    @torch.no_grad()
    def sample(
        self,
        denoise: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        steps: int,
        *,
        sampler: str = "ddim",
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        clip: float | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """x_0, shaped as noise [b, ...], after `steps` calls of denoise(x_t, t [b]).

        ddim: eta 0 draws no noise, eta 1 as much as ddpm (equation 12 of arXiv 2010.02502).
        ddpm: ancestral sampling from q(x_prev | x_t, x_0), which is ddim at eta 1.
        clip: every x_0 on the way is cut to [-clip, clip]; project: it is replaced by project(x_0).
        The last target is abar = 1 exactly, so the last step returns x_0 itself. No value is read
        back from the device on the way.
        """
        _one_of("sampler", sampler, SAMPLERS)
        if sampler == "ddpm" and eta:
            raise UsageError(f"eta={eta!r} with sampler='ddpm': eta belongs to ddim. Leave it out.")
        if not 0 <= eta <= 1:
            raise UsageError(f"eta={eta!r}: must lie between 0 and 1.")
        if clip is not None and not clip > 0:
            raise UsageError(f"clip={clip!r}: must be above 0, or None.")
        eta = 1.0 if sampler == "ddpm" else eta
        chain = self.timesteps(steps)
        abar = [*(self.abar[i].item() for i in chain), 1.0]  # on the host since it was built
        x = noise
        for step, (now, to) in zip(chain, pairwise(abar), strict=True):
            a, s = math.sqrt(now), math.sqrt(1 - now)
            pred = denoise(x, torch.full(x.shape[:1], step, device=x.device)).to(x.dtype)
            if pred.shape != x.shape:
                raise OralError(f"denoise returned {tuple(pred.shape)} for {tuple(x.shape)}.")
            x0, eps = self._x0(pred, x, a, s), self._eps(pred, x, a, s)
            if clip is not None:
                x0 = x0.clamp(-clip, clip)
            if project is not None:
                x0 = project(x0)
            if clip is not None or project is not None:
                eps = (x - a * x0) / s  # the noise that leads from the changed x_0 to this x
            sigma = eta * math.sqrt((1 - to) / (1 - now) * (1 - now / to))
            rest = max(0.0, 1 - to - sigma**2)  # with now = 0 and eta = 1 rounding may fall below
            x = math.sqrt(to) * x0 + math.sqrt(rest) * eps
            if sigma:
                z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                x = x + sigma * z
        return x
