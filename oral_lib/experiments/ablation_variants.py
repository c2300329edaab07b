"""What the ablations compare: variants of the library's default generator, one part changed each.

A group is one part: its variants, the default among them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from oral_lib.errors import UsageError, closest
from oral_lib.method.config import SHARINGS, GeneratorConfig, SamplingConfig
from oral_lib.method.denoiser import DENOISERS as DENOISERS
from oral_lib.method.diffusion import OBJECTIVES
from oral_lib.method.projection import PROJECTIONS
from oral_lib.method.recurrence import RECURRENCES as RECURRENCES
from oral_lib.models.text_encoder import ENCODERS

SAMPLING_STEPS = (1, 2, 3, 5, 10, 20, 60)
TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Gauge(Enum):
    """The form of the LoRA factors of every adapter of the zoo; values name variants."""

    SHARED = "shared start"
    UNCENTRED = "shared start, centred on zero"
    ROTATED = "random rotation"
    BALANCED = "balanced SVD"


class Pooling(Enum):
    """Over which adapters token statistics are computed; values name variants."""

    SHARED = "shared"
    PER_TASK = "per task (leaks)"


@dataclass(frozen=True)
class Variant:
    """One generator to be measured; `group` is the part that differs from the default."""

    group: str
    name: str
    config: GeneratorConfig
    sampling: SamplingConfig
    gauge: Gauge = Gauge.SHARED
    pooling: Pooling = Pooling.SHARED
    default: bool = False

    @property
    def settings(self) -> tuple[GeneratorConfig, SamplingConfig, Gauge, Pooling]:
        """Everything that decides a measurement of this variant."""
        return self.config, self.sampling, self.gauge, self.pooling


Variants = Iterator[Variant]


def _token(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    for k in (base.k // 4, base.k // 2, base.k, 2 * base.k, 4 * base.k):
        config = replace(base, k=k, components=min(base.components, k))
        yield Variant("token", f"k = {k}", config, sampling)


def _components(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    r = base.components or base.k // 4
    rotation = base.component_rotation if base.components else "bases"
    rotated = replace(base, components=r, component_rotation=rotation)
    for n in sorted({min(n, base.k) for n in (r // 4, r // 2, r, 2 * r)} - {0}):
        yield Variant("components", str(n), replace(rotated, components=n), sampling)
    # where tokens are not rotated to agree, one noise draw for all of them has no meaning
    apart = replace(sampling, noise_sharing="token")
    config = replace(rotated, component_rotation="none")
    yield Variant("components", f"{r} not turned, a draw a token", config, apart)
    values = replace(base, components=0, component_rotation="none")
    yield Variant("components", "k values", values, apart if base.components else sampling)


def _recurrence(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    for kind in RECURRENCES:
        changed = replace(base.recurrence, kind=kind)
        yield Variant("recurrence", kind, replace(base, recurrence=changed), sampling)


def _denoiser(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    for kind in DENOISERS:
        changed = replace(base.denoiser, kind=kind)
        if kind == "conv" and base.text_encoder == "tiny":  # RPG's would cost smoke runs minutes
            changed = replace(changed, channels=(4, 8, 4))
        yield Variant("denoiser", kind, replace(base, denoiser=changed), sampling)
        if kind == "conv":  # as in RPG: of values, and predicting the noise
            eps = replace(base.diffusion, objective="eps")
            config = replace(base, denoiser=changed, diffusion=eps)
            config = replace(config, components=0, component_rotation="none")
            plain = replace(sampling, noise_sharing="token", projection="none")
            yield Variant("denoiser", "conv, eps, k values", config, plain)


def _width(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    hidden = base.denoiser.hidden
    for n in (hidden // 2, hidden, 2 * hidden):
        changed = replace(base.denoiser, hidden=n)
        yield Variant("width", f"hidden {n}", replace(base, denoiser=changed), sampling)


def _objective(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    # eps and v contain x_t, which a denoiser narrower than a token of raw values cannot represent:
    # it needs the skip connection
    default = base.diffusion.objective
    for objective in OBJECTIVES:
        skip = base.denoiser.skip if objective == default else objective != "x0"
        diffusion = replace(base.diffusion, objective=objective)
        config = replace(base, diffusion=diffusion, denoiser=replace(base.denoiser, skip=skip))
        yield Variant("objective", objective, config, sampling)
    if default == "x0":
        plain = replace(base.diffusion, scale_input=not base.diffusion.scale_input)
        yield Variant("objective", "x0, x_t as it is", replace(base, diffusion=plain), sampling)


def _steps(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    for n in sorted({*SAMPLING_STEPS, sampling.steps}):
        yield Variant("steps", str(n), base, replace(sampling, steps=n))


def _temperature(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    for temperature in sorted({*TEMPERATURES, sampling.temperature}):
        changed, name = replace(sampling, temperature=temperature), f"{temperature:g}"
        yield Variant("temperature", name, base, changed)
        if temperature and sampling.noise_sharing == "adapter":
            apart = replace(changed, noise_sharing="token")
            yield Variant("temperature", f"{name}, a draw a token", base, apart)


def _noise(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    names = {"adapter": "a draw an adapter", "token": "a draw a token"}
    config = replace(base, reads_token_mean=False)
    for sharing in SHARINGS:
        changed = replace(sampling, noise_sharing=sharing)
        yield Variant("noise", names[sharing], config, changed)
    reads, apart = replace(base, reads_token_mean=True), replace(sampling, noise_sharing="token")
    yield Variant("noise", "a draw a token, the mean is read", reads, apart)


def _projection(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    names = {"hull": "shares of the zoo", "span": "any shares", "none": "each token by itself"}
    for way in PROJECTIONS:
        yield Variant("joint", names[way], base, replace(sampling, projection=way))


def _encoder(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    tiny = base.text_encoder.startswith("tiny")  # smoke runs: only encoders that need no download
    for name in ENCODERS:
        if name.startswith("tiny") == tiny:
            yield Variant("encoder", name, replace(base, text_encoder=name), sampling)


def _gauge(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    for gauge in Gauge:
        yield Variant("gauge", gauge.value, base, sampling, gauge=gauge)


def _statistics(base: GeneratorConfig, sampling: SamplingConfig) -> Variants:
    for pooling in Pooling:
        yield Variant("statistics", pooling.value, base, sampling, pooling=pooling)


GROUPS: dict[str, Callable[[GeneratorConfig, SamplingConfig], Variants]] = {
    "token": _token,
    "components": _components,
    "recurrence": _recurrence,
    "denoiser": _denoiser,
    "width": _width,
    "objective": _objective,
    "steps": _steps,
    "temperature": _temperature,
    "noise": _noise,
    "joint": _projection,
    "encoder": _encoder,
    "gauge": _gauge,
    "statistics": _statistics,
}


def check_groups(names: Sequence[str]) -> list[str]:
    """`names` themselves; every group for "all". UsageError, with the nearest name, for an unknown
    group."""
    names = list(GROUPS) if list(names) == ["all"] else list(names)
    for name in names:
        if name not in GROUPS:
            groups = ", ".join(GROUPS)
            raise UsageError(f"no ablation {name!r}.{closest(name, GROUPS)} There are {groups}.")
    if not names:
        raise UsageError(f"no ablation is named. There are {', '.join(GROUPS)}.")
    return names


def variants(
    config: GeneratorConfig, sampling: SamplingConfig, groups: Sequence[str] = tuple(GROUPS)
) -> list[Variant]:
    """The variants of `groups` of the default `config` and `sampling`, which is in every group."""
    listed = [v for group in check_groups(groups) for v in GROUPS[group](config, sampling)]
    usual = (config, sampling, Gauge.SHARED, Pooling.SHARED)
    return [replace(v, default=v.settings == usual) for v in listed]
