"""ORAL: condition, recurrence, denoiser and diffusion put together.

    c = condition(text, base)                     conditioning.py            [b, m]
    P = recurrence(positions + c)                 recurrence.py              [b, l, m]
    K_0 <- denoise from noise, given P and c      denoiser.py, diffusion.py  [b, l, k or r]
                        + shared part of the base, + linear map of c
                        projected on the zoo      projection.py

One network serves several base models and tasks; only c separates them. Each base model has its own
layout (l differs, k is shared) and statistics (shared by all its tasks).

Letters: b batch, l tokens, s a subset of them, k values a token, r components a token, m width,
e size of a text embedding, f size of a fingerprint.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from oral_lib.errors import OralError, UsageError
from oral_lib.method.base_entry import BaseEntry
from oral_lib.method.conditioning import Condition, Examples
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.denoiser import TimeEmbedding, denoiser
from oral_lib.method.diffusion import Diffusion
from oral_lib.method.linear_map import LinearMap
from oral_lib.method.recurrence import Recurrence


def sinusoid(position: Tensor, width: int) -> Tensor:
    """[..., width] sines and cosines of `position` [...], wavelengths 2 pi to 10^4 * 2 pi."""
    rate = torch.exp(
        torch.arange(0, width, 2, device=position.device) * (-torch.log(torch.tensor(1e4)) / width)
    )
    angle = position[..., None].float() * rate
    return torch.cat([angle.sin(), angle.cos()], -1)


class ORAL(nn.Module):
    """The network: condition, recurrence and denoiser, with an entry for each base model.

    Args:
        config: what training fixes.
        bases: the entries by name; their layouts may differ, `k` is shared.

    Raises:
        OralError: there is no base model, or an entry does not fit `config` or the others.

    >>> from oral_lib import method
    >>> start = {"q.lora_A.weight": torch.ones(2, 8), "q.lora_B.weight": torch.zeros(8, 2)}
    >>> zoo = [{n: t + torch.randn_like(t) for n, t in start.items()} for _ in range(4)]
    >>> tasks = ["cheerful", "cheerful", "formal", "formal"]
    >>> texts = {task: torch.randn(3, 16) for task in tasks}  # 3 wordings each
    >>> small = method.RecurrenceConfig(width=32, head=16)
    >>> config = method.GeneratorConfig(k=8, components=4, recurrence=small)
    >>> layout = method.Layout.of(start, config.k)
    >>> data = method.TrainingSet.of(layout, start, zoo, tasks, texts, config)
    >>> model = ORAL(config, {"mine": data.base(torch.randn(16), torch.randn(64))})
    >>> c = model.conditions("mine", texts["formal"][:1], torch.tensor([True]))
    >>> noise = model.noise("mine", method.SamplingConfig(), torch.Generator())[None]
    >>> tokens = model.sample("mine", c, noise)
    >>> [adapter] = method.decode(layout, data.statistics.denormalise(tokens))
    >>> adapter["q.lora_B.weight"].shape
    torch.Size([8, 2])
    """

    def __init__(self, config: GeneratorConfig, bases: Mapping[str, BaseEntry]):
        super().__init__()
        bases = dict(sorted(bases.items()))  # as JSON orders them: tensors are numbered
        if not bases:
            raise OralError("a network needs one base model or more.")
        embedding = next(iter(bases.values())).structure.shape[0]
        for name, base in bases.items():
            if (base.layout.k, base.size) != (config.k, config.size):
                raise OralError(
                    f"base model {name!r} has k={base.layout.k} and {base.size} numbers a token, "
                    f"the configuration k={config.k} and {config.size}: use one configuration."
                )
            if base.structure.shape != (embedding,):
                raise OralError(
                    f"the description of base model {name!r} has the shape "
                    f"{tuple(base.structure.shape)}, expected {(embedding,)}: use one text encoder."
                )
        self.config = config
        self.types = sorted({t for base in bases.values() for t in base.layout.types})
        self.bases = bases  # by name; registered below, because module names may hold no dot
        self.entries = nn.ModuleList(bases.values())
        for number, base in enumerate(bases.values()):
            kinds = torch.tensor([self.types.index(t) for t in base.layout.types])
            kinds = kinds[base.layout.positions[:, 2]]  # [l] index into `types`
            self.register_buffer(f"kinds{number}", kinds.to(base.layer.device), persistent=False)
        read = config.examples, config.linear > 0
        self.condition = Condition(embedding, config.width, config.arm, *read)
        self.kind = nn.Embedding(len(self.types), config.width)
        self.enter = nn.Linear(config.width, config.width)
        self.recurrence = Recurrence(config.recurrence)
        self.denoiser = denoiser(config.denoiser, config.size, config.width)
        if config.components and config.denoiser.kind == "adanorm":
            active = max(int(base.mask.any(0).sum()) for base in bases.values())
            self.denoiser.scale_input_init(max(1, active))
        self.diffusion = None if config.diffusion is None else Diffusion(config.diffusion)
        reads = config.reads_token_mean
        self.mean = nn.Linear(config.size, config.width, bias=False) if reads else None
        self.linear = None  # of each base model
        if config.linear:
            maps = (LinearMap(config, base.layout.l) for base in bases.values())
            self.linear = nn.ModuleList(maps).to(next(iter(bases.values())).layer.device)
        self.shared = None  # [l, k or r] of each base model, in normalised units
        if config.shared != "none":
            parts = (torch.zeros(base.layout.l, config.size) for base in bases.values())
            self.shared = nn.ParameterList(part.to(base.layer.device) for part in parts)
        reads = config.reads_tokens
        self.read = nn.Linear(config.size, config.width, bias=False) if reads else None
        self.time = TimeEmbedding(config.width) if reads else None

    @property
    def has_offset(self) -> bool:
        """Whether tokens have a part that the denoiser does not write."""
        return self.shared is not None or self.linear is not None

    @property
    def device(self) -> torch.device:
        return self.kind.weight.device

    # -- the three steps of the method ------------------------------------------------------------

    def conditions(
        self,
        base: str,
        text: Tensor,
        given: Tensor,
        c_model: tuple[Tensor, Tensor] | None = None,
        examples: Examples | None = None,
    ) -> Tensor:
        """c [b, m].

        Args:
            base: name of the base model.
            text: [b, e] embeddings.
            given: bool [b], False: the text is replaced by the learned vector for "no text".
            c_model: structure [e] and fingerprint [f] of another model of the same architecture.
            examples: labelled rows of the b tasks.
        """
        entry = self.bases[base]
        structure, fingerprint = c_model or (entry.structure, entry.fingerprint)
        if not self.config.uses_text:
            given = torch.zeros_like(given)
        b = text.shape[0]
        c_model = structure.expand(b, -1), fingerprint.expand(b, -1)
        return self.condition(text, given, *c_model, examples)

    def offset(self, base: str, c: Tensor) -> Tensor | float:
        """[b, l, k or r] what is added to the tokens that the denoiser writes: the part that all
        adapters of `base` share, and the linear map of the condition c [b, m]. 0 without them."""
        number, total = list(self.bases).index(base), 0.0
        if self.shared is not None:
            total = total + self.shared[number]
        if self.linear is not None:
            total = total + self.linear[number](c).float()
        return total

    def prototypes(self, base: str, c: Tensor) -> Tensor:
        """P [b, l, m]: the recurrent model over positions, tensor types and the condition.

        If it also reads the tokens: what it reads apart from them, u [b, l, m].
        """
        entry, m = self.bases[base], self.config.width
        kinds = getattr(self, f"kinds{list(self.bases).index(base)}")
        position = torch.cat([sinusoid(entry.layer, m // 2), sinusoid(entry.index, m // 2)], -1)
        u = (position + self.kind(kinds)).unsqueeze(0) + self.enter(c).unsqueeze(1)  # [b, l, m]
        return self.recurrence(u) if self.read is None else u

    def predict(self, x: Tensor, t: Tensor, p: Tensor, c: Tensor) -> Tensor:
        """The denoiser's float32 output [b, s, k] at x_t [b, s, k]: see `Diffusion.target`."""
        if self.mean is not None:
            p = p + self.mean(self.diffusion.mean_estimate(x, t))
        entry = x if self.diffusion is None else self.diffusion.denoiser_input(x, t)
        if self.read is not None:
            p = self.recurrence.twice(p + self.read(entry) + self.time(t)[:, None])
        return self.denoiser(entry, t, p, c).float()

    def loss(
        self, base: str, k0: Tensor, p: Tensor, c: Tensor, chosen: Tensor, t: Tensor, eps: Tensor
    ) -> Tensor:
        """Masked mean squared error of the denoiser on a subset of the tokens of one base model.

        Args:
            base: name of the base model.
            k0: [b, s, k] clean tokens.
            p: [b, s, m] their prototypes.
            c: [b, m].
            chosen: [s] indices of the tokens.
            t: [b] diffusion steps; regression reads neither `t` nor `eps`.
            eps: [b, s, k] noise.
        """
        mask = self.bases[base].mask[chosen]  # [s, k]
        if self.has_offset:
            offset = torch.as_tensor(self.offset(base, c)).expand(len(k0), -1, -1)
            k0 = (k0 - offset[:, chosen].detach()) * mask
        if self.diffusion is not None:
            eps = eps * mask
            x = self.diffusion.add_noise(k0, eps, t)
            target, weight = self.diffusion.target(k0, eps, t), self.diffusion.loss_weight(t)
        else:
            t = torch.zeros_like(t)
            x, target, weight = torch.zeros_like(k0), k0, k0.new_ones(len(k0))
        error = (self.predict(x, t, p, c) - target).square() * mask
        return (error.sum((1, 2)) * weight).mean() / mask.sum()

    def write(self, base: str, c: Tensor, noise: Tensor, steps: int = 1) -> Tensor:
        """K_0 [b, l, k or r] with a gradient: how adapters are written for the loss of the base.

        A sample without projection or guidance. Only the last of its denoising steps has a
        gradient. With steps=1 that is x_0 at once from pure noise.

        Args:
            base: name of the base model.
            c: [b, m] conditions.
            noise: [b, l, k or r].
            steps: denoising steps.
        """
        mask, p = self.bases[base].mask, self.prototypes(base, c)
        t = torch.zeros(len(c), dtype=torch.long, device=c.device)
        if self.diffusion is None:
            k0 = self.predict(torch.zeros_like(noise), t, p, c)
        else:
            chain, x = self.diffusion.timesteps(steps), noise * mask
            if steps > 1:
                states: list[Tensor] = []

                def denoise(x: Tensor, t: Tensor) -> Tensor:
                    states.append(x)
                    return self.predict(x, t, p, c) * mask

                self.diffusion.sample(denoise, x, steps)  # without a gradient
                x = states[-1]
            t = t + chain[-1]
            k0 = self.diffusion.to_x0(self.predict(x, t, p, c), x, t)
        if self.config.shared == "only":
            k0 = torch.zeros_like(k0)
        return (k0 + self.offset(base, c)) * mask

    # -- sampling ---------------------------------------------------------------------------------

    def check(self, base: str, sampling: SamplingConfig) -> None:
        """UsageError unless this network can sample adapters of `base` as `sampling` says."""
        if self.diffusion is not None and sampling.steps > self.diffusion.steps:
            raise UsageError(
                f"steps={sampling.steps}: must lie from 1 to {self.diffusion.steps}, the steps of "
                "the diffusion."
            )
        reads = self.config.reads_token_mean or self.config.reads_tokens
        if reads and sampling.noise_sharing == "adapter":
            raise UsageError(
                "noise_sharing='adapter': this network reads all noised tokens, which needs "
                "independent noise. Use noise_sharing='token'."
            )
        if sampling.projection != "none" and self.bases[base].projection is None:
            raise UsageError(
                f"projection={sampling.projection!r}: the adapters of the zoo of {base!r} are not "
                "stored with this network. Use projection='none'."
            )
        if sampling.projection != "none" and self.has_offset:
            raise UsageError(
                f"projection={sampling.projection!r}: this network adds a shared part or a linear "
                "map, which the zoo does not contain. Use projection='none'."
            )
        if sampling.guidance != 1.0 and not (self.config.uses_text and self.diffusion):
            kind = "plain regression" if self.config.uses_text else "a network that uses no text"
            raise UsageError(f"guidance={sampling.guidance}: has no effect on {kind}. Leave it 1.")

    def noise(self, base: str, sampling: SamplingConfig, stream: torch.Generator) -> Tensor:
        """[l, k or r] on the CPU: the initial noise of one adapter at temperature 1."""
        length = self.bases[base].layout.l
        rows = 1 if sampling.noise_sharing == "adapter" else length
        return torch.randn(rows, self.config.size, generator=stream).expand(length, -1)

    @torch.inference_mode()
    def sample(
        self,
        base: str,
        c: Tensor,
        noise: Tensor,
        sampling: SamplingConfig | None = None,
        *,
        c_free: Tensor | None = None,
        mask: Tensor | None = None,
        trace: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """K_0 [b, l, k or r].

        Args:
            base: name of the base model.
            c: [b, m] the conditions.
            noise: [b, l, k or r] of any scale; padding is ignored.
            sampling: steps, projection and guidance (default: `SamplingConfig()`); temperature and
                noise sharing are in `noise`.
            c_free: [b, m] the conditions without text, for a guidance other than 1.
            mask: bool [l, k or r] the numbers of a token in use (default: of the base model).
            trace: called with every x_t on the way.

        Raises:
            UsageError: see `check`, or guidance without `c_free`.
        """
        sampling = sampling or SamplingConfig()
        self.check(base, sampling)
        entry = self.bases[base]
        mask = entry.mask if mask is None else mask
        p = self.prototypes(base, c)
        if self.diffusion is None:
            t = torch.zeros(len(c), dtype=torch.long, device=c.device)
            k0 = self.predict(torch.zeros_like(noise), t, p, c) * mask
            if self.has_offset:
                k0 = k0 * (self.config.shared != "only") + self.offset(base, c)
            return self._projected(base, k0, sampling.projection)
        guided = sampling.guidance != 1.0
        if guided and c_free is None:
            raise UsageError(f"guidance={sampling.guidance}: needs c_free, c without the text.")
        free = self.prototypes(base, c_free) if guided else None

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            if trace is not None:
                trace(x)
            pred = self.predict(x, t, p, c)
            if free is not None:
                without = self.predict(x, t, free, c_free)
                pred = without + sampling.guidance * (pred - without)
            return pred * mask

        spanned = None
        if sampling.projection != "none":
            spanned = partial(self._projected, base, way="span")
        k0 = self.diffusion.sample(denoise, noise * mask, sampling.steps, project=spanned)
        if self.has_offset:
            k0 = (k0 * (self.config.shared != "only") + self.offset(base, c)) * mask
        return self._projected(base, k0, sampling.projection)

    def _projected(self, base: str, k0: Tensor, way: str) -> Tensor:
        return k0 if way == "none" else self.bases[base].projection.nearest(k0, way)
