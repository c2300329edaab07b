"""The two configurations: what training fixes, and what may differ from sample to sample."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from oral_lib.errors import OralError, UsageError, closest
from oral_lib.method.conditioning import ARMS
from oral_lib.method.denoiser import DenoiserConfig
from oral_lib.method.diffusion import DiffusionConfig
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.projection import PROJECTIONS
from oral_lib.method.recurrence import RecurrenceConfig
from oral_lib.method.tokenization import Layout

ROTATIONS = ("bases", "tokens", "none")
READS = ("positions", "tokens")
ADDED = ("examples", "linear", "recurrence_reads", "shared")  # fields that older files lack
SHARINGS = ("adapter", "token")
SHARED = ("none", "added", "only")


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = closest(str(value), choices)
        raise UsageError(f"{name}={value!r}: use one of {choices}.{near}")


@dataclass(frozen=True)
class GeneratorConfig:
    """What training fixes: the network, what it reads, and the form of its tokens.

    Args:
        k: values a token.
        components: principal components that represent a token, r; 0: its k raw values.
        component_rotation: a token's components are defined up to a rotation. "bases": rotated to
            agree in all tokens of an adapter and, for shared tasks, in all base models. "tokens":
            in all tokens only. "none": not rotated; required with components=0.
        recurrence: the recurrent model; its width m is that of the whole network.
        denoiser: the network that denoises single tokens.
        diffusion: noise schedule and training target. None: plain regression on the condition, a
            baseline. The same network reads zeros instead of noised tokens and returns K_0 at once.
        text_encoder: name of the encoder of the texts. The network itself depends only on the size
            of the embeddings.
        arm: "fingerprint" or "describe", what the condition knows of a base model.
        uses_text: False: the text is always replaced by the learned vector for "no text".
        reads_token_mean: the prototype of each token also receives an estimate of the mean clean
            token, from the mean of all noised tokens of the adapter. Needs
            `SamplingConfig.noise_sharing` "token".
        examples: the condition also reads labelled examples of the task.
        linear: rank of a linear map from the condition to each token, added to what the denoiser
            writes; 0: none. It is learned fast and generalises to other texts, but has
            l * (k or r) * `linear` weights for each base model.
        shared: "added": each base model has a learned part that all its adapters share, and the
            network generates the rest. "only": the denoiser writes nothing, an ablation; what
            remains is the linear map, if there is one. "none": all is generated.
        recurrence_reads: "positions": the recurrent model reads positions, tensor types and the
            condition, and runs once an adapter, as in RPG. "tokens": it also reads the noised token
            and the diffusion step, so that tokens are denoised together; it runs in every step,
            and needs `SamplingConfig.noise_sharing` "token".

    Raises:
        UsageError: a value is out of range, or an option has no effect.

    >>> config = GeneratorConfig(k=256, components=16)
    >>> config.size, config.width  # numbers a token, width of the network
    (16, 256)
    >>> regression = GeneratorConfig(k=256, components=16, diffusion=None)
    """

    k: int = 1536
    components: int = 64
    component_rotation: str = "bases"
    recurrence: RecurrenceConfig = field(default_factory=lambda: RecurrenceConfig(width=256))
    denoiser: DenoiserConfig = field(default_factory=lambda: DenoiserConfig(skip=False))
    diffusion: DiffusionConfig | None = field(
        default_factory=lambda: DiffusionConfig(objective="x0")
    )
    text_encoder: str = "minilm-l6"
    arm: str = "fingerprint"
    uses_text: bool = True
    reads_token_mean: bool = False
    examples: bool = False
    linear: int = 0
    shared: str = "none"
    recurrence_reads: str = "positions"

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise UsageError(f"k={self.k!r}: must be a whole number of 1 or more.")
        if self.width % 4:
            raise UsageError(f"recurrence.width={self.width}: must be divisible by 4.")
        if type(self.components) is not int or not 0 <= self.components <= self.k:
            raise UsageError(
                f"components={self.components!r}: must lie from 0 (a token is its values) to "
                f"k = {self.k}; with so small a k use components={self.k} or 0."
            )
        _one_of("component_rotation", self.component_rotation, ROTATIONS)
        if not self.components and self.component_rotation != "none":
            raise UsageError(
                f"component_rotation={self.component_rotation!r} has no effect with components=0: "
                "use component_rotation='none'."
            )
        _one_of("arm", self.arm, ARMS)
        if type(self.linear) is not int or self.linear < 0:
            raise UsageError(f"linear={self.linear!r}: must be a rank, or 0 for no linear map.")
        _one_of("shared", self.shared, SHARED)
        _one_of("recurrence_reads", self.recurrence_reads, READS)
        for name in ("uses_text", "reads_token_mean", "examples"):
            if type(getattr(self, name)) is not bool:
                raise UsageError(f"{name}={getattr(self, name)!r}: must be true or false.")
        if self.diffusion is None and self.reads_token_mean:
            raise UsageError(
                "reads_token_mean=True has no effect with diffusion=None: regression reads no "
                "noised tokens."
            )
        if self.diffusion is None and self.reads_tokens:
            raise UsageError(
                "recurrence_reads='tokens' has no effect with diffusion=None: regression reads no "
                "noised tokens. Use recurrence_reads='positions'."
            )

    @property
    def reads_tokens(self) -> bool:
        """Whether the recurrent model reads the noised tokens."""
        return self.recurrence_reads == "tokens"

    @property
    def width(self) -> int:
        """Width m of prototypes and condition."""
        return self.recurrence.width

    @property
    def size(self) -> int:
        """Numbers a token: its components r, or its k values."""
        return self.components or self.k

    def fit(self, layout: Layout, values: Tensor, center: Tensor) -> TokenStatistics:
        """The statistics of a zoo's `values` [b, l, k] about `center` [l, k]."""
        align = self.component_rotation != "none"
        return TokenStatistics.fit(layout, values, center, self.components, align=align)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "GeneratorConfig":
        """The configuration that `dataclasses.asdict` wrote. OralError for other content."""
        parts = {
            "recurrence": RecurrenceConfig,
            "denoiser": DenoiserConfig,
            "diffusion": DiffusionConfig,
        }
        values = dict(_complete(cls, content))
        for name, part in parts.items():
            if values[name] is not None:
                values[name] = part(**_complete(part, values[name]))
        return cls(**values)


