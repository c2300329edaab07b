"""What the ablations compare: variants of the library's default generator, one part changed each.

A group is one part: its variants, the default among them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from oral_lib.errors import UsageError, closest
from oral_lib.generator import NOISES, GeneratorConfig
from oral_lib.method.denoiser import KINDS as DENOISERS
from oral_lib.method.diffusion import OBJECTIVES
from oral_lib.method.projection import WAYS
from oral_lib.method.recurrence import KINDS as RECURRENCES
from oral_lib.models.text_encoder import ENCODERS

SAMPLING_STEPS = (1, 2, 3, 5, 10, 20, 60)
TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
GAUGES = {  # what is done to every adapter of the zoo before it is learned from
    "shared start": "shared",
    "shared start, centred on zero": "uncentred",
    "random rotation": "turned",
    "balanced SVD": "balanced",
}
STATISTICS = ("shared", "per task (leaks)")


@dataclass(frozen=True)
class Variant:
    """One generator to be judged; `group` is the part that differs from the default."""

    group: str
    name: str
    config: GeneratorConfig
    gauge: str = "shared"
    statistics: str = "shared"
    default: bool = False


def _token(base: GeneratorConfig) -> Iterator[Variant]:
    for k in (base.k // 4, base.k // 2, base.k, 2 * base.k, 4 * base.k):
        yield Variant("token", f"k = {k}", replace(base, k=k, components=min(base.components, k)))


def _components(base: GeneratorConfig) -> Iterator[Variant]:
    r = base.components or base.k // 4
    for n in sorted({min(n, base.k) for n in (r // 4, r // 2, r, 2 * r)} - {0}):
        yield Variant("components", str(n), replace(base, components=n))
    # where tokens are not alike, one draw for all of them would mean nothing
    own = replace(base, components=r, turned="none", noise="token")
    yield Variant("components", f"{r} not turned, a draw a token", own)
    plain = replace(own, components=0) if base.components else base
    yield Variant("components", "k values", plain)


def _recurrence(base: GeneratorConfig) -> Iterator[Variant]:
    for kind in RECURRENCES:
        changed = replace(base.recurrence, kind=kind)
        yield Variant("recurrence", kind, replace(base, recurrence=changed))


def _denoiser(base: GeneratorConfig) -> Iterator[Variant]:
    for kind in DENOISERS:
        changed = replace(base.denoiser, kind=kind)
        if kind == "conv" and base.text_encoder == "tiny":  # RPG's would cost smoke runs minutes
            changed = replace(changed, channels=(4, 8, 4))
        yield Variant("denoiser", kind, replace(base, denoiser=changed))
        if kind == "conv":  # as RPG has it: of values, and predicting the noise
            eps = replace(base.schedule, objective="eps")
            own = replace(base, denoiser=changed, schedule=eps, components=0)
            own = replace(own, noise="token", joint="none")
            yield Variant("denoiser", "conv, eps, k values", own)


def _width(base: GeneratorConfig) -> Iterator[Variant]:
    hidden = base.denoiser.hidden
    for n in (hidden // 2, hidden, 2 * hidden):
        changed = replace(base.denoiser, hidden=n)
        yield Variant("width", f"hidden {n}", replace(base, denoiser=changed))


def _objective(base: GeneratorConfig) -> Iterator[Variant]:
    # eps and v contain x_t, which a denoiser narrower than a token of raw values can only pass
    # round itself
    for objective in OBJECTIVES:
        schedule = replace(base.schedule, objective=objective)
        skip = base.denoiser.skip if objective == base.schedule.objective else objective != "x0"
        denoiser = replace(base.denoiser, skip=skip)
        yield Variant("objective", objective, replace(base, schedule=schedule, denoiser=denoiser))
    if base.schedule.objective == "x0":
        plain = replace(base.schedule, matched=not base.schedule.matched)
        yield Variant("objective", "x0, x_t as it is", replace(base, schedule=plain))


def _steps(base: GeneratorConfig) -> Iterator[Variant]:
    for n in sorted({*SAMPLING_STEPS, base.sampling_steps}):
        yield Variant("steps", str(n), replace(base, sampling_steps=n))


def _temperature(base: GeneratorConfig) -> Iterator[Variant]:
    for warmth in sorted({*TEMPERATURES, base.temperature}):
        own = replace(base, temperature=warmth)
        yield Variant("temperature", f"{warmth:g}", own)
        if warmth and base.noise == "adapter":
            yield Variant("temperature", f"{warmth:g}, a draw a token", replace(own, noise="token"))


def _noise(base: GeneratorConfig) -> Iterator[Variant]:
    told = {"adapter": "a draw an adapter", "token": "a draw a token",
            "whole": "a draw a token, the mean is read"}  # fmt: skip
    for noise in NOISES:
        yield Variant("noise", told[noise], replace(base, noise=noise))


def _joint(base: GeneratorConfig) -> Iterator[Variant]:
    told = {"hull": "shares of the zoo", "span": "any shares", "none": "each token by itself"}
    for way in WAYS:
        yield Variant("joint", told[way], replace(base, joint=way))


def _encoder(base: GeneratorConfig) -> Iterator[Variant]:
    made = base.text_encoder.startswith("tiny")  # made on the spot: with others made on the spot
    for name in ENCODERS:
        if name.startswith("tiny") == made:
            yield Variant("encoder", name, replace(base, text_encoder=name))


def _gauge(base: GeneratorConfig) -> Iterator[Variant]:
    for name, way in GAUGES.items():
        yield Variant("gauge", name, base, gauge=way)


def _statistics(base: GeneratorConfig) -> Iterator[Variant]:
    for way in STATISTICS:
        yield Variant("statistics", way, base, statistics=way.split()[0])


GROUPS: dict[str, Callable[[GeneratorConfig], Iterator[Variant]]] = {
    "token": _token,
    "components": _components,
    "recurrence": _recurrence,
    "denoiser": _denoiser,
    "width": _width,
    "objective": _objective,
    "steps": _steps,
    "temperature": _temperature,
    "noise": _noise,
    "joint": _joint,
    "encoder": _encoder,
    "gauge": _gauge,
    "statistics": _statistics,
}


def check_groups(names: Sequence[str]) -> list[str]:
    """`names` themselves, for "all" alone every group; `UsageError` with the nearest for one that
    is no group of variants."""
    names = list(GROUPS) if list(names) == ["all"] else names
    for name in names:
        if name not in GROUPS:
            known = ", ".join(GROUPS)
            raise UsageError(f"no ablation {name!r}.{closest(name, GROUPS)} Known: {known}.")
    if not names:
        raise UsageError(f"no ablation is named. Known: {', '.join(GROUPS)}.")
    return list(names)


def variants(config: GeneratorConfig, groups: Sequence[str] = tuple(GROUPS)) -> list[Variant]:
    """The variants of `groups` round the default `config`, which is in every group."""
    found = [one for group in check_groups(groups) for one in GROUPS[group](config)]
    usual = (config, "shared", "shared")
    return [replace(v, default=(v.config, v.gauge, v.statistics) == usual) for v in found]
