"""Diffusion: the noise schedule, the targets of the denoiser, and the samplers.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,      t = 0 .. T-1, abar falling

It contains no network: any callable (x_t, t) -> prediction can be sampled with it.

Letters: T steps of the chain, t steps [b], abar [T] share of the signal in the variance, a and s
its roots sqrt(abar_t) and sqrt(1 - abar_t), x_0 clean tokens, eps noise, x_t noised tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from oral_lib.errors import OralError, UsageError, closest

SCHEDULES = ("linear", "cosine")
OBJECTIVES = ("eps", "x0", "v")
SAMPLERS = ("ddim", "ddpm")


@dataclass(frozen=True)
class DiffusionConfig:
    """The chain and the training target. The defaults are RPG's (arXiv 2501.11587).

    Args:
        steps: T.
        kind: "linear" (DDPM, arXiv 2006.11239) or "cosine" (arXiv 2102.09672).
        beta_start: beta of the first step (linear).
        beta_end: beta of the last step (linear).
        objective: "eps", the noise; "x0", the tokens; or "v" = a eps - s x_0 (arXiv 2202.00512).
        min_snr_gamma: gamma of min-SNR weights (arXiv 2303.09556), often 5. None: every step has
            weight 1.
        zero_terminal_snr: rescale so that the last step is pure noise (arXiv 2305.08891). Without
            it the linear chain ends at abar = 4e-5, so sampling starts from slightly more noise
            than training contains.
        scale_input: the denoiser reads a x_t instead of x_t (objective x0 only); see
            `Diffusion.denoiser_input`.

    Raises:
        UsageError: an invalid value. Rescaling with eps is refused, because x_0 = (x_t - eps) / 0
            at the last step. Rescaling with min-SNR weights is refused, because they are 0 there
            and the first sampling step would not be trained.

    >>> DiffusionConfig(objective="x0").steps
    1000
    >>> DiffusionConfig(objective="x")
    Traceback (most recent call last):
    oral_lib.errors.UsageError: objective='x': unknown. Use one of ('eps', 'x0', 'v')...
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
            raise UsageError(f"steps={self.steps!r}: must be a whole number >= 2.")
        _one_of("kind", self.kind, SCHEDULES)
        _one_of("objective", self.objective, OBJECTIVES)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UsageError(
                f"beta_start={self.beta_start!r}, beta_end={self.beta_end!r}: "
                "need 0 < beta_start <= beta_end < 1."
            )
        gamma = self.min_snr_gamma
        if gamma is not None and not 0 < gamma < math.inf:
            raise UsageError(f"min_snr_gamma={gamma!r}: must be a finite number > 0, or None.")
        if self.zero_terminal_snr and self.objective == "eps":
            raise UsageError(
                "zero_terminal_snr=True with objective='eps': x0 does not follow from eps where "
                "no signal is left. Use objective='v' or 'x0'."
            )
        if self.zero_terminal_snr and gamma is not None:
            raise UsageError(
                f"zero_terminal_snr=True with min_snr_gamma={gamma!r}: the last step would have "
                "weight 0 and never be trained. Drop one of the two."
            )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = closest(str(value), choices)
        raise UsageError(f"{name}={value!r}: unknown. Use one of {choices}.{near}")