@dataclass(frozen=True)
class SamplingConfig:
    """What may change from one sample to the next; the network stays the same.

    Args:
        steps: denoising steps, from 1 to the steps of the diffusion.
        temperature: scale of the initial noise, from 0 (nearly no spread) to 1 (that of the zoo).
        projection: the network denoises single tokens, and its error differs from token to token.
            "span" and "hull" replace every x_0 by its projection on the span of the zoo's adapters,
            all tokens together. With "hull" the final x_0 is projected on their convex hull, where
            the optimal denoiser answers; use "span" for tasks outside the zoo. "none": no
            projection.
        guidance: 1: off. g: the prediction without text plus g times the difference that the text
            makes.
        noise_sharing: "adapter": all tokens of an adapter start from one noise draw, so that they
            follow the same zoo adapters. "token": each token has its own draw.

    Raises:
        UsageError: a value is out of range.

    >>> fast = SamplingConfig(steps=5, projection="span")
    >>> fast.temperature
    1.0
    """

    steps: int = 20
    temperature: float = 1.0
    projection: str = "hull"
    guidance: float = 1.0
    noise_sharing: str = "adapter"

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise UsageError(f"steps={self.steps!r}: must be a whole number of 1 or more.")
        if not 0 <= self.temperature <= 1:
            raise UsageError(f"temperature={self.temperature!r}: must lie in [0, 1].")
        _one_of("projection", self.projection, PROJECTIONS)
        if not math.isfinite(self.guidance):
            raise UsageError(f"guidance={self.guidance!r}: must be a finite number.")
        _one_of("noise_sharing", self.noise_sharing, SHARINGS)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SamplingConfig":
        """The configuration that `dataclasses.asdict` wrote. OralError for other content."""
        return cls(**_complete(cls, content))


def _complete(kind: type, content: Any) -> Mapping[str, Any]:
    """`content` if its keys are the fields of the dataclass `kind`, else OralError. Missing fields
    of `ADDED` have their defaults."""
    names = {f.name for f in fields(kind)}
    if not isinstance(content, Mapping):
        raise OralError(f"{kind.__name__} needs a JSON object, not {content!r}.")
    content = {f.name: f.default for f in fields(kind) if f.name in ADDED} | dict(content)
    if odd := sorted(names ^ content.keys()):
        fault = "is missing" if odd[0] in names else "is unknown"
        raise OralError(f"{kind.__name__}: the field {odd[0]!r} {fault}.")
    return content