def signal(config: DiffusionConfig) -> Tensor:
    """abar float64 [T], falling: the share of the variance that is signal at step t.

    UsageError if more than 1% of the signal is left at the end, as with few steps and the betas of
    a thousand.
    """
    steps = config.steps
    if config.kind == "linear":
        # beta_t from beta_start to beta_end in equal steps
        beta = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float64)
    else:
        # abar(t) = f(t) / f(0),   f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2)
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    # abar_t = (1 - beta_0) ... (1 - beta_t)
    abar = torch.cumprod(1 - beta, 0)
    if config.zero_terminal_snr:
        # algorithm 1 of arXiv 2305.08891: shift sqrt(abar) to end at 0, scale it to start as before
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
    """Noising, targets, weights and samplers of one `DiffusionConfig`.

    In all methods x is [b, ...] and t is long, [b] or with more of the leading axes of x.
    Coefficients are computed in float64 and stored in float32 on each device in use, whatever the
    dtype of the network.

    >>> diffusion = Diffusion(DiffusionConfig(objective="x0"))
    >>> x0, eps, t = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([0, 999])
    >>> x_t = diffusion.add_noise(x0, eps, t)  # the second row is nearly pure noise
    >>> torch.equal(diffusion.target(x0, eps, t), x0)
    True
    >>> exact = lambda x_t, t: x0  # in place of a network
    >>> torch.equal(diffusion.sample(exact, eps, steps=10), x0)
    True
    """

    def __init__(self, config: DiffusionConfig):
        self.config = config
        self.steps = config.steps
        self.abar = signal(config)
        self._tables: dict[torch.device, Tensor] = {}

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a = sqrt(abar_t) and s = sqrt(1 - abar_t), each shaped to multiply `like`."""
        table = self._tables.get(t.device)
        if table is None:
            table = torch.stack([self.abar.sqrt(), (1 - self.abar).sqrt()], 1).float()  # [T, 2]
            table = self._tables[t.device] = table.to(t.device)
        rows = table[t].view(*t.shape, *(1,) * (like.ndim - t.ndim), 2)
        return rows[..., 0], rows[..., 1]

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = a x_0 + s eps, shaped as x0."""
        a, s = self._coefficients(t, x0)
        return a * x0 + s * eps

    def denoiser_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The input of the denoiser: x_t, or a x_t with `scale_input` and the objective x0.

        a x_t is the linear least-squares estimate of an x_0 of mean 0 and variance 1. Where only
        noise is left it is 0, and the prediction depends on the condition only.
        """
        scaled = self.config.scale_input and self.config.objective == "x0"
        return x_t * self._coefficients(t, x_t)[0] if scaled else x_t

    def mean_estimate(self, x_t: Tensor, t: Tensor) -> Tensor:
        """[b, 1, k]: an estimate of the mean x_0 of the n tokens of x_t [b, n, k].

        Linear least squares for a mean x_0 of mean 0 and variance 1, from tokens with independent
        noise: mean(x_t) a / (a^2 + s^2 / n).
        """
        a, s = self._coefficients(t, x_t)
        return x_t.mean(1, keepdim=True) * (a / (a.square() + s.square() / x_t.shape[1]))

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The target of the denoiser at x_t: eps, x_0 or v = a eps - s x_0."""
        a, s = self._coefficients(t, x0)
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0}[self.config.objective]

    def to_x0(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 that follows from a prediction at x_t."""
        return self._x0(pred, x_t, *self._coefficients(t, x_t))

    def _x0(self, pred, x_t, a, s):
        # x_0 = (x_t - s eps) / a = a x_t - s v
        if self.config.objective == "eps":
            return (x_t - s * pred) / a
        return pred if self.config.objective == "x0" else a * x_t - s * pred

    def _eps(self, pred, x_t, a, s):
        # eps = (x_t - a x_0) / s = s x_t + a v
        if self.config.objective == "x0":
            return (x_t - a * pred) / s
        return pred if self.config.objective == "eps" else s * x_t + a * pred

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight of the squared error at step t, float32, shaped as t.

        1, or with min-SNR weights (SNR = abar / (1 - abar)): min(SNR, gamma) for x0,
        min(SNR, gamma) / SNR for eps and min(SNR, gamma) / (SNR + 1) for v. All three are the same
        weight on the error of x_0.
        """
        gamma, objective = self.config.min_snr_gamma, self.config.objective
        if gamma is None:
            return torch.ones(t.shape, device=t.device)
        a, s = self._coefficients(t, t)
        snr = (a / s) ** 2
        return snr.clamp(max=gamma) / {"x0": 1, "eps": snr, "v": snr + 1}[objective]

    def timesteps(self, n: int) -> list[int]:
        """n evenly spaced steps, strictly falling, the first T-1; n = T gives all of them.

        "Trailing" spacing, table 2 of arXiv 2305.08891. UsageError unless 1 <= n <= T.
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
        """x_0, shaped as `noise` [b, ...].

        The last target is exactly abar = 1, so the last step returns x_0 itself. The host does not
        wait for the device.

        Args:
            denoise: the network, (x_t, t [b]) -> prediction.
            noise: x_T [b, ...].
            steps: calls of `denoise`, from 1 to T.
            sampler: "ddim" (equation 12 of arXiv 2010.02502), or "ddpm": ancestral sampling from
                q(x_prev | x_t, x_0), which is ddim at eta 1.
            eta: of ddim: 0 draws no noise, 1 as much as ddpm.
            generator: of the noise that a step draws.
            clip: limit every x_0 on the way to [-clip, clip].
            project: replace every x_0 on the way by project(x_0).

        Raises:
            UsageError: an invalid value.
            OralError: `denoise` returns another shape.
        """
        _one_of("sampler", sampler, SAMPLERS)
        if sampler == "ddpm" and eta:
            raise UsageError(f"eta={eta!r} with sampler='ddpm': eta belongs to ddim. Omit it.")
        if not 0 <= eta <= 1:
            raise UsageError(f"eta={eta!r}: must lie between 0 and 1.")
        if clip is not None and not clip > 0:
            raise UsageError(f"clip={clip!r}: must be above 0, or None.")
        eta = 1.0 if sampler == "ddpm" else eta
        chain = self.timesteps(steps)
        abar = [*(self.abar[i].item() for i in chain), 1.0]  # on the host since it was built
        x = noise
        for step, (now, to) in zip(chain, pairwise(abar), strict=True):
            a, s = math.sqrt(now), math.sqrt(1 - now)  # abar from `now` to `to`
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
            # sigma = eta sqrt((1 - abar_to) / (1 - abar_now)) sqrt(1 - abar_now / abar_to)
            sigma = eta * math.sqrt((1 - to) / (1 - now) * (1 - now / to))
            rest = max(0.0, 1 - to - sigma**2)  # below 0 by rounding for now = 0 and eta = 1
            # x_to = sqrt(abar_to) x_0 + sqrt(1 - abar_to - sigma^2) eps + sigma z
            x = math.sqrt(to) * x0 + math.sqrt(rest) * eps
            if sigma:
                z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                x = x + sigma * z
        return x
